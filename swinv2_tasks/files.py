"""Files that are written atomically, and folders that can be written in."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes ``path`` atomically: a temporary file beside it, which is moved there once it is complete and on the disk.

    Raises:
        UserError: when it cannot be written. What was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or a power failure could leave the new name without the content
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's and safetensors' own errors for a full disk
        problem = f"{_reason(error)}{_free_space(path.parent)}"
        raise UserError(
            f"{path}: cannot be written ({problem}). Make room or name another place; what was there before is kept."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    cause = error.__context__
    return f"{text}: {cause}" if isinstance(cause, OSError) else text


def _free_space(folder: Path) -> str:
    try:
        return f"; {shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free there"
    except OSError:
        return ""


UNFINISHED = re.compile(r"\..+\.(ckpt|safetensors)\.\d+")
"""Names of checkpoints while ``replace_file`` writes them."""


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
