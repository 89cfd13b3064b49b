"""Measuring files in processes of their own: one that crashes or hangs a decoder stops no other; stops lose nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from swinv2_tasks.child_processes import decode_in_processes
from swinv2_tasks.commands.check.facts import Facts, Task, measure
from swinv2_tasks.datamodules.readers.channels import ImageReader
from swinv2_tasks.errors import UserError
from swinv2_tasks.files import replace_file
from swinv2_tasks.outside_files import StoredFile, file_on_disk, load_json, read_lines
from swinv2_tasks.progress import WorkProgress
from swinv2_tasks.stopping import advising
from swinv2_tasks.text import printable, say

CHUNK = 16
"""Files that a process is given at a time."""


def measure_files(tasks: Sequence[Task], journal: Path, workers: int, seconds: float) -> dict[Task, Facts]:
    """Measures files, but those that have not changed since the journal has them.

    Args:
        tasks: The files, each once.
        journal: The file that keeps what is measured, as it comes.
        workers: Processes; 0: this one, in which a decoder that crashes ends the command.
        seconds: Time after which a file counts as hung.

    Raises:
        UserError: The journal cannot be written.
    """
    states = {task: _state(task.path) for task in tasks}
    kept = _read_journal(journal)
    facts = {task: known[1] for task in tasks if (known := kept.get(task)) is not None and known[0] == states[task]}
    rest = [task for task in tasks if task not in facts]
    if facts:
        say(f"{len(facts):,} of {len(tasks):,} files have not changed since they were read ({printable(journal)})")

    # Without entries of files that have changed or gone.
    lines = [_line(task, states[task], facts[task]) for task in facts]
    replace_file(journal, lambda path: path.write_text("".join(lines), "utf-8"))
    with (
        WorkProgress("Reading", len(rest)) as progress,
        journal.open("a", encoding="utf-8") as file,
        advising("The same command resumes with the files that are left"),
    ):
        for task, measured, is_final in _in_processes(rest, workers, seconds):
            facts[task] = measured
            if is_final:
                _write(file, _line(task, states[task], measured), journal)
            progress.advance(faulty=bool(measured.reason))
    return facts


# ---- the journal

State = list[int]
"""What distinguishes a file from what it was: size, and when anything of it changed; within another, where it lies."""


def _state(path: str) -> State:
    try:
        status = os.stat(file_on_disk(path))
    except OSError:
        return [-1, -1]
    within = [path.start, path.extent] if isinstance(path, StoredFile) else []
    return [status.st_size, status.st_ctime_ns, *within]


def _line(task: Task, state: State, facts: Facts) -> str:
    reader = task.reader
    read_as = [reader.channels, reader.value_range, reader.exif_rotation]
    return json.dumps([VERSION, task.media, task.path, read_as, state, facts.as_json()]) + "\n"


VERSION = 2
"""Of the journal: entries of others are measured again."""


def _write(file: Any, line: str, journal: Path) -> None:
    try:
        file.write(line)
        file.flush()
    except OSError as error:
        raise UserError(f"{printable(journal)} cannot be written ({error.strerror}): make room.") from error


def _read_journal(journal: Path) -> dict[Task, tuple[State, Facts]]:
    """The entries of an earlier attempt; lines that are none, such as one that a kill cut off, do not count."""
    kept: dict[Task, tuple[State, Facts]] = {}
    if not journal.is_file():
        return kept
    for line in read_lines(journal):
        with suppress(ValueError, TypeError, AttributeError):
            version, media, path, (channels, value_range, exif_rotation), state, entry = load_json(line)
            if version == VERSION and isinstance(path, str):
                reader = ImageReader(channels, value_range and tuple(value_range), exif_rotation)
                kept[Task(path, media, reader)] = (state, Facts.from_json(entry))
    return kept


# ---- processes


def _in_processes(tasks: Sequence[Task], workers: int, seconds: float) -> Iterator[tuple[Task, Facts, bool]]:
    """Each file with what was measured, and whether that would be the same again, as soon as it is known."""
    if not workers:
        for task in tasks:
            yield task, measure(task), True
        return
    chunks = [tasks[start : start + CHUNK] for start in range(0, len(tasks), CHUNK)]
    failed: list[Task] = []
    for chunk, outcome in decode_in_processes(_measure_all, chunks, workers, seconds):
        if outcome.value is None:
            failed += chunk
        else:
            yield from ((task, entry, True) for task, entry in zip(chunk, outcome.value, strict=True))
    # Of a chunk that failed as a whole, each file by itself.
    for (task,), outcome in decode_in_processes(_measure_all, [[task] for task in failed], workers, seconds):
        facts = outcome.value
        yield (task, Facts(reason=outcome.reason), False) if facts is None else (task, facts[0], True)


def _measure_all(chunk: Sequence[Task]) -> list[Facts]:
    return [measure(task) for task in chunk]
