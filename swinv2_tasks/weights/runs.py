"""The checkpoint that the folder of a run stands for: its best one, by the metric that its training watched.

    runs/NAME/3             a training, with its checkpoints
    runs/NAME/validate_0    an evaluation, which has none
    runs/NAME               all of a name; of its trainings the newest one with checkpoints counts

Which checkpoint is the best one is read from what the training has saved of its ``ModelCheckpoint``, since the config
may choose another name (``checkpoint.filename``) and another folder (``checkpoint.dirpath``). Nothing in a file is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import read_json
from swinv2_tasks.weights.files import holds_weights, read_contents
from swinv2_tasks.weights.formats import some
from swinv2_tasks.weights.sharded import is_sharded

FILE_SUFFIXES = (".ckpt", ".pth", ".pt", ".bin", ".safetensors")
"""What the names of checkpoints end in, those in shards among them, which are folders."""

MAX_LISTED = 10
"""Runs that a message names."""

MAX_SCANNED = 1000
"""Entries of a folder that are looked at for runs: one of images may have a million."""


def is_checkpoint(path: Path) -> bool:
    """Whether a path is that of a checkpoint by itself, there or missing: a file, or a folder with weights."""
    if path.suffix in FILE_SUFFIXES or path.is_file():
        return True
    return path.is_dir() and (is_sharded(path) or holds_weights(path))


def is_run(path: Path) -> bool:
    """Whether a path is the folder of a run, or of a name with trainings, and no checkpoint by itself."""
    if is_checkpoint(path) or not path.is_dir():
        return False
    return _is_one_run(path) or bool(_trainings(path))


def find_checkpoint(folder: Path) -> tuple[Path, str]:
    """The checkpoint that a folder stands for.

    Args:
        folder: of a run, or of a name.

    Returns:
        The best checkpoint, or the last one where none is best; and a line that says which was taken.

    Raises:
        UserError: it is no such folder, or has no checkpoint; the message lists the runs that are there.
    """
    run = find_training(folder)
    last, watched = None, False
    for path, contents in _read_checkpoints(run):
        last = last or path
        for state in _watching_states(contents):
            watched = True
            best = _find_best(run, state)
            if best is not None:
                return best, f"{folder}: taking its best checkpoint, {best}"
        if watched or path.name == "last.ckpt":  # older ones know no better
            break

    if last is None:
        raise UserError(f"{folder}: none of the checkpoints in {run / 'checkpoints'} can be read; copy them again")
    reason = "its best checkpoint is gone" if watched else "none of its checkpoints is the best by a metric"
    return last, f"{folder}: {reason}; taking the last one, {last}"


def checkpoint_of(path: str | PathLike[str]) -> Path:
    """A path of weights unchanged, and that of the best checkpoint in the place of a run's folder."""
    path = Path(path)
    return find_checkpoint(path)[0] if is_run(path) else path


def find_training(folder: Path) -> Path:
    """The folder of a training with checkpoints: the folder itself, or the newest one of a name.

    Raises:
        UserError: there is none; the message lists the runs that are there.
    """
    if holds_checkpoints(folder):
        return folder
    if trainings := _trainings(folder):
        return trainings[-1]
    raise UserError(f"{_describe_fault(folder)}; {_list_runs(folder)}")


def holds_checkpoints(run: Path) -> bool:
    """Whether a run's folder holds a checkpoint, or the weights that are written of one in the end."""
    return next(run.glob("checkpoints/*.ckpt"), None) is not None or (run / "weights.safetensors").is_file()


def command_of(run: Path) -> str | None:
    """The command that a run was started with: fit, validate, test or predict; None where its run.json is missing."""
    try:
        return str(read_json(run / "run.json")["starts"][0]["arguments"][0])
    except (OSError, ValueError, LookupError, TypeError):
        return None


# ---- the checkpoints of a run


def _read_checkpoints(run: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """A run's checkpoints with their contents, those first that know most; what cannot be read is passed over."""
    checkpoints = run / "checkpoints"
    states = [path for name in ("last", "previous") if (path := checkpoints / f"{name}.ckpt").exists()]
    others = sorted({*checkpoints.glob("*.ckpt")} - {*states}, key=lambda path: path.stat().st_mtime, reverse=True)
    weights = run / "weights.safetensors"
    for path in [*states, *others, *([weights] if weights.is_file() else [])]:
        try:
            contents = read_contents(path)
        except UserError:
            continue
        yield path, contents


def _watching_states(contents: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a checkpoint holds of the callbacks that watched a metric and have found a best checkpoint."""
    callbacks = contents.get("callbacks")
    states = [*callbacks.values()] if isinstance(callbacks, Mapping) else []
    return [
        state
        for state in states
        if isinstance(state, Mapping) and state.get("monitor") and isinstance(state.get("best_model_path"), str)
        if state["best_model_path"]
    ]


def _find_best(run: Path, state: Mapping[str, Any]) -> Path | None:
    """The best checkpoint: in the run's folder, which may be a copy, or in the one that its training was given."""
    recorded = Path(state["best_model_path"])
    own = run / "checkpoints" / recorded.name
    if own.exists():
        return own
    is_of_the_original = (recorded.parent.parent / "run.json").is_file()
    return recorded if recorded.exists() and not is_of_the_original else None


# ---- the runs that are there


def _is_one_run(folder: Path) -> bool:
    return (folder / "run.json").is_file() or holds_checkpoints(folder)


def _trainings(folder: Path) -> list[Path]:
    """The trainings of a name that have checkpoints, by number."""
    numbered = [path for path in _subfolders(folder) if path.name.isdecimal() and holds_checkpoints(path)]
    return sorted(numbered, key=lambda path: int(path.name))


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [path for path in islice(folder.iterdir(), MAX_SCANNED) if path.is_dir()]
    except OSError:  # it is missing, or others may not look into it
        return []


def _describe_fault(folder: Path) -> str:
    """Why a folder stands for no checkpoint."""
    if not folder.exists():
        return f"there is no run {folder}"
    command = command_of(folder)
    if command not in (None, "fit"):
        return f"{folder} was made by {command}, which leaves no checkpoint"
    if command == "fit":
        return f"{folder} is a run without a checkpoint"
    return f"{folder} is no run, and holds no training with a checkpoint"


def _list_runs(folder: Path) -> str:
    """The runs that could have been meant: those in a folder, beside it, or in ``runs``."""
    for parent in (folder, folder.parent, folder.parent.parent, Path("runs")):
        if runs := _runs_in(parent):
            return f"there {'are' if len(runs) > 1 else 'is'}: {some(map(str, runs), MAX_LISTED)}"
    return "there are none; train one with swinv2-tasks fit, or name the file of a checkpoint"


def _runs_in(parent: Path) -> list[Path]:
    """What could be named in a folder: itself, its trainings, or the names in it that have some."""
    if holds_checkpoints(parent):
        return [parent]
    return _trainings(parent) or sorted(path for path in _subfolders(parent) if _trainings(path))
