"""Which detections are right, and what the others are: by boxes, at one IoU.

Detections of a class are matched to its objects by COCO's rules (https://cocodataset.org/#detection-eval): the
highest-scoring first, each to the free object that it overlaps most. So the F1 here and COCO's AP count alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_masks

IOU = 0.5
"""From this overlap on a detection is of an object."""

RIGHT, WRONG, IGNORED = 1, 0, -1
"""What a detection is; those of crowds count neither way."""


@dataclass(frozen=True)
class Boxes:
    """Objects or detections in many images.

    Attributes:
        images: index of the image of each, (n,).
        labels: class index of each, (n,).
        boxes: left, top, width, height of each in pixels, (n, 4) float64.
        scores: (n,) in [0, 1]; of objects 1.
        crowds: whether each is a crowd, (n,) bool; of detections none.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    crowds: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def of(cls, entries: Sequence[Mapping[str, Any]], image_ids: Sequence[int], category_ids: Sequence[int]) -> Boxes:
        """Those that annotation files or result files of COCO's format list.

        Args:
            entries: {image_id, category_id, bbox}, with a score or with iscrowd.
            image_ids: of the images, in the order of their indices.
            category_ids: likewise of the classes.

        Raises:
            KeyError: one is of an unknown image or category.
        """
        images = {image_id: index for index, image_id in enumerate(image_ids)}
        labels = {category: index for index, category in enumerate(category_ids)}
        return cls(
            np.array([images[entry["image_id"]] for entry in entries], dtype=np.int64),
            np.array([labels[entry["category_id"]] for entry in entries], dtype=np.int64),
            np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4),
            np.array([entry.get("score", 1.0) for entry in entries], dtype=np.float64),
            np.array([bool(entry.get("iscrowd", 0)) for entry in entries], dtype=bool),
        )


