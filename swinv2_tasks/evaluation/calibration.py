"""Whether a classifier is as often right as it says: https://arxiv.org/abs/1706.04599, sections 2 and 3."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from swinv2_tasks.evaluation.class_scores import share

BINS = 15
"""As many as the paper has."""


@dataclass(frozen=True)
class Calibration:
    """How often predictions of about the same confidence are right.

    Attributes:
        edges: of the bins, from 0 to 1 (bins + 1,); each bin holds its upper edge, the first one 0 as well.
        counts: predictions in each bin, int64 (bins,).
        confidence: their mean confidence (bins,), NaN where there are none.
        accuracy: the share of them that is right (bins,), likewise.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean distance between confidence and accuracy, in [0, 1].

        Each prediction counts by the distance of its bin. NaN where there are no predictions.
        """
        is_filled = self.counts > 0
        if not is_filled.any():
            return float("nan")
        distances = np.abs(self.accuracy - self.confidence)[is_filled]
        return float((self.counts[is_filled] * distances).sum() / self.counts.sum())


def calibrate(confidences: np.ndarray, is_right: np.ndarray, bins: int = BINS) -> Calibration:
    """Compares confidence and accuracy in bins of equal width.

    Args:
        confidences: probability of each predicted class (predictions,), in [0, 1].
        is_right: bool (predictions,).
        bins: how many.
    """
    edges = np.linspace(0, 1, bins + 1)
    numbers = np.searchsorted(edges[1:-1], confidences)
    counts = np.bincount(numbers, minlength=bins)
    confidence = share(np.bincount(numbers, weights=confidences, minlength=bins), counts)
    accuracy = share(np.bincount(numbers, weights=is_right, minlength=bins), counts)
    return Calibration(edges, counts, confidence, accuracy)
