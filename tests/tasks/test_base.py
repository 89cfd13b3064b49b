"""What all tasks share: checkpoints that say how to build the task again, classes, optimizer and schedule."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn
from torch.optim import SGD

from swinv2_tasks.backbone import BiasTable, LinearCPB, SwinTransformerV2
from swinv2_tasks.callbacks import Throughput
from swinv2_tasks.errors import UserError
from swinv2_tasks.tasks import ClassificationTask
from swinv2_tasks.training.optim import CosineSchedule, Schedule, StepSchedule
from swinv2_tasks.training.run_checkpoint import RunCheckpoint
from swinv2_tasks.weights import save_weights
from tests.helpers import own_optimization
from tests.helpers.checkpoints import randomize
from tests.helpers.tiny import BACKBONE, new_data, new_task, new_trainer


def pixels(side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))


def fit_task(images: Path, folder: Path, window: Any = 4, image_size: int = 32, **arguments: Any) -> ClassificationTask:
    """A task that took a step of training, and its checkpoint in folder/task.ckpt."""
    task = new_task(window=window, **arguments)
    trainer = new_trainer(folder, limit_train_batches=1, limit_val_batches=1)
    trainer.fit(task, new_data(images, image_size=image_size))
    randomize(task)  # norms start at 0, which hides the blocks
    trainer.save_checkpoint(folder / "task.ckpt")
    return task.eval()


@pytest.fixture(scope="module")
def checkpoint(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    fit_task(images, folder)
    return folder / "task.ckpt"


def change_checkpoint(checkpoint: Path, path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    contents = torch.load(checkpoint, weights_only=True)
    change(contents["swinv2_tasks"])
    torch.save(contents, path)
    return path


# ---- checkpoints


def test_checkpoints_hold_nothing_but_data(checkpoint: Path) -> None:
    """torch.load refuses everything else under weights_only."""
    contents = torch.load(checkpoint, weights_only=True)
    assert contents["swinv2_tasks"]["task"]["class"] == "ClassificationTask"
    assert "hyper_parameters" not in contents


@torch.no_grad()
def test_windows_are_recorded_as_in_effect_at_the_training_size(images: Path, tmp_path: Path) -> None:
    """Window 16 at 64 pixels: maps of 16×16 and 8×8, so that the second stage's window is 8."""
    task = fit_task(images, tmp_path, window=16, image_size=64)
    record = torch.load(tmp_path / "task.ckpt", weights_only=True)["swinv2_tasks"]
    assert record["windows"] == {"effective": [[16, 16], [8, 8]], "pretrained": [[16, 16], [8, 8]]}
    loaded = ClassificationTask.load_from_checkpoint(tmp_path / "task.ckpt")
    assert loaded.backbone.window_size == ((16, 16), (16, 16))
    assert loaded.backbone.pretrained_window_size == ((16, 16), (8, 8))
    # At the training size the position bias is the one trained with; at 128 pixels it starts from there.
    torch.testing.assert_close(loaded(pixels(64)), task(pixels(64)), rtol=0, atol=0)
    by_hand = new_task(window=16)
    by_hand.load_state_dict(task.state_dict())
    by_hand.backbone.set_pretrained_window([[16, 16], [8, 8]])
    torch.testing.assert_close(loaded(pixels(128)), by_hand.eval()(pixels(128)), rtol=0, atol=0)
    assert (loaded(pixels(128)) - task(pixels(128))).abs().max() > 1e-4  # which has forgotten, as it knows no window


def test_windows_of_a_first_pretraining_survive_fine_tuning(images: Path, tmp_path: Path) -> None:
    task = new_task(window=8)
    task.backbone.set_pretrained_window([[4, 4], [2, 2]])
    trainer = new_trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(task, new_data(images, image_size=32))
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    windows = torch.load(tmp_path / "task.ckpt", weights_only=True)["swinv2_tasks"]["windows"]
    assert windows == {"effective": [[8, 8], [4, 4]], "pretrained": [[4, 4], [2, 2]]}


@torch.no_grad()
def test_every_setting_of_the_backbone_comes_back(images: Path, tmp_path: Path) -> None:
    pretrained: Any = [[5, 5], 0]  # no window of pre-training in the second stage
    backbone = SwinTransformerV2(
        12,
        (2, 1),
        (3, 2),
        [[3, 3], [2, 4]],
        pretrained_window_size=pretrained,
        patch_size=2,
        mlp_ratio=2.0,
        drop_path_rate=0.3,
        position_bias=LinearCPB,
        extra_norm_every=2,
    )
    task: Any = randomize(ClassificationTask(backbone, 3))
    trainer = new_trainer(tmp_path)
    trainer.validate(task, new_data(images), verbose=False)
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    loaded = ClassificationTask.load_from_checkpoint(tmp_path / "task.ckpt")
    expected = backbone.config | {"pretrained_window_size": [[5, 5], [2, 4]]}
    assert loaded.backbone.config == expected
    torch.testing.assert_close(loaded(pixels()), task.eval()(pixels()), rtol=0, atol=0)


