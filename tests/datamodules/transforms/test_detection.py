"""Augmentation of detection: boxes are bounds of masks, and both follow the image, whatever the pipeline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from swinv2_tasks.datamodules import DetectionAugmentation, MultiScaleAugmentation, ScaleJitterAugmentation
from swinv2_tasks.datamodules.readers.annotations import rasterize
from swinv2_tasks.datamodules.readers.packed_images import CocoObject
from swinv2_tasks.datamodules.transforms.detection_steps import (
    DetectionTransform,
    HorizontalFlip,
    RandomCrop,
    RandomShortestSize,
)
from swinv2_tasks.datamodules.transforms.scenes import Scene, mask_bounds, paste_objects
from swinv2_tasks.sample_data.writer import annotation


@dataclass(frozen=True)
class FlipAugmentation(DetectionAugmentation):
    """Nothing but a horizontal flip."""

    horizontal_flip: float = 0.0

    def build(self, masks: bool) -> DetectionTransform:
        return DetectionTransform([HorizontalFlip(p=self.horizontal_flip)], masks)


AUGMENTATIONS: dict[str, Any] = {
    "multi_scale": MultiScaleAugmentation(min_size=(80, 160), min_size_step=16, max_size=220),
    "resize_crop": MultiScaleAugmentation(min_size=(80, 160), min_size_step=16, max_size=220, crop=1.0),
    "jitter": ScaleJitterAugmentation(target_size=128, scale_range=(0.3, 2.0)),
    "nothing": FlipAugmentation(),
}


def scene(seed: int, height: int = 120, width: int = 150) -> tuple[np.ndarray, list[CocoObject], list[np.ndarray]]:
    """Discs, boxes and triangles as polygons, run lengths and plain boxes.

    The image's color channel k says where the k-th object is.
    """
    rng = np.random.default_rng(seed)
    image, objects, masks = np.zeros((height, width, 3), np.uint8), [], []
    for k in range(3):
        mask = np.zeros((height, width), np.uint8)
        middle = rng.integers((20, 20), (width - 20, height - 20))
        size = rng.integers(8, 30, 2)
        if k == 0:
            cv2.ellipse(mask, middle.tolist(), size.tolist(), 0, 0, 360, 1, -1)
        else:
            cv2.rectangle(mask, (middle - size // 2).tolist(), (middle + size // 2).tolist(), 1, -1)
        image[..., k] = 255 * mask
        entry = annotation(mask.astype(bool), crowd=k == 1)  # run lengths
        segmentation = None if k == 2 else entry["segmentation"]
        objects.append(CocoObject(k, k, tuple(entry["bbox"]), entry["area"], False, segmentation))
        masks.append(mask)
    return image, objects, masks


def overlap(mask: np.ndarray, other: np.ndarray) -> float:
    return float((mask & other).sum() / max(1, (mask | other).sum()))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_boxes_are_bounds_of_masks_and_masks_lie_on_their_objects(name: str, flip: float, seed: int) -> None:
    torch.manual_seed(seed)
    image, objects, _ = scene(seed)
    sample = replace(AUGMENTATIONS[name], horizontal_flip=flip).build(masks=True)(image, objects, image[..., 0])
    height, width = sample["image"].shape[:2]
    masks = sample["masks"]
    assert masks is not None and masks.dtype == np.uint8 and masks.shape == (len(sample["labels"]), height, width)
    assert sample["boxes"].dtype == np.float32 and sample["labels"].dtype == np.int64
    for box, label, mask in zip(sample["boxes"], sample["labels"], masks, strict=True):
        there = sample["image"][..., label] > 127
        if label == 2:  # only a box: it stays a box, around the object and within the image
            assert not mask.any()
            assert 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height
            mask = np.zeros_like(there)
            left, top, right, bottom = np.round(box).astype(int)
            mask[top:bottom, left:right] = 1
        else:
            assert box.tolist() == mask_bounds(mask).tolist()  # type: ignore[union-attr]
        if there.sum() > 200:
            assert overlap(mask.astype(bool), there) > 0.85
    for label in range(3):  # nothing that is to be seen is lost
        if (sample["image"][..., label] > 127).sum() > 30:
            assert label in sample["labels"]
    assert sample["stuff"] is not None and sample["stuff"].shape == (height, width)
    if ((sample["image"][..., 0] > 127).sum()) > 200:
        assert overlap(sample["stuff"] > 127, sample["image"][..., 0] > 127) > 0.85


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_boxes_without_masks_are_those_with_masks_to_a_pixel(name: str) -> None:
    for seed in range(6):
        image, objects, _ = scene(seed)
        both = []
        for masks in (True, False):
            torch.manual_seed(seed)
            both.append(replace(AUGMENTATIONS[name], horizontal_flip=0.5).build(masks)(image, objects))
        with_masks, without = both
        assert without["masks"] is None and (with_masks["image"] == without["image"]).all()
        for box, label in zip(with_masks["boxes"], with_masks["labels"], strict=True):
            if label == 1 and min(box[2:] - box[:2]) > 3:  # upright: what is cut off is cut off from both
                (other,) = without["boxes"][without["labels"] == 1]
                assert np.abs(box - other).max() <= 1.5


def test_an_untouched_polygon_is_drawn_as_annotated() -> None:
    image, objects, masks = scene(3)
    sample = FlipAugmentation().build(masks=True)(image, objects)
    for k in (0, 1):
        assert (sample["masks"][k] == masks[k]).all()  # type: ignore[index]
    flipped = FlipAugmentation(1.0).build(masks=True)(image, objects)
    assert (flipped["image"] == image[:, ::-1]).all()
    for k in (0, 1):
        assert (flipped["masks"][k] == masks[k][:, ::-1]).mean() > 0.999  # type: ignore[index]
    assert flipped["boxes"][1].tolist() == [150 - sample["boxes"][1][2], *sample["boxes"][1][1:2].tolist(),
                                             150 - sample["boxes"][1][0], sample["boxes"][1][3]]  # fmt: skip


def test_short_sides_are_drawn_from_the_list_and_long_ones_limited() -> None:
    torch.manual_seed(0)
    image, objects, _ = scene(0, 100, 200)
    transform = DetectionTransform([RandomShortestSize([50, 80, 120], 200)], masks=True)
    shapes = {transform(image, objects)["image"].shape[:2] for _ in range(30)}
    assert shapes == {(50, 100), (80, 160), (100, 200)}


def test_crops_are_drawn_from_their_range() -> None:
    torch.manual_seed(0)
    image, objects, _ = scene(0, 100, 200)
    transform = DetectionTransform([RandomCrop(60, 120)], masks=True)
    heights, widths = zip(*(transform(image, objects)["image"].shape[:2] for _ in range(60)), strict=True)
    assert min(heights) >= 60 and max(heights) <= 100 and len(set(heights)) > 10
    assert min(widths) >= 60 and max(widths) <= 120 and len(set(widths)) > 10


def test_augmentation_follows_torchs_seed() -> None:
    image, objects, _ = scene(0)
    transform = AUGMENTATIONS["resize_crop"].build(masks=True)
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append(transform(image, objects))
    assert all(np.array_equal(runs[0][key], runs[1][key]) for key in ("image", "boxes", "masks"))  # type: ignore[literal-required]
    assert not np.array_equal(runs[0]["image"], runs[2]["image"])


def test_nothing_annotated_is_nothing() -> None:
    image, _, _ = scene(0)
    sample = AUGMENTATIONS["jitter"].build(masks=True)(image, [])
    assert sample["boxes"].shape == (0, 4) and sample["labels"].shape == (0,)
    assert sample["masks"] is not None and sample["masks"].shape == (0, *sample["image"].shape[:2])


# ---- copy-paste


def transform_scene(seed: int, **size: int) -> Scene:
    torch.manual_seed(seed)
    image, objects, _ = scene(seed, **size)
    return FlipAugmentation().build(masks=True)(image, objects[:2], np.zeros(image.shape[:2], np.uint8))


@pytest.mark.parametrize("seed", range(8))
def test_pasted_objects_hide_what_lies_below(seed: int) -> None:
    sample, other = transform_scene(seed), transform_scene(seed + 100, height=90, width=170)
    before = {key: None if value is None else value.copy() for key, value in sample.items()}  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    pasted = paste_objects(sample, other)
    assert pasted["masks"] is not None and pasted["stuff"] is not None
    assert pasted["image"].shape == sample["image"].shape
    assert all(np.array_equal(sample[key], before[key]) for key in ("image", "masks", "boxes"))  # type: ignore[literal-required]
    for box, mask in zip(pasted["boxes"], pasted["masks"], strict=True):
        assert box.tolist() == mask_bounds(mask).tolist()  # type: ignore[union-attr]
    changed = (pasted["image"] != sample["image"]).any(2)
    new = [k for k in range(len(pasted["masks"])) if not any((pasted["masks"][k] <= m).all() for m in sample["masks"])]  # type: ignore[union-attr]
    over = np.any([pasted["masks"][k] for k in new], axis=0) if new else np.zeros(changed.shape, bool)
    assert not (changed & ~over).any()
    assert ((pasted["stuff"] == 255) == over).all() or not new
    for k, mask in enumerate(pasted["masks"]):
        if k not in new:
            assert not (mask.astype(bool) & over).any()
    assert (pasted["masks"].sum(0)[over] >= 1).all()


def test_objects_that_are_only_boxes_stay_when_others_are_pasted() -> None:
    sample, other = transform_scene(0), transform_scene(1)
    assert sample["masks"] is not None
    sample["masks"][1] = 0
    for seed in range(5):
        torch.manual_seed(seed)
        pasted = paste_objects(sample, other)
        assert any((box == sample["boxes"][1]).all() for box in pasted["boxes"])


@pytest.mark.parametrize("seed", range(10))
def test_drawing_polygons_after_a_crop_is_cropping_the_drawing(seed: int) -> None:
    """But for pixels that the outline goes through: pycocotools rounds numbers below 0 up instead of down."""
    rng = np.random.default_rng(seed)
    polygon = (100 * rng.random(2 * rng.integers(3, 9))).tolist()
    whole = rasterize([polygon], 100, 100, "")
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
    edge = (cv2.dilate(whole, cross) != cv2.erode(whole, cross))[15:55, 30:65]
    moved = rasterize([[x - (30, 15)[k % 2] for k, x in enumerate(polygon)]], 40, 35, "")
    assert (moved == whole[15:55, 30:65])[~edge].all()
