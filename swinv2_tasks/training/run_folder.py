"""The folder of a run: made for it alone, locked while it works in it, found again by a resumed run."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.child_processes import available_cores
from swinv2_tasks.errors import UserError
from swinv2_tasks.files import prove_writable, remove, replace_file, unwritable
from swinv2_tasks.outside_files import MOST_CONFIG_BYTES, load_yaml, read_text
from swinv2_tasks.records import FINISHED, STARTS, SUMMARY, mapping, optional, plain, read_json, require, values
from swinv2_tasks.text import command_word, printable

RUN_DIR = "SWINV2_TASKS_RUN_DIR"
"""Environment variable in which a run's first process gives those that it starts the run's folder."""

PACKAGES = (
    *("swinv2-tasks", "torch", "torchvision", "lightning", "torchmetrics", "numpy", "pillow", "albumentations"),
    "opencv-python-headless",
)
"""Packages whose versions a run writes down: those that its results may depend on."""

CLAIM = ".run"
"""File in a folder of checkpoints outside of the run's own that names the run's folder."""

RESULTS = ("*.ckpt", "*.safetensors", "metrics.csv", "summary.json", "nonfinite_*", "predictions.csv")
"""What must not be lost of a run."""

log = logging.getLogger("swinv2_tasks")

_locks: list[Any] = []  # a lock lasts as long as its file is open


def check_name(name: str) -> None:
    """Makes sure that a run's name is one folder's, so that nothing is written outside of all runs' folder.

    Raises:
        UserError: when it is not.
    """
    if not is_name(name):
        raise UserError(
            f"name {name!r} (--name, or name: in the config) is not a folder's name: give one without / and \\, "
            "neither empty nor . or .., and choose the folder of all runs by --runs"
        )


def is_name(name: str) -> bool:
    """Whether a run's name is one folder's."""
    return bool(name.strip()) and name not in (".", "..") and not any(mark in name for mark in "/\\\0")


def run_folder(parent: Path, command: str = "fit") -> Path:
    """A new run's folder: 0, 1, 2 … of trainings, validate_0 and so on of evaluations and predictions.

    Processes that the first one started find it in the environment.

    Raises:
        UserError: it cannot be made.
    """
    if RUN_DIR in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        return Path(os.environ[RUN_DIR])
    prefix = "" if command == "fit" else f"{command}_"
    # Other ranks under an outer launcher write nothing and get the path of checkpoints from the first.
    folder = _make_folder(parent, prefix) or parent / f"{prefix}0"
    os.environ[RUN_DIR] = str(folder)
    return folder


@rank_zero_only
def _make_folder(parent: Path, prefix: str) -> Path:
    """The next free number in ``parent``, made at once, so that two runs never share a folder."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            names = [entry.name for entry in parent.iterdir() if entry.name.startswith(prefix)]
            numbers = [int(number) for name in names if (number := name.removeprefix(prefix)).isdecimal()]
            folder = parent / f"{prefix}{max(numbers, default=-1) + 1}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue  # another run was faster
            lock(folder)
            return folder
    except OSError as error:
        remedy = "give another folder of all runs by --runs, or one for the results of this command alone by --output"
        raise UserError(
            f"cannot make a folder for this run in {printable(parent)}: {error.strerror}; "
            + (remedy if prefix else "give another folder of all runs by --runs, or another --name")
        ) from error


class OutputFolder:
    """A folder of a user's own that a run writes to; what a failed run has added there can be removed again.

    Args:
        results: the folder that the user names.
        folder: where the run writes its record: the same, or a folder in it.
    """

    def __init__(self, results: Path, folder: Path) -> None:
        self.results, self.folder = results, folder
        self._before = {*folder.iterdir()} if folder.is_dir() else set()
        self._missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]

    def remove_additions(self) -> None:
        """Removes what was added to the folder, and the folders that were made for it, unless there are results."""
        if any(next(self.results.glob(pattern), None) is not None for pattern in RESULTS):
            return
        added = {*self.folder.iterdir()} - self._before if self.folder.is_dir() else set()
        with suppress(OSError):  # the error that ended the run is what matters
            for path in added:
                remove(path)
            for folder in self._missing:
                folder.rmdir()


