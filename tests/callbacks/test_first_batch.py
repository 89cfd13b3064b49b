"""The picture of a training's first batch."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image

from swinv2_tasks.callbacks import FirstBatch
from swinv2_tasks.callbacks.batch_pictures import SamplePicture, arrange, draw_samples, name_classes, to_picture
from swinv2_tasks.drawing import distinct_colors
from tests.helpers.tiny import new_trainer
from tests.helpers.tiny_tasks import ON_ONE_DETECTOR, TINY_TASKS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Watch(Callback):
    """Keeps the first batch, as the step gets it, and the state of the generators before and after the picture."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(copy.deepcopy(batch))


def as_pixels(image: torch.Tensor) -> np.ndarray:
    """Computed otherwise: in float64, by NumPy."""
    values = image.double().numpy().transpose(1, 2, 0) * np.array(STD) + np.array(MEAN)
    return np.round(np.clip(values, 0, 1) * 255)


@pytest.mark.parametrize("name", ON_ONE_DETECTOR)
def test_the_picture_shows_the_batch_that_the_step_gets(name: str, tmp_path: Path) -> None:
    tiny = TINY_TASKS[name]
    task, data = tiny.new_task(), tiny.new_data(tiny.write_data(tmp_path / "data", train=8, val=2))
    task.class_names = tiny.names or None
    watch = Watch()
    trainer = new_trainer(tmp_path, watch, FirstBatch(tmp_path), max_steps=1, limit_val_batches=0)
    trainer.fit(task, data)

    batch = watch.batches[0]
    image = batch["clip"][0, 0, :, 0] if name == "video" else batch["images" if "images" in batch else "image"][0]
    if name == "video":  # of several frames each stands for those around it
        frames = batch["clip"].shape[3]
        image = batch["clip"][0, 0, :, int(0.5 * frames / min(frames, 8))]
    expected = as_pixels(image)
    with Image.open(tmp_path / "first_batch.png") as picture:
        shown = np.asarray(picture).astype(int)
    if name == "mask_rcnn":  # enlarged, and drawn upon: what is far from objects is what it was
        assert shown.shape[0] > expected.shape[0] and len(np.unique(shown.reshape(-1, 3), axis=0)) > 50
        return
    height, width = expected.shape[:2]
    assert np.abs(shown[:height, :width] - expected).max() <= 1
    if name in ("segmentation", "simmim"):
        beside = shown[:height, width + 4 : 2 * width + 4]
        is_changed = np.abs(beside - expected).max(axis=2) > 2
        assert is_changed.any()
    if name == "simmim":
        scale = height // batch["mask"].shape[1]
        is_masked = batch["mask"][0].repeat_interleave(scale, 0).repeat_interleave(scale, 1).numpy()
        assert not is_changed[~is_masked].any()
        assert np.abs(beside[is_masked] - 255 * np.array(MEAN)).max() <= 1


def test_only_the_first_batch_of_a_run_is_drawn(tmp_path: Path) -> None:
    tiny = TINY_TASKS["classification"]
    data = tiny.new_data(tiny.write_data(tmp_path / "data", train=8, val=2))
    callback = FirstBatch(tmp_path)
    file = tmp_path / "first_batch.png"

    class Remove(Callback):
        def on_train_batch_end(self, *arguments: Any) -> None:
            file.unlink(missing_ok=True)

    trainer = new_trainer(tmp_path, callback, Remove(), max_epochs=2, limit_val_batches=0, enable_checkpointing=False)
    trainer.fit(tiny.new_task(), data)
    assert trainer.global_step > 2 and not file.exists()