@torch.no_grad()
def test_arguments_given_on_loading_go_before_recorded_ones(checkpoint: Path) -> None:
    backbone = SwinTransformerV2(**{**BACKBONE, "window_size": 8})
    loaded: Any = ClassificationTask.load_from_checkpoint(checkpoint, backbone=backbone, dropout=0.5)
    assert loaded.head.dropout.p == 0.5
    assert loaded.backbone is backbone
    assert backbone.pretrained_window_size == ((4, 4), (4, 4))  # those of the training
    live = ClassificationTask.load_from_checkpoint(checkpoint)
    live.backbone.set_window(8)
    torch.testing.assert_close(loaded(pixels(64)), live(pixels(64)), rtol=0, atol=0)


@torch.no_grad()
def test_bias_tables_are_resized_for_another_window(images: Path, tmp_path: Path) -> None:
    table = {**BACKBONE, "position_bias": BiasTable}
    task, trainer = ClassificationTask(SwinTransformerV2(**table), 3), new_trainer(tmp_path)
    trainer.fit(task, new_data(images))
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    backbone = SwinTransformerV2(**{**table, "window_size": 6})
    loaded = ClassificationTask.load_from_checkpoint(tmp_path / "task.ckpt", backbone=backbone)
    live = ClassificationTask.load_from_checkpoint(tmp_path / "task.ckpt")
    live.backbone.set_window(6)
    torch.testing.assert_close(loaded(pixels(48)), live(pixels(48)), rtol=0, atol=0)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_tasks_and_datamodules_can_be_copied_and_pickled(duplicate: Callable[[Any], Any], images: Path) -> None:
    task, data = randomize(new_task(dropout=0.1)).eval(), new_data(images, batch_size=5)
    data.setup("fit")
    with torch.no_grad():
        expected = task(pixels())
        twin = duplicate(task)
        torch.testing.assert_close(twin(pixels()), expected, rtol=0, atol=0)
    assert twin.init_args == task.init_args
    other = duplicate(data)
    assert other.init_args == data.init_args
    assert other.train_samples == data.train_samples


# ---- checkpoints that must not be trusted


def test_a_checkpoint_of_another_class_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = change_checkpoint(
        checkpoint, tmp_path / "other.ckpt", lambda record: record["task"].update({"class": "os.system"})
    )
    with pytest.raises(UserError, match=r"other\.ckpt holds a os\.system, not a ClassificationTask"):
        ClassificationTask.load_from_checkpoint(path)


@pytest.mark.parametrize("name", ["os.system", "swin_v2.torch.nn.Linear", "LogCPB.forward", ""])
def test_only_known_position_biases_are_built(name: str, checkpoint: Path, tmp_path: Path) -> None:
    path = change_checkpoint(
        checkpoint, tmp_path / "bias.ckpt", lambda record: record["backbone"].update(position_bias=name)
    )
    with pytest.raises(UserError, match="LogCPB, LinearCPB, BiasTable"):
        ClassificationTask.load_from_checkpoint(path)


@pytest.mark.parametrize("part", ["backbone", "optimizer", "schedule"])
def test_a_checkpoint_that_names_parts_to_build_is_refused(part: str, checkpoint: Path, tmp_path: Path) -> None:
    hostile = {part: {"class_path": "os.system", "init_args": {"command": "true"}}}
    path = change_checkpoint(
        checkpoint, tmp_path / "parts.ckpt", lambda record: record["task"]["init_args"].update(hostile)
    )
    with pytest.raises(UserError, match=rf"parts\.ckpt .* does not record its '{part}'"):
        ClassificationTask.load_from_checkpoint(path)


def test_a_checkpoint_does_not_choose_files_to_read(checkpoint: Path, tmp_path: Path) -> None:
    hostile = {"weights": str(tmp_path / "elsewhere.pth")}
    path = change_checkpoint(
        checkpoint, tmp_path / "files.ckpt", lambda record: record["task"]["init_args"].update(hostile)
    )
    ClassificationTask.load_from_checkpoint(path)  # would not find the file


def test_weights_of_another_origin_are_no_checkpoint_of_a_run(tmp_path: Path) -> None:
    save_weights(new_task(), tmp_path / "official.pth")
    with pytest.raises(UserError, match=r"official\.pth holds no run of this package.*--model\.weights"):
        ClassificationTask.load_from_checkpoint(tmp_path / "official.pth")


