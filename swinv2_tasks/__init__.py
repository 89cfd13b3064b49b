"""Swin Transformer V2: one backbone, every downstream task of the paper, one command line.

https://arxiv.org/abs/2111.09883

What programs need is here by name, and is imported when it is first asked for: the package itself costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swinv2_tasks.backbone import (
        SwinTransformerV2,
        swinv2_base,
        swinv2_giant,
        swinv2_huge,
        swinv2_large,
        swinv2_small,
        swinv2_tiny,
    )
    from swinv2_tasks.batches import TaskData
    from swinv2_tasks.datamodules import (
        ADE20KDataModule,
        BaseDataModule,
        CocoDataModule,
        ImageNetDataModule,
        KineticsDataModule,
        SimMIMDataModule,
    )
    from swinv2_tasks.errors import UserError
    from swinv2_tasks.tasks import (
        BaseTask,
        ClassificationTask,
        DetectionTask,
        SegmentationTask,
        SimMIMTask,
        VideoClassificationTask,
    )
    from swinv2_tasks.weights import load_weights, save_weights

__version__ = "0.1.0"

__all__ = [
    "ADE20KDataModule",
    "BaseDataModule",
    "BaseTask",
    "ClassificationTask",
    "CocoDataModule",
    "DetectionTask",
    "ImageNetDataModule",
    "KineticsDataModule",
    "SegmentationTask",
    "SimMIMDataModule",
    "SimMIMTask",
    "SwinTransformerV2",
    "TaskData",
    "UserError",
    "VideoClassificationTask",
    "load_weights",
    "save_weights",
    "swinv2_base",
    "swinv2_giant",
    "swinv2_huge",
    "swinv2_large",
    "swinv2_small",
    "swinv2_tiny",
]

_MODULES = {"TaskData": "batches", "UserError": "errors", "load_weights": "weights", "save_weights": "weights"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.endswith("Task"):
        module = "tasks"
    elif name.endswith("DataModule"):
        module = "datamodules"
    else:
        module = _MODULES.get(name, "backbone")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
