"""Checkpoints of runs by every way of loading them: of compiled backbones, and with weights that are no numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging

from swinv2_tasks.commands.weights import inspect
from swinv2_tasks.errors import UserError
from swinv2_tasks.tasks import ClassificationTask
from swinv2_tasks.training.run_checkpoint import AtomicCheckpointIO
from swinv2_tasks.weights import load_weights
from tests.helpers.every_task import TASKS
from tests.helpers.every_task import new_task as one_of_every_task
from tests.helpers.tiny import new_data, new_task, new_trainer, write_images

KEY = "backbone.layers.1.blocks.0.attn.qkv.weight"


def train(folder: Path, *callbacks: Any, compiled: bool = False) -> tuple[ClassificationTask, Path]:
    """A task trained for an epoch, and its checkpoint."""
    torch.manual_seed(0)
    task = new_task()
    if compiled:
        task.backbone = torch.compile(task.backbone, backend="eager")
    trainer = new_trainer(folder, *callbacks, plugins=[AtomicCheckpointIO()])
    trainer.fit(task, new_data(write_images(folder / "images")))
    trainer.save_checkpoint(folder / "run.ckpt")
    return task, folder / "run.ckpt"


def resume(path: Path, task: ClassificationTask | None = None, *callbacks: Any) -> ClassificationTask:
    task = task or new_task()
    trainer = new_trainer(path.parent, *callbacks, max_epochs=2, plugins=[AtomicCheckpointIO()])
    trainer.fit(task, new_data(path.parent / "images"), ckpt_path=str(path), weights_only=True)
    return task


def evaluate(path: Path, how: str) -> ClassificationTask:
    task = new_task()
    trainer = new_trainer(path.parent, plugins=[AtomicCheckpointIO()])
    getattr(trainer, how)(task, new_data(path.parent / "images"), ckpt_path=str(path), weights_only=True)
    return task


def load(path: Path) -> ClassificationTask:
    task = new_task()
    load_weights(task, path)
    return task


WAYS: dict[str, Callable[[Path], Any]] = {
    "resume": resume,
    "validate": lambda path: evaluate(path, "validate"),
    "test": lambda path: evaluate(path, "test"),
    "load_from_checkpoint": ClassificationTask.load_from_checkpoint,
    "load_weights": load,
    "inspect": lambda path: inspect(str(path)),
}


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    contents = torch.load(path, weights_only=True)
    edit(contents)
    torch.save(contents, path)


def with_nan(contents: dict[str, Any]) -> None:
    contents["state_dict"][KEY][2, 3] = math.nan


def with_integers(contents: dict[str, Any]) -> None:
    contents["state_dict"][KEY] = contents["state_dict"][KEY].int()


@pytest.mark.parametrize("edit", [with_nan, with_integers])
def test_weights_that_are_no_finite_numbers_are_refused_by_every_way(edit: Callable[..., None], tmp_path: Path) -> None:
    _, path = train(tmp_path)
    change(path, edit)
    for name, way in WAYS.items():
        with pytest.raises(UserError) as caught:
            way(path)
        assert KEY.removeprefix("backbone.") in str(caught.value), name
        assert str(path) in str(caught.value), name


def test_an_optimizer_state_that_is_not_finite_is_not_resumed(tmp_path: Path) -> None:
    _, path = train(tmp_path)

    def edit(contents: dict[str, Any]) -> None:
        contents["optimizer_states"][0]["state"][0]["exp_avg"].view(-1)[0] = math.inf

    change(path, edit)
    evaluate(path, "validate")  # which the optimizer is nothing to
    with pytest.raises(UserError, match=r"optimizer\.0\.state\.0\.exp_avg"):
        resume(path)


def test_averaged_weights_of_which_the_trained_ones_are_not_finite_are_not_resumed(tmp_path: Path) -> None:
    _, path = train(tmp_path, WeightAveraging())

    def edit(contents: dict[str, Any]) -> None:
        contents["current_model_state"][KEY][0, 0] = math.nan

    change(path, edit)
    evaluate(path, "validate")  # which the averages are for
    with pytest.raises(UserError, match=KEY):
        resume(path, None, WeightAveraging())


@pytest.mark.parametrize("way", WAYS)
def test_the_checkpoint_of_a_compiled_backbone_loads_by_every_way(way: str, tmp_path: Path) -> None:
    trained, path = train(tmp_path, compiled=True)
    assert any("_orig_mod" in name for name in torch.load(path, weights_only=True)["state_dict"])
    loaded = WAYS[way](path)
    if way in ("resume", "inspect"):  # the one resumes, the other prints
        return
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(x), trained.eval()(x))


@pytest.mark.parametrize("was_compiled", [False, True])
def test_a_compiled_task_resumes_from_either(was_compiled: bool, tmp_path: Path) -> None:
    _, path = train(tmp_path, compiled=was_compiled)
    task = new_task()
    task.backbone = torch.compile(task.backbone, backend="eager")
    assert resume(path, task).trainer.current_epoch == 2


@pytest.mark.parametrize("name", TASKS)
def test_every_task_refuses_a_head_that_is_not_finite(name: str) -> None:
    task, loaded = one_of_every_task(name), one_of_every_task(name)
    before = {key: value.clone() for key, value in loaded.state_dict().items()}
    state = {key: value.clone() for key, value in task.state_dict().items()}
    head = [key for key, value in state.items() if key.startswith("head.") and value.is_floating_point()]
    state[head[-1]].view(-1)[0] = math.nan
    with pytest.raises(UserError, match="NaN"):
        load_weights(loaded, state)
    assert all(torch.equal(value, before[key]) for key, value in loaded.state_dict().items())
    load_weights(loaded, task.state_dict())
