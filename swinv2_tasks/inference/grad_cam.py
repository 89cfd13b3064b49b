"""Where a network looks for a class: Grad-CAM, https://arxiv.org/abs/1610.02391.

A map of the backbone is weighted, channel by channel, with the mean gradient of a score; what speaks for the score is
positive. Of segmentations the score is a sum over pixels, as in https://arxiv.org/abs/2002.11434.

Shapes: B batch, K classes, C channels, S… sides of a map, N… sides of the input in pixels; n = 2 axes, of clips 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_tasks.backbone import SwinTransformerV2

Score = Callable[[Any], Tensor]
"""What a network returns of an input → a score without axes, which gradients are taken of."""


def grad_cam(network: nn.Module, backbone: SwinTransformerV2, x: Tensor, score: Score, stage: int = -1) -> Tensor:
    """How much each place of an input speaks for a score.

    The network is left as it was: no parameter gets a gradient, and none is asked to have one.

    Args:
        network: in eval mode, so that nothing is dropped; a task, say.
        backbone: the network's, of which a map is looked at.
        x: images (B, C, H, W) or clips (B, C, T, H, W), normalized.
        score: of what ``network(x)`` returns; of a batch, the sum of its samples' scores.
        stage: the stage whose map is looked at, counted as a list is; −1 is the last one.

    Returns:
        (B, N…) float32, at least 0; 0 everywhere where no place speaks for the score.
    """
    outputs: list[Tensor] = []

    def note_map(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    def cut_off(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.detach()  # what is kept for gradients is freed, stage by stage

    *before, looked_at = backbone.stages[: stage % len(backbone.stages) + 1]
    handles = [each.register_forward_hook(cut_off) for each in before]
    handles.append(looked_at.register_forward_hook(note_map))
    try:
        with torch.enable_grad():
            value = score(network(x))
    finally:
        for handle in handles:
            handle.remove()

    features = outputs[-1]  # (B, S…, C)
    if not value.requires_grad:  # the score does not depend on the map
        return x.new_zeros((len(x), *x.shape[2:]), dtype=torch.float32)
    (gradients,) = torch.autograd.grad(value, features)
    weights = gradients.float().flatten(1, -2).mean(1)  # (B, C)
    heatmap = torch.einsum("b...c,bc->b...", features.detach().float(), weights).relu()
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    return F.interpolate(heatmap[:, None], tuple(x.shape[2:]), mode=mode, align_corners=False)[:, 0]


def class_score(index: int) -> Score:
    """The score of a class of images or clips: its logit, of logits (B, K)."""
    return lambda logits: logits[:, index].sum()


def pixel_score(index: int) -> Score:
    """The score of a class of a segmentation: the sum of its logits (B, K, H, W) over the pixels predicted as it.

    Where there is none, it is the sum over all pixels: what little speaks for the class.
    """

    def sum_of(logits: Tensor) -> Tensor:
        is_predicted = logits.argmax(1) == index
        own = logits[:, index]
        return own[is_predicted].sum() if is_predicted.any() else own.sum()

    return sum_of
