"""Images in shards: a few large files that hold the bytes of many image files, on disk or behind a URL.

The shards are litdata's (https://github.com/Lightning-AI/litdata): chunk-0-N.bin, listed in an index.json. Each sample
is three byte strings: the image file as it was, its class id, its path. Beside them order.npy says where in the shards
each sample of the sorted dataset lies, as training images are stored in a random order: so a few shards at a time are a
fair draw of all classes. Indices of other contents are refused before litdata reads them: it would unpickle some kinds.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import re
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_tasks.datamodules.classes import MOST_SAMPLES, Classes
from swinv2_tasks.errors import UserError, reason_of
from swinv2_tasks.files import replace_file
from swinv2_tasks.outside_files import load_json, read_bytes

INDEX = "index.json"
ORDER = "order.npy"

_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
_TUPLE = {"type": "builtins.tuple", "context": "null", "children_spec": [_LEAF] * 3}
CONFIG = {
    "chunk_bytes": None,
    "chunk_size": None,
    "compression": None,
    "data_format": ["bytes", "bytes", "bytes"],
    "data_spec": json.dumps([1, _TUPLE]),
    "encryption": None,
    "item_loader": "PyTreeLoader",
}
"""How litdata is to read a sample: as a tuple of byte strings. With other settings it may unpickle them."""


@dataclass(frozen=True)
class Streaming:
    """How shards are read.

    Attributes:
        window: Shards that training images are shuffled among at a time; 0: all, which gives the batches of the folder
            that the shards were made of. Shards follow one another in a random order, and each sample moves back in it
            by up to this many.
        cache_dir: Folder that shards behind a URL are copied to; by default in the user's cache folder.
        cache_gb: Size of that folder in 10⁹ bytes: the shards used longest ago make room for others.
    """

    window: int = 0
    cache_dir: str | None = None
    cache_gb: float = 100.0

    def __post_init__(self) -> None:
        if self.window < 0 or self.cache_gb <= 0:
            raise UserError(
                f"data.stream.window is {self.window}, data.stream.cache_gb {self.cache_gb:g}; expected at least 0, "
                "and above 0."
            )

    @property
    def cache(self) -> Path:
        """A folder of this package alone, as files are removed from it."""
        parent = self.cache_dir or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(parent).expanduser() / "swinv2_tasks_shards"


def is_url(location: str) -> bool:
    """Whether a location is a URL rather than a path."""
    return "://" in location


def join_location(root: str, name: str) -> str:
    """A folder in a dataset, whose location is a path or a URL."""
    if is_url(root):
        return name if is_url(name) else f"{root.rstrip('/')}/{name}"
    return str(Path(root).expanduser() / name)


def open_shards(location: str, streaming: Streaming) -> Shards | None:
    """The shards in a folder; None if it has no index of such.

    Args:
        location: The folder's path or its URL, of any protocol that fsspec knows.
        streaming: How they are read.

    Raises:
        UserError: The location cannot be reached, its index was not written for images by this package, or a shard is
            missing or cut off.
    """
    if location.startswith("file://"):
        location = location.removeprefix("file://")
    index = _read(location, INDEX)
    return None if index is None else Shards(location, index, streaming)


class Shards:
    """The samples of a split, in the order of the folder that they were made of.

    Args:
        location: Path or URL of the folder.
        index: The content of its index.
        streaming: How they are read.

    Attributes:
        classes: The class list of the dataset.
        left_out: Names of the images that the shards were written without, since they could not be read.

    Raises:
        UserError: See `open_shards`.
    """

    def __init__(self, location: str, index: bytes, streaming: Streaming) -> None:
        self.location = location
        self.streaming = streaming
        self.remote = is_url(location)
        self.chunks, self.classes = _parse_index(index, join_location(location, INDEX))
        self.left_out = list(load_json(index).get("faulty", ()))

        self._class_ids = frozenset(self.classes.ids)
        sizes = [chunk["chunk_size"] for chunk in self.chunks]
        self.starts = np.cumsum([0, *sizes])[:-1].tolist()
        self.order = self._read_order()

        key = hashlib.sha256(location.encode() + index).hexdigest()[:16]
        self.folder = streaming.cache / key if self.remote else Path(location)
        self._reader: Any = None

        if self.remote:
            replace_file(self.folder / INDEX, lambda path: path.write_bytes(index))
        else:
            for number in range(len(self.chunks)):
                self._check(number)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[bytes, str, str]:
        """A sample: the content of its image file, its class id, its path as seen from the dataset's folder."""
        stored = int(self.order[index])
        number = bisect_right(self.starts, stored) - 1
        tries = 5 if self.remote else 1  # other processes may remove the shard from the cache in between
        while True:
            path, tries = self._check(number), tries - 1
            try:
                content, class_id, name = map(bytes, self._sample(number, stored))
                if os.fsdecode(class_id) not in self._class_ids:
                    raise ValueError("it has no class")
                return content, os.fsdecode(class_id), os.fsdecode(name)
            except UserError:
                raise
            except Exception as error:  # corrupt files make litdata raise anything
                if not tries:
                    raise UserError(
                        f"Cannot read sample {index} of the shard {path}: {reason_of(error)}. It is "
                        "corrupt. Copy it again, or write the shards again."
                    ) from error

    def name(self, index: int) -> str:
        """What messages call a sample: its path, where it can be read."""
        try:
            return self[index][2]
        except UserError:
            return f"{self.location}, sample {index}"

    def shuffling(self) -> Callable[[np.random.Generator], np.ndarray]:
        """Draws an epoch's order of the samples: see `Streaming.window`.

        Raises:
            UserError: The cache would not hold the shards that are needed at a time.
        """
        sizes = [chunk["chunk_bytes"] for chunk in self.chunks]
        window = self.streaming.window
        needed = (min(sum(sizes), (window + 2) * max(sizes)) if window else sum(sizes)) / 1e9
        if self.remote and needed > self.streaming.cache_gb:
            raise UserError(
                f"{self.location} is shuffled among {window or 'all'} shards at a time, {needed:.3g} GB; "
                f"data.stream.cache_gb allows {self.streaming.cache_gb:g}, so shards would be fetched over and over. "
                "Raise it, or set data.stream.window to fewer shards, such as 16."
            )
        return self._shuffled

    def _shuffled(self, draw: np.random.Generator) -> np.ndarray:
        if not self.streaming.window:
            return draw.permutation(len(self))
        shard = np.searchsorted(self.starts, self.order, side="right") - 1
        turn = draw.permutation(len(self.chunks))
        return np.argsort(turn[shard] + self.streaming.window * draw.random(len(self)), kind="stable")

    def _sample(self, number: int, stored: int) -> Any:
        litdata_module()
        from litdata.streaming.item_loader import PyTreeLoader
        from litdata.streaming.reader import BinaryReader
        from litdata.streaming.sampler import ChunkedIndex

        if self._reader is None:
            loader = PyTreeLoader()
            self._reader = BinaryReader(str(self.folder), item_loader=loader), loader
            self._reader[0].get_length()  # makes it read the index
        reader, loader = self._reader
        raw = reader.read_item_bytes(ChunkedIndex(index=stored, chunk_index=number), self.starts[number])
        return loader.load_item_from_bytes(raw, number)

    def _check(self, number: int) -> Path:
        """The file of a shard, fetched where it is not there yet, made sure that it is whole."""
        name, size = self.chunks[number]["filename"], self.chunks[number]["chunk_bytes"]
        path = self.folder / name
        present = _size(path)
        if self.remote and present != size:
            self._fetch(name, size)
        elif self.remote:
            with suppress(OSError):  # another process has just removed it, or owns it
                os.utime(path)  # used just now
        elif present != size:
            problem = "is missing" if present is None else f"has {present:,} bytes, its index says {size:,}"
            raise UserError(f"The shard {path} {problem}. Copy it again, or write the shards again.")
        return path

    def _fetch(self, name: str, size: int) -> None:
        from filelock import FileLock

        path, part, url = self.folder / name, self.folder / f".{name}.part", join_location(self.location, name)
        with FileLock(self.folder / f".{name}.lock"):
            if _size(path) == size:
                return  # another process was faster
            _request(url, lambda files, there: files.get_file(there, str(part)))
            if (fetched := _size(part)) != size:
                part.unlink(missing_ok=True)
                raise UserError(f"The shard {url} has {fetched:,} bytes, its index says {size:,}. Upload it again.")
            os.replace(part, path)
        self._make_room(path)

    def _make_room(self, new: Path) -> None:
        """Removes the shards from the cache that were used longest ago, until the others fit."""
        shards = [(stat.st_mtime, stat.st_size, path) for path, stat in _stats(self.streaming.cache)]
        excess = sum(size for _, size, _ in shards) - self.streaming.cache_gb * 1e9
        for _, size, path in sorted(shards):
            if excess > 0 and path != new:
                path.unlink(missing_ok=True)
                excess -= size

    def _read_order(self) -> np.ndarray:
        samples = sum(chunk["chunk_size"] for chunk in self.chunks)
        content = _read(self.location, ORDER, _LONGEST_HEADER + 8 * samples)
        reason = f"it is no order of the {samples} samples in {INDEX}"
        try:
            order = _read_array(io.BytesIO(content or b""), samples)
            if order is not None and np.array_equal(np.sort(order), np.arange(samples)):
                return order
        except Exception as error:  # numpy raises whatever the bytes of a header provoke
            reason = "it is missing" if content is None else reason_of(error)
        raise UserError(f"Cannot read {join_location(self.location, ORDER)}: {reason}. Copy the folder again.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}  # each process has one of its own


def litdata_module() -> Any:
    """Imports litdata, and returns it.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module("litdata")
    except ImportError as error:
        raise UserError(
            f"Shards of images need litdata ({error}): pip install 'swinv2-tasks[stream]'. Or set data.root to the "
            "folder of images itself."
        ) from error


def _parse_index(content: bytes, name: str) -> tuple[list[dict[str, Any]], Classes]:
    """The shards and the classes that an index lists, when it can only have been written by this package."""
    try:
        index = load_json(content)
        config = index["config"]
        chunks = index["chunks"]
        classes = Classes(**index["classes"])

        if config != CONFIG:
            raise ValueError("its samples are of another type")
        if not chunks or not all(re.fullmatch(r"chunk-\d+-\d+\.bin", chunk["filename"]) for chunk in chunks):
            raise ValueError("it lists no shards, or some of other names")
        if not all(type(chunk[key]) is int and 0 < chunk[key] < 2**48 for chunk in chunks for key in _SIZES):
            raise ValueError("a shard's size is no number of bytes or samples")
        if sum(chunk["chunk_size"] for chunk in chunks) > MOST_SAMPLES:
            raise ValueError(f"it has more than {MOST_SAMPLES:,} samples")
        if not all(isinstance(text, str) for text in (*classes.ids, *classes.names)):
            raise ValueError("a class is no text")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{name} does not list shards of images ({reason}). Expected what `swinv2-tasks data optimize` writes."
        ) from error
    return [{key: chunk[key] for key in ("filename", *_SIZES)} for chunk in chunks], classes


_SIZES = ("chunk_size", "chunk_bytes")

MOST_INDEX_BYTES = 2**26
"""Of an index: that of ImageNet-22k, with its classes and 20,000 shards, has some 5 MB."""

_LONGEST_HEADER = 10_000
"""Bytes that stand before the numbers of order.npy at most, by numpy's own limit."""


def _read_array(file: io.BytesIO, number: int) -> np.ndarray | None:
    """The so many whole numbers of a .npy file; None where it is of other numbers, or of more or fewer.

    Raises:
        ValueError: it is no such file, or its header is too long.
    """
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if shape != (number,) or dtype.kind not in "iu" or dtype.itemsize > 8:
        return None
    rest = file.read()
    return np.frombuffer(rest, dtype).copy() if len(rest) == number * dtype.itemsize else None


def _read(location: str, name: str, most: int = MOST_INDEX_BYTES) -> bytes | None:
    """The content of a small file, of so many bytes at most; None if it does not exist."""
    try:
        if is_url(location):
            return _request(join_location(location, name), lambda files, path: _fetch_small(files, path, most))
        return read_bytes(Path(location) / name, most)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{join_location(location, name)} cannot be read: {error.strerror}") from error


def _fetch_small(files: Any, path: str, most: int) -> bytes:
    """The content of a file behind a URL.

    Raises:
        ValueError: it is larger than so many bytes.
    """
    content: bytes = files.cat_file(path, end=most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content


def _request(url: str, request: Callable[[Any, str], Any]) -> Any:
    """What a request to the files behind a URL returns; FileNotFoundError where an index or order is not there."""
    try:
        import fsspec

        return request(*fsspec.core.url_to_fs(url))
    except FileNotFoundError:
        if url.endswith((INDEX, ORDER)):
            raise
        raise UserError(f"The shard {url} is missing. Upload it again, or write the shards again.") from None
    except ImportError as error:
        raise UserError(f"{url} needs another package: {error}") from error
    except Exception as error:  # each protocol has errors of its own
        raise UserError(f"{url} cannot be read: {reason_of(error)}") from error


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _stats(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """The shards in a cache that other processes may be removing from."""
    stats = []
    for path in folder.glob("*/*.bin"):
        with suppress(FileNotFoundError):
            stats.append((path, path.stat()))
    return stats
