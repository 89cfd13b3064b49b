"""Scores of videos, each evaluated in several views."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class VideoScores(Metric):
    """Accuracy and loss of videos whose probabilities are averaged over their views, in whatever batches these come.

    Probabilities are rounded to 2⁻⁴⁰ and summed as integers per video: bitwise identical in whatever batches, order and
    number of processes the views come.

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
        super().__init__(sync_on_compute=False)  # compute sums over processes itself: each has different videos
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
        shortage = int(ids.max()) + 1 - len(self._rows)
        if shortage > 0:
            self._rows = torch.cat([self._rows, self._no_rows(max(shortage, len(self._rows)))])
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

        rows = rows[rows[:, -1] > 0]  # of videos that have been seen
        views = rows[:, -1]
        labels = rows[:, -2] // views
        means = rows[:, :-2].double() / (self.SCALE * views[:, None])

        own = means.gather(1, labels[:, None])
        # Of classes with the probability of the right one, those before it rank higher.
        is_before = torch.arange(self.num_classes, device=means.device) < labels[:, None]
        rank = ((means > own) | ((means == own) & is_before)).sum(1)

        losses = -own[:, 0].clamp(min=1 / self.SCALE).log()
        return {
            "top1": (rank < 1).double().mean(),
            "top5": (rank < 5).double().mean(),
            "loss": losses.mean(),
        }

    def reset(self) -> None:
        """Forgets all videos."""
        super().reset()
        self._rows = self._no_rows(0)
        self._pending.clear()

    def _no_rows(self, number: int) -> Tensor:
        """Sums of probabilities and of labels, and the number of views of each video: int64 (number, classes + 2)."""
        return torch.zeros(number, self.num_classes + 2, dtype=torch.int64, device=self.device)
