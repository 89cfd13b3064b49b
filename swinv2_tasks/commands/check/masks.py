"""Checks of label maps: that they are there, have their image's size, and hold values that are classes."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from swinv2_tasks.commands.check.facts import Facts
from swinv2_tasks.commands.check.findings import Findings
from swinv2_tasks.datamodules.readers.images import has_image_extension
from swinv2_tasks.datamodules.readers.label_values import LabelCoding, format_value


def check_label_map(
    findings: Findings, split: str, pair: tuple[str, str], image: Facts, label_map: Facts, coding: LabelCoding | None
) -> Counter[int]:
    """Adds what is wrong with the label map of an image; returns the pixels of each class."""
    path, map_path = pair
    if not Path(map_path).is_file():
        findings.add("missing_label_map", split, path, f"there is no {map_path}", is_drawn=not image.reason)
        return Counter()
    if label_map.reason:
        findings.add("unreadable_label_map", split, map_path, label_map.reason, others=(path,))
        return Counter()

    is_drawn = not image.reason
    if is_drawn and (image.width, image.height) != (label_map.width, label_map.height):
        detail = f"{label_map.width}×{label_map.height}, the image {path} is {image.width}×{image.height}"
        findings.add("label_map_size_differs", split, map_path, detail, label_map=map_path)
    values = label_map.values or {}
    if coding is None:
        return Counter()

    known = set(coding.class_of) | set(coding.ignored)
    if unknown := [value for value in sorted(values) if value not in known]:
        listed = ", ".join(format_value(value, coding.has_colors) for value in unknown[:6])
        detail = f"{listed}{', …' * (len(unknown) > 6)}: {sum(values[value] for value in unknown):,} pixels"
        findings.add("unknown_label", split, map_path, detail, label_map=map_path)
    pixels: Counter[int] = Counter()
    for value, number in values.items():
        if value in coding.class_of:
            pixels[coding.class_of[value]] += number
    if not pixels and not unknown:
        findings.add("ignored_label_map", split, map_path, label_map=map_path)
    elif len(pixels) == 1 and len(values) == 1:
        (index,) = pixels
        findings.add("single_label_map", split, map_path, coding.names[index], label_map=map_path)
    return pixels


def check_unpaired(findings: Findings, pairs: Sequence[tuple[str, str]]) -> None:
    """Adds the label maps that no image has, of the folders that hold hardly anything else; of the pairs of all splits.

    Cityscapes has other files beside each label map.
    """
    known: dict[str, set[str]] = defaultdict(set)
    for _, label_map in pairs:
        known[str(Path(label_map).parent)].add(Path(label_map).name)
    images = {str(Path(image).parent) for image, _ in pairs}
    for folder, names in known.items():
        if folder in images or not Path(folder).is_dir():
            continue
        with os.scandir(folder) as entries:
            others = [entry.name for entry in entries if entry.name not in names and has_image_extension(entry.name)]
        if len(others) < len(names):
            for name in sorted(others):
                path = str(Path(folder, name))
                findings.add("label_map_without_image", "", path, label_map=path)
