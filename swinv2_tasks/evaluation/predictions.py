"""What was predicted of each evaluated sample: val_predictions.csv and test_predictions.csv, written and read again.

Probabilities and losses have `DIGITS` decimals from the beginning, so that what is computed of the file is what was
computed of the predictions.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from swinv2_tasks.errors import UserError
from swinv2_tasks.files import replace_file
from swinv2_tasks.tables import read_table, write_table
from swinv2_tasks.text import printable

DIGITS = 8
"""Decimals of probabilities and losses."""

MOST_COLUMNS = 200
"""Classes at most of which each has a column with its probability, of several labels a sample."""

Results = TypeVar("Results")


def rounded(values: Any) -> np.ndarray:
    """Probabilities or losses as the files have them: float64."""
    return np.asarray(values, dtype=np.float64).round(DIGITS)


@dataclass(frozen=True)
class SingleLabelResults:
    """What was predicted of samples of one label each.

    Attributes:
        paths: the file of each sample; none where nobody knows them.
        labels: index of the class that holds, int64 (samples,).
        label_scores: its probability (samples,), in [0, 1].
        losses: (samples,).
        classes: the k most probable classes, the first one first, int64 (samples, k).
        scores: their probabilities (samples, k).
    """

    paths: Sequence[str]
    labels: np.ndarray
    label_scores: np.ndarray
    losses: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """Index of the predicted class (samples,)."""
        return self.classes[:, 0]

    @property
    def is_right(self) -> np.ndarray:
        """Whether it is the one that holds, bool (samples,)."""
        return self.predicted == self.labels


@dataclass(frozen=True)
class MultiLabelResults:
    """What was predicted of samples of which several classes may hold.

    Attributes:
        paths: the file of each sample; none where nobody knows them.
        labels: indices of the classes that hold, of each sample.
        classes: indices of those that are predicted, the most probable one first.
        scores: their probabilities, likewise.
        losses: mean over the classes, without their weights, (samples,).
        probabilities: of all classes (samples, classes); None where there are too many.
    """

    paths: Sequence[str]
    labels: Sequence[Sequence[int]]
    classes: Sequence[Sequence[int]]
    scores: Sequence[Sequence[float]]
    losses: np.ndarray
    probabilities: np.ndarray | None


# ---- of one label


def write_single_label(path: Path, results: SingleLabelResults, ids: Sequence[Any], names: Sequence[str]) -> None:
    """Writes a row for each sample, in their order.

    Args:
        path: the CSV file.
        results: what was predicted.
        ids: of the classes, in the order of their indices.
        names: likewise.
    """
    tops = range(1, results.classes.shape[1] + 1)
    columns = ["path", "label", "label name", *(f"{what}{k}" for k in tops for what in ("id", "score"))]

    def rows() -> Iterator[list[Any]]:
        yield [*columns, "label score", "loss"]
        arrays = (results.labels, results.classes, results.scores, results.label_scores, results.losses)
        lists = (array.tolist() for array in arrays)
        for file, label, classes, scores, label_score, loss in zip(results.paths, *lists, strict=True):
            best = [cell for k, score in zip(classes, scores, strict=True) for cell in (ids[k], score)]
            yield [file, ids[label], names[label], *best, label_score, loss]

    replace_file(path, lambda file: write_table(file, rows()))


def read_single_label(path: Path, ids: Sequence[Any]) -> SingleLabelResults:
    """Reads what ``write_single_label`` wrote.

    Args:
        path: the CSV file.
        ids: of the classes, in the order of their indices.

    Raises:
        UserError: it cannot be read, or is no such file.
    """

    def read(rows: list[dict[str, str]], index_of: Mapping[str, int]) -> SingleLabelResults:
        most = sum(name.startswith("id") for name in rows[0]) if rows else 0
        tops = range(1, most + 1)
        return SingleLabelResults(
            [row["path"] for row in rows],
            np.array([index_of[row["label"]] for row in rows], dtype=np.int64),
            np.array([float(row["label score"]) for row in rows]),
            np.array([float(row["loss"]) for row in rows]),
            np.array([[index_of[row[f"id{k}"]] for k in tops] for row in rows], dtype=np.int64),
            np.array([[float(row[f"score{k}"]) for k in tops] for row in rows]),
        )

    return _read(path, ids, read)


# ---- of several


def write_multi_label(path: Path, results: MultiLabelResults, ids: Sequence[Any], names: Sequence[str]) -> None:
    r"""Writes a row for each sample, in their order; classes have | between, one in an id is \|.

    Args:
        path: the CSV file.
        results: what was predicted.
        ids: of the classes, in the order of their indices.
        names: likewise.
    """
    columns = ["path", "labels", "label names", "ids", "names", "scores", "loss"]
    columns += [] if results.probabilities is None else [f"score {class_id}" for class_id in ids]

    def rows() -> Iterator[list[Any]]:
        yield columns
        losses = results.losses.tolist()
        for k, file in enumerate(results.paths):
            cells = [
                _join(texts[index] for index in indices)
                for indices in (results.labels[k], results.classes[k])
                for texts in (ids, names)
            ]
            all_scores = [] if results.probabilities is None else results.probabilities[k].tolist()
            yield [file, *cells, _join(results.scores[k]), losses[k], *all_scores]

    replace_file(path, lambda file: write_table(file, rows()))


def read_multi_label(path: Path, ids: Sequence[Any]) -> MultiLabelResults:
    """Reads what ``write_multi_label`` wrote.

    Args:
        path: the CSV file.
        ids: of the classes, in the order of their indices.

    Raises:
        UserError: it cannot be read, or is no such file.
    """

    def read(rows: list[dict[str, str]], index_of: Mapping[str, int]) -> MultiLabelResults:
        columns = [f"score {class_id}" for class_id in ids]
        has_all = bool(rows) and all(name in rows[0] for name in columns)
        return MultiLabelResults(
            [row["path"] for row in rows],
            [[index_of[part] for part in _split(row["labels"])] for row in rows],
            [[index_of[part] for part in _split(row["ids"])] for row in rows],
            [[float(part) for part in _split(row["scores"])] for row in rows],
            np.array([float(row["loss"]) for row in rows]),
            np.array([[float(row[name]) for name in columns] for row in rows]) if has_all else None,
        )

    return _read(path, ids, read)


def _join(parts: Any) -> str:
    return "|".join(re.sub(r"([\\|])", r"\\\1", str(part)) for part in parts)


def _split(cell: str) -> list[str]:
    if not cell:
        return []
    parts = re.findall(r"(?:^|\|)((?:[^\\|]|\\.)*)", cell, re.DOTALL)
    return [re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL) for part in parts]


def _read(
    path: Path, ids: Sequence[Any], read: Callable[[list[dict[str, str]], Mapping[str, int]], Results]
) -> Results:
    index_of = {str(class_id): index for index, class_id in enumerate(ids)}
    try:
        return read(read_table(path), index_of)
    except OSError as error:
        reason = error.strerror or str(error)
    except KeyError as error:
        reason = f"it has no column, or no class, {error}"
    except (ValueError, csv.Error) as error:
        reason = str(error)[:200]
    raise UserError(
        f"{printable(path)} cannot be read: {printable(reason)}. Run swinv2-tasks validate again, which writes it."
    )
