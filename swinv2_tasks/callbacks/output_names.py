"""What the files that are made of others are called: alike, where that is possible, and each by a name of its own."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePath

LONGEST = 255
"""Bytes of a name that file systems take."""


class OutputNames:
    """A PNG file's name for each file: its place below the folder that all have in common, with another ending.

    Files whose names differ only in their endings keep them: a.jpg.png, a.png.png. Where that would not tell them from
    others either, on a file system that takes A and a for the same, and where a name would be too long, part of a
    checksum of the file's place is added: a~0123456789abcdef.png.

    Args:
        paths: the files; one that is named twice has one name.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        paths = list(dict.fromkeys(paths))  # a file takes its name from others, never from itself
        self.common = os.path.commonpath([os.path.dirname(_whole(path)) for path in paths]) if paths else ""
        self._levels: dict[str, int] = {}  # of those files alone whose first name is another's as well

        folders = {_folded(str(parent)) for path in paths for parent in PurePath(self._place(path)).parents}
        open_ends = True
        while open_ends:
            owners: dict[str, str] = {}
            raised: set[str] = set()
            for path in paths:
                key = _folded(self[path])
                if key in folders:
                    raised.add(path)
                    continue
                other = owners.setdefault(key, path)
                if other is not path:
                    # Names that stay closest to their file's give way to those that had to be changed already.
                    one_level, other_level = self._levels.get(path, 0), self._levels.get(other, 0)
                    raised |= {path} if one_level <= other_level else set()
                    raised |= {other} if other_level <= one_level else set()
            for path in raised:
                self._levels[path] = self._levels.get(path, 0) + 1
            open_ends = bool(raised)

    def __getitem__(self, path: str) -> str:
        """The name of one of the files, as seen from wherever they are written."""
        place, level = PurePath(self._place(path)), self._levels.get(path, 0)
        name = place.stem if level == 0 else place.name
        if level < 2 and len(os.fsencode(name)) + len(".png") <= LONGEST:
            return str(place.with_name(f"{name}.png"))
        mark = hashlib.sha256(os.fsencode(path)).hexdigest()[: 16 if level < 3 else 64]
        room = LONGEST - len(f"~{mark}.png")
        return str(place.with_name(f"{_cut(name, room)}~{mark}.png"))

    def _place(self, path: str) -> str:
        return os.path.relpath(_whole(path), self.common)


def _whole(path: str) -> str:
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


def _folded(name: str) -> str:
    """What two names have in common that some file systems take for the same."""
    return unicodedata.normalize("NFC", name).casefold()
