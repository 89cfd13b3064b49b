"""Orders of training samples that go by their classes: rare ones come more often.

Repeat factors: https://arxiv.org/abs/1908.03195 (LVIS), appendix. An order is a function of the generator that it is
given, which follows from the run's seed and the epoch; how many samples an epoch has is fixed and known beforehand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from swinv2_tasks.datamodules.classes import abbreviate

Sampling = Literal["uniform", "balanced", "repeat_factor"]
"""How often an epoch has each training sample: once, each class equally often, or rare classes more often."""

LEAST_THRESHOLD = 1e-9
"""Of repeat factors."""


@dataclass(frozen=True)
class SampleClasses:
    """Which classes each sample shows.

    Attributes:
        number: Of samples.
        num_classes: Number of classes.
        samples: Index of a sample …
        labels: … and of a class that it shows, each pair once: two of int64 (pairs,), sorted.
    """

    number: int
    num_classes: int
    samples: np.ndarray
    labels: np.ndarray

    @classmethod
    def of_objects(cls, number: int, num_classes: int, samples: np.ndarray, labels: np.ndarray) -> "SampleClasses":
        """Of samples that may show several objects of a class: index of the sample and class of each."""
        pairs = np.unique(samples.astype(np.int64) * num_classes + labels)
        return cls(number, num_classes, pairs // num_classes, pairs % num_classes)

    @classmethod
    def of_labels(cls, labels: Sequence[int | list[int]], num_classes: int) -> "SampleClasses":
        """Of samples with a class index each, or with several."""
        lists = [[label] if isinstance(label, int) else label for label in labels]
        samples = np.repeat(np.arange(len(lists)), [len(own) for own in lists])
        flat = np.array([label for own in lists for label in own], dtype=np.int64)
        return cls.of_objects(len(lists), num_classes, samples, flat)

    @property
    def counts(self) -> np.ndarray:
        """How many samples show each class, int64 (classes,)."""
        return np.bincount(self.labels, minlength=self.num_classes)


class BalancedOrder:
    """Each class equally often, in as many samples as there are.

    Each class that has samples gets the same number of places, but for one more where they do not come out even, in
    other classes at each draw. Its samples take turns: none comes twice more than another. Samples of no class come
    once each, as always.

    Args:
        classes: Which classes each sample shows; a sample of several stands in for each of them.
    """

    def __init__(self, classes: SampleClasses) -> None:
        self.number = classes.number
        by_class = np.argsort(classes.labels, kind="stable")
        ends = np.cumsum(classes.counts)[:-1]
        members = np.split(classes.samples[by_class], ends)
        self._members = [own for own in members if len(own)]
        has_class = np.zeros(classes.number, dtype=bool)
        has_class[classes.samples] = True
        self._others = np.flatnonzero(~has_class)

    def __len__(self) -> int:
        return self.number

    def __call__(self, generator: np.random.Generator) -> np.ndarray:
        """An epoch's order, int64 (samples,)."""
        if not self._members:
            return generator.permutation(self.number)
        shares, rest = divmod(self.number - len(self._others), len(self._members))
        numbers = np.full(len(self._members), shares)
        numbers[generator.permutation(len(numbers))[:rest]] += 1
        parts = [self._others]
        for members, number in zip(self._members, numbers.tolist(), strict=True):
            times, further = divmod(number, len(members))
            parts += [np.repeat(members, times), generator.permutation(members)[:further]]
        return generator.permutation(np.concatenate(parts))

    def describe(self, names: Sequence[str]) -> str:
        """What an epoch has, in a line."""
        each = (self.number - len(self._others)) / max(1, len(self._members))
        others = f" and {len(self._others)} of none" if len(self._others) else ""
        return (
            f"data.sampling balanced: an epoch has {self.number} samples as before, {each:.4g} of each of "
            f"{len(self._members)} classes{others}"
        )


class RepeatFactorOrder:
    """Samples of rare classes several times: as often as the rarest of their classes asks for.

    A class that a share f of the samples shows has the repeat factor max(1, sqrt(threshold / f)), a sample the largest
    of its classes', or 1. An epoch has as many samples as all factors sum up to, rounded. Each sample comes as often
    as its factor says, rounded down or up at random: its mean over epochs is the factor, but for what the sum was
    rounded by.

    Args:
        classes: Which classes each sample shows.
        threshold: Share of the samples below which a class is repeated, in (0, 1].

    """

    def __init__(self, classes: SampleClasses, threshold: float) -> None:
        shares = classes.counts / max(1, classes.number)
        factors = np.maximum(1.0, np.sqrt(threshold / np.maximum(shares, 1e-12)))
        self.class_factors = np.where(shares > 0, factors, 1.0)
        self.factors = np.ones(classes.number)
        np.maximum.at(self.factors, classes.samples, self.class_factors[classes.labels])
        self._certain = np.floor(self.factors).astype(np.int64)
        self._rest = self.factors - self._certain
        self._threshold = threshold
        self._further = round(float(self._rest.sum()))

    def __len__(self) -> int:
        return int(self._certain.sum()) + self._further

    def __call__(self, generator: np.random.Generator) -> np.ndarray:
        """An epoch's order, int64 (samples of an epoch,)."""
        times = self._certain.copy()
        fractional = np.flatnonzero(self._rest)
        rest, number = self._rest[fractional], self._further
        # The fewer are drawn than weights sum up to, the rarer is any: so none is drawn twice.
        if number <= rest.sum():
            times[fractional[_draw(rest, number, generator)]] += 1
        else:
            times[fractional] += 1
            times[fractional[_draw(1 - rest, len(rest) - number, generator)]] -= 1
        return generator.permutation(np.repeat(np.arange(len(times)), times))

    def describe(self, names: Sequence[str]) -> str:
        """Which classes are repeated, and what an epoch has, in a line."""
        factors = [(factor, name) for factor, name in zip(self.class_factors, names, strict=True) if factor > 1]
        head = f"data.sampling repeat_factor (threshold {self._threshold:g}): "
        if not factors:
            return f"{head}no class is that rare, so no sample is repeated"
        rarest = [f"{name} {factor:.3g}×" for factor, name in sorted(factors, reverse=True)]
        return f"{head}an epoch has {len(self)} samples of {len(self.factors)}; classes repeated: {abbreviate(rarest)}"


def _draw(weights: np.ndarray, number: int, generator: np.random.Generator) -> np.ndarray:
    """Indices of so many entries, drawn in proportion to their weights by systematic sampling: all are different.

    Args:
        weights: In (0, 1].
        number: At most the sum of the weights.
        generator: Draws.
    """
    if not number:
        return np.empty(0, dtype=np.int64)
    shuffled = generator.permutation(len(weights))
    ends = np.cumsum(weights[shuffled])
    marks = (np.arange(number) + generator.random()) * (ends[-1] / number)
    return shuffled[np.searchsorted(ends, marks, side="right").clip(max=len(ends) - 1)]
