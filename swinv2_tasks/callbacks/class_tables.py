"""Scores of the classes of which one holds for each sample: a file, and the worst of them printed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_tasks.evaluation.calibration import calibrate
from swinv2_tasks.evaluation.class_scores import class_scores, mean
from swinv2_tasks.evaluation.predictions import SingleLabelResults
from swinv2_tasks.files import replace_file
from swinv2_tasks.tables import TerminalTable

MOST_PRINTED = 10
"""Classes that are printed at the end of an evaluation, those with the lowest F1."""


def print_worst(results: SingleLabelResults, ids: Sequence[Any], names: Sequence[str], samples: str) -> None:
    """Prints the classes with the lowest F1; nothing where all are right.

    Args:
        results: what was predicted.
        ids: of the classes, in the order of their indices.
        names: likewise.
        samples: what samples are called.
    """
    scores = class_scores(results.labels, results.predicted, len(ids))
    order = np.argsort(scores.f1, kind="stable")[:MOST_PRINTED]
    worst = [k for k in order if scores.f1[k] < 1]
    if not worst:
        return
    table = TerminalTable(title=f"lowest F1 of {len(ids)} classes")
    table.add_column("id", justify="right")
    table.add_column("class", overflow="fold")
    for column in ("precision", "recall", "F1", samples):
        table.add_column(column, justify="right")
    for k in worst:
        values = (scores.precision[k], scores.recall[k], scores.f1[k])
        cells = ["–" if math.isnan(value) else f"{value:.4f}" for value in values]
        table.add_row(str(ids[k]), names[k], *cells, f"{scores.samples[k]:,}")
    table.print()


def write_scores(
    path: Path, results: SingleLabelResults, ids: Sequence[Any], names: Sequence[str], samples: str
) -> None:
    """Writes scores as JSON: of all samples, and under ``classes`` a row per class; null where there is nothing.

    Args:
        path: the file.
        results: what was predicted.
        ids: of the classes, in the order of their indices.
        names: likewise.
        samples: what samples are called.
    """

    def number(value: float) -> float | None:
        return None if math.isnan(value) else float(value)

    scores = class_scores(results.labels, results.predicted, len(ids))
    content = {
        "top1": float(results.is_right.mean()),
        "top5": float((results.classes == results.labels[:, None]).any(1).mean()),
        **{f"macro_{name}": number(mean(getattr(scores, name))) for name in ("precision", "recall", "f1")},
        "ece": number(calibrate(results.scores[:, 0], results.is_right).ece),
        samples: len(results.labels),
        "classes": [
            {
                "id": class_id,
                "name": name,
                **{column: number(getattr(scores, column)[k]) for column in ("precision", "recall", "f1")},
                samples: int(scores.samples[k]),
            }
            for k, (class_id, name) in enumerate(zip(ids, names, strict=True))
        ],
    }
    text = json.dumps(content, indent=2) + "\n"
    replace_file(path, lambda file: file.write_text(text, "utf-8"))
