"""Reading COCO's annotation files: checked as a whole, kept in little memory, and one clear message for what is wrong.

Format: https://cocodataset.org/#format-data.
"""

import math
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, NoReturn, cast, overload

import numpy as np
from pycocotools import mask as coco_masks

from swinv2_tasks import outside_files
from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import shorten

Polygons = list[list[float]]
"""Outlines of an object's parts: x, y, x, y, … in pixels."""

RunLengths = dict[str, Any]
"""{size: [height, width], counts: run lengths down the columns, as numbers or in COCO's compressed text}."""


@dataclass(frozen=True, slots=True)
class CocoObject:
    """An annotated object, or a crowd of them."""

    id: int
    label: int
    """Class index, from 0."""
    box: tuple[float, float, float, float]
    """x, y, width and height in pixels, as annotated."""
    area: float
    """In pixels, as annotated; without that, the box's."""
    crowd: bool
    segmentation: Polygons | RunLengths | None
    """None where there is only a box."""


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image and what is annotated on it, in the file's order."""

    id: int
    file_name: str
    height: int
    width: int
    objects: tuple[CocoObject, ...]


class PackedImages(Sequence[CocoImage]):
    """A sequence of images in one array of bytes.

    A list of a million objects would be copied, piece by piece, into every DataLoader worker, just by being read.
    """

    def __init__(self, images: Iterable[CocoImage]) -> None:
        packed = [pickle.dumps(image, pickle.HIGHEST_PROTOCOL) for image in images]
        self._ends = np.cumsum([len(content) for content in packed])
        self._bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> CocoImage: ...

    @overload
    def __getitem__(self, index: slice) -> list[CocoImage]: ...

    def __getitem__(self, index: int | slice) -> CocoImage | list[CocoImage]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return cast(CocoImage, pickle.loads(self._bytes[start : self._ends[index]].tobytes()))


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
    return _categories(path, _read_content(path))


def read_annotations(path: Path, prepare: PrepareImage | None = None) -> CocoAnnotations:
    """Read an annotation file and check all of it.

    Args:
        path: The file.
        prepare: What is done to each entry of `images` before it is checked, where a format calls things otherwise.

    Raises:
        UserError: The file is missing, no JSON or not in COCO's format; ids are missing, repeated or unknown; a box or
            polygon is not finite or lies more than `REACH` image sides away; a mask's size is not that of its image; a
            file name leaves the folder of images.
    """
    content = _read_content(path)
    ids, names = _categories(path, content)
    if prepare is not None:
        for entry in _dicts(content.get("images")):
            prepare(entry)
    images = _table(path, content, "images", {"id": int, "file_name": str, "height": int, "width": int})
    for image in images.values():
        _check_image(path, image)

    has_objects = "annotations" in content
    objects = _objects_of_images(path, content, ids, images) if has_objects else {image_id: [] for image_id in images}
    has_masks = any(annotation.segmentation is not None for of_image in objects.values() for annotation in of_image)
    # An image's objects are let go as they are packed, so that memory holds them only once.
    packed = PackedImages(
        CocoImage(image_id, image["file_name"], image["height"], image["width"], tuple(objects.pop(image_id)))
        for image_id, image in images.items()
    )
    portrait = np.array([image["height"] > image["width"] for image in images.values()], dtype=bool)
    return CocoAnnotations(path, packed, ids, names, has_objects, has_masks, portrait, _frequencies(content))


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
            f"image {image['id']} has {width}×{height} pixels, expected 1 to {MOST_PIXELS_PER_SIDE} per side",
        )


def _objects_of_images(
    path: Path, content: dict[str, Any], class_ids: Sequence[int], images: dict[int, dict[str, Any]]
) -> dict[int, list[CocoObject]]:
    """The annotations of each image, by its id."""
    label_of = {category: label for label, category in enumerate(class_ids)}
    objects: dict[int, list[CocoObject]] = {image_id: [] for image_id in images}
    keys: dict[str, Any] = {"id": int, "image_id": int, "category_id": int, "bbox": list}
    for annotation in _table(path, content, "annotations", keys).values():
        where = f"annotation {annotation['id']}"
        image_id, category = annotation["image_id"], annotation["category_id"]
        if image_id not in images:
            _refuse(path, f"{where} is of image {image_id}, which is not among the images")
        if category not in label_of:
            _refuse(path, f"{where} has category {category}, which is not among the categories")
        objects[image_id].append(_object(path, where, annotation, label_of[category], images[image_id]))
    return objects


