"""Scores of images of which several classes may hold, or none: average precision and F1 of each class.

Average precision is that of scikit-learn: the mean precision over the steps in which recall rises, without
interpolation, with equal scores taken together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from swinv2_tasks.evaluation.class_scores import mean, share

CURVE_STEPS = 100
"""Into how many steps [0, 1] is divided where F1 is measured over the threshold."""


@dataclass(frozen=True)
class F1Curve:
    """F1 over the threshold.

    Attributes:
        thresholds: 0, 0.01, … 1.
        micro_f1: F1 of all classes' predictions taken together at each threshold.
        macro_f1: mean F1 over the classes that hold or are predicted for any image, at each threshold.
    """

    thresholds: np.ndarray
    micro_f1: np.ndarray
    macro_f1: np.ndarray


@dataclass(frozen=True)
class MultiLabelScores:
    """Scores of each class, in their order; NaN where there is nothing to measure.

    Attributes:
        ap: average precision (classes,), of those that hold for any image.
        precision: of the predictions at the threshold, (classes,).
        recall: the same, of classes that hold for any image.
        f1: the same, of classes that hold or are predicted for any image.
        positives: for how many images each class holds, int64 (classes,).
        micro_f1: F1 of all classes' predictions taken together.
        curve: F1 at other thresholds.
    """

    ap: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    positives: np.ndarray
    micro_f1: float
    curve: F1Curve

    @property
    def map(self) -> float:
        """Mean average precision over the classes that hold for any image."""
        return mean(self.ap)

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that hold or are predicted for any image."""
        return mean(self.f1)


def multi_label_scores(logits: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> MultiLabelScores:
    """Scores of predictions.

    Args:
        logits: (images, classes).
        labels: bool (images, classes).
        threshold: probability from which on a class is predicted, in [0, 1].
    """
    probabilities = torch.from_numpy(logits).sigmoid().numpy()
    predicted = probabilities >= threshold
    right = (predicted & labels).sum(0)
    positives, predictions = labels.sum(0), predicted.sum(0)
    ap = [average_precision(logits[:, k], labels[:, k]) for k in range(labels.shape[1])]
    return MultiLabelScores(
        np.array(ap, dtype=np.float64),
        share(right, predictions),
        share(right, positives),
        share(2 * right, positives + predictions),
        positives,
        float(share(2 * right.sum(), positives.sum() + predictions.sum())),
        f1_curve(probabilities, labels),
    )


def f1_curve(probabilities: np.ndarray, labels: np.ndarray) -> F1Curve:
    """F1 at each hundredth as the threshold from which on a class is predicted.

    Args:
        probabilities: (images, classes), in [0, 1].
        labels: bool (images, classes).
    """
    thresholds = np.arange(CURVE_STEPS + 1) / CURVE_STEPS
    numbers = np.searchsorted(thresholds.astype(probabilities.dtype), probabilities, side="right")
    columns = range(labels.shape[1])

    def count(is_counted: np.ndarray) -> np.ndarray:
        """How many of some predictions reach each threshold, (thresholds, classes)."""
        reached = [np.bincount(numbers[is_counted[:, k], k], minlength=CURVE_STEPS + 2)[1:] for k in columns]
        return np.stack(reached, axis=1)[::-1].cumsum(0)[::-1]

    predictions, right = count(np.ones_like(labels)), count(labels)
    positives = labels.sum(0)
    macro = share(2 * right, positives + predictions)
    micro = share(2 * right.sum(1), positives.sum() + predictions.sum(1))
    return F1Curve(thresholds, micro, np.array([mean(row) for row in macro]))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Average precision of one class: Σ (Rₙ − Rₙ₋₁) Pₙ over all thresholds n, the highest first.

    Args:
        scores: (images,); only their order counts.
        labels: bool (images,).

    Returns:
        A value in [0, 1]; NaN where the class holds for no image.
    """
    positives = int(labels.sum())
    if positives == 0:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    is_last = np.append(ranked[1:] != ranked[:-1], True)  # of those with the same score
    right = np.cumsum(labels[order])[is_last]
    taken = np.flatnonzero(is_last) + 1
    return float(np.sum(np.diff(right, prepend=0) * (right / taken)) / positives)


class MultiLabelMetric(Metric):
    """Mean average precision and F1 of all images, the same in any order and number of processes.

    Args:
        threshold: probability from which on a class is predicted, for F1.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__(sync_on_compute=False)  # compute gathers itself: processes may have no image at all
        self.threshold = threshold
        self.scores: MultiLabelScores | None = None
        """Of the last ``compute``."""
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch: logits (B, classes), labels (B, classes) of 0 and 1."""
        self._logits.append(logits.float())
        self._labels.append(labels > 0.5)

    def compute(self) -> dict[str, Tensor]:
        """{map, macro_f1, micro_f1} over the images of all processes."""
        own = tuple(torch.cat(parts).cpu().numpy() if parts else None for parts in (self._logits, self._labels))
        parts: list[Any] = [own]
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        is_first = not is_distributed or torch.distributed.get_rank() == 0
        if is_distributed:
            gathered: list[Any] | None = [None] * torch.distributed.get_world_size() if is_first else None
            torch.distributed.gather_object(own, gathered)
            parts = gathered or []

        outcome: list[Any] = [None]
        if is_first:
            logits, labels = (
                np.concatenate([part for part in column if part is not None]) for column in zip(*parts, strict=True)
            )
            outcome[0] = multi_label_scores(logits, labels, self.threshold)
        if is_distributed:
            torch.distributed.broadcast_object_list(outcome)

        scores: MultiLabelScores = outcome[0]
        self.scores = scores
        values = {"map": scores.map, "macro_f1": scores.macro_f1, "micro_f1": scores.micro_f1}
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in values.items()}

    def reset(self) -> None:
        """Forgets all images; the scores of the last ``compute`` stay."""
        super().reset()
        self._logits, self._labels = [], []
