"""Files from outside: opened only where they are files, and taken apart at a bounded price.

A kilobyte of YAML whose aliases stand for one another describes gigabytes, a list that holds one list twice is a tree
of 2⁴⁰ entries forty levels down, and a pipe is read for ever. What a format may cost is checked here, before anything
walks through what was read. The limits are far above what files of real datasets and networks hold.
"""

from __future__ import annotations

import errno
import json
import os
import re
import reprlib
import stat
from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Any, BinaryIO, cast

MOST_ENTRIES = 1_000_000
"""Entries of what a config, a record or a checkpoint says beside its tensors: the lists of ImageNet-22k's classes have
44,000, the optimizer's state of a network of 3 billion parameters some 10,000."""

MOST_CHARACTERS = 2**26
"""Of all texts in it together."""

MOST_LEVELS = 100
"""Levels of lists and mappings within one another. Python itself gives up at some hundreds."""

MOST_DIGITS = 100
"""Of a whole number. States of random number generators have 39; beyond 4,300 Python does not print one."""

MOST_CONFIG_BYTES = 2**20
"""Of a config. Lists that are longer stand in files of their own, such as that of `data.class_names`."""

MOST_LINE_BYTES = 2**24
"""Of a line of a file that is read by lines: of what a run has logged and of what was predicted."""

WALKED_BYTES = 2**24
"""JSON up to this size is walked through: configs and records, which are then taken for trees. Annotations, of which
COCO has 450 MB, are read by entries that do not nest."""


# ---- opening


def open_file(path: str | PathLike[str]) -> BinaryIO:
    """Opens a file to read bytes, and nothing else that may have its name.

    Raises:
        OSError: it cannot be opened; or it is a folder, or a pipe, a socket or a device, for which one might wait for
            ever. ``strerror`` says so.
    """
    return cast(BinaryIO, open(path, "rb", opener=_open_regular))


def _open_regular(path: str, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)  # or a pipe is waited for
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise _irregular(path) from error
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        raise _irregular(path)
    return descriptor


def _irregular(path: str) -> OSError:
    return OSError(errno.EINVAL, "it is a pipe, a socket or a device, and no file", path)


def read_bytes(path: str | PathLike[str], most: int | None = None) -> bytes:
    """The content of a file, or of one within another.

    Args:
        path: the file.
        most: how many bytes it may have; None: any number.

    Raises:
        OSError: as for ``open_file``; or it is larger, which ``strerror`` says.
    """
    if isinstance(path, StoredFile):
        return path.read(most)
    with open_file(path) as file:
        _check_size(path, os.fstat(file.fileno()).st_size, most)
        return file.read()


def _check_size(path: str | PathLike[str], size: int, most: int | None) -> None:
    if most is not None and size > most:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, such a file at most {most:,}", str(path))


def read_text(
    path: str | PathLike[str], most: int | None = None, encoding: str = "utf-8", errors: str = "strict"
) -> str:
    """The text of a file, with line feeds as its line ends.

    Raises:
        OSError: as for ``read_bytes``.
        UnicodeDecodeError: it is no text in this encoding.
    """
    text = read_bytes(path, most).decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_lines(path: str | PathLike[str]) -> Iterator[bytes]:
    """The lines of a file, one after the other, with their line feeds; one that is too long comes in pieces.

    Raises:
        OSError: as for ``open_file``.
    """
    with open_file(path) as file:
        while line := file.readline(MOST_LINE_BYTES):
            yield line


# ---- files within others


class StoredFile(str):
    """What a file within another one is called, as ``train-000003.tar/key.jpg``, and how it is read where it lies.

    It is a path for messages alone: no such file is ever opened or written. Subclasses say how its bytes are found.

    Args:
        name: what it is called, after the path of the file that it lies in.
        container: the path of that file.
        start: where it lies there.
        extent: how much it takes, or a second number that says where it lies.
    """

    container: str
    start: int
    extent: int

    def __new__(cls, name: str, container: str, start: int, extent: int) -> StoredFile:
        """As the class says: text is made before it can be given attributes."""
        file = super().__new__(cls, name)
        file.container, file.start, file.extent = container, start, extent
        return file

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.container, self.start, self.extent)

    def read(self, most: int | None = None) -> bytes:
        """Its content.

        Args:
            most: how many bytes it may have; None: any number.

        Raises:
            OSError: it is larger, or cannot be read; ``strerror`` says why.
        """
        raise NotImplementedError

    def count_bytes(self) -> int:
        """How many bytes it has.

        Raises:
            OSError: as for ``read``.
        """
        return len(self.read())


class ByteRange(StoredFile):
    """A file whose bytes lie in one piece: ``extent`` of them from ``start`` on.

    The file that it lies in is opened for each reading, so that processes share no position in it.
    """

    def read(self, most: int | None = None) -> bytes:
        """Its content."""
        _check_size(self, self.extent, most)
        with open_file(self.container) as file:
            file.seek(self.start)
            content = file.read(self.extent)
        if len(content) < self.extent:
            raise OSError(errno.EIO, "it is truncated: the file that it lies in ends before it does", str(self))
        return content

    def count_bytes(self) -> int:
        """How many bytes it has."""
        return self.extent


def file_on_disk(path: str) -> str:
    """The file that there is on the disk: the path itself, or of a file within another one that one's."""
    return path.container if isinstance(path, StoredFile) else path


# ---- what was read


class TooLarge(ValueError):
    """What a file says stands for more than it may hold."""


