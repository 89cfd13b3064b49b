"""Augmentation of image and mask alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from swinv2_tasks.datamodules import ADE20KAugmentation
from swinv2_tasks.datamodules.transforms.classification import fitting_size
from swinv2_tasks.datamodules.transforms.segmentation_steps import ClassLimitedCrop, RandomRescale

PLAIN = ADE20KAugmentation(scale_range=(1.0, 1.0), cat_max_ratio=1.0, horizontal_flip=0.0, photometric_distortion=False)
LARGE = (1000, 1000)
"""A size that crops nothing."""


def scene(height: int = 60, width: int = 80, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 10 pixels whose gray is 60 times their class."""
    blocks = np.random.default_rng(0).integers(0, classes, (height // 10, width // 10))
    mask = blocks.repeat(10, 0).repeat(10, 1).astype(np.uint8)
    return (mask * 60)[..., None].repeat(3, 2), mask


def test_image_and_mask_stay_aligned_to_the_pixel() -> None:
    """Every pixel's gray tells its class, but beside an edge, where grays are interpolated."""
    image, mask = scene()
    augmentation = ADE20KAugmentation(photometric_distortion=False)
    transform = augmentation.build((48, 40), resize=None)
    flips = set()
    for seed in range(40):
        torch.manual_seed(seed)
        pixels, labels = transform(image, mask)
        assert pixels.shape[:2] == labels.shape and labels.shape <= (48, 40)
        assert set(np.unique(labels)) <= set(range(4))
        inside = np.zeros(labels.shape, dtype=bool)
        inside[2:-2, 2:-2] = True
        for down, across in ((-2, 0), (2, 0), (0, -2), (0, 2), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            inside &= labels == np.roll(labels, (down, across), (0, 1))
        assert inside.mean() > 0.2
        assert (pixels[inside] == 60 * labels[inside][:, None]).all()
        flips.add(pixels.tobytes())
    assert len(flips) == 40


@pytest.mark.parametrize("limits", [None, (100, 40)])
def test_rescaling_keeps_proportions_within_its_range(limits: tuple[int, int] | None) -> None:
    image, mask = scene()
    transform = replace(PLAIN, scale_range=(0.5, 2.0)).build(LARGE, limits)
    heights = []
    for seed in range(200):
        torch.manual_seed(seed)
        height, width = transform(image, mask)[1].shape
        assert width / height == pytest.approx(80 / 60, rel=0.05)
        heights.append(height)
    full = 60 if limits is None else 40  # the short side's limit is the tighter one
    assert full / 2 <= min(heights) < full * 0.55 and full * 1.9 < max(heights) <= 2 * full
    assert np.mean(heights) == pytest.approx(1.25 * full, rel=0.1)


def test_crops_avoid_what_is_nearly_one_class() -> None:
    """Half of the scene is one class: crops wholly within it are taken only where ten in a row are so."""
    mask = np.zeros((40, 200), dtype=np.uint8)
    mask[:, 100:] = np.random.default_rng(0).integers(1, 5, (40, 100))
    image = mask[..., None].repeat(3, 2)
    dominated = {}
    for ratio in (0.75, 1.0):
        transform = replace(PLAIN, cat_max_ratio=ratio).build((40, 40), None)
        shares = []
        for seed in range(200):
            torch.manual_seed(seed)
            labels = transform(image, mask)[1]
            assert labels.shape == (40, 40)
            shares.append(np.bincount(labels.ravel()).max() / labels.size)
        dominated[ratio] = np.mean(np.array(shares) >= 0.75)
    assert dominated[1.0] > 0.35
    assert dominated[0.75] < 0.02


@pytest.mark.parametrize("label", [255, 3])
def test_a_scene_of_one_label_or_none_is_cropped_all_the_same(label: int) -> None:
    mask = np.full((50, 50), label, dtype=np.uint8)
    transform = replace(PLAIN, cat_max_ratio=0.75).build((20, 30), None)
    image, labels = transform(np.zeros((50, 50, 3), dtype=np.uint8), mask)
    assert image.shape == (20, 30, 3) and labels.shape == (20, 30)


def test_ignored_pixels_do_not_count_in_a_crops_shares() -> None:
    """99 % ignored; what is labeled is of two classes in equal parts, so any crop with both will do."""
    mask = np.full((20, 20), 255, dtype=np.uint8)
    mask[9, 9:11] = (1, 2)
    crop = ClassLimitedCrop((18, 18), 0.75)
    for seed in range(20):
        crop.set_random_seed(seed)
        region = crop.get_params_dependent_on_data({}, {"mask": mask})["region"]
        assert {1, 2} <= set(np.unique(mask[region]))


def test_transforms_draw_independently_of_each_other() -> None:
    """Whether an image is flipped says nothing about whether it is made brighter, or of what size it is."""
    image = np.full((40, 40, 3), 100, dtype=np.uint8)
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[:, :20] = 1
    transform = ADE20KAugmentation(cat_max_ratio=1.0).build(LARGE, None)
    rows = []
    for seed in range(400):
        torch.manual_seed(seed)
        pixels, labels = transform(image, mask)
        rows.append([labels[0, 0] == 0, pixels.mean() > 100, pixels.mean() < 100, labels.shape[0]])
    correlation = np.corrcoef(np.array(rows, dtype=float).T)
    assert abs(correlation[0, 1:]).max() < 0.2
    assert abs(correlation[3, :3]).max() < 0.2
    assert 0.4 < np.mean([row[0] for row in rows]) < 0.6


def test_distortion_changes_colors_only() -> None:
    image, mask = scene()
    image = (image + np.array([0, 20, 40], dtype=np.uint8)).astype(np.uint8)
    transform = replace(PLAIN, photometric_distortion=True).build(LARGE, None)
    changed = 0
    for seed in range(20):
        torch.manual_seed(seed)
        pixels, labels = transform(image, mask)
        assert pixels.dtype == np.uint8 and pixels.shape == image.shape
        assert (labels == mask).all()
        changed += (pixels != image).any()
    assert changed > 10


def test_a_seed_of_torch_decides_all() -> None:
    image, mask = scene()
    transform = ADE20KAugmentation().build((32, 32), (96, 72))
    torch.manual_seed(3)
    samples = [transform(image, mask) for _ in range(3)]
    torch.manual_seed(3)
    for (first, labels), (again, same) in zip(samples, [transform(image, mask) for _ in range(3)], strict=True):
        assert (first == again).all() and (labels == same).all()
    assert (samples[0][0].shape != samples[1][0].shape) or (samples[0][0] != samples[1][0]).any()


def test_rescaling_by_itself_is_drawn_from_its_generator() -> None:
    rescale = RandomRescale((64, 64), (0.5, 2.0))
    sizes = {rescale.get_params_dependent_on_data({"shape": (40, 64, 3)}, {})["size"] for _ in range(20)}
    assert len(sizes) > 10


@pytest.mark.parametrize(
    ("size", "limits", "scale", "expected"),
    [
        ((512, 683), (2048, 512), 1.0, (512, 683)),
        ((256, 256), (2048, 512), 1.0, (512, 512)),
        ((100, 1000), (2048, 512), 1.0, (205, 2048)),  # the long side decides
        ((1000, 100), (2048, 512), 0.5, (1024, 102)),
        ((300, 400), None, 1.5, (450, 600)),
        ((1, 2000), (200, 200), 1.0, (1, 200)),
    ],
)
def test_fitting_sizes(
    size: tuple[int, int], limits: tuple[int, int] | None, scale: float, expected: tuple[int, int]
) -> None:
    assert fitting_size(size, limits, scale) == expected
