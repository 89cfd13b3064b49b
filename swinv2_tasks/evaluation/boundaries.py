"""Boundary IoU of label maps: https://arxiv.org/abs/2103.16562.

Of each class only the pixels count that lie within a distance of its contour: of large objects, whose inner pixels
outnumber all others, the IoU says little about their outlines. Here counts are of all images together, as mIoU's are.
Pixels without a label are left out of the predictions too, so that their contour is the same in both.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

DISTANCE = 0.02
"""Pixels that count lie within this share of the image's diagonal of the contour; the paper's choice."""


def boundary_distance(size: tuple[int, int]) -> int:
    """How far from its contour a class's pixels count in an image (height, width), in pixels, at least 1."""
    return max(1, round(DISTANCE * float(np.hypot(*size))))


def near_contours(labels: np.ndarray, distance: int, outside: int) -> np.ndarray:
    """Which pixels have one of another value within a distance along rows and columns: bool (H, W).

    What is beyond the image counts as another value, as in the paper's code.

    Args:
        labels: uint8 or uint16 (H, W).
        distance: in pixels; a square of 2·distance + 1 pixels is looked at.
        outside: the largest value of the type, which stands for no class.
    """
    padded = cv2.copyMakeBorder(labels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=outside)
    square = np.ones((3, 3), np.uint8)
    lowest = cv2.erode(padded, square, iterations=distance)
    highest = cv2.dilate(padded, square, iterations=distance)
    return (lowest != highest)[1:-1, 1:-1]


def small_type(classes: int) -> Any:
    """The smallest type of class indices whose largest value stands for no class."""
    return np.uint8 if classes < 255 else np.uint16


def count_boundaries(predictions: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Pixels near the contours of each class of an image: int64 (3, classes), in both maps, labeled, and predicted.

    Boundary IoU is the first over the sum of the others without it.

    Args:
        predictions: integers (H, W), class indices; others are no class.
        labels: likewise; those outside of [0, classes) are left out.
        classes: number of classes.
    """
    dtype = small_type(classes)
    outside = int(np.iinfo(dtype).max)
    is_labeled = (labels >= 0) & (labels < classes)
    is_predicted = is_labeled & (predictions >= 0) & (predictions < classes)
    truth = np.where(is_labeled, labels, outside).astype(dtype)
    predicted = np.where(is_predicted, predictions, outside).astype(dtype)

    distance = boundary_distance((labels.shape[0], labels.shape[1]))
    near_truth = near_contours(truth, distance, outside)
    near_predicted = near_contours(predicted, distance, outside)
    counted = (truth[near_truth & near_predicted & (truth == predicted)], truth[near_truth], predicted[near_predicted])
    return np.stack([np.bincount(values, minlength=outside + 1)[:classes] for values in counted])


def boundary_iou(counts: np.ndarray) -> np.ndarray:
    """Boundary IoU of each class, (K,) in [0, 1], of counts (3, K); NaN where it is neither labeled nor predicted."""
    both, labeled, predicted = counts.astype(np.float64)
    union = labeled + predicted - both
    return np.divide(both, union, out=np.full(union.shape, np.nan), where=union > 0)