def check_tree(value: Any) -> None:
    """Refuses nested lists and mappings that are larger than they look, counted as often as each is referred to.

    Raises:
        TooLarge: there are more than ``MOST_ENTRIES``, ``MOST_LEVELS`` or ``MOST_CHARACTERS``, also since something
            holds itself; or a whole number has more than ``MOST_DIGITS``.
    """
    entries = characters = 0
    levels = [iter((value,))]
    while levels:
        for item in levels[-1]:
            entries += 1
            if isinstance(item, str | bytes):
                characters += len(item)
            elif isinstance(item, int):
                check_number(item)
            elif isinstance(item, dict | list | tuple | set | frozenset):
                levels.append(_children(item))
                break
        else:
            levels.pop()
        check_counts(entries, len(levels), characters)


def _children(container: Any) -> Iterator[Any]:
    if not isinstance(container, dict):
        return iter(container)
    return (part for entry in container.items() for part in entry)


def check_counts(entries: int, levels: int, characters: int = 0) -> None:
    """Refuses what has more entries, levels or characters than anything that is read as a tree.

    Raises:
        TooLarge: it has.
    """
    if levels > MOST_LEVELS:
        raise TooLarge(f"its lists and mappings are nested more than {MOST_LEVELS} levels deep, or in a circle")
    if entries > MOST_ENTRIES or characters > MOST_CHARACTERS:
        raise TooLarge(
            f"its lists and mappings stand for more than {MOST_ENTRIES:,} entries or {MOST_CHARACTERS:,} characters"
        )


def check_number(number: int) -> None:
    """Refuses a whole number that nothing is counted by.

    Raises:
        TooLarge: it has more than ``MOST_DIGITS``.
    """
    if number.bit_length() > 3.33 * MOST_DIGITS:
        raise TooLarge(f"a whole number in it has more than {MOST_DIGITS} digits")


def shorten(value: Any) -> str:
    """A value as a message shows it: the first few of many entries, and of many digits."""
    return reprlib.repr(value)


# ---- JSON


def load_json(content: bytes | str) -> Any:
    """What JSON says.

    Raises:
        ValueError: it is no JSON, nests too deep, or has a number of too many digits.
    """
    parse_int = bounded_int if may_have_long_number(content) else None
    try:
        value = json.loads(content, parse_int=parse_int)
    except RecursionError:
        raise TooLarge("its lists and objects are nested too deep") from None
    if len(content) <= WALKED_BYTES:
        check_tree(value)
    return value


def bounded_int(digits: str) -> int:
    """A whole number of JSON.

    Raises:
        TooLarge: it has more than ``MOST_DIGITS``.
    """
    if len(digits) > MOST_DIGITS + 1:  # and a sign
        raise TooLarge(f"a whole number in it has more than {MOST_DIGITS} digits")
    return int(digits)


_LONG_NUMBER = re.compile(f"[0-9]{{{MOST_DIGITS + 1}}}")
_DIGITS_AS_ZEROS = bytes(ord("0") if ord("0") <= byte <= ord("9") else byte for byte in range(256))
_PIECE = 2**20


def may_have_long_number(content: bytes | str) -> bool:
    """Whether so many digits follow one another, be it in a text: then the parser, else much faster, looks at each."""
    if isinstance(content, str):
        return _LONG_NUMBER.search(content) is not None
    if b"\0" in content[:4]:  # of two or four bytes per character
        return True
    zeros = b"0" * (MOST_DIGITS + 1)
    pieces = (content[start : start + _PIECE + MOST_DIGITS] for start in range(0, len(content), _PIECE))
    return any(zeros in piece.translate(_DIGITS_AS_ZEROS) for piece in pieces)


def read_json(path: str | PathLike[str], most: int | None = None) -> Any:
    """What a JSON file says.

    Args:
        path: the file.
        most: how many bytes it may have; None: any number.

    Raises:
        OSError: as for ``read_bytes``.
        ValueError: as for ``load_json``.
    """
    return load_json(read_bytes(path, most))


# ---- YAML


def load_yaml(text: str) -> Any:
    """What YAML of plain values says; no class is made of it.

    Raises:
        yaml.YAMLError: it is no such YAML, or stands for more than it may.
    """
    import yaml  # not above: what reads no config does without it

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node)
        value = loader.construct_document(node)
        check_tree(value)
        return value
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="its lists and mappings are nested too deep") from None
    except (ValueError, OverflowError, AttributeError, TypeError) as error:  # of numbers and dates that are none
        raise yaml.MarkedYAMLError(problem=str(error)) from error
    finally:
        loader.dispose()


_DEEP_YAML = 4096
"""Characters from which on YAML may nest so deep that libyaml's parser ends the process."""


def check_yaml(text: str) -> None:
    """Refuses YAML that stands for more than it may hold or nests too deep, before a parser of others takes it apart.

    Raises:
        yaml.YAMLError: it does.
    """
    import yaml

    if len(text) < _DEEP_YAML and ("&" not in text or "*" not in text):  # as large as it looks, and no deeper
        return
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None:
            _check_nodes(node)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="its lists and mappings are nested too deep") from None


def _check_nodes(root: Any) -> None:
    """Refuses a document whose nodes, each counted as often as aliases name it, are too many or nest too deep.

    Before values are made of it: mappings that merge others, as in ``<<: *other``, copy them.
    """
    import yaml

    entries, levels = 0, [iter((root,))]
    while levels:
        for node in levels[-1]:
            entries += 1
            if not isinstance(node, yaml.ScalarNode):
                levels.append(iter(_child_nodes(node)))
                break
        else:
            levels.pop()
        try:
            check_counts(entries, len(levels))
        except TooLarge as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=root.start_mark) from None


def _child_nodes(node: Any) -> Iterable[Any]:
    if isinstance(node.value, list) and node.value and isinstance(node.value[0], tuple):
        return [part for pair in node.value for part in pair]
    return node.value
