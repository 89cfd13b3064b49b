"""ADE20K's layout, from files to batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from swinv2_tasks.datamodules import ADE20KAugmentation, ADE20KDataModule, SegmentationAugmentation
from swinv2_tasks.datamodules.scene_classes import ADE20K_COLORS, ADE20K_NAMES, colors, scene_class_names
from swinv2_tasks.errors import UserError
from tests.helpers.scenes import COLORS, DATA, NAMES, write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return write_scenes(tmp_path_factory.mktemp("scenes"))


def new_data(root: Path | None, stage: str = "fit", **arguments: Any) -> ADE20KDataModule:
    data = ADE20KDataModule(root and str(root), **{**DATA, "class_names": NAMES, **arguments})
    data.setup(stage)
    return data


# ---- batches


def test_training_batches_are_crops_of_images_and_classes(scenes: Path) -> None:
    torch.manual_seed(0)
    batches = list(new_data(scenes, batch_size=5).train_dataloader())
    assert len(batches) == 2  # of twelve scenes
    for batch in batches:
        assert batch["image"].shape == (5, 3, 32, 32) and batch["image"].dtype == torch.float32
        assert batch["mask"].shape == (5, 32, 32) and batch["mask"].dtype == torch.int64
        assert set(batch["mask"].unique().tolist()) <= {0, 1, 2, 255}
        assert all(Path(path).is_file() for path in batch["path"])


def test_a_pixels_color_is_that_of_its_class(scenes: Path) -> None:
    """Normalized by the mean and deviation stated; resized, cropped and flipped alike."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    data = new_data(scenes, augmentation=ADE20KAugmentation(photometric_distortion=False), mean=mean, std=std)
    torch.manual_seed(0)
    means = np.zeros((3, 3))
    for batch in data.train_dataloader():
        pixels = batch["image"] * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
        for k in range(3):
            chosen = pixels.movedim(1, -1)[batch["mask"] == k]
            means[k] = chosen.mean(0).numpy() * 255
    assert abs(means - COLORS[1:]).max() < 25  # edges blend


def test_small_images_are_filled_up_and_the_filling_ignored(scenes: Path) -> None:
    whole = ADE20KAugmentation(scale_range=(1.0, 1.0), horizontal_flip=0.0, cat_max_ratio=1.0)
    data = new_data(scenes, crop_size=(64, 80), resize=None, augmentation=whole)
    batch = next(iter(data.train_dataloader()))
    for image, mask, path in zip(batch["image"], batch["mask"], batch["path"], strict=True):
        with Image.open(path) as original:
            width, height = original.size
        assert not image[:, height:].any() and not image[:, :, width:].any()
        assert (mask[height:] == 255).all() and (mask[:, width:] == 255).all()
        assert (mask[:height, :width] != 255).float().mean() > 0.9


def test_evaluation_keeps_proportions_and_the_labels_own_size(scenes: Path) -> None:
    data = new_data(scenes, "validate", resize=(96, 64), batch_size=4)
    batches = list(data.val_dataloader())
    assert len(batches) == 5
    for batch in batches:
        name = Path(batch["path"][0]).stem
        labels = np.asarray(Image.open(scenes / "annotations" / "validation" / f"{name}.png")).astype(int)
        height, width = labels.shape
        factor = min(96 / max(labels.shape), 64 / min(labels.shape))
        assert batch["image"].shape == (1, 3, round(height * factor), round(width * factor))
        assert (batch["mask"][0].numpy() == np.where(labels == 0, 255, labels - 1)).all()


SCALES = (0.5, 0.75, 1.25, 1.5, 1.75)


