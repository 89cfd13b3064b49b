"""What the tasks share. How each part works is in the file of its class under ``training``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.batches import batches_of
from swinv2_tasks.text import say
from swinv2_tasks.training.guard import GuardedTask
from swinv2_tasks.training.metrics import MeasuredTask
from swinv2_tasks.training.optim import Schedule
from swinv2_tasks.training.parallel import ParallelTask
from swinv2_tasks.training.planning import SharedFunction
from swinv2_tasks.training.resume import RestorableTask
from swinv2_tasks.weights import load_weights


class BaseTask(ParallelTask, RestorableTask, GuardedTask, MeasuredTask):
    """A backbone and a head, trained with a schedule over time and layers; subclasses add steps and metrics.

    Args:
        backbone: turns pixels into feature maps.
        head: turns feature maps into predictions.
        weights: checkpoint to start from, in any format of ``load_weights``; to resume a run or to evaluate it, its
            ``ckpt_path`` is the way.
        optimizer: builds the optimizer from parameter groups; its learning rate is the schedule's peak.
        schedule: learning rate over time and layers.
    """

    run_folder: Path | None = None
    """The folder of the run, as the command line sets it; without one nothing is written beside what a trainer does."""

    output: str | None = None
    """The folder of predictions, where it is another than in the run's."""

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
        self.optimizer, self.schedule = SharedFunction(optimizer), schedule
        if weights is not None:
            report = load_weights(self, weights)
            rank_zero_only(say)(f"{report}\n")
            self.note_head_source(report)

    def forward(self, x: Tensor) -> Any:
        """Plain inference: what the head makes of the maps of normalized images or clips."""
        return self.head(self.backbone(x))

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """The losses of a training batch: ``loss``, which is to be minimized, and its parts, if it has any.

        It needs no trainer: a training loop of one's own calls it in train mode.
        """
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch; of the batches of several loaders, the mean of their losses."""
        loader_losses = [self.compute_losses(loader_batch) for loader_batch in batches_of(batch)]
        losses = loader_losses[0]
        if len(loader_losses) > 1:
            losses = {name: torch.stack([each[name] for each in loader_losses]).mean() for name in losses}
        for name, value in losses.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss")
        return losses["loss"]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Notes the size at which the backbone sees the batch."""
        super().on_train_batch_start(batch, batch_idx)
        self.input_size = self.input_size_of(batches_of(batch)[0])

    def input_size_of(self, batch: Any) -> tuple[int, ...]:
        """Size in pixels at which the backbone sees a batch; the checkpoint's windows are those in effect at it."""
        return tuple(batch["image"].shape[2:])

    def configure_callbacks(self) -> list[Callback]:
        """What writes predictions, tables and figures; nothing outside of the command line."""
        return [] if self.run_folder is None else self.result_writers(self.run_folder, self.output)

    def result_writers(self, run_folder: Path, output: str | None) -> list[Callback]:
        """What writes predictions, and tables and figures of evaluations; a subclass says.

        Args:
            run_folder: the folder of the run.
            output: the folder of predictions; None: in the run's.
        """
        return []
