"""Datasets of the Hugging Face hub on disk: parquet files, as downloaded, or what `datasets` writes by `save_to_disk`.

The format: https://huggingface.co/docs/datasets/image_dataset and https://huggingface.co/docs/hub/datasets-image. Files
are read by pyarrow alone: the library `datasets` would copy parquet into a cache of its own, may ask the hub, and is
needed for nothing else. No script of a dataset is run, and what files say is data: neither format holds code.

Images in Arrow files lie there unchanged, so that each is read by itself. Of a parquet file a whole row group has to be
read and uncompressed for any of its images; processes keep those that they have read last.
"""

import errno
import importlib
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.datamodules.classes import Classes, abbreviate
from swinv2_tasks.datamodules.layouts import SPLIT_NAMES, Split, Tree, join, split_of
from swinv2_tasks.datamodules.readers.image_tables import LABEL_COLUMNS, name_words
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
from swinv2_tasks.errors import UserError, reason_of
from swinv2_tasks.outside_files import (
    MOST_CONFIG_BYTES,
    ByteRange,
    StoredFile,
    load_json,
    load_yaml,
    open_file,
    read_json,
    read_text,
)
from swinv2_tasks.text import printable, say

IMAGE_COLUMNS = ("image", "img", "images", "picture", "jpg", "png")
"""What the column of images is called, by descending preference, where several hold bytes."""

MOST_GROUP_BYTES = 2**31
"""Of a parquet file's row group, uncompressed: what reading one image of it takes."""

LARGE_GROUP_BYTES = 2**26
"""Of a row group, from which on reading in random order is slow, which is said."""

_SAVED_DICT, _SAVED, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"

_SHARD = re.compile(r".+-\d{5}-of-\d{5}(-[0-9a-f]+)?\.parquet")


