"""Scores of videos, each evaluated in several views."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from swinv2_tasks.evaluation.classification import TopClasses
from swinv2_tasks.evaluation.multi_label import MultiLabelScores, multi_label_scores


class VideoMeans(Metric):
    """The mean of each video's probabilities over its views, in whatever batches these come.

    Probabilities are rounded to 2⁻⁴⁰ and summed as integers per video: bitwise identical in whatever batches, order and
    number of processes the views come. What is measured of the means, subclasses say.

    Args:
        num_classes: number of classes.
        label_columns: numbers that the label of a video has.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    SCALE = 2**40
    PENDING = 4096
    """Views that are kept before they are summed: asking how many videos there are by now waits for the device."""

    def __init__(self, num_classes: int, label_columns: int) -> None:
        super().__init__(sync_on_compute=False)  # compute sums over processes itself: each has different videos
        self.num_classes = num_classes
        self.label_columns = label_columns
        self.video_ids = torch.empty(0, dtype=torch.int64)
        """(videos,), of those that ``means_and_labels`` last returned."""
        self._rows = self._no_rows(0)
        self._pending: list[tuple[Tensor, Tensor]] = []  # video ids (n,) and rows of `_no_rows` yet to be added

    def add(self, probabilities: Tensor, labels: Tensor, video_ids: Tensor) -> None:
        """Counts views.

        Args:
            probabilities: (n, classes) in [0, 1].
            labels: (n, label_columns) int64, the same for all views of a video.
            video_ids: (n,) int64, at least 0.
        """
        sums = (probabilities.double() * self.SCALE).round().long()
        rows = torch.cat([sums, labels, torch.ones_like(video_ids)[:, None]], dim=1)
        self._pending.append((video_ids, rows))
        if sum(len(ids) for ids, _ in self._pending) >= self.PENDING:
            self._add_pending()

    def _add_pending(self) -> None:
        if not self._pending:
            return
        ids, rows = map(torch.cat, zip(*self._pending, strict=True))
        self._pending.clear()
        self._rows = self._rows.to(rows.device)
        shortage = int(ids.max()) + 1 - len(self._rows)
        if shortage > 0:
            self._rows = torch.cat([self._rows, self._no_rows(max(shortage, len(self._rows)))])
        self._rows = self._rows.index_add(0, ids, rows)

    def means_and_labels(self) -> tuple[Tensor, Tensor]:
        """Of the videos of all processes: means of probabilities (videos, classes) float64, and their labels."""
        self._add_pending()
        rows = self._rows
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            length = torch.tensor(len(rows), device=rows.device)
            torch.distributed.all_reduce(length, torch.distributed.ReduceOp.MAX)
            rows = torch.cat([rows, self._no_rows(int(length) - len(rows))])
            torch.distributed.all_reduce(rows)

        (self.video_ids,) = torch.nonzero(rows[:, -1], as_tuple=True)  # of videos that have been seen
        rows = rows[self.video_ids]
        views = rows[:, -1:]
        means = rows[:, : self.num_classes].double() / (self.SCALE * views)
        return means, rows[:, self.num_classes : -1] // views

    def reset(self) -> None:
        """Forgets all videos."""
        super().reset()
        self._rows = self._no_rows(0)
        self._pending.clear()

    def _no_rows(self, number: int) -> Tensor:
        """Sums of probabilities and of labels, and the number of views of each video: int64."""
        columns = self.num_classes + self.label_columns + 1
        return torch.zeros(number, columns, dtype=torch.int64, device=self.device)


class VideoScores(VideoMeans):
    """Accuracy and loss of videos of one class each.

    Args:
        num_classes: number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, label_columns=1)
        self.top: TopClasses | None = None
        """Of each video, as of the last ``compute``."""

    def update(self, logits: Tensor, labels: Tensor, video_ids: Tensor) -> None:
        """Counts views.

        Args:
            logits: (n, classes).
            labels: (n,) int64 in [0, classes), the same for all views of a video.
            video_ids: (n,) int64, at least 0.
        """
        self.add(logits.float().softmax(1), labels[:, None], video_ids)

    def compute(self) -> dict[str, Tensor]:
        """{top1, top5, loss} over all videos; top-k and loss of the mean of each video's probabilities."""
        means, labels = self.means_and_labels()
        own = means.gather(1, labels)
        # Of classes with the probability of the right one, those before it rank higher.
        is_before = torch.arange(self.num_classes, device=means.device) < labels
        rank = ((means > own) | ((means == own) & is_before)).sum(1)

        losses = -own[:, 0].clamp(min=1 / self.SCALE).log()
        best = means.sort(dim=1, descending=True, stable=True)
        top = (values[:, :5].clone() for values in (best.indices, best.values))  # or all the others would be kept
        self.top = TopClasses(labels[:, 0], own[:, 0], losses, *top)
        return {
            "top1": (rank < 1).double().mean(),
            "top5": (rank < 5).double().mean(),
            "loss": losses.mean(),
        }


class MultiLabelVideoScores(VideoMeans):
    """Mean average precision, F1 and loss of videos of which several classes may hold, or none.

    Args:
        num_classes: number of classes.
        threshold: probability from which on a class is predicted, for F1.
        loss: logits (videos, classes), of the mean probabilities, and labels → what is averaged.
    """

    def __init__(self, num_classes: int, threshold: float, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(num_classes, label_columns=num_classes)
        self.threshold = threshold
        self.loss = loss
        self.scores: MultiLabelScores | None = None
        """Of the last ``compute``."""
        self.videos: tuple[Tensor, Tensor, Tensor] | None = None
        """Of each video then: mean probabilities and labels, bool, (videos, classes), and losses (videos,)."""

    def update(self, logits: Tensor, labels: Tensor, video_ids: Tensor) -> None:
        """Counts views.

        Args:
            logits: (n, classes).
            labels: (n, classes) of 0 and 1, the same for all views of a video.
            video_ids: (n,) int64, at least 0.
        """
        # In float32 the last digit of a sigmoid depends on where in a batch it is computed.
        self.add(logits.double().sigmoid(), (labels > 0.5).long(), video_ids)

    def compute(self) -> dict[str, Tensor]:
        """{map, macro_f1, micro_f1, loss} over the videos of all processes, of the means of their probabilities."""
        means, labels = self.means_and_labels()
        logits = means.logit(eps=1 / self.SCALE)
        scores = multi_label_scores(logits.cpu().numpy(), labels.cpu().numpy() > 0, self.threshold)
        self.scores = scores
        values = {"map": scores.map, "macro_f1": scores.macro_f1, "micro_f1": scores.micro_f1}
        tensors = {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in values.items()}
        losses = self.loss(logits, labels.double()).double()
        self.videos = means, labels > 0, losses.mean(1)
        return {**tensors, "loss": losses.mean()}
