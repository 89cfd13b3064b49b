"""Charts of a dataset's statistics: every value is in one bar, and whole numbers are in ranges of whole numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from swinv2_tasks.commands.check.charts import BINS, histogram


def ranges_of(names: list[str]) -> list[tuple[int, int]]:
    """First and last number of each bar, as its name says."""
    ends = [[int(part.replace(",", "")) for part in name.split(" – ")] for name in names]
    return [(own[0], own[-1]) for own in ends]


@pytest.mark.parametrize("is_logarithmic", [False, True])
@pytest.mark.parametrize("most", [2, 5, 40, 3000])
def test_whole_numbers_are_in_ranges_of_whole_numbers(most: int, is_logarithmic: bool) -> None:
    numbers = np.random.default_rng(most).integers(1, most + 1, 500).tolist()
    chart = histogram("objects of an image", numbers, is_logarithmic)
    assert chart is not None and len(chart.bars) <= BINS
    ranges = ranges_of([bar.name for bar in chart.bars])
    for (first, last), bar in zip(ranges, chart.bars, strict=True):
        assert bar.value == sum(first <= number <= last for number in numbers)
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(ranges))
    assert sum(bar.value for bar in chart.bars) == len(numbers)


@pytest.mark.parametrize("is_logarithmic", [False, True])
def test_other_numbers_are_all_in_a_bar(is_logarithmic: bool) -> None:
    numbers = np.random.default_rng(0).uniform(0.1, 7, 300).tolist()
    chart = histogram("width / height", numbers, is_logarithmic)
    assert chart is not None and len(chart.bars) == BINS
    assert sum(bar.value for bar in chart.bars) == len(numbers)


def test_zero_objects_count_and_a_single_value_has_a_bar_of_its_own() -> None:
    chart = histogram("objects of an image", [0, 0, 0, 1, 3])
    assert chart is not None and [(bar.name, bar.value) for bar in chart.bars] == [("0 – 1", 4), ("2 – 3", 1)]
    single = histogram("objects of an image", [4, 4])
    assert single is not None and [(bar.name, bar.value) for bar in single.bars] == [("4", 2)]
    assert histogram("objects of an image", []) is None