def test_tensors_that_do_not_fit_are_named(checkpoint: Path) -> None:
    larger = SwinTransformerV2(**{**BACKBONE, "embed_dim": 16})
    with pytest.raises(UserError, match=r"of another shape: backbone\.patch_embed\.proj\.weight \(\(8, 3, 4, 4\)"):
        ClassificationTask.load_from_checkpoint(checkpoint, backbone=larger)


def test_missing_tensors_are_named(checkpoint: Path, tmp_path: Path) -> None:
    contents = torch.load(checkpoint, weights_only=True)
    del contents["state_dict"]["head.fc.weight"]
    torch.save(contents, tmp_path / "part.ckpt")
    with pytest.raises(UserError, match=r"1 missing: head\.fc\.weight"):
        ClassificationTask.load_from_checkpoint(tmp_path / "part.ckpt")


# ---- classes


def test_the_same_classes_in_another_order_are_other_classes(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    task = ClassificationTask.load_from_checkpoint(checkpoint)
    with pytest.raises(UserError, match="n02, n01, n03"):
        new_trainer(tmp_path).validate(task, new_data(images, class_names=["n02", "n01", "n03"]), verbose=False)


# ---- optimizer and schedule


def learned(
    images: Path, folder: Path, data: dict[str, Any] | None = None, **trainer: Any
) -> tuple[Any, ClassificationTask]:
    task = new_task(schedule=CosineSchedule(warmup_epochs=0, min_lr=0.0), optimizer=lambda groups: SGD(groups, lr=0.1))
    settings = {"limit_val_batches": 0, **trainer}
    fit = new_trainer(folder, **settings)
    fit.fit(task, new_data(images, **(data or {})))
    return fit, task


@pytest.mark.parametrize(
    ("trainer", "steps"),
    [
        ({"max_epochs": 2}, 6),  # 18 images in batches of 6
        ({"max_epochs": 2, "limit_train_batches": 2}, 4),
        ({"max_epochs": 2, "limit_train_batches": 0.7}, 4),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, 4),  # 2 + 1 batches per epoch
        ({"max_epochs": -1, "max_steps": 5}, 5),
        ({"max_epochs": 9, "max_steps": 4}, 4),
        ({"max_epochs": 1, "max_steps": 40}, 3),
    ],
    ids=str,
)
def test_the_schedule_ends_with_the_training(trainer: dict[str, Any], steps: int, images: Path, tmp_path: Path) -> None:
    fit, _ = learned(images, tmp_path, **trainer)
    assert fit.global_step == steps
    (scheduler,) = (config.scheduler for config in fit.lr_scheduler_configs)
    assert scheduler.last_epoch == steps  # stepped after every iteration
    assert scheduler.get_last_lr() == pytest.approx([0.0, 0.0], abs=1e-12)
    factor = scheduler.lr_lambdas[0]
    assert factor(steps - 1) > 1e-4  # and not before