def arrow_module(name: str = "pyarrow") -> Any:
    """Imports a module of pyarrow, and returns it.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"Datasets in parquet and Arrow files need pyarrow ({error}): pip install 'swinv2-tasks[datasets]'."
        ) from error


# ---- recognizing


@dataclass(frozen=True)
class HubFiles:
    """The files of a dataset.

    Attributes:
        evidence: What shows the layout.
        saved: Folders that `save_to_disk` wrote, relative to the dataset's, and their splits.
        parquet: Parquet files, and theirs.
    """

    evidence: str
    saved: Mapping[str, Split | None]
    parquet: Mapping[str, Split | None]


def hub_files(tree: Tree) -> HubFiles | None:
    """The files of a dataset in a folder; None where there are none."""
    if tree.has_file(_SAVED_DICT):
        folders = [name for name in tree.folders() if tree.has_file(join(name, _SAVED))]
        return HubFiles(_SAVED_DICT, {name: split_of(name) for name in folders}, {})
    if tree.has_file(_SAVED) and tree.has_file(_INFO):
        return HubFiles(f"{_SAVED}, {_INFO}", {"": None}, {})

    parquet: dict[str, Split | None] = {}
    for folder in [name for name in ("", "data") if not name or tree.has_folder(name)]:
        for name in tree.files(folder):
            if name.endswith(".parquet"):
                split = next((split for word in name_words(name) if (split := split_of(word)) is not None), None)
                parquet[join(folder, name)] = split
        for split in SPLIT_NAMES:
            for inner in [join(folder, name) for name in tree.folders(folder) if split_of(name) == split]:
                parquet |= {join(inner, name): split for name in tree.files(inner) if name.endswith(".parquet")}
    return HubFiles(abbreviate(list(parquet), 3), {}, parquet) if parquet else None


def find_hub_dataset(tree: Tree) -> str | None:
    """The files that show this layout."""
    files = hub_files(tree)
    return None if files is None else files.evidence


# ---- reading


class HubDataset(StoredImages):
    """The labeled images of a dataset in parquet or Arrow files.

    Args:
        tree: The dataset's folder.
        labels: How many labels an image has, as a setting states it; None: what the column's type shows.
        label_column: The column of labels; None: what it is usually called.

    Raises:
        UserError: Only some names state a split.
    """

    def __init__(self, tree: Tree, labels: Labels | None = None, label_column: str | None = None) -> None:
        files = hub_files(tree)
        assert files is not None
        self._is_saved = bool(files.saved)
        self._label_column = label_column
        named = _without_other_splits(files.saved or files.parquet, self._is_saved)
        containers, has_splits = by_split(((split, name) for name, split in named.items()), tree.root)
        super().__init__(tree.root, containers, has_splits, labels)

    def read(self) -> StoredContent:
        """The images and labels of all files."""
        codes = CellCodes()
        splits: dict[Split, StoredSplit] = {}
        self._names: list[str] | None = None
        self._several = False
        for split, names in self.containers.items():
            stored = self._read_split(names, codes)
            if split == "test" and stored is None:
                rank_zero_only(say)(f"{printable(self.place(split))} has no labels and is left out")
            elif stored is None:
                raise UserError(f"{printable(self.place(split))} has no labels: all are -1, which is none.")
            else:
                splits[split] = stored
        classes = None if self._names is None else Classes(self._names, self._names)
        several = True if self._several else None if self._names is None else False
        return StoredContent(splits, codes.cells, classes, several)

    def has(self, split: Split) -> bool:
        """Whether there are files of a split, with labels."""
        return super().has(split) and (split != "test" or split in self._content.splits)

    def _read_split(self, names: Sequence[str], codes: CellCodes) -> StoredSplit | None:
        """The images of a split; None where none has a label, as those of tests."""
        builder = StoredFilesBuilder(ByteRange if self._is_saved else ParquetCell)
        own: list[int] = []
        unlabeled = 0
        for path, folder in self._files(names):
            arrow = arrow_module()
            with _told(path, arrow):
                source = _ArrowFile(path) if self._is_saved else _ParquetFile(path)
                columns = self._columns(path, source.schema, folder)
                builder.open(path)
                for rows in source.rows(columns.image, columns.label):
                    for number, start, extent, name, value in rows:
                        if columns.names is not None and value == -1:
                            unlabeled += 1
                        builder.add(f"{number}/{name}" if name else str(number), start, extent)
                        own.append(codes.code(columns.cell(path, number, value)))
        if not own:
            raise UserError(f"There are no images in {abbreviate([str(self.root / name) for name in names], 3)}.")
        if unlabeled == len(own):
            return None
        return StoredSplit(builder.build(), np.array(own, dtype=np.int64))

    def _files(self, names: Sequence[str]) -> Iterator[tuple[str, Path]]:
        """The files of a split, and the folders in which what describes them may be."""
        for name in names:
            path = self.root / name
            if not self._is_saved:
                yield str(path), path.parent
                continue
            for file in _saved_files(path):
                yield str(path / file), path

    def _columns(self, path: str, schema: Any, folder: Path) -> "_Columns":
        """Which columns of a file have the images and labels; the same in all files."""
        columns = _find_columns(path, schema, _features(schema, [folder, self.root]), self._label_column)
        if columns.names is not None:
            if self._names is not None and self._names != columns.names:
                raise UserError(
                    f"{printable(path)} has the classes {abbreviate(columns.names)}, other files "
                    f"{abbreviate(self._names)}. Files of one dataset have the same."
                )
            if self._names is None:
                how = f"labels are those of the column {printable(columns.label)}"
                rank_zero_only(say)(f"{printable(self.root)}: {how} ({abbreviate(columns.names)})")
            self._names = columns.names
        self._several |= columns.has_lists
        return columns


def _without_other_splits(files: Mapping[str, Split | None], is_saved: bool) -> dict[str, Split | None]:
    """The files without those of splits of other names, where some have known ones; which these are is said."""
    if not any(files.values()):
        return dict(files)
    others = [name for name, split in files.items() if split is None and (is_saved or _SHARD.fullmatch(name))]
    if others:
        rank_zero_only(say)(f"splits of other names than train, val and test are left out: {abbreviate(others, 3)}")
    return {name: split for name, split in files.items() if name not in others}


@contextmanager
def _told(path: str, arrow: Any) -> Iterator[None]:
    """Makes a message of what pyarrow raises for a file that is not in order."""
    try:
        yield
    except UserError:
        raise
    except (arrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or reason_of(error)
        raise UserError(
            f"Cannot read {printable(path)}: {printable(reason)}. It is corrupt or truncated: copy it again."
        ) from error


def _saved_files(folder: Path) -> list[str]:
    """The Arrow files of a folder that `save_to_disk` wrote, in their order."""
    state = _json(folder / _SAVED)
    files = state.get("_data_files") if isinstance(state, dict) else None
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in files or [None]]
    if not all(isinstance(name, str) and re.fullmatch(r"[^/\0]+\.arrow", name) for name in names):
        raise UserError(f"{printable(folder / _SAVED)} names no Arrow files: save the dataset again.")
    if state.get("_indices_data_files"):
        raise UserError(
            f"{printable(folder)} has been saved with an order of its own by an old version of `datasets`: load it and "
            "save it again."
        )
    return [str(name) for name in names]


def _json(path: Path) -> Any:
    try:
        return read_json(path, MOST_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or reason_of(error)
        raise UserError(f"Cannot read {printable(path)}: {printable(reason)}.") from error


# ---- columns


@dataclass(frozen=True)
class _Columns:
    """Which columns of a file have the images and labels."""

    image: str
    label: str
    names: list[str] | None
    """Of the classes, where labels are their numbers."""
    has_lists: bool
    """Whether a label is a list."""

    def cell(self, path: str, row: int, value: Any) -> Cell:
        """The label of an image."""
        labels = value if isinstance(value, list) else [value]
        if self.names is not None:
            labels = [label for label in labels if label != -1]
            if not all(isinstance(label, int) and 0 <= label < len(self.names) for label in labels):
                raise UserError(
                    f"{printable(path)}, row {row}: the label {printable(value)} is no number below {len(self.names)}."
                )
            return tuple(self.names[label] for label in labels)
        label = label_texts(value if self.has_lists else labels[0])
        if label is None:
            raise UserError(f"{printable(path)}, row {row}: {printable(str(value)[:60])} is no label.")
        return label


def image_column(schema: Any) -> str:
    """The column of a file that has the images: a structure of bytes and a path, or bytes.

    Raises:
        ValueError: There is none, or several of which none is called as images are.
    """
    types = arrow_module("pyarrow.types")

    def is_bytes(data_type: Any) -> bool:
        return types.is_binary(data_type) or types.is_large_binary(data_type)

    def holds_images(data_type: Any) -> bool:
        if not types.is_struct(data_type):
            return is_bytes(data_type)
        number = data_type.get_field_index("bytes")
        return number >= 0 and is_bytes(data_type.field(number).type)

    columns = [field.name for field in schema if holds_images(field.type)]
    usual = [name for name in IMAGE_COLUMNS if name in columns]
    if len(columns) == 1 or usual:
        return (usual or columns)[0]
    raise ValueError(
        f"it has the columns {abbreviate(schema.names)}, of which {'several' if columns else 'none'} may hold images; "
        "expected `image`"
    )


def _find_columns(path: str, schema: Any, features: Mapping[str, Any], stated: str | None) -> _Columns:
    types = arrow_module("pyarrow.types")
    try:
        image = image_column(schema)
    except ValueError as error:
        raise UserError(f"Cannot read images from {printable(path)}: {error}.") from error
    of_classes = {name: names for name in schema.names if (names := _class_names(features.get(name))) is not None}
    candidates = [name for name in LABEL_COLUMNS if name in schema.names and name != image]
    label = stated or next(iter([*candidates, *of_classes]), None)
    if label is None or label not in schema.names or (not stated and not candidates and len(of_classes) > 1):
        raise UserError(
            f"{printable(path)} has the columns {abbreviate(schema.names, 20)}: which of them has the labels? State it "
            "with --data.label_column."
        )
    data_type = schema.field(label).type
    has_lists = types.is_list(data_type) or types.is_large_list(data_type) or types.is_fixed_size_list(data_type)
    return _Columns(image, label, of_classes.get(label), has_lists)


def _class_names(feature: Any) -> list[str] | None:
    """The names of the classes that a column's numbers stand for, by its description; None where they are none."""
    while isinstance(feature, dict) and "feature" in feature:
        feature = feature["feature"]
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return names if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None


