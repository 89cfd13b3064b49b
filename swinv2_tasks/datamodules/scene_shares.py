"""What share of the pixels each class has, as printed before training, and what of that stops it."""

import textwrap
from collections.abc import Sequence

from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.datamodules.readers.label_values import LabelCoding, MapCounts, format_value, share, total_pixels
from swinv2_tasks.text import printable

MOST_LISTED = 20
"""Classes whose shares are listed; of more the first ones."""


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


def describe_shares(coding: LabelCoding, maps: Sequence[MapCounts], whole: int) -> str:
    """Lines with the classes, their ids and their shares of all pixels, what is left out, and classes without a pixel.

    Args:
        coding: How label maps are read.
        maps: What was counted in the training label maps.
        whole: How many of these there are.
    """
    pixels = class_pixels(coding, maps)
    total = total_pixels(maps)
    number = total.total()
    counted = f"{len(maps):,} of {whole:,}" if len(maps) < whole else f"{whole:,}"
    classes = [
        f"{class_id} {printable(name)} {share(count, number)}"
        for class_id, name, count in zip(coding.class_ids, coding.names, pixels, strict=True)
    ]
    text = f"Classes in {counted} training label maps: {abbreviate(classes, MOST_LISTED)}"

    left_out = {value: total[value] for value in sorted(coding.ignored) if total[value]}
    listed = ", ".join(f"{format_value(value, coding.has_colors)}: {share(n, number)}" for value, n in left_out.items())
    lines = textwrap.wrap(f"{text}; left out: {listed or 'no pixel'}", 80, break_on_hyphens=False)
    if empty := [name for name, count in zip(coding.names, pixels, strict=True) if not count]:
        word = "class has" if len(empty) == 1 else "classes have"
        lines.append(f"{len(empty)} {word} no pixel in them and cannot be learned: {abbreviate(empty, 12)}")
        if coding.background == "ignore" and not pixels[-1] and 0 in left_out and len(empty) == 1:
            lines.append(
                f"note: label maps that count classes from 0 look like that. If 0 is {coding.names[0]}, set "
                f"{coding.prefix}background=class"
            )
    return "\n".join(lines)
