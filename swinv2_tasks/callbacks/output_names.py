"""What the files that are made of others are called: alike, where that is possible, and each by a name of its own."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

MAX_BYTES = 255
"""Bytes of a name that file systems take."""


class OutputNames:
    """A PNG file's name for each file: its path below the folder that all have in common, with another ending.

    Files whose names differ only in their endings keep them: a.jpg.png, a.png.png. Where that would not tell them from
    others either, on a file system that takes A and a for the same, and where a name would be too long, part of a
    checksum of the file's path is added: a~0123456789abcdef.png.

    Args:
        paths: the files; one that is named twice has one name.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        paths = list(dict.fromkeys(paths))  # a file takes its name from others, never from itself
        self.common = os.path.commonpath([os.path.dirname(_absolute(path)) for path in paths]) if paths else ""
        self._levels: dict[str, int] = {}  # of those files alone whose first name is another's as well

        folders = {_fold(str(parent)) for path in paths for parent in PurePath(self._relative(path)).parents}
        while ambiguous := self._find_ambiguous(paths, folders):
            for path in ambiguous:
                self._levels[path] = self._levels.get(path, 0) + 1

    def _find_ambiguous(self, paths: Sequence[str], folders: set[str]) -> set[str]:
        """The files whose names have to change: they are those of other files or of folders."""
        owners: dict[str, str] = {}
        ambiguous: set[str] = set()
        for path in paths:
            key = _fold(self[path])
            if key in folders:
                ambiguous.add(path)
                continue
            owner = owners.setdefault(key, path)
            if owner is not path:
                # Names that stay closest to their file's give way to those that had to be changed already.
                level, owner_level = self._levels.get(path, 0), self._levels.get(owner, 0)
                ambiguous |= {path} if level <= owner_level else set()
                ambiguous |= {owner} if owner_level <= level else set()
        return ambiguous

    def __getitem__(self, path: str) -> str:
        """The name of one of the files, as seen from wherever they are written."""
        relative, level = PurePath(self._relative(path)), self._levels.get(path, 0)
        name = relative.stem if level == 0 else relative.name
        if level < 2 and len(os.fsencode(name)) + len(".png") <= MAX_BYTES:
            return str(relative.with_name(f"{name}.png"))
        checksum = hashlib.sha256(os.fsencode(path)).hexdigest()[: 16 if level < 3 else 64]
        room = MAX_BYTES - len(f"~{checksum}.png")
        return str(relative.with_name(f"{_cut(name, room)}~{checksum}.png"))

    def _relative(self, path: str) -> str:
        return os.path.relpath(_absolute(path), self.common)


def short_names(paths: Sequence[str]) -> list[str]:
    """What figures call files: by their names, with the folder of each where names repeat, or by the whole path.

    Args:
        paths: those of the files in a figure.
    """
    return _tell_apart(paths, _tell_apart(paths, [PurePath(path).name for path in paths], _with_folder), str)


def _tell_apart(paths: Sequence[str], names: Sequence[str], rename: Callable[[str], str]) -> list[str]:
    """The names of files, of which those that several have are replaced."""
    counts = Counter(name for _, name in {*zip(paths, names, strict=True)})
    return [rename(path) if counts[name] > 1 else name for path, name in zip(paths, names, strict=True)]


def _with_folder(path: str) -> str:
    return str(PurePath(*PurePath(path).parts[-2:]))


def _absolute(path: str) -> str:
    """A path without dots, which could lead out of the folder that results go to."""
    return os.path.normpath(Path(path).absolute())


def _cut(name: str, length: int) -> str:
    """As much of a name as some bytes hold, without a half character at its end."""
    start = os.fsencode(name)[:length]
    while start and _ends_within_a_character(start):
        start = start[:-1]
    return os.fsdecode(start)


def _ends_within_a_character(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def _fold(name: str) -> str:
    """What two names have in common that some file systems take for the same."""
    return unicodedata.normalize("NFC", name).casefold()
