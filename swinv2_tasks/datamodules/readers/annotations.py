"""Reading COCO's annotation files: checked as a whole, kept in little memory, and one clear message for what is wrong.

Format: https://cocodataset.org/#format-data.
"""

import math
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any, NoReturn, cast

import numpy as np
from pycocotools import mask as coco_masks

from swinv2_tasks import outside_files
from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.datamodules.readers.json_lists import JsonLists
from swinv2_tasks.datamodules.readers.packed_images import (
    PackedImages,
    PackedObjects,
    Polygons,
    RunLengths,
    ShapeBuilder,
    Shapes,
    pack_names,
)
from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import shorten

MOST_PIXELS_PER_SIDE = 100_000
"""Of an image that an annotation file declares: drawing masks takes memory in proportion."""

REACH = 10
"""How far an object may reach from its image, in longer sides of the image. It is cut off at the edges; what reaches
further is no object of that image, and drawing its outline would take memory in proportion to the distance."""


LARGEST_AREA = 1e10
"""In pixels; COCO's measures leave objects out whose annotated area is larger."""


@dataclass(frozen=True)
class CocoAnnotations:
    """What an annotation file says."""

    path: Path
    images: PackedImages
    class_ids: list[int]
    """Category ids in ascending order; the position of an id is its class index."""
    class_names: list[str]
    has_objects: bool
    """Whether there are annotations at all: those of COCO's test images are not public."""
    has_masks: bool
    """Whether any object has a mask."""
    portrait: np.ndarray
    """Whether each image is taller than wide, bool (images,)."""
    frequencies: list[str] | None = None
    """LVIS: r, c or f for each class, as its category is rare, common or frequent; None where that is not said."""


PrepareImage = Callable[[dict[str, Any]], None]


def read_categories(path: Path) -> tuple[list[int], list[str]]:
    """The category ids of an annotation file, in ascending order, and their names.

    Raises:
        UserError: The file cannot be read, or its categories are not as they should be.
    """
    lists, entries = JsonLists(path), []
    for name, _, entry in read_entries(path, lists):
        if name == "categories":
            entries.append(entry)
    table = _categories(path, lists, entries)
    return sorted(table), [table[category]["name"] for category in sorted(table)]


def read_annotations(path: Path, prepare: PrepareImage | None = None) -> CocoAnnotations:
    """Read an annotation file and check all of it.

    Entry by entry: the file's text and what it says as objects of Python are never in memory as a whole.

    Args:
        path: The file.
        prepare: What is done to each entry of `images` before it is checked, where a format calls things otherwise.

    Raises:
        UserError: The file is missing, no JSON or not in COCO's format; ids are missing, repeated or unknown; a box or
            polygon is not finite or lies more than `REACH` image sides away; a mask's size is not that of its image; a
            file name leaves the folder of images.
    """
    lists = JsonLists(path)
    category_entries: list[Any] = []
    images, objects = ImageReader(path, prepare), ObjectReader(path)
    for name, index, entry in read_entries(path, lists):
        if name == "annotations":
            objects.add(index, entry)
        elif name == "images":
            images.add(index, entry)
        elif name == "categories":
            category_entries.append(entry)

    categories = _categories(path, lists, category_entries)
    ids = sorted(categories)
    names = [categories[category]["name"] for category in ids]
    _require_list(path, lists, "images")
    has_objects = "annotations" in lists.types
    if has_objects:
        _require_list(path, lists, "annotations")

    packed = objects.finish(images.finish(), np.array(ids))
    return CocoAnnotations(
        path,
        packed,
        ids,
        names,
        has_objects,
        bool(packed.objects.have_shapes.any()),
        packed.heights > packed.widths,
        _frequencies([categories[category] for category in ids]),
    )


def read_entries(path: Path, lists: JsonLists) -> Iterator[tuple[str, int, Any]]:
    """The entries of the lists of a file.

    Raises:
        UserError: The file cannot be read, or holds no JSON object.
    """
    try:
        yield from lists
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        if not lists.types and not isinstance(content := read_json(path), dict):
            problem = f"it holds a {type(content).__name__}, expected an object with images, annotations, categories"
            _refuse(path, problem)
        raise UserError(f"{path} is no JSON ({error}). Fetch or export the file again.") from error


