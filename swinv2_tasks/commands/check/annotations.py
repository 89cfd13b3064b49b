"""Annotation files in COCO's format: every fault is noted, where the reader of training stops at the first.

Format: https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from swinv2_tasks.commands.check.boxes import AnnotatedImage, AnnotatedObject, check_object, check_repeated
from swinv2_tasks.commands.check.findings import Box, Findings
from swinv2_tasks.datamodules.readers.annotations import CocoAnnotations, PrepareImage, is_finite, read_entries
from swinv2_tasks.datamodules.readers.images import files_below, has_image_extension
from swinv2_tasks.datamodules.readers.json_lists import JsonLists
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
        """Counts the objects of an image, and adds those that stand there twice."""
        self.images[image.path] = (image.width, image.height)
        self.numbers.append(len(image.objects))
        if not image.objects:
            findings.add("image_without_annotations", split, image.path, is_drawn=True)
        for entry in image.objects:
            self.counts[entry.label] += 1
            if entry.box[2] > 0 and entry.box[3] > 0:
                self.sides.append((entry.box[2] * entry.box[3]) ** 0.5)
        check_repeated(findings, split, image)


def check_packed(findings: Findings, split: str, annotations: CocoAnnotations, folder: Path) -> SplitObjects:
    """Checks the objects of a split as a layout's reader gives them."""
    seen = SplitObjects()
    for image in annotations.images:
        objects = [
            AnnotatedObject(entry.id, entry.label, entry.box, entry.segmentation, entry.crowd)
            for entry in image.objects
        ]
        with_objects = AnnotatedImage(str(folder / image.file_name), image.width, image.height, objects)
        for entry in objects:
            check_object(findings, split, with_objects, entry)
        seen.add(findings, split, with_objects)
    return seen


def check_annotation_file(
    findings: Findings,
    split: str,
    path: Path,
    folder: Path,
    class_ids: list[int],
    prepare: PrepareImage | None = None,
) -> SplitObjects:
    """Checks an annotation file in COCO's format, entry by entry.

    Args:
        findings: Where faults are added.
        split: Of the file.
        path: The file.
        folder: Of its images.
        class_ids: Ids of the categories, in the order of the classes; where they cannot be told, those of this file.
        prepare: What is done to each entry of images first, where a format calls things otherwise.

    Raises:
        UserError: It is no JSON, or holds no list of images.
    """
    checker = _FileChecker(findings, split, path, folder, prepare)
    lists = JsonLists(path)
    for name, index, entry in read_entries(path, lists):
        if name == "images":
            checker.add_image(index, entry)
        elif name == "categories":
            checker.add_category(index, entry)
        elif name == "annotations" and "images" in lists.types:
            checker.add_object(index, entry)
    if lists.types.get("images") is not list:
        raise UserError(f"The annotations {path} are not in COCO's format: they hold no list of images.")
    names = [*lists.types]
    if "annotations" in names and names.index("annotations") < names.index("images"):
        for name, index, entry in read_entries(path, JsonLists(path)):
            if name == "annotations":
                checker.add_object(index, entry)
    return checker.finish(class_ids)


