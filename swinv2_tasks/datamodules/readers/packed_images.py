"""Images and their objects in a few arrays: millions of objects take little memory, and no worker copies it.

A list of a million objects would be copied, piece by piece, into every DataLoader worker, just by being read.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, overload

import numpy as np

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


# ---- outlines and run lengths

_TEXT, _NUMBERS = b"t", b"n"
"""What run lengths are written as: COCO's compressed text, or numbers."""


@dataclass(frozen=True)
class Shapes:
    """The outlines or run lengths of objects, one after the other."""

    coordinates: np.ndarray
    """x, y, x, y, … of all outlines, float64."""
    part_ends: np.ndarray
    """Where the coordinates of each part end, int64 (parts,)."""
    ends: np.ndarray
    """Where the parts of each shape end, int64 (shapes,)."""
    codes: np.ndarray
    """Run lengths, uint8."""
    code_ends: np.ndarray
    """Where the run lengths of each shape end, int64 (shapes,)."""

    @property
    def are_there(self) -> np.ndarray:
        """Whether there is anything of each shape, bool (shapes,)."""
        return (np.diff(self.ends, prepend=0) > 0) | (np.diff(self.code_ends, prepend=0) > 0)

    @property
    def part_lengths(self) -> np.ndarray:
        """How many coordinates each part has, int64 (parts,)."""
        return np.diff(self.part_ends, prepend=0)

    def part_bounds(self) -> np.ndarray:
        """The least x, least y, largest x and largest y of each part, float64 (parts, 4)."""
        if not len(self.part_ends):
            return np.empty((0, 4))
        starts = (self.part_ends - self.part_lengths) // 2
        columns, rows = self.coordinates[::2], self.coordinates[1::2]
        least = [np.minimum.reduceat(values, starts) for values in (columns, rows)]
        largest = [np.maximum.reduceat(values, starts) for values in (columns, rows)]
        return np.stack([*least, *largest], axis=1)

    def bounds(self) -> np.ndarray:
        """Left, top, right and bottom edge of each shape that has outlines, else NaN, float64 (shapes, 4)."""
        parts = self.part_bounds()
        bounds = np.full((len(self.ends), 4), np.nan)
        numbers = np.diff(self.ends, prepend=0)
        has_parts = numbers > 0
        if has_parts.any():
            firsts = (self.ends - numbers)[has_parts]
            bounds[has_parts, :2] = np.minimum.reduceat(parts[:, :2], firsts)
            bounds[has_parts, 2:] = np.maximum.reduceat(parts[:, 2:], firsts)
        return bounds

    def without_short_parts(self, least: int) -> "Shapes":
        """The same without parts of fewer coordinates."""
        lengths = self.part_lengths
        keep = lengths >= least
        if keep.all():
            return self
        kept_before = np.concatenate([[0], np.cumsum(keep)])
        return replace(
            self,
            coordinates=self.coordinates[np.repeat(keep, lengths)],
            part_ends=np.cumsum(lengths[keep]),
            ends=kept_before[self.ends],
        )

    def get(self, index: int, height: int, width: int) -> Polygons | RunLengths | None:
        """One of them, of an image's size."""
        first, last = _range(self.ends, index)
        if last > first:
            return [self.coordinates[slice(*_range(self.part_ends, part))].tolist() for part in range(first, last)]
        first, last = _range(self.code_ends, index)
        if last == first:
            return None
        content = self.codes[first:last].tobytes()
        if content.startswith(_TEXT):
            counts: str | list[int] = content[1:].decode("utf-8", "surrogatepass")
        else:
            counts = np.frombuffer(content[1:], np.int64).tolist()
        return {"size": [height, width], "counts": counts}


def _range(ends: np.ndarray, index: int) -> tuple[int, int]:
    return int(ends[index - 1]) if index else 0, int(ends[index])


