"""Datasets of objects as COCO, YOLO and Pascal VOC write them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import yaml

from swinv2_tasks.commands.convert.files import Copier
from swinv2_tasks.datamodules.coco import CocoDataModule
from swinv2_tasks.datamodules.layouts import Split
from swinv2_tasks.datamodules.readers.annotations import CocoAnnotations
from swinv2_tasks.datamodules.readers.packed_images import CocoImage, CocoObject
from swinv2_tasks.errors import UserError
from swinv2_tasks.progress import WorkProgress, count_words
from swinv2_tasks.text import printable, say

Edges = tuple[float, float, float, float]
"""Left, top, right and bottom edge of a box in pixels, from 0."""


def _read(data: CocoDataModule, splits: Sequence[Split]) -> dict[Split, tuple[CocoAnnotations, Path]]:
    """What is annotated in each split, and the folder of its images."""
    contents = {split: data.source_on_disk.read(split) for split in splits}
    for content, _ in contents.values():
        _check_names(content.class_names)
    return contents


def _check_names(names: Sequence[str]) -> None:
    """Refuses names that no text file of these layouts can hold."""
    for name in names:
        if printable(name) != name:
            raise UserError(f"The category {printable(name)} has characters in its name that no list can hold.")


def _copied(
    contents: tuple[CocoAnnotations, Path], split: Split, folder: Path, copier: Copier
) -> Iterator[tuple[CocoImage, str]]:
    """Copies the images of a split; each with its new name."""
    content, source = contents
    folder.mkdir(parents=True, exist_ok=True)
    with WorkProgress(f"Writing {split}", len(content.images)) as progress:
        for image in content.images:
            yield image, copier.copy(source / image.file_name, folder, image.file_name)
            progress.advance()


# ---- COCO


def write_coco(data: CocoDataModule, splits: list[Split], folder: Path, copier: Copier) -> None:
    """Writes `SPLIT2017/` and `annotations/instances_SPLIT2017.json`: boxes, areas, outlines, crowds and ids stay.

    Args:
        data: The dataset.
        splits: Those that it has.
        folder: Where to write.
        copier: Copies the images.
    """
    (folder / "annotations").mkdir()
    for split, contents in _read(data, splits).items():
        content = contents[0]
        objects: list[str] = []
        with (folder / "annotations" / f"instances_{split}2017.json").open("w", encoding="utf-8") as file:
            file.write('{"images": [')
            for number, (image, name) in enumerate(_copied(contents, split, folder / f"{split}2017", copier)):
                size = {"height": image.height, "width": image.width}
                file.write(",\n" * (number > 0) + json.dumps({"id": image.id, "file_name": name, **size}))
                objects += [json.dumps(_coco_object(entry, image.id, content.class_ids)) for entry in image.objects]
            _write_rest(file, content, objects)


def _write_rest(file: IO[str], content: CocoAnnotations, objects: list[str]) -> None:
    classes = zip(content.class_ids, content.class_names, strict=True)
    categories = [{"id": number, "name": name} for number, name in classes]
    file.write(f'],\n"categories": {json.dumps(categories)}')
    if content.has_objects:  # those of COCO's test images are not public
        file.write(',\n"annotations": [')
        for number, entry in enumerate(objects):
            file.write(",\n" * (number > 0) + entry)
        file.write("]")
    file.write("}\n")


def _coco_object(entry: CocoObject, image_id: int, class_ids: Sequence[int]) -> dict[str, Any]:
    written: dict[str, Any] = {
        "id": entry.id,
        "image_id": image_id,
        "category_id": class_ids[entry.label],
        "bbox": list(entry.box),
        "area": entry.area,
        "iscrowd": int(entry.crowd),
    }
    if entry.segmentation is not None:
        written["segmentation"] = entry.segmentation
    return written


# ---- what YOLO and Pascal VOC cannot say


class _LeftOut:
    """Counts what a layout cannot say."""

    def __init__(self) -> None:
        self.empty = self.crowds = self.clipped = 0

    def tell(self) -> None:
        """Prints what there was."""
        if self.empty:
            say(f"left out: {count_words(self.empty, 'object')} of no area within their image")
        if self.crowds:
            say(f"left out: {count_words(self.crowds, 'crowd')}, which YOLO does not know")
        if self.clipped:
            say(f"{count_words(self.clipped, 'box', 'boxes')} cut off at the edges of their images")

    def inside(self, entry: CocoObject, image: CocoImage) -> Edges | None:
        """A box within its image; None where nothing is left of it."""
        x, y, width, height = entry.box
        edges = (x, y, x + width, y + height)
        left, right = (min(max(edge, 0.0), float(image.width)) for edge in (edges[0], edges[2]))
        top, bottom = (min(max(edge, 0.0), float(image.height)) for edge in (edges[1], edges[3]))
        if right <= left or bottom <= top:
            self.empty += 1
            return None
        inside = (left, top, right, bottom)
        self.clipped += max(abs(cut - edge) for cut, edge in zip(inside, edges, strict=True)) > 1e-3
        return inside


# ---- YOLO


def write_yolo(data: CocoDataModule, splits: list[Split], folder: Path, copier: Copier) -> None:
    """Writes `images/SPLIT/`, `labels/SPLIT/` and `data.yaml`: polygons where each object has one, else boxes."""
    contents = _read(data, splits)
    objects = [content.images.objects for content, _ in contents.values()]
    has_polygons = all((columns.are_polygons | columns.crowds).all() for columns in objects)
    if not has_polygons and any(columns.have_shapes.any() for columns in objects):
        say("boxes are written alone: some masks are not one polygon each, all that YOLO knows")
    say("category ids become the numbers of classes, from 0")
    left_out = _LeftOut()
    for split, read in contents.items():
        labels = folder / "labels" / split
        labels.mkdir(parents=True)
        for image, name in _copied(read, split, folder / "images" / split, copier):
            lines = []
            for entry in image.objects:
                if entry.crowd:
                    left_out.crowds += 1
                elif (edges := left_out.inside(entry, image)) is not None:
                    lines.append(_yolo_line(entry, edges, image, has_polygons))
            (labels / f"{Path(name).stem}.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    left_out.tell()
    names = next(iter(contents.values()))[0].class_names
    paths: dict[str, Any] = {split: f"images/{split}" for split in splits}
    settings = {**paths, "nc": len(names), "names": list(names)}
    (folder / "data.yaml").write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), "utf-8")


def _yolo_line(entry: CocoObject, edges: Edges, image: CocoImage, has_polygons: bool) -> str:
    left, top, right, bottom = edges
    if has_polygons and isinstance(entry.segmentation, list):
        sides = (image.width, image.height)
        outline = entry.segmentation[0]
        shares = [min(max(value / sides[axis % 2], 0.0), 1.0) for axis, value in enumerate(outline)]
    else:
        center = ((left + right) / 2 / image.width, (top + bottom) / 2 / image.height)
        shares = [*center, (right - left) / image.width, (bottom - top) / image.height]
    return " ".join([str(entry.label), *map(repr, shares)])


# ---- Pascal VOC


def write_voc(data: CocoDataModule, splits: list[Split], folder: Path, copier: Copier) -> None:
    """Writes `JPEGImages/`, `Annotations/*.xml` and `ImageSets/Main/SPLIT.txt`: boxes; crowds are `difficult`."""
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    contents = _read(data, splits)
    if any(content.has_masks for content, _ in contents.values()):
        say("boxes are written alone: Pascal VOC has no masks in its annotations")
    say("category ids are left out: Pascal VOC knows names alone")
    left_out = _LeftOut()
    for split, read in contents.items():
        stems = []
        for image, name in _copied(read, split, folder / "JPEGImages", copier):
            stems.append(Path(name).stem)
            tree = _voc_tree(image, name, read[0].class_names, left_out)
            tree.write(folder / "Annotations" / f"{stems[-1]}.xml", encoding="utf-8")
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems), "utf-8")
    left_out.tell()


def _voc_tree(image: CocoImage, name: str, names: Sequence[str], left_out: _LeftOut) -> ElementTree.ElementTree:
    root = ElementTree.Element("annotation")
    _add(root, filename=name)
    _add(ElementTree.SubElement(root, "size"), width=str(image.width), height=str(image.height), depth="3")
    for entry in image.objects:
        if (edges := left_out.inside(entry, image)) is None:
            continue
        child = ElementTree.SubElement(root, "object")
        _add(child, name=names[entry.label], difficult=str(int(entry.crowd)))
        # Pixels are counted from 1, and the last one of a box is part of it.
        left, top, right, bottom = edges
        bounds = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
        _add(ElementTree.SubElement(child, "bndbox"), **{edge: f"{value!r}" for edge, value in bounds.items()})
    return ElementTree.ElementTree(root)


def _add(parent: ElementTree.Element, **texts: str) -> None:
    for name, text in texts.items():
        ElementTree.SubElement(parent, name).text = text
