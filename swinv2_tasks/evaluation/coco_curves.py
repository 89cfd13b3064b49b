"""What COCO's evaluation computes on the way to its twelve numbers: precision over recall, AP by IoU and size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SIZES = ("all", "small", "medium", "large")
"""Sizes of objects, in COCO's order: any; below 32², up to 96², and above it, in pixels of their area."""

CLASS_NUMBERS = ("ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")
"""What is known of each class beside its AP."""


@dataclass(frozen=True)
class CocoCurves:
    """Precision over recall, by boxes or by masks. NaN where there is no object.

    Attributes:
        recalls: where precision is stated, (R,) in [0, 1].
        ious: from which IoU on a detection counts as right, (T,).
        precision: mean over the classes that have objects, (T, R) in [0, 1].
        ap: for each of ``SIZES`` the mean average precision at each IoU, (T,).
        class_precision: of each category by id, at an IoU of .50, (R,).
        class_scores: likewise the score from which on detections reach a recall; 0 where they do not.
        class_numbers: likewise ``CLASS_NUMBERS``.
    """

    recalls: np.ndarray
    ious: np.ndarray
    precision: np.ndarray
    ap: dict[str, np.ndarray]
    class_precision: dict[int, np.ndarray]
    class_scores: dict[int, np.ndarray]
    class_numbers: dict[int, dict[str, float]]


def mean_of_existing(values: np.ndarray, empty: float) -> float:
    """The mean of the values without −1, which stands for classes without an object; ``empty`` where there is none."""
    values = values[values > -1]
    return float(values.mean()) if len(values) else empty


def read_curves(evaluation: Any) -> CocoCurves:
    """The curves of an accumulated evaluation of pycocotools or faster-coco-eval."""
    precision = np.asarray(evaluation.eval["precision"])[..., -1]  # IoU thresholds, recalls, classes, object sizes
    recall = np.asarray(evaluation.eval["recall"])[..., -1]  # IoU thresholds, classes, object sizes
    scores = np.asarray(evaluation.eval["scores"])[0, :, :, 0, -1]  # recalls, classes
    ids = [int(category) for category in evaluation.params.catIds]
    ap = {
        size: np.array([mean_of_existing(of_iou[..., k], math.nan) for of_iou in precision])
        for k, size in enumerate(SIZES)
    }

    of_classes = precision[..., 0]
    exist = of_classes[0, 0] > -1  # the same at each IoU and recall
    means = of_classes[:, :, exist].mean(2) if exist.any() else np.full(of_classes.shape[:2], math.nan)
    at_half = np.where(exist, of_classes[0], math.nan)
    return CocoCurves(
        recalls=np.asarray(evaluation.params.recThrs),
        ious=np.asarray(evaluation.params.iouThrs),
        precision=means,
        ap=ap,
        class_precision={category: at_half[:, k] for k, category in enumerate(ids)},
        class_scores={category: np.where(exist[k], scores[:, k], math.nan) for k, category in enumerate(ids)},
        class_numbers={category: _numbers(precision[:, :, k], recall[:, k]) for k, category in enumerate(ids)},
    )


def _numbers(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """``CLASS_NUMBERS`` of a class: precision (T, R, sizes) and recall (T, sizes)."""
    values = [precision[0, :, 0], precision[5, :, 0], *(precision[..., k] for k in (1, 2, 3)), recall[:, 0]]
    means = [mean_of_existing(of_class, math.nan) for of_class in values]
    return dict(zip(CLASS_NUMBERS, means, strict=True))


def describe_curves(curves: CocoCurves, names: Mapping[int, str]) -> dict[str, Any]:
    """Curves as JSON has them, with null for NaN; of the classes those that have objects.

    Args:
        curves: by boxes or by masks.
        names: of the categories, by id.
    """
    classes = [
        {
            "id": category,
            "name": name,
            **{key: _plain(value) for key, value in curves.class_numbers[category].items()},
            "precision": _plain_list(curves.class_precision[category]),
            "scores": _plain_list(curves.class_scores[category]),
        }
        for category, name in names.items()
        if category in curves.class_precision and not np.isnan(curves.class_precision[category]).any()
    ]
    return {
        "recalls": _plain_list(curves.recalls),
        "ious": _plain_list(curves.ious),
        "precision": [_plain_list(of_iou) for of_iou in curves.precision],
        "ap": {size: _plain_list(values) for size, values in curves.ap.items()},
        "classes": classes,
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _plain_list(values: Sequence[float] | np.ndarray) -> list[float | None]:
    return [_plain(value) for value in np.asarray(values).tolist()]
