"""Metrics that torchmetrics lacks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric


class AnyLabelAccuracy(Metric):
    """Share of images whose top-k classes hold one of the image's labels; images without labels do not count.

    The measure of ReaL labels: https://arxiv.org/abs/2006.07159, section 3.

    Args:
        top_k: how many of the highest scores may answer.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    hits: Tensor
    images: Tensor

    def __init__(self, top_k: int = 1) -> None:
        super().__init__()
        self.top_k = top_k
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Counts a batch: scores (B, classes), labels (B, classes) with values above 0 where a label holds."""
        holds = labels > 0
        best = scores.topk(self.top_k, dim=1).indices
        self.hits += holds.gather(1, best).any(1).sum()
        self.images += holds.any(1).sum()

    def compute(self) -> Tensor:
        """Accuracy in [0, 1]; NaN when no image had a label."""
        return self.hits / self.images


class MeanLoss(Metric):
    """Mean loss per image, the same to the last bit in whatever order and number of processes it is summed.

    Each image's loss is rounded to a millionth (2⁻²⁰) and summed as an integer, since sums of floats depend on order.
    A loss above a million counts as infinite.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    millionths: Tensor
    images: Tensor
    infinite: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("millionths", "images", "infinite"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, losses: Tensor) -> None:
        """Counts a batch: losses (B,)."""
        finite = losses < 1e6
        self.millionths += (losses.where(finite, 0) * 2**20).round().long().sum()
        self.images += len(losses)
        self.infinite += (~finite).sum()

    def compute(self) -> Tensor:
        """Mean loss; infinite when any image's is, or is not a number; NaN when there was no image."""
        mean = self.millionths / self.images / 2**20
        return torch.where(self.infinite > 0, torch.inf, mean)


class CrossEntropy(MeanLoss):
    """Mean cross-entropy per image."""

    # Each metric of torchmetrics has arguments of its own here, the base class as well.
    def update(self, logits: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        """Counts a batch: logits (B, classes), labels (B,) int64 in [0, classes)."""
        super().update(torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none"))


class VideoScores(Metric):
    """Accuracy and loss of videos whose probabilities are averaged over their views, wherever these come by.

    Probabilities are rounded to 2⁻⁴⁰ and summed as integers per video: the same to the last bit in whatever batches,
    order and number of processes the views are seen.

    Args:
        num_classes: number of classes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    SCALE = 2**40
    PENDING = 4096
    """Views that are kept before they are summed: asking how many videos there are by now waits for the device."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(sync_on_compute=False)  # compute sums over processes itself: they have seen different videos
        self.num_classes = num_classes
        self._rows = self._no_rows(0)
        self._pending: list[tuple[Tensor, Tensor]] = []  # video ids (n,) and rows (n, classes + 2) yet to be added

    def update(self, logits: Tensor, labels: Tensor, video_ids: Tensor) -> None:
        """Counts views.

        Args:
            logits: (n, classes).
            labels: (n,) int64 in [0, classes), the same for all views of a video.
            video_ids: (n,) int64, at least 0.
        """
        sums = (logits.float().softmax(1).double() * self.SCALE).round().long()
        rows = torch.cat([sums, labels[:, None], torch.ones_like(labels)[:, None]], dim=1)
        self._pending.append((video_ids, rows))
        if sum(len(ids) for ids, _ in self._pending) >= self.PENDING:
            self._add_pending()

    def _add_pending(self) -> None:
        if not self._pending:
            return
        ids, rows = map(torch.cat, zip(*self._pending, strict=True))
        self._pending.clear()
        self._rows = self._rows.to(rows.device)
        missing = int(ids.max()) + 1 - len(self._rows)
        if missing > 0:
            self._rows = torch.cat([self._rows, self._no_rows(max(missing, len(self._rows)))])
        self._rows = self._rows.index_add(0, ids, rows)

    def compute(self) -> dict[str, Tensor]:
        """{top1, top5, loss} over all videos; top-k and loss of the mean of each video's probabilities."""
        self._add_pending()
        rows = self._rows
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            length = torch.tensor(len(rows), device=rows.device)
            torch.distributed.all_reduce(length, torch.distributed.ReduceOp.MAX)
            rows = torch.cat([rows, self._no_rows(int(length) - len(rows))])
            torch.distributed.all_reduce(rows)
        rows = rows[rows[:, -1] > 0]
        views = rows[:, -1]
        labels = rows[:, -2] // views
        means = rows[:, :-2].double() / (self.SCALE * views[:, None])
        right = means.gather(1, labels[:, None])
        # Of classes that are as likely as the right one, those before it count as likelier.
        before = torch.arange(self.num_classes, device=means.device) < labels[:, None]
        place = ((means > right) | ((means == right) & before)).sum(1)
        losses = -right[:, 0].clamp(min=1 / self.SCALE).log()
        return {
            "top1": (place < 1).double().mean(),
            "top5": (place < 5).double().mean(),
            "loss": losses.mean(),
        }

    def reset(self) -> None:
        super().reset()
        self._rows = self._no_rows(0)
        self._pending.clear()

    def _no_rows(self, number: int) -> Tensor:
        """Sums of probabilities and of labels, and the number of views of each video: int64 (number, classes + 2)."""
        return torch.zeros(number, self.num_classes + 2, dtype=torch.int64, device=self.device)


@dataclass(frozen=True)
class SegmentationScores:
    """What a confusion matrix says of a segmenter.

    Attributes:
        iou: intersection over union of each class, (K,) in [0, 1]; NaN where it is neither labelled nor predicted.
        accuracy: share of each class's pixels that are predicted so, (K,) in [0, 1]; NaN where it is not labelled.
        pixels: labelled pixels of each class, (K,) int64.
        miou: mean IoU over the classes that are labelled or predicted anywhere; NaN when there is none.
        mean_accuracy: mean accuracy over the classes that are labelled anywhere.
        pixel_accuracy: share of labelled pixels that are predicted right.
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


class Confusion(Metric):
    """Counts of labelled and predicted classes over all pixels, and the scores of segmentation that follow from them.

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
        self.add_state("counts", torch.zeros(num_classes, num_classes + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Counts pixels.

        Args:
            predictions: integers of any shape; those outside of [0, K) are no class, and wrong.
            labels: integers of the same shape; those outside of [0, K) are ignored.
        """
        k = self.num_classes
        predictions, labels = predictions.long(), labels.long()
        other = (predictions < 0) | (predictions >= k)
        ignored = (labels < 0) | (labels >= k)
        cells = labels * (k + 1) + predictions.masked_fill(other, k)
        cells = cells.masked_fill(ignored, k * (k + 1)).flatten()
        self.counts += torch.bincount(cells, minlength=k * (k + 1) + 1)[:-1].view(k, k + 1)

    def compute(self) -> dict[str, Tensor]:
        """{miou, mean_accuracy, pixel_accuracy}, each in [0, 1]; NaN when nothing was labelled."""
        self.scores = SegmentationScores.of(self.counts)
        names = ("miou", "mean_accuracy", "pixel_accuracy")
        return {name: torch.tensor(getattr(self.scores, name), device=self.counts.device) for name in names}
