"""Metrics of a task: a set for each evaluation loader, exact over all processes, logged where the trainer looks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics import Metric, MetricCollection

from swinv2_tasks.training.lightning_internals import attached_trainer

AnyMetric = TypeVar("AnyMetric", bound=nn.Module)


class MeasuredTask(LightningModule):
    """Keeps metrics for each evaluation loader and logs them at the end of an evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self._further_metrics = nn.ModuleDict()

    def log(self, name: str, value: Any, **settings: Any) -> None:  # type: ignore[override]
        """As Lightning's; inside another LightningModule that one logs, and without a trainer nobody does."""
        trainer = attached_trainer(self)
        if trainer is None and self.fabric is None:
            return
        owner = self if trainer is None else trainer.lightning_module
        if owner is self:
            super().log(name, value, **settings)
        else:
            owner.log(name, value, **settings)

    def of_loader(self, metrics: AnyMetric, dataloader_idx: int) -> AnyMetric:
        """The task's metrics for one of several evaluation loaders: themselves for the first, copies for the others."""
        if dataloader_idx == 0:
            return metrics
        attribute = next(name for name, module in self.named_children() if module is metrics)
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

    def log_epoch_metrics(
        self, metrics: MetricCollection | Metric, name: str = "", in_progress_bar: Sequence[str] = ()
    ) -> None:
        """Logs metrics at the end of an evaluation, exact over all processes: those that any process has measured.

        To be called by all processes in ``on_validation_epoch_end``: one without a sample takes part in the sums. Those
        of further loaders are logged as Lightning does it: ``val/top1/dataloader_idx_1`` beside ``val/top1``.

        Args:
            metrics: a collection, or one metric with its ``name``.
            name: what a single metric is called in logs; of one that computes several values, what their names begin
                with.
            in_progress_bar: endings of the names that the progress bar shows; without any, it shows all.
        """
        for index, loader_metrics in enumerate(self.of_loaders(metrics)):
            suffix = f"/dataloader_idx_{index}" if index else ""
            self._log_metrics(loader_metrics, name, in_progress_bar, suffix)

    def _log_metrics(
        self, metrics: MetricCollection | Metric, name: str, in_progress_bar: Sequence[str], suffix: str
    ) -> None:
        parts: list[Any] = [*metrics.values()] if isinstance(metrics, MetricCollection) else [metrics]
        updates = torch.tensor(float(sum(part.update_count for part in parts)), device=self.device)
        if self.trainer.strategy.reduce(updates, reduce_op="sum") == 0:
            return

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")  # a process without samples
            result = metrics.compute()
        metrics.reset()

        values = result if isinstance(result, dict) else {"": result}
        for key, value in values.items():
            full_name = f"{name}{key}"
            in_bar = not in_progress_bar or full_name.endswith(tuple(in_progress_bar))
            self.log(f"{full_name}{suffix}", value, prog_bar=in_bar, add_dataloader_idx=False)
