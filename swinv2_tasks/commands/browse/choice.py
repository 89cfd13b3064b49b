"""Which samples are shown: chosen by a seed, spread over the classes, or those that show a class."""

from __future__ import annotations

import difflib
from collections import Counter
from typing import Any

import numpy as np

from swinv2_tasks.commands.browse.stored import Labels
from swinv2_tasks.errors import ArgumentsError
from swinv2_tasks.progress import WorkProgress
from swinv2_tasks.text import printable


def find_class(data: Any, name: str) -> int:
    """The index of a class, by its name or its id.

    Raises:
        ArgumentsError: There is no such class, or the data have none.
    """
    names, ids = [*map(str, data.class_names)], [*map(str, data.class_ids)]
    if not names:
        raise ArgumentsError("data browse: --class: there are no classes.")
    for known in (names, ids):
        if name in known:
            return known.index(name)
    nearest = difflib.get_close_matches(name, dict.fromkeys([*names, *ids]), n=3) or names[:8]
    listed = ", ".join(map(printable, nearest))
    raise ArgumentsError(f"data browse: --class: there is no class {printable(name)} among {len(names)}; as {listed}.")


def choose(labels: Labels, samples: int, number: int, seed: int, class_index: int | None) -> tuple[list[int], int]:
    """Chooses samples.

    Where the classes of all are known, each class is shown about as often as any other; else any sample is as likely.

    Args:
        labels: What the samples show.
        samples: How many there are.
        number: How many are chosen, at most.
        seed: Other seeds choose others.
        class_index: Only samples of this class; None: of any.

    Returns:
        Their indices, and how many others could not be read when their class was looked for.
    """
    order = np.random.default_rng(seed).permutation(samples).tolist()
    if not labels.are_known:
        return (order[:number], 0) if class_index is None else _search(labels, order, number, class_index)
    if class_index is not None:
        return [index for index in order if class_index in labels.of(index)][:number], 0
    return _spread(labels, order)[:number], 0


def _spread(labels: Labels, order: list[int]) -> list[int]:
    """Samples in an order in which each class comes about as often as any other; without labels unchanged."""
    seen: Counter[int] = Counter()
    rounds: list[int] = []
    for index in order:
        shown = set(labels.of(index)) or {-1}
        rounds.append(min(seen[label] for label in shown))
        seen.update(shown)
    return [order[position] for position in np.argsort(rounds, kind="stable").tolist()]


def _search(labels: Labels, order: list[int], number: int, class_index: int) -> tuple[list[int], int]:
    """The first samples of a class, of which each must be read to know what it shows."""
    chosen: list[int] = []
    unread = 0
    with WorkProgress("Looking for the class", len(order)) as progress:
        for index in order:
            try:
                if class_index in labels.of(index):
                    chosen.append(index)
            except Exception:  # decoders raise whatever the bytes provoke
                unread += 1
            progress.advance()
            if len(chosen) == number:
                break
    return chosen, unread
