"""Scaled cosine window attention on a CPU: a few windows at a time, so that what lies between stays in the cache.

https://arxiv.org/abs/2111.09883, section 3.2; what is computed, and its arguments: ``attention.cosine_attention``.

Autograd would keep the normalized queries and keys and the softmax of every window. This keeps qkv alone and computes
the rest again on the way back. PyTorch's fused CPU kernel, which the forward pass goes through, has no gradient for the
bias, so the backward pass is written out.

Two types meet here: that of qkv, half a float perhaps ("narrow" below), and that of the bias, float32 at least
("wide"). Logits and softmax are wide throughout; the products of the backward pass are narrow.

Shapes: B images, W windows per image, N tokens per window, H heads, D head width, C = H·D channels.
In a chunk: b images, w windows of each, P = b·w windows in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from swinv2_tasks.torch_internals import softmax_backward

CHUNK_LOGITS = 2**20
"""Logits that are computed at once: 4 MiB of float32."""

EPSILON = 1e-12
"""The least length that queries and keys are divided by."""


class CPUCosineAttention(torch.autograd.Function):
    """``cosine_attention`` of (qkv, scale, bias, q_bias, v_bias), with gradients for all of them."""

    @staticmethod
    def forward(qkv: Tensor, scale: Tensor, bias: Tensor, q_bias: Tensor, v_bias: Tensor) -> Tensor:
        """Returns the attended values (B, W, N, C) of qkv (B, W, N, 3·C), in its type."""
        heads, tokens = len(scale), qkv.shape[2]
        wide = bias.dtype
        q_bias = q_bias.to(wide).view(heads, -1)
        v_bias = v_bias.to(wide).view(heads, -1)
        scale = scale.view(heads, 1)

        out = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
        with torch.autocast("cpu", enabled=False):
            # The fused kernel refuses a bias that requires a gradient, even where none is recorded.
            for part, chunk_bias in chunks(qkv, bias.detach()):
                chunk = qkv[part].flatten(0, 1).unflatten(2, (3, heads, -1)).to(wide)  # (P, N, 3, H, D)
                q, k, v = chunk.unbind(2)
                q = q + q_bias
                q *= scale / lengths(q, wide)
                k = k * (1 / lengths(k, wide))

                q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (P, H, N, D)
                attended = F.scaled_dot_product_attention(q, k, v, attn_mask=chunk_bias, scale=1.0)

                # The weights of a softmax sum to 1: a bias of the values is one of what attention makes of them.
                out_of_chunk = out[part].view(-1, tokens, *v_bias.shape)
                torch.add(attended.transpose(1, 2), v_bias, out=out_of_chunk)
        return out

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keeps what the backward pass starts from; the rest is recomputed from it."""
        ctx.save_for_backward(*inputs[:4])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, ...]:
        """Returns the gradients of qkv, scale, bias, q_bias and v_bias for that of the output, (B, W, N, C)."""
        qkv, scale, bias, q_bias = ctx.saved_tensors
        heads = len(scale)
        narrow, wide = qkv.dtype, bias.dtype
        narrow_q_bias = q_bias.to(narrow).view(heads, 1, -1)

        grad_qkv = torch.empty_like(qkv)
        grad_bias = torch.zeros_like(bias)
        grad_scale = torch.zeros_like(scale)
        with torch.autocast("cpu", enabled=False):
            for part, chunk_bias in chunks(qkv, bias):
                images = len(qkv[part[0]])
                chunk = heads_first(qkv[part], 3, heads)  # (3, P, H, N, D), a copy
                grad_attended = heads_first(grad_out[part], 1, heads)[0].flatten(0, 1)

                # The forward pass again.
                chunk[0] += narrow_q_bias
                length = lengths(chunk[:2], wide)  # (2, P, H, N, 1)
                unit = chunk[:2] / length  # directions of queries and keys, wide
                k = unit[1].flatten(0, 1)  # (P·H, N, D)
                q = (unit[0] * scale).flatten(0, 1)
                logits = torch.bmm(q, k.mT).unflatten(0, (-1, heads)).add_(chunk_bias)
                weights = torch.softmax(logits, dim=-1).flatten(0, 1)  # (P·H, N, N)

                # attended = weights · v, where v lacks its bias: that would move all of a row of grad_weights alike,
                # and by that no logit.
                v = chunk[2].flatten(0, 1)
                grad_v = torch.bmm(weights.to(narrow).mT, grad_attended)
                grad_weights = torch.bmm(grad_attended, v.mT).to(wide)

                # weights = softmax(logits)
                grad_logits = softmax_backward(grad_weights, weights, -1, wide)

                # logits = q · kᵀ + bias
                narrow_grad_logits = grad_logits.to(narrow)
                grads = torch.empty_like(chunk)
                torch.bmm(narrow_grad_logits, k.to(narrow), out=grads[0].flatten(0, 1))
                torch.bmm(narrow_grad_logits.mT, q.to(narrow), out=grads[1].flatten(0, 1))
                grad_logits = grad_logits.view(images, -1, heads, *bias.shape[2:])
                if len(bias) == 1:
                    grad_bias[0] += grad_logits.sum((0, 1))
                else:
                    grad_bias[part[1]] += grad_logits.sum(0)

                # q = scale · query / length and k = key / length: a gradient that points along the vector would only
                # change its length, which does not count. How far that of q does is the gradient of the scale.
                grad_unit = grads[:2].to(wide)
                grad_unit[0] *= scale
                along = (grad_unit * unit).sum(-1, keepdim=True)
                grad_unit.addcmul_(unit, along, value=-1).div_(length)
                grad_scale += along[0].sum((0, 2, 3)).view_as(scale) / scale

                grads[:2] = grad_unit
                grads[2] = grad_v.view(grads[2].shape)
                grad_qkv[part] = tokens_first(grads, images)

        # Queries and outputs are sums of which the biases are a part.
        grad_q_bias = grad_qkv[..., : len(q_bias)].sum((0, 1, 2))
        grad_v_bias = grad_out.sum((0, 1, 2))
        return grad_qkv, grad_scale, grad_bias, grad_q_bias.to(q_bias.dtype), grad_v_bias.to(q_bias.dtype)


