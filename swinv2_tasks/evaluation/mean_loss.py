"""A mean loss that is the same in any order and number of processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """Mean loss per image, bitwise identical in whatever order and number of processes it is summed.

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

    def update(self, losses: Tensor) -> None:
        """Counts a batch: losses (B,)."""
        finite = losses < 1e6
        self.millionths += (losses.where(finite, 0) * 2**20).round().long().sum()
        self.images += len(losses)
        self.infinite += (~finite).sum()

    def compute(self) -> Tensor:
        """Mean loss; infinite when any image's is, or is not a number; NaN when there was no image."""
        mean = self.millionths / self.images / 2**20
        return torch.where(self.infinite > 0, torch.inf, mean)
