"""A training that was killed, stopped or moved is resumed bitwise identical to an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from benchmarks.whole_runs import compare_runs
from tests.helpers.processes import run, send_at, start, wait_for
from tests.helpers.resuming import EMA, RESUME, assert_same_training, newest, write_run
from tests.helpers.tiny import write_images
from tests.helpers.tiny_tasks import TINY_TASKS

ACCUMULATION = {
    "class_path": "lightning.pytorch.callbacks.GradientAccumulationScheduler",
    "init_args": {"scheduling": {1: 3, 2: 2}},
}
EARLY_STOPPING = {
    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
    "init_args": {"monitor": "val/loss", "patience": 2},
}
OWN = "tests.helpers.own_optimization"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training images: ten batches of six per epoch."""
    return write_images(tmp_path_factory.mktemp("data"), train=20)


CASES: dict[str, dict[str, Any]] = {
    "kill twice, workers, averaged weights": {
        "signals": [send_at(14), send_at(25)],
        "callbacks": [EMA],
        "data.num_workers": 2,
        "save.every_n_steps": 3,
    },
    "kill twice, accumulated gradients": {
        "signals": [send_at(7), send_at(11)],
        "trainer.accumulate_grad_batches": 3,
        "save.every_n_steps": 2,
    },
    "SIGTERM twice, Ctrl-C": {
        "signals": [
            send_at(14, number=signal.SIGTERM),
            send_at(20, number=signal.SIGTERM),
            send_at(27, number=signal.SIGINT),
        ],
    },
    "stopped in validations, averaged weights": {
        "signals": [send_at(10, number=signal.SIGTERM, validation=0), send_at(20, number=signal.SIGINT, validation=1)],
        "callbacks": [EMA],
    },
    "stopped at the end of epochs without validation": {
        "signals": [send_at(10, number=signal.SIGTERM), send_at(24)],
        "trainer.check_val_every_n_epoch": 3,
    },
    "validations within epochs": {
        "signals": [send_at(5, number=signal.SIGTERM), send_at(15, number=signal.SIGTERM, validation=0), send_at(24)],
        "trainer.val_check_interval": 5,
        "save.every_n_steps": 3,
    },
    "kill, 8-bit optimizer states": {
        "signals": [send_at(14)],
        "save.every_n_steps": 3,
        "model.optimizer": "bitsandbytes.optim.AdamW8bit",
        "model.optimizer.init_args.min_8bit_size": 16,
    },
    "stopped in the last validation, which falls on no interval": {
        "signals": [send_at(24), send_at(30, number=signal.SIGTERM, validation=0)],
        "trainer.check_val_every_n_epoch": 2,
        "generators": False,
    },
    "stopped in the last validation, limited in steps": {
        "signals": [send_at(17, number=signal.SIGTERM, validation=1)],
        "trainer.max_steps": 17,
        "generators": False,
    },
    "stopped in a validation that ends the training, limited in steps": {
        "signals": [send_at(20, number=signal.SIGINT, validation=0)],
        "trainer.max_steps": 20,
        "generators": False,
    },
    "more and more accumulated gradients": {
        "signals": [send_at(12), send_at(16, number=signal.SIGTERM)],
        "callbacks": [ACCUMULATION],
        "save.every_n_steps": 2,
    },
    "a scheduler of one's own": {
        "signals": [send_at(14), send_at(20, number=signal.SIGTERM, validation=0)],
        "model": f"{OWN}.OneCycle",
        "save.every_n_steps": 3,
    },
    "a scheduler that watches the validation": {
        "signals": [send_at(11), send_at(20, number=signal.SIGTERM, validation=1), send_at(24)],
        "model": f"{OWN}.Plateau",
        "save.every_n_steps": 3,
    },
    "a scheduler that watches the validation every other epoch": {
        "signals": [send_at(11), send_at(21)],
        "model": f"{OWN}.PatientPlateau",
        "trainer.check_val_every_n_epoch": 2,
    },
    "a callback that stops early": {
        "signals": [send_at(11), send_at(20, number=signal.SIGTERM, validation=1), send_at(24)],
        "callbacks": [EARLY_STOPPING],
        "save.every_n_steps": 3,
    },
    "a scheduler that watches each step": {
        "signals": [send_at(14), send_at(21)],
        "model": f"{OWN}.PlateauOfSteps",
        "save.every_n_steps": 3,
    },
    "no scheduler": {"signals": [send_at(14)], "model": f"{OWN}.Plain", "save.every_n_steps": 3},
    "manual optimization": {
        "signals": [send_at(14)],
        "model": f"{OWN}.Manual",
        "trainer.gradient_clip_val": "null",
        "save.every_n_steps": 3,
    },
    "limited in steps": {
        "signals": [send_at(7), send_at(15, number=signal.SIGTERM)],
        "trainer.max_steps": 17,
        "save.every_n_steps": 3,
    },
}
FAST = ("kill twice, workers, averaged weights",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow, id=name.replace(" ", "_")) for name in CASES],
)
def test_a_disturbed_training_ends_as_an_undisturbed_one(name: str, data: Path, tmp_path: Path) -> None:
    case = dict(CASES[name])
    signals, callbacks = case.pop("signals"), case.pop("callbacks", [])
    generators = case.pop("generators", True)  # each step seeds them: where none follows, they are as a process starts
    settings = [f"--{key}={value}" for key, value in {"trainer.max_epochs": 3, **case}.items()]
    straight, disturbed = (write_run(tmp_path / folder, data, *callbacks) for folder in ("straight", "disturbed"))
    first = ("fit", "--config=tiny.yaml", *settings)
    assert run(first, straight).status == 0

    for number, environment in enumerate(signals):
        sent = json.loads(environment["SEND_SIGNAL"]).get("number", signal.SIGKILL)
        ended = run(RESUME if number else first, disturbed, **environment)
        assert ended.status == (-9 if sent == signal.SIGKILL else 128 + sent)
        if sent != signal.SIGKILL:
            assert "saved to" in ended.errors
            assert ended.errors.rstrip().endswith("runs/tiny/0/config.yaml --resume --allow tests.helpers")
            assert "Traceback" not in ended.errors
    resumed = run(RESUME, disturbed)
    assert resumed.status == 0
    assert "resuming runs/tiny/0 at step" in resumed.output
    assert_same_training(straight, disturbed, generators=generators)
    assert sorted(path.name for path in (disturbed / "runs" / "tiny").iterdir()) == ["0"]


