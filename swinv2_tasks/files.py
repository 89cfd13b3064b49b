"""Files that are written atomically, and folders that can be written in."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes ``path`` atomically: a file of that name in a hidden folder, moved once it is complete and on the disk.

    What writers of ``path`` that were killed have left is removed first. Of two that write at the same time each has a
    hidden folder of its own, and the last one's content stays.

    Args:
        path: the file; folders on the way are made.
        write: writes the file that it is given; what else it leaves beside that is removed.

    Raises:
        UserError: when it cannot be written. What was there before stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(path)
        with _locked_folder(path) as folder:
            unfinished = folder / path.name
            write(unfinished)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())  # or a power failure could leave the new name without the content
            os.replace(unfinished, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's and safetensors' own errors for a full disk
        problem = f"{_reason(error)}{_free_space(path.parent)}"
        raise UserError(
            f"{path}: cannot be written ({problem}). Make room or name another place; what was there before is kept."
        ) from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` that gets its name when it is complete; nothing stays of it otherwise.

    Args:
        path: the folder, which is not there yet or is empty. What killed writers of it have left is removed.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(path)
    with _locked_folder(path) as folder:
        yield folder
        folder.replace(path)


def unfinished_name(path: Path) -> Path:
    """A hidden name beside ``path`` for what is being written, which no other process has, on no other machine."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextmanager
def _locked_folder(path: Path) -> Iterator[Path]:
    """A hidden folder for what becomes ``path``, locked for as long as it is needed: a killed writer's is no more."""
    handle = None
    while handle is None:  # once, unless another writer takes the folder for left behind before it is locked
        folder = unfinished_name(path)
        folder.mkdir()
        handle = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _lock(folder: Path) -> int | None:
    """Locks a folder until the number that is returned is closed; None where it was removed in the meantime."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # some network file systems know no locks
        fcntl.flock(handle, fcntl.LOCK_EX)
    if folder.exists():
        return handle
    os.close(handle)
    return None


def _remove_left_behind(path: Path) -> None:
    """Removes the hidden folders of a path whose writers were killed; others are being written in right now.

    A folder that is a link leads to where others may keep some of such names: nothing is removed there.
    """
    if path.parent.is_symlink():
        return
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{_TOKEN}")
    with os.scandir(path.parent) as entries:
        left = [
            entry.path for entry in entries if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
    for folder in left:
        with suppress(OSError):  # raised where it is locked, or is gone by now
            handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)  # which follows no link
            finally:
                os.close(handle)


def append(path: Path, text: str, header: str = "") -> None:
    """Appends text to a file that other processes may append to as well: all of it or, on a full disk, nothing.

    A kill may leave part of the last line: whoever reads the file takes a line without its end as not written.

    Args:
        path: the file; made when it is missing.
        text: what to append.
        header: what comes first in a new file.

    Raises:
        OSError: it cannot be written; what was there before is kept.
    """
    with path.open("ab") as file:
        with suppress(OSError):  # some network file systems know no locks
            fcntl.lockf(file, fcntl.LOCK_EX)  # until it is closed
        size = os.fstat(file.fileno()).st_size
        try:
            file.write(((header if size == 0 else "") + text).encode())
            file.flush()
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    cause = error.__context__
    return f"{text}: {cause}" if isinstance(cause, OSError) else text


def _free_space(folder: Path) -> str:
    try:
        return f"; {shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free there"
    except OSError:
        return ""


_TOKEN = "[0-9a-f]{8}"
"""What ``unfinished_name`` ends a name with."""

UNFINISHED = re.compile(rf"\..+\.(ckpt|safetensors)\.({_TOKEN}|\d+)")
"""Names of checkpoints while they are being written; earlier versions ended them with the number of a process."""


def remove_unfinished(folder: Path) -> None:
    """Removes what writers that were killed left half-written in a folder. No other process may be writing there.

    A folder that is a link leads to where others may keep files of such names: nothing is removed there.
    """
    if folder.is_symlink():
        return
    for path in folder.glob(".*.*"):
        if UNFINISHED.fullmatch(path.name):
            remove(path)


def remove(path: Path) -> None:
    """Removes a file or a folder with all that is in it, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def prove_writable(folder: Path, option: str) -> None:
    """Makes sure that files can be written in a folder, before the work whose results they hold.

    Args:
        folder: must be there.
        option: the argument that names it, for the message.

    Raises:
        UserError: when nothing can be written there.
    """
    proof = folder / f".proof.{os.getpid()}"
    try:
        proof.write_bytes(bytes(4096))
    except OSError as error:
        raise unwritable(folder, option, error) from error
    finally:
        with suppress(OSError):
            proof.unlink()


def unwritable(folder: Path, option: str, error: OSError) -> UserError:
    """What to say of a folder that cannot be written in; arguments as above."""
    return UserError(
        f"cannot write in {printable(folder)} ({option}): {error.strerror}. Make room, or name another folder."
    )


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder by its name, with each ``..`` taken back; links are not followed."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
