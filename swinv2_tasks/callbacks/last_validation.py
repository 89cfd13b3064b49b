"""The validation that a training ends with, whatever its interval."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from swinv2_tasks.training.lightning_internals import forget_last_validation, is_last_batch, may_stop_early


class LastValidation(Callback):
    """Validates after the last step of a training, whatever its validation interval.

    The last step may fall on no multiple of ``check_val_every_n_epoch`` or ``val_check_interval``: at the end of the
    last epoch, at ``max_steps``, at ``max_time``, or where a callback stops.

    To be placed after callbacks that stop a training, and before those that save as a batch ends. A training that is
    resumed from a checkpoint of this validation resumes it.
    """

    def __init__(self) -> None:
        self._forced = False
        """Whether the training stands at a validation that its interval would not make."""
        self._begun_at: int | None = None
        """Step of a checkpoint whose validation was not finished; None: there is no such checkpoint."""
        self._intervals: tuple[Any, Any] | None = None
        self._max_steps: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Whether the training stands at a validation that was forced."""
        return {"forced": self._forced}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores whether the training stands at a validation that was forced."""
        self._forced = state_dict["forced"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes the step of a checkpoint that was written in the middle of a validation."""
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.val_loop.batch_progress")
        if progress is not None and progress["total"]["ready"] > progress["total"]["completed"]:
            self._begun_at = checkpoint["global_step"]
            if trainer.optimizers:  # read late, as by strategies that shard: the schedule knows its length by now
                self._delay_end(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps a training open that has made its last step but not the validation after it."""
        self._delay_end(trainer)

    def _delay_end(self, trainer: Trainer) -> None:
        """Lets a training enter its loop that has made its last step, but not the validation after it."""
        loop = trainer.fit_loop.epoch_loop
        if self._begun_at is not None and self._begun_at >= loop.max_steps != -1:
            self._max_steps, loop.max_steps = loop.max_steps, self._begun_at + 1
        self._begun_at = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forces the validation that a resumed training stands at."""
        if self._forced:
            self._validate_now(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restores the validation intervals once training continues after a forced validation."""
        self._forced = False
        if self._intervals is not None:  # a longer training continues after what was the last validation
            trainer.check_val_every_n_epoch, trainer.val_check_batch = self._intervals
            self._intervals = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Forces a validation after the last step."""
        if self._is_last_step(trainer):
            self._forced = True
            self._validate_now(trainer)

    @staticmethod
    def _is_last_step(trainer: Trainer) -> bool:
        if trainer.should_stop and may_stop_early(trainer):
            return True
        if trainer.global_step >= trainer.max_steps != -1:
            return True
        in_last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
        return in_last_epoch and is_last_batch(trainer)

    def _validate_now(self, trainer: Any) -> None:
        """Lets the interval be every epoch and every batch."""
        self._intervals = self._intervals or (trainer.check_val_every_n_epoch, trainer.val_check_batch)
        if trainer.check_val_every_n_epoch is not None:  # None counts batches over all epochs
            trainer.check_val_every_n_epoch = 1
        trainer.val_check_batch = 1
        forget_last_validation(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the ``max_steps`` that ``on_fit_start`` raised."""
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self._max_steps = self._max_steps, None
