"""Images and videos that a report of a classifier shows: confident mistakes, hard ones, probable label errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal

import numpy as np
from PIL import Image

from swinv2_tasks.callbacks.video import draw_frames
from swinv2_tasks.commands.report.blocks import Block, Column, Example, Examples, Section, Table
from swinv2_tasks.commands.report.classified import Classified
from swinv2_tasks.commands.report.pictures import (
    SIDE,
    Drawing,
    describe_unreadable,
    draw_files,
    embedded,
    gray_picture,
    reader_of,
)
from swinv2_tasks.commands.report.run import Run
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.label_errors import LabelErrors, find_label_errors
from swinv2_tasks.evaluation.predictions import MultiLabelResults, SingleLabelResults
from swinv2_tasks.pages import reduce
from swinv2_tasks.text import shorten

MISTAKES = 12
"""Confident mistakes that are shown."""

HARDEST = 6
"""Samples with the least probable right predictions."""

LABEL_ERRORS = 30
"""Probable label errors."""

WORST = 24
"""Samples of several labels with the highest losses."""

LISTED = 100
"""Probable label errors that a table lists with their files."""

MOST_NAMED = 4
"""Classes that a line names."""


def single_label_examples(run: Run, classified: Classified, results: SingleLabelResults) -> list[Section]:
    """The sections of samples of one label each; those that cannot be read any more are gray.

    Args:
        run: the run's files.
        classified: the scores.
        results: what was predicted.
    """
    wrong, right = np.flatnonzero(~results.is_right), np.flatnonzero(results.is_right)
    mistakes = wrong[np.argsort(-results.scores[wrong, 0], kind="stable")][:MISTAKES].tolist()
    hardest = right[np.argsort(results.label_scores[right], kind="stable")][:HARDEST].tolist()
    errors = find_label_errors(results.labels, results.label_scores, results.classes, results.scores)
    suspects = errors.samples[:LABEL_ERRORS].tolist()

    drawn = draw_samples(run, [results.paths[k] for k in [*mistakes, *hardest, *suspects]], classified.samples)
    names = classified.names

    def show(k: int, other: int, frame: Literal["right", "wrong"]) -> Example:
        label, predicted = names[results.labels[k]], names[other]
        other_score = float(results.scores[k][results.classes[k] == other][0])
        lines = [f"labeled {shorten(label)} {results.label_scores[k]:.1%}"]
        lines += [f"predicted {shorten(predicted)} {other_score:.1%}"] * (frame == "wrong")
        return drawn.example(results.paths[k], lines, f"{label}, predicted {predicted}", frame)

    suggested = dict(zip(errors.samples.tolist(), errors.suggested.tolist(), strict=True))
    first = [
        Examples(
            "Most confident mistakes",
            [show(k, int(results.predicted[k]), "wrong") for k in mistakes],
            "Wrong, and surer of it than of any other mistake.",
        ),
        Examples(
            "Hardest right ones",
            [show(k, int(results.predicted[k]), "right") for k in hardest],
            "Right, though the label has the lowest probability of all that are.",
        ),
    ]
    second: list[Block] = [Examples("Probable label errors", [show(k, suggested[k], "wrong") for k in suspects])]
    second.append(_error_table(errors, results, names))
    note = (
        "Ranked by how much more probable another class is than the label. By confident learning "
        f"(https://arxiv.org/abs/1911.00068) {int(errors.is_wrong.sum())} of {len(results.labels)} labels count as "
        "wrong, of which the more are true, the better the model is."
    )
    sections = [Section("Single predictions", [block for block in first if block.examples], drawn.note)]
    if suspects:
        sections.append(Section("Labels that may be wrong", second, note))
    return [section for section in sections if section.blocks]


def _error_table(errors: LabelErrors, results: SingleLabelResults, names: Sequence[str]) -> Table:
    """The files of probable label errors, to be looked at."""
    rows: list[list[float | str | None]] = []
    for k, suggested, margin, is_wrong in zip(
        errors.samples, errors.suggested, errors.margins, errors.is_wrong, strict=True
    ):
        verdict = "wrong" if is_wrong else None
        rows.append([results.paths[k], names[results.labels[k]], names[suggested], -float(margin), verdict])
    columns = [Column("file"), Column("label"), Column("more probable"), Column("by", 1, True), Column("counts as")]
    note = f"The first {LISTED} of {len(rows)}." if len(rows) > LISTED else ""
    return Table("Files of probable label errors", columns, rows[:LISTED], note)


def multi_label_examples(run: Run, classified: Classified, results: MultiLabelResults) -> list[Section]:
    """The section of samples of several labels with the highest losses.

    Args:
        run: the run's files.
        classified: the scores.
        results: what was predicted.
    """
    worst = np.argsort(-results.losses, kind="stable")[:WORST].tolist()
    drawn = draw_samples(run, [results.paths[k] for k in worst], classified.samples)
    names = classified.names
    shown = []
    for k in worst:
        labels, classes = {*results.labels[k]}, results.classes[k]
        false = [f"{shorten(names[c], 24)} {score:.0%}" for c, score in zip(classes, results.scores[k], strict=True)
                 if c not in labels]  # fmt: skip
        missed = [_with_score(results, k, c, names) for c in results.labels[k] if c not in classes]
        hit = [shorten(names[c], 24) for c in classes if c in labels]
        lines = [
            _list(title, parts) for title, parts in (("missed", missed), ("wrong", false), ("right", hit)) if parts
        ]
        is_right = not missed and not false
        text = ", ".join(names[c] for c in results.labels[k]) or "no class"
        drawing = drawn.example(results.paths[k], lines or ["no class"], text, "right" if is_right else "wrong")
        shown.append(drawing)
    note = f"The {classified.samples} with the highest losses."
    return [Section("Single predictions", [Examples("Worst mistakes", shown, note)], drawn.note)] if shown else []


def _with_score(results: MultiLabelResults, sample: int, index: int, names: Sequence[str]) -> str:
    name = shorten(names[index], 24)
    return name if results.probabilities is None else f"{name} {results.probabilities[sample, index]:.0%}"


def _list(title: str, parts: Sequence[str]) -> str:
    more = len(parts) - MOST_NAMED
    return f"{title}: {', '.join(parts[:MOST_NAMED])}" + (f" and {more} more" if more > 0 else "")


# ---- pictures


class DrawnSamples:
    """Pictures of files, by their paths."""

    def __init__(self, images: dict[str, Image.Image | None], samples: str) -> None:
        self.images = images
        parts = [describe_unreadable(sum(image is None for image in images.values()))]
        parts += ["Of each video four frames, in reading order."] * (samples == "videos")
        self.note = " ".join(filter(None, parts))

    def example(self, path: str, lines: Sequence[str], text: str, frame: Literal["right", "wrong"]) -> Example:
        """A sample with its file's name."""
        image = self.images[path] or gray_picture()
        return Example([embedded(image, text)], PurePath(path).name, lines, frame)


def draw_samples(run: Run, paths: Sequence[str], samples: str) -> DrawnSamples:
    """Draws files, each once."""
    different = [*dict.fromkeys(paths)]
    if samples == "videos":
        return DrawnSamples({path: _draw_video(path) for path in different}, samples)
    drawn = draw_files(reader_of(run), [Drawing(path, _draw_image) for path in different])
    first = [None if images is None else images[0] for images in drawn]
    return DrawnSamples(dict(zip(different, first, strict=True)), samples)


def _draw_image(image: Image.Image) -> list[Image.Image]:
    return [reduce(image, SIDE)]


def _draw_video(path: str) -> Image.Image | None:
    """Four frames of a video; None where it cannot be read any more."""
    try:
        return reduce(draw_frames(path), SIDE)
    except (UserError, OSError, ValueError, MemoryError, IndexError):  # of a file that has changed since
        return None
