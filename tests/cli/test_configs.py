"""Every shipped config is accepted by the command line's own parser."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from functools import cache
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule

from swinv2_tasks.cli.config_files import known_configs, shipped_configs
from swinv2_tasks.cli.main import main
from swinv2_tasks.cli.parser import TasksArgumentParser
from swinv2_tasks.datamodules import (
    ADE20KDataModule,
    CocoDataModule,
    ImageNetDataModule,
    KineticsDataModule,
    SimMIMDataModule,
)
from swinv2_tasks.heads.mask_rcnn import DetectionHead
from swinv2_tasks.tasks import ClassificationTask, DetectionTask, SegmentationTask, SimMIMTask, VideoClassificationTask

ALL = sorted(str(path.relative_to(shipped_configs())) for path in shipped_configs().rglob("*.yaml"))
OVERLAYS = [name for name in ALL if name.startswith("overlays/")]
COMPLETE = [name for name in ALL if name not in OVERLAYS]

PARAMETERS = {
    "swinv2_tiny": 27_578_154,
    "swinv2_small": 48_959_418,
    "swinv2_base": 86_893_816,
    "swinv2_large": 195_202_932,
}
"""Published numbers for the backbone and the norm after it, which belongs to the head here."""

PAIRS: dict[type, tuple[type, str]] = {
    ClassificationTask: (ImageNetDataModule, "image_size"),
    DetectionTask: (CocoDataModule, "resize"),
    SegmentationTask: (ADE20KDataModule, "crop_size"),
    SimMIMTask: (SimMIMDataModule, "image_size"),
    VideoClassificationTask: (KineticsDataModule, "image_size"),
}
"""The datamodule of each task, and the setting of its training images' size."""


