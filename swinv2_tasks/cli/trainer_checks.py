"""Whether a trainer, as it was built, can do what the config asks."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    OnExceptionCheckpoint,
    WeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from swinv2_tasks.errors import UserError
from swinv2_tasks.tasks.base import BaseTask
from swinv2_tasks.training.optim import optimizer_class
from swinv2_tasks.training.strategies import ShardedStrategy


def check_strategy(trainer: Any, task: Any) -> None:
    """Refuses a strategy that cannot do what the config asks.

    Raises:
        UserError: for one that this package's checkpoints do not support, that cannot average weights, or whose shards
            of weights the optimizer cannot step.
    """
    strategy = trainer.strategy
    name = type(strategy).__name__
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | ShardedStrategy):
        raise UserError(
            f"trainer.strategy: {name} writes checkpoints that could not be evaluated or resumed here. Add one of "
            "overlays/ddp.yaml, overlays/zero1.yaml (sharded optimizer states) and overlays/fsdp.yaml (everything "
            "sharded) instead"
        )
    averages = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)
    if averages and isinstance(strategy, ShardedStrategy):
        raise UserError(
            f"trainer.strategy: {name} cannot average weights (trainer.callbacks, overlays/ema.yaml): each average "
            "would be of the whole model. Leave the averages out, or add overlays/zero1.yaml instead"
        )
    if isinstance(strategy, ShardedStrategy) and isinstance(task, BaseTask):
        optimizer = optimizer_class(task.optimizer)
        if optimizer.__module__.startswith("bitsandbytes."):
            raise UserError(
                f"trainer.strategy: bitsandbytes' {optimizer.__name__} (model.optimizer) does not support sharded "
                f"weights, as {name} keeps them. Take torch.optim.AdamW, or add overlays/zero1.yaml instead"
            )


UNFIT_CALLBACKS: dict[type[Callback], str] = {
    LearningRateFinder: "does not work here, as rates follow a schedule from model.optimizer on. Compare short runs "
    "with several --model.optimizer.init_args.lr instead",
    BatchSizeFinder: "does not work here, as schedules are planned for data.batch_size. "
    "`swinv2-tasks memory --config CONFIG --gpu 24GiB` says which batch fits",
    BaseFinetuning: "does not work here, as it adds parameters to an optimizer whose schedule is planned already. "
    "model.backbone.frozen_stages freezes stages of the backbone instead",
    OnExceptionCheckpoint: "is not needed here, and would begin from its own checkpoint: each run saves itself. "
    "save.every_n_minutes says how often; --resume RUN resumes it",
}
"""Callbacks of Lightning that a training here cannot have, with the reason and what to do instead."""


def check_callbacks(trainer: Trainer) -> None:
    """Refuses callbacks that would break a training or be broken by it.

    Raises:
        UserError: there is one.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for cls, reason in UNFIT_CALLBACKS.items():
            if isinstance(callback, cls):
                raise UserError(f"trainer.callbacks: {type(callback).__name__} {reason}.")
