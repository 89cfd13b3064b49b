"""ImageNet as it is distributed: tars of tars, read in place.

https://image-net.org/challenges/LSVRC/2012/
`ILSVRC2012_img_train.tar` holds a tar for each class; unpacked once, these lie in a folder of the split. The images of
`ILSVRC2012_img_val.tar` have no labels in it: these are in the development kit, or in lists that others have made.
"""

import csv
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.datamodules.classes import MOST_SAMPLES, Classes, abbreviate, is_number, read_lines
from swinv2_tasks.datamodules.layouts import Split, Tree, join
from swinv2_tasks.datamodules.readers.image_lists import validation_number
from swinv2_tasks.datamodules.readers.images import has_image_extension
from swinv2_tasks.datamodules.readers.label_cells import Labels
from swinv2_tasks.datamodules.readers.packed_samples import StoredFilesBuilder
from swinv2_tasks.datamodules.readers.stored_labels import CellCodes, StoredContent, StoredImages, StoredSplit
from swinv2_tasks.datamodules.readers.tar_members import Member, tar_members
from swinv2_tasks.errors import UserError, reason_of
from swinv2_tasks.outside_files import ByteRange, read_bytes
from swinv2_tasks.text import printable, say

TARS: dict[Split, str] = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}

CLASS_TAR = re.compile(r"n\d{8}\.tar")
"""What the tar of a class is called."""

DEVKIT = "ILSVRC2012_devkit_t12"
"""The folder of the development kit; with `.tar.gz`, what is distributed."""

_TRUTH, _SYNSETS = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"

MOST_DEVKIT_BYTES = 2**26
"""Of the development kit, uncompressed; it has some 5 MB."""

_EXPECTED = (
    f"the development kit ({DEVKIT}.tar.gz, or its folder), LOC_val_solution.csv, "
    "imagenet_2012_validation_synset_labels.txt, or val.txt with lines of an image and its label"
)


# ---- recognizing


def class_tars(tree: Tree) -> dict[Split, list[str]]:
    """The tars of classes in the folders of splits, where these hold nothing else."""
    tars: dict[Split, list[str]] = {}
    for split in TARS:
        folder = tree.split_folder(split)
        names = [] if folder is None else tree.files(folder)
        if folder is not None and names and all(map(CLASS_TAR.fullmatch, names)):
            tars[split] = [join(folder, name) for name in names]
    return tars


def find_imagenet_tars(tree: Tree) -> str | None:
    """The tars that there are."""
    whole = [name for name in TARS.values() if tree.has_file(name)]
    return ", ".join([*whole, *(f"{names[0]}, …" for names in class_tars(tree).values())]) or None


# ---- reading


