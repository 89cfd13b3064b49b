"""The checks, what they found, and how it is printed and written."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from swinv2_tasks.progress import count_words
from swinv2_tasks.text import printable

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""From what stops or spoils a training to what is only good to know."""

MOST_KEPT = 1000
"""Findings of a check that are kept with their files; of more, the number."""


class Check(NamedTuple):
    """What is looked for."""

    severity: Severity
    title: str
    """What was found, as a line of the report has it after the number."""
    advice: str


CHECKS: dict[str, Check] = {
    # ---- layout and files
    "refused_labels": Check("error", "splits that fit refuses", "The message says what to mend."),
    "empty_split": Check("error", "splits without samples", "Add files, or remove the folder or list."),
    "no_validation": Check("note", "datasets without validation data", "A share of the training data is set aside."),
    "missing_file": Check("error", "files that are not there", "Fetch them, or remove their entries."),
    "empty_file": Check("error", "files of 0 bytes", "Fetch them again, or remove them."),
    "truncated_file": Check("error", "files that are cut off", "Fetch them again, or remove them."),
    "unreadable_file": Check("error", "files that cannot be read", "Replace or remove them."),
    "wrong_extension": Check("note", "files whose ending is another format's", "They are read; rename them."),
    # ---- duplicates
    "duplicate_in_split": Check("warning", "copies of a file within a split", "Keep one of them."),
    "duplicate_across_splits": Check("error", "copies of a file of another split", "Scores are too high: remove them."),
    "same_pixels_in_split": Check("warning", "files with the pixels of another of the split", "Keep one of them."),
    "same_pixels_across_splits": Check(
        "error", "files with the pixels of one in another split", "Scores are too high: remove them."
    ),
    "near_duplicate_in_split": Check("note", "near-duplicates within a split", "Look whether they are wanted."),
    "near_duplicate_across_splits": Check(
        "warning", "near-duplicates of an image in another split", "Scores are too high if they show the same."
    ),
    "contradicting_labels": Check("error", "copies of a file with other labels", "Decide for one label."),
    # ---- classes
    "class_without_train": Check("warning", "classes without training samples", "They cannot be learned."),
    "class_without_val": Check("warning", "classes without validation samples", "They are not measured."),
    "class_only_in_val": Check("error", "classes of the validation data that training lacks", "Give both the same."),
    "single_sample_class": Check("note", "classes with one training sample", "Add samples."),
    "imbalanced_classes": Check(
        "note",
        "splits whose largest class has over 20 times the samples of the smallest",
        "Consider model.class_weights or data.sampling.",
    ),
    "similar_class_names": Check("warning", "classes whose names differ in case or spaces alone", "Merge them."),
    # ---- annotations of objects
    "invalid_annotation": Check("error", "entries that are not in their layout's format", "Mend or remove them."),
    "repeated_id": Check("error", "ids that stand more than once", "Number the entries anew."),
    "unknown_category": Check("error", "objects of categories that are not listed", "List them, or remove these."),
    "annotation_without_image": Check("error", "objects of images that are not listed", "Remove them."),
    "image_without_annotations": Check("note", "images without objects", "Training leaves them out (keep_empty)."),
    "unlisted_image": Check("warning", "images in the folder that no annotation file lists", "List or remove them."),
    "annotated_size_differs": Check("error", "images of another size than annotated", "Mend width and height."),
    # ---- boxes
    "degenerate_box": Check("error", "boxes without area", "Training leaves them out, scores count them as missed."),
    "box_outside": Check("error", "boxes outside of their image", "Mend or remove them."),
    "box_beyond_edge": Check("warning", "boxes that reach beyond their image", "Training cuts them off."),
    "tiny_box": Check("note", "boxes with a side below 2 pixels", "Hardly any detector finds them."),
    "whole_image_box": Check("note", "boxes of the whole image", "Look whether they are wanted."),
    "duplicate_box": Check("warning", "boxes that stand twice on an image", "Remove one of each two."),
    "contradicting_boxes": Check("warning", "boxes that stand twice with other classes", "Decide for one class."),
    # ---- masks of objects
    "short_polygon": Check("error", "polygons of fewer than three corners", "They enclose nothing: remove them."),
    "polygon_outside": Check("warning", "polygons that reach beyond their image", "They are cut off."),
    "broken_mask": Check("error", "masks that cannot be drawn", "Mend or remove them."),
    "mask_box_mismatch": Check("warning", "objects whose mask is elsewhere than their box", "Mend one of the two."),
    # ---- label maps
    "missing_label_map": Check("error", "images without a label map", "Add it, or remove the image."),
    "unreadable_label_map": Check("error", "label maps that cannot be read", "Write them anew, as 8-bit PNG."),
    "label_map_size_differs": Check("error", "label maps of another size than their image", "Make them anew."),
    "unknown_label": Check("error", "label maps with values that are no class", "See data.label_values, ignore_label."),
    "ignored_label_map": Check("warning", "label maps without a labeled pixel", "Nothing is learned from them."),
    "single_label_map": Check("note", "label maps of one class alone", "Look whether they are wanted."),
    "label_map_without_image": Check("warning", "label maps without an image", "Add the image, or remove them."),
    # ---- sizes and channels
    "small_image": Check("warning", "images with a side below 32 pixels", "They are enlarged."),
    "large_image": Check("note", "images of over 25 megapixels", "Reading is slow: make them smaller once."),
    "extreme_aspect_ratio": Check("note", "images over five times as long as wide", "Crops show little of them."),
    "flat_image": Check("warning", "images of a single color", "Look whether they are broken."),
    "gray_among_color": Check("note", "gray images among color ones", "They are read as RGB."),
    "color_among_gray": Check("note", "color images among gray ones", "They are read as RGB."),
    "transparent_image": Check("note", "images with transparency", "They are read on white."),
    "cmyk_image": Check("warning", "CMYK images", "Colors may be off: convert them to RGB."),
    "sixteen_bit_image": Check("warning", "images of 16 bits", "They are scaled to 8."),
    "rotated_image": Check("note", "images that EXIF turns", "They are read turned; boxes must be of that view."),
    # ---- videos
    "short_video": Check("warning", "videos shorter than a clip", "Their frames are repeated."),
    "single_frame_video": Check("warning", "videos of one frame", "Look whether they are broken."),
}
"""All checks, in the order of the report."""

