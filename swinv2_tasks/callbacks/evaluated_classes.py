"""What an evaluation predicted of each image or video, and the scores of each class: files that a report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swinv2_tasks.callbacks.class_tables import print_worst, write_scores
from swinv2_tasks.callbacks.classification import ids_and_names
from swinv2_tasks.callbacks.evaluated_samples import gather_on_first
from swinv2_tasks.callbacks.evaluation_hooks import EvaluationCallback
from swinv2_tasks.evaluation.classification import top_classes
from swinv2_tasks.evaluation.predictions import (
    MOST_COLUMNS,
    MultiLabelResults,
    SingleLabelResults,
    rounded,
    write_multi_label,
    write_single_label,
)

MOST_TOP = 5
"""Classes that are kept of a sample of one label, the most probable ones."""


class _EvaluatedClasses(EvaluationCallback):
    """Keeps what an evaluation predicts and writes it at its end, of the first one of several loaders.

    Nothing waits for the device before that. A process has little of each sample: of ImageNet's 50,000 validation
    images 6 MB and their names, of one label each.

    Args:
        folder: where to write: the run's folder.
    """

    samples: str
    """What samples are, as the files call them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts: list[Any] = []

    def clear(self) -> None:
        """Forgets what there was."""
        self._parts.clear()

    def take(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keeps what was predicted of a batch."""
        if (part := self.part(task, outputs, batch, batch_idx)) is not None:
            self._parts.append(part)

    def part(self, task: Any, outputs: Any, batch: Any, batch_idx: int) -> Any:
        """What is kept of a batch; None: nothing."""
        raise NotImplementedError

    def own(self, parts: list[Any]) -> Any:
        """What this process has kept of all batches, as it is sent to the first one."""
        raise NotImplementedError

    def results(self, task: Any, split: str, gathered: list[Any]) -> SingleLabelResults | MultiLabelResults | None:
        """What was predicted; None where there were no samples.

        Args:
            task: that is evaluated.
            split: of the evaluation.
            gathered: what was kept in each process.
        """
        raise NotImplementedError

    def finish(self, trainer: Any, task: Any, split: str) -> None:
        """Writes what the evaluation predicted."""
        gathered = gather_on_first(self.own(self._parts))
        self._parts.clear()
        results = self.results(task, split, gathered) if gathered else None
        if results is None:
            return

        ids, names = ids_and_names(task)
        path = self.folder / f"{split}_predictions.csv"
        if isinstance(results, SingleLabelResults):
            write_scores(self.folder / f"{split}_classes.json", results, ids, names, self.samples)
            if results.paths:
                write_single_label(path, results, ids, names)
            if trainer.state.fn != "fit":
                print_worst(results, ids, names, self.samples)
        elif results.paths:
            write_multi_label(path, results, ids, names)


class EvaluatedImages(_EvaluatedClasses):
    """Writes val_predictions.csv or test_predictions.csv, what was predicted of each image, where files are known.

    Of one label an image also val_classes.json or test_classes.json, and outside of a training the classes with the
    lowest F1 are printed; of several labels ``MultiLabelTable`` does that.

    Args:
        folder: where to write: the run's folder.
    """

    samples = "images"

    def part(self, task: Any, outputs: Any, batch: Any, batch_idx: int) -> Any:
        """The number of the batch, the images' files, and tensors of as many rows."""
        if not outputs:  # of a task that evaluates in a way of its own
            return None
        logits, labels = outputs["logits"], batch["label"]
        if task.multi_label:
            return batch_idx, batch.get("path"), (task.probabilities_of(logits), labels > 0.5, outputs["losses"])
        return batch_idx, batch.get("path"), top_classes(logits, labels, min(MOST_TOP, logits.shape[1]))

    def own(self, parts: list[Any]) -> Any:
        """Of each image the number of its batch and its file, and arrays of as many rows; None without images."""
        if not parts:
            return None
        numbers, paths, tensors = zip(*parts, strict=True)
        arrays = [_as_array(torch.cat(column)) for column in zip(*tensors, strict=True)]
        batches = np.repeat(numbers, [len(part[0]) for part in tensors])
        files = None if None in paths else [str(path) for batch_paths in paths for path in batch_paths]
        return batches, files, arrays

    def results(self, task: Any, split: str, gathered: list[Any]) -> SingleLabelResults | MultiLabelResults | None:
        """What was predicted of the images of all processes, in the order of the dataset."""
        of_processes = [part for part in gathered if part is not None]
        if not of_processes:
            return None
        batches, files, arrays = zip(*of_processes, strict=True)
        # Batch k of each process comes before batch k + 1 of any.
        order = np.concatenate(batches).argsort(kind="stable")
        columns = [np.concatenate(column)[order] for column in zip(*arrays, strict=True)]
        paths = [] if None in files else [path for own_files in files for path in own_files]
        paths = [paths[index] for index in order] if paths else []
        return _multi_label(task, paths, *columns) if task.multi_label else _single_label(paths, *columns)


class EvaluatedVideos(_EvaluatedClasses):
    """The same of videos, each by the mean over all of its views.

    Args:
        folder: where to write: the run's folder.
    """

    samples = "videos"

    def part(self, task: Any, outputs: Any, batch: Any, batch_idx: int) -> Any:
        """The numbers of the videos, and their files."""
        return batch["video_id"], batch.get("path")

    def own(self, parts: list[Any]) -> Any:
        """The file of each video that this process had, by its number; None where they are not known."""
        if any(paths is None for _, paths in parts):
            return None
        return {number: str(path) for ids, paths in parts for number, path in zip(ids.tolist(), paths, strict=True)}

    def results(self, task: Any, split: str, gathered: list[Any]) -> SingleLabelResults | MultiLabelResults | None:
        """What was predicted of the videos of all processes, which their scores have already."""
        scores = getattr(task, f"{split}_multi_label" if task.multi_label else f"{split}_scores")
        evaluated = scores.videos if task.multi_label else scores.top
        if evaluated is None:
            return None
        path_of = {} if None in gathered else {number: path for own in gathered for number, path in own.items()}
        numbers = scores.video_ids.tolist()
        paths = [path_of[number] for number in numbers] if path_of else []
        columns = [_as_array(column) for column in evaluated]
        return _multi_label(task, paths, *columns) if task.multi_label else _single_label(paths, *columns)


def _as_array(column: Tensor) -> np.ndarray:
    return (column.float() if column.dtype == torch.bfloat16 else column).cpu().numpy()


def _single_label(
    paths: Sequence[str],
    labels: np.ndarray,
    label_scores: np.ndarray,
    losses: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
) -> SingleLabelResults | None:
    """Results of the samples that have a label; None where none has."""
    is_labeled = labels >= 0
    if not is_labeled.any():
        return None
    return SingleLabelResults(
        [path for path, keeps in zip(paths, is_labeled, strict=True) if keeps] if paths else [],
        labels[is_labeled],
        rounded(label_scores[is_labeled]),
        rounded(losses[is_labeled]),
        classes[is_labeled],
        rounded(scores[is_labeled]),
    )


def _multi_label(
    task: Any, paths: Sequence[str], probabilities: np.ndarray, labels: np.ndarray, losses: np.ndarray
) -> MultiLabelResults:
    """Results by probabilities and labels (samples, classes) and losses (samples,)."""
    classes, scores = [], []
    for row in probabilities:
        order = (-row).argsort(kind="stable")
        predicted = order[row[order] >= task.threshold]
        classes.append(predicted.tolist())
        scores.append(rounded(row[predicted]).tolist())
    has_columns = probabilities.shape[1] <= MOST_COLUMNS
    return MultiLabelResults(
        paths,
        [np.flatnonzero(row).tolist() for row in labels],
        classes,
        scores,
        rounded(losses),
        rounded(probabilities) if has_columns else None,
    )
