"""Annotation files in COCO's format: every fault is noted, where the reader of training stops at the first.

Format: https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from swinv2_tasks.commands.check.boxes import AnnotatedImage, AnnotatedObject, check_objects
from swinv2_tasks.commands.check.findings import Findings
from swinv2_tasks.datamodules.readers.annotations import CocoAnnotations, is_finite, read_json
from swinv2_tasks.datamodules.readers.images import files_below, has_image_extension
from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import shorten


class SplitObjects:
    """What was seen of the objects of a split.

    Attributes:
        images: annotated width and height of each image's file.
        counts: objects of each class, by index.
        sides: square roots of the boxes' areas, in pixels.
        numbers: objects of each image.
    """

    def __init__(self) -> None:
        self.images: dict[str, tuple[int, int]] = {}
        self.counts: Counter[int] = Counter()
        self.sides: list[float] = []
        self.numbers: list[int] = []

    def add(self, findings: Findings, split: str, image: AnnotatedImage) -> None:
        """Checks the objects of an image and counts them."""
        self.images[image.path] = (image.width, image.height)
        self.numbers.append(len(image.objects))
        if not image.objects:
            findings.add("image_without_annotations", split, image.path, is_drawn=True)
        for entry in image.objects:
            self.counts[entry.label] += 1
            if entry.box[2] > 0 and entry.box[3] > 0:
                self.sides.append((entry.box[2] * entry.box[3]) ** 0.5)
        check_objects(findings, split, image)


def check_packed(findings: Findings, split: str, annotations: CocoAnnotations, folder: Path) -> SplitObjects:
    """Checks the objects of a split as a layout's reader gives them."""
    seen = SplitObjects()
    for image in annotations.images:
        objects = [
            AnnotatedObject(entry.id, entry.label, entry.box, entry.segmentation, entry.crowd)
            for entry in image.objects
        ]
        seen.add(findings, split, AnnotatedImage(str(folder / image.file_name), image.width, image.height, objects))
    return seen


def check_annotation_file(
    findings: Findings, split: str, path: Path, folder: Path, class_ids: list[int]
) -> SplitObjects:
    """Checks an annotation file in COCO's format.

    Args:
        findings: Where faults are added.
        split: Of the file.
        path: The file.
        folder: Of its images.
        class_ids: Ids of the categories, in the order of the classes.

    Raises:
        UserError: It is no JSON, or holds no list of images.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise UserError(f"The annotations {path} are not in COCO's format: they hold no list of images.")

    seen = SplitObjects()
    images = _images(findings, split, path, content["images"])
    objects: dict[int, list[AnnotatedObject]] = defaultdict(list)
    names = {image_id: str(folder / image["file_name"]) for image_id, image in images.items()}
    label_of = {category: label for label, category in enumerate(class_ids)}
    for entry in _annotations(findings, split, path, content.get("annotations", [])):
        where = f"object {entry['id']}"
        if entry["image_id"] not in names:
            findings.add("annotation_without_image", split, str(path), f"{where} of image {entry['image_id']}")
        elif entry["category_id"] not in label_of:
            detail = f"{where} has category {shorten(entry['category_id'])}, in {path}"
            findings.add("unknown_category", split, names[entry["image_id"]], detail, is_drawn=True)
        else:
            objects[entry["image_id"]].append(_object(entry, label_of[entry["category_id"]]))
    for image_id, image in images.items():
        of_image = objects.pop(image_id, [])
        seen.add(findings, split, AnnotatedImage(names[image_id], image["width"], image["height"], of_image))
    return seen


def _images(findings: Findings, split: str, path: Path, entries: list[Any]) -> dict[int, dict[str, Any]]:
    """The entries of images by their ids; those that are none are noted."""
    images: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        if (fault := _image_fault(entry)) is not None:
            findings.add("invalid_annotation", split, str(path), f"entry {index} of images: {fault}")
        elif entry["id"] in images:
            findings.add("repeated_id", split, str(path), f"image {entry['id']}, also {shorten(entry['file_name'])}")
        else:
            images[entry["id"]] = entry
    return images


def _image_fault(entry: Any) -> str | None:
    """What is wrong with an entry of images."""
    if not isinstance(entry, Mapping):
        return "it is no object"
    if not _is_whole(entry.get("id")) or not isinstance(entry.get("file_name"), str):
        return f"id {shorten(entry.get('id'))}, file_name {shorten(entry.get('file_name'))}"
    name = PureWindowsPath(entry["file_name"])  # for which both / and \ separate folders
    if os.path.isabs(entry["file_name"]) or name.is_absolute() or ".." in name.parts:
        return f"{shorten(entry['file_name'])} leaves the folder of images"
    if not all(_is_whole(entry.get(side)) and entry[side] > 0 for side in ("width", "height")):
        return f"width {shorten(entry.get('width'))}, height {shorten(entry.get('height'))}"
    return None


def _annotations(findings: Findings, split: str, path: Path, entries: Any) -> Iterator[dict[str, Any]]:
    """The entries of annotations that can be looked at; others are noted."""
    ids: set[int] = set()
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        if (fault := _annotation_fault(entry)) is not None:
            findings.add("invalid_annotation", split, str(path), f"entry {index} of annotations: {fault}")
            continue
        if entry["id"] in ids:
            findings.add("repeated_id", split, str(path), f"object {entry['id']}")
        ids.add(entry["id"])
        yield entry


def _annotation_fault(entry: Any) -> str | None:
    """What is wrong with an entry of annotations."""
    if not isinstance(entry, Mapping):
        return "it is no object"
    for key in ("id", "image_id", "category_id"):
        if not _is_whole(entry.get(key)):
            return f"its {key} is {shorten(entry.get(key))}"
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite, box)):
        return f"the bbox of object {entry['id']} is {shorten(box)}"
    segmentation = entry.get("segmentation")
    if segmentation is not None and not isinstance(segmentation, list | dict):
        return f"the segmentation of object {entry['id']} is {shorten(segmentation)}"
    return None


def _object(entry: Mapping[str, Any], label: int) -> AnnotatedObject:
    x, y, width, height = map(float, entry["bbox"])
    segmentation = entry.get("segmentation") or None
    return AnnotatedObject(entry["id"], label, (x, y, width, height), segmentation, entry.get("iscrowd") == 1)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def check_unlisted(findings: Findings, split: str, folder: Path, listed: Mapping[str, Any]) -> None:
    """Adds the images in a split's folder that are not annotated."""
    for path in sorted(files_below(folder)):
        if has_image_extension(path) and str(path) not in listed:
            findings.add("unlisted_image", split, str(path), is_drawn=True)
