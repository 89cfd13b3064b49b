"""Images of several kinds in folders of folders, without labels, and a backbone of two blocks to learn from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.tasks import SimMIMTask
from swinv2_tasks.training.optim import StepSchedule
from tests.helpers.tiny import BACKBONE, QUIET, merge, write_images

DATA: dict[str, Any] = {"image_size": 32, "mask_patch_size": 8, "batch_size": 4, "num_workers": 0, "val_share": 0.2}


def write_photos(root: Path, train: int = 6, val: int = 4) -> Path:
    """Images of three kinds of file, three times as many as the numbers say: thirty."""
    write_images(root, train=train, val=val)
    (root / "classes.csv").unlink()
    for k, path in enumerate(sorted(root.rglob("*.jpg"))):
        if k % 3:
            Image.open(path).convert("L" if k % 3 == 1 else "RGB").save(path.with_suffix((".png", ".webp")[k % 3 - 1]))
            path.unlink()
    return root


def write_config(path: Path, root: Path, **changes: Any) -> Path:
    """A complete config; ``changes`` are merged into it, mapping by mapping."""
    settings: dict[str, Any] = {
        "name": "photos",
        "seed_everything": 0,
        "report": False,  # tests of it turn it on
        "trainer": {**QUIET, "max_epochs": 2, "gradient_clip_val": 5.0, "log_every_n_steps": 1},
        "checkpoint": {"filename": "best", "monitor": "val/loss", "mode": "min"},
        "model": {
            "class_path": "swinv2_tasks.tasks.SimMIMTask",
            "init_args": {
                "backbone": {"class_path": "swinv2_tasks.backbone.SwinTransformerV2", "init_args": {**BACKBONE}},
                "norm_target_patch_size": 9,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.005, "weight_decay": 0.05}},
                "schedule": {"warmup_epochs": 1, "milestones": [20], "base_batch_size": 0},
            },
        },
        "data": {"class_path": "swinv2_tasks.datamodules.SimMIMDataModule", "init_args": {"root": str(root), **DATA}},
    }
    path.write_text(yaml.safe_dump(merge(settings, changes)))
    return path


def new_simmim(**arguments: Any) -> SimMIMTask:
    return SimMIMTask(SwinTransformerV2(**BACKBONE), **{"schedule": StepSchedule(base_batch_size=0), **arguments})
