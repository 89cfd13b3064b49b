"""What a bad batch can do to a training: nothing to its weights, and it is told which samples it was."""

from __future__ import annotations

import copy
import json
import logging
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.classification import CrossEntropy
from swinv2_tasks.tasks import ClassificationTask
from swinv2_tasks.training.guard import SpikeDetector
from swinv2_tasks.training.optim import CosineSchedule
from tests.helpers import own_optimization
from tests.helpers.checkpoints import randomize
from tests.helpers.resuming import differences
from tests.helpers.tiny import BACKBONE, new_data, new_trainer


class Poison(Callback):
    """Writes a value into one pixel of chosen batches, counted over the whole training."""

    def __init__(self, *batches: int, value: float = math.nan) -> None:
        self.batches, self.value, self.seen = batches, value, 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.seen in self.batches:
            batch["image"][1, 2, 3, 4] = self.value
        self.seen += 1


class Journal(Callback):
    """Copies of weights and optimizer as each batch ends, and the names of its samples."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []
        self.samples: list[list[str]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.states.append(state(trainer))
        self.samples.append(trainer.datamodule.train_sample_ids(batch_idx))  # type: ignore[attr-defined]


def state(trainer: Trainer) -> dict[str, Any]:
    (optimizer,) = trainer.optimizers
    return copy.deepcopy({"weights": trainer.lightning_module.state_dict(), "optimizer": optimizer.state_dict()})


def new_task(drop_path: float = 0.0, optimizer: Any = AdamW, **settings: Any) -> ClassificationTask:
    """Always the same weights, none of them zero."""
    backbone = SwinTransformerV2(**BACKBONE, drop_path_rate=drop_path)
    schedule = CosineSchedule(warmup_epochs=0, base_batch_size=0, min_lr=0, **settings)
    task = ClassificationTask(backbone, 3, optimizer=optimizer, schedule=schedule)
    with torch.no_grad():
        randomize(task)
    return task


def train(
    task: ClassificationTask, images: Path, folder: Path, *callbacks: Callback, batch_size: int = 6, **settings: Any
) -> Trainer:
    """Two epochs of three batches, unless told otherwise."""
    torch.manual_seed(2)
    trainer = new_trainer(folder, *callbacks, **{"max_epochs": 2, "limit_val_batches": 0, **settings})
    trainer.fit(task, new_data(images, batch_size=batch_size))
    return trainer


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Journal:
    journal = Journal()
    train(new_task(), images, tmp_path_factory.mktemp("undisturbed"), journal)
    assert len(journal.states) == 6
    assert all(differences(*pair) for pair in zip(journal.states, journal.states[1:], strict=False))
    return journal


def read_bad_batches(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("nonfinite_step_*.json"))]


# ---- steps that are not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("batch", [2, 4])
def test_a_bad_batch_stops_the_training_before_it_changes_anything(
    value: float, batch: int, images: Path, tmp_path: Path, undisturbed: Journal
) -> None:
    task, poison = new_task(), Poison(batch, value=value)
    torch.manual_seed(2)
    trainer = new_trainer(tmp_path, poison, max_epochs=2, limit_val_batches=0)
    message = rf"step {batch} \(epoch {batch // 3}, batch {batch % 3}\)"
    with pytest.raises(UserError, match=message) as error:
        trainer.fit(task, new_data(images))
    assert "\n" not in str(error.value)
    assert "gradients are not finite: backbone.patch_embed.proj.weight, " in str(error.value)
    assert differences(state(trainer), undisturbed.states[batch - 1]) == []

    (record,) = read_bad_batches(tmp_path)
    file = tmp_path / f"nonfinite_step_{batch}_rank_0.json"
    assert file.exists() and str(file) in str(error.value)
    assert record["step"] == batch and record["epoch"] == batch // 3
    assert record["samples"] == undisturbed.samples[batch] and len(record["samples"]) == 6
    assert record["loss"] == "nan"
    names = {name for name, _ in task.named_parameters()}
    assert "backbone.patch_embed.proj.weight" in record["tensors"] and set(record["tensors"]) <= names


@pytest.mark.parametrize("batch", [2, 3])
def test_all_samples_of_a_step_of_several_batches_are_listed(batch: int, images: Path, tmp_path: Path) -> None:
    """Six batches per epoch: the bad one is the first or the second of the second step."""
    journal = Journal()
    train(new_task(), images, tmp_path, journal, batch_size=3, max_epochs=1, accumulate_grad_batches=2)
    with pytest.raises(UserError, match=r"step 1 \(epoch 0, batch 3\)"):
        train(new_task(), images, tmp_path, Poison(batch), batch_size=3, max_epochs=1, accumulate_grad_batches=2)
    (record,) = read_bad_batches(tmp_path)
    assert record["samples"] == journal.samples[2] + journal.samples[3]
    assert len(set(record["samples"])) == 6


def test_the_last_step_of_an_epoch_may_have_fewer_batches(images: Path, tmp_path: Path) -> None:
    """Three batches per epoch, two per step: the second step has one, and so the third starts at the next epoch."""
    journal = Journal()
    settings: dict[str, Any] = {"accumulate_grad_batches": 2}
    train(new_task(), images, tmp_path, journal, **settings)
    for batch, message, samples in [
        (2, r"step 1 \(epoch 0, batch 2\)", journal.samples[2]),
        (3, r"step 2 \(epoch 1, batch 1\)", journal.samples[3] + journal.samples[4]),
    ]:
        folder = tmp_path / str(batch)
        with pytest.raises(UserError, match=message):
            train(new_task(), images, folder, Poison(batch), **settings)
        (record,) = read_bad_batches(folder)
        assert record["samples"] == samples


def test_some_bad_steps_may_be_skipped(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task, journal = new_task(), Journal()
    task.max_skipped_steps = 2
    with caplog.at_level(logging.WARNING, "swinv2_tasks"):
        trainer = train(task, images, tmp_path, Poison(1, 3), journal)
    assert task.skipped_steps == 2
    assert trainer.global_step == 6
    states = journal.states
    for step in range(1, 6):
        same = differences(states[step]["weights"], states[step - 1]["weights"]) == []
        assert same == (step in (1, 3))
    for step in (1, 3):
        assert differences(states[step]["optimizer"]["state"], states[step - 1]["optimizer"]["state"]) == []
    assert all(p.isfinite().all() for p in task.parameters())
    assert [record["samples"] for record in read_bad_batches(tmp_path)] == [journal.samples[1], journal.samples[3]]
    messages = [record.getMessage() for record in caplog.records]
    for prefix in ("skipped step 1 (epoch 0, batch 1)", "skipped step 3 (epoch 1, batch 0)"):
        assert sum(message.startswith(prefix) for message in messages) == 1


def test_one_bad_step_too_many_stops(images: Path, tmp_path: Path) -> None:
    task, journal = new_task(), Journal()
    task.max_skipped_steps = 2
    with pytest.raises(UserError, match=r"step 4 \(epoch 1, batch 1\) after 2 skipped"):
        train(task, images, tmp_path, Poison(0, 2, 4), journal)
    assert len(read_bad_batches(tmp_path)) == 3
    assert differences(task.state_dict(), journal.states[3]["weights"]) == []


def test_a_skipped_step_of_several_batches_leaves_no_gradients(images: Path, tmp_path: Path) -> None:
    task, journal = new_task(), Journal()
    task.max_skipped_steps = 1
    settings: dict[str, Any] = {"batch_size": 3, "max_epochs": 1, "accumulate_grad_batches": 2}
    train(task, images, tmp_path, Poison(0), journal, **settings)
    assert differences(journal.states[1]["weights"], new_task().state_dict()) == []
    assert all(p.isfinite().all() for p in task.parameters())
    assert differences(journal.states[3]["weights"], journal.states[1]["weights"])


def test_gradients_are_checked_where_the_loss_is_finite(images: Path, tmp_path: Path, undisturbed: Journal) -> None:
    task, calls = new_task(), []

    def spoil(gradient: Tensor) -> Tensor:
        calls.append(None)
        return gradient * math.inf if len(calls) == 3 else gradient

    name = "backbone.layers.0.blocks.0.norm1.weight"
    task.get_parameter(name).register_hook(spoil)
    with pytest.raises(UserError, match="step 2 ") as error:
        train(task, images, tmp_path)
    assert name in str(error.value)
    (record,) = read_bad_batches(tmp_path)
    assert record["tensors"] == [name]
    assert math.isfinite(float(record["loss"]))
    assert differences(task.state_dict(), undisturbed.states[1]["weights"]) == []


# ---- with a gradient scaler


def half(scale: float = 2.0**10) -> dict[str, Any]:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4)  # type: ignore[attr-defined]
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)], "precision": None}


def test_a_step_may_be_skipped_with_a_gradient_scaler(images: Path, tmp_path: Path) -> None:
    task, journal = new_task(), Journal()
    task.max_skipped_steps = 1
    train(task, images, tmp_path, Poison(2), journal, **half())
    assert task.skipped_steps == 1
    assert differences(journal.states[2]["weights"], journal.states[1]["weights"]) == []
    assert differences(journal.states[3]["weights"], journal.states[2]["weights"])


def test_a_gradient_scaler_finds_its_scale(images: Path, tmp_path: Path) -> None:
    """Gradients overflow at first: the scaler leaves such steps out itself."""
    task, journal = new_task(), Journal()
    train(task, images, tmp_path, journal, gradient_clip_val=5.0, max_epochs=12, **half(scale=2.0**34))
    pairs = zip(journal.states, journal.states[1:], strict=False)
    moved = [bool(differences(before["weights"], after["weights"])) for before, after in pairs]
    assert not moved[0] and any(moved)
    assert task.skipped_steps == 0 and read_bad_batches(tmp_path) == []
    assert all(p.isfinite().all() for p in task.parameters())


def test_a_fused_optimizer_is_not_clipped_with_a_gradient_scaler(images: Path, tmp_path: Path) -> None:
    """It undoes the scaling by itself, so that gradients are still scaled when they are clipped."""

    def build_fused(parameters: Any) -> AdamW:
        return AdamW(parameters, lr=1e-3, fused=True)

    with pytest.raises(UserError, match="a fused optimizer undoes the scaling of float16"):
        train(new_task(optimizer=build_fused), images, tmp_path, gradient_clip_val=1.0, **half())
    train(new_task(optimizer=build_fused), images, tmp_path, **half())


# ---- clipping


class Step(Callback):
    """What one step of the optimizer is made of: parameters, gradients before clipping, and groups."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.groups = [
            {**group, "params": [nn.Parameter(p.detach().clone()) for p in group["params"]]}
            for group in optimizer.param_groups
        ]
        self.parameters = [p for group in self.groups for p in group["params"]]
        for copied, p in zip(self.parameters, [p for g in optimizer.param_groups for p in g["params"]], strict=True):
            copied.grad = p.grad.clone()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.outcome = [p.detach().clone() for group in trainer.optimizers[0].param_groups for p in group["params"]]


