"""Right and wrong detections, F1 over confidence and confusion: against COCO's tools and by brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from swinv2_tasks.evaluation.detection_errors import (
    IGNORED,
    RIGHT,
    Boxes,
    confidence_curve,
    count_confusions,
    match_classes,
    overlaps,
)
from tests.helpers.evaluated_objects import content_of, evaluate

CLASSES = [3, 5, 90]


def crowded_images(seed: int, images: int = 12) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Images of many overlapping objects, crowds among them, and of detections near them, some of other classes."""
    rng = np.random.default_rng(seed)
    truth, results = [], []
    for k in range(images):
        number = int(rng.integers(0, 9))
        corners, sides = rng.integers(0, 40, (number, 2)), rng.integers(8, 40, (number, 2))
        boxes = np.concatenate([corners, sides], 1).astype(float)
        labels = rng.choice(CLASSES, number)
        annotations = [
            {"image_id": 7 * k, "category_id": int(label), "bbox": box.tolist(), "area": float(box[2] * box[3])}
            | {"iscrowd": int(rng.random() < 0.2)}
            for box, label in zip(boxes, labels, strict=True)
        ]
        truth.append({"image": {"id": 7 * k, "height": 90, "width": 90}, "annotations": annotations})
        for _ in range(int(rng.integers(0, 20)) if number else 3):
            box = boxes[rng.integers(number)] if number else np.array([10.0, 10, 20, 20])
            moved = np.maximum(box + rng.integers(-5, 6, 4), 1).astype(float)
            entry = {"image_id": 7 * k, "category_id": int(rng.choice(CLASSES)), "bbox": moved.tolist()}
            results.append({**entry, "score": float(rng.integers(1, 30) / 30)})
    return content_of(truth), results


def as_boxes(content: dict[str, Any], results: list[dict[str, Any]]) -> tuple[Boxes, Boxes]:
    image_ids = [image["id"] for image in content["images"]]
    return Boxes.of(content["annotations"], image_ids, CLASSES), Boxes.of(results, image_ids, CLASSES)


@pytest.mark.parametrize("seed", range(4))
def test_detections_are_matched_as_by_cocos_tools(seed: int) -> None:
    content, results = crowded_images(seed)
    truth, detections = as_boxes(content, results)
    matches = match_classes(truth, detections)
    evaluated = [entry for entry in evaluate(content, results, "bbox").evalImgs if entry is not None]
    seen = 0
    for entry in evaluated:
        if entry["aRng"] != [0, 1e10]:
            continue
        for number, matched, is_ignored in zip(
            entry["dtIds"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True
        ):
            index = number - 1  # as loadRes counts
            assert matches.objects[index] == matched - 1
            assert (matches.outcomes[index] == IGNORED) == is_ignored
            assert (matches.outcomes[index] == RIGHT) == (matched > 0 and not is_ignored)
            seen += 1
    assert seen == len(results) > 50
    assert (matches.outcomes == IGNORED).any() and (matches.outcomes == RIGHT).any()


@pytest.mark.parametrize("seed", range(3))
def test_the_curve_is_what_counting_at_each_score_gives(seed: int) -> None:
    content, results = crowded_images(seed)
    truth, detections = as_boxes(content, results)
    outcomes = match_classes(truth, detections).outcomes
    objects = int((~truth.crowds).sum())
    curve = confidence_curve(outcomes, detections.scores, objects)
    expected = []
    for threshold in sorted(set(detections.scores.tolist()), reverse=True):
        kept = outcomes[(detections.scores >= threshold) & (outcomes != IGNORED)]
        right, wrong = int((kept == RIGHT).sum()), int((kept != RIGHT).sum())
        if right + wrong:
            expected.append(
                (threshold, right / (right + wrong), right / objects, 2 * right / (right + wrong + objects))
            )
    np.testing.assert_allclose(
        np.stack([curve.thresholds, curve.precision, curve.recall, curve.f1], 1), np.array(expected)
    )
    best = max(expected, key=lambda row: row[3])
    assert curve.best_threshold == best[0]
    precision, recall, f1 = curve.at(np.array([1.1, best[0], 0.0]))
    assert np.isnan(precision[0]) and recall[0] == f1[0] == 0
    assert (precision[1], recall[1], f1[1]) == pytest.approx(best[1:])
    assert (precision[2], recall[2], f1[2]) == pytest.approx(expected[-1][1:])


def test_a_curve_without_detections_is_empty() -> None:
    curve = confidence_curve(np.zeros(0), np.zeros(0), 3)
    assert curve.best is None and curve.best_threshold is None
    precision, recall, f1 = curve.at(np.array([0.0, 0.5]))
    assert np.isnan(precision).all() and not recall.any() and not f1.any()


@pytest.mark.parametrize("seed", range(3))
def test_confusions_are_those_of_brute_force(seed: int) -> None:
    content, results = crowded_images(seed)
    truth, detections = as_boxes(content, results)
    threshold = 0.3
    expected = np.zeros((4, 4), dtype=int)
    for image in range(len(content["images"])):
        objects = [k for k in range(len(truth)) if truth.images[k] == image]
        of_image = [k for k in range(len(detections)) if detections.images[k] == image]
        taken = set()
        for detection in sorted(of_image, key=lambda k: -detections.scores[k]):
            if detections.scores[detection] < threshold:
                continue
            candidates = []
            for k in objects:
                box = detections.boxes[detection][None]
                iou = overlaps(box, truth.boxes[k][None], truth.crowds[k][None])[0, 0]
                if iou >= 0.5 and k not in taken:
                    candidates.append((not truth.crowds[k], iou, k))
            label = detections.labels[detection]
            if not candidates:
                expected[3, label] += 1
                continue
            is_object, _, best = max(candidates)
            if is_object:
                taken.add(best)
                expected[truth.labels[best], label] += 1
        for k in objects:
            if k not in taken and not truth.crowds[k]:
                expected[truth.labels[k], 3] += 1
    counts = count_confusions(truth, detections, 3, threshold)
    np.testing.assert_array_equal(counts, expected)
    assert counts[:3].sum() == (~truth.crowds).sum()


def test_overlaps_are_those_of_areas() -> None:
    rng = np.random.default_rng(0)
    boxes, others = (np.concatenate([rng.integers(0, 9, (5, 2)), rng.integers(1, 9, (5, 2))], 1) * 1.0 for _ in "ab")
    crowds = np.array([False, True, False, True, False])
    grid = np.zeros((2, 5, 20, 20), dtype=bool)
    for index, group in enumerate((boxes, others)):
        for k, (x, y, width, height) in enumerate(group.astype(int)):
            grid[index, k, y : y + height, x : x + width] = True
    for a in range(5):
        for b in range(5):
            union = grid[0, a].sum() if crowds[b] else (grid[0, a] | grid[1, b]).sum()
            expected = (grid[0, a] & grid[1, b]).sum() / union
            assert overlaps(boxes, others, crowds)[a, b] == pytest.approx(expected)
    assert overlaps(boxes[:0], others, crowds).shape == (0, 5)
