"""Objects from masks: images whose objects are numbered in a mask, or have a mask file each. Boxes are those of masks.

- ``images/`` and ``masks/``, with or without splits, and ``PNGImages/`` and ``PedMasks/`` of Penn-Fudan: 0 is the
  background, each other number an object, all of one class. https://www.cis.upenn.edu/~jshi/ped_html
- The same with class × 1000 + number of the object in masks of 16 bits, as in Cityscapes' ``*_instanceIds.png``.
- A folder for each image, with folders ``images`` and ``masks`` in it and a mask for each object, as in the Data
  Science Bowl of 2018: https://www.kaggle.com/c/data-science-bowl-2018
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from pycocotools import mask as coco_masks

from swinv2_tasks.child_processes import available_cores
from swinv2_tasks.datamodules.category_lists import stated_categories
from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.datamodules.layouts import Split, Tree, join, split_of
from swinv2_tasks.datamodules.readers.annotations import CocoAnnotations
from swinv2_tasks.datamodules.readers.cityscapes import CLASS_OF_ID
from swinv2_tasks.datamodules.readers.cityscapes import IMAGES as CITY_IMAGES
from swinv2_tasks.datamodules.readers.cityscapes import LABELS as CITY_LABELS
from swinv2_tasks.datamodules.readers.images import has_image_extension
from swinv2_tasks.datamodules.readers.label_maps import read_numbers
from swinv2_tasks.datamodules.readers.label_values import MapCounts
from swinv2_tasks.datamodules.readers.mask_folders import images_in, mask_folders, match_names
from swinv2_tasks.datamodules.readers.objects import Sizes, annotations_of
from swinv2_tasks.datamodules.readers.packed_images import CocoImage, CocoObject, RunLengths
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable, say

MASKS = ("masks", "mask", "instances", "instance_masks", "pedmasks")
"""What folders of masks are called, in lower case."""

CLASS_LISTS = ("classes.csv", "classes.txt")
"""Files that name the classes: `ID,NAME` lines, or a name per line whose ids are 1, 2, …"""

PER_CLASS = 1000
"""Numbers of a mask from here on are of a class: class × 1000 + number of the object."""

LARGEST_LABEL = 255
"""Beside such numbers, smaller ones are labels of pixels without an object of their own, which end here."""

CITY_CLASSES = {label: name for label, name in CLASS_OF_ID.items() if label >= 24}
"""Cityscapes' classes whose objects are told apart, by their ids."""

_CITY_ENDING = f"_{CITY_LABELS}_instanceIds.png"


@dataclass(frozen=True)
class MaskFiles:
    """An image with the mask of its objects, or with a mask of each."""

    image: Path
    masks: tuple[Path, ...]


Codes = list[tuple[int, RunLengths]]
"""The number and the pixels of each object of an image."""