class ImageReader:
    """Takes the entries of `images`, one after the other.

    Args:
        path: The file, for messages.
        prepare: What is done to each entry first.
    """

    def __init__(self, path: Path, prepare: PrepareImage | None) -> None:
        self._path = path
        self._prepare = prepare
        self._ids, self._heights, self._widths = array("q"), array("q"), array("q")
        self._names: list[str] = []

    def add(self, index: int, entry: Any) -> None:
        """Takes an entry.

        Raises:
            UserError: It lacks something, or its file may lie elsewhere.
        """
        if self._prepare is not None and isinstance(entry, dict):
            self._prepare(entry)
        _check_entry(self._path, "images", index, entry, _IMAGE_KEYS)
        _check_image(self._path, entry)
        self._ids.append(entry["id"])
        self._heights.append(entry["height"])
        self._widths.append(entry["width"])
        self._names.append(entry["file_name"])

    def finish(self) -> PackedImages:
        """The images, without objects.

        Raises:
            UserError: Ids are repeated.
        """
        ids = np.asarray(self._ids)
        _check_repeated(self._path, "images", ids)
        nothing = PackedImages([])
        return PackedImages.of_columns(
            ids,
            np.asarray(self._heights),
            np.asarray(self._widths),
            pack_names(self._names),
            nothing.objects,
            np.zeros(len(ids), np.int64),
        )


_IMAGE_KEYS = {"id": int, "file_name": str, "height": int, "width": int}
_OBJECT_KEYS = {"id": int, "image_id": int, "category_id": int, "bbox": list}


def _check_image(path: Path, image: dict[str, Any]) -> None:
    """Refuses an entry of images whose file may lie elsewhere, or that would take too much memory."""
    name, height, width = image["file_name"], image["height"], image["width"]
    windows_path = PureWindowsPath(name)  # for which both / and \ separate folders
    if os.path.isabs(name) or windows_path.is_absolute() or ".." in windows_path.parts:
        _refuse(
            path,
            f"the file_name {name!r} of image {image['id']} leaves the folder of images, "
            "expected a path relative to that folder",
        )
    if min(height, width) < 1 or max(height, width) > MOST_PIXELS_PER_SIDE:
        _refuse(
            path,
            f"image {image['id']} has {shorten(width)}×{shorten(height)} pixels, expected 1 to "
            f"{MOST_PIXELS_PER_SIDE} per side",
        )