@pytest.mark.parametrize(
    ("scheduling", "trainer", "steps"),
    [  # 18 images in batches of 3: six per epoch
        ({1: 2, 2: 4}, {"max_epochs": 4}, 6 + 3 + 2 + 2),
        ({0: 6}, {"max_epochs": 2}, 2),
        ({1: 3}, {"max_epochs": -1, "max_steps": 9}, 9),
        ({1: 3}, {"max_epochs": 2, "max_steps": 90}, 8),
        ({1: 5}, {"max_epochs": 2, "limit_train_batches": 4}, 5),
    ],
    ids=str,
)
def test_the_schedule_follows_a_scheduled_accumulation(
    scheduling: dict[int, int], trainer: dict[str, Any], steps: int, images: Path, tmp_path: Path
) -> None:
    """Lightning changes how many batches a step is made of as epochs begin."""
    accumulation = GradientAccumulationScheduler(scheduling)
    task = new_task(
        schedule=CosineSchedule(warmup_epochs=0, min_lr=0.0, base_batch_size=0),
        optimizer=lambda groups: SGD(groups, lr=0.1),
    )
    fit = new_trainer(tmp_path, accumulation, limit_val_batches=0, **trainer)
    fit.fit(task, new_data(images, batch_size=3))
    (scheduler,) = (config.scheduler for config in fit.lr_scheduler_configs)
    assert fit.global_step == scheduler.last_epoch == task.total_steps() == steps
    assert scheduler.get_last_lr() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert [scheduler.lr_lambdas[0](step) for step in range(steps)] == pytest.approx(
        [(1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
    )


def test_warmups_and_milestones_follow_a_scheduled_accumulation(images: Path, tmp_path: Path) -> None:
    """Epochs of 6, 3, 3 and 2 steps: a warmup of one and a half lasts 7.5, the third begins at 9, the fourth at 12."""
    task = new_task(schedule=StepSchedule(warmup_epochs=1.5, warmup_lr=0.0, milestones=(2, 3), base_batch_size=0))
    accumulation = GradientAccumulationScheduler({1: 2, 3: 4})
    fit = new_trainer(tmp_path, accumulation, limit_val_batches=0, max_epochs=4)
    fit.fit(task, new_data(images, batch_size=3))
    (scheduler,) = (config.scheduler for config in fit.lr_scheduler_configs)
    rates = [scheduler.lr_lambdas[0](step) for step in range(14)]
    assert fit.global_step == 14
    assert rates == pytest.approx([step / 8 for step in range(8)] + [1] + 3 * [0.1] + 2 * [0.01])


def test_a_schedule_of_ones_own_must_say_how_it_counts_epochs(images: Path, tmp_path: Path) -> None:
    class Constant(Schedule):
        def factor(self, step: int, epoch_steps: int, total_steps: int, peak: float, layer_scale: float = 1.0) -> float:
            return 1.0

    new_trainer(tmp_path).fit(new_task(schedule=Constant()), new_data(images))
    with pytest.raises(UserError, match=r"Constant cannot count epochs of unequal length.*in_steps"):
        new_trainer(tmp_path, GradientAccumulationScheduler({1: 2})).fit(
            new_task(schedule=Constant()), new_data(images)
        )


# ---- optimizers and schedulers of tasks of one's own


def own(name: str, **arguments: Any) -> ClassificationTask:
    task: ClassificationTask = getattr(own_optimization, name)(SwinTransformerV2(**BACKBONE), 3, **arguments)
    return task


@pytest.mark.parametrize("name", ["OneCycle", "Plateau", "PlateauOfSteps", "Plain", "Manual", "TwoOptimizers"])
def test_a_longer_training_leaves_schedulers_of_ones_own_alone(
    name: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or says that one cannot continue."""
    callbacks = [Throughput(), RunCheckpoint()]
    new_trainer(tmp_path, *callbacks, enable_checkpointing=True).fit(own(name), new_data(images))
    longer = new_trainer(tmp_path, *callbacks, enable_checkpointing=True, max_epochs=2)
    arguments = {"ckpt_path": tmp_path / "checkpoints" / "last.ckpt", "weights_only": True}
    if name == "OneCycle":
        with pytest.raises(UserError, match="6 steps, its OneCycleLR ends after 3"):
            longer.fit(own(name), new_data(images), **arguments)
        return
    longer.fit(own(name), new_data(images), **arguments)
    assert longer.current_epoch == 2
    assert ("continues as it was planned" in capsys.readouterr().out) == bool(longer.lr_scheduler_configs)


def test_a_training_without_a_stated_end_needs_none_for_ones_own_scheduler(images: Path, tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.should_stop = True

    trainer = new_trainer(tmp_path, RunCheckpoint(), Stop(), enable_checkpointing=True, max_epochs=-1)
    trainer.fit(own("Plain"), new_data(images))
    contents = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert contents["swinv2_tasks"]["training"]["total_steps"] is None


@pytest.mark.parametrize(("batches", "samples"), [(1, 6), (3, 18)])
def test_learning_rates_count_accumulated_batches(batches: int, samples: int, images: Path, tmp_path: Path) -> None:
    fit, _ = learned(images, tmp_path, accumulate_grad_batches=batches)
    (scheduler,) = (config.scheduler for config in fit.lr_scheduler_configs)
    assert scheduler.base_lrs == pytest.approx([0.1 * samples / 512] * 2)


def test_an_endless_training_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"state trainer\.max_epochs or, .*trainer\.max_steps"):
        learned(images, tmp_path, max_epochs=-1)


def test_frozen_stages_stay_as_they_are(images: Path, tmp_path: Path) -> None:
    backbone = SwinTransformerV2(**BACKBONE, frozen_stages=1)
    task = ClassificationTask(backbone, 3, schedule=CosineSchedule(warmup_epochs=0, base_batch_size=0))
    before = {name: p.clone() for name, p in task.named_parameters()}
    new_trainer(tmp_path, limit_val_batches=0).fit(task, new_data(images))
    changed = {name for name, p in task.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(name.startswith(("backbone.layers.1.", "head.")) for name in changed)


def test_a_task_is_a_plain_module() -> None:
    """Built and used without a trainer, a datamodule or the command line."""
    task = new_task().eval()
    assert isinstance(task, nn.Module)
    with torch.no_grad():
        assert task(pixels(40)).shape == (2, 3)
