"""Predictions of evaluated samples come back from their files as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.predictions import (
    MultiLabelResults,
    SingleLabelResults,
    read_multi_label,
    read_single_label,
    rounded,
    write_multi_label,
    write_single_label,
)
from swinv2_tasks.tables import read_table

PATHS = ["=a.jpg", 'b\nc,"d".jpg', "caf\udce9.jpg", "data/e.jpg"]
IDS = ["n1", 7, "a|b\\", "=x"]
NAMES = ["one", "seven", "a or b", "a formula"]


def single_label() -> SingleLabelResults:
    rng = np.random.default_rng(0)
    classes = np.stack([rng.permutation(4)[:3] for _ in PATHS])
    scores = rounded(-(np.sort(-rng.random((4, 3)), axis=1) ** 9))
    losses = rounded(np.array([0, 1e-9, 3.25, 123.456789012]))
    return SingleLabelResults(PATHS, np.array([0, 1, 2, 3]), rounded(rng.random(4)), losses, classes, scores)


def test_of_one_label(tmp_path: Path) -> None:
    results, path = single_label(), tmp_path / "val_predictions.csv"
    write_single_label(path, results, IDS, NAMES)
    again = read_single_label(path, IDS)
    assert again.paths == results.paths
    for name in ("labels", "label_scores", "losses", "classes", "scores"):
        np.testing.assert_array_equal(getattr(again, name), getattr(results, name))
    row = read_table(path)[2]
    assert [*row] == [
        "path",
        "label",
        "label name",
        *["id1", "score1", "id2", "score2", "id3", "score3"],
        "label score",
        "loss",
    ]
    assert (row["path"], row["label"], row["label name"]) == (PATHS[2], "a|b\\", "a or b")


@pytest.mark.parametrize("has_all", [True, False])
def test_of_several_labels(has_all: bool, tmp_path: Path) -> None:
    probabilities = rounded(np.random.default_rng(0).random((4, 4)))
    classes = [[2, 0], [], [1], [3, 2, 1, 0]]
    results = MultiLabelResults(
        PATHS,
        [[0, 2], [1], [], [3]],
        classes,
        [probabilities[k, indices].tolist() for k, indices in enumerate(classes)],
        rounded(np.array([0.1, 0.2, 0.3, 0.4])),
        probabilities if has_all else None,
    )
    path = tmp_path / "val_predictions.csv"
    write_multi_label(path, results, IDS, NAMES)
    again = read_multi_label(path, IDS)
    assert (again.paths, again.labels, again.classes, again.scores) == (
        results.paths,
        results.labels,
        results.classes,
        results.scores,
    )
    np.testing.assert_array_equal(again.losses, results.losses)
    if has_all:
        np.testing.assert_array_equal(again.probabilities, probabilities)
    else:
        assert again.probabilities is None


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (b"n1", b"n2", "no class, 'n2'"),
        (b"loss", b"cost", "'loss'"),
        (b"3.25", b"3.2x", "3.2x"),
        (b"e.jpg", b"\xff", ""),
    ],
    ids=["class", "column", "number", "bytes"],
)
def test_another_file_is_refused(before: bytes, after: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "val_predictions.csv"
    write_single_label(path, single_label(), IDS, NAMES)
    path.write_bytes(path.read_bytes().replace(before, after))
    with pytest.raises(UserError, match=f"{reason}.*Run swinv2-tasks validate"):
        read_single_label(path, IDS)
