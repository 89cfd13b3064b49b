"""Layouts: how datasets lie on disk, and which one a folder has, told from its structure.

Each task has a list of layouts. Which of them a folder has is told from names alone, and each folder is listed once;
what the files hold is read by the layout's reader, once it is chosen.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable, say

Split = Literal["train", "val", "test"]

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What folders and files of a split are called, in lower case."""

VAL_SHARE = 0.1
"""Share of the training samples that is set aside for validation, where a dataset has no splits and none is stated."""

Source = TypeVar("Source")


class Tree:
    """The folders of a dataset, each listed once, when it is first asked for.

    Names are relative to the root with `/` between; the root's own is empty. Hidden files and folders are left out.

    Args:
        root: The dataset's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, tuple[list[str], list[str]]] = {}

    def folders(self, name: str = "") -> list[str]:
        """The last parts of the names of a folder's subfolders, sorted; none where there is no such folder."""
        return self._list(name)[0]

    def files(self, name: str = "") -> list[str]:
        """The last parts of the names of the files in a folder, sorted; none where there is no such folder."""
        return self._list(name)[1]

    def has_folder(self, name: str) -> bool:
        """Whether there is a folder of this name."""
        path = PurePosixPath(name)
        return not path.parts or path.name in self.folders(_parent(path))

    def has_file(self, name: str) -> bool:
        """Whether there is a file of this name."""
        path = PurePosixPath(name)
        return path.name in self.files(_parent(path))

    def split_folder(self, split: Split, parent: str = "") -> str | None:
        """The name of the subfolder of `parent` that is called as a split is; None where there is none.

        Raises:
            UserError: Several are, as `val` and `valid`.
        """
        names = [name for name in self.folders(parent) if name.lower() in SPLIT_NAMES[split]]
        if len(names) > 1:
            raise UserError(
                f"{printable(self.root / parent)} has the folders {', '.join(map(printable, names))}, which all may be "
                f"the {split} split. Leave one of them there."
            )
        return join(parent, names[0]) if names else None

    def _list(self, name: str) -> tuple[list[str], list[str]]:
        if name in self._listed:
            return self._listed[name]

        folders: list[str] = []
        files: list[str] = []
        if not name or self.has_folder(name):
            try:
                with os.scandir(self.root / name) as entries:
                    for entry in entries:
                        if not entry.name.startswith("."):
                            (folders if entry.is_dir() else files).append(entry.name)
            except OSError as error:
                raise UserError(f"Cannot list the folder {printable(self.root / name)}: {error.strerror}.") from error
        self._listed[name] = sorted(folders), sorted(files)
        return self._listed[name]


def join(parent: str, name: str) -> str:
    """A name below another one."""
    return f"{parent}/{name}" if parent else name


def _parent(path: PurePosixPath) -> str:
    parent = str(path.parent)
    return "" if parent == "." else parent


def split_of(name: str) -> Split | None:
    """Which split a folder or a file's stem of this name is of; None where it is none of them."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


@dataclass(frozen=True)
class Layout(Generic[Source]):
    """One way in which the datasets of a task lie on disk.

    Args:
        name: What `data.layout` calls it.
        expected: What it looks like, for messages: a phrase that follows "expected".
        find: What in a folder shows that it has this layout, as `data.yaml`; None where nothing does. By names alone.
        open: The reader of a folder's dataset. Raises a UserError where it is not as it should be.
    """

    name: str
    expected: str
    find: Callable[[Tree], str | None]
    open: Callable[[Tree], Source]


def open_dataset(root: str | None, layouts: Sequence[Layout[Source]], stated: str | None, expected: str) -> Source:
    """The reader of the dataset in a folder; which layout it was taken for is printed, where no setting says it.

    Args:
        root: The folder, as data.root names it.
        layouts: Those of the task.
        stated: The name of the layout, as data.layout states it; None: what the structure shows.
        expected: What is expected in the folder, for messages.

    Raises:
        UserError: There is no folder, no such layout, the folder has none of them or could be read in several ways; or
            what its reader raises.
    """
    if root is None:
        raise UserError(f"No dataset: set data.root to its folder. {expected}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"The dataset folder {printable(folder)} does not exist. {expected}")

    tree = Tree(folder)
    names = ", ".join(layout.name for layout in layouts)
    if stated is not None:
        layout = next((layout for layout in layouts if layout.name == stated), None)
        if layout is None:
            raise UserError(f"data.layout is {printable(stated)}; expected one of {names}.")
        if layout.find(tree) is None:
            raise UserError(f"{printable(folder)} does not have the layout {stated}: expected {layout.expected}.")
        return layout.open(tree)

    matching = [(layout, evidence) for layout in layouts if (evidence := layout.find(tree)) is not None]
    if not matching:
        raise UserError(
            f"{printable(folder)} holds {_content(tree)}, which is none of the layouts known ({names}). {expected}"
        )
    if len(matching) > 1:
        readings = " or as ".join(f"{layout.name} ({evidence})" for layout, evidence in matching)
        options = " or ".join(f"--data.layout {layout.name}" for layout, _ in matching)
        raise UserError(f"{printable(folder)} can be read as {readings}: state which with {options}.")

    ((layout, evidence),) = matching
    rank_zero_only(say)(f"data.root is read as {layout.name}: {evidence}")
    return layout.open(tree)


def _content(tree: Tree) -> str:
    """A few of the names in a dataset's folder, for messages."""
    names = [f"{name}/" for name in tree.folders()] + tree.files()
    if not names:
        return "nothing"
    return ", ".join(map(printable, names[:6])) + (f", … ({len(names)} in all)" if len(names) > 6 else "")


