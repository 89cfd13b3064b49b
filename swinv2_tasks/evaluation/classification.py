"""Scores of classifiers that torchmetrics lacks: ReaL accuracy, and cross-entropy bitwise identical in any order."""

from __future__ import annotations

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
