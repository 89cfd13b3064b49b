"""Charts of a dataset's statistics as SVG: plain elements in the page's own colors, dark or light, and no scripts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from swinv2_tasks.text import shorten

MOST_BARS = 40
"""Bars of a chart of classes; of more the largest ones."""

BINS = 24


@dataclass(frozen=True)
class Bar:
    """A bar of a chart."""

    name: str
    value: float
    share: float
    """Of the longest one."""


@dataclass(frozen=True)
class Chart:
    """Bars, one below the other, with their names and values."""

    title: str
    bars: tuple[Bar, ...]

    @property
    def height(self) -> int:
        """In units of the drawing, of which a bar has 18."""
        return 18 * len(self.bars)


def count_chart(title: str, counts: Mapping[str, float]) -> Chart:
    """Bars of named counts."""
    shown = sorted(counts.items(), key=lambda item: -item[1])[:MOST_BARS]
    if len(shown) < len(counts):
        title = f"{title} (the largest {MOST_BARS} of {len(counts):,})"
    most = max((value for _, value in shown), default=1) or 1
    return Chart(title, tuple(Bar(shorten(name, 28), value, value / most) for name, value in shown))


def histogram(title: str, values: Sequence[float], is_logarithmic: bool = False) -> Chart | None:
    """Bars of the numbers of values in equal ranges, of their logarithms where that is said; None without values.

    Where all values are whole numbers, so are the ranges: as many objects, or pixels, from one number to another.
    """
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[np.isfinite(numbers) & ((numbers > 0) | (not is_logarithmic))]
    if not len(numbers):
        return None
    if len(np.unique(numbers)) == 1:
        return Chart(title, (Bar(f"{numbers[0]:.4g}", len(numbers), 1.0),))
    edges = _edges(numbers, is_logarithmic)
    counts, _ = np.histogram(numbers, edges)
    are_whole = bool((numbers == np.floor(numbers)).all())
    bars = [
        Bar(_describe_range(low, high, are_whole), int(number), int(number) / int(counts.max()))
        for low, high, number in zip(edges, edges[1:], counts, strict=False)
    ]
    return Chart(title, tuple(bars))


def _edges(numbers: np.ndarray, is_logarithmic: bool) -> np.ndarray:
    """Where the ranges of a histogram begin and end; halfway between whole numbers, where all are whole."""
    low, high = float(numbers.min()), float(numbers.max())
    bins = min(BINS, len(np.unique(numbers)))
    if not (numbers == np.floor(numbers)).all():
        return np.geomspace(low, high, bins + 1) if is_logarithmic else np.linspace(low, high, bins + 1)
    if is_logarithmic:
        edges = np.geomspace(low, high + 1, bins + 1).round()
    else:
        step = math.ceil((high + 1 - low) / bins)
        edges = np.arange(low, high + 1 + step, step)
    return np.unique(edges) - 0.5


def _describe_range(low: float, high: float, is_whole: bool) -> str:
    """A range in words; of whole numbers the first and the last one in it."""
    if not is_whole:
        return f"{low:.4g} – {high:.4g}"
    first, last = math.ceil(low), math.floor(high)
    return f"{first:,}" if first == last else f"{first:,} – {last:,}"


def class_charts(names: Sequence[str], counts: Mapping[str, Counter[int]], unit: str) -> list[Chart]:
    """A chart of the classes of each split."""
    return [
        count_chart(f"{unit} of each class, {split}", {name: of_split[index] for index, name in enumerate(names)})
        for split, of_split in counts.items()
        if names
    ]
