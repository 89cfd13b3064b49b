"""Datasets whose images lie within larger files, with their labels beside them: what their readers have in common."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.datamodules.classes import Classes, abbreviate, is_number
from swinv2_tasks.datamodules.layouts import Split
from swinv2_tasks.datamodules.readers.label_cells import Labels, describe_separator, find_separator, split_labels
from swinv2_tasks.datamodules.readers.packed_samples import Label, PackedSamples, StoredFiles
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable, say

Cell = str | tuple[str, ...]
"""What stands beside an image: text of one label or of several, or a list of labels."""


class CellCodes:
    """The different cells of a dataset, by number: a million images of a thousand classes have a thousand cells."""

    def __init__(self) -> None:
        self._codes: dict[Cell, int] = {}

    def code(self, cell: Cell) -> int:
        """The number of a cell."""
        return self._codes.setdefault(cell, len(self._codes))

    @property
    def cells(self) -> list[Cell]:
        """The cells, by their numbers."""
        return list(self._codes)


@dataclass(frozen=True)
class StoredSplit:
    """The images of a split and which of the dataset's cells each has, int64 (images,)."""

    files: StoredFiles
    codes: np.ndarray


@dataclass(frozen=True)
class StoredContent:
    """What a dataset holds.

    Attributes:
        splits: The images of each split.
        cells: The different cells.
        classes: The classes that the dataset states, as ids and names; None: its labels show them.
        several: Whether the dataset states that an image may have several labels; None: its cells show it.
    """

    splits: Mapping[Split, StoredSplit]
    cells: Sequence[Cell]
    classes: Classes | None = None
    several: bool | None = None


class StoredImages:
    """The labeled images of a dataset that lie within larger files. A layout derives from it what reads them.

    Args:
        root: The dataset's folder.
        containers: The files of each split, relative to root.
        has_splits: Whether the dataset tells its splits apart.
        labels: How many labels an image has, as a setting states it; None: what the dataset shows.
    """

    validation_settings = None
    table_names: Collection[str] = ()

    def __init__(
        self, root: Path, containers: Mapping[Split, Sequence[str]], has_splits: bool, labels: Labels | None
    ) -> None:
        self.root = root
        self.containers = containers
        self.has_splits = has_splits
        self._stated = labels

    def read(self) -> StoredContent:
        """What is in the files.

        Raises:
            UserError: They cannot be read, or are not as they should be.
        """
        raise NotImplementedError

    @cached_property
    def _content(self) -> StoredContent:
        """What is in the files, which is read when it is first asked for."""
        content = self.read()
        for split, stored in content.splits.items():
            number = len(stored.files.containers)
            rank_zero_only(say)(f"{split}: {len(stored.files):,} images in {number:,} file{'s' * (number != 1)}")
        return content

    @cached_property
    def _labels(self) -> list[tuple[str, ...]]:
        """The labels of each cell."""
        cells = self._content.cells
        texts = [cell for cell in cells if isinstance(cell, str)]
        self._separator = find_separator(texts, self._stated, f"{printable(self.root)}:") if texts else None
        return [tuple(split_labels(cell, self._separator)) if isinstance(cell, str) else cell for cell in cells]

    @cached_property
    def multi_label(self) -> bool:
        """Whether an image may have any number of labels."""
        if self._stated is not None:
            return self._stated == "several"
        labels = self._labels
        has_several = self._content.several
        if has_several is None:
            has_several = self._separator is not None or any(isinstance(cell, tuple) for cell in self._content.cells)
        if has_several:
            between = f" {describe_separator(self._separator)}" if self._separator else ""
            rank_zero_only(say)(f"{printable(self.root)}: several labels of an image (data.labels){between}")
            if () in labels:
                number = sum(_count(stored, labels.index(())) for stored in self._content.splits.values())
                rank_zero_only(say)(f"{number} images have no label: no class holds for them")
        return has_several

    def classes(self) -> Classes:
        """Those that the dataset states, else the labels that it uses, sorted: as numbers where all are."""
        if self._content.classes is not None:
            return self._content.classes
        used = {label for labels in self._labels for label in labels}
        ids = sorted(used, key=int) if all(map(is_number, used)) else sorted(used)
        return Classes(ids, ids)

    def has(self, split: Split) -> bool:
        """Whether there are files of a split."""
        return bool(self.containers.get(split))

    def place(self, split: Split) -> str:
        """The files of a split."""
        names = self.containers.get(split) or [name for names in self.containers.values() for name in names]
        return abbreviate([str(self.root / name) for name in names], 3)

    def samples(self, split: Split, classes: Classes) -> PackedSamples:
        """The images of a split and their labels, in the order of the files."""
        if split not in self._content.splits:
            raise UserError(f"There are no images of the {split} split in {printable(self.root)}.")
        stored = self._content.splits[split]
        used = {label for labels in self._labels for label in labels}
        index_of = classes.index_of(used, self.place(split))
        table: list[Label] = []
        for code, labels in enumerate(self._labels):
            if unknown := [label for label in labels if label not in index_of]:
                raise UserError(
                    f"{printable(self._example(code))}: {abbreviate(unknown)} is no class; the class list is "
                    f"{abbreviate(classes.ids)}. Set data.class_names to the list that it belongs to."
                )
            if not self.multi_label and len(labels) != 1:
                shown = f"the labels {abbreviate(labels)}" if labels else "no label"
                raise UserError(
                    f"{printable(self._example(code))} has {shown}; expected one. For images of any number of classes "
                    "set data.labels to several."
                )
            indices = sorted({index_of[label] for label in labels})
            table.append(indices if self.multi_label else indices[0])
        return PackedSamples(stored.files, stored.codes, table)

    def _example(self, code: int) -> str:
        """The first image that has a cell."""
        return next(
            stored.files[int(np.argmax(stored.codes == code))]
            for stored in self._content.splits.values()
            if _count(stored, code)
        )


def _count(stored: StoredSplit, code: int) -> int:
    return int(np.count_nonzero(stored.codes == code))


def label_texts(value: object) -> Cell | None:
    """What JSON or a table says of a label, or a list of labels, as text; None where it is nothing such."""
    if isinstance(value, list | tuple):
        texts = [_text(entry) for entry in value]
        return None if None in texts else tuple(dict.fromkeys(text for text in texts if text))
    return _text(value)


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        return None
    return str(int(value))


def by_split(names: Iterator[tuple[Split | None, str]], root: Path) -> tuple[dict[Split, list[str]], bool]:
    """Files by their splits, and whether they tell these apart; without, all are the training's.

    Raises:
        UserError: Only some do.
    """
    files: dict[Split | None, list[str]] = {}
    for split, name in names:
        files.setdefault(split, []).append(name)
    others = files.pop(None, [])
    if others and files:
        raise UserError(
            f"{printable(root)} has files of splits, and others of which no name says what split they are: "
            f"{abbreviate(others, 3)}. Name them as train, val or test, or take them away."
        )
    if others:
        return {"train": others}, False
    return {split: own for split, own in files.items() if split is not None}, True
