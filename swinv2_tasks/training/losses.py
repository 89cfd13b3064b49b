"""Losses that torch lacks.

Hard example mining: https://arxiv.org/abs/1604.03540, here of pixels. Masked image modeling:
https://arxiv.org/abs/2111.09886, its targets normalized within a sliding window as for Swin V2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2_tasks.batches import IGNORED
from swinv2_tasks.errors import UserError
from swinv2_tasks.heads.class_losses import WeightedLoss, check_class_weights


class PixelCrossEntropy(WeightedLoss):
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
        if class_weights is not None:
            check_class_weights(class_weights, "class_weights")
        self.set_class_weights(class_weights)
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
        enlarged = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
        losses = F.cross_entropy(enlarged, labels, ignore_index=IGNORED, reduction="none")
        is_valid = labels != IGNORED
        is_counted = is_valid
        if self.ohem_threshold is not None:
            is_counted = is_valid & self._is_hard(losses.detach(), is_valid)

        weights = is_counted.to(losses.dtype)
        if (class_weights := self.class_weights(logits)) is not None:
            weights = weights * class_weights[labels.where(is_valid, 0)]
        return losses * weights, weights.sum()

    def _is_hard(self, losses: Tensor, is_valid: Tensor) -> Tensor:
        """Where one image's losses (1, H, W) are above that of the threshold or among the largest."""
        assert self.ohem_threshold is not None
        threshold = -math.log(self.ohem_threshold)
        if not self.ohem_min_pixels:
            return losses > threshold
        number = min(self.ohem_min_pixels, losses.numel())
        largest = losses.where(is_valid, -1).flatten().topk(number).values
        return (losses > threshold) | (losses >= largest[-1])


class _PixelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, loss: PixelCrossEntropy) -> Tensor:
        total = total_weight = logits.new_zeros((), dtype=torch.float32)
        gradients = torch.zeros_like(logits, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        for k in range(len(logits)):
            with torch.set_grad_enabled(gradients is not None):
                image_logits = logits[k : k + 1].detach().float().requires_grad_(gradients is not None)
                losses, weight = loss.pixel_losses(image_logits, labels[k : k + 1])
                image_total = losses.sum()

            if gradients is not None:
                gradients[k : k + 1] = torch.autograd.grad(image_total, image_logits)[0]
            total = total + image_total.detach()
            total_weight = total_weight + weight.detach()

        total_weight = total_weight.clamp(min=torch.finfo(torch.float32).tiny)
        if gradients is not None:
            ctx.save_for_backward(gradients.div_(total_weight).to(logits.dtype))
        return total / total_weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * gradient.to(gradients.dtype), None, None


def masked_l1(pixels: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference over the masked pixels and the channels (SimMIM, section 3.4).

    Args:
        pixels: (B, C, H, W), predicted.
        targets: (B, C, H, W).
        mask: bool (B, h, w), True for masked patches; h divides H, w divides W.
    """
    rows, columns = targets.shape[2] // mask.shape[1], targets.shape[3] // mask.shape[2]  # pixels of a patch
    differences = (pixels.float() - targets.float()).abs().sum(1)
    patch_sums = differences.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).sum((2, 4))
    masked_pixels = mask.sum() * (rows * columns)
    return (patch_sums * mask).sum() / (masked_pixels + 1e-5) / targets.shape[1]


@torch.no_grad()
def local_statistics(images: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pixels around each pixel, by channel: two times (B, C, H, W).

    The window is cut off at the image's edge; the variance is unbiased, and 1e-6 is added to it, as published.

    Args:
        images: (B, C, H, W).
        window: side in pixels, odd and at least 3.
    """
    pixels = images.double()  # sums of squares of nearly equal pixels cancel

    def window_sums(x: Tensor) -> Tensor:
        return _window_sums(_window_sums(x, window, dim=2), window, dim=3)

    counts = window_sums(pixels.new_ones(1, 1, *images.shape[2:]))
    mean = window_sums(pixels) / counts
    mean_square = window_sums(pixels * pixels) / counts
    variance = ((mean_square - mean * mean) * (counts / (counts - 1))).clamp(min=0)
    return mean.to(images.dtype), (variance + 1e-6).sqrt().to(images.dtype)


def _window_sums(x: Tensor, window: int, dim: int) -> Tensor:
    """The sum of the values within half a window of each, along one axis."""
    length, half = x.shape[dim], window // 2
    sums = F.pad(x.movedim(dim, -1).cumsum(-1), (1, 0))
    positions = torch.arange(length, device=x.device)
    first, end = (positions - half).clamp(min=0), (positions + half + 1).clamp(max=length)
    return (sums.index_select(-1, end) - sums.index_select(-1, first)).movedim(-1, dim)