def clean(image: CocoImage, counts: Counter[str], masks: bool = True) -> list[CocoObject]:
    """The objects to train on: no crowds, and boxes and masks that have an area within the image.

    Args:
        image: An image.
        counts: Gets the number of "crowd" objects and of those with "no area", "outside" and "clipped" added.
        masks: Whether polygons are drawn.
    """
    kept = []
    for annotation in image.objects:
        if annotation.crowd:
            counts["crowd"] += 1
            continue

        x, y, width, height = annotation.box
        if width <= 0 or height <= 0:
            counts["no area"] += 1
            continue

        # Of the box, and where a mask is drawn also of the mask.
        edges = [(x, y, x + width, y + height)]
        if masks and isinstance(annotation.segmentation, list):
            edges.append(_bounds(annotation.segmentation))
        clipped = [_clip(bounds, image) for bounds in edges]
        if any(right <= left or bottom <= top for left, top, right, bottom in clipped):
            counts["outside"] += 1
            continue

        # No arrays here: this runs for a million objects.
        cut_off = max(
            abs(edge - new)
            for before, after in zip(edges, clipped, strict=True)
            for edge, new in zip(before, after, strict=True)
        )
        if cut_off > 1:  # less is rounding
            counts["clipped"] += 1

        left, top, right, bottom = clipped[0]
        box = (left, top, right - left, bottom - top)
        kept.append(
            CocoObject(annotation.id, annotation.label, box, annotation.area, annotation.crowd, annotation.segmentation)
        )
    return kept


def _clip(edges: tuple[float, float, float, float], image: CocoImage) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge as far as they lie within an image."""
    left, top, right, bottom = edges
    return max(0.0, left), max(0.0, top), min(float(image.width), right), min(float(image.height), bottom)


def _bounds(polygons: Polygons) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge of an object's parts."""
    columns = [x for part in polygons for x in part[::2]]
    rows = [y for part in polygons for y in part[1::2]]
    return min(columns), min(rows), max(columns), max(rows)


def describe_unmatched(annotations: CocoAnnotations, masks: bool) -> str | None:
    """One line on the objects of an annotation file that cannot be detected by COCO's rules; None where all can be.

    Args:
        annotations: What the file says, which evaluation takes unchanged.
        masks: Whether masks are scored beside boxes.
    """
    counts: Counter[str] = Counter()
    for image in annotations.images:
        for annotation in image.objects:
            counts["objects"] += 1
            x, y, width, height = annotation.box
            has_area = width > 0 and height > 0
            meets_image = x < image.width and y < image.height and x + width > 0 and y + height > 0
            if annotation.crowd:
                counts["crowd"] += 1
            elif not (has_area and meets_image):
                counts["box"] += 1
            elif not 0 <= annotation.area <= LARGEST_AREA:
                counts["area"] += 1
            elif masks and annotation.segmentation is None:
                counts["no mask"] += 1

    parts = []
    if counts["crowd"]:
        parts.append(f"{counts['crowd']} are crowds (iscrowd: 1), which count neither as found nor as missed")
    if counts["box"]:
        parts.append(f"{counts['box']} have a box without area or outside of their image, which counts as missed")
    if counts["area"]:
        parts.append(f"{counts['area']} have an area below 0 or above {LARGEST_AREA:g}, which no measure counts")
    if counts["no mask"]:
        parts.append(f"{counts['no mask']} have only a box, which masks count as missed")
    if not parts:
        return None
    return f"{annotations.path}: of {counts['objects']} objects {'; '.join(parts)}.{crowd_hint(counts)}"


def crowd_hint(counts: Counter[str]) -> str:
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
    if isinstance(segmentation, dict):
        return cast(np.ndarray, coco_masks.decode(compress(segmentation, where)))
    parts = coco_masks.frPyObjects(segmentation, height, width)
    return cast(np.ndarray, coco_masks.decode(coco_masks.merge(parts)))


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


