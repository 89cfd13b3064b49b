"""The folder that predictions are written to: files for each prediction, their table, and what an earlier attempt left.

What is done is noted in a journal (``.progress`` in the folder), from which a rerun with the same model, settings and
folder resumes, and from which the table is written in the order of the files in the end.
"""

from __future__ import annotations

import io
import json
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from swinv2_tasks.callbacks.output_names import OutputNames
from swinv2_tasks.callbacks.prediction_journal import Journal, Record, append_line, cannot_write
from swinv2_tasks.errors import CollectiveError
from swinv2_tasks.files import replace_file
from swinv2_tasks.tables import csv_line
from swinv2_tasks.text import printable, say
from swinv2_tasks.training.run_folder import lock, unlock

TABLE = "predictions.csv"

PROGRESS = ".progress"
"""The folder of the journal, in that of the predictions."""


class PredictionFolder:
    """Where predictions are written.

    Args:
        path: the folder; made when it is missing.
        rank: this process.
        subfolders: names of folders in it, for files that are written for each prediction.

    Raises:
        CollectiveError: nothing can be written there.
    """

    def __init__(self, path: Path, rank: int, subfolders: Sequence[str]) -> None:
        self.path = path
        self.subfolders = subfolders
        self.journal = Journal(path / PROGRESS, rank)
        self._created = prove_writable([path, self.journal.folder, *(path / name for name in subfolders)])

    def begin(self, paths: list[str], columns: list[str]) -> None:
        """Says what is predicted.

        Args:
            paths: the files.
            columns: those of the table, but the path and the error.
        """
        self.paths = paths
        self.columns = columns
        self.index_of = {path: index for index, path in enumerate(paths)}
        self._names = OutputNames(paths)

    # ---- an earlier attempt

    def resume(
        self,
        settings: dict[str, Any],
        products: Iterable[str],
        position_of: Callable[[int], Any],
        are_details: Callable[[Any], bool],
    ) -> None:
        """Keeps what still holds of an earlier attempt in the same folder, and prints what does not.

        Args:
            settings: what predictions depend on.
            products: files that are made of all predictions in the end.
            position_of: what results say of a file's position among all, by its index.
            are_details: whether the details of a record are such as this prediction makes.
        """
        settings = _as_json(settings)
        lock(self.journal.folder)
        for name in products:  # written again in the end
            (self.path / name).unlink(missing_ok=True)

        before = self.journal.settings()
        records: Iterable[Record] = ()
        if before is not None and before != settings:
            self._remove_predictions(before, settings)
        elif before is not None:
            records = self.journal.records()

        foreign = 0

        def kept() -> Iterator[Record]:
            nonlocal foreign
            for record in records:
                if self._still_holds(record, position_of) and are_details(record["details"]):
                    yield record
                elif not record["error"]:
                    foreign += 1

        self.journal.begin(settings, kept())
        if foreign:
            say(
                f"{printable(self.path)} also holds predictions of {foreign} files that are not among these, or were "
                f"changed since: {TABLE} does not list them any more"
            )
        if any(True for _ in self.journal.kept()):
            self.write_table()
        else:
            (self.path / TABLE).unlink(missing_ok=True)

    def _remove_predictions(self, before: dict[str, Any], settings: dict[str, Any]) -> None:
        """Removes the files of an earlier attempt with another model or other settings."""
        difference = "of another model"
        if before.get("weights") == settings["weights"]:
            difference = f"made with other settings ({', '.join(find_differences(before, settings)[:3])})"
        say(f"{printable(self.path)} holds predictions {difference}: they are replaced")
        for record in self.journal.records():
            for name in record["files"]:
                (self.path / name).unlink(missing_ok=True)

    def _still_holds(self, record: Record, position_of: Callable[[int], Any]) -> bool:
        index = self.index_of.get(record["path"])
        return (
            index is not None
            and not record["error"]
            and record["stat"] is not None
            and record["stat"] == stat_of(record["path"])
            and record["position"] == position_of(index)
            and record["files"] == [f"{name}/{self._names[record['path']]}" for name in self.subfolders]
            and all((self.path / name).is_file() for name in record["files"])
        )

    # ---- results

    def save_image(self, image: Image.Image, subfolder: str, path: str) -> str:
        """Writes a PNG for a predicted file atomically; returns its name as seen from the folder.

        Raises:
            UserError: it cannot be written; after an OSError.
        """
        content = io.BytesIO()
        image.save(content, "PNG", compress_level=1)
        name = f"{subfolder}/{self._names[path]}"
        unfinished = self.journal.own.with_suffix(".png")
        try:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(content.getbuffer())
            os.replace(unfinished, self.path / name)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            raise cannot_write(self.path / name, error) from error
        return name

    def append(self, records: list[Record]) -> None:
        """Adds records to the journal and to the table."""
        self.journal.append(records)
        append_line(self.path / TABLE, "".join(map(_table_line, records)), self._header())

    def write_table(self, on_record: Callable[[Record], None] | None = None) -> None:
        """Writes the table in the order of the files; ``on_record`` is called with each record on the way."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                file.write(self._header().encode())
                for record in self._records():
                    file.write(_table_line(record).encode())
                    if on_record is not None:
                        on_record(record)

        replace_file(self.path / TABLE, write)

    def predicted(self) -> Iterator[Record]:
        """The records of the predicted files, in the order of the files."""
        return (record for record in self._records() if not record["error"])

    def _records(self) -> Iterator[Record]:
        """The records of predicted and bad files, in the order of the files."""
        return (record for _, record in self.journal.in_order(self.index_of) if record is not None)

    def _header(self) -> str:
        return csv_line(["path", *self.columns, "error"])

    # ---- the end

    def release(self) -> None:
        """Lets other processes work in the folder."""
        unlock(self.journal.folder)

    def remove_empty(self) -> None:
        """Removes what was made for a prediction that has not begun."""
        if self._created and self.journal.folder in self._created:
            self.journal.remove()
        for folder in sorted(self._created, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # something is in it, or it is gone
                folder.rmdir()


def bad_files(folder: Path) -> int:
    """How many files the last prediction in a folder could not predict; 0 where none has ended there."""
    return Journal(folder / PROGRESS, 0).bad()


def prove_writable(folders: Sequence[Path]) -> list[Path]:
    """Makes folders and makes sure that files can be written there.

    Returns:
        Those that were not there before, and the parents that were made for them.

    Raises:
        CollectiveError: they cannot.
    """
    created: list[Path] = []
    try:
        for folder in folders:
            created += [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
            folder.mkdir(parents=True, exist_ok=True)
        for folder in folders:
            probe = folder / f".{os.getpid()}"
            try:
                probe.write_bytes(bytes(4096))
            finally:
                probe.unlink(missing_ok=True)
    except OSError as error:
        for folder in dict.fromkeys(created):
            with suppress(OSError):
                folder.rmdir()
        obstacles = [path for folder in folders for path in (folder, *folder.parents) if _is_in_the_way(path)]
        reason = f"{obstacles[0]} is a file" if obstacles else f"{error.filename or folders[0]}: {error.strerror}"
        raise CollectiveError(
            f"predictions cannot go to {printable(folders[0])}: {printable(reason)}; name another folder with --output"
        ) from error
    return list(dict.fromkeys(created))


def _is_in_the_way(path: Path) -> bool:
    return os.path.lexists(path) and not os.path.isdir(path)


def find_differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The settings in which two mappings of mappings differ: ``data.image_size``, say."""
    names = []
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            names += [f"{name}.{key}" for key in {**old, **new} if old.get(key) != new.get(key)]
        elif old != new:
            names.append(name)
    return names


def stat_of(path: str) -> list[int] | None:
    """What distinguishes a file from a later one of its name: size and time of modification. None: it is not there."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def write_json_list(path: Path, entries: Iterable[Any], indent: int | None = None) -> None:
    """Writes a JSON list, as ``json.dump`` would, one entry after the other."""
    separator = ",\n" if indent else ", "
    with path.open("w", encoding="utf-8") as file:
        file.write("[\n" if indent else "[")
        for index, entry in enumerate(entries):
            text = json.dumps(entry, indent=indent)
            if indent:
                text = textwrap.indent(text, " " * indent)
            file.write((separator if index else "") + text)
        file.write("\n]\n" if indent else "]")


def _table_line(record: Record) -> str:
    return csv_line([record["path"], *record["row"], record["error"]])


def _as_json(settings: Any) -> Any:
    """Settings as they come back from JSON."""
    return json.loads(json.dumps(settings, default=str))