Box = tuple[float, float, float, float]
"""x, y, width and height in pixels."""


@dataclass(frozen=True)
class Finding:
    """What a check found in a file, or in a split or class."""

    check: str
    split: str
    file: str
    """The file; of classes and splits, their name."""
    detail: str = ""
    others: tuple[str, ...] = ()
    """Files that it is compared with."""
    boxes: tuple[Box, ...] = ()
    outlines: tuple[tuple[float, ...], ...] = ()
    """Corners of polygons: x, y, x, y, …"""
    label_map: str | None = None
    is_drawn: bool = False
    """Whether the file is an image that can be shown."""


class Findings:
    """What the checks found: counted, and the first of each kept."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._kept: dict[str, list[Finding]] = defaultdict(list)

    def add(self, check: str, split: str, file: str, detail: str = "", **more: Any) -> None:
        """Adds one; the arguments are those of ``Finding``."""
        assert check in CHECKS, check
        self.counts[check] += 1
        if len(self._kept[check]) < MOST_KEPT:
            self._kept[check].append(Finding(check, split, file, detail, **more))

    def of(self, check: str) -> list[Finding]:
        """The findings of a check that are kept."""
        return self._kept.get(check, [])

    def total(self, severity: Severity) -> int:
        """How many there are of a severity."""
        return sum(self.counts[name] for name, check in CHECKS.items() if check.severity == severity)

    def by_severity(self, severity: Severity) -> Iterator[tuple[str, Check, list[Finding]]]:
        """The checks of a severity that found something, with their findings."""
        for name, check in CHECKS.items():
            if check.severity == severity and self.counts[name]:
                yield name, check, self.of(name)


MOST_NAMED = 3
"""Files of a check that the printed list names."""


def describe(findings: Findings) -> list[str]:
    """Lines of the printed list: findings by severity, with counts and the first files."""
    lines: list[str] = []
    for severity in SEVERITIES:
        if total := findings.total(severity):
            lines.append(f"{count_words(total, severity)}:")
        for name, check, kept in findings.by_severity(severity):
            lines.append(f"  {findings.counts[name]:>6,}  {check.title} ({name}). {check.advice}")
            lines += [f"          {_described(finding)}" for finding in kept[:MOST_NAMED]]
            if findings.counts[name] > MOST_NAMED:
                lines.append(f"          … and {findings.counts[name] - MOST_NAMED:,} more")
    return lines or ["no errors, no warnings, nothing to note"]


def _described(finding: Finding) -> str:
    others = f" = {', '.join(map(printable, finding.others))}" if finding.others else ""
    detail = f": {printable(finding.detail)}" if finding.detail else ""
    return f"{printable(finding.file)}{others}{detail}"


def as_json(findings: Findings) -> list[dict[str, Any]]:
    """The checks that found something, for a JSON file."""
    return [
        {
            "check": name,
            "severity": severity,
            "title": check.title,
            "count": findings.counts[name],
            "findings": [_finding_as_json(finding) for finding in kept],
        }
        for severity in SEVERITIES
        for name, check, kept in findings.by_severity(severity)
    ]


def _finding_as_json(finding: Finding) -> dict[str, Any]:
    values = {"file": finding.file, "split": finding.split, "detail": finding.detail}
    lists: dict[str, Sequence[Any]] = {"others": finding.others, "boxes": finding.boxes}
    return values | {name: list(entries) for name, entries in lists.items() if entries}