class ShapeBuilder:
    """Makes `Shapes` of polygons and run lengths, one after the other."""

    def __init__(self) -> None:
        self._coordinates = array("d")
        self._part_ends = array("q")
        self._ends = array("q")
        self._codes = bytearray()
        self._code_ends = array("q")

    def add(self, polygons: Iterable[list[float]] = (), counts: str | list[int] | None = None) -> None:
        """Adds the next shape, of polygons or of run lengths, or of nothing.

        Raises:
            TypeError: There is something else than numbers.
            OverflowError: A number is too large.
        """
        for part in polygons:
            if part:
                self._coordinates.fromlist(part)
                self._part_ends.append(len(self._coordinates))
        self._ends.append(len(self._part_ends))
        if isinstance(counts, list):
            self._codes += _NUMBERS + array("q", counts).tobytes()
        elif counts is not None:
            self._codes += _TEXT + counts.encode("utf-8", "surrogatepass")
        self._code_ends.append(len(self._codes))

    def build(self) -> Shapes:
        """The shapes; nothing can be added any more."""
        codes = np.frombuffer(self._codes, np.uint8) if self._codes else np.empty(0, np.uint8)
        return Shapes(
            np.asarray(self._coordinates),
            np.asarray(self._part_ends),
            np.asarray(self._ends),
            codes,
            np.asarray(self._code_ends),
        )


# ---- objects and images


@dataclass(frozen=True)
class PackedObjects:
    """Objects in columns, each with a row for each object."""

    ids: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    """x, y, width and height, float64 (objects, 4)."""
    areas: np.ndarray
    crowds: np.ndarray
    shape_indices: np.ndarray
    """Which of the shapes each object has."""
    shapes: Shapes
    """Of these objects and perhaps of others."""

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: np.ndarray) -> "PackedObjects":
        """Some of the objects, by their indices or a mask; shapes are not copied."""
        return PackedObjects(
            self.ids[rows],
            self.labels[rows],
            self.boxes[rows],
            self.areas[rows],
            self.crowds[rows],
            self.shape_indices[rows],
            self.shapes,
        )

    @property
    def have_shapes(self) -> np.ndarray:
        """Whether each object has an outline or run lengths, bool (objects,)."""
        return self.shapes.are_there[self.shape_indices]

    @property
    def are_polygons(self) -> np.ndarray:
        """Whether the shape of each object is one polygon, bool (objects,)."""
        return np.diff(self.shapes.ends, prepend=0)[self.shape_indices] == 1


