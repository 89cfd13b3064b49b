"""Tables of differences, and samples that one of two runs gets right, as all tasks show them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from swinv2_tasks.commands.report.blocks import Column, Number, Table
from swinv2_tasks.evaluation.bootstrap import Difference

MOST_EXAMPLES = 12
"""Samples that one of two runs gets right and the other wrong, each way."""

INTERVALS = "Intervals hold 95 of 100 differences that samples drawn again would give (paired bootstrap)."


def number_of(name: str, difference: Difference) -> Number:
    """A difference that stands out."""
    return Number(name, difference.value, f"{difference.low:+.4f} to {difference.high:+.4f}")


def class_table(
    names: Sequence[str],
    first: Sequence[float | None],
    second: Sequence[float | None],
    differences: Sequence[Difference],
    score: str,
    samples: Sequence[int],
    unit: str,
) -> Table:
    """The differences of classes, those that are sure first, the largest of these first.

    Args:
        names: of the classes.
        first: the score of each by the first run; None where it has none.
        second: likewise by the second one.
        differences: of each class.
        score: what the score is called.
        samples: how many there are of each class.
        unit: what these are called.
    """
    order = sorted(
        range(len(names)), key=lambda k: (not differences[k].is_sure, -abs(np.nan_to_num(differences[k].value)))
    )
    columns = [
        Column("class"),
        Column(f"{score}, first", digits=4),
        Column(f"{score}, second", digits=4),
        Column("difference", digits=4),
        Column("from", digits=4),
        Column("to", digits=4),
        Column(unit),
    ]
    rows: list[list[float | str | None]] = [
        [names[k], first[k], second[k], *(_number(value) for value in differences[k]), samples[k]] for k in order
    ]
    sure = sum(difference.is_sure for difference in differences)
    note = f"{sure} of {len(names)} intervals lie on one side of 0; by chance alone 1 of 20 does. {INTERVALS}"
    return Table("Classes", columns, rows, note)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
