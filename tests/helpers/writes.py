"""What a process does to names of files: which it opens to write, and which it gives to what is written already."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

WRITES = "NOTE_WRITES"
"""Environment variable with the file in which ``processes.start`` lets a process note its writes."""


def note_writes(log: Path) -> None:
    """From now on notes each file that this process, or one forked from it, opens to write or renames."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, mode, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
                how = "append" if flags & os.O_APPEND or (mode and "a" in mode) else "write"
                _note(how, path)
        elif event == "os.rename":
            _note("rename", arguments[1])

    def _note(how: str, path: Any) -> None:
        os.write(output, f"{how}\0{os.path.abspath(os.fsdecode(path))}\0\n".encode("utf-8", "surrogateescape"))

    sys.addaudithook(note)


class Writes(NamedTuple):
    """The names that a process opened to write, opened to append, and gave to what it had written elsewhere."""

    written: set[Path]
    appended: set[Path]
    renamed: set[Path]


def read_writes(log: Path) -> Writes:
    """What ``note_writes`` has noted."""
    text = log.read_bytes().decode("utf-8", "surrogateescape") if log.exists() else ""
    lines = [line.split("\0")[:2] for line in text.split("\0\n") if line]
    return Writes(*({Path(path) for how, path in lines if how == name} for name in ("write", "append", "rename")))


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a path below a folder has a name on the way that is not shown: one of what is not finished, say."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def find_faults(folder: Path, writes: Writes, is_journal: Callable[[Path], bool]) -> list[str]:
    """What a command did in a folder that a kill could have left half.

    That is a final name that was opened to write, or a file that did not get its name once it was complete: by itself,
    or with the folder that it is in. Files to which lines are appended may be opened for that.
    """
    faults = []
    for path in sorted(writes.written | writes.appended):
        is_final = path.is_relative_to(folder) and not is_hidden(path, folder) and not _is_below(path, writes.renamed)
        if path.name.startswith("events.out.tfevents"):  # TensorBoard's, which its readers take as far as it goes
            continue
        if is_final and (path in writes.written or not is_journal(path)):
            faults.append(f"{path.relative_to(folder)} was opened to write")
    for path in sorted(folder.rglob("*")):
        is_final = path.is_file() and not is_hidden(path, folder) and not is_journal(path)
        if is_final and path not in writes.renamed and not _is_below(path, writes.renamed):
            faults.append(f"{path.relative_to(folder)} did not get its name when it was complete")
    return faults


def _is_below(path: Path, renamed: set[Path]) -> bool:
    """Whether a path is in a folder that got its name when all in it was written."""
    return any(parent in renamed for parent in path.parents)
