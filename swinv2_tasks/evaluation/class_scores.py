"""Scores of each class where one holds for each sample, and which classes are taken for one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_CLUSTERED = 2000
"""Classes that are put in an order at most: the distances between them are as many as the square of it."""

MOST_FLIPPED = 300
"""Classes from which on neighbors are found without turning the branches of the tree, which takes their cube."""


@dataclass(frozen=True)
class ClassScores:
    """Scores of each class, in their order; NaN where there is nothing to measure.

    Attributes:
        precision: of the predictions of a class (classes,).
        recall: of the samples of a class (classes,), which is also called its accuracy.
        f1: the harmonic mean of both, of classes that hold or are predicted for any sample.
        samples: for how many samples each class holds, int64 (classes,).
        predictions: for how many it is predicted, int64 (classes,).
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    samples: np.ndarray
    predictions: np.ndarray


def class_scores(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> ClassScores:
    """Precision, recall and F1 of each class.

    Args:
        labels: int (samples,), indices of the classes that hold, in [0, num_classes).
        predicted: int (samples,), indices of those that are predicted.
        num_classes: number of classes.
    """
    samples = np.bincount(labels, minlength=num_classes)
    predictions = np.bincount(predicted, minlength=num_classes)
    right = np.bincount(labels[labels == predicted], minlength=num_classes)
    return ClassScores(
        share(right, predictions),
        share(right, samples),
        share(2 * right, samples + predictions),
        samples,
        predictions,
    )


def share(part: Any, whole: Any) -> Any:
    """A quotient; NaN where there is nothing to divide by."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def mean(values: np.ndarray) -> float:
    """The mean of what is not NaN; NaN where nothing is."""
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if len(measured) else float("nan")


# ---- confusion


@dataclass(frozen=True)
class ConfusedPair:
    """A class and another one that is predicted in its place.

    Attributes:
        label: index of the class that holds.
        predicted: index of the class that is predicted.
        number: of how many samples.
    """

    label: int
    predicted: int
    number: int


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """How many samples of each class, the rows, are predicted as each, the columns: int64 (classes, classes).

    Args:
        labels: int (samples,), in [0, num_classes).
        predicted: int (samples,), likewise.
        num_classes: number of classes.
    """
    cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def most_confused(labels: np.ndarray, predicted: np.ndarray, number: int) -> list[ConfusedPair]:
    """The pairs of classes with the most mistakes, these first, then by the order of the classes.

    Args:
        labels: int (samples,), indices of classes.
        predicted: int (samples,), likewise.
        number: how many pairs at most.
    """
    is_wrong = labels != predicted
    pairs = np.stack([labels[is_wrong], predicted[is_wrong]], axis=1)
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:number]
    return [ConfusedPair(int(distinct[k, 0]), int(distinct[k, 1]), int(counts[k])) for k in order]


def order_by_confusion(counts: np.ndarray) -> np.ndarray:
    """An order of the classes in which those that are taken for one another stand side by side.

    The classes are clustered by average linkage; two are the nearer, the larger the share of their samples is that is
    predicted as the other's. Classes without any mistake keep their order, at the end.

    Args:
        counts: (classes, classes), as of ``confusion_counts``.

    Returns:
        Indices of the classes (classes,).
    """
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    np.fill_diagonal(shares, 0)
    nearness = shares + shares.T

    is_confused = nearness.any(1)
    confused, others = np.flatnonzero(is_confused), np.flatnonzero(~is_confused)
    if not 2 < len(confused) <= MOST_CLUSTERED:
        return np.concatenate([confused, others])

    distances = nearness.max() - nearness[np.ix_(confused, confused)]
    np.fill_diagonal(distances, 0)
    condensed = squareform(distances, checks=False)
    tree = linkage(condensed, "average")
    if len(confused) <= MOST_FLIPPED:
        tree = optimal_leaf_ordering(tree, condensed)
    return np.concatenate([confused[leaves_list(tree)], others])
