"""Batch normalization over all processes of a training, on any device.

https://arxiv.org/abs/1502.03167; over processes as in https://arxiv.org/abs/1711.07240, section 3.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, with two additions for training.

    * On several processes the mean and the variance are those of all their samples. torch's own SyncBatchNorm does so
      on GPUs only, faster; ``synchronize`` replaces it by that there.
    * A channel with a single value, of a lone image pooled to one pixel, has no variance: the running ones are used. So
      they are where there is no value at all: a detector may have no proposal to train on.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes x (B, C, H, W); in training by the statistics of all processes' batches."""
        if torch.compiler.is_exporting() and not self.training:
            return self._forward_exported(x)
        if not self.training:
            return super().forward(x)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            return self._forward_all(x)
        if x.numel() <= x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, eps=self.eps)
        return super().forward(x)

    def _forward_exported(self, x: Tensor) -> Tensor:
        """As in eval mode. torch's own asks whether there is any value, which a graph of proposals does not know."""
        assert self.running_mean is not None and self.running_var is not None
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None]).to(x.dtype)

    def _forward_all(self, x: Tensor) -> Tensor:
        values = x.float()
        total = torch.tensor(values.numel() / values.shape[1], device=x.device)
        torch.distributed.all_reduce(total)

        # Statistics of all processes' values, of each channel.
        divisor = total.clamp(min=1)
        mean = all_reduce(values.sum((0, 2, 3))) / divisor
        centered = values - mean[:, None, None]
        variance = all_reduce(centered.square().sum((0, 2, 3))) / divisor

        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            momentum = self.momentum * (total > 0)  # without a value in any process they stay
            unbiased_variance = variance * (total / (total - 1).clamp(min=1))
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(unbiased_variance, momentum)
            self.num_batches_tracked.add_(1)

        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias[:, None, None], centered, scale[:, None, None]).to(x.dtype)


def synchronize(module: nn.Module, device: torch.device) -> None:
    """Makes the batch norms inside a module ready for several processes on a device, under the same names."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # replaces them in place
