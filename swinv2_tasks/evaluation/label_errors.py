"""Labels that are probably wrong, by confident learning: https://arxiv.org/abs/1911.00068, section 3.

A label counts as wrong where another class is more probable than it is, and as probable as that class is, on average,
for samples that bear it as their label. So a class of which the model is never sure needs less than one of which it
always is. Samples are ranked by their normalized margin, the probability of the label less that of the other class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelErrors:
    """Samples whose labels may be wrong, the most probable errors first.

    Attributes:
        samples: their indices, int64 (n,): first those that count as wrong, then all others of which another class is
            more probable than the label.
        suggested: class that each probably shows, int64 (n,).
        margins: probability of the label less that of the suggested class (n,), in [−1, 0), rising among each of both.
        number: how many count as wrong.
    """

    samples: np.ndarray
    suggested: np.ndarray
    margins: np.ndarray
    number: int


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
    is_sure = is_other & (scores >= thresholds[classes])
    is_wrong = is_sure.any(1)
    # Of samples that do not count as wrong, the most probable other class.
    considered = np.where(is_wrong[:, None], is_sure, is_other)
    best = np.where(considered, scores, -1).argmax(1)
    rows = np.arange(len(labels))
    suggested, margins = classes[rows, best], label_scores - scores[rows, best]

    (listed,) = np.nonzero(considered[rows, best] & (margins < 0))
    order = listed[np.lexsort((margins[listed], ~is_wrong[listed]))]
    return LabelErrors(order, suggested[order], margins[order], int(is_wrong[order].sum()))


def _mean_label_scores(labels: np.ndarray, label_scores: np.ndarray, least_classes: int) -> np.ndarray:
    """How probable each class is, on average, for samples that bear it; infinite where none does: nothing is known."""
    num_classes = max(least_classes, int(labels.max(initial=0)) + 1)
    samples = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, weights=label_scores, minlength=num_classes)
    return np.where(samples > 0, sums / np.maximum(samples, 1), np.inf)
