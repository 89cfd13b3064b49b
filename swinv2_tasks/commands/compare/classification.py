"""How two classifiers differ in the images or videos that both were evaluated on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from swinv2_tasks.commands.compare.differences import INTERVALS, MOST_EXAMPLES, class_table, number_of
from swinv2_tasks.commands.report.blocks import Block, Example, Examples, Numbers, Section
from swinv2_tasks.commands.report.classification_examples import draw_samples
from swinv2_tasks.commands.report.classified import Classified, read_classified
from swinv2_tasks.commands.report.run import Run, Split, split_title
from swinv2_tasks.evaluation.bootstrap import Difference, mean_difference
from swinv2_tasks.evaluation.predictions import MultiLabelResults, SingleLabelResults
from swinv2_tasks.text import shorten

Results = TypeVar("Results", SingleLabelResults, MultiLabelResults)


def difference_sections(first: Run, second: Run, split: Split) -> list[Section]:
    """What a second run classifies otherwise than a first one.

    Raises:
        UserError: a file of theirs is there and cannot be read.
    """
    title = f"{split_title(split)} samples"
    both = [read_classified(run, split) for run in (first, second)]
    before, after = both
    if before is None or after is None or before.results is None or after.results is None:
        return [Section(title, [], "What they predicted of each sample is not written: validate both again.")]
    if [row["id"] for row in before.scores["classes"]] != [row["id"] for row in after.scores["classes"]]:
        return [Section(title, [], "Their classes differ, so that no samples are compared.")]
    if isinstance(before.results, SingleLabelResults) and isinstance(after.results, SingleLabelResults):
        return _compare_single(second, before, before.results, after.results, title)
    if isinstance(before.results, MultiLabelResults) and isinstance(after.results, MultiLabelResults):
        return [_compare_several(before, before.results, after.results, title)]
    return [Section(title, [], "One has one label a sample, the other several.")]


def _in_common(before: Results, after: Results) -> tuple[list[int], list[int]]:
    """Positions of the samples that both have, in the first one's order."""
    positions = {path: k for k, path in enumerate(after.paths)}
    common = [(k, positions[path]) for k, path in enumerate(before.paths) if path in positions]
    return [k for k, _ in common], [k for _, k in common]


def _take(results: SingleLabelResults, chosen: list[int]) -> SingleLabelResults:
    arrays: dict[str, Any] = {
        name: getattr(results, name)[chosen] for name in ("labels", "label_scores", "losses", "classes", "scores")
    }
    return replace(results, paths=[results.paths[k] for k in chosen], **arrays)


def _describe_common(number: int, before: Results, after: Results, samples: str) -> str:
    """On how many samples a comparison rests."""
    total = max(len(before.paths), len(after.paths))
    text = f"{number:,} {samples} that both were evaluated on"
    return f"{text}." if number == total else f"{text}, of {total:,}."


# ---- one label a sample


def _compare_single(
    run: Run, classified: Classified, before: SingleLabelResults, after: SingleLabelResults, title: str
) -> list[Section]:
    chosen, others = _in_common(before, after)
    first, second = _take(before, chosen), _take(after, others)
    same = first.labels == second.labels
    note = _describe_common(len(chosen), before, after, classified.samples)
    if not len(chosen):
        return [Section(title, [], note)]
    if not same.all():
        note += f" {int((~same).sum()):,} have other labels in the second run and are left out."
        kept = np.flatnonzero(same).tolist()
        first, second = _take(first, kept), _take(second, kept)
    top1 = mean_difference(first.is_right, second.is_right)
    loss = mean_difference(first.losses, second.losses)
    numbers = Numbers("", [number_of("top-1", top1), number_of("loss", loss)], f"Second minus first. {INTERVALS}")

    names = classified.names
    members = [np.flatnonzero(first.labels == k) for k in range(len(names))]
    differences = [
        mean_difference(first.is_right[own], second.is_right[own]) if len(own) else Difference(np.nan, np.nan, np.nan)
        for own in members
    ]
    recalls = [
        [float(results.is_right[own].mean()) if len(own) else None for own in members] for results in (first, second)
    ]
    sizes = [len(own) for own in members]
    table = class_table(names, recalls[0], recalls[1], differences, "recall", sizes, classified.samples)
    sections = [Section(title, [numbers, table], note)]
    if (examples := _examples(run, classified, first, second)) is not None:
        sections.append(examples)
    return sections


def _examples(
    run: Run, classified: Classified, first: SingleLabelResults, second: SingleLabelResults
) -> Section | None:
    """Samples that one gets right and the other wrong, those of the largest difference in the label's probability."""
    gain = second.label_scores - first.label_scores
    won = np.flatnonzero(~first.is_right & second.is_right)
    lost = np.flatnonzero(first.is_right & ~second.is_right)
    numbers = (len(won), len(lost))
    won = won[np.argsort(-gain[won], kind="stable")][:MOST_EXAMPLES]
    lost = lost[np.argsort(gain[lost], kind="stable")][:MOST_EXAMPLES]
    drawn = draw_samples(run, [first.paths[k] for k in [*won.tolist(), *lost.tolist()]], classified.samples)
    names = classified.names

    def show(k: int) -> Example:
        label = names[first.labels[k]]
        lines = [f"labeled {shorten(label)}"]
        for word, results in (("first", first), ("second", second)):
            lines.append(f"{word}: {shorten(names[results.predicted[k]])} {results.scores[k, 0]:.1%}")
        return drawn.example(first.paths[k], lines, label, "right" if second.is_right[k] else "wrong")

    titles = (
        f"Right in the second run alone ({numbers[0]:,})",
        f"Right in the first run alone ({numbers[1]:,})",
    )
    blocks: list[Block] = [
        Examples(title, [show(k) for k in chosen.tolist()])
        for title, chosen in zip(titles, (won, lost), strict=True)
        if len(chosen)
    ]
    return Section("samples that one gets right", blocks, drawn.note) if blocks else None


# ---- several labels


def _compare_several(
    classified: Classified, before: MultiLabelResults, after: MultiLabelResults, title: str
) -> Section:
    chosen, others = _in_common(before, after)
    note = _describe_common(len(chosen), before, after, classified.samples)
    if not chosen:
        return Section(title, [], note)
    loss = mean_difference(before.losses[chosen], after.losses[others])
    first = np.array([{*before.classes[k]} == {*before.labels[k]} for k in chosen])
    second = np.array([{*after.classes[k]} == {*after.labels[k]} for k in others])
    numbers = [number_of("all labels right", mean_difference(first, second)), number_of("loss", loss)]
    differences: list[Difference] = []
    recalls: tuple[list[float | None], list[float | None]] = ([], [])
    sizes: list[int] = []
    for label in range(len(classified.names)):
        pairs = [(a, b) for a, b in zip(chosen, others, strict=True) if label in before.labels[a]]
        hits = [
            np.array([label in results.classes[pair[side]] for pair in pairs], dtype=bool)
            for side, results in enumerate((before, after))
        ]
        differences.append(mean_difference(hits[0], hits[1]))
        for side in (0, 1):
            recalls[side].append(float(hits[side].mean()) if pairs else None)
        sizes.append(len(pairs))
    table = class_table(classified.names, recalls[0], recalls[1], differences, "recall", sizes, classified.samples)
    return Section(title, [Numbers("", numbers, f"Second minus first. {INTERVALS}"), table], note)