@pytest.mark.parametrize(
    ("limits", "sides"),
    [
        # Long and short side of the file, then at the scales: limits are scaled and cut down to whole pixels first.
        ((96, 33), {(48, 36): [(21, 16), (32, 24), (55, 41), (65, 49), (76, 57)]}),
        (None, {(48, 36): [(24, 18), (36, 27), (60, 45), (72, 54), (84, 63)]}),
        (None, {(45, 33): [(22, 16), (33, 24), (56, 41), (67, 49), (78, 57)]}),
    ],
)
def test_scales_are_made_of_the_files_pixels(limits: Any, sides: dict[Any, Any], scenes: Path) -> None:
    """As the published code does it, which then interpolates whole gray levels."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    arguments: dict[str, Any] = {"resize": limits, "mean": mean, "std": std}
    predicted = new_data(None, "predict", source=str(scenes / "images" / "validation"), **arguments)
    evaluated = new_data(scenes, "validate", **arguments)
    compared = 0
    for batch in [*evaluated.val_dataloader(), *predicted.predict_dataloader()]:
        pixels = cv2.imread(batch["path"][0])[..., ::-1]
        (rescaled,) = batch["rescaled"]
        file_size = (max(pixels.shape[:2]), min(pixels.shape[:2]))
        for scale, (long, short) in zip(SCALES, sides.get(file_size, []), strict=False):
            height, width = (long, short) if pixels.shape[0] > pixels.shape[1] else (short, long)
            expected = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
            torch.testing.assert_close(
                rescaled(scale)[0].movedim(0, -1), torch.from_numpy((expected - mean) / std).float()
            )
            compared += 1
        torch.testing.assert_close(rescaled(1.0), batch["image"])
    assert compared >= 2 * len(SCALES)


def test_images_may_keep_their_size(scenes: Path) -> None:
    for batch in new_data(scenes, "validate", resize=None).val_dataloader():
        assert batch["image"].shape[2:] == batch["mask"].shape[1:]


def test_prediction_needs_images_only(scenes: Path) -> None:
    source = scenes / "images" / "validation"
    batches = list(new_data(None, "predict", source=str(source)).predict_dataloader())
    assert [Path(batch["path"][0]).name for batch in batches] == [f"scene_{k}.jpg" for k in range(5)]
    for batch in batches:
        with Image.open(batch["path"][0]) as image:
            assert batch["size"] == image.size[::-1]
        assert min(batch["image"].shape[2:]) == 32
    with pytest.raises(UserError, match=r"data\.source"):
        new_data(None, "predict")


def test_batches_are_reproducible_whatever_the_number_of_workers(scenes: Path) -> None:
    runs = []
    for seed, workers in ((0, 0), (0, 2), (1, 0)):
        torch.manual_seed(seed)
        runs.append(list(new_data(scenes, num_workers=workers).train_dataloader()))
    for batch, other in zip(runs[0], runs[1], strict=True):
        assert batch["path"] == other["path"]
        assert torch.equal(batch["image"], other["image"]) and torch.equal(batch["mask"], other["mask"])
    assert not torch.equal(runs[0][0]["image"], runs[2][0]["image"])


def test_real_pairs(real_data: Path) -> None:
    data = ADE20KDataModule(str(real_data / "ade-mini"), num_workers=0)
    data.setup("validate")
    for batch in data.val_dataloader():
        assert min(batch["image"].shape[2:]) == 512
        labels = set(batch["mask"].unique().tolist()) - {255}
        assert labels and max(labels) < 150
    camvid = real_data / "camvid"
    data = ADE20KDataModule(str(camvid), class_names=str(camvid / "objectInfo.txt"), num_workers=0, batch_size=4)
    data.setup("fit")
    assert (data.num_classes, data.train_samples) == (11, 92)
    assert data.class_ids == list(range(1, 12))
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 512, 512)
    assert set(batch["mask"].unique().tolist()) <= {*range(11), 255}


# ---- classes


def test_without_a_list_the_classes_are_ade20ks() -> None:
    data = ADE20KDataModule()
    assert data.class_names == list(ADE20K_NAMES)
    assert data.class_ids == list(range(1, 151))
    assert (data.class_names[0], data.class_names[20], data.class_names[149]) == ("wall", "car", "flag")


def test_ade20ks_own_table_says_the_same(real_data: Path) -> None:
    assert scene_class_names(real_data / "ade-mini" / "objectInfo150.txt") == list(ADE20K_NAMES)


@pytest.mark.parametrize(
    "text",
    [
        "red clay\ngreen moss\nblue slate\n",
        "\nred clay, terracotta\ngreen moss\n\nblue slate, schist, stone\n",
        "Idx\tRatio\tName\n1\t0.5\tred clay, terracotta\n2\t0.3\tgreen moss \n3\t0.2\tblue slate\n",
    ],
)
def test_class_lists_are_names_line_by_line_or_a_table(text: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    assert scene_class_names(tmp_path / "names.txt") == NAMES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "0 classes"),
        ("a\n", "one class, a"),
        ("a\n" * 255, "255 classes"),
        ("Idx\tName\n1\ta\n2\n", "number of columns"),
    ],
)
def test_class_lists_that_cannot_be_are_reported(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        _ = ADE20KDataModule(class_names=str(tmp_path / "names.txt")).class_names
    with pytest.raises(UserError, match=r"missing\.txt"):
        _ = ADE20KDataModule(class_names=str(tmp_path / "missing.txt")).class_names


def test_every_class_has_a_color() -> None:
    assert colors(150) == list(ADE20K_COLORS)
    many = colors(254)
    assert len(many) == 254 and all(0 <= value <= 255 for color in many for value in color)
    assert len(set(many)) == 254


# ---- mistakes


def corrupt_scenes(root: Path, corrupt: Any) -> Path:
    """Scenes of which the training pair scene_2 was corrupted."""
    write_scenes(root)
    corrupt(root / "images" / "training" / "scene_2.jpg", root / "annotations" / "training" / "scene_2.png")
    return root


def read_all(data: ADE20KDataModule) -> None:
    for index in range(data.train_samples):
        _ = data.train_dataset[index]  # type: ignore[index]


PAIRS = {
    "no mask": (lambda image, mask: mask.unlink(), "scene_2.jpg"),
    "another size": (lambda image, mask: Image.new("L", (20, 30)).save(mask), "20×30 pixels"),
    "colors": (lambda image, mask: Image.new("RGB", (33, 45)).save(mask), "colors"),
    "16 bits": (lambda image, mask: Image.fromarray(np.ones((45, 33), np.uint16)).save(mask), "8-bit"),
    "too large a label": (lambda image, mask: Image.new("L", (33, 45), 4).save(mask), r": 4 is no class .*4: 1,485 \("),
    "a broken image": (lambda image, mask: image.write_bytes(image.read_bytes()[:300]), "Cannot read the image"),
}


@pytest.mark.parametrize(("corrupt", "words"), PAIRS.values(), ids=PAIRS)
def test_a_pair_that_is_none_is_reported_with_its_file(corrupt: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as error:
        read_all(new_data(corrupt_scenes(tmp_path / "scenes", corrupt)))
    assert "scene_2" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("corrupt", [corrupt for corrupt, _ in PAIRS.values()], ids=PAIRS)
def test_by_policy_such_a_pair_is_left_out(corrupt: Any, tmp_path: Path) -> None:
    data = new_data(corrupt_scenes(tmp_path / "scenes", corrupt), faulty_samples="skip", batch_size=3)
    batches = list(data.train_dataloader())
    assert sum(len(batch["image"]) for batch in batches) == 11
    assert [Path(name).name for name in data.faults.skipped] == ["scene_2.jpg"]


def test_missing_folders_are_reported(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root"):
        new_data(None)
    with pytest.raises(UserError, match="nowhere"):
        new_data(tmp_path / "nowhere")
    with pytest.raises(UserError, match="elsewhere"):
        new_data(scenes, train_dir="elsewhere")
    (tmp_path / "images" / "training").mkdir(parents=True)
    with pytest.raises(UserError, match="annotations"):
        new_data(tmp_path)
    (tmp_path / "annotations" / "training").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no image"):
        new_data(tmp_path)


def test_names_without_overlap_are_reported_with_an_example(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "scenes")
    for mask in (root / "annotations" / "training").iterdir():
        mask.rename(mask.with_name(f"label_{mask.name}"))
    for policy in ("error", "skip"):
        with pytest.raises(UserError, match=r"None of the 12 images .*scene_0\.png") as error:
            new_data(root, faulty_samples=policy)
        assert "images/training" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"resize": (512, 2048)}, "resize"),
        ({"resize": (512, 0)}, "resize"),
        ({"crop_size": 0}, "crop_size"),
        ({"crop_size": (32, -1)}, "crop_size"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_arguments_out_of_range_are_reported(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ADE20KDataModule(**arguments)


@pytest.mark.parametrize(
    "wrong",
    [{"scale_range": (2.0, 0.5)}, {"scale_range": (0.0, 1.0)}, {"cat_max_ratio": 1.5}, {"horizontal_flip": -0.5}],
    ids=str,
)
def test_settings_of_the_augmentation_out_of_range_are_reported(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"data\.augmentation\.{next(iter(wrong))} is"):
        ADE20KAugmentation(**wrong)


@dataclass(frozen=True)
class Enlarged(SegmentationAugmentation):
    """Every pixel twice in each direction."""

    def build(self, crop_size: tuple[int, int], resize: tuple[int, int] | None) -> Any:
        return lambda image, mask: (image.repeat(2, 0).repeat(2, 1), mask.repeat(2, 0).repeat(2, 1))


def test_an_augmentation_that_gives_more_than_a_crop_is_refused(scenes: Path) -> None:
    data = new_data(scenes, augmentation=Enlarged())
    with pytest.raises(UserError, match=r"data.augmentation gives an image of .* at most data.crop_size, 32×32"):
        next(iter(data.train_dataloader()))
