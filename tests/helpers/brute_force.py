"""Swin V2 in float64 numpy, token by token: slow, and without padding, cyclic shifts or masks.

Written from the paper (https://arxiv.org/abs/2111.09883) and the published parameter names. Where the published code
rolls a padded map and masks, this places the windows themselves: those of a shifted block begin ``shift`` tokens
further, so a token p of an axis lies in window ⌊(p − shift) / M⌋. A token attends to the real tokens of its window.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

Array = np.ndarray
Weights = Mapping[str, Array]
Sides = tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """What a state dict does not say, with every window written out per stage and axis."""

    depths: Sequence[int]
    num_heads: Sequence[int]
    windows: Sequence[Sides]
    pretrained: Sequence[Sides | None]
    patch: Sides


def weights_of(module: nn.Module) -> dict[str, Array]:
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def inside(weights: Weights, prefix: str) -> dict[str, Array]:
    """The weights below a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def backbone(weights: Weights, image: Array, settings: Settings) -> list[Array]:
    """Maps (C, S…) of one image (channels, pixels…)."""
    x = patch_embedding(inside(weights, "patch_embed."), image, settings.patch)
    maps = []
    for i, depth in enumerate(settings.depths):
        for j in range(depth):
            x = block(
                inside(weights, f"layers.{i}.blocks.{j}."),
                x,
                settings.num_heads[i],
                settings.windows[i],
                settings.pretrained[i],
                shifted=j % 2 == 1,
            )
        maps.append(np.moveaxis(x, -1, 0))
        if i < len(settings.depths) - 1:
            x = patch_merging(inside(weights, f"layers.{i}.downsample."), x)
    return maps


def patch_embedding(weights: Weights, image: Array, patch: Sides) -> Array:
    """One token per patch; pixels beyond the image count as zero."""
    kernel, bias = weights["proj.weight"], weights["proj.bias"]
    size = tuple(math.ceil(side / p) for side, p in zip(image.shape[1:], patch, strict=True))
    tokens = np.empty((*size, len(kernel)))
    for position in np.ndindex(*size):
        region = tuple(slice(t * p, (t + 1) * p) for t, p in zip(position, patch, strict=True))
        pixels = image[:, *region]
        used = kernel[:, :, *(slice(0, side) for side in pixels.shape[1:])]
        tokens[position] = (used * pixels).reshape(len(kernel), -1).sum(1) + bias
    return layer_norm(tokens, weights, "norm")


def patch_merging(weights: Weights, x: Array) -> Array:
    """2×2 neighbors side by side in the official order; neighbors beyond the map count as zero."""
    *time, height, width, dim = x.shape
    merged = np.zeros((*time, math.ceil(height / 2), math.ceil(width / 2), 4 * dim))
    for position in np.ndindex(*merged.shape[:-1]):
        *t, row, column = position
        for k, (down, right) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
            if 2 * row + down < height and 2 * column + right < width:
                merged[position][k * dim : (k + 1) * dim] = x[*t, 2 * row + down, 2 * column + right]
    return layer_norm(merged @ weights["reduction.weight"].T, weights, "norm")


def block(weights: Weights, x: Array, heads: int, window: Sides, pretrained: Sides | None, *, shifted: bool) -> Array:
    """One block on a map (S…, C): normalized branches, and a norm on the main branch where the weights hold one."""
    attended = window_attention(inside(weights, "attn."), x, heads, window, pretrained, shifted=shifted)
    x = x + layer_norm(attended, weights, "norm1")
    hidden = gelu(x @ weights["mlp.fc1.weight"].T + weights["mlp.fc1.bias"])
    x = x + layer_norm(hidden @ weights["mlp.fc2.weight"].T + weights["mlp.fc2.bias"], weights, "norm2")
    return layer_norm(x, weights, "norm3") if "norm3.weight" in weights else x


def window_attention(
    weights: Weights, x: Array, heads: int, window: Sides, pretrained: Sides | None, *, shifted: bool
) -> Array:
    """Every token of a map (S…, C) attends to the tokens of its own window."""
    size, dim = x.shape[:-1], x.shape[-1]
    fitted = tuple(min(side, m) for side, m in zip(size, window, strict=True))
    shift = tuple(m // 2 if shifted and side > m else 0 for side, m in zip(size, window, strict=True))
    members = defaultdict(list)
    for token in np.ndindex(*size):
        members[tuple((p - s) // m for p, s, m in zip(token, shift, fitted, strict=True))].append(token)

    query, key, value = np.split(weights["qkv.weight"], 3)
    q, k, v = (t.reshape(*size, heads, -1) for t in (x @ query.T + weights["q_bias"], x @ key.T, x @ value.T))
    v = v + weights["v_bias"].reshape(heads, -1)
    temperature = np.exp(np.minimum(weights["logit_scale"].reshape(heads), math.log(100)))
    biases = {}
    attended = np.empty((*size, heads, dim // heads))
    for tokens in members.values():
        for token in tokens:
            for head in range(heads):
                logits = []
                for other in tokens:
                    offset = tuple(p - o for p, o in zip(token, other, strict=True))
                    if offset not in biases:
                        biases[offset] = log_position_bias(weights, offset, pretrained or fitted)
                    logits.append(cosine(q[token][head], k[other][head]) * temperature[head] + biases[offset][head])
                share = np.exp(np.array(logits) - max(logits))
                attended[token][head] = share / share.sum() @ np.array([v[other][head] for other in tokens])
    return attended.reshape(*size, dim) @ weights["proj.weight"].T + weights["proj.bias"]


def log_position_bias(weights: Weights, offset: Sides, pretrained: Sides) -> Array:
    """Bias per head at one offset between two tokens (paper, section 3.3, scaled as in the published code)."""
    coordinates = []
    for distance, m in zip(offset, pretrained, strict=True):
        scaled = 8 * distance / (m - 1) if m > 1 else 8 * distance
        coordinates.append(math.copysign(math.log2(1 + abs(scaled)) / 3, scaled))
    return continuous_bias(weights, coordinates)


def continuous_bias(weights: Weights, coordinates: Sequence[float]) -> Array:
    hidden = np.maximum(weights["cpb_mlp.0.weight"] @ np.array(coordinates) + weights["cpb_mlp.0.bias"], 0)
    return 16 / (1 + np.exp(-(weights["cpb_mlp.2.weight"] @ hidden)))


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def layer_norm(x: Array, weights: Weights, name: str) -> Array:
    centered = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
    return centered / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x: Array) -> Array:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
