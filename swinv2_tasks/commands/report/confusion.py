"""Which classes are taken for which: a matrix of few classes drawn, of many the most confused pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from swinv2_tasks.commands.report.blocks import Chart, Column, Table
from swinv2_tasks.commands.report.charts import draw
from swinv2_tasks.text import label, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DRAWN = 30
"""Classes of a matrix that is drawn."""

MOST_NUMBERED = 12
"""Classes of a matrix with a number in each cell."""

MOST_PAIRS = 100
"""Pairs of classes in a table."""


def confusion_blocks(
    counts: np.ndarray, rows: Sequence[str], columns: Sequence[str], unit: str, note: str = ""
) -> list[Chart | Table]:
    """The matrix, where it is small enough, and the most confused pairs.

    Args:
        counts: (R, C), true classes down, predicted ones across.
        rows: names of the true classes.
        columns: names of the predicted ones; the first ones are those of the rows.
        unit: what is counted, in the plural.
        note: what is to be said of it.
    """
    pairs = confused_pairs(counts, rows, columns, unit)
    if max(len(rows), len(columns)) > MOST_DRAWN + 1:
        return [pairs]
    return [draw_matrix(counts, rows, columns, unit, note), pairs]


def draw_matrix(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str], unit: str, note: str = "") -> Chart:
    """A confusion matrix of shares of each row; arguments as above."""
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)

    def plot(axes: Sequence[Axes]) -> None:
        (panel,) = axes
        panel.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="#88888844", linewidth=0.3)
        panel.set_xticks(np.arange(len(columns)) + 0.5, [label(name, 24) for name in columns], rotation=90)
        panel.set_yticks(np.arange(len(rows)) + 0.5, [label(name, 24) for name in rows])
        panel.tick_params(length=0, labelsize=8 if len(rows) <= 20 else 6)
        panel.invert_yaxis()
        panel.set(xlabel="predicted", ylabel="true")
        panel.set_aspect("equal")
        if max(len(rows), len(columns)) > MOST_NUMBERED + 1:
            return
        for row, column in np.argwhere(counts > 0):
            share = shares[row, column]
            text = f"{share:.0%}" if share >= 0.005 else "<1%"
            color = "white" if share > 0.5 else "#222222"
            panel.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=color, fontsize=7)

    names = max(len(rows), len(columns))
    side = min(9.0, 3.6 + 0.27 * names)
    svg = draw(plot, side, side)
    text = f"The share of each true class's {unit} that is predicted as each class"
    is_wide = max(len(rows), len(columns)) > MOST_NUMBERED
    return Chart("Confusion matrix", svg, text, note or f"Shares of each row: {text[0].lower()}{text[1:]}.", is_wide)


def confused_pairs(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str], unit: str) -> Table:
    """The pairs of classes that are confused most, the most frequent first; arguments as above."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    totals = counts.sum(1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    cells = [(int(k) // wrong.shape[1], int(k) % wrong.shape[1]) for k in order]
    entries = [
        (printable(rows[row]), printable(columns[column]), int(wrong[row, column]), wrong[row, column] / totals[row])
        for row, column in cells
        if wrong[row, column]
    ]
    more = int((wrong > 0).sum()) - len(entries)
    return Table(
        "Most confused classes",
        [Column("true"), Column("predicted"), Column(unit), Column("share of the true class", 1, True)],
        [[true, predicted, number, float(share)] for true, predicted, number, share in entries],
        f"{more} further pairs are left out." if more else "",
    )