class Splits(Protocol):
    """Which splits a dataset has. The readers of all layouts say it."""

    @property
    def has_splits(self) -> bool:
        """Whether the dataset tells its splits apart; without, all of it is the training's."""

    @property
    def validation_settings(self) -> str | None:
        """The settings that name other validation data, for messages; None where there are no such."""

    def has(self, split: Split) -> bool:
        """Whether there are data of a split."""

    def place(self, split: Split) -> str:
        """Where the data of a split are, or should be, for messages."""


def share_to_set_aside(source: Splits, stated: float | None) -> float | None:
    """What share of the training samples is to be set aside for validation; None where it has data of its own.

    Args:
        source: The dataset.
        stated: What data.val_share states.

    Raises:
        UserError: It is out of its range, or stated where there are validation data.
    """
    if stated is not None and not 0 < stated < 1:
        raise UserError(f"data.val_share is {stated:g}; expected a share of the training samples, above 0 and below 1.")
    if source.has("val"):
        if stated is not None:
            raise UserError(
                f"data.val_share is {stated:g}, but there are validation data: {printable(source.place('val'))}. "
                "Remove the setting, or take them away."
            )
        return None
    if stated is None and not source.has_splits:
        return VAL_SHARE
    return stated


def set_aside(groups: Sequence[int], share: float, seed: int) -> np.ndarray:
    """Which samples are set aside for validation, bool (samples,): of each group the same share, one at least.

    Args:
        groups: The group of each sample, as its class; groups of one sample stay in training.
        share: What share is set aside, in (0, 1).
        seed: Other seeds draw other samples.
    """
    generator = np.random.default_rng(seed)
    members = np.asarray(groups)
    aside = np.zeros(len(members), dtype=bool)
    for group in np.unique(members):
        (positions,) = np.nonzero(members == group)
        number = min(len(positions) - 1, max(1, round(len(positions) * share)))
        aside[generator.permutation(positions)[:number]] = True
    return aside


def first_labels(labels: Iterable[int | list[int]]) -> list[int]:
    """The groups of samples by their labels: samples of several go by the first one, those of none are one group."""
    return [label if isinstance(label, int) else (label or [-1])[0] for label in labels]


SplitSource = TypeVar("SplitSource", bound=Splits)


class SetAside(Generic[SplitSource]):
    """A dataset without validation data, of whose training samples a share is set aside for that.

    The readers of each task derive from it what reads the samples.

    Args:
        source: The dataset.
        share: What share is set aside, in (0, 1).
        seed: Which samples.
    """

    has_splits = True
    validation_settings = None
    samples_name = "images"
    """What messages call samples."""

    def __init__(self, source: SplitSource, share: float, seed: int) -> None:
        self.source = source
        self._share = share
        self._seed = seed

    def has(self, split: Split) -> bool:
        """Whether there are data of a split; of validation where there are training data."""
        return self.source.has(source_split(split))

    def place(self, split: Split) -> str:
        """Where the data of a split are."""
        return self.source.place(source_split(split))

    def kept(self, split: Split, groups: Sequence[int]) -> list[int]:
        """Which of the training samples are those of training or of validation, which is said; of tests all are.

        Args:
            split: The split.
            groups: The group of each sample, as its class.
        """
        if split == "test":
            return list(range(len(groups)))
        aside = set_aside(groups, self._share, self._seed)
        if split == "val":
            rank_zero_only(say)(
                f"{np.count_nonzero(aside)} of {len(aside)} training {self.samples_name} are set aside for validation "
                f"(data.val_share {self._share:g})"
            )
        (indices,) = np.nonzero(aside if split == "val" else ~aside)
        return [int(index) for index in indices]


def on_disk(source: Any) -> Any:
    """The dataset that a reader reads, without what sets samples aside."""
    return source.source if isinstance(source, SetAside) else source


def source_split(split: Split) -> Split:
    """The split that one with data set aside is read from."""
    return "train" if split == "val" else split
