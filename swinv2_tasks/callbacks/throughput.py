"""Learning rate, gradient norm and speed while training."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Learning rate and images per second over all processes, in the progress bar and the logs; gradient norm in logs.

    Args:
        every_n_steps: batches over which the speed is averaged.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self._images = 0
        self._since = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restarts the count: the loader's start and validations are not training."""
        self._images = 0  # the loader's start and the validation before are no training speed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Logs the learning rate of the step, the largest of all parameter groups."""
        # At the end of the batch the schedule is one step further already.
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups if "lr" in group]
        if groups:  # a task of one's own may go without an optimizer
            pl_module.log("lr", max(group["lr"] for group in groups), prog_bar=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the gradients' norm before clipping, and every so many batches images per second over all processes."""
        norm = getattr(pl_module, "gradient_norm", None)
        if norm is not None and math.isfinite(norm):  # a gradient scaler skips the others
            pl_module.log("grad_norm", norm)
        if self._images == 0:
            self._since = time.perf_counter()
        elif (batch_idx + 1) % self.every_n_steps == 0:
            speed = self._images * trainer.world_size / (time.perf_counter() - self._since)
            pl_module.log("img/s", speed, prog_bar=True)
            self._images = 0
            self._since = time.perf_counter()
        self._images += len(next(iter(batch.values())))
