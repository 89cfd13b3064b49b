"""What a run has predicted of the images or videos of an evaluation, as its files say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swinv2_tasks.commands.report.detected import read_file, remedy_of
from swinv2_tasks.commands.report.run import Run, Split
from swinv2_tasks.evaluation.multi_label import CURVE_STEPS
from swinv2_tasks.evaluation.predictions import (
    MultiLabelResults,
    SingleLabelResults,
    read_multi_label,
    read_single_label,
)
from swinv2_tasks.records import each, either, mapping, number, optional, plain, text, whole

_SHARE = optional(number(0, 1))
_SHARES = each(_SHARE, CURVE_STEPS + 1)

_OF_CLASS = {"id": plain, "name": text, "precision": _SHARE, "recall": _SHARE, "f1": _SHARE}

SINGLE_LABEL = mapping(
    {"top1": _SHARE, "top5": _SHARE, "ece": _SHARE, "classes": each(mapping(_OF_CLASS), least=1)},
    {"images": whole(), "videos": whole()},
)
"""What val_classes.json holds of one label a sample."""

MULTI_LABEL = mapping(
    {
        "map": _SHARE,
        "macro_f1": _SHARE,
        "micro_f1": _SHARE,
        "threshold": number(0, 1),
        "classes": each(mapping({**_OF_CLASS, "ap": _SHARE}), least=1),
    },
    {"f1_curve": mapping({"thresholds": _SHARES, "micro_f1": _SHARES, "macro_f1": _SHARES})},
)
"""What it holds of several labels."""


@dataclass(frozen=True)
class Classified:
    """Scores of an evaluation, and what was predicted.

    Attributes:
        scores: what val_classes.json says.
        names: of the classes, as files have them.
        samples: what samples are called: images or videos.
        results: of each sample; None where the run has not written them.
        note: what is missing, and the command that writes it.
    """

    scores: Mapping[str, Any]
    names: Sequence[str]
    samples: str
    results: SingleLabelResults | MultiLabelResults | None
    note: str


def read_classified(run: Run, split: Split) -> Classified | None:
    """What a run has predicted; None where it has written no scores.

    Raises:
        UserError: a file is there and cannot be read.
    """
    scores = read_file(run, f"{split}_classes.json", either(SINGLE_LABEL, MULTI_LABEL), split)
    if scores is None:
        return None
    classes = scores["classes"]
    ids, names = [row["id"] for row in classes], [row["name"] for row in classes]
    samples = "videos" if "videos" in classes[0] else "images"

    name = f"{split}_predictions.csv"
    if not run.has(name):
        note = f"What depends on single {samples} needs {name}: {remedy_of(run, split)} writes it."
        return Classified(scores, names, samples, None, note)
    results: SingleLabelResults | MultiLabelResults
    if "top1" in scores:
        results = read_single_label(run.folder / name, ids)
    else:
        results = read_multi_label(run.folder / name, ids)
    return Classified(scores, names, samples, results if results.paths else None, "")
