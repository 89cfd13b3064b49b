"""Boundary IoU: by brute force, by hand, and as the code of COCO's tools finds the boundary of one mask."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from swinv2_tasks.evaluation.boundaries import boundary_distance, boundary_iou, count_boundaries, near_contours


def blobs(seed: int, size: tuple[int, int], classes: int) -> np.ndarray:
    """A label map of rectangles over one another, with pixels without a label."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(size, dtype=np.int64)
    for _ in range(12):
        top, left = rng.integers(0, size[0] - 5), rng.integers(0, size[1] - 5)
        labels[top : top + rng.integers(3, 30), left : left + rng.integers(3, 30)] = rng.integers(0, classes)
    return labels


def is_near(mask: np.ndarray, distance: int) -> np.ndarray:
    """Pixels of a mask from which one outside of it, or of the image, is within a distance along rows and columns."""
    near = np.zeros(mask.shape, dtype=bool)
    for row, column in np.argwhere(mask):
        for down in range(-distance, distance + 1):
            for right in range(-distance, distance + 1):
                y, x = row + down, column + right
                if not (0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]) or not mask[y, x]:
                    near[row, column] = True
    return near


@pytest.mark.parametrize("classes", [4, 300])
@pytest.mark.parametrize("seed", range(2))
def test_counts_are_those_of_brute_force(seed: int, classes: int) -> None:
    labels, predictions = blobs(seed, (70, 90), classes), blobs(seed + 10, (70, 90), classes)
    predictions[20:50, 20:60] = labels[20:50, 20:60]
    predictions[:3] = classes  # no class
    labels[60:, 50:] = 255 if classes < 255 else -1
    distance = boundary_distance(labels.shape)
    assert distance == 2

    is_labeled = (labels >= 0) & (labels < classes)
    present = np.unique(labels[is_labeled])
    counts = count_boundaries(predictions, labels, classes)
    for k in present:
        is_truth, is_predicted = labels == k, (predictions == k) & is_labeled
        near_truth, near_predicted = is_near(is_truth, distance), is_near(is_predicted, distance)
        both = (near_truth & near_predicted).sum()
        assert counts[:, k].tolist() == [both, near_truth.sum(), near_predicted.sum()]
        assert boundary_iou(counts)[k] == both / (near_truth | near_predicted).sum()


def test_a_boundary_is_that_of_cocos_tools() -> None:
    tools = pytest.importorskip("faster_coco_eval.core.mask")
    mask = np.zeros((150, 200), dtype=np.uint8)
    mask[0:80, 30:150] = 1
    mask[40:120, 100:200] = 1
    code = tools.rleToBoundary(coco_masks.encode(np.asfortranarray(mask)), backend="opencv")
    near = near_contours(mask, boundary_distance(mask.shape), outside=255)
    np.testing.assert_array_equal(near & (mask == 1), coco_masks.decode(code) == 1)


def test_equal_maps_have_one_and_maps_beside_one_another_none() -> None:
    labels = blobs(3, (64, 64), 3)
    iou = boundary_iou(count_boundaries(labels, labels, 4))
    assert iou[np.unique(labels)].tolist() == [1.0] * len(np.unique(labels))
    assert np.isnan(iou[3])
    assert np.nanmax(boundary_iou(count_boundaries((labels + 1) % 4, labels, 4))) == 0
