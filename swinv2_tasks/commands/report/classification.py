"""Images and videos in a report, of one label or of several: scores, classes, confusion, calibration, mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swinv2_tasks.commands.report.blocks import Block, Column, Number, Numbers, Section, Table
from swinv2_tasks.commands.report.class_charts import calibration_chart, confusion_blocks, f1_chart
from swinv2_tasks.commands.report.classification_examples import multi_label_examples, single_label_examples
from swinv2_tasks.commands.report.classified import Classified, read_classified
from swinv2_tasks.commands.report.detected import remedy_of
from swinv2_tasks.commands.report.run import Run, Split
from swinv2_tasks.evaluation.calibration import calibrate
from swinv2_tasks.evaluation.predictions import MultiLabelResults, SingleLabelResults

TITLE = "Classification"


def evaluation_sections(run: Run, split: Split) -> list[Section]:
    """What a report says of an evaluation of a classifier, of images or videos.

    Args:
        run: the run's files.
        split: which evaluation.

    Raises:
        UserError: a file is there and cannot be read.
    """
    classified = read_classified(run, split)
    if classified is None:
        return [Section(TITLE, note=f"There is no {split}_classes.json: {remedy_of(run, split)} writes it.")]
    if "top1" in classified.scores:
        return _single_label(run, classified)
    return _multi_label(run, classified)


# ---- one label a sample


def _single_label(run: Run, classified: Classified) -> list[Section]:
    scores, samples, results = classified.scores, classified.samples, classified.results
    numbers = [
        Number("top-1", scores["top1"], f"the share of {samples} whose most probable class is the label"),
        Number("top-5", scores["top5"], "whose label is among the five most probable classes"),
        Number("ECE", scores["ece"], "expected calibration error, of 15 bins: how far confidence is from accuracy"),
        Number("macro F1", scores.get("macro_f1"), "mean over the classes"),
    ]
    if samples in scores:
        numbers.append(Number(samples, scores[samples]))
    blocks: list[Block] = [Numbers("Scores", numbers), _class_table(scores, samples, [])]
    if not isinstance(results, SingleLabelResults):
        return [Section(TITLE, blocks, classified.note)]
    blocks.append(calibration_chart(calibrate(results.scores[:, 0], results.is_right), samples))
    confused = confusion_blocks(results.labels, results.predicted, classified.names, samples)
    examples = single_label_examples(run, classified, results)
    return [Section(TITLE, blocks), Section("Confusion", confused), *examples]


# ---- several labels a sample


def _multi_label(run: Run, classified: Classified) -> list[Section]:
    scores, samples, results = classified.scores, classified.samples, classified.results
    threshold = scores["threshold"]
    numbers = [
        Number("mAP", scores["map"], "mean average precision over the classes"),
        Number("micro F1", scores["micro_f1"], f"of all predictions from {threshold:g} on"),
        Number("macro F1", scores["macro_f1"], f"mean over the classes, from {threshold:g} on"),
    ]
    curve = scores.get("f1_curve")
    if curve is not None:
        numbers += _best_thresholds(curve)
    blocks: list[Block] = [Numbers("Scores", numbers), _class_table(scores, samples, [("AP", "ap")])]
    if curve is not None:
        blocks.append(f1_chart(curve, threshold))
    examples = multi_label_examples(run, classified, results) if isinstance(results, MultiLabelResults) else []
    return [Section(TITLE, blocks, classified.note), *examples]


def _best_thresholds(curve: Mapping[str, Any]) -> list[Number]:
    """The highest F1 over the threshold, and where it is."""
    numbers = []
    for name in ("micro_f1", "macro_f1"):
        pairs = [(f1, -threshold) for threshold, f1 in zip(curve["thresholds"], curve[name], strict=False) if f1]
        if pairs:
            best, negative = max(pairs)
            note = f"with the threshold {-negative:g}, chosen on these very samples"
            numbers.append(Number(f"best {name.replace('_f1', ' F1')}", best, note))
    return numbers


# ---- classes


def _class_table(scores: Mapping[str, Any], samples: str, more: list[tuple[str, str]]) -> Table:
    """The scores of each class; ``more`` are titles and names of further ones."""
    columns = [*more, ("precision", "precision"), ("recall", "recall"), ("F1", "f1")]
    rows: list[list[float | str | None]] = [
        [row["name"], str(row["id"]), *(row.get(name) for _, name in columns), row.get(samples)]
        for row in scores["classes"]
    ]
    names = [Column("class"), Column("id"), *(Column(title, 4) for title, _ in columns), Column(samples)]
    note = f"– where a class is never predicted, or holds for none of the {samples}."
    return Table("Classes", names, rows, note)
