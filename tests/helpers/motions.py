"""Clips of a square that moves up or down, in the layout of Kinetics, and a classifier of two blocks."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import av
import numpy as np
import yaml

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.datamodules import KineticsAugmentation
from swinv2_tasks.datamodules.kinetics import VideoFiles, ViewCounts
from swinv2_tasks.datamodules.transforms.video import FrameSampling
from swinv2_tasks.tasks import VideoClassificationTask
from swinv2_tasks.training.optim import CosineSchedule
from tests.helpers.tiny import QUIET, as_config, merge

LABELS = ("goes down", "goes up")

BACKBONE: dict[str, Any] = {
    "embed_dim": 16, "depths": [2, 1], "num_heads": [1, 2], "patch_size": [2, 4, 4],
    "window_size": [[4, 4, 4], [4, 4, 4]],
}  # fmt: skip

DATA: dict[str, Any] = {
    "image_size": 32, "batch_size": 6, "num_workers": 0, "sampling": FrameSampling(8, 1),
    "augmentation": KineticsAugmentation(crop_scale=(0.8, 1.0)), "views": ViewCounts(test=(2, 3)),
    "files": VideoFiles(train_list="train.csv", val_list="val.csv"),
}  # fmt: skip


def write_motions(root: Path, train: int = 12, val: int = 4, seed: int = 0) -> Path:
    """Videos of 10 to 14 frames, which start anywhere: no single frame tells the classes apart."""
    rng = np.random.default_rng(seed)
    for split, number in (("train", train), ("val", val)):
        rows = []
        for k in range(number * len(LABELS)):
            label = LABELS[k % 2]
            name = f"{split}{k:06d}"[:11].ljust(11, "_")
            rows.append([label, name, 0, 1, split])
            path = root / split / f"{name}_000000_000001.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            phase, column = rng.integers(32), rng.integers(4, 24)
            with av.open(str(path), "w") as file:
                stream = file.add_stream("libx264", rate=25)
                stream.height, stream.width, stream.pix_fmt = 32, 40, "yuv420p"
                for t in range(int(rng.integers(10, 15))):
                    frame = rng.normal(60, 8, (32, 40, 3))
                    row = (phase + (3 if label == "goes down" else -3) * t) % 32
                    frame[(row + np.arange(8)) % 32, column : column + 10] = 220
                    file.mux(stream.encode(av.VideoFrame.from_ndarray(frame.clip(0, 255).astype(np.uint8), "rgb24")))
                file.mux(stream.encode())
        with (root / f"{split}.csv").open("w", newline="") as table:
            csv.writer(table).writerows([["label", "youtube_id", "time_start", "time_end", "split"], *rows])
    return root


def config(root: Path, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "name": "motions",
        "seed_everything": 0,
        "report": False,  # tests of it turn it on
        "trainer": {**QUIET, "max_epochs": 2, "gradient_clip_val": 5.0, "log_every_n_steps": 1},
        "checkpoint": {"filename": "best", "monitor": "val/loss", "mode": "min"},
        "model": {
            "class_path": "swinv2_tasks.tasks.VideoClassificationTask",
            "init_args": {
                "backbone": {"class_path": "swinv2_tasks.backbone.SwinTransformerV2", "init_args": {**BACKBONE}},
                "dropout": 0.1,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.005, "weight_decay": 0.05}},
                "schedule": {"warmup_epochs": 1, "warmup_lr": 1e-4, "min_lr": 1e-5, "base_batch_size": 0},
            },
        },
        "data": {
            "class_path": "swinv2_tasks.datamodules.KineticsDataModule",
            "init_args": {"root": str(root), **as_config(DATA)},
        },
    }
    return merge(settings, changes)


def write_config(path: Path, root: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(config(root, **changes)))
    return path


def new_video_task(classes: int = 2, **arguments: Any) -> VideoClassificationTask:
    schedule = CosineSchedule(warmup_epochs=0, base_batch_size=0)
    return VideoClassificationTask(SwinTransformerV2(**BACKBONE), classes, **{"schedule": schedule, **arguments})
