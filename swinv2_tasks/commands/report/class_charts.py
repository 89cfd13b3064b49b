"""Charts of classifiers: confusion of many classes, calibration, F1 over the threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from swinv2_tasks.commands.report.blocks import Chart, Column, Table
from swinv2_tasks.commands.report.charts import INK, SERIES, draw
from swinv2_tasks.commands.report.confusion import MOST_DRAWN, MOST_PAIRS, draw_matrix
from swinv2_tasks.evaluation.calibration import Calibration
from swinv2_tasks.evaluation.class_scores import (
    MOST_CLUSTERED,
    confusion_counts,
    most_confused,
    order_by_confusion,
)
from swinv2_tasks.text import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CELLS = 100
"""Rows of a matrix that is drawn; one of more classes is reduced."""


# ---- confusion


def confusion_blocks(
    labels: np.ndarray, predicted: np.ndarray, names: Sequence[str], samples: str
) -> list[Chart | Table]:
    """The confusion matrix, clustered where there are many classes, and the most confused pairs.

    Args:
        labels: indices of the classes that hold (samples,).
        predicted: indices of those that are predicted (samples,).
        names: of the classes.
        samples: what is counted, in the plural.
    """
    pairs = _pairs_table(labels, predicted, names, samples)
    if len(names) > MOST_CLUSTERED:
        return [pairs]
    counts = confusion_counts(labels, predicted, len(names))
    if len(names) <= MOST_DRAWN:
        return [draw_matrix(counts, names, names, samples), pairs]
    return [_draw_clustered(counts, names, samples), pairs]


def _draw_clustered(counts: np.ndarray, names: Sequence[str], samples: str) -> Chart:
    """A matrix of many classes, those that are taken for one another side by side."""
    order = order_by_confusion(counts)
    ordered = counts[np.ix_(order, order)]
    number = len(names)
    bounds = np.linspace(0, number, min(number, MOST_CELLS) + 1).astype(int)[:-1]
    reduced = np.add.reduceat(np.add.reduceat(ordered, bounds, axis=0), bounds, axis=1)
    totals = reduced.sum(1, keepdims=True)
    shares = np.divide(reduced, totals, out=np.zeros(reduced.shape), where=totals > 0)

    def plot(axes: Sequence[Axes]) -> None:
        (panel,) = axes
        # By the root, or the few mistakes of each class would be as good as white.
        panel.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        panel.set(xlabel="predicted", ylabel="true")
        panel.tick_params(length=0, labelsize=5)
        shown = [label(names[k], 24) for k in order] if number <= MOST_CELLS else []
        panel.set_xticks(range(len(shown)), shown, rotation=90)
        panel.set_yticks(range(len(shown)), shown)

    text = f"The share of each true class's {samples} that is predicted as each class"
    note = "Classes that are taken for one another stand side by side; darker is more, by its root."
    if number > MOST_CELLS:
        note += f" Each cell is of about {number / MOST_CELLS:.0f} classes."
    return Chart("Confusion matrix", draw(plot, 9.0, 9.0), text, note, True)


def _pairs_table(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str], samples: str) -> Table:
    """The pairs of classes with the most mistakes."""
    totals = np.bincount(labels, minlength=len(names))
    rows: list[list[float | str | None]] = [
        [names[pair.label], names[pair.predicted], pair.number, float(pair.number / totals[pair.label])]
        for pair in most_confused(labels, predicted, MOST_PAIRS)
    ]
    columns = [Column("true"), Column("predicted"), Column(samples), Column("share of the true class", 1, True)]
    note = f"The first {MOST_PAIRS} pairs." if len(rows) == MOST_PAIRS else ""
    return Table("Most confused classes", columns, rows, note)


# ---- curves


def calibration_chart(calibration: Calibration, samples: str) -> Chart:
    """Accuracy over confidence, and how many predictions there are of each."""
    middles = (calibration.edges[:-1] + calibration.edges[1:]) / 2
    width = 0.9 * (calibration.edges[1] - calibration.edges[0])
    shares = calibration.counts / max(1, calibration.counts.sum())

    def plot(axes: Sequence[Axes]) -> None:
        accuracy, amount = axes
        accuracy.bar(middles, np.nan_to_num(calibration.accuracy), width, color=SERIES[0], label="accuracy")
        accuracy.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="calibrated")
        accuracy.plot(calibration.confidence, calibration.accuracy, ".", color=SERIES[1], label="mean confidence")
        accuracy.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
        accuracy.legend(loc="upper left")
        amount.bar(middles, shares, width, color=SERIES[0])
        amount.set(xlabel="confidence", ylabel=f"share of the {samples}", xlim=(0, 1))

    text = "How often predictions are right, over how confident they are"
    note = "Bars above the dashed line: right more often than the model says; below: less often."
    return Chart("Calibration", draw(plot, 8.0, 3.2, 2), text, note, True)


def f1_chart(curve: Mapping[str, Any], threshold: float) -> Chart:
    """F1 over the threshold, as val_classes.json has it, and the threshold of the run."""

    def plot(axes: Sequence[Axes]) -> None:
        (panel,) = axes
        for name in ("micro_f1", "macro_f1"):
            values = np.array([np.nan if value is None else value for value in curve[name]], dtype=np.float64)
            panel.plot(curve["thresholds"], values, label=name.replace("_f1", " F1"))
        panel.axvline(threshold, color=INK, linewidth=1, linestyle="--", label="threshold of the run")
        panel.set(xlabel="threshold", ylabel="F1", xlim=(0, 1), ylim=(0, 1.02))
        panel.grid(alpha=0.2)
        panel.legend()

    note = "Micro: of all classes' predictions together; macro: the mean over the classes."
    return Chart("F1 over the threshold", draw(plot), "F1 at each threshold from 0 to 1", note)
