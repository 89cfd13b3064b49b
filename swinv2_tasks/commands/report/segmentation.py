"""Segmentation in a report: scores of each class, confusion, and the images of the lowest mIoU with their errors."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from swinv2_tasks.callbacks.segmentation import color_classes
from swinv2_tasks.commands.report.blocks import Block, Chart, Column, Example, Examples, Number, Numbers, Section, Table
from swinv2_tasks.commands.report.charts import SERIES, draw
from swinv2_tasks.commands.report.confusion import confusion_blocks
from swinv2_tasks.commands.report.detected import ID, read_file, remedy_of
from swinv2_tasks.commands.report.pictures import (
    Draw,
    Drawing,
    describe_unreadable,
    draw_files,
    embedded,
    gray_picture,
    reader_of,
)
from swinv2_tasks.commands.report.run import Run, Split
from swinv2_tasks.datamodules.scene_classes import colors
from swinv2_tasks.errors import UserError
from swinv2_tasks.pages import reduce
from swinv2_tasks.records import Fault, each, mapping, number, optional, plain, text, whole
from swinv2_tasks.tables import read_table
from swinv2_tasks.text import printable, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUMBER = optional(number(0, 1))

SCORES = mapping(
    {
        "miou": _NUMBER,
        "mean_accuracy": _NUMBER,
        "pixel_accuracy": _NUMBER,
        "classes": each(mapping({"id": ID, "name": text, "iou": _NUMBER, "accuracy": _NUMBER, "pixels": whole()})),
    }
)
"""What val_classes.json holds."""

BOUNDARY = mapping(
    {"mean_boundary_iou": _NUMBER, "classes": each(mapping({"id": ID, "name": text, "boundary_iou": _NUMBER}))}
)
"""What val_boundary.json holds."""


def check_confusion(value: Any) -> Fault | None:
    """Checks what val_confusion.json holds."""
    fault = mapping({"classes": each(text, least=1), "counts": each(plain)})(value)
    if fault is not None:
        return fault
    classes = len(value["classes"])
    return mapping({"counts": each(each(whole(), length=classes + 1), length=classes)})(value)


WORST = each(mapping({"file": text, "miou": number(0, 1), "truth": text, "prediction": text}))
"""What worst.json in val_worst/ holds."""

WRONG = (230, 30, 30)
"""The color of pixels that are predicted wrong."""

SIDE = 360
"""Pixels of the longer side of a picture."""

MOST_LISTED = 200
"""Images in the table of images, those of the lowest mIoU."""


def evaluation_sections(run: Run, split: Split) -> list[Section]:
    """What a report says of an evaluation of a segmentation.

    Args:
        run: the run's files.
        split: which evaluation.

    Raises:
        UserError: a file is there and cannot be read.
    """
    scores = read_file(run, f"{split}_classes.json", SCORES, split)
    if scores is None:
        return [Section("Segmentation", note=f"There is no {split}_classes.json: {remedy_of(run, split)} writes it.")]
    boundary = read_file(run, f"{split}_boundary.json", BOUNDARY, split)
    confusion = read_file(run, f"{split}_confusion.json", check_confusion, split)
    images = read_images(run, split)

    needed = {
        "boundary IoU": run.has(f"{split}_boundary.json"),
        "the confusion matrix": confusion is not None,
        "the worst images": run.has(f"{split}_worst/worst.json"),
    }
    missing = [name for name, is_there in needed.items() if not is_there]
    note = f"{remedy_of(run, split)} measures {' and '.join(missing)} as well." if missing else ""
    blocks: list[Block] = [_means(scores, boundary), _class_table(scores, boundary)]
    if confusion is not None:
        blocks += _confusion(confusion)
    sections = [Section("Segmentation", blocks, note)]
    worst = _worst(run, split, confusion["classes"] if confusion else [row["name"] for row in scores["classes"]])
    of_images: list[Block] = [_histogram(images), _image_table(images)] if images else []
    if worst is not None or of_images:
        shown = [] if worst is None else worst.blocks
        sections.append(Section("Images", [*of_images, *shown], "" if worst is None else worst.note))
    return sections


# ---- classes


def _means(scores: Mapping[str, Any], boundary: Mapping[str, Any] | None) -> Numbers:
    numbers = [
        Number("mIoU", scores["miou"]),
        Number("mean accuracy", scores["mean_accuracy"]),
        Number("pixel accuracy", scores["pixel_accuracy"]),
    ]
    if boundary is not None:
        note = "of pixels within 2 % of the image's diagonal of a contour"
        numbers.append(Number("mean boundary IoU", boundary["mean_boundary_iou"], note))
    return Numbers("Scores", numbers)


def _class_table(scores: Mapping[str, Any], boundary: Mapping[str, Any] | None) -> Table:
    """What is known of each class."""
    columns = [Column("class"), Column("IoU", 4), Column("accuracy", 4), Column("share of the pixels", 2, True)]
    of_boundary = {} if boundary is None else {row["id"]: row["boundary_iou"] for row in boundary["classes"]}
    if boundary is not None:
        columns.insert(2, Column("boundary IoU", 4))
    pixels = max(1, sum(row["pixels"] for row in scores["classes"]))
    rows: list[list[float | str | None]] = []
    for entry in scores["classes"]:
        row: list[float | str | None] = [entry["name"], entry["iou"], entry["accuracy"], entry["pixels"] / pixels]
        if boundary is not None:
            row.insert(2, of_boundary.get(entry["id"]))
        rows.append(row)
    return Table("Classes", columns, rows, "– where a class is neither labeled nor predicted.")


def _confusion(confusion: Mapping[str, Any]) -> Sequence[Block]:
    """Which classes are taken for which."""
    names = confusion["classes"]
    counts = np.array(confusion["counts"], dtype=np.int64).reshape(len(names), -1)
    columns = [*names, "no class"][: counts.shape[1]]
    if counts.shape[1] == len(names) + 1 and not counts[:, -1].any():
        counts, columns = counts[:, :-1], columns[:-1]
    return confusion_blocks(counts, names, columns, "pixels")


# ---- images


def read_images(run: Run, split: Split, every: bool = False) -> list[tuple[str, float, float, str, float]]:
    """File, mIoU, pixel accuracy, worst class and its IoU of each image where anything is labeled.

    Args:
        run: the run's files.
        split: which evaluation.
        every: whether images without a label are there as well, with NaN.

    Raises:
        UserError: the table cannot be read.
    """
    path = run.folder / f"{split}_images.csv"
    if not path.is_file():
        return []
    try:
        rows = [row for row in read_table(path) if row["miou"] or every]
        numbers = [[float(row[name] or "nan") for name in ("miou", "pixel_accuracy", "worst_iou")] for row in rows]
        return [
            (row["file"], miou, accuracy, row["worst_class"], worst)
            for row, (miou, accuracy, worst) in zip(rows, numbers, strict=True)
        ]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{printable(path)} cannot be read. To write it again: {remedy_of(run, split)}.") from error


def _histogram(images: Sequence[tuple[str, float, float, str, float]]) -> Chart:
    """How many images have which mIoU."""
    values = [image[1] for image in images]

    def plot(axes: Sequence[Axes]) -> None:
        (panel,) = axes
        panel.hist(values, bins=25, range=(0, 1), color=SERIES[0])
        panel.set(xlabel="mIoU of an image", ylabel="images", xlim=(0, 1))

    return Chart("mIoU of images", draw(plot, height=2.8), "How many images have which mIoU")


def _image_table(images: Sequence[tuple[str, float, float, str, float]]) -> Table:
    """The images of the lowest mIoU."""
    columns = [
        Column("image"), Column("mIoU", 4), Column("pixel accuracy", 4), Column("worst class"), Column("its IoU", 4),
    ]  # fmt: skip
    rows = sorted(images, key=lambda image: image[1])[:MOST_LISTED]
    note = f"The {MOST_LISTED} of the lowest mIoU of {len(images):,}." if len(rows) < len(images) else ""
    return Table("Images", columns, [[PurePath(row[0]).name, *row[1:]] for row in rows], note)


def _worst(run: Run, split: Split, names: Sequence[str]) -> Section | None:
    """The images whose label maps are kept: image, annotation, prediction and errors."""
    folder = run.folder / f"{split}_worst"
    entries = read_file(run, f"{folder.name}/worst.json", WORST, split)
    if not entries:
        return None
    drawings, legends = [], []
    for entry in entries:
        truth, prediction = (_read_map(folder / PurePath(entry[name]).name) for name in ("truth", "prediction"))
        drawings.append(Drawing(entry["file"], _drawer(truth, prediction, len(names)), 4))
        legends.append(_describe_errors(truth, prediction, names))
    drawn = draw_files(reader_of(run), drawings)

    texts = ("image", "annotated classes of", "predicted classes of", "wrong pixels of")
    shown = []
    for entry, images, lines, drawing in zip(entries, drawn, legends, drawings, strict=True):
        title = PurePath(entry["file"]).name
        pictures = images if images is not None else drawing.draw(gray_picture())
        shown.append(
            Example(
                [embedded(picture, f"{text_} {title}") for picture, text_ in zip(pictures, texts, strict=True)],
                title,
                [f"mIoU {entry['miou']:.3f}", *lines],
            )
        )
    note = "Image, annotation, prediction, and in red what is wrong; pixels without a label do not count."
    unreadable = describe_unreadable(sum(images is None for images in drawn))
    return Section("Images", [Examples("Images of the lowest mIoU", shown, note)], unreadable)


def _read_map(path: Path) -> np.ndarray:
    """A label map that the evaluation has kept: uint8 (h, w), 1 for the first class.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L") or image.width * image.height > 2**22:
                raise ValueError("no small label map")
            return np.asarray(image).copy()
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{printable(path)} cannot be read. Evaluate again.") from error


