"""Scores of segmentation, by the rules of ADE20K's benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

CHUNK_PIXELS = 2**22
"""Pixels that are counted at a time: each takes some 40 bytes until it is."""


@dataclass(frozen=True)
class SegmentationScores:
    """The scores that follow from a confusion matrix.

    Attributes:
        iou: intersection over union of each class, (K,) in [0, 1]; NaN where it is neither labeled nor predicted.
        accuracy: share of each class's pixels that are predicted so, (K,) in [0, 1]; NaN where it is not labeled.
        pixels: labeled pixels of each class, (K,) int64.
        miou: mean IoU over the classes that are labeled or predicted anywhere; NaN when there is none.
        mean_accuracy: mean accuracy over the classes that are labeled anywhere.
        pixel_accuracy: share of labeled pixels that are predicted right.
    """

    iou: Tensor
    accuracy: Tensor
    pixels: Tensor
    miou: float
    mean_accuracy: float
    pixel_accuracy: float

    @classmethod
    def of(cls, confusion: Tensor) -> SegmentationScores:
        """The scores of a matrix (K, K + 1) of pixel counts: labels down, predictions across, the last one no class."""
        confusion = confusion.cpu()
        hits, pixels = confusion.diagonal().double(), confusion.sum(1)
        iou = hits / (pixels + confusion[:, :-1].sum(0) - hits)  # 0 / 0 is NaN
        accuracy = hits / pixels
        return cls(
            iou,
            accuracy,
            pixels,
            miou=iou.nanmean().item(),
            mean_accuracy=accuracy.nanmean().item(),
            pixel_accuracy=(hits.sum() / pixels.sum()).item(),
        )


def pixels_of(confusion: Tensor) -> Tensor:
    """(3, K) int64 of counts (K, K + 1): each class's pixels that are predicted so, that are labeled, and predicted."""
    return torch.stack([confusion.diagonal(), confusion.sum(1), confusion[:, :-1].sum(0)])


class Confusion(Metric):
    """Counts of labeled and predicted classes over all pixels, and the scores of segmentation that follow from them.

    The rules of ADE20K's scene parsing benchmark: https://arxiv.org/abs/1608.05442, section 5; pixels without a label
    are left out, whatever is predicted there. Counts are integers, so scores do not depend on the number of processes.

    Args:
        num_classes: number of classes K.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.scores: SegmentationScores | None = None
        """Of the last ``compute``, over all processes."""
        self.matrix: Tensor | None = None
        """Likewise the counts that they follow from, (K, K + 1) int64: labels down, predictions across, the last one no
        class."""
        self.latest = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)
        """The counts of the last ``update`` alone."""
        self.add_state("counts", torch.zeros(num_classes, num_classes + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Counts pixels.

        Args:
            predictions: integers of any shape; those outside of [0, K) are no class, and wrong.
            labels: integers of the same shape; those outside of [0, K) are ignored.
        """
        before = self.counts.clone()
        pairs = zip(predictions.flatten().split(CHUNK_PIXELS), labels.flatten().split(CHUNK_PIXELS), strict=True)
        for own_predictions, own_labels in pairs:
            self._count(own_predictions.long(), own_labels.long())
        self.latest = self.counts - before

    def _count(self, predictions: Tensor, labels: Tensor) -> None:
        k = self.num_classes
        is_no_class = (predictions < 0) | (predictions >= k)
        is_ignored = (labels < 0) | (labels >= k)
        cells = labels * (k + 1) + predictions.masked_fill(is_no_class, k)
        cells = cells.masked_fill(is_ignored, k * (k + 1))
        self.counts += torch.bincount(cells, minlength=k * (k + 1) + 1)[:-1].view(k, k + 1)

    def compute(self) -> dict[str, Tensor]:
        """{miou, mean_accuracy, pixel_accuracy}, each in [0, 1]; NaN when nothing was labeled."""
        self.matrix = self.counts.cpu().clone()
        self.scores = SegmentationScores.of(self.matrix)
        names = ("miou", "mean_accuracy", "pixel_accuracy")
        return {name: torch.tensor(getattr(self.scores, name), device=self.counts.device) for name in names}
