"""Metrics that torchmetrics lacks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class AnyLabelAccuracy(Metric):
    """Share of images whose top-k classes hold one of the image's labels; images without labels do not count.

    The measure of ReaL labels: https://arxiv.org/abs/2006.07159, section 3.

    Args:
        top_k: how many of the highest scores may answer.
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


class CrossEntropy(Metric):
    """Mean cross-entropy per image, the same to the last bit in whatever order and number of processes it is summed.

    Each image's loss is rounded to a millionth (2⁻²⁰) and summed as an integer, since sums of floats depend on order.
    A loss above a million counts as infinite.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    millionths: Tensor
    images: Tensor
    infinite: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("millionths", "images", "infinite"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch: logits (B, classes), labels (B,) int64 in [0, classes)."""
        losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        finite = losses < 1e6
        self.millionths += (losses.where(finite, 0) * 2**20).round().long().sum()
        self.images += len(labels)
        self.infinite += (~finite).sum()

    def compute(self) -> Tensor:
        """Mean loss; infinite when any image's is, or is not a number; NaN when there was no image."""
        mean = self.millionths / self.images / 2**20
        return torch.where(self.infinite > 0, torch.inf, mean)
