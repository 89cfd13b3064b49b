"""What the readers of datasets of objects have in common, whatever their layout."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.datamodules.layouts import SetAside, Split, Splits, source_split
from swinv2_tasks.datamodules.readers.annotations import CocoAnnotations
from swinv2_tasks.datamodules.readers.channels import ImageReader
from swinv2_tasks.datamodules.readers.image_sizes import image_sizes
from swinv2_tasks.datamodules.readers.packed_images import CocoImage, PackedImages
from swinv2_tasks.errors import UserError

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
    packed = PackedImages(images)
    has_masks = bool(packed.objects.have_shapes.any())
    return CocoAnnotations(path, packed, class_ids, class_names, True, has_masks, packed.heights > packed.widths)


NoteFault = Callable[[Split, Path, str], None]
"""What a fault of annotations is told: the split, the file and what is wrong in it."""


class FaultTolerant:
    """A reader that can pass over what it cannot read, where somebody is told of it: training stops instead."""

    note_fault: NoteFault | None = None
    """What is told each fault; None: the first one is raised. Set before anything is read."""

    def fault(self, split: Split, path: Path, problem: str) -> None:
        """Tells of a fault.

        Raises:
            UserError: nobody is told.
        """
        if self.note_fault is None:
            raise UserError(problem)
        self.note_fault(split, path, problem)

    def images(self, split: Split) -> list[Path]:
        """The images of a split, those among them that cannot be read."""
        raise NotImplementedError


SizedImage = tuple[int, Path, int, int]
"""Number, file, height and width in pixels."""

Sizes = Callable[[Sequence[Path]], Iterator[SizedImage]]
"""`sized` with what settings say."""


def sized(paths: Sequence[Path], allows: Callable[[int], bool], reader: ImageReader) -> Iterator[SizedImage]:
    """Images with their sizes: number, file, height and width in pixels. Faulty ones are left out where they may be.

    Args:
        paths: The files.
        allows: Whether so many samples that cannot be read may be left out.
        reader: Reads the images.

    Raises:
        UserError: Some cannot be read, and may not be left out.
    """
    sizes = image_sizes(paths, reader)
    errors = [size for size in sizes if isinstance(size, UserError)]
    if errors and not allows(len(errors)):
        others = f" There are {len(errors) - 1} others." if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{others}") from errors[0]
    for error in errors:
        rank_zero_only(log.warning)("left out: %s", error)
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        if not isinstance(size, UserError):
            yield number, path, *size


class SetAsideObjects(SetAside[ObjectSource]):
    """A dataset without validation images, of whose training images a share is set aside for that."""

    def categories(self) -> tuple[list[int], list[str]]:
        """Those of the dataset."""
        return self.source.categories()

    def read(self, split: Split) -> tuple[CocoAnnotations, Path]:
        """What is annotated in a split, and the folder of its images."""
        annotations, folder = self.source.read(source_split(split))
        kept = self.kept(split, [0] * len(annotations.images))
        images = annotations.images.select(np.array(kept, dtype=np.int64))
        return replace(annotations, images=images, portrait=annotations.portrait[kept]), folder
