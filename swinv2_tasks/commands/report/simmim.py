"""SimMIM in a report: the loss, reconstructions, and the images that are reconstructed worst and best."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from swinv2_tasks.commands.report.blocks import (
    Block,
    Chart,
    Column,
    Example,
    Examples,
    Number,
    Numbers,
    Section,
    Table,
)
from swinv2_tasks.commands.report.charts import SERIES, draw
from swinv2_tasks.commands.report.detected import remedy_of
from swinv2_tasks.commands.report.pictures import (
    Drawing,
    describe_unreadable,
    draw_files,
    embedded,
    gray_picture,
    reader_of,
)
from swinv2_tasks.commands.report.run import Run, Split
from swinv2_tasks.datamodules.readers.channels import RGB_READER
from swinv2_tasks.errors import UserError
from swinv2_tasks.pages import reduce
from swinv2_tasks.tables import read_table
from swinv2_tasks.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 12
"""Images of the highest and of the lowest loss."""

SIDE = 240
"""Pixels of the longer side of an image."""

SHEET_SIDE = 2400
"""Of a sheet of reconstructions, which is high."""

SHEET_BYTES = 700_000

MOST_LISTED = 200
"""Images in the table of images, those of the highest loss."""


def evaluation_sections(run: Run, split: Split) -> list[Section]:
    """What a report says of an evaluation of SimMIM.

    Args:
        run: the run's files.
        split: which evaluation.

    Raises:
        UserError: a file is there and cannot be read.
    """
    losses = _read_losses(run, split)
    logged = [row[f"{split}/loss"] for row in run.metrics if f"{split}/loss" in row]
    blocks: list[Block] = []
    if logged:
        blocks.append(Numbers("Scores", [Number("loss", logged[-1], "of the pixels that are masked, the mean")]))
    reconstructions, unreadable = _reconstructions(run)
    blocks += reconstructions
    if not losses:
        note = f"{remedy_of(run, split)} writes the loss of each image as well."
        return [Section("Reconstruction", blocks, " ".join(filter(None, [note, describe_unreadable(unreadable)])))]
    blocks += [_histogram(losses), _table(losses)]
    shown, gone = _extremes(run, losses)
    return [Section("Reconstruction", [*blocks, *shown], describe_unreadable(unreadable + gone))]


def _read_losses(run: Run, split: Split) -> list[tuple[str, float]]:
    """File and loss of each image.

    Raises:
        UserError: the table cannot be read.
    """
    path = run.folder / f"{split}_images.csv"
    if not path.is_file():
        return []
    try:
        return [(row["file"], float(row["loss"])) for row in read_table(path)]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{printable(path)} cannot be read. To write it again: {remedy_of(run, split)}.") from error


def _reconstructions(run: Run) -> tuple[list[Block], int]:
    """The visualizations of the last validation and of the first one, and how many of them cannot be read."""
    sheets = sorted((run.folder / "visualizations").glob("epoch_*.png"))
    chosen = [*dict.fromkeys([*sheets[-1:], *sheets[:1]])]
    if not chosen:
        return [], 0
    drawn = draw_files(RGB_READER, [Drawing(str(path), lambda image: [reduce(image, SHEET_SIDE)]) for path in chosen])
    examples = []
    for path, images in zip(chosen, drawn, strict=True):
        (image,) = images or [gray_picture()]
        title = path.stem.replace("_", " ")
        examples.append(Example([embedded(image, f"Reconstructions, {title}", SHEET_BYTES)], title))
    note = "Validation images, what the model sees of them, and how it fills in the rest: last and first validation."
    return [Examples("Reconstructions", examples, note)], sum(images is None for images in drawn)


def _histogram(losses: Sequence[tuple[str, float]]) -> Chart:
    """How many images have which loss."""
    values = [loss for _, loss in losses if math.isfinite(loss)]

    def plot(axes: Sequence[Axes]) -> None:
        (panel,) = axes
        panel.hist(values, bins=30, color=SERIES[0])
        panel.set(xlabel="loss of an image", ylabel="images")

    return Chart("Loss of images", draw(plot, height=2.8), "How many images have which loss")


def _table(losses: Sequence[tuple[str, float]]) -> Table:
    """The images of the highest loss."""
    rows = sorted(losses, key=lambda image: -image[1])[:MOST_LISTED]
    note = f"The {MOST_LISTED} of the highest loss of {len(losses):,}." if len(rows) < len(losses) else ""
    cells = [[PurePath(file).name, loss if math.isfinite(loss) else str(loss)] for file, loss in rows]
    return Table("Images", [Column("image"), Column("loss", 5)], cells, note)


def _extremes(run: Run, losses: Sequence[tuple[str, float]]) -> tuple[list[Block], int]:
    """The images of the highest and of the lowest loss, and how many of them cannot be read any more."""
    ordered = sorted((image for image in losses if math.isfinite(image[1])), key=lambda image: -image[1])
    number = min(SHOWN, (len(ordered) + 1) // 2)
    groups = {"Highest loss": ordered[:number], "Lowest loss": ordered[::-1][:number]}
    chosen = [image for group in groups.values() for image in group]
    drawn = draw_files(reader_of(run), [Drawing(file, lambda image: [reduce(image, SIDE)]) for file, _ in chosen])
    pictures = iter(drawn)
    blocks: list[Block] = []
    for title, group in groups.items():
        examples = []
        for file, loss in group:
            (image,) = next(pictures) or [gray_picture(SIDE)]
            name = PurePath(file).name
            examples.append(Example([embedded(image, name)], name, [f"loss {loss:.4f}"]))
        if examples:
            blocks.append(Examples(title, examples))
    return blocks, sum(images is None for images in drawn)