def open_folder(folder: Path, option: str) -> None:
    """Makes a folder of results, claims it until this process ends, and makes sure that files can be written in it.

    Args:
        folder: made when it is missing.
        option: the argument that names it, for the message.

    Raises:
        UserError: when another process works in it, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, option, error) from error
    prove_writable(folder, option)
    lock(folder)


@rank_zero_only
def lock(folder: Path) -> None:
    """Claims a run's folder until this process ends, however it ends.

    Raises:
        UserError: when another process works in it, or nothing can be written there.
    """
    try:
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}; copy the run to where you can") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which DataLoader workers would inherit
    except BlockingIOError as error:
        file.close()
        raise UserError(f"{printable(folder)} is in use by another process, which has not ended") from error
    except OSError:  # some network file systems know no locks
        pass
    _locks.append(file)


@rank_zero_only
def unlock(folder: Path) -> None:
    """Gives back what ``lock`` has claimed, while this process continues: others may work in the folder."""
    for file in [locked for locked in _locks if Path(locked.name) == folder / ".lock"]:
        file.close()
        _locks.remove(file)


@rank_zero_only
def claim_folder(folder: Path, run: Path) -> None:
    """Makes a folder of checkpoints that of one run: others may not write there.

    Args:
        folder: made when it is missing.
        run: the run's folder.

    Raises:
        UserError: when it is another run's, holds checkpoints of who knows which, or cannot be written to.
    """
    folder, run = folder.absolute(), Path(os.path.realpath(run))
    if Path(os.path.realpath(folder)).is_relative_to(run):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / CLAIM).open("a+") as claim:
            with suppress(OSError):  # some network file systems know no locks
                fcntl.lockf(claim, fcntl.LOCK_EX)  # until the file is closed
            claim.seek(0)
            owner = claim.read()
            if any(folder.glob("*.ckpt")) and not _wrote_into(run, folder):
                raise UserError(_occupied(folder, f"the checkpoints of {owner}" if owner else "checkpoints already"))
            if owner not in ("", str(run)) and Path(owner).exists():  # or it failed at its start, or was moved
                raise UserError(_occupied(folder, f"the checkpoints of {owner}"))
            claim.truncate(0)
            claim.write(str(run))
    except OSError as error:
        raise UserError(f"cannot write in {folder} (checkpoint.dirpath): {error.strerror}") from error


def _occupied(folder: Path, what: str) -> str:
    return (
        f"{folder} (checkpoint.dirpath) holds {what}, which this run would overwrite: name another folder, or leave "
        "checkpoint.dirpath out for one in the run's own"
    )


def _wrote_into(run: Path, folder: Path) -> bool:
    """Whether the training that a run's folder holds wrote checkpoints into this one."""
    config = run / "config.yaml"
    if not config.is_file():  # a new run
        return False
    settings = _read_config(config)
    callbacks = (settings.get("trainer") or {}).get("callbacks") or []
    parts = [settings.get("checkpoint"), *(part.get("init_args") for part in callbacks if isinstance(part, Mapping))]
    dirpaths = [part["dirpath"] for part in parts if isinstance(part, Mapping) and part.get("dirpath")]
    return any(os.path.realpath(dirpath) == os.path.realpath(folder) for dirpath in dirpaths)


def _read_config(config: Path) -> dict[str, Any]:
    """The config that a run has kept.

    Raises:
        UserError: it is none.
    """
    try:
        settings = load_yaml(read_text(config, MOST_CONFIG_BYTES))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{config} cannot be read ({_first_line(error)}). {_COPY_AGAIN}") from error
    require(settings, mapping({}, {"trainer": optional(values(plain))}), f"{config} is corrupt: in it,", _COPY_AGAIN)
    return dict(settings)


_COPY_AGAIN = "Copy the run again, or start a new one."


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def holds_results(folder: Path) -> bool:
    """Whether a run's folder holds what must not be lost.

    That is a checkpoint, weights, metrics, predictions, or what explains a failure.
    """
    return any(next(folder.rglob(pattern), None) is not None for pattern in RESULTS)


def find_requeued_run(parent: Path, arguments: Sequence[str]) -> Path | None:
    """The folder of the run that this is the continuation of, when SLURM has started its job again."""
    job, restarts = os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if job is None or not restarts or os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    for folder in (path.parent for path in parent.glob("*/run.json")):
        try:
            start = read_json(folder / "run.json", STARTS, _COPY_AGAIN)["starts"][-1]
        except UserError as error:
            log.warning("passed over: %s", error)
            continue
        same = start.get("slurm_job") == job and start["arguments"] == [*arguments]
        if same and not _is_finished(folder) and any(folder.rglob("*.ckpt")):
            return folder
    return None


_REMOVE = "Copy it again, or remove it: the run is then resumed from its newest checkpoint."


def _is_finished(folder: Path) -> bool:
    """Whether a run has come to its end; one that was stopped has a summary, too."""
    summary = folder / "summary.json"
    return summary.is_file() and read_json(summary, SUMMARY, _REMOVE)["status"] == "finished"


def describe_finished(folder: Path, trainer: Mapping[str, Any]) -> str | None:
    """That a run has come to its end and how to train longer; None where it has not, or is to end elsewhere.

    Args:
        folder: the run's.
        trainer: settings of the trainer that would resume it.
    """
    if not _is_finished(folder):
        return None
    summary = read_json(folder / "summary.json", FINISHED, _REMOVE)
    before = _read_config(folder / "config.yaml").get("trainer") or {}

    if any(trainer[name] != before.get(name) for name in ("max_epochs", "max_steps", "max_time")):
        return None

    epochs, steps = summary["epochs"], summary["steps"]
    longer = f"--trainer.max_epochs {2 * epochs}"
    if trainer["max_steps"] not in (None, -1):
        longer = f"--trainer.max_steps {2 * steps}"
    return (
        f"{printable(folder)} is finished: {epochs} epoch{'s' * (epochs != 1)}, {steps} step{'s' * (steps != 1)}; "
        "nothing was changed.\n"
        f"To train longer: swinv2-tasks fit --resume {command_word(folder)} {longer}"
    )


def record_start(folder: Path, **details: Any) -> None:
    """Adds this start to the run's run.json: versions, commit, hardware, and ``details``."""
    path = folder / "run.json"
    starts = read_json(path, STARTS, _COPY_AGAIN)["starts"] if path.is_file() else []
    starts.append({**_environment(), **details})
    replace_file(path, lambda file: file.write_text(json.dumps({"starts": starts}, indent=2) + "\n", "utf-8"))


def _environment() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": git_commit(),
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpus,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def git_commit() -> str | None:
    """The commit of this package's source, with "+changes" when files differ from it; None when it is not in git."""
    package = Path(__file__).parents[1]
    if not (package.parent / ".git").exists():  # one around it is somebody else's, and may start programs
        return None

    def git(*arguments: str) -> str:
        quiet = ["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]
        command = ["git", *quiet, "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # a .venv inside somebody else's repository is not it
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