def chunks(qkv: Tensor, bias: Tensor) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Cuts qkv into chunks of at most ``CHUNK_LOGITS`` logits, or of one window; of whole images where these fit.

    Args:
        qkv: (B, W, N, 3·C).
        bias: (W or 1, H, N, N).

    Yields:
        The images and windows of a chunk, which qkv can be indexed with, and its bias, (P or 1, H, N, N).
    """
    images, windows = qkv.shape[:2]
    fitting_windows = max(1, CHUNK_LOGITS // bias[0].numel())
    windows_step = min(windows, fitting_windows)
    images_step = max(1, CHUNK_LOGITS // (windows_step * bias[0].numel()))

    for image in range(0, images, images_step):
        for window in range(0, windows, windows_step):
            part = slice(image, image + images_step), slice(window, window + windows_step)
            if len(bias) == 1:
                yield part, bias
            else:
                yield part, bias[part[1]].repeat(len(qkv[part[0]]), 1, 1, 1)


def lengths(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Lengths of vectors (…, D), never 0: (…, 1), in ``dtype``."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).clamp_min_(EPSILON)


def heads_first(x: Tensor, parts: int, heads: int) -> Tensor:
    """A contiguous copy of (b, w, N, parts·C), ``parts`` vectors of each token side by side: (parts, P, H, N, D)."""
    x = x.flatten(0, 1).unflatten(2, (parts, heads, -1))  # (P, N, parts, H, D)
    return x.permute(2, 0, 3, 1, 4).to(x.dtype, memory_format=torch.contiguous_format, copy=True)


def tokens_first(x: Tensor, images: int) -> Tensor:
    """Undoes ``heads_first`` for chunks of ``images`` images: (parts, P, H, N, D) → (b, w, N, parts·C)."""
    x = x.unflatten(1, (images, -1))  # (parts, b, w, H, N, D)
    return x.permute(1, 2, 4, 0, 3, 5).flatten(3)
