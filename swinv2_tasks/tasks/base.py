"""What the tasks share: weights, optimizer, schedule, and metrics that are exact on any number of processes."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics import Metric, MetricCollection

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.batches import batches_of, task_data
from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.errors import CollectiveError, UserError
from swinv2_tasks.training.guard import GuardedTask
from swinv2_tasks.training.optim import NO_WEIGHT_DECAY, PlannedLR, Schedule, build_optimizer
from swinv2_tasks.training.resume import RestorableTask
from swinv2_tasks.training.sharding import gather_units, release_units, shard, units
from swinv2_tasks.weights import load_weights
from swinv2_tasks.weights.finite import describe_nonfinite, find_nonfinite

AnyMetric = TypeVar("AnyMetric", bound=nn.Module)


class _Shared:
    """A function that copies of its owner share: the command line's holds on to the trainer and all that hangs on it,
    which averaging the weights would copy, or fail to where other processes are started."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __deepcopy__(self, memo: Any) -> _Shared:
        return self


class BaseTask(RestorableTask, GuardedTask):
    """A backbone and a head, trained with a schedule over time and layers; subclasses add steps and metrics.

    Args:
        backbone: turns pixels into feature maps.
        head: turns feature maps into predictions.
        weights: checkpoint to start from, in any format of ``load_weights``; for going on with a run or for evaluating
            one, its ``ckpt_path`` is the way.
        optimizer: builds the optimizer from parameter groups; its learning rate is the schedule's peak.
        schedule: learning rate over time and layers.
    """

    no_weight_decay: tuple[str, ...] = NO_WEIGHT_DECAY
    """Parts of the names of parameters without weight decay, beside vectors and biases."""

    run_folder: Path | None = None
    """The folder of the run, as the command line sets it; without one nothing is written beside what a trainer does."""

    output: str | None = None
    """The folder of predictions, where it is another than in the run's."""

    head_methods: tuple[str, ...] = ()
    """What training calls of the head beside its ``forward``."""

    def __init__(
        self,
        backbone: SwinTransformerV2,
        head: nn.Module,
        weights: str | None,
        optimizer: OptimizerCallable,
        schedule: Schedule,
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.optimizer, self.schedule = _Shared(optimizer), schedule
        self._further_metrics = nn.ModuleDict()
        self._head_file: str | None = None
        if weights is not None:
            report = load_weights(self, weights)
            rank_zero_only(print)(f"{report}\n")
            if report.head.startswith("loaded"):
                self._head_file = report.source

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """The losses of a training batch: ``loss``, which is to be minimized, and its parts, if it has any.

        It needs no trainer: a training loop of one's own calls it in train mode.
        """
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch; of the batches of several loaders, the mean of their losses."""
        of_each = [self.compute_losses(one) for one in batches_of(batch)]
        losses = of_each[0]
        if len(of_each) > 1:
            losses = {name: torch.stack([each[name] for each in of_each]).mean() for name in losses}
        for name, value in losses.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss")
        return losses["loss"]

    def log(self, name: str, value: Any, **settings: Any) -> None:  # type: ignore[override]
        """As Lightning's; inside another LightningModule that one logs, and without a trainer nobody does."""
        trainer = self._trainer
        if trainer is None and self._fabric is None:
            return
        owner = self if trainer is None else trainer.lightning_module
        if owner is self:
            super().log(name, value, **settings)
        else:
            owner.log(name, value, **settings)

    def forward(self, x: Tensor) -> Any:
        """Plain inference: what the head makes of the maps of normalized images or clips."""
        return self.head(self.backbone(x))

    def setup(self, stage: str) -> None:
        self._training_loader = None
        data = task_data(self.trainer)
        if stage != "predict" and data.class_ids is not None:  # to predict, the data need not know its classes
            ids = list(data.class_ids)
            self.set_classes(ids, list(data.class_names or map(str, ids)), "the data")
            self._say_order_of_numbers()

    def _say_order_of_numbers(self) -> None:
        """Says which class each row of a head from a file is taken for, where classes are called by numbers.

        Nothing else would tell: folders 0, 1, … 10 are sorted as text by other programs.
        """
        ids = [class_id for class_id in self.class_ids or [] if isinstance(class_id, str) and class_id.isdecimal()]
        if self._head_file is None or len(ids) < max(1, len(self.class_ids or [])):
            return
        message = f"head: the rows of {self._head_file} are taken in this order of the classes: {abbreviate(ids)}."
        if sorted(ids) != ids:
            message += (
                f" Heads trained on folders that are sorted as text, as torchvision's ImageFolder does, have another: "
                f"{abbreviate(sorted(ids))}; for such a head, state data.class_names in its order."
            )
        rank_zero_only(print)(message)

    def configure_callbacks(self) -> list[Callback]:
        return [] if self.run_folder is None else self.result_writers(self.run_folder, self.output)

    def result_writers(self, run_folder: Path, output: str | None) -> list[Callback]:
        """What writes predictions, and tables and pictures of evaluations; a subclass says.

        Args:
            run_folder: the folder of the run.
            output: the folder of predictions; None: in the run's.
        """
        return []

    def configure_model(self) -> None:
        mesh = self.device_mesh
        if mesh is not None:  # of a strategy that shards
            strategy: Any = self.trainer.strategy
            seed = strategy.broadcast(torch.initial_seed() % 2**32)
            shard(self.backbone, self.head, mesh["data_parallel"], strategy.root_device, seed, self.head_methods)

    def configure_optimizers(self) -> Any:
        total_steps, epoch_steps = self.total_steps(), self.epoch_steps()
        schedule = self._schedule_for_batches()
        if epoch_steps is None:
            epoch_steps = max(1, round(total_steps / schedule.epochs))
            rank_zero_only(print)(
                f"schedule: the loader does not say how many batches an epoch has; {epoch_steps} steps count as one, "
                f"so that the training of {total_steps} has {schedule.epochs}, as the published one"
            )
        elif self._accumulation_scheduler() is not None:
            schedule, epoch_steps = (
                schedule.in_steps(cast(Callable[[float], float], self.steps_of)),
                1,
            )  # known, as those of an epoch are
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

    def _samples_per_step(self) -> int | None:
        """Samples of an optimizer step of the first epoch, over all processes; None where nothing says."""
        batch_size = task_data(self.trainer).batch_size or self.training_loader.batch_size
        return batch_size and batch_size * self.trainer.world_size * self.accumulated_batches(0)

    def _schedule_for_batches(self) -> Schedule:
        """The schedule, without the scaling of its rates where nothing says how many samples a batch has."""
        if not self.schedule.base_batch_size:
            return self.schedule
        samples = self._samples_per_step()
        if samples is None:
            rank_zero_only(print)(
                "schedule: nothing says how many samples a batch has, so learning rates are taken as stated, not "
                f"scaled from {self.schedule.base_batch_size} samples per step (schedule.base_batch_size)"
            )
            return dataclasses.replace(self.schedule, base_batch_size=0)
        if self._accumulation_scheduler() is not None:
            rank_zero_only(print)(
                f"schedule: learning rates are scaled for the {samples} samples per step of the first epoch, "
                "also where GradientAccumulationScheduler changes their number (schedule.base_batch_size: 0 leaves "
                "them as stated)"
            )
        return self.schedule

    def on_train_start(self) -> None:
        self._refuse_nonfinite()
        # GradientAccumulationScheduler sets it as an epoch starts, which one that is resumed within does not do again.
        self.trainer.accumulate_grad_batches = self.accumulated_batches(self.trainer.current_epoch)
        before, now = self._planned_steps or (None, None)
        if before != now:
            self._plan_anew(before, now)

    def _plan_anew(self, before: int | None, now: int | None) -> None:
        """Gives a resumed training of another length the learning rates of one planned so from the start.

        Raises:
            UserError: a scheduler of the task's own ends before the training.
        """
        change = f"schedule: the training now ends after {now} steps instead of {before}."
        for config in self.trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            if isinstance(scheduler, PlannedLR):
                rank_zero_only(print)(f"{change} {self._replan(scheduler, now)}")
            elif (
                isinstance(scheduler, OneCycleLR) and config.interval == "step" and (now or inf) > scheduler.total_steps
            ):
                raise UserError(
                    f"the training that is resumed has {now or 'no stated number of'} steps, its OneCycleLR ends after "
                    f"{scheduler.total_steps}, as it was planned: resume with the trainer.max_epochs and "
                    "trainer.max_steps of the run's own config, or start a new run from the trained weights with "
                    "--model.weights CHECKPOINT"
                )
            else:
                name = type(scheduler).__name__
                rank_zero_only(print)(f"{change} {name}, which the task brings, goes on as it was planned.")

    def _replan(self, scheduler: PlannedLR, total: int | None) -> str:
        """Sets the rates of the new plan, where the optimizer came back with the old one's; what to say of it."""
        before = max(group["lr"] for group in scheduler.optimizer.param_groups)
        for group, base, factor in zip(
            scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(scheduler.last_epoch)
        after = max(group["lr"] for group in scheduler.optimizer.param_groups)
        return (
            f"From step {scheduler.last_epoch} on, the learning rate is that of a training planned for {total} steps "
            f"from the start: {after:.3g}, where the old plan had {before:.3g}."
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.input_size = self.input_size_of(batches_of(batch)[0])

    def input_size_of(self, batch: Any) -> tuple[int, ...]:
        """Size in pixels at which the backbone sees a batch; the checkpoint's windows are those in effect at it."""
        return tuple(batch["image"].shape[2:])

    def on_validation_start(self) -> None:
        model = self.trainer.strategy.model
        if isinstance(model, DistributedDataParallel):
            # Processes may have unequal numbers of batches: none may wait for others within one, and all must evaluate
            # the model that checkpoints hold, the first process's.
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, 0)
            model.require_forward_param_sync = False
        self._gather()

    def on_test_start(self) -> None:
        self._gather()

    def on_predict_start(self) -> None:
        self._gather()

    def _gather(self) -> None:
        """Makes a sharded model whole for an evaluation: processes may have unequal numbers of batches."""
        if units(self):
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, 0)
            gather_units(self)
        self._refuse_nonfinite()

    def _refuse_nonfinite(self) -> None:
        """Stops all processes where the weights of any are NaN or infinite.

        Raises:
            CollectiveError: naming them.
        """
        names = find_nonfinite({"backbone": self.backbone, "head": self.head})
        number = torch.tensor(float(len(names)), device=self.device)
        if self.trainer.world_size > 1:
            number = self.trainer.strategy.reduce(number, reduce_op="sum")
        if number > 0:
            source = self.trainer.ckpt_path
            raise CollectiveError(describe_nonfinite(names, None if source is None else str(source)))

    def on_validation_end(self) -> None:
        release_units(self)
        model = self.trainer.strategy.model
        if isinstance(model, DistributedDataParallel):
            model.require_forward_param_sync = True

    def of_loader(self, metrics: AnyMetric, dataloader_idx: int) -> AnyMetric:
        """The task's metrics for one of several evaluation loaders: themselves for the first, copies for the others."""
        if dataloader_idx == 0:
            return metrics
        attribute = next(name for name, module in self._modules.items() if module is metrics)
        key = f"{attribute}_{dataloader_idx}"
        if key not in self._further_metrics:
            copied = copy.deepcopy(metrics)
            cast(Metric, copied).reset()
            self._further_metrics[key] = copied
        return cast(AnyMetric, self._further_metrics[key])

    def of_loaders(self, metrics: AnyMetric) -> list[AnyMetric]:
        """The task's metrics for each loader of the evaluation that runs."""
        trainer = self.trainer
        loaders = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        return [self.of_loader(metrics, index) for index in range(max(1, len(loaders)))]

    def log_epoch_metrics(self, metrics: MetricCollection | Metric, name: str = "", shown: Sequence[str] = ()) -> None:
        """Logs metrics at the end of an evaluation, exact over all processes: those that any process has measured.

        To be called by all processes in ``on_validation_epoch_end``: one without a sample takes part in the sums. Those
        of further loaders are logged as Lightning does it: ``val/top1/dataloader_idx_1`` beside ``val/top1``.

        Args:
            metrics: a collection, or one metric with its ``name``.
            name: what a single metric is called in logs; of one that computes several values, what their names begin
                with.
            shown: endings of the names that the progress bar shows; without any, it shows all.
        """
        for index, one in enumerate(self.of_loaders(metrics)):
            self._log_metrics(one, name, shown, f"/dataloader_idx_{index}" if index else "")

    def _log_metrics(self, metrics: MetricCollection | Metric, name: str, shown: Sequence[str], ending: str) -> None:
        parts: list[Any] = [*metrics.values()] if isinstance(metrics, MetricCollection) else [metrics]
        updates = torch.tensor(float(sum(part.update_count for part in parts)), device=self.device)
        if self.trainer.strategy.reduce(updates, reduce_op="sum") == 0:
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")  # a process without samples
            computed = metrics.compute()
        metrics.reset()
        values = (
            {f"{name}{key}": value for key, value in computed.items()}
            if isinstance(computed, dict)
            else {name: computed}
        )
        for key, value in values.items():
            in_bar = not shown or key.endswith(tuple(shown))
            self.log(f"{key}{ending}", value, prog_bar=in_bar, add_dataloader_idx=False)
