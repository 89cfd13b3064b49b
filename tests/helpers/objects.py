"""A dataset of colored shapes in COCO's layout and detectors small enough for a test to train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.datamodules import MultiScaleAugmentation
from swinv2_tasks.heads import DetectorConfig, MaskRCNNConfig
from swinv2_tasks.sample_data.writer import annotation
from swinv2_tasks.tasks import DetectionTask
from swinv2_tasks.training.optim import StepSchedule
from tests.helpers.tiny import BACKBONE, QUIET, as_config, merge

CATEGORIES = {3: "red square", 5: "green disc", 90: "blue bar"}
"""Ids with gaps, and names."""

COLORS = {3: (220, 40, 40), 5: (40, 220, 40), 90: (40, 40, 220)}

DETECTOR: dict[str, Any] = {"channels": 16, "representation_size": 32, "post_nms_top_n": 50, "batch_size_per_image": 32}

DATA: dict[str, Any] = {
    "batch_size": 4, "num_workers": 0, "resize": [96, 64],
    "augmentation": MultiScaleAugmentation(min_size=(56, 64), min_size_step=8, max_size=96),
}  # fmt: skip


def draw_object(rng: np.random.Generator, category: int, height: int, width: int) -> np.ndarray:
    """The pixels of an object of a category at a random place, bool (height, width)."""
    rows, columns = np.ogrid[:height, :width]
    side = int(rng.integers(16, 28))
    top, left = int(rng.integers(0, height - side)), int(rng.integers(0, width - side))
    if category == 5:
        middle = (side - 1) / 2
        return (rows - top - middle) ** 2 + (columns - left - middle) ** 2 <= (side / 2) ** 2
    tall = side if category == 3 else side // 2
    return (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + side)


def write_objects(root: Path, train: int = 12, val: int = 5, *, masks: bool = True, seed: int = 0) -> Path:
    """Images of three sizes with one to three shapes each, on noise.

    The first of each split has a crowd of squares, the second nothing. Stuff maps of the training images are in
    ``stuff``.
    """
    rng = np.random.default_rng(seed)
    for split, number in (("train", train), ("val", val)):
        images, annotations = [], []
        for k in range(number):
            height, width = ((64, 80), (80, 64), (72, 72))[k % 3]
            pixels = rng.normal(128, 20, (height, width, 3))
            stuff = np.zeros((height, width), np.uint8)
            occupied = np.zeros((height, width), bool)
            entry = {"id": 100 * (split == "val") + 7 * k + 1, "file_name": f"{split}_{k}.jpg"}
            images.append({**entry, "height": height, "width": width})
            for _ in range(0 if k == 1 else int(rng.integers(1, 4))):
                category = int(rng.choice(list(CATEGORIES)))
                mask = draw_object(rng, category, height, width) & ~occupied
                if mask.sum() < 100:
                    continue
                occupied |= mask
                pixels[mask] = np.array(COLORS[category]) + rng.normal(0, 10, (int(mask.sum()), 3))
                stuff[mask] = 255
                crowd = k == 0 and category == 3
                record = {"id": len(annotations) + 1, "image_id": entry["id"], "category_id": category}
                annotations.append(record | annotation(mask, crowd=crowd))
                if not masks:
                    del annotations[-1]["segmentation"]
            stuff[height // 2 :][~occupied[height // 2 :]] = 1
            for folder, picture in ((f"{split}2017", pixels.clip(0, 255).astype(np.uint8)), ("stuff", stuff)):
                (root / folder).mkdir(parents=True, exist_ok=True)
                name = entry["file_name"] if folder != "stuff" else f"{split}_{k}.png"
                Image.fromarray(picture).save(root / folder / name, quality=95)
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": k, "name": name} for k, name in CATEGORIES.items()],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def change(root: Path, split: str, edit: Any) -> Path:
    """Lets ``edit`` change what a split's annotation file says; the file."""
    path = root / "annotations" / f"instances_{split}2017.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return path


def write_config(path: Path, root: Path, **changes: Any) -> Path:
    """A complete config; ``changes`` are merged into it, mapping by mapping."""
    settings: dict[str, Any] = {
        "name": "objects",
        "seed_everything": 0,
        "report": False,  # tests of it turn it on
        "trainer": {**QUIET, "max_epochs": 2, "gradient_clip_val": 5.0, "log_every_n_steps": 1},
        "checkpoint": {"filename": "best", "monitor": "val/box_ap", "mode": "max"},
        "model": {
            "class_path": "swinv2_tasks.tasks.DetectionTask",
            "init_args": {
                "backbone": {"class_path": "swinv2_tasks.backbone.SwinTransformerV2", "init_args": {**BACKBONE}},
                "detector": {"class_path": "swinv2_tasks.heads.MaskRCNNConfig", "init_args": {**DETECTOR}},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003, "weight_decay": 0.05}},
                "schedule": {"warmup_steps": 2, "milestones": [50], "base_batch_size": 0},
            },
        },
        "data": {
            "class_path": "swinv2_tasks.datamodules.CocoDataModule",
            "init_args": {"root": str(root), **as_config(DATA)},
        },
    }
    path.write_text(yaml.safe_dump(merge(settings, changes)))
    return path


def new_detector(detector: DetectorConfig | None = None, classes: int = 3, **arguments: Any) -> DetectionTask:
    backbone = SwinTransformerV2(**BACKBONE)
    settings = {"schedule": StepSchedule(base_batch_size=0), **arguments}
    return DetectionTask(backbone, detector or MaskRCNNConfig(**DETECTOR), classes, **settings)
