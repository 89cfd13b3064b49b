"""A dataset of colored blocks in ADE20K's layout and a segmenter small enough for a test to train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.heads import UPerNet
from swinv2_tasks.tasks import SegmentationTask
from swinv2_tasks.training.optim import LinearSchedule
from tests.helpers.tiny import BACKBONE, QUIET, merge

COLORS = np.array([(0, 0, 0), (200, 40, 40), (40, 200, 40), (40, 40, 200)])
"""Of labels 0 to 3; 0 is unlabeled."""

NAMES = ["red clay", "green moss", "blue slate"]

DATA: dict[str, Any] = {"crop_size": 32, "resize": [64, 32], "batch_size": 4, "num_workers": 0}


def write_scene(
    path: Path, mask: Path, rng: np.random.Generator, height: int, width: int, labeled: bool = False
) -> None:
    """Four noisy blocks of random colors that meet in a random corner, and a stripe without a label."""
    labels = np.zeros((height, width), dtype=np.uint8)
    row, column = rng.integers(8, height - 8), rng.integers(8, width - 8)
    for rows in (slice(0, row), slice(row, None)):
        for columns in (slice(0, column), slice(column, None)):
            labels[rows, columns] = rng.integers(1, 4)
    if not labeled:
        labels[:, column - 1 : column + 1] = 0
    pixels = COLORS[labels] + rng.normal(0, 15, (height, width, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    mask.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=95)
    Image.fromarray(labels).save(mask)


def write_scenes(root: Path, train: int = 12, val: int = 5, labeled: bool = False) -> Path:
    """Scenes of different sizes, and the class list names.txt; ``labeled``: without the stripes."""
    rng = np.random.default_rng(0)
    for split, number in (("training", train), ("validation", val)):
        for k in range(number):
            height, width = ((36, 48), (40, 36), (45, 33))[k % 3]
            name = f"scene_{k}"
            image, mask = root / "images" / split / f"{name}.jpg", root / "annotations" / split / f"{name}.png"
            write_scene(image, mask, rng, height, width, labeled)
    (root / "names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return root


def write_config(path: Path, root: Path, **changes: Any) -> Path:
    """A complete config; ``changes`` are merged into it, mapping by mapping."""
    settings: dict[str, Any] = {
        "name": "scenes",
        "seed_everything": 0,
        "report": False,  # tests of it turn it on
        "trainer": {**QUIET, "max_epochs": 2, "gradient_clip_val": 5.0, "log_every_n_steps": 1},
        "checkpoint": {"filename": "best", "monitor": "val/miou", "mode": "max"},
        "model": {
            "class_path": "swinv2_tasks.tasks.SegmentationTask",
            "init_args": {
                "backbone": {"class_path": "swinv2_tasks.backbone.SwinTransformerV2", "init_args": {**BACKBONE}},
                "decoder": {"class_path": "swinv2_tasks.heads.UPerNet", "init_args": {"channels": 16}},
                "auxiliary_channels": 8,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "weight_decay": 0.05}},
                "schedule": {"warmup_steps": 2, "base_batch_size": 0},
            },
        },
        "data": {
            "class_path": "swinv2_tasks.datamodules.ADE20KDataModule",
            "init_args": {"root": str(root), "class_names": str(root / "names.txt"), **DATA},
        },
    }
    path.write_text(yaml.safe_dump(merge(settings, changes)))
    return path


def new_segmenter(classes: int = 3, window: Any = 4, **arguments: Any) -> SegmentationTask:
    backbone = SwinTransformerV2(**{**BACKBONE, "window_size": window})
    settings = {"decoder": UPerNet(channels=16), "auxiliary_channels": 8, "schedule": LinearSchedule(base_batch_size=0)}
    return SegmentationTask(backbone, classes, **{**settings, **arguments})