def overlaps(detections: np.ndarray, objects: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """IoU (n, m) of boxes (n, 4) and (m, 4); with a crowd, the share of the detection that lies in it."""
    if not len(detections) or not len(objects):
        return np.zeros((len(detections), len(objects)))
    return np.asarray(coco_masks.iou(detections, objects, crowds.astype(np.uint8).tolist()))


def match(ious: np.ndarray, crowds: np.ndarray, threshold: float = IOU) -> np.ndarray:
    """The object of each detection, (n,): an index, or −1 for none.

    Args:
        ious: (n, m), of detections in order of their scores, the highest first.
        crowds: (m,) bool. A crowd takes any number of detections that no other object takes.
        threshold: least IoU.
    """
    matches = np.full(len(ious), -1, dtype=np.int64)
    own = np.flatnonzero(~crowds)
    free = {int(k) for k in own}
    groups = np.flatnonzero(crowds).tolist()
    for index, row in enumerate(ious.tolist()):
        # Of equal overlaps the last one's object, as in COCO's tools.
        best = max((k for k in free if row[k] >= threshold), key=lambda k: (row[k], k), default=-1)
        if best >= 0:
            free.remove(best)
        else:
            best = max((k for k in groups if row[k] >= threshold), key=lambda k: (row[k], k), default=-1)
        matches[index] = best
    return matches


@dataclass(frozen=True)
class Matches:
    """What became of detections and objects, class by class.

    Attributes:
        outcomes: RIGHT, WRONG or IGNORED for each detection, (n,).
        objects: index of each detection's object, (n,); −1 for none.
        hit_scores: the score of each object's detection, (m,); NaN where none hits it.
    """

    outcomes: np.ndarray
    objects: np.ndarray
    hit_scores: np.ndarray


def match_classes(truth: Boxes, detections: Boxes) -> Matches:
    """Matches the detections of each class in each image to its objects there."""
    outcomes = np.full(len(detections), WRONG, dtype=np.int8)
    objects = np.full(len(detections), -1, dtype=np.int64)
    hit_scores = np.full(len(truth), np.nan)
    classes = 1 + max([*truth.labels.tolist(), *detections.labels.tolist()], default=0)
    of_truth = truth.images * classes + truth.labels
    of_detections = detections.images * classes + detections.labels
    for own, others in _grouped(of_detections, of_truth, detections.scores):
        crowds = truth.crowds[others]
        matches = match(overlaps(detections.boxes[own], truth.boxes[others], crowds), crowds)
        is_matched = matches >= 0
        matched = others[matches[is_matched]]
        objects[own[is_matched]] = matched
        outcomes[own[is_matched]] = np.where(truth.crowds[matched], IGNORED, RIGHT)
        hit_scores[matched] = detections.scores[own[is_matched]]
    return Matches(outcomes, objects, hit_scores)


def _grouped(keys: np.ndarray, others: np.ndarray, scores: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of detections, the highest-scoring first, and of objects that have a key in common."""
    by_key = np.lexsort((-scores, keys))  # stable
    by_other = np.argsort(others, kind="stable")
    common = np.intersect1d(keys, others)
    starts, ends = (np.searchsorted(keys[by_key], common, side) for side in ("left", "right"))
    other_starts, other_ends = (np.searchsorted(others[by_other], common, side) for side in ("left", "right"))
    for start, end, first, last in zip(starts, ends, other_starts, other_ends, strict=True):
        yield by_key[start:end], by_other[first:last]


@dataclass(frozen=True)
class ConfidenceCurve:
    """Precision, recall and F1 of the detections from each score on.

    Attributes:
        thresholds: the scores, (n,), each once, the highest first; empty without detections.
        precision: (n,) in [0, 1].
        recall: (n,) in [0, 1].
        f1: (n,) in [0, 1].
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    @property
    def best(self) -> int | None:
        """Where F1 is highest, at the highest score of several; None without detections."""
        return int(self.f1.argmax()) if len(self.f1) else None

    @property
    def best_threshold(self) -> float | None:
        """The score from which on F1 is highest; None without detections."""
        return None if self.best is None else float(self.thresholds[self.best])

    def at(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Precision, recall and F1 of detections of at least some scores; precision is NaN where there are none."""
        positions = np.searchsorted(-self.thresholds, -thresholds, side="right") - 1
        curves = []
        for values, empty in ((self.precision, np.nan), (self.recall, 0.0), (self.f1, 0.0)):
            curves.append(np.where(positions >= 0, values[positions], empty) if len(values) else positions * 0 + empty)
        return curves[0], curves[1], curves[2]


def confidence_curve(outcomes: np.ndarray, scores: np.ndarray, objects: int) -> ConfidenceCurve:
    """The curve of some detections.

    Args:
        outcomes: RIGHT, WRONG or IGNORED, (n,).
        scores: (n,).
        objects: how many objects there are, without crowds, at least 1.
    """
    counted = outcomes != IGNORED
    order = np.argsort(-scores[counted], kind="stable")
    ordered = scores[counted][order]
    right = np.cumsum(outcomes[counted][order] == RIGHT)
    is_last = np.append(ordered[1:] != ordered[:-1], True) if len(ordered) else np.zeros(0, dtype=bool)
    right = right[is_last]
    detected = np.arange(1, len(ordered) + 1)[is_last]
    return ConfidenceCurve(ordered[is_last], right / detected, right / objects, 2 * right / (detected + objects))


def count_confusions(truth: Boxes, detections: Boxes, classes: int, threshold: float) -> np.ndarray:
    """What objects are detected as: int64 (classes + 1, classes + 1), classes of objects down, of detections across.

    Detections of all classes are matched together. The last row is of detections where there is no object, the last
    column of objects that nothing detects; detections of crowds and crowds are left out.

    Args:
        truth: objects.
        detections: likewise.
        classes: how many there are.
        threshold: least score of detections that count.
    """
    objects, detected = match_images(truth, detections, threshold)
    counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    is_of_object = objects >= 0
    kept, matched = detected[is_of_object], objects[is_of_object]
    counted = ~truth.crowds[matched]
    np.add.at(counts, (truth.labels[matched[counted]], detections.labels[kept[counted]]), 1)
    np.add.at(counts, (classes, detections.labels[detected[~is_of_object]]), 1)
    is_missed = ~truth.crowds
    is_missed[matched] = False
    np.add.at(counts, (truth.labels[is_missed], classes), 1)
    return counts


def match_images(truth: Boxes, detections: Boxes, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The object, of whatever class, of each detection from a score on.

    Returns:
        Its index or −1, and the detection's own index, (n,) each.
    """
    chosen = np.flatnonzero(detections.scores >= threshold)
    objects = np.full(len(detections), -1, dtype=np.int64)
    for own, others in _grouped(detections.images[chosen], truth.images, detections.scores[chosen]):
        crowds = truth.crowds[others]
        matches = match(overlaps(detections.boxes[chosen[own]], truth.boxes[others], crowds), crowds)
        objects[chosen[own[matches >= 0]]] = others[matches[matches >= 0]]
    return objects[chosen], chosen
