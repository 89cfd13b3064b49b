"""A table of an evaluation's images: a row each, written by the first process as the evaluation ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swinv2_tasks.callbacks.evaluated_samples import gather_on_first
from swinv2_tasks.callbacks.evaluation_hooks import EvaluationCallback
from swinv2_tasks.files import replace_file
from swinv2_tasks.tables import write_table

Position = tuple[int, int, int]
"""Where an image stands in an evaluation: batch, process, place in the batch. In this order they are the dataset's."""


class EvaluatedImages(EvaluationCallback):
    """Writes val_images.csv or test_images.csv: each image's file and what a subclass says of it.

    Nothing of batches that do not name their files. An image that a sampler repeats, to give all processes equally
    many, stands there once. Further evaluation loaders are left out.

    Args:
        folder: where to write: the run's folder.
    """

    columns: Sequence[str] = ()
    """Names of the columns after that of the files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clear()

    def values(self, task: Any, outputs: Any, batch: Any, positions: Sequence[Position]) -> list[list[Any]]:
        """A row of each image of a batch.

        Args:
            task: the task.
            outputs: what its step has returned.
            batch: the batch.
            positions: where each image stands in the evaluation.
        """
        raise NotImplementedError

    def clear(self) -> None:
        """Forgets the images of the evaluation before."""
        self._rows: list[tuple[Position, str, list[Any]]] = []

    def finish(self, trainer: Any, task: Any, split: str) -> None:
        """Writes the table; called by all processes as an evaluation ends."""
        rows = sorted(row for rows in gather_on_first(self._rows) for row in rows)
        once = {file: values for _, file, values in reversed(rows)}
        if once:
            table = [["file", *self.columns], *([file, *values] for file, values in reversed(once.items()))]
            replace_file(self.folder / f"{split}_images.csv", lambda path: write_table(path, table))

    def take(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Takes the images of a batch."""
        if outputs is None or "path" not in batch:
            return
        files = [str(file) for file in batch["path"]]
        positions = [(batch_idx, trainer.global_rank, index) for index in range(len(files))]
        values = self.values(task, outputs, batch, positions)
        self._rows += zip(positions, files, values, strict=True)
