"""Small detectors, and maps and objects for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swinv2_tasks.heads import DetectorConfig, MaskRCNNConfig
from swinv2_tasks.heads.cascade import CascadeMaskRCNN
from swinv2_tasks.heads.mask_rcnn import SampledProposals
from tests.helpers.checkpoints import randomize

CHANNELS, STRIDES, CLASSES = (8, 16, 24, 32), (4, 8, 16, 32), 5
SETTINGS: dict[str, Any] = {"channels": 16, "representation_size": 32, "post_nms_top_n": 60, "batch_size_per_image": 40}


def new_head(config: type[DetectorConfig] = MaskRCNNConfig, **settings: Any) -> Any:
    """A detector with random weights, the same in each call."""
    torch.manual_seed(0)
    head = config(**{**SETTINGS, **settings}).build(CHANNELS, STRIDES, CLASSES)
    randomize(head)
    return head


def new_maps(batch: int = 2, height: int = 128, width: int = 192, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, c, -(-height // s), -(-width // s)) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def new_target(seed: int, number: int = 4, height: int = 100, width: int = 180) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, 2, generator=generator).sort(1).values * torch.tensor([width - 40, height - 40])
    boxes = torch.cat([corners[:, 0], corners[:, 1] + 20], 1)
    masks = torch.zeros(number, 128, 192, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return {"boxes": boxes, "labels": torch.randint(CLASSES, (number,), generator=generator), "masks": masks}


IMAGES = [torch.zeros(3, 100, 180), torch.zeros(3, 128, 192)]


def spy_on_stages(head: CascadeMaskRCNN) -> tuple[list[tuple[list[Tensor], SampledProposals]], list[Tensor]]:
    """What comes into each stage's sampler and out of it, and the offsets of each stage, as a training step goes."""
    samples: list[tuple[list[Tensor], SampledProposals]] = []
    deltas: list[Tensor] = []

    def wrap_sampler(sampler: Any) -> Any:
        def sample(proposals: Any, targets: Any) -> SampledProposals:
            samples.append((list(proposals), sampler(proposals, targets)))
            return samples[-1][1]

        return sample

    head.samplers = [wrap_sampler(sampler) for sampler in head.samplers]
    for branch in head.boxes:
        branch.register_forward_hook(lambda _, inputs, outputs: deltas.append(outputs[1].detach()))
    return samples, deltas