@pytest.mark.parametrize(
    ("settings", "clip"),
    [
        ({}, lambda parameters: None),
        ({"gradient_clip_val": 0.01}, lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.01)),
        ({"gradient_clip_val": 1e6}, lambda parameters: nn.utils.clip_grad_norm_(parameters, 1e6)),
        (
            {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"},
            lambda parameters: nn.utils.clip_grad_value_(parameters, 1e-3),
        ),
    ],
    ids=["none", "norm", "large norm", "value"],
)
def test_clipping_is_that_of_torch(settings: dict[str, Any], clip: Any, images: Path, tmp_path: Path) -> None:
    step = Step()
    task = new_task(optimizer=lambda groups: SGD(groups, lr=0.5, weight_decay=0.1))
    train(task, images, tmp_path, step, max_steps=1, **settings)
    norm = nn.utils.get_total_norm([p.grad for p in step.parameters if p.grad is not None])
    assert 0.02 < norm < 1e5  # so that one limit acts and the other does not
    before = [p.detach().clone() for p in step.parameters]
    clip(step.parameters)
    SGD(step.groups, lr=0.5).step()
    torch.testing.assert_close(step.outcome, [p.detach() for p in step.parameters], rtol=0, atol=0)
    assert differences(step.outcome, before)


# ---- manual optimization