class _FileChecker:
    """Takes the entries of an annotation file, those of images before those of objects, and keeps little of each."""

    def __init__(self, findings: Findings, split: str, path: Path, folder: Path, prepare: PrepareImage | None) -> None:
        self._findings, self._split, self._path = findings, split, path
        self._folder, self._prepare = folder, prepare
        self._images: list[AnnotatedImage] = []
        self._index_of: dict[int, int] = {}
        """Of an image's id, its index."""
        self._categories: dict[int, None] = {}
        self._object_ids: set[int] = set()
        self._ids, self._owners, self._category_ids = array("q"), array("q"), array("q")
        self._boxes, self._crowds = array("d"), bytearray()

    def add_image(self, index: int, entry: Any) -> None:
        """Takes an entry of images; one that is none, or whose id another has, is noted."""
        fault = self._prepare_image(entry) or _image_fault(entry)
        if fault is not None:
            self._note("invalid_annotation", f"entry {index} of images: {fault}")
        elif entry["id"] in self._index_of:
            self._note("repeated_id", f"image {entry['id']}, also {shorten(entry['file_name'])}")
        else:
            self._index_of[entry["id"]] = len(self._images)
            name = str(self._folder / entry["file_name"])
            self._images.append(AnnotatedImage(name, entry["width"], entry["height"]))

    def _prepare_image(self, entry: Any) -> str | None:
        """What keeps an entry from being one of COCO's."""
        if self._prepare is not None and isinstance(entry, dict):
            try:
                self._prepare(entry)
            except UserError as error:
                return str(error)
        return None

    def add_category(self, index: int, entry: Any) -> None:
        """Takes an entry of categories."""
        if not isinstance(entry, Mapping) or not _is_whole(entry.get("id")) or not isinstance(entry.get("name"), str):
            self._note("invalid_annotation", f"entry {index} of categories: {shorten(entry)}")
        elif entry["id"] in self._categories:
            self._note("repeated_id", f"category {entry['id']}, also {shorten(entry['name'])}")
        else:
            self._categories[entry["id"]] = None

    def add_object(self, index: int, entry: Any) -> None:
        """Takes an entry of annotations; box and mask are looked at, the box alone is kept."""
        if (fault := _annotation_fault(entry)) is not None:
            self._note("invalid_annotation", f"entry {index} of annotations: {fault}")
            return
        if entry["id"] in self._object_ids:
            self._note("repeated_id", f"object {entry['id']}")
        self._object_ids.add(entry["id"])
        owner = self._index_of.get(entry["image_id"])
        if owner is None:
            self._note("annotation_without_image", f"object {entry['id']} of image {entry['image_id']}")
            return
        box = _as_box(entry["bbox"])
        segmentation, is_crowd = entry.get("segmentation") or None, entry.get("iscrowd") == 1
        check_object(
            self._findings,
            self._split,
            self._images[owner],
            AnnotatedObject(entry["id"], 0, box, segmentation, is_crowd),
        )
        self._ids.append(entry["id"])
        self._owners.append(owner)
        self._category_ids.append(entry["category_id"])
        self._boxes.extend(box)
        self._crowds.append(is_crowd)

    def finish(self, class_ids: list[int]) -> SplitObjects:
        """What was seen of the objects, whose categories are known by now."""
        label_of = {category: label for label, category in enumerate(class_ids or sorted(self._categories))}
        owners = np.asarray(self._owners)
        order = np.argsort(owners, kind="stable")
        ends = np.cumsum(np.bincount(owners, minlength=len(self._images)))
        seen = SplitObjects()
        first = 0
        for image, end in zip(self._images, ends.tolist(), strict=True):
            indices, first = order[first:end].tolist(), end
            objects = [known for index in indices if (known := self._known(index, label_of)) is not None]
            seen.add(self._findings, self._split, image._replace(objects=objects))
        return seen

    def _known(self, index: int, label_of: Mapping[int, int]) -> AnnotatedObject | None:
        """An object without its mask; None, and a note, where its category is not listed."""
        category = self._category_ids[index]
        if category not in label_of:
            detail = f"object {self._ids[index]} has category {category}, in {self._path}"
            file = self._images[self._owners[index]].path
            self._findings.add("unknown_category", self._split, file, detail, is_drawn=True)
            return None
        x, y, width, height = self._boxes[4 * index : 4 * index + 4]
        return AnnotatedObject(
            self._ids[index], label_of[category], (x, y, width, height), None, bool(self._crowds[index])
        )

    def _note(self, check: str, detail: str) -> None:
        self._findings.add(check, self._split, str(self._path), detail)


def _as_box(values: Sequence[float]) -> Box:
    x, y, width, height = map(float, values)
    return x, y, width, height


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


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def check_unlisted(findings: Findings, split: str, folder: Path, listed: Mapping[str, Any]) -> None:
    """Adds the images in a split's folder that are not annotated."""
    for path in sorted(files_below(folder)):
        if has_image_extension(path) and str(path) not in listed:
            findings.add("unlisted_image", split, str(path), is_drawn=True)
