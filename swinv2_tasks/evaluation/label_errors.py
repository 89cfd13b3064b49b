"""Labels that are probably wrong, by confident learning: https://arxiv.org/abs/1911.00068, section 3.

Samples are ranked by their normalized margin, the probability of the label less that of another class. A label counts
as wrong where another class is more probable than it is, and as probable as that class is, on average, for samples that
bear it as their label. So a class of which the model is never sure needs less than one of which it always is. Of a
model that is often wrong these are many; the ranking holds for it as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelErrors:
    """Samples of which another class is more probable than the label, the most probable errors first.

    Attributes:
        samples: their indices, int64 (n,).
        suggested: the most probable other class of each, int64 (n,).
        margins: probability of the label less that of the suggested class (n,), in [−1, 0), rising.
        is_wrong: whether the label counts as wrong, bool (n,).
    """

    samples: np.ndarray
    suggested: np.ndarray
    margins: np.ndarray
    is_wrong: np.ndarray


def find_label_errors(
    labels: np.ndarray, label_scores: np.ndarray, classes: np.ndarray, scores: np.ndarray
) -> LabelErrors:
    """Finds labels that are probably wrong among samples that the model was not trained on.

    Args:
        labels: int (samples,), indices of classes.
        label_scores: probability of each label (samples,), in [0, 1].
        classes: int (samples, k), the k most probable classes of each sample, the first one first.
        scores: their probabilities (samples, k).
    """
    thresholds = _mean_label_scores(labels, label_scores, int(classes.max(initial=0)) + 1)

    is_other = classes != labels[:, None]
    is_wrong = (is_other & (scores >= thresholds[classes])).any(1)

    rows = np.arange(len(labels))
    best = np.where(is_other, scores, -1).argmax(1)
    suggested, margins = classes[rows, best], label_scores - scores[rows, best]

    (listed,) = np.nonzero(is_other[rows, best] & (margins < 0))
    order = listed[np.argsort(margins[listed], kind="stable")]
    return LabelErrors(order, suggested[order], margins[order], is_wrong[order])


def _mean_label_scores(labels: np.ndarray, label_scores: np.ndarray, least_classes: int) -> np.ndarray:
    """How probable each class is, on average, for samples that bear it; infinite where none does: nothing is known."""
    num_classes = max(least_classes, int(labels.max(initial=0)) + 1)
    samples = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, weights=label_scores, minlength=num_classes)
    return np.where(samples > 0, sums / np.maximum(samples, 1), np.inf)
