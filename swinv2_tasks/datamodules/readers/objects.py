"""What the readers of datasets of objects have in common, whatever their layout."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.datamodules.layouts import Split, Splits, describe_set_aside, set_aside
from swinv2_tasks.datamodules.readers.annotations import CocoAnnotations, CocoImage, PackedImages
from swinv2_tasks.datamodules.readers.image_sizes import image_sizes
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import say

log = logging.getLogger("swinv2_tasks")


class ObjectSource(Splits, Protocol):
    """The images of a dataset and their objects, as the reader of a layout has them."""

    def categories(self) -> tuple[list[int], list[str]]:
        """Ids of the categories, in ascending order, and their names.

        Raises:
            UserError: They cannot be read.
        """

    def read(self, split: Split) -> tuple[CocoAnnotations, Path]:
        """What is annotated in a split, and the folder that the images' file names are relative to.

        Raises:
            UserError: The annotations are not in order, or the folder does not exist.
        """


def annotations_of(
    path: Path, images: Iterable[CocoImage], class_ids: list[int], class_names: list[str]
) -> CocoAnnotations:
    """What is annotated in a split, of images that a reader yields one by one.

    Args:
        path: Where it is said, for messages.
        images: The images and their objects.
        class_ids: Ids of the categories, in ascending order.
        class_names: Their names.
    """
    portrait: list[bool] = []
    masked = [False]

    def noted() -> Iterator[CocoImage]:
        for image in images:
            portrait.append(image.height > image.width)
            masked[0] |= any(entry.segmentation is not None for entry in image.objects)
            yield image

    packed = PackedImages(noted())
    return CocoAnnotations(path, packed, class_ids, class_names, True, masked[0], np.array(portrait, dtype=bool))


def sized(paths: Sequence[Path], allows: Callable[[int], bool]) -> Iterator[tuple[int, Path, int, int]]:
    """Images with their sizes: number, file, height and width in pixels. Faulty ones are left out where they may be.

    Args:
        paths: The files.
        allows: Whether so many samples that cannot be read may be left out.

    Raises:
        UserError: Some cannot be read, and may not be left out.
    """
    sizes = image_sizes(paths)
    errors = [size for size in sizes if isinstance(size, UserError)]
    if errors and not allows(len(errors)):
        others = f" There are {len(errors) - 1} others." if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{others}") from errors[0]
    for error in errors:
        rank_zero_only(log.warning)("left out: %s", error)
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        if not isinstance(size, UserError):
            yield number, path, *size


class SetAside:
    """A dataset without validation images, of whose training images a share is set aside for that.

    Args:
        source: The dataset.
        share: What share.
        seed: Which of them.
    """

    has_splits = True
    validation_settings = None

    def __init__(self, source: ObjectSource, share: float, seed: int) -> None:
        self._source = source
        self._share = share
        self._seed = seed

    def categories(self) -> tuple[list[int], list[str]]:
        """Those of the dataset."""
        return self._source.categories()

    def has(self, split: Split) -> bool:
        """Whether there are data of a split; of validation where there are training data."""
        return self._source.has("train" if split == "val" else split)

    def place(self, split: Split) -> str:
        """Where the data of a split are."""
        return self._source.place("train" if split == "val" else split)

    def read(self, split: Split) -> tuple[CocoAnnotations, Path]:
        """What is annotated in a split, and the folder of its images."""
        if split == "test":
            return self._source.read(split)
        annotations, folder = self._source.read("train")
        number = len(annotations.images)
        aside = set_aside([0] * number, self._share, self._seed)
        if split == "val":
            rank_zero_only(say)(describe_set_aside(aside, self._share, "images"))
        (kept,) = np.nonzero(aside if split == "val" else ~aside)
        images = PackedImages(annotations.images[index] for index in kept.tolist())
        return replace(annotations, images=images, portrait=annotations.portrait[kept]), folder