class ImageNetTars(StoredImages):
    """The images in ImageNet's tars: classes in alphabetical order and their images likewise, as of class folders.

    Args:
        tree: The dataset's folder.
        labels: How many labels an image has, as a setting states it.

    Raises:
        UserError: The images of a split are there twice.
    """

    def __init__(self, tree: Tree, labels: Labels | None = None) -> None:
        self._tree = tree
        containers = {split: [name] for split, name in TARS.items() if tree.has_file(name)}
        self._by_class = class_tars(tree)
        for split in self._by_class.keys() & containers.keys():
            raise UserError(
                f"{printable(tree.root)} has the {split} images twice, in {TARS[split]} and in "
                f"{self._by_class[split][0]} and others: take the one or the others away."
            )
        # Training first, whose classes numbers in lists of validation images mean.
        every = {**self._by_class, **containers}
        super().__init__(tree.root, {split: every[split] for split in TARS if split in every}, True, labels)

    def read(self) -> StoredContent:
        """The members of all tars, and the labels of validation images."""
        codes = CellCodes()
        splits: dict[Split, StoredSplit] = {}
        ids: list[str] | None = None
        for split in self.containers:
            if split == "train" or split in self._by_class:
                names, members = self._class_members(split)
                ids = sorted({*names, *(ids or ())})
            else:
                names, members = self._validation_members(ids)
            splits[split] = self._build(split, names, members, codes)
        words = self._kit.words if self._kit is not None else {}
        ids = ids or sorted({cell[0] for cell in codes.cells}, key=lambda label: (label.zfill(9), label))
        return StoredContent(splits, codes.cells, Classes(ids, [words.get(name, name) for name in ids]), several=False)

    def _build(
        self, split: Split, labels: list[str], members: list[tuple[int, Member]], codes: CellCodes
    ) -> StoredSplit:
        """A split of members in the tars of their numbers, sorted by labels of class tars, and by names."""
        builder = StoredFilesBuilder(ByteRange)
        containers = self.containers[split]
        by_container: dict[int, list[int]] = {}
        for index, (number, _) in enumerate(members):
            by_container.setdefault(number, []).append(index)
        order: list[int] = []
        for number, indices in by_container.items():
            builder.open(str(self.root / containers[number]))
            for index in indices:
                member = members[index][1]
                builder.add(member.name, member.offset, member.size)
                order.append(index)
        own = np.array([codes.code((labels[index],)) for index in order], dtype=np.int64)
        keys = [(labels[index] if split == "train" or split in self._by_class else "", members[index][1].name)
                for index in order]  # fmt: skip
        rows = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
        return StoredSplit(builder.build().select(rows), own[rows])

    def _class_members(self, split: Split) -> tuple[list[str], list[tuple[int, Member]]]:
        """The class of each image in the tars of classes, and where it is."""
        names: list[str] = []
        members: list[tuple[int, Member]] = []
        for number, container in enumerate(self.containers[split]):
            path = str(self.root / container)
            if split in self._by_class and container in self._by_class[split]:
                inner = [(PurePosixPath(container).stem, "", tar_members(path))]
            else:
                inner = list(_inner_tars(path))
            for class_id, prefix, images in inner:
                for image in images:
                    if has_image_extension(image.name):
                        names.append(class_id)
                        members.append((number, image._replace(name=prefix + image.name)))
        if not names:
            raise UserError(f"There are no images in the class tars of {printable(self.place(split))}.")
        return names, members

    def _validation_members(self, ids: list[str] | None) -> tuple[list[str], list[tuple[int, Member]]]:
        """The label of each image in the tar of validation images, and where it is."""
        path = str(self.root / TARS["val"])
        members = [(0, member) for member in tar_members(path) if has_image_extension(member.name)]
        if not members:
            raise UserError(f"There are no images in {printable(path)}.")
        source, label_of = self._validation_labels()
        names: list[str] = []
        for _, member in members:
            label = label_of(member.name.rpartition("/")[2])
            if label is None:
                raise UserError(f"{printable(source)} has no label for {printable(f'{path}/{member.name}')}.")
            names.append(label)
        if ids is not None and not set(names) <= set(ids) and all(map(is_number, names)):
            if max(map(int, names)) >= len(ids):
                raise UserError(
                    f"{printable(source)} has the label {max(map(int, names))}, but there are {len(ids)} classes."
                )
            rank_zero_only(say)(
                f"{printable(source)}: labels are numbers, taken as indices of the classes in alphabetical order"
            )
            names = [ids[int(name)] for name in names]
        rank_zero_only(say)(f"labels of validation images are those of {printable(source)}")
        return names, members

    # -- labels of validation images

    def _validation_labels(self) -> tuple[str, Callable[[str], str | None]]:
        """Where the labels of validation images stand, and the label of an image by its name."""
        if self._kit is not None:
            return self._kit.source, self._kit.label
        root = self.root
        if self._tree.has_file("LOC_val_solution.csv"):
            path = root / "LOC_val_solution.csv"
            return str(path), _by_stem(_solution_labels(path))
        if self._tree.has_file("imagenet_2012_validation_synset_labels.txt"):
            path = root / "imagenet_2012_validation_synset_labels.txt"
            labels = [line.strip() for line in read_lines(path, "list of labels", "a label per line", MOST_SAMPLES)]
            return str(path), _by_number(labels, str(path))
        for name in ("val.txt", "ILSVRC2012_val.txt", "val_list.txt"):
            if self._tree.has_file(name):
                return str(root / name), _by_stem(_listed_labels(root / name))
        raise UserError(f"{printable(root / TARS['val'])} has no labels in it. Put beside it {_EXPECTED}.")

    @cached_property
    def _kit(self) -> "_DevelopmentKit | None":
        for folder in (join(DEVKIT, "data"), "data", ""):
            if self._tree.has_file(join(folder, _TRUTH)):
                path = self.root / folder
                if not self._tree.has_file(join(folder, _SYNSETS)):
                    raise UserError(
                        f"{printable(path / _TRUTH)} numbers classes as {_SYNSETS} of the development kit does, "
                        "which is not beside it. Put it there."
                    )
                contents = {name: _read_part(path / name) for name in (_TRUTH, _SYNSETS)}
                return _DevelopmentKit(str(path / _TRUTH), contents[_TRUTH], contents[_SYNSETS])
        name = f"{DEVKIT}.tar.gz"
        return _unpacked_kit(self.root / name) if self._tree.has_file(name) else None


def _inner_tars(path: str) -> Iterator[tuple[str, str, Iterator[Member]]]:
    """The tars within a tar: the class, what stands before the names of its images, and these."""
    for member in tar_members(path):
        name = PurePosixPath(member.name)
        if name.suffix == ".tar":
            yield name.stem, f"{name.name}/", tar_members(path, member.offset, member.size)


def _by_stem(labels: Mapping[str, str]) -> Callable[[str], str | None]:
    return lambda name: labels.get(PurePosixPath(name).stem)


