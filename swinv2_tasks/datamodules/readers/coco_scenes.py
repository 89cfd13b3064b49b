"""COCO's layout of scenes: label maps are drawn of the objects of annotation files, one when it is asked for.

Format: https://cocodataset.org/#format-data. Things, stuff, or both: whatever is annotated by outlines or run lengths.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.batches import IGNORED
from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.datamodules.layouts import Split
from swinv2_tasks.datamodules.readers.annotations import CocoAnnotations, crowd_hint, encode, foreground_runs
from swinv2_tasks.datamodules.readers.coco import CocoSource
from swinv2_tasks.datamodules.readers.images import allowed_pixels
from swinv2_tasks.datamodules.readers.label_values import LabelSettings
from swinv2_tasks.datamodules.readers.packed_images import CocoImage, PackedImages
from swinv2_tasks.datamodules.readers.scenes import ScenePair
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable, say

BACKGROUND = 0
"""The value of pixels of no object."""

MOST_VALUES = IGNORED - 1
"""As many categories as label maps of 8 bits have values for, beside those of the background and of crowds."""


@dataclass(frozen=True, slots=True)
class CocoLabelMap:
    """The label map of an image, drawn when it is asked for.

    Args:
        images: The images of a split and their objects, which all label maps share.
        index: Which of them.
        values: The value of each class, uint8.
        path: The annotation file, for messages.
    """

    images: PackedImages
    index: int
    values: np.ndarray
    path: Path

    def __str__(self) -> str:
        return f"{self.path} (image {self.images.ids[self.index]})"

    def draw(self) -> np.ndarray:
        """Values, uint8 (H, W).

        Raises:
            UserError: Run lengths do not add up, or the image is declared larger than images may be.
        """
        height, width = int(self.images.heights[self.index]), int(self.images.widths[self.index])
        if height * width > allowed_pixels():
            raise UserError(
                f"{printable(str(self))} is declared to have {width}×{height} pixels, more than the "
                f"{allowed_pixels():,} that images may have. Cut it into parts, or mend the file."
            )
        return draw_objects(self.images[self.index], self.values, str(self))


def draw_objects(image: CocoImage, values: Sequence[int] | np.ndarray, where: str) -> np.ndarray:
    """The label map of an image's objects: smaller ones lie over larger ones.

    Args:
        image: The image; objects that have only a box are left out.
        values: The value of each class.
        where: What messages call the image.

    Returns:
        Values, uint8 (H, W): 0 where there is no object; 255 in crowds, where no other object lies.

    Raises:
        UserError: Run lengths do not add up.
    """
    shapes = []
    for entry in image.objects:
        if entry.segmentation is not None:
            code = encode(entry.segmentation, image.height, image.width, f"annotation {entry.id} of {where}")
            starts, ends = foreground_runs(code)
            area = int((ends - starts).sum())
            value = IGNORED if entry.crowd else int(values[entry.label])
            shapes.append((not entry.crowd, -area, value, starts, ends))
    # Crowds first, then by their pixels; of the same size, the order is the file's.
    shapes.sort(key=lambda shape: shape[:2])

    labels = np.full(image.height * image.width, BACKGROUND, np.uint8)  # down the columns, as run lengths go
    for _, _, value, starts, ends in shapes:
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            labels[start:end] = value
    return np.ascontiguousarray(labels.reshape(image.width, image.height).T)


class CocoScenes:
    """Images and the label maps of their objects, whose classes are the categories.

    A label map holds the ids of the categories, where these are from 1 to 254; else their positions, from 1. 0 is the
    background, and 255 are crowds, which are left out.

    Args:
        objects: The reader of the annotation files.
        stated: What settings say about label maps.
    """

    def __init__(self, objects: CocoSource, stated: LabelSettings) -> None:
        self.objects = objects
        self.has_splits = objects.has_splits
        self.validation_settings = objects.validation_settings
        self._stated = stated

    def has(self, split: Split) -> bool:
        """Whether there is an annotation file of a split."""
        return self.objects.has(split)

    def place(self, split: Split) -> str:
        """The annotation file of a split."""
        return self.objects.place(split)

    @property
    def class_names(self) -> list[str]:
        """Names of the categories, each once, behind that of the background if it is a class."""
        return list(dict.fromkeys((self.label_settings.label_values or {}).values()))

    @cached_property
    def label_settings(self) -> LabelSettings:
        """The name of each value, and the values that are left out: what settings say, else the categories.

        Raises:
            UserError: Settings say what does not go together with categories, or there are too many categories.
        """
        stated = self._stated
        if stated.palette is not None:
            raise UserError(
                "data.palette says what the colors of label maps are; those of annotation files in COCO's format are "
                "drawn, of the categories. Remove it."
            )
        ignored = {IGNORED, *_as_list(stated.ignore_label)}
        if stated.label_values is not None:
            settings = replace(stated, ignore_label=sorted(ignored))
        else:
            named = self._named_values
            if stated.background == "ignore":
                ignored.add(BACKGROUND)
            else:
                named = {BACKGROUND: _background_name([*named.values()]), **named}
            self._check_number(named)
            settings = replace(stated, background=None, label_values=named, ignore_label=sorted(ignored))
        self._describe(settings)
        return settings

    def _check_number(self, named: dict[int, str]) -> None:
        if len(set(named.values())) > MOST_VALUES:
            raise UserError(
                f"{printable(self._categories_place)} has {len(self._categories[0]):,} categories, which with the "
                f"background are {len(set(named.values())):,} classes; label maps tell at most {MOST_VALUES} apart. "
                "With data.background=ignore it is none."
            )

    def _describe(self, settings: LabelSettings) -> None:
        """Says in a line how label maps are drawn."""
        name = (settings.label_values or {}).get(BACKGROUND)
        background = "left out" if name is None else f"the class {printable(name)}"
        setting = "" if self._stated != LabelSettings() else " (data.background=ignore leaves them out)"
        text = f"label maps are drawn of the objects, smaller ones over larger ones: pixels of none are {background}"
        text += f"{setting}, crowds are left out"
        ids, names = self._categories
        if self._values.tolist() != ids:
            text += f"; values are 1 to {len(ids)} in the order of the category ids, which are not all from 1 to 254"
        if len(set(names)) < len(names):
            text += f"; {len(names)} categories have {len(set(names))} names, and those of one name are one class"
        rank_zero_only(say)(text)

    @cached_property
    def _categories(self) -> tuple[list[int], list[str]]:
        return self.objects.categories()

    @property
    def _categories_place(self) -> str:
        splits: tuple[Split, ...] = ("val", "train", "test")
        return next((self.place(split) for split in splits if self.has(split)), self.place("train"))

    @cached_property
    def _values(self) -> np.ndarray:
        """The value of each class, uint8."""
        ids = self._categories[0]
        if len(ids) > MOST_VALUES:
            raise UserError(
                f"{printable(self._categories_place)} has {len(ids):,} categories; label maps tell at most "
                f"{MOST_VALUES} apart. Segmentation needs fewer; detection (--config coco.yaml) takes any number."
            )
        are_values = ids[0] > BACKGROUND and ids[-1] < IGNORED
        return np.array(ids if are_values else range(1, len(ids) + 1), np.uint8)

    @property
    def _named_values(self) -> dict[int, str]:
        return dict(zip(self._values.tolist(), self._categories[1], strict=True))

    def pairs(self, split: Split) -> list[ScenePair]:
        """The images of a split and their label maps.

        Raises:
            UserError: The annotations are not in order, have no outlines, or other categories than the other split's.
        """
        annotations, folder = self.objects.read(split)
        self._check_annotations(annotations)
        images = annotations.images
        names = images.file_names
        return [
            (folder / name, CocoLabelMap(images, index, self._values, annotations.path))
            for index, name in enumerate(names)
        ]

    def _check_annotations(self, annotations: CocoAnnotations) -> None:
        """Refuses annotations that no label maps can be drawn of, and says what of them is left out."""
        path, objects = printable(annotations.path), annotations.images.objects
        if (annotations.class_ids, annotations.class_names) != self._categories:
            own = _named(annotations.class_ids, annotations.class_names)
            raise UserError(
                f"{path} has the categories {abbreviate(own, 8)}, the other annotation file of this dataset "
                f"{abbreviate(_named(*self._categories), 8)}. Training and evaluation need the same: give both files "
                "all categories."
            )
        if not len(annotations.images):
            raise UserError(f"{path} lists no image.")
        if not annotations.has_masks:
            content = f"boxes alone for its {len(objects):,} objects" if len(objects) else "no objects"
            raise UserError(
                f"{path} has {content}: label maps need outlines or run lengths (segmentation). Boxes are learned by "
                "detection: --config coco.yaml."
            )
        parts = list(_left_out(objects.crowds, objects.have_shapes))
        if parts:
            counts = {"objects": len(objects), "crowd": int(objects.crowds.sum())}
            rank_zero_only(say)(f"{path}: of {len(objects):,} objects {'; '.join(parts)}.{crowd_hint(counts)}")


def _left_out(crowds: np.ndarray, have_shapes: np.ndarray) -> Iterator[str]:
    if crowds.any():
        yield f"{crowds.sum():,} are crowds (iscrowd: 1), whose pixels are left out"
    if not have_shapes.all():
        yield f"{(~have_shapes).sum():,} have only a box and are not drawn: their pixels count as those of no object"


def _named(ids: list[int], names: list[str]) -> list[str]:
    return [f"{category} {name}" for category, name in zip(ids, names, strict=True)]


def _background_name(names: Sequence[str]) -> str:
    """The name of the category that is the background itself, if there is one."""
    return next((name for name in names if name.strip().lower() == "background"), "background")


def _as_list(stated: int | list[int] | list[list[int]] | None) -> list[int]:
    """Values to leave out; colors are refused where the settings are read."""
    if stated is None:
        return []
    return [value for value in (stated if isinstance(stated, list) else [stated]) if isinstance(value, int)]