class ObjectReader:
    """Takes the entries of `annotations`, one after the other, and checks what can be only when all are there.

    Args:
        path: The file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids, self._image_ids, self._category_ids = array("q"), array("q"), array("q")
        self._boxes, self._areas, self._crowds = array("d"), array("d"), bytearray()
        self._shapes = ShapeBuilder()
        self._code_owners, self._code_sizes = array("q"), array("d")

    def add(self, index: int, entry: Any) -> None:
        """Takes an entry.

        Raises:
            UserError: It lacks something or holds something of another type.
        """
        # A million times: the message is looked for only where something is wrong.
        try:
            object_id, image_id, category_id, box = entry["id"], entry["image_id"], entry["category_id"], entry["bbox"]
            fits = type(object_id) is type(image_id) is type(category_id) is int and type(box) is list
        except (TypeError, KeyError, IndexError):
            fits = False
        if not fits:
            _check_entry(self._path, "annotations", index, entry, _OBJECT_KEYS)
        try:
            self._ids.append(object_id)
            self._image_ids.append(image_id)
            self._category_ids.append(category_id)
        except OverflowError:
            _refuse(self._path, f"an id of entry {index} of annotations has more than 64 bits")

        if len(box) != 4 or not all(type(edge) in _NUMBER_TYPES for edge in box):
            self._refuse("the bbox", object_id, f"is {shorten(box)}{_NO_BOX}")
        area = entry.get("area")
        if area is None:
            area = box[2] * box[3]
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            self._refuse("iscrowd", object_id, f"is {shorten(crowd)}, expected 0 or 1")
        if type(area) not in _NUMBER_TYPES:
            self._refuse("the area", object_id, f"is {shorten(area)}, expected a finite number")
        try:
            self._boxes.fromlist(box)
            self._areas.append(area)
        except OverflowError:
            self._refuse("the bbox", object_id, f"is {shorten(box)}, far outside of its image")
        self._crowds.append(int(crowd))
        self._add_shape(object_id, entry.get("segmentation"))

    def _add_shape(self, object_id: int, value: Any) -> None:
        if value is None:
            self._shapes.add()
        elif isinstance(value, dict):
            self._add_run_lengths(object_id, value)
        elif not isinstance(value, list) or not all(isinstance(part, list) for part in value):
            self._refuse("the segmentation", object_id, "is neither a list of polygons nor run lengths")
        else:
            try:
                if any(len(part) % 2 for part in value):
                    raise TypeError
                self._shapes.add(value)
            except (TypeError, OverflowError):
                self._refuse("a polygon", object_id, "is not made of pairs of finite numbers")

    def _add_run_lengths(self, object_id: int, value: dict[str, Any]) -> None:
        size, counts = value.get("size"), value.get("counts")
        if not isinstance(size, list) or len(size) != 2 or not all(map(is_finite, size)):
            self._refuse("the run lengths", object_id, f"are of size {shorten(size)}, expected height and width")
        are_numbers = isinstance(counts, list) and all(type(run) is int for run in counts)
        if not isinstance(counts, str) and not are_numbers:
            self._refuse("the run lengths", object_id, "are neither whole numbers nor text")
        self._code_owners.append(len(self._ids) - 1)
        try:
            self._code_sizes.extend(size)
            self._shapes.add(counts=counts)
        except OverflowError:
            self._refuse("the run lengths", object_id, "have a number of more than 64 bits")

    def finish(self, images: PackedImages, class_ids: np.ndarray) -> PackedImages:
        """The images with their objects.

        Args:
            images: The images, without objects.
            class_ids: Of the categories, in ascending order.

        Raises:
            UserError: Ids are repeated or unknown; a box or a shape is not finite, lies far outside of its image, or is
                of another size than its image.
        """
        ids = np.asarray(self._ids)
        _check_repeated(self._path, "annotations", ids)
        owners = self._positions(
            images.ids, np.asarray(self._image_ids), "is of image {}, which is not among the images"
        )
        labels = self._positions(
            class_ids, np.asarray(self._category_ids), "has category {}, which is not among the categories"
        )
        boxes, areas = np.asarray(self._boxes).reshape(-1, 4), np.asarray(self._areas)
        sizes = np.stack([images.heights, images.widths], axis=1)[owners]
        self._check_boxes(boxes, areas, sizes, images.ids[owners])
        self._check_run_lengths(images, owners)
        shapes = self._shapes.build()
        self._check_outlines(shapes, sizes)
        shapes = shapes.without_short_parts(6)  # two corners enclose nothing

        order = np.argsort(owners, kind="stable")
        crowds = np.frombuffer(self._crowds, dtype=bool) if self._crowds else np.empty(0, bool)
        objects = PackedObjects(ids[order], labels[order], boxes[order], areas[order], crowds[order], order, shapes)
        return images.with_objects(objects, np.bincount(owners, minlength=len(images)))

    def _positions(self, known: np.ndarray, values: np.ndarray, otherwise: str) -> np.ndarray:
        """Where each value stands among those known."""
        order = np.argsort(known, kind="stable")
        positions = np.searchsorted(known, values, sorter=order)
        is_known = positions < len(known)
        is_known[is_known] = known[order[positions[is_known]]] == values[is_known]
        if not is_known.all():
            (first, *_) = np.flatnonzero(~is_known)
            _refuse(self._path, f"annotation {self._ids[first]} {otherwise.format(values[first])}")
        return order[positions]

    def _check_boxes(self, boxes: np.ndarray, areas: np.ndarray, sizes: np.ndarray, image_ids: np.ndarray) -> None:
        for index in np.flatnonzero(~np.isfinite(boxes).all(axis=1))[:1]:
            problem = shorten(boxes[index].tolist())
            self._refuse("the bbox", self._ids[index], f"is {problem}{_NO_BOX}")
        for index in np.flatnonzero(~np.isfinite(areas))[:1]:
            self._refuse("the area", self._ids[index], f"is {areas[index]}, expected a finite number")
        with np.errstate(over="ignore"):
            edges = _edges(boxes)
        for index in np.flatnonzero(np.abs(edges).max(axis=1) > REACH * sizes.max(axis=1))[:1]:
            problem = (
                f"{shorten(boxes[index].tolist())}, far outside of its {_size(sizes[index])} image {image_ids[index]}"
            )
            self._refuse("the bbox", self._ids[index], f"is {problem}")

    def _check_run_lengths(self, images: PackedImages, owners: np.ndarray) -> None:
        if not self._code_owners:
            return
        of = owners[np.asarray(self._code_owners)]
        stated = np.asarray(self._code_sizes).reshape(-1, 2)
        expected = np.stack([images.heights[of], images.widths[of]], axis=1)
        for index in np.flatnonzero((stated != expected).any(axis=1))[:1]:
            height, width = stated[index]
            size = f"[{height:g}, {width:g}], image {images.ids[of[index]]} is of {expected[index].tolist()}"
            self._refuse("the run lengths", self._ids[self._code_owners[index]], f"are of size {size}")

    def _check_outlines(self, shapes: Shapes, sizes: np.ndarray) -> None:
        """Refuses polygons that would take more memory to draw than their images' pixels account for."""
        if not len(shapes.part_ends):
            return
        owners = np.repeat(np.arange(len(shapes.ends)), np.diff(shapes.ends, prepend=0))
        for index in np.flatnonzero(~np.isfinite(shapes.coordinates))[:1]:
            part = np.searchsorted(shapes.part_ends, index, side="right")
            self._refuse("a polygon", self._ids[owners[part]], "is not made of pairs of finite numbers")

        bounds = shapes.part_bounds()
        low, high = bounds[:, :2].min(axis=1), bounds[:, 2:].max(axis=1)
        of = sizes[owners]
        for part in np.flatnonzero(np.maximum(-low, high) > REACH * of.max(axis=1))[:1]:
            far = low[part] if -low[part] > high[part] else high[part]
            problem = f"has the coordinate {far:g}, far outside of its {_size(of[part])} image"
            self._refuse("a polygon", self._ids[owners[part]], problem)

        # No outline is longer than all edges of all pixels. Most are too short for that to need the exact length.
        longest = 2 * of[:, 0] * of[:, 1] + 4 * REACH * of.sum(axis=1)
        for part in np.flatnonzero(shapes.part_lengths * (high - low) > longest):
            end = shapes.part_ends[part]
            corners = shapes.coordinates[end - shapes.part_lengths[part] : end].reshape(-1, 2)
            length = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum()
            if length > longest[part]:
                problem = f"is {length:.0f} pixels long, more than the edges of all of its image's"
                self._refuse("a polygon", self._ids[owners[part]], problem)

    def _refuse(self, what: str, object_id: int, problem: str) -> NoReturn:
        _refuse(self._path, f"{what} of annotation {object_id} {problem}")


