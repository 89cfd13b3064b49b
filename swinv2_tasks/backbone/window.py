"""Cutting feature maps into windows and back: pure functions over two or three axes.

https://arxiv.org/abs/2103.14030 (shifted windows), https://arxiv.org/abs/2111.09883 (Swin V2)

Unlike the published code, maps of any size are accepted: they are padded to whole windows *before* the cyclic
shift, and the mask keeps real tokens from attending to padding or to what the shift brought round the edge.

Shapes: B batch, S… map sides (H, W or T, H, W), W windows per image, N tokens per window, C channels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, ...]
"""One whole number per axis: (H, W) or (T, H, W)."""


@dataclass(frozen=True)
class WindowGrid:
    """How a map of ``size`` is cut into windows: the whole geometry that a block needs.

    Attributes:
        size: sides of the map, in tokens.
        window: sides of a window; never larger than the map.
        shift: cyclic shift towards the origin before cutting; 0 on an axis without shift.
    """

    size: Size
    window: Size
    shift: Size

    @classmethod
    def fit(cls, size: Size, window: Size, *, shifted: bool) -> WindowGrid:
        """Applies the window rule: an axis no longer than the window becomes one window, without shift."""
        fitted = effective_window(size, window)
        shift = tuple(m // 2 if shifted and s > m else 0 for s, m in zip(size, fitted, strict=True))
        return cls(size, fitted, shift)

    @property
    def counts(self) -> Size:
        """Windows along each axis."""
        return tuple(-(-s // m) for s, m in zip(self.size, self.window, strict=True))

    @property
    def padded(self) -> Size:
        """Sides of the map once padded to whole windows."""
        return tuple(c * m for c, m in zip(self.counts, self.window, strict=True))

    @property
    def needs_mask(self) -> bool:
        """Whether some tokens of a window must not attend to each other: those wrapped by the shift, or padding."""
        return any(self.shift) or self.padded != self.size


def effective_window(size: Size, window: Size) -> Size:
    """Window sides after the window rule: no side is longer than the map's."""
    return tuple(min(s, m) for s, m in zip(size, window, strict=True))


_isolated: ContextVar[dict[Any, Tensor] | None] = ContextVar("_isolated", default=None)


@contextmanager
def isolated_cache() -> Iterator[None]:
    """Within it, ``cached_tensor`` has an empty cache of its own, which takes any tensors, fake ones too.

    So memory can be counted where nothing is computed.
    """
    token = _isolated.set({})
    try:
        yield
    finally:
        _isolated.reset(token)


def cached_tensor(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Remembers the last results of a function from hashable arguments to a constant tensor.

    While torch traces (compile, export, fake tensors) nothing is remembered: the constant becomes part of the graph.
    """
    cache: OrderedDict[Any, Tensor] = OrderedDict()

    @wraps(function)
    def cached(*arguments: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return function(*arguments)

        isolated = _isolated.get()
        if isolated is not None:
            if (function, arguments) not in isolated:
                with torch.no_grad():
                    isolated[function, arguments] = function(*arguments)
            return isolated[function, arguments]

        if arguments in cache:
            cache.move_to_end(arguments)
            return cache[arguments]
        # A tensor born in inference mode could not serve a training step later.
        with torch.inference_mode(False), torch.no_grad():
            result = function(*arguments)
        if type(result) is Tensor:
            cache[arguments] = result
            if len(cache) > 64:
                cache.popitem(last=False)
        return result

    return cached


def partition(x: Tensor, grid: WindowGrid) -> Tensor:
    """Pads, shifts and cuts a map (B, S…, C) into windows (B, W, N, C)."""
    if grid.padded != grid.size:
        padding = [p - s for p, s in zip(grid.padded, grid.size, strict=True)]
        x = F.pad(x, (0, 0, *(side for p in reversed(padding) for side in (0, p))))
    shape = (x.shape[0], math.prod(grid.counts), math.prod(grid.window), x.shape[-1])
    if torch.compiler.is_compiling():
        return _shift_and_cut(x, grid).reshape(shape)
    order, inverse = token_order(grid, x.device).unbind()
    return _Reorder.apply(x.flatten(1, -2), order, inverse).view(shape)


def reverse(windows: Tensor, grid: WindowGrid) -> Tensor:
    """Puts windows (B, W, N, C) back into the map (B, S…, C): undoes the cut, the shift and the padding."""
    axes = len(grid.size)
    shape = (windows.shape[0], *grid.padded, windows.shape[-1])
    if torch.compiler.is_compiling():
        x = windows.view(windows.shape[0], *grid.counts, *grid.window, windows.shape[-1])
        x = x.permute([0, *(axis for i in range(axes) for axis in (1 + i, 1 + axes + i)), 2 * axes + 1]).reshape(shape)
        if any(grid.shift):
            x = torch.roll(x, list(grid.shift), dims=list(range(1, axes + 1)))
    else:
        order, inverse = token_order(grid, windows.device).unbind()
        x = _Reorder.apply(windows.flatten(1, 2), inverse, order).view(shape)
    for axis, (side, padded) in enumerate(zip(grid.size, grid.padded, strict=True), start=1):
        if padded != side:
            x = x.narrow(axis, 0, side)
    return x


def _shift_and_cut(x: Tensor, grid: WindowGrid) -> Tensor:
    """A padded map (B, S…, C) → (B, windows along each axis…, tokens along each axis…, C)."""
    axes = len(grid.size)
    if any(grid.shift):
        x = torch.roll(x, [-s for s in grid.shift], dims=list(range(1, axes + 1)))
    split = [side for pair in zip(grid.counts, grid.window, strict=True) for side in pair]
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
    return x.view(x.shape[0], *split, x.shape[-1]).permute(order)


@cached_tensor
def token_order(grid: WindowGrid, device: torch.device) -> Tensor:
    """Where each token of the windows stands in the padded map, and the reverse: (2, W·N) int64."""
    indices = torch.arange(math.prod(grid.padded), device=device)
    order = _shift_and_cut(indices.view(1, *grid.padded, 1), grid).flatten()
    return torch.stack((order, torch.empty_like(order).index_copy_(0, order, indices)))


class _Reorder(torch.autograd.Function):
    """Tokens (B, L, C) in another order: one copy, where roll and permute take three, and one more backwards."""

    @staticmethod
    def forward(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        return x.index_select(1, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(grad, inverse, order), None, None


@cached_tensor
def attention_mask(grid: WindowGrid, device: torch.device) -> Tensor:
    """Which token may attend to which, (W, N, N) bool, True where allowed.

    Tokens meet when they were neighbors before the shift and are both real. Padded tokens only meet each other,
    so that no row of a softmax is empty.
    """
    axes = len(grid.size)
    region = torch.zeros(grid.padded, dtype=torch.int64, device=device)
    real = torch.ones(grid.padded, dtype=torch.bool, device=device)
    for axis, (side, padded, shift) in enumerate(zip(grid.size, grid.padded, grid.shift, strict=True)):
        position = torch.arange(padded, device=device)  # after the shift
        is_wrapped = position >= padded - shift
        shape = [-1 if i == axis else 1 for i in range(axes)]
        region = region * 2 + is_wrapped.view(shape)
        real = real & ((position + shift) % padded < side).view(shape)
    region = region.masked_fill(~real, -1)
    unshifted = WindowGrid(grid.padded, grid.window, (0,) * axes)
    tokens = partition(region[None, ..., None], unshifted)[0, :, :, 0]  # (W, N)
    return tokens[:, :, None] == tokens[:, None, :]
