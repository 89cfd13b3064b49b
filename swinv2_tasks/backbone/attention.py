"""Scaled cosine window attention.

https://arxiv.org/abs/2111.09883, section 3.2: softmax(cos(q, k)·exp(logit_scale) + bias)·v, within each window.
The mask of shifted and padded windows is −inf, not the published −100: logits reach 116, through which −100 would leak.

Shapes: B images, W windows per image, N tokens per window, H heads, D head width, C = H·D channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from swinv2_tasks.backbone.plain_modules import is_plain
from swinv2_tasks.backbone.window import Size, WindowGrid, attention_mask

MAX_LOGIT_SCALE = math.log(100.0)
"""Upper limit of the learned logarithmic temperature."""

CHUNK_LOGITS = 2**20
"""Logits that the CPU computes at once: 4 MiB of float32."""

PositionBias = Callable[[int, Size], nn.Module]
"""Builds a position bias from (heads, window sides): ``LogCPB``, ``LinearCPB`` or ``BiasTable``."""


class WindowAttention(nn.Module):
    """Multi-head cosine attention within windows, with a relative position bias.

    Args:
        dim: channels C.
        num_heads: heads H; must divide C.
        window: window sides, for a position bias that is sized by them.
        position_bias: builds the position bias.
    """

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
        versions = tuple((p.data_ptr(), p._version, p.dtype, p.device) for p in parameters)
        key = (grid, pretrained_window, versions)
        if self._cached_bias is None or self._cached_bias[0] != key:
            self._cached_bias = (key, self._bias(grid, pretrained_window))
        return self._cached_bias[1]

    def train(self, mode: bool = True) -> WindowAttention:
        self._cached_bias = None  # what was changed through .data, as weight averaging does, counts no version
        return super().train(mode)

    def _bias(self, grid: WindowGrid, pretrained_window: Size) -> Tensor:
        bias = self.cpb_mlp(grid.window, pretrained_window)[None]
        if not grid.needs_mask:
            return bias
        allowed = attention_mask(grid, bias.device)
        return torch.where(allowed[:, None], bias, -math.inf)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Attends within windows: x (B, W, N, C) and bias (W or 1, H, N, N) → (B, W, N, C)."""
        scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        # The module is called without the biases, which are not its own: whatever takes its place or hooks into it,
        # an adapter or a quantized layer, has its effect. They are added where queries and outputs pass anyway.
        return self.proj(cosine_attention(self.qkv(x), scale, bias, self.q_bias, self.v_bias))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_cached_bias": None}  # copies and pickles start afresh


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
        return _CosineAttentionOnCPU.apply(qkv, scale, bias, q_bias, v_bias)
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
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(3)
    q = q + q_bias.to(dtype).unflatten(0, (heads, -1))
    q, k = q * normalization(q, scale), k * normalization(k)
    # Where windows have biases of their own, their heads stand side by side: no bias is repeated over the batch.
    groups = len(bias)
    shape = (batch * windows // groups, groups * heads, tokens, q.shape[-1])
    # Narrowed and put in order at once.
    q, k, v = (t.transpose(2, 3).to(dtype, memory_format=torch.contiguous_format).reshape(shape) for t in (q, k, v))
    bias = bias.to(dtype).view(1, groups * heads, tokens, tokens)
    out = attend(q, k, v, attn_mask=bias, scale=1.0)
    out = out.view(batch, windows, heads, tokens, -1).transpose(2, 3)
    if torch.compiler.is_exporting():
        # Some kernels give heads and tokens in this order already. What an exporter puts in their place does not.
        out = out.clone(memory_format=torch.contiguous_format)
    return out.flatten(3) + v_bias.to(dtype)


def normalization(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """What queries or keys (…, H, D) are multiplied with to get length 1, or each head's ``scale`` (H, 1, 1).

    (…, H, 1), in float32 at least.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    wanted = 1 if scale is None else scale.view(-1, 1)
    return wanted / length.clamp_min(1e-12)


class _CosineAttentionOnCPU(torch.autograd.Function):
    """``cosine_attention`` a few windows at a time, so that everything between qkv and the output stays in the cache.

    Autograd would keep the normalized queries and keys and the softmax of every window; this keeps qkv alone and
    computes the rest again on the way back. PyTorch's fused CPU kernel, which the forward pass goes through, has no
    gradient for the bias, so the backward pass is written out. Logits and softmax are the bias's float32 throughout;
    the products of the backward pass are of qkv's type.
    """

    @staticmethod
    def forward(qkv: Tensor, scale: Tensor, bias: Tensor, q_bias: Tensor, v_bias: Tensor) -> Tensor:
        heads, tokens = len(scale), qkv.shape[2]
        out = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
        q_bias, v_bias = (one.to(bias.dtype).view(heads, -1) for one in (q_bias, v_bias))
        with torch.autocast("cpu", enabled=False):
            # The fused kernel refuses a bias that requires a gradient, even where none is recorded.
            for part, chunk_bias in _chunks(qkv, bias.detach()):
                chunk = qkv[part].flatten(0, 1).unflatten(2, (3, heads, -1)).to(bias.dtype)  # (windows, N, 3, H, D)
                q, k, v = chunk.unbind(2)
                q = q + q_bias
                q *= normalization(q, scale)
                k = k * normalization(k)
                q, k, v = (t.transpose(1, 2) for t in (q, k, v))
                attended = F.scaled_dot_product_attention(q, k, v, attn_mask=chunk_bias, scale=1.0)
                torch.add(attended.transpose(1, 2), v_bias, out=out[part].view(-1, tokens, *v_bias.shape))
        return out

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, ...]:
        qkv, scale, bias, q_bias = ctx.saved_tensors
        heads, dtype = len(scale), qkv.dtype
        grad_qkv = torch.empty_like(qkv)
        grad_bias = torch.zeros_like(bias)
        grad_scale = torch.zeros_like(scale)
        added = q_bias.to(dtype).view(heads, 1, -1)

        def heads_first(x: Tensor, parts: int) -> Tensor:  # (images, windows, N, parts·C) -> (parts, windows, H, N, D)
            x = x.flatten(0, 1).unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4)
            return x.to(dtype, memory_format=torch.contiguous_format, copy=True)

        with torch.autocast("cpu", enabled=False):
            for part, chunk_bias in _chunks(qkv, bias):
                chunk, do = heads_first(qkv[part], 3), heads_first(grad_out[part], 1)[0].flatten(0, 1)
                chunk[0] += added
                length = torch.linalg.vector_norm(chunk[:2], dim=-1, keepdim=True, dtype=bias.dtype).clamp_min_(1e-12)
                unit = chunk[:2] / length  # in the bias's type
                q = (unit[0] * scale).flatten(0, 1)
                logits = torch.bmm(q, unit[1].flatten(0, 1).mT).unflatten(0, (-1, heads)).add_(chunk_bias)
                weights = torch.softmax(logits, dim=-1).flatten(0, 1)
                v = chunk[2].flatten(0, 1)  # without its bias, which moves a row of dweights and so no logit
                dv = torch.bmm(weights.to(dtype).mT, do)
                dweights = torch.bmm(do, v.mT).to(bias.dtype)
                dlogits = torch.ops.aten._softmax_backward_data(dweights, weights, -1, bias.dtype)
                narrow = dlogits.to(dtype)
                grads = torch.empty_like(chunk)
                torch.bmm(narrow, unit[1].flatten(0, 1).to(dtype), out=grads[0].flatten(0, 1))
                torch.bmm(narrow.mT, q.to(dtype), out=grads[1].flatten(0, 1))
                # The direction's gradient: what points along it would only change the length.
                du = grads[:2].to(bias.dtype)
                du[0] *= scale
                along = (du * unit).sum(-1, keepdim=True)
                du.addcmul_(unit, along, value=-1).div_(length)
                grads[:2], grads[2] = du, dv.view(grads[2].shape)
                grad_scale += along[0].sum((0, 2, 3)).view_as(scale) / scale
                images = len(qkv[part[0]])
                grad_qkv[part] = grads.unflatten(1, (images, -1)).permute(1, 2, 4, 0, 3, 5).flatten(3)
                dlogits = dlogits.view(images, -1, heads, *bias.shape[2:])
                if len(bias) == 1:
                    grad_bias[0] += dlogits.sum((0, 1))
                else:
                    grad_bias[part[1]] += dlogits.sum(0)
        grad_q_bias = grad_qkv[..., : len(q_bias)].sum((0, 1, 2))
        grad_v_bias = grad_out.sum((0, 1, 2))
        return grad_qkv, grad_scale, grad_bias, grad_q_bias.to(q_bias.dtype), grad_v_bias.to(q_bias.dtype)


def _chunks(qkv: Tensor, bias: Tensor) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Cuts (images, windows) into parts whose logits fit the processor's cache; yields each with its bias."""
    logits_per_window = bias[0].numel()
    budget = CHUNK_LOGITS
    windows = min(qkv.shape[1], max(1, budget // logits_per_window))
    images = max(1, budget // (windows * logits_per_window))
    for image in range(0, qkv.shape[0], images):
        for window in range(0, qkv.shape[1], windows):
            part = (slice(image, image + images), slice(window, window + windows))
            if len(bias) == 1:
                yield part, bias
            else:
                yield part, bias[part[1]].repeat(len(qkv[part[0]]), 1, 1, 1)