def _drawer(truth: np.ndarray, prediction: np.ndarray, classes: int) -> Draw:
    """Draws an image, the same under its annotated and its predicted classes, and what is wrong."""
    palette = colors(max(classes, int(truth.max()), int(prediction.max())))

    def draw_four(image: Image.Image) -> list[Image.Image]:
        small = reduce(image, SIDE)
        labels = [_resized(labels, small.size) for labels in (truth, prediction)]
        overlays = []
        for own in labels:
            overlay = small.copy()
            color_classes(small, own, palette, overlay)
            overlays.append(overlay)
        is_wrong = (labels[0] > 0) & (labels[0] != labels[1])
        errors = small.convert("L").convert("RGB")
        errors.paste(Image.blend(errors, Image.new("RGB", errors.size, WRONG), 0.75), mask=Image.fromarray(is_wrong))
        return [small, *overlays, errors]

    return draw_four


def _resized(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map at a size (width, height)."""
    return np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))


def _describe_errors(truth: np.ndarray, prediction: np.ndarray, names: Sequence[str]) -> list[str]:
    """Lines on the pairs of classes that most pixels are confused between."""
    if truth.shape != prediction.shape:
        return []
    is_wrong = (truth > 0) & (truth != prediction)
    labeled = max(1, int((truth > 0).sum()))
    pairs = np.bincount(truth[is_wrong].astype(np.int64) * 256 + prediction[is_wrong], minlength=2**16)
    lines = []
    for pair in np.argsort(-pairs, kind="stable")[:2].tolist():
        if pairs[pair]:
            true, predicted = (_name(k, names) for k in divmod(pair, 256))
            lines.append(f"{true} as {predicted}: {pairs[pair] / labeled:.1%} of the pixels")
    return lines


def _name(value: int, names: Sequence[str]) -> str:
    return shorten(names[value - 1], 30) if 0 < value <= len(names) else "no class"
