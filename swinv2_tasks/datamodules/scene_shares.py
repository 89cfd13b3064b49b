"""What share of the pixels each class has, as printed before training, and what of that stops it."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.datamodules.readers.label_values import LabelCoding, MapCounts, format_value, share, total_pixels

_ROWS = 20
"""Classes below each other; more of them stand side by side."""


def class_pixels(coding: LabelCoding, maps: Sequence[MapCounts]) -> list[int]:
    """Pixels of each class, in label maps of which some may hold other values."""
    pixels = [0] * len(coding.names)
    for value, number in total_pixels(maps).items():
        if value in coding.class_of:
            pixels[coding.class_of[value]] += number
    return pixels


def check_shares(coding: LabelCoding, maps: Sequence[MapCounts]) -> str | None:
    """Why nothing could be learned from these label maps; None if something can."""
    pixels = class_pixels(coding, maps)
    present = [name for name, number in zip(coding.names, pixels, strict=True) if number]
    if len(present) > 1:
        return None
    if present:
        finding = f"all labeled pixels are {present[0]}"
        outcome = "a model that always says so has a loss of 0 and an mIoU of 1.0"
    else:
        finding, outcome = "no pixel has a class", "there is nothing to learn"
    remedy = ""
    if coding.background == "ignore":
        remedy = (
            f" If 0 is a class, such as a background to be learned, name it and set {coding.prefix}background=class."
        )
    return (
        f"In the training label maps {finding}: {outcome}. As they are read, {coding.meaning}.{remedy} The class of "
        f"each value can be named: {coding.prefix}label_values."
    )


def share_table(coding: LabelCoding, maps: Sequence[MapCounts], whole: int) -> Group:
    """The classes, their ids and their shares of all pixels; below it what is left out, and classes without a pixel.

    Args:
        coding: How label maps are read.
        maps: What was counted in the training label maps.
        whole: How many of these there are.
    """
    pixels = class_pixels(coding, maps)
    total = total_pixels(maps)
    number = total.total()
    counted = f"{len(maps):,} of {whole:,}" if len(maps) < whole else f"{whole:,}"

    columns = -(-len(pixels) // _ROWS)
    rows = -(-len(pixels) // columns)
    table = Table()
    for _ in range(columns):
        table.add_column("id", justify="right")
        table.add_column("class", overflow="fold")
        table.add_column("pixels", justify="right", no_wrap=True)

    for row in range(rows):
        cells: list[str] = []
        for index in range(row, len(pixels), rows):
            cells += [str(coding.class_ids[index]), coding.names[index], share(pixels[index], number)]
        table.add_row(*cells)

    left_out = {value: total[value] for value in sorted(coding.ignored) if total[value]}
    listed = ", ".join(f"{format_value(value, coding.has_colors)}: {share(n, number)}" for value, n in left_out.items())
    lines = [f"left out: {listed or 'no pixel'}"]
    if empty := [name for name, count in zip(coding.names, pixels, strict=True) if not count]:
        word = "class has" if len(empty) == 1 else "classes have"
        lines.append(f"{len(empty)} {word} no pixel in them and cannot be learned: {abbreviate(empty, 12)}")
        if coding.background == "ignore" and not pixels[-1] and 0 in left_out and len(empty) == 1:
            lines.append(
                f"note: label maps that count classes from 0 look like that. If 0 is {coding.names[0]}, set "
                f"{coding.prefix}background=class"
            )
    return Group(f"Classes in {counted} training label maps", table, *lines)
