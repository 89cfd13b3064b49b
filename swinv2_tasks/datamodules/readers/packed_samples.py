"""Labeled images that lie within larger files, in a few arrays: millions of them take little memory in each worker."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from swinv2_tasks.datamodules.readers.image_lists import Sample
from swinv2_tasks.datamodules.readers.packed_images import PackedNames, pack_names
from swinv2_tasks.outside_files import StoredFile

Label = int | list[int]


@dataclass(frozen=True)
class StoredFiles:
    """Files within a few others.

    Attributes:
        file_class: What they are, as `ByteRange`.
        containers: Paths of the files that they lie in.
        owners: Which of these each lies in, int64 (files,).
        starts: The `start` of each, int64 (files,).
        extents: The `extent` of each, int64 (files,).
        names: What each is called within its container.
    """

    file_class: type[StoredFile]
    containers: Sequence[str]
    owners: np.ndarray
    starts: np.ndarray
    extents: np.ndarray
    names: PackedNames

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, index: int) -> StoredFile:
        container = self.containers[self.owners[index]]
        name = f"{container}/{self.names[index]}"
        return self.file_class(name, container, int(self.starts[index]), int(self.extents[index]))

    def select(self, indices: np.ndarray) -> "StoredFiles":
        """Some of the files, in the order of their indices."""
        return replace(
            self,
            owners=self.owners[indices],
            starts=self.starts[indices],
            extents=self.extents[indices],
            names=self.names.select(indices),
        )


class StoredFilesBuilder:
    """Makes `StoredFiles`, file by file.

    Args:
        file_class: What they are.
    """

    def __init__(self, file_class: type[StoredFile]) -> None:
        self._file_class = file_class
        self._containers: list[str] = []
        self._owners, self._starts, self._extents = array("q"), array("q"), array("q")
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._owners)

    def open(self, container: str) -> None:
        """Further files lie in this one."""
        self._containers.append(container)

    def add(self, name: str, start: int, extent: int) -> None:
        """Adds a file of the container that was opened last."""
        self._owners.append(len(self._containers) - 1)
        self._starts.append(start)
        self._extents.append(extent)
        self._names.append(name)

    def build(self) -> StoredFiles:
        """The files."""
        owners, starts, extents = map(np.asarray, (self._owners, self._starts, self._extents))
        return StoredFiles(self._file_class, self._containers, owners, starts, extents, pack_names(self._names))


class PackedSamples(Sequence[Sample]):
    """Images within other files, and their labels.

    Args:
        files: The images.
        codes: Which of the labels each has, int64 (images,).
        labels: The different labels: all are a class index, or all are lists of these.
    """

    def __init__(self, files: StoredFiles, codes: np.ndarray, labels: Sequence[Label]) -> None:
        self.files = files
        self._codes = codes
        self._labels = labels

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self.files[index], self._labels[self._codes[index]]

    @property
    def labels(self) -> list[Label]:
        """The label of each image."""
        return [self._labels[code] for code in self._codes.tolist()]

    def select(self, indices: Sequence[int] | np.ndarray) -> "PackedSamples":
        """Some of the samples, in the order of their indices."""
        rows = np.asarray(indices, dtype=np.int64)
        return PackedSamples(self.files.select(rows), self._codes[rows], self._labels)

    def relabel(self, change: Callable[[Label], Label | None]) -> "PackedSamples":
        """The samples with other labels, without those whose label becomes None."""
        changed = [change(label) for label in self._labels]
        is_kept = np.array([label is not None for label in changed], dtype=bool)
        (rows,) = np.nonzero(is_kept[self._codes]) if len(self._labels) else (np.empty(0, np.int64),)
        kept = self.select(rows)
        kept._labels = [[] if label is None else label for label in changed]  # of a code that no sample has any more
        return kept


def select(samples: Sequence[Sample], indices: Iterable[int]) -> Sequence[Sample]:
    """Some of the samples, in the order of their indices; packed ones stay so."""
    if isinstance(samples, PackedSamples):
        return samples.select(list(indices))
    return [samples[index] for index in indices]


def relabel(samples: Sequence[Sample], change: Callable[[Label], Label | None]) -> Sequence[Sample]:
    """Samples with other labels, without those whose label becomes None; packed ones stay so."""
    if isinstance(samples, PackedSamples):
        return samples.relabel(change)
    changed = [(path, change(label)) for path, label in samples]
    return [(path, label) for path, label in changed if label is not None]


def labels_of(samples: Sequence[Sample]) -> list[Label]:
    """The label of each sample."""
    return samples.labels if isinstance(samples, PackedSamples) else [label for _, label in samples]
