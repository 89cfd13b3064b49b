"""What image and video classification share: one class holds for each sample, or several do (multi-label)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.batches import batches_of, task_data
from swinv2_tasks.errors import UserError
from swinv2_tasks.heads.class_losses import ClassLoss, CrossEntropy
from swinv2_tasks.heads.classification import ClassificationHead
from swinv2_tasks.tasks.base import BaseTask
from swinv2_tasks.text import say
from swinv2_tasks.training.class_weights import ClassWeights
from swinv2_tasks.training.multi_label_losses import MultiLabelLoss
from swinv2_tasks.training.optim import Schedule

_WORDS = {True: "several labels a sample (multi-label)", False: "one label a sample"}


class ClassifierTask(BaseTask):
    """A backbone and a linear head, trained for one class of each sample or for any number of them.

    Args:
        backbone: turns images or clips into feature maps.
        num_classes: number of classes.
        dropout: probability of dropping a pooled feature in training.
        label_smoothing: share of the target spread over all classes; of one label a sample alone.
        loss: what is minimized of one label a sample.
        class_weights: how much each class counts in the loss; None: all alike.
        multi_label: whether several classes may hold for a sample; None: what the data say, else one does.
        multi_label_loss: what is minimized then.
        threshold: probability from which on a class is predicted then, in [0, 1].
        weights: checkpoint to start from.
        optimizer: builds the optimizer.
        schedule: learning rate over time and layers.
    """

    num_classes: int

    def __init__(
        self,
        backbone: SwinTransformerV2,
        num_classes: int,
        dropout: float,
        label_smoothing: float,
        loss: ClassLoss,
        class_weights: ClassWeights | None,
        multi_label: bool | None,
        multi_label_loss: MultiLabelLoss,
        threshold: float,
        weights: str | None,
        optimizer: OptimizerCallable,
        schedule: Schedule,
    ) -> None:
        head = ClassificationHead(backbone.channels[-1], num_classes, dropout)
        super().__init__(backbone, head, weights, optimizer, schedule)
        self.num_classes = num_classes
        self.multi_label = multi_label
        if not 0 <= label_smoothing < 1:
            raise UserError(f"model.label_smoothing is {label_smoothing}; expected a share, from 0 to below 1")
        if not 0 <= threshold <= 1:
            raise UserError(f"model.threshold is {threshold}; expected a probability, from 0 to 1")
        multi_label_loss.check_classes(num_classes)
        self.threshold = threshold
        self.loss, self.multi_label_loss = copy.deepcopy((loss, multi_label_loss))  # or tasks would share the defaults'
        self.loss.label_smoothing = label_smoothing
        self.weigh_classes_in([self.loss, self.multi_label_loss], class_weights)

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of logits (B, classes).

        Args:
            logits: of the classes.
            labels: (B,) indices or (B, classes) probabilities; multi-label: (B, classes), 1 where a class holds.
        """
        if self.multi_label:
            return self.multi_label_loss.mean(self.multi_label_losses(logits, labels))
        return self.loss(logits, labels)

    def multi_label_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each logit (B, classes), without class weights.

        Raises:
            UserError: labels are indices, or of another number of classes.
        """
        self.check_multi_hot(labels, tuple(logits.shape))
        return self.multi_label_loss(logits, labels)

    def check_multi_hot(self, labels: Tensor, shape: tuple[int, ...]) -> None:
        """Makes sure that multi-label samples have a number for each class.

        Args:
            labels: of a batch.
            shape: the shape that they should have.

        Raises:
            UserError: they are indices, or of another number of classes.
        """
        if labels.shape != shape:
            raise UserError(
                f"multi-label classification takes labels of the shape {shape}, 1 where a class holds; "
                f"these have {tuple(labels.shape)}. For one label a sample set model.multi_label false"
            )

    def probabilities_of(self, logits: Tensor) -> Tensor:
        """Probabilities (B, classes) float32; multi-label: each class's own, else they sum to 1."""
        return logits.float().sigmoid() if self.multi_label else logits.float().softmax(1)

    # ---- what the data and checkpoints say

    def setup(self, stage: str) -> None:
        """Takes over from the data whether several classes may hold.

        Raises:
            UserError: the model is for the other.
        """
        super().setup(stage)
        stated = task_data(self.trainer).multi_label
        if stage != "predict" and stated is not None:
            self.set_multi_label(stated, "the data have")
        if stage != "fit":
            return
        self.weigh_classes(every_class_counts=bool(self.multi_label))
        if self.multi_label and self.loss.label_smoothing:
            rank_zero_only(say)(
                f"model.label_smoothing {self.loss.label_smoothing:g} is for one label a sample and has no effect on "
                "multi-label training"
            )
        if self.multi_label and type(self.loss) is not CrossEntropy:
            rank_zero_only(say)(
                f"model.loss {type(self.loss).__name__} is for one label a sample and has no effect on multi-label "
                "training: set model.multi_label_loss"
            )

    def set_multi_label(self, value: bool, whose: str) -> None:
        """Takes over whether several classes may hold, from the data or a checkpoint.

        Args:
            value: whether they may.
            whose: what a message is to say of their origin, as "the data have".

        Raises:
            UserError: what is known already is the other.
        """
        if self.multi_label is not None and self.multi_label != value:
            raise UserError(
                f"{whose} {_WORDS[value]}, the model is for {_WORDS[self.multi_label]}. Train a head for them: "
                f"swinv2-tasks fit with the checkpoint as --model.weights; or state how labels are read, data.labels "
                f"{'one' if value else 'several'}, where the data allow it"
            )
        self.multi_label = value
        self.init_args = {**self.init_args, "multi_label": value}  # as checkpoints record it

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes over the checkpoint, which says whether several classes may hold; older ones are of one.

        Raises:
            UserError: the model is for the other, or as in ``BaseTask``.
        """
        super().on_load_checkpoint(checkpoint)
        recorded = checkpoint["swinv2_tasks"]["task"]["init_args"].get("multi_label")
        self.set_multi_label(bool(recorded), "the checkpoint is of")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Makes sure, of an epoch's first batch, that its labels are of one class each or that several are meant."""
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx or self.multi_label:
            return
        for loader_batch in batches_of(batch):
            labels = loader_batch.get("label") if isinstance(loader_batch, Mapping) else None
            if isinstance(labels, Tensor) and labels.ndim == 2 and not _sum_to_one(labels):
                raise UserError(
                    "labels of a training batch have rows that do not sum to 1, so that several classes hold for an "
                    "image, or none: set model.multi_label true for this, or mend the labels"
                )


def _sum_to_one(labels: Tensor) -> bool:
    sums = labels.float().sum(1)
    return bool(torch.isclose(sums, torch.ones_like(sums), atol=1e-2).all())
