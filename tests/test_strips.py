"""Images that are a thin strip, and videos of a few rows, are read or refused for what their few pixels cost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_masks

from swinv2_tasks.callbacks import segmentation
from swinv2_tasks.callbacks.detection import draw_detections
from swinv2_tasks.callbacks.segmentation import draw_overlay
from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules.readers import images
from swinv2_tasks.evaluation import segmentation as evaluation
from swinv2_tasks.evaluation.segmentation import Confusion
from tests.helpers import motions, objects, photos, scenes, strips, tiny
from tests.helpers.prices import call

MULTI_SCALE = {"scales": [0.5, 1.0, 1.5], "flip": True}

PASTED = {"class_path": "swinv2_tasks.datamodules.ScaleJitterAugmentation", "init_args": {"copy_paste": 0.5}}
CROPPED = {"class_path": "swinv2_tasks.datamodules.MultiScaleAugmentation", "init_args": {"crop": 0.5}}

TASKS: dict[str, tuple[Callable[[Path], Path], Callable[..., Path], dict[str, Any], dict[str, Any], str]] = {
    "classification": (strips.write_classification, tiny.write_config, {}, {"image_size": 224, "crop_pct": 0.9}, "val"),
    "simmim": (strips.write_photos, photos.write_config, {}, {"image_size": 192, "mask_patch_size": 32}, "val"),
    "video": (strips.write_motions, motions.write_config, {}, {"image_size": 224}, "val"),
    "segmentation": (
        strips.write_scenes,
        scenes.write_config,
        {},
        {"crop_size": 512, "resize": [2048, 512]},
        "images/validation",
    ),
    "sliding window": (
        strips.write_scenes,
        scenes.write_config,
        {"inference": {"mode": "slide", **MULTI_SCALE}},
        {"crop_size": 512, "resize": None},
        "images/validation",
    ),
    "detection": (
        strips.write_objects,
        objects.write_config,
        {"inference": MULTI_SCALE},
        {"resize": [1333, 800], "augmentation": CROPPED},
        "val2017",
    ),
    "pasted": (
        strips.write_objects,
        objects.write_config,
        {},
        {"resize": [1333, 800], "augmentation": PASTED},
        "val2017",
    ),
}
"""What writes data and config, settings of the model and the data as published configs have them, what to predict."""


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_strips_are_trained_on_evaluated_and_predicted_or_refused_in_a_line(name: str, tmp_path: Path) -> None:
    write_data, write_config, model, settings, source = TASKS[name]
    root = write_data(tmp_path / "data")
    config = write_config(
        tmp_path / "config.yaml",
        root,
        trainer={"max_epochs": 1},
        model={"init_args": model},
        data={"init_args": {**settings, "batch_size": 2, "faulty_samples": "skip"}},
    )
    if "augmentation" in settings:  # of another class than the config has, whose settings are none of it
        content = yaml.safe_load(config.read_text())
        content["data"]["init_args"]["augmentation"] = settings["augmentation"]
        config.write_text(yaml.safe_dump(content))
    runs = f"--runs={tmp_path / 'runs'}"
    assert "done in" in output_of(["fit", f"--config={config}", runs], tmp_path)
    (checkpoint,) = (tmp_path / "runs").rglob("last.ckpt")
    output_of(["validate", f"--ckpt_path={checkpoint}", runs], tmp_path)

    predictions = [f"--data.source={root / source}", f"--output={tmp_path / 'predictions'}"]
    text = output_of(["predict", f"--ckpt_path={checkpoint}", runs, *predictions], tmp_path, statuses=(0, 1))
    refused = [line for line in text.splitlines() if ("pixels" in line and "Replace" in line) or "too long" in line]
    number = sum(1 for _ in (root / source).rglob("*.*"))
    assert f"{number - len(refused)} predictions" in text


@pytest.mark.slow
def test_predictions_of_strips_are_scored(tmp_path: Path) -> None:
    root = strips.write_scenes(tmp_path / "scenes")
    maps = str(root / "annotations" / "validation")
    arguments = ["score", "ade20k", maps, maps, f"--class_names={root / 'names.txt'}", "--background=ignore"]
    assert "mIoU 1.0000" in output_of(arguments, tmp_path)


def output_of(arguments: list[str], folder: Path, statuses: tuple[int, ...] = (0,)) -> str:
    """What a command prints that takes at most a gigabyte beside the program."""
    cost = call(_main, arguments, folder / "output.txt", seconds=30)
    text = (folder / "output.txt").read_text()
    assert cost.error is None, text
    assert int(cost.text) in statuses, text
    assert cost.growth < 2**30, text
    assert "Traceback" not in text
    return text


def _main(arguments: list[str], output: Path) -> int:
    os.chdir(output.parent)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    return main(arguments)


def test_an_overlay_is_the_same_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (9, 7)).repeat(3, 0).repeat(5, 1).astype(np.uint8)
    image = Image.fromarray(rng.integers(0, 256, (*labels.shape, 3), dtype=np.uint8))
    palette, masks = [(200, 0, 0), (0, 200, 0), (0, 0, 200)], labels == 2
    result = {"category_id": 1, "score": 0.5, "bbox": [3, 4, 9, 9]}
    result["segmentation"] = coco_masks.encode(np.asfortranarray(masks.astype(np.uint8)))

    def draw() -> list[bytes]:
        overlay = draw_overlay(image, labels, ["a", "b", "c"], palette)
        return [overlay.tobytes(), draw_detections(image, [result], {1: "a"}).tobytes()]

    whole, pixels = draw(), image.tobytes()
    for number in (1, 35, 100, 400):
        monkeypatch.setattr(images, "STRIP_PIXELS", number)
        monkeypatch.setattr(segmentation, "STRIP_PIXELS", number)
        assert draw() == whole
    assert image.tobytes() == pixels
    edges = np.zeros(labels.shape, dtype=bool)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    drawn = np.asarray(draw_overlay(image, labels, ["a", "b", "c"], palette))[:, : labels.shape[1]]
    assert not drawn[edges].any()
    blend = (np.asarray(image).astype(int) + np.array([(0, 0, 0), *palette])[labels]) / 2
    assert np.abs(drawn - blend)[~edges].max() < 1


def test_pixels_are_counted_alike_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, labels = torch.randint(-1, 4, (2, 5, 33), generator=torch.Generator().manual_seed(0))
    whole = Confusion(3)
    whole.update(predictions, labels)
    monkeypatch.setattr(evaluation, "CHUNK_PIXELS", 10)
    pieces = Confusion(3)
    pieces.update(predictions, labels)
    assert torch.equal(whole.counts, pieces.counts)
    assert whole.counts.sum() == ((labels >= 0) & (labels < 3)).sum()