_NO_BOX = ", expected four finite numbers: x, y, width, height"
_NUMBER_TYPES = (int, float)


def clean(images: PackedImages, masks: bool = True) -> tuple[PackedImages, Counter[str]]:
    """The objects to train on: no crowds, and boxes and masks that have an area within the image.

    Args:
        images: The images.
        masks: Whether polygons are drawn.

    Returns:
        The images with those objects, and the number of "crowd" objects and of those with "no area", "outside" and
        "clipped".
    """
    objects, owners = images.objects, images.owners
    right_bottom = np.stack([images.widths, images.heights], axis=1)[owners].astype(np.float64)
    edges = _edges(objects.boxes)
    clipped = _clip(edges, right_bottom)
    has_no_area = (objects.boxes[:, 2:] <= 0).any(axis=1)
    is_outside = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    cut_off = np.abs(edges - clipped).max(axis=1, initial=0)

    if masks:  # of outlines as well, which are drawn
        outlines = objects.shapes.bounds()[objects.shape_indices]
        within = _clip(outlines, right_bottom)
        is_outside |= (within[:, 2:] <= within[:, :2]).any(axis=1)  # of no outline nothing is true
        cut_off = np.fmax(cut_off, np.abs(outlines - within).max(axis=1, initial=0))

    has_no_area &= ~objects.crowds
    is_outside &= ~objects.crowds & ~has_no_area
    kept = ~(objects.crowds | has_no_area | is_outside)
    counts = {
        "crowd": objects.crowds,
        "no area": has_no_area,
        "outside": is_outside,
        "clipped": kept & (cut_off > 1),  # less is rounding
    }
    boxes = np.concatenate([clipped[:, :2], clipped[:, 2:] - clipped[:, :2]], axis=1)
    cleaned = replace(objects.select(kept), boxes=boxes[kept])
    numbers = np.bincount(owners[kept], minlength=len(images))
    return images.with_objects(cleaned, numbers), Counter({name: int(flags.sum()) for name, flags in counts.items()})


