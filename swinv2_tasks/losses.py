"""Losses that torch lacks.

Hard example mining: https://arxiv.org/abs/1604.03540, here of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from swinv2_tasks.datamodules.batch import IGNORED
from swinv2_tasks.errors import UserError


class PixelCrossEntropy(nn.Module):
    """Cross-entropy of logits enlarged to the labels' size: the weighted mean over the pixels that count.

    The enlarged logits, by far the largest tensor of a segmenter, exist for one image at a time: its gradient is
    computed and reduced to the logits' own size together with its loss.

    Args:
        class_weights: weight of each class; None: all are 1.
        ohem_threshold: only pixels whose own class gets a probability below this count, in (0, 1]; None: all count.
        ohem_min_pixels: of each image, at least this many of the hardest pixels count.

    Raises:
        UserError: an argument is out of its range.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        ohem_threshold: float | None = None,
        ohem_min_pixels: int = 100_000,
    ) -> None:
        super().__init__()
        if ohem_threshold is not None and not 0 < ohem_threshold <= 1:
            raise UserError(f"ohem_threshold must be above 0 and at most 1, not {ohem_threshold}")
        if ohem_min_pixels < 0:
            raise UserError(f"ohem_min_pixels must not be negative, as {ohem_min_pixels} is")
        if class_weights is not None and (min(class_weights, default=-1) < 0 or not max(class_weights) > 0):
            raise UserError(f"class_weights must be numbers of at least 0, some above it, not {[*class_weights]}")
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.ohem_threshold, self.ohem_min_pixels = ohem_threshold, ohem_min_pixels

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch; 0 when no pixel counts.

        Args:
            logits: (B, K, h, w), enlarged bilinearly to the labels' size.
            labels: (B, H, W) int64 in [0, K), or 255 for pixels that do not count.
        """
        return _PixelCrossEntropy.apply(logits, labels, self)

    def pixel_losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted losses of one image's pixels, 0 where they do not count, and their sum of weights.

        Args:
            logits: (1, K, h, w).
            labels: (1, H, W).
        """
        large = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
        losses = F.cross_entropy(large, labels, ignore_index=IGNORED, reduction="none")
        valid = labels != IGNORED
        counts = valid if self.ohem_threshold is None else valid & self._hard(losses.detach(), valid)
        weights = counts.to(losses.dtype)
        if self.class_weights is not None:
            weights = weights * self.class_weights[labels.where(valid, 0)]
        return losses * weights, weights.sum()

    def _hard(self, losses: Tensor, valid: Tensor) -> Tensor:
        """Where one image's losses (1, H, W) are above that of the threshold or among the largest."""
        assert self.ohem_threshold is not None
        at_least = -math.log(self.ohem_threshold)
        if not self.ohem_min_pixels:
            return losses > at_least
        largest = losses.where(valid, -1).flatten().topk(min(self.ohem_min_pixels, losses.numel())).values
        return (losses > at_least) | (losses >= largest[-1])


class _PixelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, loss: PixelCrossEntropy) -> Tensor:
        total = weight = logits.new_zeros((), dtype=torch.float32)
        gradients = torch.zeros_like(logits, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        for k in range(len(logits)):
            with torch.set_grad_enabled(gradients is not None):
                small = logits[k : k + 1].detach().float().requires_grad_(gradients is not None)
                losses, weights = loss.pixel_losses(small, labels[k : k + 1])
                summed = losses.sum()
            if gradients is not None:
                gradients[k : k + 1] = torch.autograd.grad(summed, small)[0]
            total, weight = total + summed.detach(), weight + weights.detach()
        weight = weight.clamp(min=torch.finfo(torch.float32).tiny)
        if gradients is not None:
            ctx.save_for_backward(gradients.div_(weight).to(logits.dtype))
        return total / weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * gradient.to(gradients.dtype), None, None
