"""All five tasks, detection with each detector, small and with random weights, and a training batch for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.heads import CascadeMaskRCNNConfig, DetectorConfig, HTCConfig, MaskRCNNConfig, UPerNet
from swinv2_tasks.tasks import ClassificationTask, DetectionTask, SegmentationTask, SimMIMTask, VideoClassificationTask
from swinv2_tasks.tasks.base import BaseTask
from tests.helpers.checkpoints import randomize

CLASSES = 3

SIDE = 64

DETECTOR: dict[str, Any] = {"channels": 16, "representation_size": 16, "post_nms_top_n": 20, "batch_size_per_image": 16}


def new_backbone(**arguments: Any) -> SwinTransformerV2:
    """Maps of 16, 8, 4 and 2 positions at 64 pixels: regular, shifted, and a window that the map shrinks."""
    settings: dict[str, Any] = {"embed_dim": 8, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}
    return SwinTransformerV2(**{**settings, **arguments})


def new_detection_task(detector: DetectorConfig) -> DetectionTask:
    return DetectionTask(new_backbone(), detector, CLASSES)


BUILDERS: dict[str, Callable[[], BaseTask]] = {
    "classification": lambda: ClassificationTask(new_backbone(), CLASSES),
    "segmentation": lambda: SegmentationTask(
        new_backbone(), CLASSES, decoder=UPerNet(channels=16), auxiliary_channels=8
    ),
    "video": lambda: VideoClassificationTask(new_backbone(patch_size=(2, 4, 4), window_size=(2, 4, 4)), CLASSES),
    "simmim": lambda: SimMIMTask(new_backbone()),
    "mask_rcnn": lambda: new_detection_task(MaskRCNNConfig(**DETECTOR)),
    "cascade": lambda: new_detection_task(CascadeMaskRCNNConfig(**DETECTOR, anchor_scale=1)),  # inside, on all levels
    "htc": lambda: new_detection_task(HTCConfig(**DETECTOR, stuff_classes=4)),
}


def new_task(name: str) -> BaseTask:
    """A task with random weights, without a trainer: what it logs is dropped."""
    torch.manual_seed(0)
    task: Any = BUILDERS[name]()
    randomize(task)
    task.log = task.log_dict = lambda *_, **__: None
    return task


def new_images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def new_clips(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def new_input(name: str) -> Tensor:
    """What ``task(x)`` takes."""
    return new_clips() if name == "video" else new_images()


def new_batch(name: str) -> dict[str, Any]:
    """A batch of two for ``training_step``."""
    images, labels = new_images(), torch.tensor([0, 2])
    if name == "classification":
        return {"image": images, "label": labels}
    if name == "segmentation":
        mask = torch.randint(CLASSES, (2, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
        return {"image": images, "mask": mask}
    if name == "video":
        return {"clip": new_clips()[:, None], "label": labels, "video_id": labels}
    if name == "simmim":
        return {"image": images, "mask": torch.tensor([[[True, False], [False, True]]]).expand(2, 2, 2)}
    return {"images": [*images], "targets": [_new_target(k) for k in range(2)]}


def _new_target(k: int) -> dict[str, Any]:
    boxes = torch.tensor([[4.0, 4.0, 40.0, 44.0], [24.0 + k, 8.0, 60.0, 30.0]])
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    stuff = torch.arange(SIDE * SIDE).view(SIDE, SIDE) % 4
    return {"boxes": boxes, "labels": torch.tensor([k, 2]), "masks": masks, "stuff": stuff}


def training_loss(task: Any, name: str) -> Tensor:
    """The loss of the batch; random choices, of regions and dropped paths, are the same in each call."""
    torch.manual_seed(3)
    return task.training_step(new_batch(name), 0)


TASKS = tuple(BUILDERS)

EACH_TASK = [pytest.param(name, marks=pytest.mark.slow) if name in ("cascade", "htc") else name for name in TASKS]
"""Tests of what all tasks share run on one detector, and on the others where slow tests run as well."""
