"""Every task with a dataset and a config that learns it in seconds by the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.datamodules import (
    ADE20KDataModule,
    CocoDataModule,
    ImageNetDataModule,
    KineticsDataModule,
    SimMIMDataModule,
)
from swinv2_tasks.heads import CascadeMaskRCNNConfig, DetectorConfig, HTCConfig, MaskRCNNConfig, UPerNet
from swinv2_tasks.tasks import ClassificationTask, DetectionTask, SegmentationTask, SimMIMTask, VideoClassificationTask
from tests.helpers import motions, objects, photos, scenes, tiny


@dataclass(frozen=True)
class TinyTask:
    """A task, its data, and what a training reaches.

    Args:
        task: the class.
        build: makes the task of a backbone and of further arguments.
        backbone: arguments of a backbone for it.
        new_data: makes the datamodule of a dataset.
        write_data: writes the dataset into a folder; ``train`` and ``val`` are numbers of samples, of each class where
            a sample has one.
        write_config: writes a config that trains on a dataset.
        validation: the folder of the validation samples within the dataset.
        trainer: settings of a training that learns it.
        loss: the share of the training loss that is left by then, at most.
        scores: what the last validation logs, at least.
        names: of the classes, in the order of the model's outputs; none where there are no classes.
        changes: of the config.
    """

    task: type[Any]
    build: Callable[..., Any]
    backbone: dict[str, Any]
    new_data: Callable[[Path], Any]
    write_data: Callable[..., Path]
    write_config: Callable[..., Path]
    validation: str
    trainer: dict[str, Any]
    loss: float
    scores: dict[str, float]
    names: list[str]
    changes: dict[str, Any] = field(default_factory=dict)

    def new_task(self, **arguments: Any) -> Any:
        return self.build(SwinTransformerV2(**self.backbone), **arguments)

    def config(self, folder: Path, dataset: Path, **changes: Any) -> Path:
        """A config in a folder that trains on a dataset."""
        folder.mkdir(parents=True, exist_ok=True)
        return self.write_config(folder / "config.yaml", dataset, **tiny.merge(self.changes, changes))


def _detection(detector: type[DetectorConfig], max_epochs: int = 30) -> TinyTask:
    chosen = {"class_path": f"swinv2_tasks.heads.{detector.__name__}", "init_args": objects.DETECTOR}
    return TinyTask(
        DetectionTask,
        partial(DetectionTask, detector=detector(**objects.DETECTOR), num_classes=3),
        objects.BACKBONE,
        lambda root: CocoDataModule(str(root), **objects.DATA),
        objects.write_objects,
        objects.write_config,
        validation="val2017",
        trainer={"max_epochs": max_epochs, "check_val_every_n_epoch": 15},
        loss=0.5,
        scores={"val/box_ap50": 0.6, "val/mask_ap50": 0.5},
        names=list(objects.CATEGORIES.values()),
        changes={"model": {"init_args": {"detector": chosen}}},
    )


TINY_TASKS: dict[str, TinyTask] = {
    "classification": TinyTask(
        ClassificationTask,
        partial(ClassificationTask, num_classes=3),
        tiny.BACKBONE,
        lambda root: ImageNetDataModule(str(root), class_names=str(root / "classes.csv"), **tiny.DATA),
        tiny.write_images,
        tiny.write_config,
        validation="val",
        trainer={"max_epochs": 8},
        loss=0.35,
        scores={"val/top1": 1.0, "val/top5": 1.0},
        names=list(tiny.NAMES.values()),
    ),
    "segmentation": TinyTask(
        SegmentationTask,
        partial(SegmentationTask, num_classes=3, decoder=UPerNet(channels=16), auxiliary_channels=8),
        scenes.BACKBONE,
        lambda root: ADE20KDataModule(str(root), class_names=scenes.NAMES, **scenes.DATA),
        scenes.write_scenes,
        scenes.write_config,
        validation="images/validation",
        trainer={"max_epochs": 12},
        loss=0.5,
        scores={"val/miou": 0.8},
        names=scenes.NAMES,
    ),
    "video": TinyTask(
        VideoClassificationTask,
        partial(VideoClassificationTask, num_classes=2),
        motions.BACKBONE,
        lambda root: KineticsDataModule(str(root), **motions.DATA),
        motions.write_motions,
        motions.write_config,
        validation="val",
        trainer={"max_epochs": 40, "check_val_every_n_epoch": 5},  # after 25, the score hangs on a processor's rounding
        loss=0.5,
        scores={"val/top1": 0.9},
        names=list(motions.LABELS),
    ),
    "simmim": TinyTask(
        SimMIMTask,
        SimMIMTask,
        tiny.BACKBONE,
        lambda root: SimMIMDataModule(str(root), **photos.DATA),
        photos.write_photos,
        photos.write_config,
        validation="val",
        trainer={"max_epochs": 12, "check_val_every_n_epoch": 6},
        loss=0.9,
        scores={"val/loss": 0.0},
        names=[],
    ),
    "mask_rcnn": _detection(MaskRCNNConfig),
    "cascade": _detection(CascadeMaskRCNNConfig, max_epochs=60),  # three stages, which learn from one another
    "htc": _detection(HTCConfig, max_epochs=60),
}

EACH_TASK = [pytest.param(name, marks=pytest.mark.slow) if name in ("cascade", "htc") else name for name in TINY_TASKS]
"""What a detector has a share in is tested with one of them, and with the others where slow tests run as well."""

TWO_TASKS = [
    name if name in ("classification", "mask_rcnn") else pytest.param(name, marks=pytest.mark.slow)
    for name in TINY_TASKS
]
"""What takes several processes is tested with these two, and with the others where slow tests run as well."""

ON_ONE_DETECTOR = [name for name in TINY_TASKS if name not in ("cascade", "htc")]
"""What no detector has a share in is tested with one of them alone."""