def _read_content(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        _refuse(path, f"it holds a {type(content).__name__}, expected an object with images, annotations, categories")
    return cast(dict[str, Any], content)


def _categories(path: Path, content: dict[str, Any]) -> tuple[list[int], list[str]]:
    table = _table(path, content, "categories", {"id": int, "name": str})
    if not table:
        _refuse(path, "it has no categories")
    return sorted(table), [table[category]["name"] for category in sorted(table)]


def _frequencies(content: dict[str, Any]) -> list[str] | None:
    """How frequent each category is, in the order of their ids; None where not all say it."""
    categories = sorted(content["categories"], key=lambda category: category["id"])
    frequencies = [category.get("frequency") for category in categories]
    return frequencies if all(frequency in ("r", "c", "f") for frequency in frequencies) else None


def _dicts(entries: Any) -> Iterator[dict[str, Any]]:
    """Those entries of a list that are objects; none where it is no list."""
    return (entry for entry in entries if isinstance(entry, dict)) if isinstance(entries, list) else iter(())


def _table(path: Path, content: dict[str, Any], name: str, keys: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The entries of one of the file's lists by their ids, each with keys of the right types."""
    entries = content.get(name)
    if not isinstance(entries, list):
        present = ", ".join(content) or "nothing"
        _refuse(path, f"it has no list {name!r}; there is {present}")

    table = {}
    for index, entry in enumerate(entries):
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
        table[entry["id"]] = entry

    if len(table) < len(entries):
        repeated = [key for key, count in Counter(entry["id"] for entry in entries).items() if count > 1]
        _refuse(path, f"{len(repeated)} ids stand more than once in {name}: {abbreviate(repeated)}")
    return table


_TYPE_NAMES = {int: "a whole number", str: "text", list: "a list"}


def _object(path: Path, where: str, annotation: dict[str, Any], label: int, image: dict[str, Any]) -> CocoObject:
    """An entry of annotations; `where` is what messages call it."""
    box = annotation["bbox"]
    if len(box) != 4 or not all(map(is_finite, box)):
        _refuse(path, f"the bbox of {where} is {shorten(box)}, expected four finite numbers: x, y, width, height")

    area = annotation.get("area")
    if area is None:
        area = box[2] * box[3]
    if not is_finite(area):
        _refuse(path, f"the area of {where} is {shorten(area)}, expected a finite number")

    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        _refuse(path, f"iscrowd of {where} is {shorten(crowd)}, expected 0 or 1")

    x, y, width, height = map(float, box)
    if is_far_outside(box, image["height"], image["width"]):
        _refuse(path, f"the bbox of {where} is {shorten(box)}, far outside of its {_size(image)} image {image['id']}")
    segmentation = _segmentation(path, where, annotation.get("segmentation"), image)
    return CocoObject(annotation["id"], label, (x, y, width, height), float(area), bool(crowd), segmentation)


def _segmentation(path: Path, where: str, value: Any, image: dict[str, Any]) -> Polygons | RunLengths | None:
    if value is None or value == []:
        return None

    if isinstance(value, dict):
        size, counts = value.get("size"), value.get("counts")
        expected = [image["height"], image["width"]]
        if size != expected:
            _refuse(
                path, f"the run lengths of {where} are of size {shorten(size)}, image {image['id']} is of {expected}"
            )
        are_numbers = isinstance(counts, list) and all(type(run) is int for run in counts)
        if not isinstance(counts, str) and not are_numbers:
            _refuse(path, f"the run lengths of {where} are neither whole numbers nor text")
        return {"size": expected, "counts": counts}

    if not isinstance(value, list) or not all(isinstance(part, list) for part in value):
        _refuse(path, f"the segmentation of {where} is neither a list of polygons nor run lengths")
    for part in value:
        if len(part) % 2 or not _all_finite(part):
            _refuse(path, f"a polygon of {where} is not made of pairs of finite numbers")
        _check_outline(path, where, part, image)
    return [part for part in value if len(part) >= 6] or None  # two corners enclose nothing


def _check_outline(path: Path, where: str, part: list[float], image: dict[str, Any]) -> None:
    """Refuses a polygon that would take more memory to draw than its image's pixels account for."""
    if not part:
        return

    low, high = min(part), max(part)
    if max(-low, high) > REACH * max(image["height"], image["width"]):
        far = low if -low > high else high
        _refuse(path, f"a polygon of {where} has the coordinate {far:g}, far outside of its {_size(image)} image")

    # No outline is longer than all edges of all pixels. Most are too short for that to need the exact length.
    longest = 2 * image["height"] * image["width"] + 4 * REACH * (image["height"] + image["width"])
    if len(part) * (high - low) > longest:
        corners = np.array(part, dtype=np.float64).reshape(-1, 2)
        length = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum()
        if length > longest:
            _refuse(
                path, f"a polygon of {where} is {length:.0f} pixels long, more than the edges of all of its image's"
            )


def _size(image: dict[str, Any]) -> str:
    return f"{image['width']}×{image['height']}"


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


def _all_finite(values: list[Any]) -> bool:
    try:
        return all(map(math.isfinite, values))
    except (TypeError, OverflowError):
        return False


def _refuse(path: Path, what: str) -> NoReturn:
    raise UserError(f"The annotations {path} are not in COCO's format: {what}. Mend the file.")
