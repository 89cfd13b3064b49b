"""What lets a task take a training step on fake tensors, which have shapes and no data, as it would on a device.

Everything here changes a copy of the task, which is of no other use then.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_tasks.backbone.attention import WindowAttention, fused_cosine_attention
from swinv2_tasks.heads.mask_rcnn import DetectionHead, SampledProposals
from swinv2_tasks.heads.roi_align import pool_rois, to_roi_format
from swinv2_tasks.torch_internals import efficient_attention, plain_attention

# ---- parameters and batches without data


def replace_tensors(task: nn.Module, dtype: torch.dtype) -> None:
    """Gives the task new parameters and buffers in the place of those on the meta device: fake ones, in a fake mode."""

    def like(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype)

    for module in task.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(module, name, nn.Parameter(like(parameter), parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(module, name, like(buffer))


def convert(value: Any, dtype: torch.dtype) -> Any:
    """A batch as a trainer with parameters of that type gives it to the task."""
    if isinstance(value, dict):
        return {key: convert(item, dtype) for key, item in value.items()}
    if isinstance(value, list):
        return [convert(item, dtype) for item in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


# ---- what differs on a GPU


def attend_as_on_gpu(task: nn.Module) -> None:
    """Lets windows attend as on a GPU: fake tensors of one cannot be made where there is none."""
    for module in task.modules():
        if isinstance(module, WindowAttention):
            module.attend = functools.partial(fused_cosine_attention, attend=_attend_on_gpu)


def _attend_on_gpu(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, scale: float) -> Tensor:
    """What ``scaled_dot_product_attention`` does on a GPU with a mask that has a gradient.

    That is its memory-efficient kernel, for which the mask is filled up to rows of a multiple of 16; without a kernel
    for such heads, plain products.
    """
    multiple = 8 if q.element_size() == 2 else 4
    if q.shape[-1] % multiple or q.dtype == torch.float64:
        return plain_attention(q, k, v, attn_mask, scale)

    tokens = k.shape[2]
    if tokens % 16:
        attn_mask = F.pad(attn_mask, (0, -tokens % 16))[..., :tokens]
    mask = attn_mask.expand(*q.shape[:3], tokens)
    return efficient_attention(q, k, v, mask, scale)


def widen_norms(task: nn.Module) -> None:
    """Lets layer norms take and give float32, as autocast does on a GPU but not on a CPU."""
    for module in task.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, args: (args[0].float(), *args[1:]))


# ---- what depends on data in a detector


def fix_proposals(head: DetectionHead) -> None:
    """Gives a detector fixed numbers of proposals, where their number and levels depend on data.

    Each sampler takes as many as it does at most, and they are spread evenly over the levels.
    """
    head.rpn = cast(Any, _FixedProposals(cast(nn.Module, head.rpn.head)))
    parts: Any = head
    for name in ("box_pool", "mask_pool"):
        pool = getattr(parts, name)
        setattr(parts, name, _EvenRoIAlign(pool.strides, pool.side))
    if hasattr(parts, "sample"):
        parts.sample = _FixedSampler(parts.sample.balance.batch_size_per_image)
    if hasattr(parts, "samplers"):
        parts.samplers = [_FixedSampler(sampler.balance.batch_size_per_image) for sampler in parts.samplers]


class _FixedProposals(nn.Module):
    """Objectness and offsets of all anchors, and their losses; one box of each image for all its proposals."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, images: Any, levels: Any, targets: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
        logits, deltas = self.head(list(levels.values()))
        losses = [torch.cat([x.flatten() for x in outputs]).square().mean() for outputs in (logits, deltas)]
        proposals = [torch.empty(1, 4) for _ in images.image_sizes]
        return proposals, {"loss_objectness": losses[0], "loss_rpn_box_reg": losses[1]}


class _FixedSampler:
    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, proposals: list[Tensor], targets: list[Any]) -> SampledProposals:
        def each(*shape: int, dtype: torch.dtype) -> list[Tensor]:
            return [torch.empty(self.number, *shape, dtype=dtype) for _ in targets]

        is_ground_truth = each(dtype=torch.bool)
        boxes = each(4, dtype=torch.float32)
        labels = each(dtype=torch.int64)
        matched_indices = each(dtype=torch.int64)
        return SampledProposals(boxes, labels, matched_indices, is_ground_truth)


class _EvenRoIAlign(nn.Module):
    """RoIAlign of as many RoIs on each level."""

    def __init__(self, strides: Sequence[int], side: int) -> None:
        super().__init__()
        self.strides, self.side = strides, side

    def forward(self, levels: Any, boxes: list[Tensor]) -> Tensor:
        of_levels = to_roi_format(boxes).tensor_split(len(self.strides))
        pooled = [
            pool_rois(levels[str(index)], rois, self.side, 1 / stride)
            for index, (rois, stride) in enumerate(zip(of_levels, self.strides, strict=True))
        ]
        return torch.cat(pooled)