def test_drawing_leaves_batch_and_generators_as_they_are() -> None:
    batch = {"image": torch.randn(2, 3, 8, 8), "label": torch.tensor([0, 1])}
    before = copy.deepcopy(batch)
    states = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # type: ignore[index, union-attr]
    arrange(draw_samples(batch, MEAN, STD, ["a", "b"], 16))
    assert torch.equal(states[0], torch.get_rng_state()) and random.getstate() == states[2]
    assert np.array_equal(states[1], np.random.get_state()[1])  # type: ignore[index]
    assert all(torch.equal(before[key], batch[key]) for key in before)


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        (torch.tensor(1), ["dog"]),
        (torch.tensor(7), ["class 7"]),
        (torch.tensor([0.0, 1.0, 0.0]), ["dog"]),
        (torch.tensor([0.3, 0.7, 0.0]), ["dog 70%", "cat 30%"]),
        (torch.tensor([0.001, 0.001, 0.998]), ["owl 100%"]),  # smoothed
        (torch.tensor([1.0, 1.0, 0.0]), ["cat", "dog"]),
        (torch.tensor([0.2] * 5), ["cat 20%", "dog 20%", "owl 20%", "and 2 more"]),
        (torch.zeros(3), ["no class"]),
        (None, []),
    ],
)
def test_classes_are_named_with_their_shares(label: Any, lines: list[str]) -> None:
    assert name_classes(label, ["cat", "dog", "owl"]) == lines


def test_objects_are_drawn_where_they_are() -> None:
    mask = torch.zeros(2, 450, 600, dtype=torch.uint8)
    mask[0, 210:290, 110:190] = 1
    target = {
        "boxes": torch.tensor([[100.0, 200.0, 200.0, 300.0], [300.0, 100.0, 500.0, 350.0]]),
        "labels": torch.tensor([0, 1]),
        "masks": mask,
    }
    batch = {"images": [torch.zeros(3, 450, 600)], "targets": [target]}
    (picture,) = draw_samples(batch, (0.4, 0.4, 0.4), STD, ["cup", "dog"], 16)
    image = picture.image
    assert picture.lines == ["2 objects", "1 cup, 1 dog"] and image.size == (512, 384)
    pixels = np.asarray(image.resize((600, 450))).astype(int)
    cup = np.array(distinct_colors(1)[0])
    assert np.abs(pixels[240:280, 130:170] - (cup + 102) // 2).max() <= 2
    assert (pixels[320:340, 320:480] == 102).all()  # in a box without a mask
    assert np.abs(pixels[250, 298:303] - np.array(distinct_colors(2)[1])).max(axis=1).min() < 60  # its edge


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_numbers_of_channels_are_shown(channels: int) -> None:
    """Stretched, as values of 16 bits may all be next to black: from the lowest to the highest of each channel."""
    ramp = torch.linspace(0, 1, 600).view(20, 30)
    values = torch.stack([ramp * (0.01 if index % 2 else -0.01) for index in range(channels)])
    pixels = np.asarray(to_picture(values, [0.01] * channels, [1.0] * channels))
    assert pixels.shape == (20, 30, 3)
    assert pixels[0, 0].tolist() == ([255, 255, 255] if channels < 3 else [255, 0, 255])
    assert pixels[-1, -1].tolist() == ([0, 0, 0] if channels < 3 else [0, 255, 0])


def test_batches_of_another_kind_give_no_picture() -> None:
    assert draw_samples(torch.zeros(2, 3), MEAN, STD, [], 4) == []
    assert draw_samples({"tokens": torch.zeros(2, 3)}, MEAN, STD, [], 4) == []


def test_no_more_than_the_samples_asked_for_are_shown_and_long_names_are_cut() -> None:
    batch = {"image": torch.zeros(9, 3, 10, 10), "label": torch.zeros(9, dtype=torch.int64)}
    pictures = draw_samples(batch, MEAN, STD, ["a name\nthat is much too long for what is there below it"], 4)
    assert len(pictures) == 4 and "\n" not in pictures[0].lines[0]
    sheet = arrange(pictures)
    assert sheet.width < 2 * 130
    assert arrange([SamplePicture([Image.new("RGB", (10, 10), "red")], [])]).getpixel((9, 9)) == (255, 0, 0)


def test_values_that_are_no_numbers_are_drawn() -> None:
    image = torch.full((3, 2, 2), torch.nan)
    image[:, 0, 0] = torch.inf
    assert np.asarray(to_picture(image, MEAN, STD)).shape == (2, 2, 3)
