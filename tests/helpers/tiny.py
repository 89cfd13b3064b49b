"""A dataset of colored squares and a classifier of two blocks, small enough for a test to train."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning.pytorch import Callback, Trainer
from PIL import Image

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.datamodules import ImageNetAugmentation, ImageNetDataModule
from swinv2_tasks.hyperparameters import Recorded
from swinv2_tasks.tasks import ClassificationTask
from swinv2_tasks.training.optim import CosineSchedule

COLORS = {"n01": (200, 40, 40), "n02": (40, 200, 40), "n03": (40, 40, 200)}
"""Class ids and the color of their images."""

NAMES = {"n01": "red apple", "n02": "green leaf", "n03": "blue sea"}

BACKBONE: dict[str, Any] = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
"""Maps of 8×8 and 4×4 tokens at 32 pixels: the window of 4 shifts nothing away from the first."""

AUGMENTATION = ImageNetAugmentation(rand_augment_ops=0, color_jitter=0.0, random_erasing=0.0, mixup=0.0, cutmix=0.0)

DATA: dict[str, Any] = {
    "image_size": 32, "batch_size": 6, "num_workers": 0, "crop_pct": 1.0, "augmentation": AUGMENTATION,
}  # fmt: skip

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "precision": "32-true",
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def write_images(root: Path, classes: tuple[str, ...] = tuple(COLORS), train: int = 6, val: int = 4) -> Path:
    """Noisy squares of each class's color in the layout of ImageNet, with a class list beside them."""
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    for split, number in (("train", train), ("val", val)):
        for index, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(number):
                color = np.array(list(COLORS.values())[index])
                pixels = (color + rng.normal(0, 20, (36, 40, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}_{k}.jpg", quality=95)
    (root / "classes.csv").write_text("".join(f"{name},{NAMES.get(name, name)}\n" for name in classes))
    return root


def config(root: Path, **changes: Any) -> dict[str, Any]:
    """A complete config of the command line; ``changes`` are merged into it, mapping by mapping."""
    settings: dict[str, Any] = {
        "name": "tiny",
        "seed_everything": 0,
        "report": False,  # tests of it turn it on
        "trainer": {**QUIET, "max_epochs": 2, "gradient_clip_val": 5.0, "log_every_n_steps": 1},
        "checkpoint": {"filename": "best", "monitor": "val/loss", "mode": "min"},
        "model": {
            "class_path": "swinv2_tasks.tasks.ClassificationTask",
            "init_args": {
                "backbone": {"class_path": "swinv2_tasks.backbone.SwinTransformerV2", "init_args": {**BACKBONE}},
                "label_smoothing": 0.0,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02, "weight_decay": 0.05}},
                "schedule": {"warmup_epochs": 1, "warmup_lr": 1e-4, "min_lr": 1e-5, "base_batch_size": 0},
            },
        },
        "data": {
            "class_path": "swinv2_tasks.datamodules.ImageNetDataModule",
            "init_args": {"root": str(root), "class_names": str(root / "classes.csv"), **as_config(DATA)},
        },
    }
    return merge(settings, changes)


def as_config(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as a config states them: settings by their class and its arguments."""
    stated = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, Recorded):
            cls = type(value)
            stated[name] = {"class_path": f"{cls.__module__}.{cls.__name__}", "init_args": value.init_args}
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            stated[name] = dataclasses.asdict(value)
    return stated


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(base)
    for key, value in changes.items():
        merged[key] = merge(merged[key], value) if isinstance(value, dict) and key in merged else value
    return merged


def write_config(path: Path, root: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(config(root, **changes)))
    return path


def new_task(classes: int = 3, window: Any = 4, **arguments: Any) -> ClassificationTask:
    backbone = SwinTransformerV2(**{**BACKBONE, "window_size": window})
    schedule = CosineSchedule(warmup_epochs=0, base_batch_size=0)
    return ClassificationTask(backbone, classes, **{"schedule": schedule, **arguments})


def new_data(root: Path, **arguments: Any) -> ImageNetDataModule:
    return ImageNetDataModule(str(root), **{**DATA, **arguments})


def new_trainer(folder: Path, *callbacks: Callback, **arguments: Any) -> Trainer:
    settings = {**QUIET, "max_epochs": 1, "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**settings, **arguments})
