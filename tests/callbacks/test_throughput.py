"""The learning rate and speed that a training logs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from swinv2_tasks.callbacks import Throughput, throughput
from swinv2_tasks.training.optim import CosineSchedule
from tests.helpers.runs import read_table
from tests.helpers.tiny import new_data, new_task, new_trainer

# ---- learning rate and speed


def test_learning_rate_is_that_of_the_step_it_is_logged_with(images: Path, tmp_path: Path) -> None:
    """Three steps per epoch: one epoch of warmup from 1e-6 to AdamW's 1e-3, then half a cosine over three steps."""
    task = new_task(schedule=CosineSchedule(warmup_epochs=1, warmup_lr=1e-6, min_lr=0.0, base_batch_size=0))
    logger = CSVLogger(tmp_path, name="", version="")
    new_trainer(tmp_path, Throughput(), logger=logger, max_epochs=2, log_every_n_steps=1).fit(task, new_data(images))
    rates = [float(row["lr"]) for row in read_table(tmp_path / "metrics.csv") if row["lr"]]
    warmup = [1e-6, 1e-6 + (1e-3 - 1e-6) / 3, 1e-6 + (1e-3 - 1e-6) * 2 / 3]
    cosine = [1e-3 * (1 + math.cos(math.pi * step / 3)) / 2 for step in range(3)]
    assert rates == pytest.approx(warmup + cosine, rel=1e-5)


class Clock(Callback):
    """A clock by which step k takes k + 1 seconds, however busy the machine is."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.now += batch_idx + 1


def test_images_per_second_are_averaged_over_steps(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step, which waits for the loader, is left out; three steps of two images each follow."""
    clock, logger = Clock(), CSVLogger(tmp_path, name="", version="")
    monkeypatch.setattr(throughput, "time", clock)
    trainer = new_trainer(tmp_path, clock, Throughput(every_n_steps=3), logger=logger, log_every_n_steps=1)
    trainer.fit(new_task(), new_data(images, batch_size=2))  # 9 steps
    speeds = {int(row["step"]): float(row["img/s"]) for row in read_table(tmp_path / "metrics.csv") if row["img/s"]}
    assert min(speeds) == 2
    assert [speeds[step] for step in (2, 5, 8)] == pytest.approx([4 / (2 + 3), 6 / (4 + 5 + 6), 6 / (7 + 8 + 9)])