def _edges(boxes: np.ndarray) -> np.ndarray:
    """Left, top, right and bottom edge of boxes, float64 (N, 4)."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _clip(edges: np.ndarray, right_bottom: np.ndarray) -> np.ndarray:
    """Left, top, right and bottom edges as far as they lie within their images, of so many columns and rows."""
    return np.concatenate([np.maximum(edges[:, :2], 0.0), np.minimum(edges[:, 2:], right_bottom)], axis=1)


def describe_unmatched(annotations: CocoAnnotations, masks: bool) -> str | None:
    """One line on the objects of an annotation file that cannot be detected by COCO's rules; None where all can be.

    Args:
        annotations: What the file says, which evaluation takes unchanged.
        masks: Whether masks are scored beside boxes.
    """
    images, objects = annotations.images, annotations.images.objects
    right_bottom = np.stack([images.widths, images.heights], axis=1)[images.owners]
    corners, sides = objects.boxes[:, :2], objects.boxes[:, 2:]
    is_box = ((sides > 0) & (corners < right_bottom) & (corners + sides > 0)).all(axis=1)
    has_wrong_area = ~((objects.areas >= 0) & (objects.areas <= LARGEST_AREA))

    # Each object is counted for the first that is true of it.
    crowds = objects.crowds
    no_box = ~crowds & ~is_box
    no_area = ~crowds & is_box & has_wrong_area
    no_mask = ~crowds & is_box & ~has_wrong_area & ~objects.have_shapes & masks
    counts = Counter(objects=len(objects), crowd=int(crowds.sum()))

    parts = []
    if counts["crowd"]:
        parts.append(f"{counts['crowd']} are crowds (iscrowd: 1), which count neither as found nor as missed")
    if no_box.any():
        parts.append(f"{no_box.sum()} have a box without area or outside of their image, which counts as missed")
    if no_area.any():
        parts.append(f"{no_area.sum()} have an area below 0 or above {LARGEST_AREA:g}, which no measure counts")
    if no_mask.any():
        parts.append(f"{no_mask.sum()} have only a box, which masks count as missed")
    if not parts:
        return None
    return f"{annotations.path}: of {counts['objects']} objects {'; '.join(parts)}.{crowd_hint(counts)}"


def crowd_hint(counts: Mapping[str, int]) -> str:
    """What to do where there are more crowds, of all "objects", than anyone annotates as such."""
    if counts["crowd"] <= 0.1 * counts["objects"]:
        return ""
    return " If they are single objects (some annotation tools write iscrowd: 1 everywhere), set iscrowd to 0."


def rasterize(segmentation: Polygons | RunLengths, height: int, width: int, where: str) -> np.ndarray:
    """The pixels of an object, uint8 (height, width) of 0 and 1. Polygons may reach beyond the image.

    Args:
        segmentation: Polygons or run lengths; those of the size height × width.
        height: Of the image, in pixels.
        width: Of the image.
        where: What messages call the object.

    Raises:
        UserError: Run lengths do not add up to the image's pixels.
    """
    return cast(np.ndarray, coco_masks.decode(encode(segmentation, height, width, where)))


def encode(segmentation: Polygons | RunLengths, height: int, width: int, where: str) -> RunLengths:
    """The pixels of an object as run lengths in COCO's compressed form; see `rasterize`.

    Raises:
        UserError: Run lengths do not add up to the image's pixels.
    """
    if isinstance(segmentation, dict):
        return compress(segmentation, where)
    return cast(RunLengths, coco_masks.merge(coco_masks.frPyObjects(segmentation, height, width)))


def foreground_runs(code: RunLengths) -> tuple[np.ndarray, np.ndarray]:
    """Where an object's pixels begin and end, counted down the columns, int64 (runs,) each.

    Args:
        code: What `encode` returns.
    """
    runs = _runs(code["counts"])
    assert runs is not None
    edges = np.cumsum(runs)
    ends = edges[1::2]
    return edges[::2][: len(ends)], ends


def compress(code: RunLengths, where: str) -> RunLengths:
    """Run lengths in COCO's compressed form, after adding them up: pycocotools would write beyond its memory.

    Raises:
        UserError: They do not add up to the pixels of the stated size.
    """
    height, width = map(int, code["size"])
    counts = code["counts"]
    runs = _as_numbers(counts) if isinstance(counts, list) else _runs(counts)
    if runs is None or (runs < 0).any() or runs.sum() != height * width:
        raise UserError(
            f"The run lengths of {where} do not add up to the {height * width} pixels of its size, {width}×{height}. "
            "Mend or remove it."
        )
    if not (runs[1:] == 0).any():
        if not isinstance(counts, list):
            return {"size": [height, width], "counts": counts}
    else:  # any number of them may stand for nothing, and comparing masks goes through all
        runs = _without_empty_runs(runs)
    return cast(RunLengths, coco_masks.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width))


MOST_PER_RUN = 2**40
"""Pixels of a run: of an image with 100,000 on each side it has a hundredth."""


def _as_numbers(counts: list[int]) -> np.ndarray | None:
    """Run lengths as int64; None where one is no number of pixels."""
    if not all(type(run) is int and 0 <= run <= MOST_PER_RUN for run in counts):
        return None
    return np.array(counts, dtype=np.int64)


def _without_empty_runs(runs: np.ndarray) -> np.ndarray:
    """The same pixels without runs of length 0, but for the first."""
    edges, counts = np.unique(np.cumsum(runs)[:-1], return_counts=True)
    edges = edges[(counts % 2 == 1) & (edges < runs.sum())]  # what begins and ends at once changes nothing
    return np.diff(edges, prepend=0, append=runs.sum())


def _runs(text: Any) -> np.ndarray | None:
    """The numbers in COCO's compressed code, int64; None where it is no such code.

    A character holds 6 bits, written as their number plus 48 (``0``). The lower 5 are part of a number, lowest part
    first; the highest says whether more parts follow. The uppermost bit of the last part is the number's sign. From the
    fourth number on, the code has differences to the last but one.
    """
    if not isinstance(text, str | bytes):
        return None
    characters = text.encode("ascii", "replace") if isinstance(text, str) else text
    bits = np.frombuffer(characters, dtype=np.uint8).astype(np.int64) - 48
    if not len(bits) or bits.min() < 0 or bits.max() >= 64 or bits[-1] & 0b100000:  # it would end within a number
        return np.zeros(0, dtype=np.int64) if not len(bits) else None

    ends = np.flatnonzero(bits & 0b100000 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 12:  # more pixels than any image has
        return None
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    values = np.add.reduceat((bits & 0b011111) << shifts, starts)
    values -= np.where(bits[ends] & 0b010000, np.int64(1) << (5 * lengths), 0)  # the negative ones
    if np.abs(values).max() > MOST_PER_RUN:
        return None
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


MOST_MASK_BYTES = 2**30
"""Of the masks of an image's objects, each of which has a byte for each pixel."""