SAMPLED: dict[str, dict[str, Any]] = {
    "balanced": {"data.sampling": "balanced"},
    "balanced, each image twice, class weights": {
        "data.sampling": "balanced",
        "data.augmentation.repeats": 2,
        "model.class_weights": "balanced",
        "model.loss": "FocalLoss",
    },
    "repeat factors, each image three times": {
        "data.sampling": "repeat_factor",
        "data.repeat_threshold": 0.5,
        "data.augmentation.repeats": 3,
        "data.num_workers": 2,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLED)
def test_a_training_that_repeats_samples_resumes_within_an_epoch(name: str, tmp_path: Path) -> None:
    """Of 20, 20 and 4 images; killed within an epoch, then stopped within another."""
    dataset = write_images(tmp_path / "data", train=20)
    for path in sorted((dataset / "train" / "n03").iterdir())[4:]:
        path.unlink()
    settings = [f"--{key}={value}" for key, value in {"trainer.max_epochs": 3, **SAMPLED[name]}.items()]
    first = ("fit", "--config=tiny.yaml", "--save.every_n_steps=3", *settings)
    straight, disturbed = (write_run(tmp_path / folder, dataset) for folder in ("straight", "disturbed"))
    assert run(first, straight).status == 0

    assert run(first, disturbed, **send_at(10)).status == -9
    assert run(RESUME, disturbed, **send_at(17, number=signal.SIGTERM)).status == 143
    resumed = run(RESUME, disturbed)
    assert resumed.status == 0, resumed.errors
    assert "other settings" not in resumed.output
    assert_same_training(straight, disturbed)


@pytest.mark.slow
def test_a_detector_whose_images_are_repeated_by_their_factors_resumes_within_an_epoch(tmp_path: Path) -> None:
    dataset = TINY_TASKS["mask_rcnn"].write_data(tmp_path / "data", train=14, val=3)
    straight, disturbed = tmp_path / "straight", tmp_path / "disturbed"
    trainer = {"callbacks": [{"class_path": "tests.helpers.faults.SendSignal"}]}
    for folder in (straight, disturbed):
        TINY_TASKS["mask_rcnn"].config(folder, dataset, name="tiny", trainer=trainer)
    sampling = ("--data.sampling=repeat_factor", "--data.repeat_threshold=1.0")
    weights = ("--model.class_weights=balanced", "--model.class_loss=FocalLoss")
    first = ("fit", "--config=config.yaml", "--trainer.max_epochs=2", "--save.every_n_steps=1", *sampling, *weights)
    assert run(first, straight).status == 0

    assert run(first, disturbed, **send_at(2)).status == -9
    resumed = run(RESUME, disturbed)
    assert resumed.status == 0, resumed.errors
    assert "an epoch has" in resumed.output and "other settings" not in resumed.output
    lines = [*compare_runs(newest(straight), newest(disturbed))]
    assert [line for line in lines if not line.startswith("checkpoints/previous.ckpt")] == []


@pytest.mark.slow
def test_a_finished_training_that_may_stop_early_continues_for_more_epochs(data: Path, tmp_path: Path) -> None:
    """Its last save was made in the validation, and what stops early looks at its metric later."""
    write_run(tmp_path, data, EARLY_STOPPING)
    assert run(["fit", "--config=tiny.yaml", "--trainer.max_epochs=1"], tmp_path).status == 0
    longer = run([*RESUME, "--trainer.max_epochs=2"], tmp_path)
    assert longer.status == 0, longer.errors
    assert json.loads((newest(tmp_path) / "summary.json").read_text())["steps"] == 20


WIDE = {"init_args": {"backbone": {"init_args": {"window_size": 16}}}}
"""A window that is larger than the maps of a training, in which it shrinks to them."""


@pytest.mark.parametrize("name", ["mask_rcnn", pytest.param("segmentation", marks=pytest.mark.slow)])
def test_a_training_that_is_stopped_in_its_last_validation_writes_the_windows_of_its_training(
    name: str, tmp_path: Path
) -> None:
    """Images of a validation have other sizes than those of the training, whose windows the checkpoints state."""
    dataset = TINY_TASKS[name].write_data(tmp_path / "data", train=8, val=5)
    straight, disturbed = tmp_path / "straight", tmp_path / "disturbed"
    trainer = {"callbacks": [{"class_path": "tests.helpers.faults.SendSignal"}], "check_val_every_n_epoch": 1}
    for folder in (straight, disturbed):
        TINY_TASKS[name].config(folder, dataset, name="tiny", trainer=trainer, model=WIDE)
    first = ("fit", "--config=config.yaml", "--trainer.max_epochs=2")
    assert run(first, straight).status == 0

    steps = json.loads((newest(straight) / "summary.json").read_text())["steps"]
    stopped = run(first, disturbed, **send_at(steps, number=signal.SIGTERM, validation=0))
    assert stopped.status == 143
    assert run(RESUME, disturbed).status == 0
    lines = [*compare_runs(newest(straight), newest(disturbed))]
    assert [line for line in lines if not line.startswith("checkpoints/previous.ckpt")] == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_disturbed_training_on_two_processes(workers: int, data: Path, tmp_path: Path) -> None:
    straight, disturbed = (write_run(tmp_path / folder, data, EMA) for folder in ("straight", "disturbed"))
    settings = ("--trainer.max_epochs=3", "--save.every_n_steps=2", f"--data.num_workers={workers}")
    first = ("fit", "--config=tiny.yaml", *settings, "--trainer.accumulate_grad_batches=2")
    assert run(first, straight, processes=2).status == 0
    assert run(first, disturbed, processes=2, **send_at(5)).status == -9
    stop = send_at(8, number=signal.SIGTERM, rank=1 if workers else 0)
    assert run(RESUME, disturbed, processes=2, **stop).status == 143
    assert run(RESUME, disturbed, processes=2).status == 0
    assert_same_training(straight, disturbed)


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_run(data: Path, tmp_path: Path) -> None:
    """As a terminal's Ctrl-C or a cluster sends it, also to DataLoader workers and to those of other ranks."""
    straight, disturbed = (write_run(tmp_path / folder, data) for folder in ("straight", "disturbed"))
    first = ("fit", "--config=tiny.yaml", "--trainer.max_epochs=3", "--data.num_workers=2")
    assert run(first, straight).status == 0
    for number in (signal.SIGTERM, signal.SIGINT):
        going = start(RESUME if number == signal.SIGINT else first, disturbed)
        journal = disturbed / "journal" / "seen_0.txt"
        before = len(journal.read_text()) if journal.exists() else 0
        wait_for(lambda: journal.exists() and len(journal.read_text()) > before)  # noqa: B023
        os.killpg(going.process.pid or 0, number)
        assert going.wait().status == 128 + number
    assert run(RESUME, disturbed).status == 0
    assert_same_training(straight, disturbed)
