"""Checkpoints whose records are not what this package writes: each entry, with each wrong kind of value.

In each case one message says which entry it is; where a value is one that the entry may have, the checkpoint is used.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from swinv2_tasks.cli.configs import config_from_checkpoint
from swinv2_tasks.cli.tasks_cli import TasksCLI, run
from swinv2_tasks.errors import UserError
from swinv2_tasks.hyperparameters import task_record
from swinv2_tasks.tasks import ClassificationTask
from swinv2_tasks.training.recorded_state import check_state
from swinv2_tasks.training.run_folder import RUN_DIR
from tests.helpers.processes import start
from tests.helpers.tiny import write_config
from tests.helpers.wrong_records import MISSING, WRONG, Key, entries, replaced, show

INSIDE = re.compile(r"Traceback|<class|swinv2_tasks\.\w+\.|torch\.\w+\.|NoneType|KeyError|TypeError")


@pytest.fixture
def trained(dataset: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TasksCLI:
    """A training of one epoch, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_DIR, raising=False)
    write_config(tmp_path / "tiny.yaml", dataset("classification"))
    return run("fit", ["--config", "tiny.yaml", "--trainer.max_epochs", "1"])


def contents_of(cli: TasksCLI) -> dict[str, Any]:
    return torch.load(cli.folder / "checkpoints" / "last.ckpt", weights_only=True)


def walked(contents: Any) -> list[Key]:
    """The keys of all records: the weights themselves are no part of them."""
    return [key for key in entries(contents) if key[0] != "state_dict"]


def test_every_entry_of_a_checkpoint_is_looked_at(trained: TasksCLI) -> None:
    """No wrong value raises anything but a message that names the entry, and hardly any is taken."""
    contents, trainer = contents_of(trained), trained.trainer
    trainer.state.fn = TrainerFn.FITTING
    taken: dict[str, list[str]] = {}
    for key in walked(contents):
        for kind, value in WRONG.items():
            message = refusal(replaced(contents, key, value), trainer)
            if message is None:
                taken.setdefault(show(key), []).append(kind)
                continue
            assert message.startswith("a.ckpt"), message
            assert len(message) < 360, message
            assert INSIDE.search(message) is None, message

    for needed in ("epoch", "global_step", "loops", "optimizer_states", "lr_schedulers", "callbacks", "swinv2_tasks"):
        assert "missing" not in taken.get(needed, []), needed
    counts = [name for name in taken if re.search(r"progress.*\.(ready|completed|started|processed)$", name)]
    assert not [name for name in counts if name.startswith("loops.fit_loop")]
    assert taken["swinv2_tasks.name"] == ["text"]
    assert "swinv2_tasks.backbone.embed_dim" not in taken
    assert "swinv2_tasks.training.processes" not in taken
    assert taken["swinv2_tasks.training.mid_accumulation"] == ["truth"]


def refusal(contents: Any, trainer: Trainer) -> str | None:
    """What is said of the contents of a checkpoint before anything is taken over; None where all is."""
    try:
        record = task_record(contents, "a.ckpt")
        check_state(contents, trainer, "a.ckpt")
        assert record["task"]["class"]
    except UserError as error:
        return str(error)
    return None


READERS: dict[str, Callable[[Path], object]] = {
    "config": lambda path: config_from_checkpoint(str(path)),
    "load": ClassificationTask.load_from_checkpoint,
}
"""What reads a checkpoint in Python."""


@pytest.mark.parametrize("reader", [pytest.param("config", marks=pytest.mark.slow), "load"])
def test_records_of_tasks_and_data_are_read_or_refused(reader: str, trained: TasksCLI, tmp_path: Path) -> None:
    contents = contents_of(trained)
    path = tmp_path / "changed.ckpt"
    keys = [key for key in walked(contents["swinv2_tasks"]) if key[0] in ("task", "data", "backbone", "windows")]
    for index, key in enumerate(keys):
        # Each entry with two of the kinds: all of them are tried above.
        for kind in [*WRONG][index % 6 :: 6]:
            torch.save(replaced(contents, ("swinv2_tasks", *key), WRONG[kind]), path)
            try:
                READERS[reader](path)
            except UserError as error:
                assert INSIDE.search(str(error)) is None, (show(key), kind, str(error))


# ---- by the command line


CASES: list[tuple[str, Key, Any, str]] = [
    ("fit", ("epoch",), "one", "epoch is 'one'; expected a whole number from 0 up"),
    ("fit", ("loops", "fit_loop", "epoch_progress", "current", "ready"), None, "epoch_progress.current.ready is null"),
    ("fit", ("loops", "fit_loop", "state_dict", "combined_loader", 0, "batches"), -1, "batches is -1"),
    ("fit", ("callbacks", "RunRecord", "wall_seconds"), "long", "callbacks.RunRecord.wall_seconds is 'long'"),
    ("fit", ("optimizer_states", 0, "param_groups", 0, "lr"), float("nan"), "lr is nan"),
    ("fit", ("optimizer_states", 0, "param_groups", 0, "betas"), MISSING, "betas is missing"),
    ("fit", ("optimizer_states", 0, "state", 0, "exp_avg"), torch.ones(2, 3), "exp_avg is a tensor of another shape"),
    ("fit", ("optimizer_states", 0, "state", 0), "none", "state"),
    ("fit", ("optimizer_states", 0, "state"), {99: {"step": 1.0}}, "99 is the state of no parameter"),
    ("fit", ("lr_schedulers", 0, "last_epoch"), [], "last_epoch is a list of 0"),
    ("fit", ("ImageNetDataModule", "seed"), "seed", "seed is 'seed'"),
    ("fit", ("pytorch-lightning_version",), "new", "cannot be taken over"),
    ("validate", ("swinv2_tasks", "windows", "effective", 0), [4], "windows.effective has 1 entries where 2 belong"),
    ("validate", ("swinv2_tasks", "data", "init_args", "image_size"), {"a": 1}, "'image_size'"),
    ("predict", ("swinv2_tasks", "backbone", "embed_dim"), 10**30, "backbone.embed_dim is a number of more than"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("command", "key", "value", "problem"), CASES, ids=lambda part: str(part)[:60])
def test_a_command_says_which_entry_is_wrong(
    command: str, key: Key, value: Any, problem: str, trained_run: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "tiny" / "0"
    shutil.copytree(trained_run("classification"), folder)
    (folder / "summary.json").unlink()
    path = folder / "checkpoints" / "last.ckpt"
    contents = torch.load(path, weights_only=True)
    for other in folder.glob("checkpoints/*.ckpt"):
        other.unlink()
    torch.save(replaced(contents, key, value), path)
    arguments = {
        "fit": ["fit", "--resume", str(folder), "--trainer.max_epochs", "90"],
        "validate": ["validate", "--ckpt_path", str(path)],
        "predict": ["predict", "--ckpt_path", str(path), "--data.source", "nowhere"],
    }

    result = start(arguments[command], tmp_path).wait()

    assert result.status == 1, result.errors
    lines = [line for line in result.errors.splitlines() if line.startswith("swinv2-tasks:")]
    assert len(lines) == 1, result.errors
    assert problem in lines[0]
    assert INSIDE.search(result.errors) is None
