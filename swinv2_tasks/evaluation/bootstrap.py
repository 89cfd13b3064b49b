"""How sure a difference between two models is: paired bootstrap over the samples that both were evaluated on.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3: intervals between percentiles. Samples are
drawn with replacement, the same ones for both models; both scores are computed of each draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

DRAWS = 1000
"""Draws of the samples."""

LEVEL = 0.95
"""The share of the differences that an interval holds."""

CHUNK = 2**22
"""Numbers of a chunk of draws."""


class Difference(NamedTuple):
    """The score of a second model minus that of a first one, and the interval that holds `LEVEL` of the draws.

    NaN where nothing is scored.
    """

    value: float
    low: float
    high: float

    @property
    def is_sure(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def interval(value: float, draws: np.ndarray) -> Difference:
    """A difference with its interval.

    Args:
        value: of all samples, each once.
        draws: of each draw, (draws,); those that are NaN do not count.
    """
    draws = draws[np.isfinite(draws)]
    if not len(draws) or not np.isfinite(value):
        return Difference(value, np.nan, np.nan)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(float(value), float(low), float(high))


def mean_difference(first: np.ndarray, second: np.ndarray, seed: int = 0, draws: int = DRAWS) -> Difference:
    """The difference of means.

    Args:
        first: a number of each sample, (n,), of the first model, as whether it is right.
        second: likewise of the second one, of the same samples.
        seed: of the draws.
        draws: their number.
    """
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    if not len(differences):
        return Difference(np.nan, np.nan, np.nan)
    means = [weights @ differences / len(differences) for weights in draw_weights(len(differences), seed, draws)]
    return interval(differences.mean(), np.concatenate(means))


def ratio_differences(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], seed: int = 0, draws: int = DRAWS
) -> list[Difference]:
    """The differences of ratios of sums over samples, as IoU and accuracy of classes are.

    Args:
        first: numerators (n, classes) and denominators (n, classes) of the first model.
        second: likewise of the second one, of the same samples.
        seed: of the draws.
        draws: their number.
    """

    def ratio(weights: np.ndarray, pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights @ pair[0]) / (weights @ pair[1])

    samples = len(first[0])
    if not samples:
        return [Difference(np.nan, np.nan, np.nan)] * first[0].shape[1]
    ones = np.ones((1, samples))
    value = (ratio(ones, second) - ratio(ones, first))[0]
    drawn = [ratio(weights, second) - ratio(weights, first) for weights in draw_weights(samples, seed, draws)]
    of_classes = np.concatenate(drawn)
    return [interval(value[k], of_classes[:, k]) for k in range(of_classes.shape[1])]


def draw_weights(samples: int, seed: int, draws: int = DRAWS) -> Iterator[np.ndarray]:
    """How often each sample is drawn, float64 (some draws, samples), until there are enough draws."""
    rng = np.random.default_rng(seed)
    size = max(1, min(draws, CHUNK // samples))
    for start in range(0, draws, size):
        number = min(size, draws - start)
        chosen = rng.integers(samples, size=(number, samples)) + np.arange(number)[:, None] * samples
        yield np.bincount(chosen.ravel(), minlength=number * samples).reshape(number, samples).astype(np.float64)


# ---- average precision

RECALLS = np.linspace(0, 1, 101)
"""At which COCO reads precision."""


class RankedDetections(NamedTuple):
    """Detections of one class in images that both models have seen."""

    images: np.ndarray
    """Index of the image of each, (n,)."""
    scores: np.ndarray
    """(n,)."""
    is_right: np.ndarray
    """Whether each hits an object, bool (n,); those that count neither way are left out."""


def average_precisions(detections: RankedDetections, objects: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision, as COCO computes it, of each draw of the images; NaN without objects.

    Args:
        detections: of a class.
        objects: number of its objects in each image, (images,).
        weights: how often each image is drawn, (draws, images).
    """
    order = np.argsort(-detections.scores, kind="mergesort")
    of_images, is_right = detections.images[order], detections.is_right[order]
    drawn = weights[:, of_images]
    right = np.cumsum(drawn * is_right, axis=1)
    total = np.cumsum(drawn, axis=1)
    numbers = weights @ objects
    values = np.full(len(weights), np.nan)
    for k in np.flatnonzero(numbers):
        with np.errstate(invalid="ignore"):
            precision = right[k] / np.maximum(total[k], np.spacing(1))
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        positions = np.searchsorted(right[k] / numbers[k], RECALLS, side="left")
        values[k] = np.append(envelope, 0.0)[positions].mean()
    return values


def precision_difference(
    first: RankedDetections, second: RankedDetections, objects: np.ndarray, seed: int = 0, draws: int = 200
) -> Difference:
    """The difference of average precision, of images drawn with replacement.

    Args:
        first: detections of a class by the first model.
        second: likewise by the second one.
        objects: number of the class's objects in each image, (images,).
        seed: of the draws.
        draws: their number.
    """

    def difference(weights: np.ndarray) -> np.ndarray:
        return average_precisions(second, objects, weights) - average_precisions(first, objects, weights)

    if not objects.sum():
        return Difference(np.nan, np.nan, np.nan)
    value = difference(np.ones((1, len(objects))))[0]
    return interval(value, np.concatenate([difference(weights) for weights in draw_weights(len(objects), seed, draws)]))
