"""Relative position biases, and how each meets a window that it was not trained with.

https://arxiv.org/abs/2111.09883, section 3.3 and table 1. Each turns window sides into a bias (heads, N, N) that is
added to the attention logits: entry (i, j) depends only on the offset from token j to token i.

- ``LogCPB``: a small network over log-spaced offsets; what Swin V2 uses.
- ``LinearCPB``: the same network over linear offsets; the paper's middle column.
- ``BiasTable``: one learned number per offset as in Swin V1, resized bicubically for another window.

Shapes: M window side, N = M₁·M₂(·M₃) tokens, T = (2M₁−1)·(2M₂−1)(·(2M₃−1)) offsets, n axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from swinv2_tasks.backbone.window import Size, cached_tensor
from swinv2_tasks.errors import UserError


@cached_tensor
def relative_offsets(window: Size, device: torch.device) -> Tensor:
    """All offsets between two tokens of a window, (T, n) float64, each axis from −(M−1) to M−1, last axis fastest."""
    axes = [torch.arange(-(m - 1), m, device=device, dtype=torch.float64) for m in window]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


@cached_tensor
def relative_position_index(window: Size, device: torch.device) -> Tensor:
    """For tokens i and j of a window, the row of ``relative_offsets`` that holds i − j: (N·N,) int64."""
    axes = [torch.arange(m, device=device) for m in window]
    tokens = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)  # (N, n)
    row = torch.zeros(len(tokens), len(tokens), dtype=torch.int64, device=device)
    for axis, m in enumerate(window):
        row = row * (2 * m - 1) + (tokens[:, None, axis] - tokens[None, :, axis] + m - 1)
    return row.flatten()


@cached_tensor
def log_coordinates(window: Size, pretrained_window: Size, device: torch.device) -> Tensor:
    """Log-spaced offsets, (T, n) float64: ``sign(x) · log₂(1 + |x|) / log₂ 8``, where x is ±8 at the window's edge.

    The edge is that of ``pretrained_window``; a larger window extends the range little: from 8 to 16 by about a third.
    """
    scaled = 8 * linear_coordinates(window, pretrained_window, device)
    return scaled.sign() * torch.log2(1 + scaled.abs()) / math.log2(8)


@cached_tensor
def linear_coordinates(window: Size, pretrained_window: Size, device: torch.device) -> Tensor:
    """Offsets relative to the pre-training window's largest, (T, n) float64: from 8 to 16 the range grows by 1.14×."""
    largest = torch.tensor([max(m - 1, 1) for m in pretrained_window], dtype=torch.float64, device=device)
    return relative_offsets(window, device) / largest


MOST_TOKENS = 2**14
"""Of a window: attention between all of them takes 1 GiB for each head."""


def check_tokens(window: Size) -> None:
    """Refuses a window whose attention would fill the memory.

    Raises:
        UserError: it is one.
    """
    if math.prod(window) > MOST_TOKENS:
        sides = "×".join(map(str, window))
        raise UserError(
            f"window_size: attention within windows of {sides} tokens would fill the memory; choose windows of at most "
            f"{MOST_TOKENS:,} tokens together, or smaller images"
        )


def gather_bias(table: Tensor, window: Size) -> Tensor:
    """Spreads a value per offset and head (T, heads) over all pairs of tokens: (heads, N, N)."""
    check_tokens(window)
    index = relative_position_index(window, table.device)
    tokens = math.prod(window)
    # Rows first, then transposed: measured fastest of the ways to write it, above all backwards.
    return table.index_select(0, index).t().contiguous().view(-1, tokens, tokens)


class _ContinuousBias(nn.Sequential):
    """Offsets → two-layer network → 16·sigmoid. A Sequential, so that the state dict reads as the official one."""

    coordinates: Callable[[Size, Size, torch.device], Tensor]

    def __init__(self, num_heads: int, window: Size) -> None:
        super().__init__(nn.Linear(len(window), 512), nn.ReLU(inplace=True), nn.Linear(512, num_heads, bias=False))

    # A Sequential for the names of its layers alone.
    def forward(self, window: Size, pretrained_window: Size) -> Tensor:  # type: ignore[override]
        """Bias (heads, N, N) for a window, in at least float32 whatever the autocast or parameter type."""
        check_tokens(window)
        return gather_bias(self.table(window, pretrained_window), window)

    def table(self, window: Size, pretrained_window: Size) -> Tensor:
        """The bias of each offset within a window, (T, heads), in the order of ``relative_offsets``."""
        # A quantized layer has no parameters, and is on the CPU.
        like = next(self.parameters(), torch.empty(0))
        dtype = torch.promote_types(like.dtype, torch.float32)
        x = self.coordinates(window, pretrained_window, like.device).to(dtype)
        with torch.autocast(like.device.type, enabled=False):
            for layer in self:
                x = _call_in_type_of(x, layer)
            return 16 * torch.sigmoid(x)

    def set_window(self, window: Size) -> None:
        """Nothing to change: the network is evaluated at any window's offsets."""


