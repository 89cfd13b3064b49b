"""What torchmetrics lacks for classifiers: ReaL accuracy, cross-entropy bitwise identical in any order, top classes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from swinv2_tasks.evaluation.mean_loss import MeanLoss


class AnyLabelAccuracy(Metric):
    """Share of images whose top-k classes hold one of the image's labels; images without labels do not count.

    The measure of ReaL labels: https://arxiv.org/abs/2006.07159, section 3.

    Args:
        top_k: how many of the highest-scoring classes count.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    hits: Tensor
    images: Tensor

    def __init__(self, top_k: int = 1) -> None:
        super().__init__()
        self.top_k = top_k
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Counts a batch: scores (B, classes), labels (B, classes) with values above 0 where a label holds."""
        holds = labels > 0
        best = scores.topk(self.top_k, dim=1).indices
        self.hits += holds.gather(1, best).any(1).sum()
        self.images += holds.any(1).sum()

    def compute(self) -> Tensor:
        """Accuracy in [0, 1]; NaN when no image had a label."""
        return self.hits / self.images


class CrossEntropy(MeanLoss):
    """Mean cross-entropy per image."""

    # Each metric of torchmetrics has arguments of its own here, the base class as well.
    def update(self, logits: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        """Counts a batch: logits (B, classes), labels (B,) int64 in [0, classes)."""
        super().update(torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none"))


class TopClasses(NamedTuple):
    """What is predicted of samples of one label each, and how probable their labels are."""

    labels: Tensor
    """(B,) int64, the class that holds; −1 for a sample of which nobody knows any."""
    label_scores: Tensor
    """(B,), its probability."""
    losses: Tensor
    """(B,), cross-entropy."""
    classes: Tensor
    """(B, k) int64, the k most probable classes, the first one first."""
    scores: Tensor
    """(B, k), their probabilities."""


def top_classes(logits: Tensor, labels: Tensor, number: int) -> TopClasses:
    """The most probable classes of samples.

    Args:
        logits: (B, classes).
        labels: (B,) int64 in [0, classes); or (B, classes), above 0 where a class holds, of which the most probable one
            is taken: the prediction is right if it is one of them.
        number: k, of the most probable classes.
    """
    logits = logits.float()
    if labels.ndim == 2:
        holds = labels > 0
        highest = logits.masked_fill(~holds, -torch.inf).argmax(1)
        labels = torch.where(holds.any(1), highest, -1)

    # As the metrics have it where classes score alike: top-1 is the first of them, top-k whatever topk takes.
    first = logits.argmax(1, keepdim=True)
    best = logits.topk(number).indices
    best = best.gather(1, (best != first).int().argsort(dim=1, stable=True))

    log_probabilities = logits.log_softmax(1)
    own = log_probabilities.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return TopClasses(labels, own.exp(), -own, best, log_probabilities.gather(1, best).exp())
