"""Detection in a report: COCO's numbers, AP of each class, curves, confusion, and where detections are wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from swinv2_tasks.commands.report.blocks import Block, Chart, Column, Number, Numbers, Section, Table
from swinv2_tasks.commands.report.charts import INK, SERIES, draw
from swinv2_tasks.commands.report.confusion import confusion_blocks
from swinv2_tasks.commands.report.detected import (
    CURVES,
    SCORES,
    Detected,
    read_detected,
    read_file,
    remedy_of,
)
from swinv2_tasks.commands.report.detection_examples import examples
from swinv2_tasks.commands.report.run import Run, Split
from swinv2_tasks.evaluation.coco_curves import SIZES
from swinv2_tasks.evaluation.detection_errors import count_confusions
from swinv2_tasks.text import command_word

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TYPES = ("box", "mask")

THRESHOLDS = np.linspace(0, 1, 101)
"""Scores at which curves are drawn."""

SHOWN_IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)


def evaluation_sections(run: Run, split: Split) -> list[Section]:
    """What a report says of an evaluation of a detector.

    Args:
        run: the run's files.
        split: which evaluation.

    Raises:
        UserError: a file is there and cannot be read.
    """
    scores = read_file(run, f"{split}_classes.json", SCORES, split)
    if scores is None:
        return [Section("Detection", note=f"There is no {split}_classes.json: {remedy_of(run, split)} writes it.")]
    stored = read_file(run, f"{split}_curves.json", CURVES, split) or {}
    curves = {name: stored[name] for name in TYPES if name in stored}
    boundary = read_file(run, f"{split}_boundary.json", SCORES, split) or {}
    detected = read_detected(run, split)

    missing = [name for name in ("curves", "truth", "detections") if not run.has(f"{split}_{name}.json")]
    note = scores.get("note", "")
    if missing:
        names = " and ".join(f"{split}_{name}.json" for name in missing)
        note = f"{note} Curves, confusion and examples need {names}: {remedy_of(run, split)} writes them.".strip()
    blocks: list[Block] = [*_best_numbers(scores, detected), _coco_table(run, split, scores, boundary)]
    blocks += [_precision_chart(curves), _ap_chart(curves)] if curves else []
    blocks += [_class_table(scores, curves, boundary, detected)]
    sections = [Section("Detection", blocks, note)]
    if detected is not None and len(detected.detections):
        sections += [_errors(detected), examples(run, detected)]
    return sections


# ---- scores


def _best_numbers(scores: Mapping[str, Any], detected: Detected | None) -> list[Block]:
    numbers = [
        Number(f"{name} {label}", _or_none(scores[name][key]))
        for name in TYPES
        if name in scores
        for key, label in (("ap", "AP"), ("ap50", "AP50"))
        if key in scores[name]
    ]
    if detected is not None:
        curve = detected.curve()
        best = curve.best
        if best is not None:
            score = float(curve.thresholds[best])
            numbers.append(Number("best F1", float(curve.f1[best]), f"of detections with a score from {score:.2f} on"))
    return [Numbers("Scores", numbers)] if numbers else []


def _or_none(value: float) -> float | None:
    """COCO's numbers with None for −1, where there is no object."""
    return None if value < 0 else value


def _coco_table(run: Run, split: Split, scores: Mapping[str, Any], boundary: Mapping[str, Any]) -> Table:
    """COCO's twelve numbers by boxes, by masks and, where they have been computed, by the masks' boundaries."""
    columns = {name: scores[name] for name in TYPES if name in scores}
    note = "As COCO's tools compute them; – where there is no object of a size."
    if "boundary" in boundary:
        columns["boundary"] = boundary["boundary"]
    elif "mask" in columns:
        files = [command_word(run.folder / f"{split}_{name}.json") for name in ("truth", "detections", "boundary")]
        note += (
            f" Boundary AP takes some minutes more: swinv2-tasks score coco --annotations {files[0]} --predictions "
            f"{files[1]} --iou-type boundary --backend faster_coco_eval --json {files[2]} (pip install "
            "'swinv2-tasks[fast]')."
        )
    names = [*dict.fromkeys(key for of_type in columns.values() for key in of_type)]
    rows: list[list[float | str | None]] = []
    for key in names:
        values = [of_type.get(key, -1) for of_type in columns.values()]
        rows.append([_describe(key), *map(_or_none, values)])
    return Table("COCO's numbers", [Column(""), *(Column(name, 4) for name in columns)], rows, note)


def _describe(name: str) -> str:
    """A name of COCO's numbers as tables show it, as ``AP50`` or ``AR small``."""
    return f"{name[:2].upper()}{name[2:].replace('_', ' ')}"


def _class_table(
    scores: Mapping[str, Any], curves: Mapping[str, Any], boundary: Mapping[str, Any], detected: Detected | None
) -> Table:
    """What is known of each class."""
    types = [name for name in TYPES if name in scores]
    keys = {name: {row["id"]: row for row in curves.get(name, {}).get("classes", ())} for name in types}
    labels = {} if detected is None else {class_id: k for k, class_id in enumerate(detected.ids)}
    numbers = None if detected is None else detected.object_numbers

    columns = [Column("class")]
    if detected is not None:
        columns.append(Column("objects"))
    for name in types:
        columns.append(Column(f"{name} AP", 4))
        if keys[name]:
            columns += [Column(f"{name} {size}", 4) for size in ("AP50", "AP75", "small", "medium", "large")]
    of_boundaries = {row["id"]: row.get("boundary_ap") for row in boundary.get("classes", ())}
    if of_boundaries:
        columns.append(Column("boundary AP", 4))
    if detected is not None:
        columns += [Column("best F1", 4), Column("from score", 3), Column("precision", 4), Column("recall", 4)]

    rows: list[list[float | str | None]] = []
    for entry in scores["classes"]:
        row: list[float | str | None] = [entry["name"]]
        label = labels.get(entry["id"])
        if numbers is not None:
            row.append(None if label is None else int(numbers[label]))
        for name in types:
            row.append(entry.get(f"{name}_ap"))
            if keys[name]:
                of_class = keys[name].get(entry["id"], {})
                row += [of_class.get(key) for key in ("ap50", "ap75", "ap_small", "ap_medium", "ap_large")]
        if of_boundaries:
            row.append(of_boundaries.get(entry["id"]))
        if detected is not None:
            row += _best_of_class(detected, label)
        rows.append(row)
    return Table("Classes", columns, rows)


