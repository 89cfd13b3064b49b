"""How long a training is, and the optimizer and learning rates that follow from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.batches import task_data
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import say
from swinv2_tasks.training.lightning_internals import TrainingLoader, describe_training_loader
from swinv2_tasks.training.optim import NO_WEIGHT_DECAY, PlannedLR, Schedule, build_optimizer


class SharedFunction:
    """A function that copies of its owner share.

    The command line's holds on to the trainer and all that hangs on it, which averaging the weights would copy, or fail
    to where other processes are started.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function."""
        return self.function(*arguments)

    def __deepcopy__(self, memo: Any) -> SharedFunction:
        return self


class PlannedTask(LightningModule):
    """Counts the steps of its training, from the data or the trainer's own counts, and plans learning rates by them."""

    backbone: SwinTransformerV2
    optimizer: Callable[..., Optimizer]
    schedule: Schedule

    no_weight_decay: tuple[str, ...] = NO_WEIGHT_DECAY
    """Parts of the names of parameters without weight decay, beside vectors and biases."""

    def __init__(self) -> None:
        super().__init__()
        self._training_loader: TrainingLoader | None = None
        self._planned_steps: tuple[int | None, int | None] | None = None
        """Optimizer steps of the training that is resumed, as planned then and now."""

    def setup(self, stage: str) -> None:
        """Forgets what an earlier trainer's loader said."""
        self._training_loader = None
        super().setup(stage)

    # ---- counts

    @property
    def training_loader(self) -> TrainingLoader:
        """What the trainer's loader says of an epoch, where the data does not."""
        if self._training_loader is None:
            self._training_loader = describe_training_loader(self.trainer)
        return self._training_loader

    def epoch_batches(self) -> int | None:
        """Batches of an epoch in each process; None where neither the data nor its loader says."""
        trainer: Any = self.trainer
        batches = task_data(trainer).train_batches(trainer.world_size)
        if batches is None:
            return self.training_loader.batches
        limit = trainer.limit_train_batches
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    def accumulated_batches(self, epoch: int) -> int:
        """Batches of each process that an optimizer step of an epoch is made of."""
        scheduler = self._accumulation_scheduler()
        if scheduler is None:
            return self.trainer.accumulate_grad_batches
        return scheduler.get_accumulate_grad_batches(epoch)

    def _accumulation_scheduler(self) -> GradientAccumulationScheduler | None:
        callbacks: list[Any] = getattr(self.trainer, "callbacks", [])
        schedulers = (callback for callback in callbacks if isinstance(callback, GradientAccumulationScheduler))
        return next(schedulers, None)

    def epoch_steps(self, epoch: int = 0) -> int | None:
        """Optimizer steps of an epoch; None where nothing says how long it is."""
        # Lightning's own estimate would build the training loader too early and so lose the state of a resumed one.
        batches = self.epoch_batches()
        return None if batches is None else math.ceil(batches / self.accumulated_batches(epoch))

    def steps_of(self, epochs: float) -> float | None:
        """Optimizer steps of the first so many epochs; None where nothing says how long they are."""
        batches = self.epoch_batches()
        if batches is None:
            return None
        full_epochs = math.floor(epochs)
        steps = sum(math.ceil(batches / self.accumulated_batches(epoch)) for epoch in range(full_epochs))
        if full_epochs == epochs:
            return steps
        return steps + (epochs - full_epochs) * math.ceil(batches / self.accumulated_batches(full_epochs))

    def total_steps(self) -> int:
        """Optimizer steps of the whole training.

        Raises:
            UserError: when nothing says how long it lasts.
        """
        steps = self.known_steps()
        if steps is None:
            raise UserError(
                "nothing says when the training ends, which the schedule of the learning rate follows: state "
                "trainer.max_epochs or, for a loader without a length, trainer.max_steps"
            )
        return steps

    def known_steps(self) -> int | None:
        """Optimizer steps of the whole training; None where nothing says how long it lasts."""
        max_epochs, max_steps = self.trainer.max_epochs, self.trainer.max_steps
        limits: list[float | None] = []
        if max_epochs not in (None, -1):
            limits.append(self.steps_of(max_epochs))
        if max_steps != -1:
            limits.append(max_steps)
        return min((int(limit) for limit in limits if limit is not None), default=None)

    def _samples_per_step(self) -> int | None:
        """Samples of an optimizer step of the first epoch, over all processes; None where nothing says."""
        batch_size = task_data(self.trainer).batch_size or self.training_loader.batch_size
        return batch_size and batch_size * self.trainer.world_size * self.accumulated_batches(0)

    # ---- the plan

    def configure_optimizers(self) -> Any:
        """Builds the optimizer, and the scheduler that plans its rates over the whole training."""
        total_steps, epoch_steps = self.total_steps(), self.epoch_steps()
        schedule = self._schedule_for_batches()
        if epoch_steps is None:
            epoch_steps = max(1, round(total_steps / schedule.epochs))
            rank_zero_only(say)(
                f"schedule: the loader does not say how many batches an epoch has; {epoch_steps} steps count as one, "
                f"so that the training of {total_steps} has {schedule.epochs}, as the published one"
            )
        elif self._accumulation_scheduler() is not None:
            # Epochs are of unequally many steps, whose numbers are known: the schedule counts steps instead.
            schedule = schedule.in_steps(cast(Callable[[float], float], self.steps_of))
            epoch_steps = 1

        optimizer, scheduler = build_optimizer(
            self.optimizer,
            self.named_parameters(),
            self.backbone.depths,
            schedule,
            self._samples_per_step() or 0,
            epoch_steps,
            total_steps,
            self.no_weight_decay,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _schedule_for_batches(self) -> Schedule:
        """The schedule, without the scaling of its rates where nothing says how many samples a batch has."""
        if not self.schedule.base_batch_size:
            return self.schedule
        samples = self._samples_per_step()
        if samples is None:
            rank_zero_only(say)(
                "schedule: nothing says how many samples a batch has, so learning rates are taken as stated, not "
                f"scaled from {self.schedule.base_batch_size} samples per step (schedule.base_batch_size)"
            )
            return dataclasses.replace(self.schedule, base_batch_size=0)
        if self._accumulation_scheduler() is not None:
            rank_zero_only(say)(
                f"schedule: learning rates are scaled for the {samples} samples per step of the first epoch, "
                "also where GradientAccumulationScheduler changes their number (schedule.base_batch_size: 0 leaves "
                "them as stated)"
            )
        return self.schedule

    # ---- a resumed training of another length

    def on_train_start(self) -> None:
        """Gives a resumed training of another length its own rates."""
        super().on_train_start()
        # GradientAccumulationScheduler sets it as an epoch starts, which one that is resumed within does not do again.
        self.trainer.accumulate_grad_batches = self.accumulated_batches(self.trainer.current_epoch)
        before, now = self._planned_steps or (None, None)
        if before != now:
            self._change_plan(before, now)

    def _change_plan(self, before: int | None, now: int | None) -> None:
        """Gives a resumed training of another length the learning rates of one planned so from the start.

        Raises:
            UserError: a scheduler of the task's own ends before the training.
        """
        change = f"schedule: the training now ends after {now} steps instead of {before}."
        for config in self.trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            if isinstance(scheduler, PlannedLR):
                rank_zero_only(say)(f"{change} {self._set_planned_rates(scheduler, now)}")
                continue
            is_one_cycle = isinstance(scheduler, OneCycleLR) and config.interval == "step"
            if is_one_cycle and (now or math.inf) > scheduler.total_steps:
                raise UserError(
                    f"the training that is resumed has {now or 'no stated number of'} steps, its OneCycleLR ends after "
                    f"{scheduler.total_steps}, as it was planned: resume with the trainer.max_epochs and "
                    "trainer.max_steps of the run's own config, or start a new run from the trained weights with "
                    "--model.weights CHECKPOINT"
                )
            name = type(scheduler).__name__
            rank_zero_only(say)(f"{change} {name}, which the task brings, continues as it was planned.")

    def _set_planned_rates(self, scheduler: PlannedLR, total_steps: int | None) -> str:
        """Sets the rates of the new plan, where the optimizer came back with the old one's; what to say of it."""
        groups = scheduler.optimizer.param_groups
        before = max(group["lr"] for group in groups)
        for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * factor(scheduler.last_epoch)
        after = max(group["lr"] for group in groups)
        return (
            f"From step {scheduler.last_epoch} on, the learning rate is that of a training planned for {total_steps} "
            f"steps from the start: {after:.3g}, where the old plan had {before:.3g}."
        )