def check_masks(number: int, height: int, width: int, where: str) -> None:
    """Refuses to draw the masks of an image's objects where they would fill the memory.

    Raises:
        UserError: so it would be.
    """
    needed = number * height * width
    if needed > MOST_MASK_BYTES:
        raise UserError(
            f"The masks of the {number:,} objects on {where}, of {width}×{height} pixels each, would take "
            f"{needed / 2**30:,.1f} GiB, more than the {MOST_MASK_BYTES / 2**30:g} that are allowed: cut the image "
            "into parts, or set data.masks=false."
        )


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: The file cannot be read or is no JSON.
    """
    try:
        return outside_files.read_json(path)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}). Fetch or export the file again.") from error


def _require_list(path: Path, lists: JsonLists, name: str) -> None:
    if lists.types.get(name) is not list:
        present = ", ".join(lists.types) or "nothing"
        _refuse(path, f"it has no list {name!r}; there is {present}")


def _categories(path: Path, lists: JsonLists, entries: list[Any]) -> dict[int, dict[str, Any]]:
    """The categories by their ids."""
    _require_list(path, lists, "categories")
    for index, entry in enumerate(entries):
        _check_entry(path, "categories", index, entry, {"id": int, "name": str})
    if not entries:
        _refuse(path, "it has no categories")
    _check_repeated(path, "categories", np.array([entry["id"] for entry in entries]))
    return {entry["id"]: entry for entry in entries}


def _frequencies(categories: list[dict[str, Any]]) -> list[str] | None:
    """How frequent each category is; None where not all say it."""
    frequencies = [category.get("frequency") for category in categories]
    return [str(frequency) for frequency in frequencies] if all(f in ("r", "c", "f") for f in frequencies) else None


def _check_entry(path: Path, name: str, index: int, entry: Any, keys: dict[str, Any]) -> None:
    """Refuses an entry of one of the file's lists that lacks a key, or has one of another type."""
    where = f"entry {index} of {name}"
    if not isinstance(entry, dict):
        _refuse(path, f"{where} is no object")
    if isinstance(entry.get("id"), int):
        where += f" (id {entry['id']})"
    if missing := [key for key in keys if key not in entry]:
        _refuse(path, f"{where} lacks {', '.join(missing)}")
    for key, cls in keys.items():
        if not isinstance(entry[key], cls) or isinstance(entry[key], bool):
            _refuse(path, f"the {key} of {where} is {shorten(entry[key])}, expected {_TYPE_NAMES[cls]}")
    if not -(2**63) <= entry["id"] < 2**63:
        _refuse(path, f"the id of entry {index} of {name} has more than 64 bits")


def _check_repeated(path: Path, name: str, ids: np.ndarray) -> None:
    distinct, counts = np.unique(ids, return_counts=True)
    if len(distinct) < len(ids):
        repeated = distinct[counts > 1].tolist()
        _refuse(path, f"{len(repeated)} ids stand more than once in {name}: {abbreviate(repeated)}")


_TYPE_NAMES = {int: "a whole number", str: "text", list: "a list"}


def _size(height_width: np.ndarray) -> str:
    return f"{height_width[1]}×{height_width[0]}"


def is_far_outside(box: Sequence[float], height: int, width: int) -> bool:
    """Whether a box (x, y, width, height) reaches further from its image (height, width) than `REACH` allows."""
    left, top, box_width, box_height = map(float, box)
    edges = (left, top, left + box_width, top + box_height)
    return max(map(abs, edges)) > REACH * max(height, width)


def is_finite(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _refuse(path: Path, what: str) -> NoReturn:
    raise UserError(f"The annotations {path} are not in COCO's format: {what}. Mend the file.")
