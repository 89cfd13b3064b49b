"""A training ends with a validation, and makes no other one twice."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer

from swinv2_tasks.callbacks import LastValidation
from swinv2_tasks.cli.main import main
from tests.helpers.runs import read_table
from tests.helpers.tiny import new_data, new_task, new_trainer, write_config


class Validations(Callback):
    """Notes the optimizer steps done before each validation."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.steps.append(trainer.global_step)


class StopAt(Callback):
    """Stops as a step ends."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


@pytest.mark.parametrize(
    ("settings", "steps"),
    [  # three steps per epoch
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, [6, 9]),
        ({"max_epochs": 4, "check_val_every_n_epoch": 2}, [6, 12]),
        ({"max_epochs": 2, "check_val_every_n_epoch": 50}, [6]),
        ({"max_epochs": 2}, [3, 6]),
        ({"max_epochs": -1, "max_steps": 5}, [3, 5]),
        ({"max_epochs": -1, "max_steps": 6}, [3, 6]),
        ({"max_epochs": -1, "max_steps": 7, "check_val_every_n_epoch": 5}, [7]),
        ({"max_epochs": 2, "max_steps": 40, "check_val_every_n_epoch": 5}, [6]),
        ({"max_epochs": 2, "val_check_interval": 2}, [2, 5, 6]),
        ({"max_epochs": 2, "val_check_interval": 4, "check_val_every_n_epoch": None}, [4, 6]),
        ({"max_epochs": 3, "check_val_every_n_epoch": 2, "accumulate_grad_batches": 2}, [4, 6]),
        ({"max_epochs": 3, "check_val_every_n_epoch": 2, "min_epochs": 3}, [6, 9]),
        ({"max_epochs": 2, "val_check_interval": timedelta(hours=1)}, [6]),
        ({"max_epochs": 2, "limit_val_batches": 0, "check_val_every_n_epoch": 5}, []),
    ],
    ids=str,
)
def test_the_last_step_is_validated_once(
    settings: dict[str, Any], steps: list[int], images: Path, tmp_path: Path
) -> None:
    validations = Validations()
    new_trainer(tmp_path, LastValidation(), validations, **settings).fit(new_task(), new_data(images))
    assert validations.steps == steps


def test_so_is_one_that_a_callback_stops(images: Path, tmp_path: Path) -> None:
    validations = Validations()
    trainer = new_trainer(tmp_path, StopAt(4), LastValidation(), validations, max_epochs=9, check_val_every_n_epoch=9)
    trainer.fit(new_task(), new_data(images))
    assert validations.steps == [4]


def test_one_limited_in_time_ends_with_a_validation(images: Path, tmp_path: Path) -> None:
    validations = Validations()
    timer = Timer(timedelta(microseconds=1))
    trainer = new_trainer(tmp_path, timer, LastValidation(), validations, max_epochs=9, check_val_every_n_epoch=9)
    trainer.fit(new_task(), new_data(images))
    assert validations.steps == [trainer.global_step] and trainer.global_step < 27


@pytest.mark.slow
def test_a_longer_training_continues_by_the_interval(images: Path, tmp_path: Path) -> None:
    """Epochs 2 and, as the last one, 3; resumed, 4 and, as the last one, 5."""
    config = write_config(tmp_path / "tiny.yaml", images, trainer={"max_epochs": 3, "check_val_every_n_epoch": 2})
    assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}"]) == 0
    folder = tmp_path / "runs" / "tiny" / "0"

    def list_validations() -> list[tuple[str, str]]:
        return [(row["epoch"], row["step"]) for row in read_table(folder / "metrics.csv") if row["val/loss"]]

    assert list_validations() == [("1", "5"), ("2", "8")]
    assert json.loads((folder / "summary.json").read_text())["last_metrics"]["epoch"] == 2
    assert main(["fit", f"--resume={folder}", "--trainer.max_epochs=5"]) == 0
    assert list_validations() == [("1", "5"), ("2", "8"), ("3", "11"), ("4", "14")]
    summary = json.loads((folder / "summary.json").read_text())["last_metrics"]
    assert summary["epoch"] == 4 and "train/loss" in summary and "val/loss" in summary
