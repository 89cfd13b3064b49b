"""Bootstrap intervals against scipy, and average precision against pycocotools; what they hold is what they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from swinv2_tasks.evaluation.bootstrap import (
    RankedDetections,
    average_precisions,
    draw_weights,
    mean_difference,
    precision_difference,
    ratio_differences,
)
from swinv2_tasks.evaluation.coco import coco_scores


def test_the_interval_of_a_mean_is_scipys() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(400) < 0.6, rng.random(400) < 0.7
    own = mean_difference(first, second, draws=4000)
    other = stats.bootstrap(
        (first.astype(float), second.astype(float)),
        lambda a, b, axis: b.mean(axis) - a.mean(axis),
        paired=True, vectorized=True, n_resamples=4000, method="percentile", rng=np.random.default_rng(1),
    )  # fmt: skip
    assert own.value == second.mean() - first.mean()
    assert own.low == pytest.approx(other.confidence_interval.low, abs=0.008)
    assert own.high == pytest.approx(other.confidence_interval.high, abs=0.008)


def test_ninety_five_of_a_hundred_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        first, second = rng.random(150) < 0.5, rng.random(150) < 0.6
        difference = mean_difference(first, second, seed=trial, draws=500)
        hits += difference.low <= 0.1 <= difference.high
    assert 180 <= hits <= 199


def test_ratios_are_those_of_sums_and_their_intervals_those_of_draws() -> None:
    rng = np.random.default_rng(0)
    unions = rng.integers(1, 100, (30, 3)).astype(float)
    first, second = rng.random((30, 3)) * unions, rng.random((30, 3)) * unions
    unions[:, 2] = first[:, 2] = second[:, 2] = 0  # a class that is nowhere
    differences = ratio_differences((first, unions), (second, unions), draws=300)
    drawn = np.random.default_rng(0).integers(30, size=(300, 30))
    for k in range(2):
        total = unions[:, k].sum()
        assert differences[k].value == pytest.approx((second[:, k].sum() - first[:, k].sum()) / total)
        values = [(second[chosen, k].sum() - first[chosen, k].sum()) / unions[chosen, k].sum() for chosen in drawn]
        assert (differences[k].low, differences[k].high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    assert np.isnan(differences[2].value)


def test_all_draws_come_in_chunks() -> None:
    parts = [*draw_weights(2_000_000, 0, draws=5)]
    assert sum(map(len, parts)) == 5 and len(parts) > 1
    assert all((part.sum(1) == 2_000_000).all() for part in parts)


def test_average_precision_is_cocos() -> None:
    rng = np.random.default_rng(0)
    images, truth, results = 12, [], []
    for image in range(images):
        for k in range(int(rng.integers(0, 4))):
            box = [200.0 * k, 10.0, 100.0, 50.0]
            truth.append(
                {"id": len(truth) + 1, "image_id": image, "category_id": 1, "bbox": box, "area": 5000.0, "iscrowd": 0}
            )
            if rng.random() < 0.7:  # a hit, with an IoU far above the threshold
                results.append({"image_id": image, "category_id": 1, "bbox": box, "score": float(rng.random())})
        for _ in range(int(rng.integers(0, 3))):
            box = [5000.0 + 10 * rng.random(), 900.0, 20.0, 20.0]
            results.append({"image_id": image, "category_id": 1, "bbox": box, "score": float(rng.random())})
    content = {
        "images": [{"id": image, "height": 1000, "width": 6000} for image in range(images)],
        "annotations": truth,
        "categories": [{"id": 1, "name": "a"}],
    }
    detections = RankedDetections(
        np.array([result["image_id"] for result in results]),
        np.array([result["score"] for result in results]),
        np.array([result["bbox"][0] < 5000 for result in results]),
    )
    objects = np.bincount([entry["image_id"] for entry in truth], minlength=images)
    (own,) = average_precisions(detections, objects, np.ones((1, images)))
    assert own == pytest.approx(coco_scores(content, results)["bbox"].statistics["ap50"], abs=1e-9)

    none = RankedDetections(np.zeros(0, int), np.zeros(0), np.zeros(0, bool))
    difference = precision_difference(none, detections, objects)
    assert difference.value == pytest.approx(own) and difference.low <= own <= difference.high and difference.is_sure
    assert not precision_difference(detections, detections, objects).is_sure
