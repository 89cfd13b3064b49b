"""Scaled cosine window attention.

https://arxiv.org/abs/2111.09883, section 3.2: softmax(cos(q, k)·exp(logit_scale) + bias)·v, within each window.
The mask of shifted and padded windows is −inf, not the published −100: logits reach 116, through which −100 would leak.

Shapes: B images, W windows per image, N tokens per window, H heads, D head width, C = H·D channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_tasks.backbone.cpu_attention import CPUCosineAttention
from swinv2_tasks.backbone.plain_modules import is_plain
from swinv2_tasks.backbone.window import Size, WindowGrid, attention_mask
from swinv2_tasks.torch_internals import version_of

MAX_LOGIT_SCALE = math.log(100.0)
"""Upper limit of the learned logarithmic temperature."""

PositionBias = Callable[[int, Size], nn.Module]
"""Builds a position bias from (heads, window sides): ``LogCPB``, ``LinearCPB`` or ``BiasTable``."""


# ---- the operation


def cosine_attention(
    qkv: Tensor, scale: Tensor, bias: Tensor, q_bias: Tensor | None = None, v_bias: Tensor | None = None
) -> Tensor:
    """softmax(cos(q + q_bias, k)·scale + bias)·v + v_bias.

    Weights of a softmax sum to 1: a bias of the values is one of what attention makes of them.

    Args:
        qkv: (B, W, N, 3·C), queries, keys and values side by side.
        scale: (H, 1, 1), factor of the cosine per head.
        bias: (W or 1, H, N, N), added to the logits.
        q_bias: (C,), added to the queries; None: nothing.
        v_bias: (C,), added to the values; None: nothing.

    Returns:
        (B, W, N, C), heads side by side.
    """
    if q_bias is None:
        q_bias = scale.new_zeros(qkv.shape[-1] // 3)
    if v_bias is None:
        v_bias = torch.zeros_like(q_bias)
    if qkv.device.type == "cpu" and not torch.compiler.is_compiling():
        return CPUCosineAttention.apply(qkv, scale, bias, q_bias, v_bias)
    return fused_cosine_attention(qkv, scale, bias, q_bias, v_bias)


def fused_cosine_attention(
    qkv: Tensor,
    scale: Tensor,
    bias: Tensor,
    q_bias: Tensor,
    v_bias: Tensor,
    attend: Callable[..., Tensor] = F.scaled_dot_product_attention,
) -> Tensor:
    """``cosine_attention`` by one of PyTorch's fused kernels, as on a GPU; ``attend`` takes the place of that."""
    batch, windows, tokens, _ = qkv.shape
    heads, dtype = len(scale), qkv.dtype
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(3)  # each (B, W, N, H, D)
    q = q + q_bias.to(dtype).unflatten(0, (heads, -1))
    q = q * normalization(q, scale)
    k = k * normalization(k)

    # Where windows have biases of their own, their heads stand side by side: no bias is repeated over the batch.
    groups = len(bias)
    shape = (batch * windows // groups, groups * heads, tokens, q.shape[-1])
    # Narrowed and put in order at once.
    q, k, v = (x.transpose(2, 3).to(dtype, memory_format=torch.contiguous_format).reshape(shape) for x in (q, k, v))
    bias = bias.to(dtype).view(1, groups * heads, tokens, tokens)
    out = attend(q, k, v, attn_mask=bias, scale=1.0)

    out = out.view(batch, windows, heads, tokens, -1).transpose(2, 3)  # (B, W, N, H, D)
    if torch.compiler.is_exporting():
        # Some kernels give heads and tokens in this order already. What an exporter puts in their place does not.
        out = out.clone(memory_format=torch.contiguous_format)
    return out.flatten(3) + v_bias.to(dtype)


def normalization(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """What queries or keys (…, H, D) are multiplied with to get length 1, or each head's ``scale`` (H, 1, 1).

    (…, H, 1), in float32 at least.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    target = 1 if scale is None else scale.view(-1, 1)
    return target / length.clamp_min(1e-12)


# ---- the module


class WindowAttention(nn.Module):
    """Multi-head cosine attention within windows, with a relative position bias.

    Args:
        dim: channels C.
        num_heads: heads H; must divide C.
        window: window sides, for a position bias that is sized by them.
        position_bias: builds the position bias.
    """

    attend: Callable[..., Tensor] = staticmethod(cosine_attention)
    """The operation, with the arguments of ``cosine_attention``; an instance may be given another way to compute it."""

    def __init__(self, dim: int, num_heads: int, window: Size, position_bias: PositionBias) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.logit_scale = nn.Parameter(torch.empty(num_heads, 1, 1))
        self.cpb_mlp = position_bias(num_heads, window)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.empty(dim))
        self.v_bias = nn.Parameter(torch.empty(dim))
        self.proj = nn.Linear(dim, dim)
        self._cached_bias: tuple[Any, Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets what belongs to no layer inside to its initial value."""
        nn.init.constant_(self.logit_scale, math.log(10.0))
        nn.init.zeros_(self.q_bias)
        nn.init.zeros_(self.v_bias)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Attends within windows: x (B, W, N, C) and bias (W or 1, H, N, N) → (B, W, N, C)."""
        scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        # The module is called without the biases, which are not its own: whatever takes its place or hooks into it,
        # an adapter or a quantized layer, has its effect. They are added where queries and outputs pass anyway.
        return self.proj(self.attend(self.qkv(x), scale, bias, self.q_bias, self.v_bias))

    def bias(self, grid: WindowGrid, pretrained_window: Size) -> Tensor:
        """What is added to the logits: position bias, −inf where the mask forbids; (W or 1, H, N, N).

        In eval mode without gradients it is kept until the weights, the geometry or the device change.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._bias(grid, pretrained_window)
        if not is_plain(self.cpb_mlp):  # hooks are to be called each time, and adapters change without a weight's doing
            return self._bias(grid, pretrained_window)
        parameters = tuple(self.cpb_mlp.parameters())
        if any(p.is_inference() for p in parameters):  # these do not count their changes
            return self._bias(grid, pretrained_window)
        versions = tuple((p.data_ptr(), version_of(p), p.dtype, p.device) for p in parameters)
        key = (grid, pretrained_window, versions)
        if self._cached_bias is None or self._cached_bias[0] != key:
            self._cached_bias = (key, self._bias(grid, pretrained_window))
        return self._cached_bias[1]

    def _bias(self, grid: WindowGrid, pretrained_window: Size) -> Tensor:
        bias = self.cpb_mlp(grid.window, pretrained_window)[None]
        if not grid.needs_mask:
            return bias
        allowed = attention_mask(grid, bias.device)
        return torch.where(allowed[:, None], bias, -math.inf)

    def train(self, mode: bool = True) -> WindowAttention:
        """Switches between training and evaluation, and drops the cached bias."""
        self._cached_bias = None  # what was changed through .data, as weight averaging does, counts no version
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_cached_bias": None}  # copies and pickles start afresh