def manual(name: str, **settings: Any) -> ClassificationTask:
    task: ClassificationTask = getattr(own_optimization, name)(SwinTransformerV2(**BACKBONE), 3, **settings)
    with torch.no_grad():
        randomize(task)
    return task


class Memory(Callback):
    """Notes how many tensors a task holds beside its weights as batches end."""

    def __init__(self) -> None:
        self.held: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        held = 0
        for value in vars(pl_module).values():
            held += len(value) if isinstance(value, list) else isinstance(value, Tensor)
        self.held.append(held)


@pytest.mark.parametrize("name", ["Manual", "NeverStepping", "TwoOptimizers"])
def test_nothing_piles_up_in_manual_optimization(name: str, images: Path, tmp_path: Path) -> None:
    memory = Memory()
    train(manual(name), images, tmp_path, memory)
    assert len(memory.held) == 6 and len(set(memory.held[1:])) == 1


@pytest.mark.parametrize("name", ["Manual", "TwoOptimizers"])
def test_a_bad_batch_stops_manual_optimization_before_it_changes_anything(
    name: str, images: Path, tmp_path: Path
) -> None:
    task, before = manual(name), {}

    class Before(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            before.update(copy.deepcopy(pl_module.state_dict()))

    with pytest.raises(UserError, match=r"stopped before .*batch 2\).*the loss is nan"):
        train(task, images, tmp_path, Before(), Poison(2))
    assert differences(task.state_dict(), before) == []
    (record,) = read_bad_batches(tmp_path)
    assert len(record["samples"]) == 6 and record["tensors"]


def test_a_bad_step_of_manual_optimization_may_be_skipped(images: Path, tmp_path: Path) -> None:
    task, journal = manual("Manual"), Journal()
    task.max_skipped_steps = 1
    train(task, images, tmp_path, Poison(1), journal)
    states = journal.states
    assert task.skipped_steps == 1
    for step in range(1, 6):
        assert (differences(states[step]["weights"], states[step - 1]["weights"]) == []) == (step == 1)
    assert all(p.isfinite().all() for p in task.parameters())


# ---- loss spikes


def noise(number: int, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).normal(2.0, 0.05, number).tolist()


def test_a_jump_is_a_spike_and_noise_is_none() -> None:
    detector = SpikeDetector()
    assert not any(detector.is_spike(loss) for loss in noise(1000))
    assert detector.is_spike(5.0)
    assert not any(detector.is_spike(loss) for loss in noise(1000, seed=1))


def test_a_spike_is_no_measure_for_later_ones() -> None:
    detector = SpikeDetector()
    for loss in noise(200):
        detector.is_spike(loss)
    for loss in noise(100, seed=1):
        assert detector.is_spike(4.0)
        assert not detector.is_spike(loss)


def test_a_falling_loss_is_no_spike() -> None:
    detector = SpikeDetector()
    assert not any(detector.is_spike(loss + 5 * math.exp(-k / 100)) for k, loss in enumerate(noise(500)))


def test_few_losses_say_nothing_yet() -> None:
    for known in (0, 1, 31):
        detector = SpikeDetector(window=128)
        assert not any(detector.is_spike(loss) for loss in [*noise(known), 100.0])
    detector = SpikeDetector(window=128)
    assert [detector.is_spike(loss) for loss in [*noise(32), 100.0]] == [False] * 32 + [True]


class Exploding(nn.Module):
    """A loss that is a hundred times as high for one batch."""

    def __init__(self, loss: nn.Module, batch: int) -> None:
        super().__init__()
        self.loss, self.batch = loss, batch
        self.values: list[float] = []

    def forward(self, *arguments: Tensor) -> Tensor:
        value = self.loss(*arguments) * (100 if len(self.values) == self.batch else 1)
        self.values.append(float(value.detach()))
        return value


def spikes(
    batch: int, images: Path, folder: Path, caplog: pytest.LogCaptureFixture, **settings: Any
) -> tuple[list[Any], Journal, list[float]]:
    """The spikes logged in a training of 18 batches per epoch, of one sample, that learns next to nothing."""
    task, journal = new_task(optimizer=lambda groups: SGD(groups, lr=1e-9, weight_decay=0.0)), Journal()
    task.loss = losses = Exploding(task.loss, batch)  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING, "swinv2_tasks"):
        train(task, images, folder, journal, batch_size=1, **{"max_epochs": 3, **settings})
    return [r for r in caplog.records if r.getMessage().startswith("loss spike")], journal, losses.values


