"""What callbacks do around an evaluation, in one place for validations and tests."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class EvaluationCallback(Callback):
    """Takes the batches of validations and tests, but for the check before training, and of the first loader alone."""

    def clear(self) -> None:
        """Forgets the evaluation before."""

    def take(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Takes a batch.

        Args:
            trainer: the trainer.
            task: the task.
            outputs: what its step has returned.
            batch: the batch.
            batch_idx: its number, from 0.
        """
        raise NotImplementedError

    def finish(self, trainer: Any, task: Any, split: str) -> None:
        """Ends an evaluation of ``val`` or ``test``; called by all processes."""
        raise NotImplementedError

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins anew."""
        self.clear()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins anew."""
        self.clear()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes a batch of a validation."""
        if not trainer.sanity_checking and dataloader_idx == 0:
            self.take(trainer, pl_module, outputs, batch, batch_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes a batch of a test."""
        if dataloader_idx == 0:
            self.take(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a validation."""
        if not trainer.sanity_checking:
            self.finish(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a test."""
        self.finish(trainer, pl_module, "test")