def _by_number(labels: list[str], source: str) -> Callable[[str], str | None]:
    """By the number in a name: ILSVRC2012_val_00000001.JPEG has the first label."""

    def label(name: str) -> str | None:
        number = validation_number(name, source)
        return labels[number - 1] if 1 <= number <= len(labels) and labels[number - 1] else None

    return label


def _solution_labels(path: Path) -> dict[str, str]:
    """Kaggle's table: an image's name, and its class before the corners of boxes."""
    lines = read_lines(path, "table of validation labels", "`ImageId,PredictionString` rows", MOST_SAMPLES)
    try:
        rows = list(csv.DictReader(lines, strict=True))
    except csv.Error as error:
        raise UserError(f"{printable(path)} is no CSV file ({error}).") from error
    labels = {}
    for number, row in enumerate(rows, start=2):
        words = (row.get("PredictionString") or "").split()
        if not row.get("ImageId") or not words:
            raise UserError(f"{printable(path)}, line {number}: expected ImageId and PredictionString.")
        labels[row["ImageId"]] = words[0]
    return labels


def _listed_labels(path: Path) -> dict[str, str]:
    """Lines of an image's name and its label, an id or an index."""
    labels = {}
    lines = read_lines(path, "list of validation labels", "`image label` lines", MOST_SAMPLES)
    for number, line in enumerate(lines, start=1):
        fields = line.replace(",", " ").split()
        if len(fields) == 2:
            labels[PurePosixPath(fields[0]).stem] = fields[1]
        elif fields:
            raise UserError(
                f"{printable(path)}, line {number}: expected an image and its label, found "
                f"{printable(line.strip()[:60])!r}."
            )
    return labels


# ---- the development kit


@dataclass(frozen=True)
class _DevelopmentKit:
    """Labels of validation images, and what classes are called.

    Args:
        source: Where it is, for messages.
        truth: The numbers of the classes of the validation images, a line each.
        synsets: The classes, as MATLAB's file has them.
    """

    source: str
    truth: bytes
    synsets: bytes

    def label(self, name: str) -> str | None:
        """The id of an image's class."""
        return _by_number(self._labels, self.source)(name)

    @cached_property
    def words(self) -> dict[str, str]:
        """What classes are called, by their ids."""
        return dict(self._classes.values())

    @cached_property
    def _labels(self) -> list[str]:
        numbers = self.truth.decode("ascii", "replace").split()
        unknown = sorted({number for number in numbers if not is_number(number) or int(number) not in self._classes})
        if unknown:
            raise UserError(
                f"{printable(self.source)} has numbers that are no class of {_SYNSETS}: {abbreviate(unknown)}."
            )
        return [self._classes[int(number)][0] for number in numbers]

    @cached_property
    def _classes(self) -> dict[int, tuple[str, str]]:
        """Ids and words of the classes that images have, by their numbers."""
        from scipy.io import loadmat

        try:
            table: Any = loadmat(io.BytesIO(self.synsets), squeeze_me=True, variable_names=["synsets"])["synsets"]
            columns = [
                np.atleast_1d(table[name]).tolist() for name in ("ILSVRC2012_ID", "WNID", "words", "num_children")
            ]
            return {
                int(number): (str(class_id), str(words))
                for number, class_id, words, children in zip(*columns, strict=True)
                if int(children) == 0
            }
        except Exception as error:  # scipy raises whatever the bytes provoke
            raise UserError(
                f"Cannot read {_SYNSETS} of {printable(self.source)}: {printable(reason_of(error))}. Download the "
                "development kit again."
            ) from error


def _read_part(path: Path) -> bytes:
    try:
        return read_bytes(path, MOST_DEVKIT_BYTES)
    except OSError as error:
        raise UserError(f"Cannot read {printable(path)}: {error.strerror}.") from error


def _unpacked_kit(path: Path) -> _DevelopmentKit:
    """The two files of the packed development kit, taken out in memory."""
    try:
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        content = unpacker.decompress(_read_part(path), MOST_DEVKIT_BYTES)
        if unpacker.unconsumed_tail or not unpacker.eof:
            raise ValueError(f"it is truncated, or has more than {MOST_DEVKIT_BYTES:,} bytes")
        parts: dict[str, bytes] = {}
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if member.isreg() and name in (_TRUTH, _SYNSETS) and (file := tar.extractfile(member)) is not None:
                    parts[name] = file.read()
        return _DevelopmentKit(str(path), parts[_TRUTH], parts[_SYNSETS])
    except KeyError as error:
        raise UserError(f"{printable(path)} holds no {error.args[0]}: download the development kit again.") from error
    except (zlib.error, tarfile.TarError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"Cannot read {printable(path)}: {printable(reason_of(error))}. Download the development kit again."
        ) from error