def _call_in_type_of(x: Tensor, layer: nn.Module) -> Tensor:
    """What a layer makes of a tensor, computed in the tensor's type where the layer's parameters are narrower."""
    parameters = dict(layer.named_parameters())
    if all(parameter.dtype == x.dtype for parameter in parameters.values()):
        return layer(x)
    return functional_call(layer, {name: parameter.to(x.dtype) for name, parameter in parameters.items()}, (x,))


class LogCPB(_ContinuousBias):
    """Log-spaced continuous position bias (paper section 3.3).

    Args:
        num_heads: attention heads.
        window: window sides in tokens; only their number matters here.
    """

    coordinates = staticmethod(log_coordinates)


class LinearCPB(_ContinuousBias):
    """Continuous position bias over linear offsets (paper section 3.3, before log-spacing).

    Args:
        num_heads: attention heads.
        window: window sides in tokens; only their number matters here.
    """

    coordinates = staticmethod(linear_coordinates)


class BiasTable(nn.Module):
    """One learned number per offset and head, as in Swin V1 (https://arxiv.org/abs/2103.14030, equation 4).

    Args:
        num_heads: attention heads.
        window: window sides in tokens, which size the table.
    """

    def __init__(self, num_heads: int, window: Size) -> None:
        super().__init__()
        check_tokens(window)
        self.window = window
        self.relative_position_bias_table = nn.Parameter(torch.empty(math.prod(2 * m - 1 for m in window), num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the table's initial values."""
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, window: Size, pretrained_window: Size) -> Tensor:
        """Bias (heads, N, N); a window smaller than the table's reads the table's middle."""
        return gather_bias(self.table(window, pretrained_window), window)

    def table(self, window: Size, pretrained_window: Size) -> Tensor:
        """The bias of each offset within a window, (T, heads), in the order of ``relative_offsets``."""
        table = self.relative_position_bias_table
        if window != self.window:
            table = table.unflatten(0, [2 * m - 1 for m in self.window])
            for axis, (m, full) in enumerate(zip(window, self.window, strict=True)):
                table = table.narrow(axis, full - m, 2 * m - 1)
            table = table.flatten(0, -2)
        return table

    @torch.no_grad()
    def set_window(self, window: Size) -> None:
        """Resizes the table to another window."""
        check_tokens(window)
        if window != self.window:
            resized = resize_bias_table(self.relative_position_bias_table, self.window, window)
            self.relative_position_bias_table = nn.Parameter(resized, self.relative_position_bias_table.requires_grad)
            self.window = window


def resize_bias_table(table: Tensor, old_window: Size, new_window: Size) -> Tensor:
    """Resizes a bias table (T, heads) from one window's offsets to another's: bicubic in space, linear in time.

    Raises:
        UserError: for windows of another number of axes.
    """
    if len(old_window) != len(new_window):
        raise UserError(f"a bias table for windows {old_window} cannot be resized to {new_window}")
    grid = table.t().unflatten(1, [2 * m - 1 for m in old_window])
    # Half types have no bicubic filter on every device.
    wide = grid.to(torch.promote_types(grid.dtype, torch.float32))
    *time, height, width = (2 * m - 1 for m in new_window)
    images = wide.flatten(0, -3)[None]  # (1, heads · offsets in time, offsets in space)
    resized = F.interpolate(images, size=(height, width), mode="bicubic", align_corners=False)[0]
    if time:
        lines = resized.unflatten(0, grid.shape[:2]).flatten(2).mT  # (heads, offsets in space, offsets in time)
        resized = F.interpolate(lines, size=time[0], mode="linear", align_corners=False).mT
    return resized.reshape(len(grid), -1).t().to(table.dtype).contiguous()
