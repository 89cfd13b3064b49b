"""Scores of segmentation: worked out by hand and by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from swinv2_tasks.evaluation.segmentation import Confusion, SegmentationScores


def scores_of(classes: int, predictions: object, labels: object) -> SegmentationScores:
    metric = Confusion(classes)
    metric.update(torch.tensor(predictions), torch.tensor(labels))
    metric.compute()
    assert metric.scores is not None
    return metric.scores


def test_scores_worked_out_by_hand() -> None:
    """Of 8 pixels 7 are labeled.

    Class 0: 2 of 3 right, once predicted elsewhere: IoU 2 / 4. Class 1: 2 of 3, once elsewhere: 2 / 4. Class 2: its
    only pixel is missed. Class 3 is nowhere.
    """
    labels = [[0, 0, 0, 1], [1, 1, 2, 255]]
    predictions = [[0, 0, 1, 1], [1, 0, 4, 0]]  # 4 is no class
    scores = scores_of(4, predictions, labels)
    assert scores.iou.tolist() == pytest.approx([0.5, 0.5, 0.0, math.nan], nan_ok=True)
    assert scores.accuracy.tolist() == pytest.approx([2 / 3, 2 / 3, 0.0, math.nan], nan_ok=True)
    assert scores.pixels.tolist() == [3, 3, 1, 0]
    assert (scores.miou, scores.mean_accuracy) == (pytest.approx(1 / 3), pytest.approx(4 / 9))
    assert scores.pixel_accuracy == pytest.approx(4 / 7)


def test_a_class_that_is_predicted_but_never_labeled_counts_as_missed() -> None:
    scores = scores_of(3, [0, 0, 2, 2], [0, 0, 0, 0])
    assert scores.iou.tolist() == pytest.approx([0.5, math.nan, 0.0], nan_ok=True)
    assert scores.accuracy.tolist() == pytest.approx([0.5, math.nan, math.nan], nan_ok=True)
    assert (scores.miou, scores.mean_accuracy) == (0.25, 0.5)


@pytest.mark.parametrize("ignored", [255, -1, 3])
def test_pixels_without_a_label_are_left_out_whatever_is_predicted(ignored: int) -> None:
    scores = scores_of(3, [0, 1, 2, 7], [0, ignored, ignored, ignored])
    assert scores.iou.tolist() == pytest.approx([1.0, math.nan, math.nan], nan_ok=True)
    assert scores.pixel_accuracy == 1.0


def test_scores_are_those_of_brute_force_in_one_piece_and_in_many() -> None:
    draw = np.random.default_rng(0)
    labels, predictions = draw.integers(-1, 6, (5, 9, 11)), draw.integers(0, 6, (5, 9, 11))
    labels[labels == 4] = 0  # a class without labels
    valid = labels >= 0
    ious = []
    for k in range(6):
        is_label, is_predicted = (labels == k) & valid, (predictions == k) & valid
        ious.append((is_label & is_predicted).sum() / (is_label | is_predicted).sum())
    whole, pieces = Confusion(6), Confusion(6)
    whole.update(torch.from_numpy(predictions), torch.from_numpy(labels))
    for prediction, label in zip(predictions.astype(np.uint8), labels, strict=True):
        pieces.update(torch.from_numpy(prediction), torch.from_numpy(label))
    scores = whole.compute()
    assert scores == pieces.compute()
    assert scores["miou"].item() == pytest.approx(np.mean(ious))
    assert scores["pixel_accuracy"].item() == pytest.approx((labels == predictions)[valid].mean())


def test_without_labels_there_are_no_scores() -> None:
    assert all(value.isnan() for value in Confusion(3).compute().values())