def _best_of_class(detected: Detected, label: int | None) -> list[float | str | None]:
    """The highest F1 of a class, from which score on it is reached, and precision and recall there."""
    if label is None or not detected.object_numbers[label]:
        return [None] * 4
    curve = detected.curve(label)
    best = curve.best
    if best is None:
        return [0.0, None, None, 0.0]
    return [float(values[best]) for values in (curve.f1, curve.thresholds, curve.precision, curve.recall)]


# ---- curves


def _precision_chart(curves: Mapping[str, Any]) -> Chart:
    """Precision over recall, the mean over the classes, at several IoUs."""

    def plot(axes: Sequence[Axes]) -> None:
        for panel, (name, of_type) in zip(axes, curves.items(), strict=True):
            for iou, values in zip(of_type["ious"], of_type["precision"], strict=True):
                if any(abs(iou - shown) < 1e-6 for shown in SHOWN_IOUS):
                    panel.plot(of_type["recalls"], _with_gaps(values), label=f"IoU {iou:.2f}")
            panel.set(title=name, xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
            panel.grid(alpha=0.2)
            panel.legend()

    svg = draw(plot, 5.0 * len(curves), 3.6, len(curves))
    return Chart("Precision over recall", svg, "Precision falls as recall grows", "The mean over the classes.", True)


def _ap_chart(curves: Mapping[str, Any]) -> Chart:
    """AP over the IoU from which on a detection counts as right, for each size of objects."""

    def plot(axes: Sequence[Axes]) -> None:
        for panel, (name, of_type) in zip(axes, curves.items(), strict=True):
            for size in SIZES:
                values = _with_gaps(of_type["ap"].get(size, []))
                if not np.isnan(values).all():
                    panel.plot(of_type["ious"], values, label=size, marker=".", linewidth=2.2 if size == "all" else 1.2)
            panel.set(title=name, xlabel="IoU", ylabel="AP", ylim=(0, 1.02))
            panel.grid(alpha=0.2)
            panel.legend()

    svg = draw(plot, 5.0 * len(curves), 3.6, len(curves))
    note = "Small objects have less than 32² pixels, large ones from 96² on."
    return Chart("AP by IoU and size", svg, "AP falls as the IoU that counts as right grows", note, True)


def _with_gaps(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


# ---- errors


def _errors(detected: Detected) -> Section:
    """F1 over confidence, and what objects are detected as."""
    threshold = detected.curve().best_threshold or 0.0
    counts = count_confusions(detected.truth, detected.detections, len(detected.ids), threshold)
    rows, columns = [*detected.names, "background"], [*detected.names, "missed"]
    note = (
        f"Detections of all classes with a score from {threshold:.3f} on, where F1 is highest, matched to objects by "
        "boxes of an IoU of .50 or more. Background: no object; missed: no detection."
    )
    blocks: list[Block] = [_f1_chart(detected), *confusion_blocks(counts, rows, columns, "objects", note)]
    return Section("Detection errors", blocks, note)


def _f1_chart(detected: Detected) -> Chart:
    """F1, precision and recall over the score from which on detections count."""
    curve = detected.curve()
    shown = [k for k, number in enumerate(detected.object_numbers) if number]
    of_classes = [detected.curve(k).at(THRESHOLDS)[2] for k in shown] if len(shown) <= 30 else []

    def plot(axes: Sequence[Axes]) -> None:
        (panel,) = axes
        for f1 in of_classes:
            panel.plot(THRESHOLDS, f1, color="#8c8c8c", linewidth=0.7, alpha=0.6)
        precision, recall, f1 = curve.at(THRESHOLDS)
        panel.plot(THRESHOLDS, precision, color=SERIES[2], label="precision")
        panel.plot(THRESHOLDS, recall, color=SERIES[1], label="recall")
        panel.plot(THRESHOLDS, f1, color=SERIES[0], linewidth=2.2, label="F1")
        if curve.best is not None:
            best = float(curve.thresholds[curve.best])
            panel.axvline(best, color=INK, linewidth=0.8, linestyle="--")
            text, side = f"F1 {curve.f1[curve.best]:.3f} from {best:.2f} on", "left" if best < 0.5 else "right"
            offset = (4 if best < 0.5 else -4, 0)
            panel.annotate(text, (best, 0.02), offset, textcoords="offset points", ha=side)
        panel.set(xlabel="least score", xlim=(0, 1), ylim=(0, 1.02))
        panel.grid(alpha=0.2)
        panel.legend()

    note = "All detections together, by boxes at an IoU of .50" + ("; gray: F1 of each class." if of_classes else ".")
    return Chart("F1 over confidence", draw(plot), "F1, precision and recall over the least score", note)
