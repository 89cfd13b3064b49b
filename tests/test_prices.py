"""Settings and records that ask for more than any machine has end in one message, before anything is made of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.backbone.position_bias import BiasTable
from swinv2_tasks.cli.configs import config_from_checkpoint
from swinv2_tasks.datamodules import (
    ADE20KDataModule,
    CocoDataModule,
    ImageNetDataModule,
    KineticsDataModule,
    SimMIMDataModule,
)
from swinv2_tasks.datamodules.category_lists import stated_categories
from swinv2_tasks.datamodules.classes import read_classes
from swinv2_tasks.datamodules.kinetics import ViewCounts
from swinv2_tasks.datamodules.readers.video_lists import read_label_map
from swinv2_tasks.datamodules.scene_classes import scene_class_names
from swinv2_tasks.datamodules.transforms.detection import MultiScaleAugmentation, ScaleJitterAugmentation
from swinv2_tasks.datamodules.transforms.segmentation import ADE20KAugmentation
from swinv2_tasks.datamodules.transforms.video import FrameSampling
from swinv2_tasks.inference.detection import DetectionInference
from swinv2_tasks.inference.segmentation import Inference
from tests.helpers import tiny
from tests.helpers.prices import refusal
from tests.helpers.tiny_tasks import TINY_TASKS

HUGE = 10**9

SETTINGS: dict[str, Callable[[], Any]] = {
    "embed_dim": partial(SwinTransformerV2, HUGE),
    "depths": partial(SwinTransformerV2, 96, [10**6] * 4),
    "stages": partial(SwinTransformerV2, 96, [1] * 1000, [1] * 1000),
    "weights": partial(SwinTransformerV2, 8192, [200, 200, 200, 200], [1, 2, 4, 8]),
    "mlp_ratio": partial(SwinTransformerV2, mlp_ratio=1e12),
    "patch_size": partial(SwinTransformerV2, patch_size=HUGE),
    "in_channels": partial(SwinTransformerV2, in_channels=10**12),
    "window of a table": partial(SwinTransformerV2, window_size=10**6, position_bias=BiasTable),
    "image_size": partial(ImageNetDataModule, image_size=HUGE),
    "image_size of masked images": partial(SimMIMDataModule, image_size=32 * HUGE),
    "image_size of clips": partial(KineticsDataModule, image_size=HUGE),
    "crop_size": partial(ADE20KDataModule, crop_size=HUGE),
    "resize of scenes": partial(ADE20KDataModule, resize=(HUGE, HUGE)),
    "resize of objects": partial(CocoDataModule, resize=(HUGE, 800)),
    "batch_size": partial(ImageNetDataModule, batch_size=10**12),
    "num_workers": partial(ImageNetDataModule, num_workers=10**6),
    "frames": partial(FrameSampling, frames=HUGE),
    "views": partial(ViewCounts, val=(HUGE, 1)),
    "min_size": partial(MultiScaleAugmentation, min_size=(1, HUGE), max_size=HUGE),
    "target_size": partial(ScaleJitterAugmentation, target_size=HUGE),
    "scale_range": partial(ADE20KAugmentation, scale_range=(0.5, 1e9)),
    "crop_size of windows": partial(Inference, mode="slide", crop_size=HUGE),
    "scales": partial(DetectionInference, scales=(1e9,)),
    "scales, many": partial(Inference, scales=(1.0,) * 10**6),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_beyond_all_machines_is_refused(name: str) -> None:
    assert name.split()[0].strip(",") in refusal(SETTINGS[name]) or name in ("stages", "weights")


def window_beyond_memory() -> None:
    backbone = SwinTransformerV2(8, [1], [1], 10**6)
    with torch.device("cpu"):
        backbone(torch.zeros(1, 3, 1024, 1024))


def test_a_window_as_large_as_the_map_is_that_of_the_map_unless_it_fills_the_memory() -> None:
    assert "window_size" in refusal(window_beyond_memory)
    maps = SwinTransformerV2(8, [1], [1], 10**6)(torch.zeros(1, 3, 64, 64))
    assert maps[0].shape == (1, 8, 16, 16)


@pytest.mark.parametrize("read", [read_classes, read_label_map, scene_class_names, stated_categories])
def test_a_class_list_of_ten_million_lines_is_refused(read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("".join(f"{number}\n" for number in range(10_000_000)))
    assert "lines" in refusal(read, path)


@pytest.mark.parametrize(
    ("task", "entry", "value"),
    [
        ("classification", ("backbone", "embed_dim"), 4096),
        ("classification", ("backbone", "depths"), [500, 400]),
        ("classification", ("backbone", "depths"), [10**6, 1]),
        ("classification", ("task", "init_args", "num_classes"), 10**12),
        ("segmentation", ("task", "init_args", "decoder", "init_args", "channels"), HUGE),
        ("segmentation", ("task", "init_args", "decoder", "init_args", "pool_scales"), [1] * 5_000),
        ("segmentation", ("task", "init_args", "auxiliary_channels"), HUGE),
        ("mask_rcnn", ("task", "init_args", "detector", "init_args", "channels"), HUGE),
        ("mask_rcnn", ("task", "init_args", "detector", "init_args", "representation_size"), HUGE),
    ],
)
def test_a_record_of_more_than_the_file_holds_is_not_built(
    task: str, entry: tuple[str, ...], value: Any, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    contents = torch.load(checkpoints(task), weights_only=False)
    part = contents["swinv2_tasks"]
    for key in entry[:-1]:
        part = part[key]
    part[entry[-1]] = value
    path = tmp_path / "changed.ckpt"
    torch.save(contents, path)
    for read in (config_from_checkpoint, TINY_TASKS[task].task.load_from_checkpoint):
        message = refusal(read, str(path))
        assert "its record is of a network" in message or entry[-1] in message


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives a checkpoint of a tiny run of a task; not to be changed."""

    @cache
    def checkpoint(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        root = TINY_TASKS[name].write_data(folder / "data", train=8, val=1)
        trainer = tiny.new_trainer(folder, max_steps=1, limit_val_batches=0)
        trainer.fit(TINY_TASKS[name].new_task(), TINY_TASKS[name].new_data(root))
        trainer.save_checkpoint(folder / "tiny.ckpt")
        return folder / "tiny.ckpt"

    return checkpoint
