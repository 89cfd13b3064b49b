"""Images without labels and their masks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from swinv2_tasks.datamodules import CropFlipAugmentation, SimMIMDataModule
from swinv2_tasks.datamodules.datasets.simmim import random_mask
from swinv2_tasks.errors import UserError


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several kinds at several depths, and files that are none."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for k in range(20):
        path = root / ("a/b/c", "a", "", "d e")[k % 4] / f"{k}.{('jpg', 'png', 'webp', 'bmp', 'tiff')[k % 5]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40 + k, 70 - k, 3), dtype=np.uint8)).save(path)
    (root / "notes.txt").write_text("not an image")
    (root / ".hidden.jpg").write_bytes(b"")
    return root


def new_data(root: Path, **arguments: object) -> SimMIMDataModule:
    settings = {"image_size": 64, "mask_patch_size": 16, "batch_size": 4, "num_workers": 0, "val_share": 0.2}
    return SimMIMDataModule(str(root), **{**settings, **arguments})  # type: ignore[arg-type]


def test_images_are_found_at_any_depth_and_some_are_set_aside(photos: Path) -> None:
    data = new_data(photos)
    data.setup("fit")
    train, val = data.train_dataset.paths, data.val_dataset.paths
    assert (len(train), len(val)) == (16, 4)
    assert {str(path.relative_to(photos)) for path in [*train, *val]} == {
        str(path.relative_to(photos)) for path in photos.rglob("[0-9]*.*")
    }
    assert not set(train) & set(val)
    data = new_data(photos, train_dir="a", val_dir="d e")
    data.setup("fit")
    assert len(data.train_dataset.paths) == 10 and {path.parent.name for path in data.val_dataset.paths} == {"d e"}
    with pytest.raises(UserError, match="only one image"):
        alone = photos.parent / "alone"
        alone.mkdir()
        (alone / "0.jpg").write_bytes((photos / "a" / "b" / "c" / "0.jpg").read_bytes())
        new_data(alone).setup("fit")


def test_training_crops_are_the_published_ones(photos: Path) -> None:
    """By the published code's transform, from the same random numbers: bilinear, other than in classification."""
    data = new_data(photos, augmentation=CropFlipAugmentation(horizontal_flip=0.0))
    data.setup("fit")
    published = transforms.Compose(
        [
            transforms.RandomResizedCrop(64, scale=(0.67, 1.0), ratio=(3 / 4, 4 / 3)),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    for index, path in enumerate(data.train_dataset.paths):
        torch.manual_seed(index)
        crop = data.train_dataset[index]["image"]
        torch.manual_seed(index)
        torch.testing.assert_close(crop, published(Image.open(path).convert("RGB")))


def test_batches_hold_images_and_masks_of_their_patches(photos: Path) -> None:
    data = new_data(photos, image_size=(64, 96), mask_ratio=0.5)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 64, 96) and batch["image"].dtype == torch.float32
    assert batch["mask"].shape == (4, 4, 6) and batch["mask"].dtype == torch.bool
    assert batch["mask"].flatten(1).sum(1).tolist() == [12] * 4


@pytest.mark.parametrize(
    ("patches", "ratio", "masked"),
    [((6, 6), 0.6, 22), ((7, 7), 0.6, 30), ((5, 6), 0.1, 3), ((4, 4), 0.0, 0), ((4, 4), 1.0, 16), ((10, 10), 0.29, 29)],
)
def test_the_ratio_is_exact_and_rounded_up(patches: tuple[int, int], ratio: float, masked: int) -> None:
    assert {int(random_mask(patches, ratio).sum()) for _ in range(20)} == {masked}


def test_every_patch_is_masked_as_often() -> None:
    generator = torch.Generator().manual_seed(0)
    share = torch.stack([random_mask((4, 5), 0.6, generator) for _ in range(4000)]).double().mean(0)
    assert (share - 0.6).abs().max() < 0.04  # five standard deviations


def test_masks_differ_between_samples_and_epochs_and_come_back_with_the_seed(photos: Path) -> None:
    def masks(seed: int, epoch: int, workers: int = 0) -> list[tuple[bool, ...]]:
        torch.manual_seed(seed)
        data = new_data(photos, num_workers=workers)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        return [tuple(mask.flatten().tolist()) for batch in loader for mask in batch["mask"]]

    first = masks(0, 0)
    assert max(Counter(first).values()) <= 2 and len(set(first)) > 12  # of 8,008
    assert masks(0, 0) == first and masks(0, 0, workers=2) == first
    assert masks(0, 1) != first and masks(1, 0) != first


def test_an_image_is_evaluated_with_one_mask(photos: Path) -> None:
    data = new_data(photos)
    data.setup("fit")
    masks, again = (torch.cat([batch["mask"] for batch in data.val_dataloader()]) for _ in range(2))
    assert torch.equal(masks, again)
    assert len(set(map(tuple, masks.flatten(1).tolist()))) == len(masks)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image_size": 70}, r"image_size is 70.*Take 64"),
        ({"image_size": (64, 70)}, r"Take \[64, 64\]|Take 64"),
        ({"mask_patch_size": 0}, "mask_patch_size"),
        ({"mask_ratio": 1.2}, "mask_ratio"),
        ({"val_share": 1.0}, "val_share"),
    ],
)
def test_settings_that_do_not_fit(arguments: dict[str, object], words: str, photos: Path) -> None:
    with pytest.raises(UserError, match=words):
        new_data(photos, **arguments)
