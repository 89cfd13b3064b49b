"""WebDataset: tars in which an image and its label follow each other as `KEY.jpg` and `KEY.cls`.

The format: https://github.com/webdataset/webdataset. Its library reads tars from start to end, and shuffles what a
buffer holds. Here their headers are read once and images in any order, as those of other layouts: orders follow from
the seed alone, and resuming, sampling by class and several processes work as ever.
"""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.datamodules.layouts import SPLIT_NAMES, Split, Tree, join, split_of
from swinv2_tasks.datamodules.readers.image_tables import LABEL_COLUMNS, name_words
from swinv2_tasks.datamodules.readers.imagenet_tars import CLASS_TAR
from swinv2_tasks.datamodules.readers.images import IMAGE_EXTENSIONS
from swinv2_tasks.datamodules.readers.label_cells import Labels
from swinv2_tasks.datamodules.readers.packed_samples import StoredFilesBuilder
from swinv2_tasks.datamodules.readers.stored_labels import (
    Cell,
    CellCodes,
    StoredContent,
    StoredImages,
    StoredSplit,
    by_split,
    label_texts,
)
from swinv2_tasks.datamodules.readers.tar_members import Member, refuse_compressed, tar_members
from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import ByteRange, load_json
from swinv2_tasks.text import printable, say

LABEL_ENDINGS = ("cls", "json", "txt")
"""Endings of the members that have a sample's label, by descending preference."""

MOST_LABEL_BYTES = 2**16
"""Of such a member."""

_COMPRESSED_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")

_EXPECTED = "an image (KEY.jpg, KEY.png, …) and its label (KEY.cls, KEY.json or KEY.txt) with the same KEY"


def find_tars(tree: Tree) -> dict[str, Split | None]:
    """The tars in a dataset's folder or those of its splits, and the split that each one's name or folder states."""
    tars: dict[str, Split | None] = {}
    for name in tree.files():
        if _is_tar(name) and not name.startswith("ILSVRC"):  # which are ImageNet's, without labels
            tars[name] = next((split for word in name_words(name) if (split := split_of(word)) is not None), None)
    for split in SPLIT_NAMES:
        for folder in tree.folders():
            if split_of(folder) == split:
                names = [name for name in tree.files(folder) if _is_tar(name) and not CLASS_TAR.fullmatch(name)]
                tars |= {join(folder, name): split for name in names}
    return tars


def _is_tar(name: str) -> bool:
    return name.lower().endswith((".tar", *_COMPRESSED_ENDINGS))


def find_webdataset(tree: Tree) -> str | None:
    """The names of the tars; None where there is none."""
    return abbreviate(list(find_tars(tree)), 3) or None


class WebDataset(StoredImages):
    """The labeled images in a dataset's tars.

    Args:
        tree: The dataset's folder.
        labels: How many labels an image has, as a setting states it; None: what the tars show.

    Raises:
        UserError: A tar is compressed, or only some names state a split.
    """

    def __init__(self, tree: Tree, labels: Labels | None = None) -> None:
        tars = find_tars(tree)
        for name in tars:
            if name.lower().endswith(_COMPRESSED_ENDINGS):
                raise refuse_compressed(str(tree.root / name), PurePosixPath(name).suffix.lower())
        containers, has_splits = by_split(((split, name) for name, split in tars.items()), tree.root)
        super().__init__(tree.root, containers, has_splits, labels)
        self._ending: str | None = None

    def read(self) -> StoredContent:
        """The members of all tars."""
        codes = CellCodes()
        splits = {split: self._read_split(names, codes) for split, names in self.containers.items()}
        rank_zero_only(say)(f"{printable(self.root)}: labels are those of .{self._ending} members")
        return StoredContent(splits, codes.cells)

    def _read_split(self, names: Sequence[str], codes: CellCodes) -> StoredSplit:
        builder = StoredFilesBuilder(ByteRange)
        own: list[int] = []
        for name in names:
            path = str(self.root / name)
            builder.open(path)
            for key, members in _samples(path):
                image = _image(path, key, members)
                label = self._label(path, key, members)
                builder.add(image.name, image.offset, image.size)
                own.append(codes.code(label))
        if not own:
            raise UserError(f"There are no images in {abbreviate([str(self.root / name) for name in names], 3)}.")
        return StoredSplit(builder.build(), np.array(own, dtype=np.int64))

    def _label(self, path: str, key: str, members: dict[str, Member]) -> Cell:
        """The label of a sample, by the member of the kind that the first one has."""
        if self._ending is None:
            self._ending = next((ending for ending in LABEL_ENDINGS if ending in members), None)
        if self._ending is None or self._ending not in members:
            raise UserError(
                f"{printable(f'{path}/{key}')} has no label ({_listed(members)}"
                f"{f'; others have .{self._ending}' if self._ending else ''}): expected {_EXPECTED}."
            )
        member = members[self._ending]
        where = ByteRange(f"{path}/{member.name}", path, member.offset, member.size)
        try:
            text = where.read(MOST_LABEL_BYTES).decode("utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise UserError(f"Cannot read the label {printable(where)}: {reason}.") from error
        return _json_label(where, text) if self._ending == "json" else text


def _json_label(where: str, text: str) -> Cell:
    """The label in a JSON member: what it says under a key that labels usually have, or all of it."""
    try:
        content = load_json(text)
    except ValueError as error:
        raise UserError(f"The label {printable(where)} is not JSON: {error}.") from error
    if isinstance(content, dict):
        keys = [key for key in LABEL_COLUMNS if key in content]
        if not keys:
            raise UserError(
                f"The label {printable(where)} has the keys {abbreviate(list(content))}; expected `label`, or another "
                f"of {abbreviate(LABEL_COLUMNS)}."
            )
        content = content[keys[0]]
    label = label_texts(content)
    if label is None:
        raise UserError(f"The label {printable(where)} is no name or number, and no list of such.")
    return label


def _samples(path: str) -> Iterator[tuple[str, dict[str, Member]]]:
    """The samples of a tar: members that follow one another with the same key, by what comes after its first dot."""
    key: str | None = None
    members: dict[str, Member] = {}
    for member in tar_members(path):
        folder, slash, name = member.name.rpartition("/")
        stem, dot, ending = name.partition(".")
        if not dot or not stem or not ending:  # hidden files, and notes on the whole tar
            continue
        own_key = f"{folder}{slash}{stem}"
        if own_key != key:
            if key is not None:
                yield key, members
            key, members = own_key, {}
        if ending.lower() in members:
            raise UserError(
                f"{printable(f'{path}/{member.name}')} is in the tar twice, one after the other; expected {_EXPECTED}."
            )
        members[ending.lower()] = member
    if key is not None:
        yield key, members


def _image(path: str, key: str, members: dict[str, Member]) -> Member:
    """The image of a sample."""
    images = [ending for ending in members if f".{ending.rpartition('.')[2]}" in IMAGE_EXTENSIONS]
    if len(images) > 1:  # beside features, or masks
        images = [ending for ending in images if "." not in ending and ending != "npy"]
    if len(images) != 1:
        problem = "several images" if len(images) > 1 else "no image"
        raise UserError(f"{printable(f'{path}/{key}')} has {problem} ({_listed(members)}); expected {_EXPECTED}.")
    return members[images[0]]


def _listed(members: dict[str, Member]) -> str:
    return abbreviate([f".{ending}" for ending in members])