@cache
def parse_configs(*names: str) -> dict[str, Any]:
    """What ``fit`` makes of configs, all defaults filled in."""
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit) as end:
        main(["fit", *(f"--config={name}" for name in names), "--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(printed.getvalue())


def build_task(config: dict[str, Any]) -> tuple[Any, LightningDataModule]:
    """The task of a config, on the meta device, and its datamodule."""
    classes = {} if config["model"]["class_path"].endswith(".SimMIMTask") else {"num_classes": 10}
    model = {**config["model"], "init_args": {**config["model"]["init_args"], "weights": None, **classes}}
    parts = []
    for device, name, base, part in (
        ("meta", "model", LightningModule, model),
        ("cpu", "data", LightningDataModule, config["data"]),
    ):
        parser = TasksArgumentParser()
        parser.add_lightning_class_args(base, name, subclass_mode=True)
        with torch.device(device):
            parts.append(parser.instantiate_classes(parser.parse_object({name: part}))[name])
    return parts[0], parts[1]


def test_all_configs_can_be_named() -> None:
    assert set(ALL) <= set(known_configs())
    assert {"imagenet.yaml", "demo_imagenet.yaml", "overlays/small.yaml"} <= set(ALL)


@pytest.mark.parametrize("name", COMPLETE)
def test_a_config_is_complete(name: str) -> None:
    config = parse_configs(name)
    assert config["name"] not in (None, "run")  # runs of different configs do not mix
    assert config["trainer"]["accelerator"] == "auto"
    assert config["trainer"]["max_epochs"] or config["trainer"]["max_steps"] > 0
    assert config["checkpoint"]["monitor"]
    task, data = build_task(config)
    datamodule, size_name = PAIRS[type(task)]
    assert isinstance(data, datamodule)
    size = config["model"]["init_args"]["backbone"]["class_path"].rpartition(".")[2]
    if size in PARAMETERS:
        last = task.backbone.channels[-1]
        expected = PARAMETERS[size] - 2 * last
        if task.backbone.axes == 3:  # a wider patch, and in each block's position network a weight per unit for time
            frames, channels = task.backbone.patch_size[0], task.backbone.channels[0]
            expected += 3 * 16 * channels * (frames - 1) + 512 * sum(task.backbone.depths)
        assert sum(p.numel() for p in task.backbone.parameters()) == expected
    # No map is smaller than a window by accident: at the config's own size, windows shrink in the last stage at most.
    window, size = task.backbone.window_size, data.init_args[size_name]
    if isinstance(task, DetectionTask):  # at the longer side: short ones fall below a window of 32 in the third stage
        size = max(size)
    if isinstance(task, VideoClassificationTask):
        size = (data.init_args["sampling"]["frames"], size, size)
    assert task.backbone.effective_windows(size)[:-1] == window[:-1]


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_goes_over_its_config(name: str) -> None:
    """That of the task which its name ends with; without one, over all."""
    ends = [f"{task}.yaml" for task in ("ade20k", "coco", "kinetics", "simmim") if name.endswith(f"_{task}.yaml")]
    under = ends[0] if ends else "imagenet.yaml"
    config, base = parse_configs(under, name), parse_configs(under)
    assert config != base
    assert config["name"] == base["name"]
    build_task(config)


@pytest.mark.parametrize("overlay", ["ddp", "zero1", "fsdp"])
@pytest.mark.parametrize("name", ["imagenet.yaml", "coco.yaml", "ade20k.yaml", "kinetics.yaml", "simmim.yaml"])
def test_an_overlay_of_processes_changes_nothing_else(name: str, overlay: str) -> None:
    config, base = parse_configs(name, f"overlays/{overlay}.yaml"), parse_configs(name)
    trainer, strategy = config["trainer"], config["trainer"]["strategy"]
    assert trainer["devices"] == "auto"
    assert strategy != base["trainer"]["strategy"]
    assert {**config, "trainer": {**trainer, "strategy": base["trainer"]["strategy"]}} == base


def test_the_imagenet_config_is_the_published_recipe() -> None:
    """Reference, section 3, first row."""
    config = parse_configs("imagenet.yaml")
    trainer, model, data = config["trainer"], config["model"]["init_args"], config["data"]["init_args"]
    assert (trainer["max_epochs"], trainer["gradient_clip_val"], trainer["precision"]) == (300, 5.0, "bf16-mixed")
    assert model["backbone"]["init_args"]["window_size"] == 8
    assert model["backbone"]["init_args"]["drop_path_rate"] == 0.2
    assert model["label_smoothing"] == 0.1
    optimizer = model["optimizer"]["init_args"]
    assert model["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert (optimizer["lr"], optimizer["weight_decay"], optimizer["eps"]) == (5e-4, 0.05, 1e-8)
    assert optimizer["betas"] == [0.9, 0.999]
    assert model["schedule"] == {
        "warmup_epochs": 20.0, "warmup_lr": 5e-7, "min_lr": 5e-6, "base_batch_size": 512, "layer_decay": 1.0,
        "backbone_lr_mult": 1.0,
    }  # fmt: skip
    assert (data["image_size"], data["crop_pct"]) == (256, 224 / 256)
    assert data["augmentation"]["class_path"] == "swinv2_tasks.datamodules.ImageNetAugmentation"
    assert data["augmentation"]["init_args"] == {
        "crop_scale": [0.08, 1.0], "horizontal_flip": 0.5, "rand_augment_ops": 2, "rand_augment_magnitude": 9,
        "color_jitter": 0.4, "random_erasing": 0.25, "mixup": 0.8, "cutmix": 1.0, "mixup_switch_prob": 0.5,
        "repeats": 1,
    }  # fmt: skip


RECIPES = {
    # drop path, pre-training windows, window, image, epochs, warmup, lr, warmup lr, min lr, weight decay, layer decay
    "swinv2_tiny_w16_256": (0.2, None, 16, 256, 300, 20, 5e-4, 5e-7, 5e-6, 0.05, 1.0),
    "swinv2_small_w8_256": (0.3, None, 8, 256, 300, 20, 5e-4, 5e-7, 5e-6, 0.05, 1.0),
    "swinv2_small_w16_256": (0.3, None, 16, 256, 300, 20, 5e-4, 5e-7, 5e-6, 0.05, 1.0),
    "swinv2_base_w8_256": (0.5, None, 8, 256, 300, 20, 5e-4, 5e-7, 5e-6, 0.05, 1.0),
    "swinv2_base_w16_256": (0.5, None, 16, 256, 300, 20, 5e-4, 5e-7, 5e-6, 0.05, 1.0),
    "swinv2_base_22k_w12_192": (0.2, None, 12, 192, 90, 5, 1.25e-4, 1.25e-7, 1.25e-6, 0.1, 1.0),
    "swinv2_large_22k_w12_192": (0.2, None, 12, 192, 90, 5, 1.25e-4, 1.25e-7, 1.25e-6, 0.1, 1.0),
    "swinv2_base_22kto1k_w16_256": (0.2, (12, 12, 12, 6), 16, 256, 30, 5, 2e-5, 2e-8, 2e-7, 1e-8, 1.0),
    "swinv2_base_22kto1k_w24_384": (0.2, (12, 12, 12, 6), 24, 384, 30, 5, 2e-5, 2e-8, 2e-7, 1e-8, 1.0),
    "swinv2_large_22kto1k_w16_256": (0.2, (12, 12, 12, 6), 16, 256, 30, 5, 2e-5, 2e-8, 2e-7, 1e-8, 1.0),
    "swinv2_large_22kto1k_w24_384": (0.2, (12, 12, 12, 6), 24, 384, 30, 5, 2e-5, 2e-8, 2e-7, 1e-8, 1.0),
    "swinv2_base_simmim_w14_224": (0.1, (12, 12, 12, 6), 14, 224, 100, 20, 1.25e-3, 2.5e-7, 2.5e-7, 0.05, 0.75),
    "swinv2_giant_w40_640": (0.3, None, 40, 640, 30, 5, 2e-5, 2e-8, 2e-7, 1e-8, 1.0),
}
"""Reference, section 3, row by row; section 4 for G."""


SCENE_RECIPES = {
    # window, crop, pre-trained window stated, lr, weight decay, layer decay, scales
    "ade20k_swinv2_small_w16_512": (16, 512, True, 6e-5, 0.01, 1.0, 1),
    "ade20k_swinv2_base_w16_512": (16, 512, True, 6e-5, 0.01, 1.0, 1),
    "ade20k_swinv2_large_w40_640": (40, 640, True, 4e-5, 0.05, 0.95, 6),
    "ade20k_swinv2_giant_w40_640": (40, 640, False, 4e-5, 0.05, 0.95, 6),
}
"""Reference, section 3, segmentation, and section 4 for L and G."""


OBJECT_RECIPES = {
    # detector, window, drop path, epochs, milestones, lr, scales, nms
    "coco": ("MaskRCNNConfig", 16, 0.2, 36, [27, 33], 1, "hard"),
    "coco_swinv2_tiny_cascade_w16": ("CascadeMaskRCNNConfig", 16, 0.2, 36, [27, 33], 1, "hard"),
    "coco_swinv2_small_cascade_w16": ("CascadeMaskRCNNConfig", 16, 0.2, 36, [27, 33], 1, "hard"),
    "coco_swinv2_base_cascade_w16": ("CascadeMaskRCNNConfig", 16, 0.3, 36, [27, 33], 1, "hard"),
    "coco_swinv2_large_htc_w32_1536": ("HTCConfig", 32, 0.3, 72, [63, 69], 3, "soft_linear"),
    "coco_swinv2_giant_htc_w32_1536": ("HTCConfig", 32, 0.3, 72, [63, 69], 3, "soft_linear"),
}
"""Reference, section 3, detection; drop path of L and G is not published."""


@pytest.mark.parametrize("name", OBJECT_RECIPES)
def test_a_detection_config_is_the_published_recipe(name: str) -> None:
    detector, window, drop_path, epochs, milestones, scales, nms = OBJECT_RECIPES[name]
    config = parse_configs("coco.yaml" if name == "coco" else f"paper/{name}.yaml")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    backbone, optimizer, schedule = model["backbone"], model["optimizer"]["init_args"], model["schedule"]
    size = "tiny" if name == "coco" else name.split("_")[2]
    assert (config["name"], backbone["class_path"]) == (name, f"swinv2_tasks.backbone.swinv2_{size}")
    assert model["detector"]["class_path"] == f"swinv2_tasks.heads.{detector}"
    assert model["detector"]["init_args"]["masks"] and model["detector"]["init_args"]["post_nms_top_n"] == 1000
    assert (backbone["init_args"]["window_size"], backbone["init_args"]["drop_path_rate"]) == (window, drop_path)
    assert (config["trainer"]["max_epochs"], config["trainer"]["gradient_clip_val"]) == (epochs, None)
    assert (optimizer["lr"], optimizer["weight_decay"]) == (1e-4, 0.05)
    assert (schedule["milestones"], schedule["gamma"]) == (milestones, 0.1)
    assert (schedule["warmup_steps"], schedule["base_batch_size"]) == (500, 16)
    inference = model["inference"]
    assert (len(inference["scales"]), inference["flip"], inference["nms"]) == (scales, scales > 1, nms)
    assert (inference["nms_threshold"], inference["max_detections"]) == (0.5, 100)
    assert inference["score_threshold"] == (0.05 if nms == "hard" else 0.001)
    augmentation = data["augmentation"]["init_args"]
    if detector == "HTCConfig":
        assert model["detector"]["init_args"]["stuff_classes"] == 183
        assert data["files"]["train_stuff"]
        assert data["augmentation"]["class_path"] == "swinv2_tasks.datamodules.ScaleJitterAugmentation"
        assert augmentation == {
            "target_size": 1536, "scale_range": [0.1, 2.0], "horizontal_flip": 0.5, "copy_paste": 0.5
        }  # fmt: skip
    else:
        assert data["resize"] == [1333, 800]
        assert data["augmentation"]["class_path"] == "swinv2_tasks.datamodules.MultiScaleAugmentation"
        assert augmentation == {
            "min_size": [480, 800], "min_size_step": 32, "max_size": 1333, "crop": 0.5, "horizontal_flip": 0.5,
            "copy_paste": 0.0,
        }  # fmt: skip
    assert (model["weights"] is None) == (size == "giant" or name == "coco")


def test_heads_of_all_configs_are_detectors() -> None:
    for name in OBJECT_RECIPES:
        task, _ = build_task(parse_configs("coco.yaml" if name == "coco" else f"paper/{name}.yaml"))
        assert isinstance(task.head, DetectionHead)


def test_every_paper_config_is_a_row_of_the_reference() -> None:
    names = {*RECIPES, *SCENE_RECIPES, *OBJECT_RECIPES, *CLIP_RECIPES} - {"coco", "kinetics"}
    rows = {f"paper/{name}.yaml" for name in names}
    assert rows == {name for name in ALL if name.startswith("paper/")}


@pytest.mark.parametrize("name", ["ade20k", *SCENE_RECIPES])
def test_a_segmentation_config_is_the_published_recipe(name: str) -> None:
    expected = {"ade20k": (16, 512, False, 6e-5, 0.01, 1.0, 1), **SCENE_RECIPES}
    window, crop, starts_from_weights, lr, weight_decay, layer_decay, scales = expected[name]
    config = parse_configs(f"{name}.yaml" if name == "ade20k" else f"paper/{name}.yaml")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    backbone, optimizer, schedule = model["backbone"], model["optimizer"]["init_args"], model["schedule"]
    size = "tiny" if name == "ade20k" else name.split("_")[2]
    assert (config["name"], backbone["class_path"]) == (name, f"swinv2_tasks.backbone.swinv2_{size}")
    assert (backbone["init_args"]["window_size"], backbone["init_args"]["drop_path_rate"]) == (window, 0.3)
    assert (config["trainer"]["max_steps"], config["trainer"]["max_epochs"]) == (160_000, -1)
    assert (optimizer["lr"], optimizer["weight_decay"]) == (lr, weight_decay)
    assert (schedule["warmup_steps"], schedule["base_batch_size"], schedule["min_lr"]) == (1500, 16, 0)
    assert schedule["warmup_lr"] == pytest.approx(1e-6 * lr)
    assert schedule["layer_decay"] == layer_decay
    assert (data["crop_size"], data["resize"]) == (crop, [4 * crop, crop])
    assert data["augmentation"]["class_path"] == "swinv2_tasks.datamodules.ADE20KAugmentation"
    assert data["augmentation"]["init_args"] == {
        "scale_range": [0.5, 2.0], "cat_max_ratio": 0.75, "horizontal_flip": 0.5, "photometric_distortion": True
    }  # fmt: skip
    assert (model["decoder"]["init_args"]["channels"], model["dropout"], model["auxiliary_weight"]) == (512, 0.1, 0.4)
    assert (len(model["inference"]["scales"]), model["inference"]["flip"]) == (scales, scales > 1)
    assert (model["weights"] is not None) == starts_from_weights


def test_the_simmim_config_is_the_published_recipe() -> None:
    """Reference, section 3."""
    config = parse_configs("simmim.yaml")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert config["trainer"]["max_epochs"] == 800
    assert model["backbone"]["class_path"] == "swinv2_tasks.backbone.swinv2_base"
    assert (model["backbone"]["init_args"]["window_size"], model["backbone"]["init_args"]["drop_path_rate"]) == (
        12,
        0.1,
    )
    assert (model["norm_target_patch_size"], model["optimizer"]["init_args"]["weight_decay"]) == (47, 0.05)
    schedule = model["schedule"]
    assert (model["optimizer"]["init_args"]["lr"], schedule["warmup_lr"], schedule["warmup_epochs"]) == (1e-4, 5e-7, 10)
    assert (schedule["milestones"], schedule["gamma"], schedule["base_batch_size"]) == ([700], 0.1, 512)
    assert (data["image_size"], data["mask_patch_size"], data["mask_ratio"]) == (192, 32, 0.6)
    assert data["augmentation"]["class_path"] == "swinv2_tasks.datamodules.CropFlipAugmentation"
    assert data["augmentation"]["init_args"] == {"crop_scale": [0.67, 1.0], "horizontal_flip": 0.5}


CLIP_RECIPES = {
    # patch, window, drop path, weight decay, side, frames, stride, sampling, views, from weights
    "kinetics": ([2, 4, 4], [8, 7, 7], 0.1, 0.02, 224, 32, 2, "dense", [4, 3], False),
    "kinetics_swinv2_small_w7_224": ([2, 4, 4], [8, 7, 7], 0.1, 0.02, 224, 32, 2, "dense", [4, 3], True),
    "kinetics_swinv2_base_w7_224": ([2, 4, 4], [8, 7, 7], 0.3, 0.05, 224, 32, 2, "dense", [4, 3], True),
    "kinetics_swinv2_large_w20_320": ([1, 4, 4], [8, 20, 20], 0.3, 0.05, 320, 8, 8, "segments", [4, 5], True),
    "kinetics_swinv2_giant_w20_320": ([1, 4, 4], [8, 20, 20], 0.3, 0.05, 320, 8, 8, "segments", [4, 5], False),
}
"""Reference, section 3, video, and section 4 for G."""


@pytest.mark.parametrize("name", CLIP_RECIPES)
def test_a_video_config_is_the_published_recipe(name: str) -> None:
    patch, window, drop_path, weight_decay, side, frames, stride, sampling, views, from_weights = CLIP_RECIPES[name]
    config = parse_configs("kinetics.yaml" if name == "kinetics" else f"paper/{name}.yaml")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    backbone, optimizer, schedule = model["backbone"], model["optimizer"]["init_args"], model["schedule"]
    size = "tiny" if name == "kinetics" else name.split("_")[2]
    assert (config["name"], backbone["class_path"]) == (name, f"swinv2_tasks.backbone.swinv2_{size}")
    assert (backbone["init_args"]["patch_size"], backbone["init_args"]["window_size"]) == (patch, window)
    assert backbone["init_args"]["drop_path_rate"] == drop_path
    assert (config["trainer"]["max_epochs"], model["dropout"]) == (30, 0.5)
    assert (optimizer["lr"], optimizer["weight_decay"]) == (1e-3, weight_decay)
    assert (schedule["warmup_epochs"], schedule["backbone_lr_mult"], schedule["base_batch_size"]) == (2.5, 0.1, 64)
    assert (schedule["warmup_lr"], schedule["min_lr"]) == (1e-4, 0)
    assert data["image_size"] == side
    assert {**data["sampling"]} == {"frames": frames, "stride": stride, "mode": sampling, "short": "loop"}
    augmentation = data["augmentation"]["init_args"]
    assert data["views"]["test"] == views
    assert (augmentation["crop_scale"], augmentation["horizontal_flip"]) == ([0.08, 1.0], 0.5)
    assert (model["weights"] is not None) == from_weights


@pytest.mark.parametrize("name", [name for name in COMPLETE if "_giant_" in name])
def test_the_giants_are_trained_with_the_memory_saving_options_of_the_paper(name: str) -> None:
    """Reference, section 3, large models: activation checkpointing, attention in turns in the first two stages."""
    backbone = parse_configs(name)["model"]["init_args"]["backbone"]["init_args"]
    assert backbone["checkpoint_stages"] is True
    assert backbone["attention_chunk_size"] == [1, 1, 0, 0]


@pytest.mark.parametrize("name", RECIPES)
def test_a_paper_config_is_the_published_recipe(name: str) -> None:
    drop_path, windows, window, size, epochs, warmup, lr, warmup_lr, min_lr, weight_decay, layer_decay = RECIPES[name]
    config = parse_configs(f"paper/{name}.yaml")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    backbone, optimizer = model["backbone"]["init_args"], model["optimizer"]["init_args"]
    assert config["name"] == name
    assert model["backbone"]["class_path"] == f"swinv2_tasks.backbone.{name[: name.index('_', 7)]}"
    assert (backbone["window_size"], backbone["drop_path_rate"]) == (window, drop_path)
    assert data["image_size"] == size
    assert (config["trainer"]["max_epochs"], config["trainer"]["gradient_clip_val"]) == (epochs, 5.0)
    assert model["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert (optimizer["weight_decay"], optimizer["betas"], optimizer["eps"]) == (weight_decay, [0.9, 0.999], 1e-8)
    schedule = model["schedule"]
    assert (schedule["warmup_epochs"], schedule["layer_decay"]) == (warmup, layer_decay)
    # Stated for another batch than 512 as well, the rates are the same per image.
    scale = schedule["base_batch_size"] / 512
    rates = (optimizer["lr"] / scale, schedule["warmup_lr"] / scale, schedule["min_lr"] / scale)
    assert rates == pytest.approx((lr, warmup_lr, min_lr))
    assert data["crop_pct"] == (1.0 if size >= 384 else pytest.approx(224 / 256))
    assert (model["weights"] is None) == (windows is None)  # fine-tuning starts from weights, which say their windows