def test_a_training_logs_a_spike(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (record,), journal, losses = spikes(40, images, tmp_path, caplog)
    assert record.getMessage().startswith("loss spike at step 40:")
    assert record.details["samples"] == journal.samples[40]
    assert record.details["loss"] == pytest.approx(losses[40])
    assert record.details["median"] == pytest.approx(np.median(losses[:40]))


def test_no_spike_is_reported_without_one(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warnings, _, losses = spikes(-1, images, tmp_path, caplog)
    assert len(losses) == 54
    assert warnings == []


def test_the_loss_of_several_batches_is_their_mean(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As the training logs it, not divided by their number once more."""
    (record,), _, losses = spikes(101, images, tmp_path, caplog, accumulate_grad_batches=2, max_epochs=6)
    assert record.getMessage().startswith("loss spike at step 50:")
    assert record.details["loss"] == pytest.approx((losses[100] + losses[101]) / 2)


def test_the_scale_of_gradients_is_no_part_of_the_loss(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The scaler doubles its scale every few steps, which is no spike."""
    (record,), _, losses = spikes(40, images, tmp_path, caplog, **half(scale=16.0))
    assert record.getMessage().startswith("loss spike at step 40:")
    assert record.details["loss"] == pytest.approx(losses[40], rel=1e-2)


# ---- random numbers


class Draw(Callback):
    """Takes numbers from all generators before each step."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_batch_start(self, *_: Any) -> None:
        torch.rand(self.number)
        np.random.rand(self.number)
        for _ in range(self.number):
            random.random()


def test_what_is_drawn_between_steps_changes_no_step(images: Path, tmp_path: Path) -> None:
    def weights(number: int, drop_path: float = 0.5) -> dict[str, Tensor]:
        task = new_task(drop_path)
        train(task, images, tmp_path, Draw(number))
        return task.state_dict()

    assert differences(weights(0), weights(7)) == []
    assert differences(weights(0), weights(0, drop_path=0.0))


class Look(Callback):
    """Notes a number that each step could have drawn."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def on_before_zero_grad(self, *_: Any) -> None:
        self.drawn.append(torch.rand(()).item())


def test_each_step_draws_other_numbers(images: Path, tmp_path: Path) -> None:
    look = Look()
    train(new_task(), images, tmp_path, look)
    assert len(set(look.drawn)) == len(look.drawn) == 6


# ---- the loss of an evaluation


def scores(images: int, classes: int = 7, seed: int = 0, scale: float = 5.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(images, classes, generator=generator)
    return logits, torch.randint(classes, (images,), generator=generator)


def measure_loss(logits: Tensor, labels: Tensor, sizes: list[int]) -> Tensor:
    metric = CrossEntropy()
    for batch, label in zip(logits.split(sizes), labels.split(sizes), strict=True):
        metric.update(batch, label)
    return metric.compute()


@pytest.mark.parametrize("images", [1, 17, 1000])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_cross_entropy_is_torchs(images: int, scale: float) -> None:
    logits, labels = scores(images, scale=scale)
    exact = nn.functional.cross_entropy(logits.double(), labels)
    assert measure_loss(logits, labels, [images]).item() == pytest.approx(exact.item(), abs=1e-6)


def test_cross_entropy_does_not_depend_on_order_or_batches() -> None:
    logits, labels = scores(1000)
    whole = measure_loss(logits, labels, [1000])
    for seed, sizes in enumerate([[1] * 1000, [999, 1], [7] * 142 + [6], [128] * 7 + [104]]):
        shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(measure_loss(logits[shuffled], labels[shuffled], sizes), whole)


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_one_loss_that_is_not_finite_shows(value: float) -> None:
    logits, labels = scores(20)
    logits[13, labels[13]] = value
    assert measure_loss(logits, labels, [8, 8, 4]).item() == math.inf


@pytest.mark.parametrize("size", [1e9, 1e13, 1e20, 1e38])
def test_a_huge_loss_never_looks_small(size: float) -> None:
    """Or the checkpoint of a training that diverged were the best one."""
    logits, labels = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    logits[1, 1] = size
    assert measure_loss(logits, labels, [3]).item() > 1e8


def test_a_lasting_rise_is_a_new_level() -> None:
    """It is reported eight times, not for the rest of the run."""
    detector = SpikeDetector()
    noise = np.random.default_rng(0)
    assert not any(detector.is_spike(1 + 0.01 * noise.normal()) for _ in range(100))
    assert [detector.is_spike(3 + 0.01 * noise.normal()) for _ in range(100)] == [True] * 8 + [False] * 92
    assert detector.is_spike(9.0)