def _features(schema: Any, folders: Sequence[Path]) -> Mapping[str, Any]:
    """What describes the columns: in the file itself, or beside it in dataset_info.json or in README.md."""
    stated = (schema.metadata or {}).get(b"huggingface")
    if stated is not None and len(stated) <= MOST_CONFIG_BYTES:
        content = load_json(stated)
        features = content.get("info", {}).get("features") if isinstance(content, dict) else None
        if isinstance(features, dict):
            return features
    for folder in dict.fromkeys(folders):
        for read in (_info_features, _readme_features):
            if features := read(folder):
                return features
    return {}


def _info_features(folder: Path) -> Mapping[str, Any] | None:
    path = folder / _INFO
    features = _json(path).get("features") if path.is_file() else None
    return features if isinstance(features, dict) else None


def _readme_features(folder: Path) -> Mapping[str, Any] | None:
    """The columns that the head of a dataset's card describes, in the form of dataset_info.json."""
    path = folder / "README.md"
    if not path.is_file():
        return None
    try:
        text = read_text(path, MOST_CONFIG_BYTES)
        head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        card = load_yaml(head[1]) if head else None
    except Exception as error:  # of YAML that is none, which says nothing of the images
        rank_zero_only(say)(f"{printable(path)} is not read: {reason_of(error)}")
        return None
    info = card.get("dataset_info") if isinstance(card, dict) else None
    if isinstance(info, list) and len(info) == 1:
        info = info[0]
    features = info.get("features") if isinstance(info, dict) else None
    if not isinstance(features, list):
        return None
    named = [entry for entry in features if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
    return {entry["name"]: _as_feature(entry) for entry in named}


def _as_feature(entry: Mapping[str, Any]) -> Any:
    """A column's description in a card, as JSON has it; of classes alone."""
    for key in ("list", "sequence"):
        if isinstance(entry.get(key), dict):
            return {"feature": _as_feature({"dtype": entry[key]})}
    dtype = entry.get("dtype")
    while isinstance(dtype, dict) and isinstance(dtype.get("dtype"), dict):
        dtype = dtype["dtype"]
    label = dtype.get("class_label") if isinstance(dtype, dict) else None
    names = label.get("names") if isinstance(label, dict) else None
    if isinstance(names, dict):
        numbered = {str(number): name for number, name in names.items()}
        names = [numbered.get(str(number)) for number in range(len(numbered))]
    return {"_type": "ClassLabel", "names": names}


# ---- files

_Row = tuple[int, int, int, str, Any]
"""Number of a row in its file, where its image lies (two numbers), what the image is called, and its label."""


class _ArrowFile:
    """An Arrow file, in the format of streams or of files, whose images lie in it unchanged."""

    def __init__(self, path: str) -> None:
        arrow = arrow_module()
        open_file(path).close()  # refuses pipes
        self._path = path
        self._map = arrow.memory_map(path)
        self._content = self._map.read_buffer()
        self._map.seek(0)
        is_file = self._content.slice(0, min(6, self._content.size)).to_pybytes() == b"ARROW1"
        ipc = arrow_module("pyarrow.ipc")
        self._reader = ipc.open_file(self._map) if is_file else ipc.open_stream(self._map)
        self.schema = self._reader.schema
        self._is_file = is_file

    def _batches(self) -> Iterator[Any]:
        if not self._is_file:
            yield from self._reader
            return
        for number in range(self._reader.num_record_batches):
            yield self._reader.get_batch(number)

    def rows(self, image: str, label: str) -> Iterator[Iterator[_Row]]:
        """The rows of each batch."""
        before = 0
        for batch in self._batches():
            images, labels = (_storage(batch.column(name)) for name in (image, label))
            for column in (images, labels):
                column.validate(full=True)
            content, names = _parts_of(images)
            if images.null_count or content.null_count:
                raise UserError(
                    f"{printable(self._path)} has rows without an image's bytes, which name files elsewhere: save the "
                    "dataset by a newer version of `datasets`, which puts them in."
                )
            starts, ends = self._ranges(content)
            numbers = range(before, before + batch.num_rows)
            yield zip(numbers, starts, ends - starts, names, labels.to_pylist(), strict=True)
            before += batch.num_rows

    def _ranges(self, content: Any) -> tuple[np.ndarray, np.ndarray]:
        """Where the bytes of each row begin and end in the file."""
        _, offsets, values = content.buffers()
        is_large = arrow_module("pyarrow.types").is_large_binary(content.type)
        numbers = np.frombuffer(offsets, np.int64 if is_large else np.int32)
        numbers = numbers[content.offset : content.offset + len(content) + 1].astype(np.int64)
        first = values.address - self._content.address if values is not None else 0
        if not 0 <= first <= self._content.size or first + int(numbers.max(initial=0)) > self._content.size:
            raise UserError(
                f"{printable(self._path)} is compressed, so that no image in it can be read by itself: save the "
                "dataset without compression."
            )
        return first + numbers[:-1], first + numbers[1:]


class _ParquetFile:
    """A parquet file, of which the labels are read, and no images."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = open_parquet(path)
        self.schema = self._file.schema_arrow

    def rows(self, image: str, label: str) -> Iterator[Iterator[_Row]]:
        """The rows of each group."""
        metadata = self._file.metadata
        self._check_groups(metadata)
        has_path = any(metadata.schema.column(k).path == f"{image}.path" for k in range(metadata.num_columns))
        before = 0
        for group in range(metadata.num_row_groups):
            columns = [label, *([f"{image}.path"] if has_path else [])]
            table = self._file.read_row_group(group, columns=columns, use_threads=False)
            labels = table.column(label).to_pylist()
            names = [""] * len(labels)
            if has_path:
                paths = table.column(image).combine_chunks().field("path").to_pylist()
                names = [_last_part(path) for path in paths]
            numbers = range(before, before + len(labels))
            yield zip(numbers, [group] * len(labels), range(len(labels)), names, labels, strict=True)
            before += len(labels)

    def _check_groups(self, metadata: Any) -> None:
        """Refuses row groups that take too much, and says where reading in random order is slow."""
        sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
        largest = max(sizes, default=0)
        if largest > MOST_GROUP_BYTES:
            raise UserError(
                f"{printable(self._path)} has row groups of {largest:,} bytes, all of which would have to be read for "
                "one image: write it again with smaller ones, as of 100 rows."
            )
        if largest > LARGE_GROUP_BYTES:
            rank_zero_only(say)(
                f"{printable(self._path)} has row groups of up to {largest / 1e6:.0f} MB, all of which is read for one "
                "image where it is not in memory. Faster: load_dataset(…).save_to_disk(…), or `data optimize`"
            )


def open_parquet(path: str) -> Any:
    """A parquet file, opened by pyarrow in the calling thread alone."""
    open_file(path).close()  # refuses pipes
    return arrow_module("pyarrow.parquet").ParquetFile(path, pre_buffer=False)


def _storage(column: Any) -> Any:
    """A column without the type that another package gave it."""
    return getattr(column, "storage", column)


def _parts_of(images: Any) -> tuple[Any, list[str]]:
    """The bytes of images, and what they are called."""
    if not arrow_module("pyarrow.types").is_struct(images.type):
        return images, [""] * len(images)
    has_path = images.type.get_field_index("path") >= 0
    names = [_last_part(path) for path in images.field("path").to_pylist()] if has_path else [""] * len(images)
    return images.field("bytes"), names


def _last_part(path: Any) -> str:
    return path.rpartition("/")[2] if isinstance(path, str) else ""


# ---- images in parquet files


class ParquetCell(StoredFile):
    """An image in a parquet file: ``start`` is its row group, ``extent`` its row in it."""

    def read(self, most: int | None = None) -> bytes:
        """Its content."""
        arrow = arrow_module()
        try:
            content = _GROUPS.column(self.container, self.start)[self.extent].as_py()
        except (arrow.ArrowException, ValueError, IndexError) as error:
            raise OSError(errno.EIO, f"{self.container} is corrupt ({reason_of(error)})", str(self)) from error
        if content is None:
            raise OSError(errno.ENODATA, "the row has no bytes", str(self))
        if most is not None and len(content) > most:
            raise OSError(errno.EFBIG, f"it has {len(content):,} bytes, such a file at most {most:,}", str(self))
        return content


class _RowGroups:
    """The images of the row groups that a process has read last, up to a number of bytes, and the files open for it."""

    MOST_BYTES = 2**28
    MOST_FILES = 64

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._files: OrderedDict[str, tuple[Any, str]] = OrderedDict()
        self._columns: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def column(self, path: str, group: int) -> Any:
        """The bytes of the images in a row group."""
        if self._process != os.getpid():  # a forked process shares no open file with its parent
            self._forget()
        key = path, group
        if key not in self._columns:
            file, image = self._open(path)
            column = _storage(file.read_row_group(group, columns=[image], use_threads=False).column(image))
            content, _ = _parts_of(column.combine_chunks())
            self._columns[key] = content
            while len(self._columns) > 1 and sum(other.nbytes for other in self._columns.values()) > self.MOST_BYTES:
                self._columns.popitem(last=False)
        self._columns.move_to_end(key)
        return self._columns[key]

    def _open(self, path: str) -> tuple[Any, str]:
        if path not in self._files:
            file = open_parquet(path)
            self._files[path] = file, image_column(file.schema_arrow)
            while len(self._files) > self.MOST_FILES:
                self._files.popitem(last=False)
        self._files.move_to_end(path)
        return self._files[path]


_GROUPS = _RowGroups()