class InstanceMasks:
    """Images and masks of their objects.

    Args:
        tree: The dataset's folder.
        files: The images of each split, and their masks.
        has_splits: Whether splits are told apart.
        is_one_each: Whether each object has a mask of its own.
        is_cityscapes: Whether these are Cityscapes' ids.
        is_stated: Whether a setting says that masks show objects.
        sizes: Reads the sizes of images.
    """

    validation_settings = None

    def __init__(
        self,
        tree: Tree,
        files: dict[Split, list[MaskFiles]],
        has_splits: bool,
        is_one_each: bool,
        is_cityscapes: bool,
        is_stated: bool,
        sizes: Sizes,
    ) -> None:
        self.root = tree.root
        self.has_splits = has_splits
        self._files = files
        self._is_one_each = is_one_each
        self._is_cityscapes = is_cityscapes
        self._is_stated = is_stated
        self._sizes = sizes
        self._class_list = next((tree.root / name for name in CLASS_LISTS if tree.has_file(name)), None)

    def has(self, split: Split) -> bool:
        """Whether there are images of a split."""
        return split in self._files

    def place(self, split: Split) -> str:
        """The dataset's folder."""
        return f"of {self.root}"

    def categories(self) -> tuple[list[int], list[str]]:
        """Those that the masks state, or one class."""
        return self._categories

    def read(self, split: Split) -> tuple[CocoAnnotations, Path]:
        """What the masks of a split show; file names are relative to the dataset's folder."""
        if not self.has(split):
            raise UserError(f"There are no images and masks of the {split} split in {printable(self.root)}.")
        where = self.root / self._files[split][0].image.parent
        return annotations_of(where, self._annotated(split), *self._categories), self.root

    @cached_property
    def _codes(self) -> dict[Split, list[Codes]]:
        """The objects of each image of each split."""
        read = read_one_each if self._is_one_each else read_numbered
        with ThreadPoolExecutor(min(8, available_cores())) as pool:
            return {
                split: list(pool.map(lambda entry: read(entry.masks), entries))
                for split, entries in self._files.items()
            }

    @cached_property
    def _categories(self) -> tuple[list[int], list[str]]:
        numbers = {number for images in self._codes.values() for codes in images for number, _ in codes}
        if self._is_cityscapes:
            return list(CITY_CLASSES), list(CITY_CLASSES.values())

        stated = None if self._class_list is None else stated_categories(self._class_list)
        if not self._holds_classes:
            self._check_numbers(numbers)
            if stated is not None and len(stated[0]) != 1:
                raise UserError(
                    f"{printable(self._class_list)} names {len(stated[0])} classes, but the masks only number objects: "
                    f"name one class, or write masks of 16 bits that hold class × {PER_CLASS} + number."
                )
            return stated or ([1], ["object"])

        ids = sorted({number // PER_CLASS for number in numbers if number >= PER_CLASS})
        rank_zero_only(say)(
            f"masks hold class × {PER_CLASS} + number of the object: classes {abbreviate(ids)}; smaller numbers are no "
            "objects"
        )
        if stated is None:
            return ids, [str(category) for category in ids]
        if unknown := sorted(set(ids) - set(stated[0])):
            raise UserError(
                f"The masks hold objects of the classes {abbreviate(unknown)}, which {printable(self._class_list)} "
                "lacks: it needs lines `ID,NAME` (classes.csv), or a name per line for 1, 2, … (classes.txt)."
            )
        return stated

    @cached_property
    def _holds_classes(self) -> bool:
        """Whether numbers say the class: some are large enough, and none is one that only many objects would have."""
        if self._is_cityscapes:
            return True
        numbers = {number for images in self._codes.values() for codes in images for number, _ in codes}
        large = any(number >= PER_CLASS for number in numbers)
        return large and not any(LARGEST_LABEL < number < PER_CLASS for number in numbers)

    def _check_numbers(self, numbers: set[int]) -> None:
        if self._is_one_each:
            return
        if numbers == {255}:
            raise UserError(
                f"The masks in {printable(self.root)} hold 0 and 255 alone, which tells no object from another: number "
                "the objects 1, 2, …, or write a mask file for each. As label maps they are read by segmentation."
            )
        paths = [entry.masks[0] for files in self._files.values() for entry in files]
        if not self._is_stated and connected_share(paths) < LEAST_CONNECTED / 2:
            raise UserError(
                f"The masks in {printable(self.root)} can be read as instance-masks (a number for each object) or as "
                "label maps (a number for each class), and most of their numbers lie in several places, as classes do. "
                "If they are objects, state it with --data.layout instance-masks; label maps are read by segmentation."
            )

    def _annotated(self, split: Split) -> Iterator[CocoImage]:
        label_of = {category: label for label, category in enumerate(self._categories[0])}
        files = self._files[split]
        next_id = 1
        for number, path, height, width in self._sizes([entry.image for entry in files]):
            codes = self._codes[split][number]
            for _, code in codes:
                if code["size"] != [height, width]:
                    raise UserError(
                        f"The mask {printable(files[number].masks[0])} has {code['size'][1]}×{code['size'][0]} pixels, "
                        f"its image {printable(path)} {width}×{height}. Mend one of them."
                    )
            objects = self._objects(codes, label_of, next_id)
            next_id += len(objects)
            yield CocoImage(number + 1, str(path.relative_to(self.root)), height, width, tuple(objects))

    def _objects(self, codes: Codes, label_of: dict[int, int], first_id: int) -> list[CocoObject]:
        objects: list[CocoObject] = []
        for number, code in codes:
            label, is_crowd = self._label(number, label_of)
            if label is None:
                continue
            box = cast(tuple[float, float, float, float], tuple(coco_masks.toBbox(code).tolist()))
            area = float(coco_masks.area(code))
            objects.append(CocoObject(first_id + len(objects), label, box, area, is_crowd, code))
        return objects

    def _label(self, number: int, label_of: dict[int, int]) -> tuple[int | None, bool]:
        """The class of a number of a mask, None where it is no object, and whether it is a crowd."""
        if not self._holds_classes:
            return 0, False
        if number >= PER_CLASS:
            return label_of.get(number // PER_CLASS), False
        # Cityscapes' objects that could not be told apart have the number of their class alone.
        return (label_of.get(number), True) if self._is_cityscapes else (None, False)


# ---- masks


def read_numbered(masks: Sequence[Path]) -> Codes:
    """The objects of a mask that numbers them; 0 is the background.

    Raises:
        UserError: The file cannot be read or does not hold numbers.
    """
    (path,) = masks
    return instance_codes(read_numbers(path))


def read_one_each(masks: Sequence[Path]) -> Codes:
    """The objects that have a mask file each; what is not 0 is the object, and a file without that is none.

    Raises:
        UserError: A file cannot be read or does not hold numbers.
    """
    codes: Codes = []
    for path in masks:
        pixels = read_numbers(path) != 0
        codes += [(len(codes) + 1, code) for _, code in instance_codes(pixels)]
    return codes


def instance_codes(numbers: np.ndarray) -> Codes:
    """The pixels of each number but 0 of a mask (H, W), in ascending order, as COCO's compressed run lengths."""
    height, width = numbers.shape
    flat = numbers.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]

    # The runs of one number after the other; within a number they keep their order.
    order = np.argsort(values, kind="stable")
    order = order[values[order] != 0]
    if not len(order):
        return []
    edges = np.stack([starts[order], ends[order]], axis=1)
    distinct, firsts = np.unique(values[order], return_index=True)
    codes: Codes = []
    for number, runs in zip(distinct.tolist(), np.split(edges, firsts[1:]), strict=True):
        counts = np.diff(runs.ravel(), prepend=0, append=flat.size)
        counts = counts if counts[-1] else counts[:-1]
        code = coco_masks.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        codes.append((int(number), {"size": [height, width], "counts": code["counts"].decode()}))
    return codes


# ---- label maps or objects

LEAST_CONNECTED = 0.9
"""Share of a mask's numbers that are in one piece, where numbers are objects; what is before them parts some."""

_MOST_MAPS, _MOST_NUMBERS = 20, 10
"""How many masks are looked at, and how many numbers of each."""


def connected_share(paths: Sequence[Path]) -> float:
    """The share of the numbers of masks that are in one piece each; 1 where there are no numbers.

    Raises:
        UserError: A file cannot be read.
    """
    pieces: list[int] = []
    for path in paths[:: max(1, len(paths) // _MOST_MAPS)][:_MOST_MAPS]:
        numbers = read_numbers(path)
        for number in [number for number in np.unique(numbers) if number][:_MOST_NUMBERS]:
            count, _ = cv2.connectedComponents((numbers == number).astype(np.uint8), connectivity=8)
            pieces.append(count - 1)  # one of them is the rest
    return sum(count == 1 for count in pieces) / len(pieces) if pieces else 1.0


def number_objects(maps: Sequence[MapCounts]) -> bool:
    """Whether label maps seem to number objects: each has 1 to n, of another n than others, and all in one piece."""
    numbers = [sorted(label_map.pixels.keys() - {0}) for label_map in maps]
    counts = {len(own) for own in numbers}
    if len(counts) < 2 or max(counts) < 3 or any(own != list(range(1, len(own) + 1)) for own in numbers):
        return False
    return connected_share([label_map.path for label_map in maps]) >= LEAST_CONNECTED


# ---- finding


def find_instance_masks(tree: Tree) -> str | None:
    """The folders of images and masks, of one image each, or Cityscapes' ids."""
    if _cities(tree):
        return f"{CITY_LABELS}/*{_CITY_ENDING}"
    folders, _ = mask_folders(tree, MASKS)
    with_masks = [(images, masks) for images, masks in folders.values() if images_in(tree, masks)]
    if with_masks:
        return ", ".join(f"{images}/ and {masks}/" for images, masks in with_masks)
    parents = _parents_of_images(tree)
    return ", ".join(f"{join(parent, 'IMAGE')}/masks/" for parent in parents.values()) or None


def open_instance_masks(tree: Tree, sizes: Sizes, is_stated: bool) -> InstanceMasks:
    """The dataset in a folder.

    Args:
        tree: The folder.
        sizes: Reads the sizes of images.
        is_stated: Whether a setting says that masks show objects, and no labels.

    Raises:
        UserError: An image has no mask, or a folder of one image holds several.
    """
    if splits := _cities(tree):
        files = {split: _city_files(tree, split, cities) for split, cities in splits.items()}
        return InstanceMasks(tree, files, True, False, True, is_stated, sizes)
    folders, has_splits = mask_folders(tree, MASKS)
    if folders:
        files = {split: _matched(tree, images, masks) for split, (images, masks) in folders.items()}
        return InstanceMasks(tree, files, has_splits, False, False, is_stated, sizes)
    parents = _parents_of_images(tree)
    files = {split: _one_each(tree, parent) for split, parent in parents.items()}
    return InstanceMasks(tree, files, parents != {"train": ""}, True, False, is_stated, sizes)


def _matched(tree: Tree, images: str, masks: str) -> list[MaskFiles]:
    """The images of a folder and the mask of each in another one."""
    names = images_in(tree, images)
    mask_of = match_names(names, images_in(tree, masks))
    missing = [name for name in names if name not in mask_of]
    if missing or not names:
        what = f"{len(missing)} of {len(names)} images have no mask in {printable(masks)}: {abbreviate(missing)}"
        raise UserError(
            f"{printable(tree.root / images)}: {what if names else 'there are no images'}. Each needs one of its name; "
            "of an image without objects it is 0 everywhere."
        )
    return [MaskFiles(tree.root / images / name, (tree.root / masks / mask_of[name],)) for name in names]


def _parents_of_images(tree: Tree) -> dict[Split, str]:
    """The folders of each split in which each image has a folder with its masks; without splits that is the root."""
    if _has_masks_in_folders(tree, ""):
        return {"train": ""}
    splits = {name: split_of(name.lower().removeprefix("stage1_")) for name in tree.folders()}
    return {split: name for name, split in splits.items() if split is not None and _has_masks_in_folders(tree, name)}


def _has_masks_in_folders(tree: Tree, parent: str) -> bool:
    """Whether the first folder in another one is that of an image with its masks."""
    first = next(iter(tree.folders(parent)), None)
    if first is None or split_of(first) is not None:
        return False
    return all(tree.has_folder(join(join(parent, first), name)) for name in ("images", "masks"))


def _one_each(tree: Tree, parent: str) -> list[MaskFiles]:
    files = []
    for name in tree.folders(parent):
        folder = join(parent, name)
        images, masks = (
            [file for file in tree.files(join(folder, below)) if has_image_extension(file)]
            for below in ("images", "masks")
        )
        if len(images) != 1 or not tree.has_folder(join(folder, "masks")):
            without = "" if tree.has_folder(join(folder, "masks")) else " and no folder masks"
            raise UserError(
                f"{printable(tree.root / folder)} has {len(images)} images in its folder images{without}; expected one "
                "image, and a mask of each of its objects."
            )
        below = tree.root / folder
        files.append(MaskFiles(below / "images" / images[0], tuple(below / "masks" / mask for mask in masks)))
    return files


def _cities(tree: Tree) -> dict[Split, list[str]]:
    """The cities of each split that have Cityscapes' ids of objects."""
    splits: tuple[Split, ...] = ("train", "val")
    cities = {
        split: [
            city
            for city in tree.folders(f"{CITY_LABELS}/{split}")
            if any(name.endswith(_CITY_ENDING) for name in tree.files(f"{CITY_LABELS}/{split}/{city}"))
        ]
        for split in splits
    }
    return {split: names for split, names in cities.items() if names}


def _city_files(tree: Tree, split: str, cities: list[str]) -> list[MaskFiles]:
    files = []
    for city in cities:
        images, labels = f"{CITY_IMAGES}/{split}/{city}", f"{CITY_LABELS}/{split}/{city}"
        masks = {name.removesuffix(_CITY_ENDING): name for name in tree.files(labels) if name.endswith(_CITY_ENDING)}
        for name in tree.files(images):
            if not has_image_extension(name):
                continue
            stem = Path(name).stem.removesuffix(f"_{CITY_IMAGES}")
            if stem not in masks:
                raise UserError(
                    f"The image {printable(tree.root / images / name)} has no {printable(stem + _CITY_ENDING)} in "
                    f"{printable(tree.root / labels)}."
                )
            files.append(MaskFiles(tree.root / images / name, (tree.root / labels / masks[stem],)))
    if not files:
        raise UserError(f"There are no images in {printable(tree.root / CITY_IMAGES / split)}.")
    return files
