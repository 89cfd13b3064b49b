"""What a prediction has done so far, on disk: nothing is lost when it ends early, and a rerun resumes.

Each process appends to a file of its own, a line of JSON for the files that it has read together. A line that a kill
has cut off counts as not written.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from swinv2_tasks.errors import UserError
from swinv2_tasks.files import append, is_inside, replace_file
from swinv2_tasks.outside_files import MOST_LINE_BYTES, load_json, read_json, read_lines
from swinv2_tasks.text import printable

MERGED = "done.jsonl"
"""What earlier attempts have done; beside it each process writes RANK.jsonl."""

SETTINGS = "settings.json"

ENDED = "ended.json"


class Record(TypedDict):
    """What was made of a file."""

    path: str
    stat: list[int] | None
    """Its size in bytes and its time of modification; None where it was changed in the meantime or is not there."""
    files: list[str]
    """What was written for it, as seen from the folder of the predictions."""
    position: Any
    """What the results say of its position among all files, where they do."""
    row: list[str]
    """Its cells in the table, but the first and the last one."""
    details: Any
    """What else the results need to know."""
    error: str
    """Why there is no prediction; empty where there is one."""


class Journal:
    """The records of a prediction, in a folder.

    Args:
        folder: where they are; made when it is missing.
        rank: this process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self.own = folder / f"{rank}.jsonl"

    def settings(self) -> dict[str, Any] | None:
        """What the records were made with; None when there are none."""
        try:
            settings = read_json(self.folder / SETTINGS)
        except (OSError, ValueError):
            return None
        return settings if isinstance(settings, dict) else None

    def begin(self, settings: dict[str, Any], records: Iterable[Record]) -> None:
        """Keeps these records as the only ones. By one process, while the others wait."""

        def write(path: Path) -> None:
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps([record]) + "\n" for record in records)

        replace_file(self.folder / MERGED, write)
        for path in self._files():
            if path.name != MERGED:
                path.unlink()
        (self.folder / ENDED).unlink(missing_ok=True)
        replace_file(self.folder / SETTINGS, lambda path: path.write_text(json.dumps(settings), "utf-8"))

    def append(self, records: list[Record]) -> None:
        """Adds records, all or none of them."""
        append_line(self.own, json.dumps(records) + "\n")

    def kept(self) -> Iterator[Record]:
        """The records of earlier attempts."""
        for line in read_lines(self.folder / MERGED):
            yield from _parse(line)

    def records(self) -> Iterator[Record]:
        """All records of all processes, in no particular order."""
        for path in self._files():
            for line in read_lines(path):
                yield from _parse(line)

    def in_order(self, index_of: dict[str, int]) -> Iterator[tuple[int, Record | None]]:
        """Each file's number and its record, None where there is none, in the order of the numbers.

        Of the records, only their offsets are kept in memory.

        Args:
            index_of: the number of each file, from 0 on.
        """
        paths = self._files()
        file_numbers, offsets = self._locate(paths, index_of)
        files = [path.open("rb") for path in paths]
        try:
            last: tuple[int, int] = (-1, -1)
            line_records: dict[str, Record] = {}
            for path_name, index in index_of.items():
                file_number, offset = int(file_numbers[index]), int(offsets[index])
                if file_number < 0:
                    yield index, None
                    continue
                if (file_number, offset) != last:
                    files[file_number].seek(offset)
                    line_records = {
                        record["path"]: record for record in _parse(files[file_number].readline(MOST_LINE_BYTES))
                    }
                    last = (file_number, offset)
                yield index, line_records[path_name]
        finally:
            for file in files:
                file.close()

    def _locate(self, paths: list[Path], index_of: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
        """Of each predicted file the number of the journal's file with its record, −1 for none, and the offset."""
        file_numbers = np.full(len(index_of), -1, dtype=np.int16)
        offsets = np.zeros(len(index_of), dtype=np.int64)
        for number, path in enumerate(paths):
            offset = 0
            for line in read_lines(path):
                for record in _parse(line):
                    if (index := index_of.get(record["path"])) is not None:
                        file_numbers[index], offsets[index] = number, offset
                offset += len(line)
        return file_numbers, offsets

    def end(self, bad: int) -> None:
        """Notes how many files could not be predicted: other processes than the first may ask."""
        replace_file(self.folder / ENDED, lambda path: path.write_text(json.dumps({"bad": bad})))

    def bad(self) -> int:
        """What ``end`` has noted; 0 before that."""
        try:
            return int(read_json(self.folder / ENDED)["bad"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return 0

    def remove(self) -> None:
        """Removes the records, not what was made."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))


def _parse(line: bytes) -> list[Record]:
    """The records of a line; none of one that was cut off, and none that this package would not have written.

    Files that a record names are removed when they are made again, so that they must be in the folder.
    """
    try:
        records = load_json(line) if line.endswith(b"\n") else []
    except ValueError:
        return []
    return [record for record in records if _is_record(record)] if isinstance(records, list) else []


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or record.keys() != Record.__annotations__.keys():
        return False
    stat, files, row = record["stat"], record["files"], record["row"]
    return (
        isinstance(record["path"], str)
        and isinstance(record["error"], str)
        and (stat is None or (isinstance(stat, list) and all(type(number) is int for number in stat)))
        and isinstance(row, list)
        and all(isinstance(cell, str) for cell in row)
        and isinstance(files, list)
        and all(isinstance(name, str) and "\0" not in name and is_inside(Path(name), Path()) for name in files)
    )


def append_line(path: Path, text: str, header: str = "") -> None:
    """Appends text to a file that other processes may append to as well: all of it, or nothing.

    Args:
        path: the file; made when it is missing.
        text: what to append.
        header: what comes first in a new file.

    Raises:
        UserError: it cannot be written; what was there before is kept.
    """
    try:
        append(path, text, header)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    """What to say when a result cannot be written: the disk is full, say."""
    return UserError(
        f"{printable(path)} cannot be written: {error.strerror or error}. What was predicted before is kept. Make "
        "room, or mend the folder, and run the same command again: it resumes."
    )


def is_about_the_name(error: OSError) -> bool:
    """Whether a file cannot be written for what it is called, so that others can."""
    return error.errno in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
