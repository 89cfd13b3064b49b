"""What `data check` found out about videos by decoding them in full: a table that other commands go by."""

import csv
import importlib.metadata
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TextIO, cast

from swinv2_tasks.errors import UserError
from swinv2_tasks.files import replace_file
from swinv2_tasks.tables import csv_line, read_rows
from swinv2_tasks.text import printable

TABLE = "checked_videos.csv"
"""The table's name, in the dataset's folder or beside a list of videos."""


class Verdict(NamedTuple):
    """What came of decoding a video."""

    reason: str
    """Why it is faulty; empty when it is not."""
    is_final: bool = True
    """Whether it is the same the next time, as long as the file is: a crash may be for want of memory."""


class VerdictTable:
    """Verdicts on videos, as far as they still hold.

    A verdict holds as long as the file has the size, and the time of its last change, that it had, and the same
    version of this package and of its decoder reads it. One that is not final holds for any version.

    Args:
        path: The table, {path, bytes, changed, reader, reason}: paths below the table's own folder are relative to it,
            others absolute; `changed` is in nanoseconds since 1970; `reader` is empty where the verdict is not final.
            There are no verdicts where there is no table.

    Raises:
        UserError: The table cannot be read.
    """

    COLUMNS = ("path", "bytes", "changed", "reader", "reason")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = ", ".join(_versions("swinv2-tasks", "av", "decord"))
        self._folder = os.path.abspath(path.parent)
        self._rows = self._read()

    def find(self, path: str, status: os.stat_result | None = None) -> Verdict | None:
        """The verdict on a video; None when there is none that still holds.

        Args:
            path: The file.
            status: Its status, where that is known already.
        """
        row = self._rows.get(self._name(path))
        if row is None:
            return None

        with suppress(OSError):
            status = os.stat(path) if status is None else status
        *_, reader, reason = row
        is_final = bool(reader)
        if status is None or row[1:3] != _state(status) or (is_final and reader != self._reader):
            return None
        return Verdict(reason, is_final)

    def _read(self) -> dict[str, list[str]]:
        """The rows by path, of which the last one counts. A row that was cut off is none."""
        if not self.path.is_file():
            return {}
        try:
            with self._open("r") as file:
                rows = [row for row in read_rows(file) if len(row) == len(self.COLUMNS)]
        except (OSError, csv.Error) as error:
            raise UserError(
                f"Cannot read the table of checked videos {printable(self.path)}: {error}. Remove it, and run "
                "`swinv2-tasks data check kinetics` again."
            ) from error
        return {row[0]: row for row in rows}

    def _name(self, path: str) -> str:
        """What the table calls a file. Where the dataset is moved as a whole, or reached by another way, it stays."""
        absolute = os.path.abspath(path)
        return absolute.removeprefix(os.path.join(self._folder, ""))

    def _open(self, mode: str, path: Path | None = None) -> TextIO:
        file = (path or self.path).open(mode, encoding="utf-8", errors="surrogateescape", newline="")
        return cast(TextIO, file)


class VerdictFile(VerdictTable):
    """A table of verdicts, in which each stands as soon as it is reached. To be used in a `with`."""

    def __enter__(self) -> "VerdictFile":
        # What is left of an earlier attempt, without rows of files that have changed, or that a kill cut off.
        rows = [row for name, row in self._rows.items() if self.is_settled(os.path.join(self._folder, name))]
        replace_file(self.path, lambda path: self._write(path, rows))
        self._file = self._open("a")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def is_settled(self, path: str) -> bool:
        """Whether there is a final verdict on a video that still holds."""
        verdict = self.find(path)
        return verdict is not None and verdict.is_final

    def add(self, path: str, verdict: Verdict) -> None:
        """Write a verdict down."""
        try:
            state = _state(os.stat(path))
        except OSError:
            state = ["", ""]
        row = [self._name(path), *state, self._reader if verdict.is_final else "", verdict.reason]
        self._file.write(csv_line(row))
        self._file.flush()

    def _write(self, path: Path, rows: list[list[str]]) -> None:
        with self._open("w", path) as file:
            file.writelines(map(csv_line, [self.COLUMNS, *rows]))


class Findings(NamedTuple):
    """What is known of some videos before they are read."""

    missing: list[str]
    """Those that are not there."""
    faulty: dict[str, str]
    """Those that were found faulty, with the reason."""
    unchecked: int
    """How many are there without a verdict that holds."""


def look_up(paths: Iterable[str], folders: Sequence[Path]) -> Findings:
    """What the tables in some folders say of videos; of several verdicts on a video, the first folder's counts.

    Raises:
        UserError: A table cannot be read.
    """
    tables = [VerdictTable(folder / TABLE) for folder in dict.fromkeys(folders)]
    missing: list[str] = []
    faulty: dict[str, str] = {}
    unchecked = 0

    for path in paths:
        status = _status_of_video(path)
        if status is None:
            missing.append(path)
            continue

        verdicts = ((table.find(path, status), table.path) for table in tables)
        verdict, source = next(((verdict, table) for verdict, table in verdicts if verdict is not None), (None, None))
        if verdict is None:
            unchecked += 1
        elif verdict.reason:
            faulty[path] = f"{verdict.reason} (found by `data check`, see {printable(source)})"
    return Findings(missing, faulty, unchecked)


def _status_of_video(path: str) -> os.stat_result | None:
    """The status of a file; None where there is none, or something else of that name."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    is_folder = stat.S_ISDIR(status.st_mode)  # of frames
    return status if is_folder or stat.S_ISREG(status.st_mode) else None


def _state(status: os.stat_result) -> list[str]:
    """What distinguishes a file from what it was: size, and when anything of it changed, and not just its content."""
    return [str(status.st_size), str(status.st_ctime_ns)]


def _versions(*packages: str) -> Iterator[str]:
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            yield f"{package} {importlib.metadata.version(package)}"