class PackedImages(Sequence[CocoImage]):
    """A sequence of images in arrays.

    Args:
        images: The images.

    Attributes:
        ids: Of the images, int64.
        heights: In pixels, int64.
        widths: In pixels, int64.
        objects: The objects of all images, in their order.
        object_ends: Where the objects of each image end.
    """

    def __init__(self, images: Iterable[CocoImage]) -> None:
        shapes = ShapeBuilder()
        ids, heights, widths, object_ends = array("q"), array("q"), array("q"), array("q")
        object_ids, labels, boxes, areas, crowds = array("q"), array("q"), array("d"), array("d"), bytearray()
        names: list[str] = []
        for image in images:
            ids.append(image.id)
            heights.append(image.height)
            widths.append(image.width)
            names.append(image.file_name)
            for entry in image.objects:
                object_ids.append(entry.id)
                labels.append(entry.label)
                boxes.extend(entry.box)
                areas.append(entry.area)
                crowds.append(entry.crowd)
                if isinstance(entry.segmentation, dict):
                    shapes.add(counts=entry.segmentation["counts"])
                else:
                    shapes.add(entry.segmentation or ())
            object_ends.append(len(object_ids))
        objects = PackedObjects(
            np.asarray(object_ids),
            np.asarray(labels),
            np.asarray(boxes).reshape(-1, 4),
            np.asarray(areas),
            np.array(crowds, dtype=bool),
            np.arange(len(object_ids)),
            shapes.build(),
        )
        self._set(np.asarray(ids), np.asarray(heights), np.asarray(widths), pack_names(names), objects, object_ends)

    @classmethod
    def of_columns(
        cls,
        ids: np.ndarray,
        heights: np.ndarray,
        widths: np.ndarray,
        names: "PackedNames",
        objects: PackedObjects,
        object_ends: np.ndarray,
    ) -> "PackedImages":
        """Images whose columns are there already; see the attributes."""
        images = cls.__new__(cls)
        images._set(ids, heights, widths, names, objects, object_ends)
        return images

    def _set(
        self,
        ids: np.ndarray,
        heights: np.ndarray,
        widths: np.ndarray,
        names: "PackedNames",
        objects: PackedObjects,
        object_ends: Any,
    ) -> None:
        self.ids = ids
        self.heights = heights
        self.widths = widths
        self._names = names
        self.objects = objects
        self.object_ends = np.asarray(object_ends)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> CocoImage: ...

    @overload
    def __getitem__(self, index: slice) -> list[CocoImage]: ...

    def __getitem__(self, index: int | slice) -> CocoImage | list[CocoImage]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        height, width = int(self.heights[index]), int(self.widths[index])
        rows = slice(*_range(self.object_ends, index))
        own = self.objects
        objects = (
            CocoObject(object_id, label, cast(Any, tuple(box)), area, crowd, own.shapes.get(shape, height, width))
            for object_id, label, box, area, crowd, shape in zip(
                own.ids[rows].tolist(),
                own.labels[rows].tolist(),
                own.boxes[rows].tolist(),
                own.areas[rows].tolist(),
                own.crowds[rows].tolist(),
                own.shape_indices[rows].tolist(),
                strict=True,
            )
        )
        return CocoImage(int(self.ids[index]), self._names[index], height, width, tuple(objects))

    @property
    def file_names(self) -> list[str]:
        """The file names of all images."""
        return [self._names[index] for index in range(len(self))]

    @property
    def object_numbers(self) -> np.ndarray:
        """How many objects each image has, int64 (images,)."""
        return np.diff(self.object_ends, prepend=0)

    @property
    def owners(self) -> np.ndarray:
        """The index of each object's image, int64 (objects,)."""
        return np.repeat(np.arange(len(self)), self.object_numbers)

    def with_objects(self, objects: PackedObjects, numbers: np.ndarray) -> "PackedImages":
        """The same images with other objects, so many each."""
        return PackedImages.of_columns(
            self.ids, self.heights, self.widths, self._names, objects, np.cumsum(numbers, dtype=np.int64)
        )

    def select(self, indices: np.ndarray) -> "PackedImages":
        """Some of the images, in the order of their indices."""
        numbers = self.object_numbers[indices]
        starts = self.object_ends[indices] - numbers
        ends = np.cumsum(numbers, dtype=np.int64)
        rows = np.repeat(starts - (ends - numbers), numbers) + np.arange(numbers.sum())
        return PackedImages.of_columns(
            self.ids[indices],
            self.heights[indices],
            self.widths[indices],
            self._names.select(indices),
            self.objects.select(rows),
            ends,
        )


@dataclass(frozen=True)
class PackedNames:
    """Names in one array of bytes."""

    content: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __getitem__(self, index: int) -> str:
        name = self.content[self.starts[index] : self.ends[index]].tobytes()
        return name.decode("utf-8", "surrogatepass")

    def select(self, indices: np.ndarray) -> "PackedNames":
        """Some of the names, by their indices."""
        return PackedNames(self.content, self.starts[indices], self.ends[indices])


def pack_names(names: Sequence[str]) -> PackedNames:
    """Names in one array."""
    encoded = [name.encode("utf-8", "surrogatepass") for name in names]
    ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), ends])[: len(encoded)]
    return PackedNames(np.frombuffer(b"".join(encoded) or b"\0", np.uint8), starts, ends)
