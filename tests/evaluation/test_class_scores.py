"""Scores per class, confusion and calibration beside scikit-learn's and beside counts by hand."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from swinv2_tasks.evaluation.calibration import calibrate
from swinv2_tasks.evaluation.class_scores import class_scores, confusion_counts, most_confused, order_by_confusion

CLASSES = 12


def random_predictions(samples: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions, of which about half are right; the last two classes never hold, the last is predicted."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, CLASSES - 2, samples)
    others = rng.integers(0, CLASSES, samples)
    predicted = np.where(rng.random(samples) < 0.5, labels, others)
    predicted[predicted == CLASSES - 2] = 0
    return labels, predicted


def test_precision_recall_and_f1_are_scikit_learns_to_the_last_digit() -> None:
    labels, predicted = random_predictions()
    scores = class_scores(labels, predicted, CLASSES)
    precision, recall, f1, samples = metrics.precision_recall_fscore_support(
        labels, predicted, labels=np.arange(CLASSES), zero_division=np.nan
    )
    np.testing.assert_array_equal(scores.precision, precision)
    np.testing.assert_array_equal(scores.recall, recall)
    np.testing.assert_array_equal(scores.samples, samples)
    np.testing.assert_array_equal(scores.f1, f1)
    assert scores.predictions.sum() == len(labels)
    assert np.isnan(scores.f1).tolist() == [False] * (CLASSES - 2) + [True, False]


def test_confusion_is_scikit_learns() -> None:
    labels, predicted = random_predictions()
    counts = confusion_counts(labels, predicted, CLASSES)
    np.testing.assert_array_equal(counts, metrics.confusion_matrix(labels, predicted, labels=np.arange(CLASSES)))


def test_the_most_confused_pairs_are_the_largest_cells_beside_the_diagonal() -> None:
    labels, predicted = random_predictions()
    counts = confusion_counts(labels, predicted, CLASSES)
    pairs = most_confused(labels, predicted, 20)
    cells = itertools.permutations(range(CLASSES), 2)
    expected = sorted(((int(counts[cell]), *cell) for cell in cells), key=lambda row: (-row[0], row[1], row[2]))
    assert [(pair.number, pair.label, pair.predicted) for pair in pairs] == expected[:20]
    assert most_confused(labels, labels, 20) == []


@pytest.mark.parametrize("classes", [40, 400])
def test_classes_that_are_confused_stand_side_by_side(classes: int) -> None:
    """Groups of four classes that are taken for one another, in a random order."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.arange(classes) // 4)
    is_near = group[:, None] == group
    counts = np.where(is_near, rng.integers(20, 30, is_near.shape), rng.integers(0, 3, is_near.shape))
    np.fill_diagonal(counts, 50)
    order = order_by_confusion(counts)
    assert sorted(order) == [*range(classes)]
    ordered = group[order]
    assert (ordered[1:] != ordered[:-1]).sum() == classes // 4 - 1


@pytest.mark.parametrize("confused", [0, 1, 2])
def test_classes_without_mistakes_keep_their_order(confused: int) -> None:
    counts = 10 * np.eye(6, dtype=np.int64)
    if confused:
        counts[5, 2] = confused
    assert order_by_confusion(counts).tolist() == ([2, 5, 0, 1, 3, 4] if confused else [*range(6)])


def test_calibration_is_scikit_learns_to_the_last_digit() -> None:
    rng = np.random.default_rng(1)
    confidences = np.concatenate([rng.random(500), np.linspace(0, 1, 16)])  # edges as well
    is_right = rng.random(len(confidences)) < confidences**2
    calibration = calibrate(confidences, is_right)
    accuracy, confidence = calibration_curve(is_right, confidences, n_bins=15)
    is_filled = calibration.counts > 0
    np.testing.assert_array_equal(calibration.accuracy[is_filled], accuracy)
    np.testing.assert_array_equal(calibration.confidence[is_filled], confidence)
    assert calibration.counts.sum() == len(confidences)


def test_the_calibration_error_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(2)
    confidences = rng.random(300) ** 0.2  # the lowest bins are empty
    is_right = rng.random(300) < 0.7
    calibration = calibrate(confidences, is_right)
    assert calibration.counts[0] == 0
    error = 0.0
    for k in range(15):
        members = [i for i in range(300) if k / 15 < confidences[i] <= (k + 1) / 15]
        if members:
            error += abs(sum(is_right[members]) - sum(confidences[members])) / 300
    assert calibration.ece == pytest.approx(error, abs=1e-12)


def test_nothing_warns_without_samples() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(class_scores(nothing, nothing, 3).f1).all()
        assert np.isnan(calibrate(np.zeros(0), np.zeros(0, dtype=bool)).ece)
