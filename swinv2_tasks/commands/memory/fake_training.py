"""Changes to a task that let it take a training step on fake tensors, which have shapes and no data.

They are made to a copy of the task, which is of no other use then.
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
    """Replaces parameters and buffers on the meta device by new ones, which are fake tensors under a fake mode.

    Args:
        task: changed.
        dtype: of floating-point parameters and buffers; integers keep theirs.
    """

    def like(tensor: Tensor) -> Tensor:
        new_dtype = dtype if tensor.is_floating_point() else tensor.dtype
        return torch.empty(tensor.shape, dtype=new_dtype)

    for module in task.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(module, name, nn.Parameter(like(parameter), parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(module, name, like(buffer))


def convert(value: Any, dtype: torch.dtype) -> Any:
    """A batch with floating-point tensors of a dtype, as a trainer in true half precision hands it to the task."""
    if isinstance(value, dict):
        return {key: convert(item, dtype) for key, item in value.items()}
    if isinstance(value, list):
        return [convert(item, dtype) for item in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


# ---- what differs on a GPU


def attend_as_on_gpu(task: nn.Module) -> None:
    """Lets windows attend as on a GPU. Fake tensors of a GPU cannot be made where there is none."""
    for module in task.modules():
        if isinstance(module, WindowAttention):
            module.attend = functools.partial(fused_cosine_attention, attend=_attend_on_gpu)


def _attend_on_gpu(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, scale: float) -> Tensor:
    """Attention as ``scaled_dot_product_attention`` computes it on a GPU with a mask that has a gradient.

    Args:
        q: queries, (B, H, N, D): windows, heads, tokens and channels of a head.
        k: keys, (B, H, N, D).
        v: values, (B, H, N, D).
        attn_mask: added to the logits, (1, H, N, N).
        scale: factor of the logits.
    """
    # The memory-efficient kernel takes heads whose channels fill whole 16 bytes, and no float64.
    multiple = 8 if q.element_size() == 2 else 4
    if q.shape[-1] % multiple or q.dtype == torch.float64:
        return plain_attention(q, k, v, attn_mask, scale)

    # It reads rows of the mask that start at multiples of 16 entries.
    tokens = k.shape[2]
    if tokens % 16:
        attn_mask = F.pad(attn_mask, (0, -tokens % 16))[..., :tokens]

    mask = attn_mask.expand(*q.shape[:3], tokens)
    return efficient_attention(q, k, v, mask, scale)


def widen_norms(task: nn.Module) -> None:
    """Lets layer norms take and return float32, as autocast does on a GPU but not on a CPU."""
    for module in task.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, args: (args[0].float(), *args[1:]))


# ---- steps of a detector that depend on data


def fix_proposals(head: DetectionHead) -> None:
    """Fixes the numbers of a detector's proposals, which depend on data otherwise.

    Each sampler takes as many as it may at most, and they are spread evenly over the levels.
    """
    head.rpn = cast(Any, _FixedProposals(cast(nn.Module, head.rpn.head)))

    network: Any = head
    for name in ("box_pool", "mask_pool"):
        pool = getattr(network, name)
        setattr(network, name, _EvenRoIAlign(pool.strides, pool.side))

    if hasattr(network, "sample"):
        network.sample = _FixedSampler(network.sample.balance.batch_size_per_image)
    if hasattr(network, "samplers"):  # one per stage of a cascade
        network.samplers = [_FixedSampler(sampler.balance.batch_size_per_image) for sampler in network.samplers]


class _FixedProposals(nn.Module):
    """An RPN that computes objectness and offsets of all anchors and losses of them, and proposes one box per image."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, images: Any, levels: Any, targets: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
        logits, deltas = self.head(list(levels.values()))
        losses = {"loss_objectness": _some_loss(logits), "loss_rpn_box_reg": _some_loss(deltas)}
        proposals = [torch.empty(1, 4) for _ in images.image_sizes]
        return proposals, losses


def _some_loss(outputs: list[Tensor]) -> Tensor:
    """A scalar that has a gradient with respect to every output."""
    return torch.cat([output.flatten() for output in outputs]).square().mean()


class _FixedSampler:
    """A sampler of proposals that always returns the same number for each image."""

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
    """RoIAlign with equally many RoIs on each level."""

    def __init__(self, strides: Sequence[int], side: int) -> None:
        super().__init__()
        self.strides, self.side = strides, side

    def forward(self, levels: Any, boxes: list[Tensor]) -> Tensor:
        rois_by_level = to_roi_format(boxes).tensor_split(len(self.strides))
        pooled = [
            pool_rois(levels[str(index)], rois, self.side, 1 / stride)
            for index, (rois, stride) in enumerate(zip(rois_by_level, self.strides, strict=True))
        ]
        return torch.cat(pooled)
