"""`model.class_weights`: how much each class counts in a loss, stated or by how rare it is in the training data.

Effective numbers of samples: https://arxiv.org/abs/1901.05555.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from swinv2_tasks.batches import ClassCounts
from swinv2_tasks.datamodules.classes import abbreviate, find_class
from swinv2_tasks.errors import UserError
from swinv2_tasks.heads.class_losses import check_class_weights
from swinv2_tasks.text import printable

ClassWeights = Literal["balanced", "effective_number"] | dict[str, float] | list[float]
"""By the classes' numbers in the training data; or a number for some of them, by name or id, or for all."""

SETTING = "model.class_weights"

BETA = 0.999
"""What the effective number of n samples, (1 − β^n) / (1 − β), goes by: at most 1,000, as the paper has it for
iNaturalist."""


def check_setting(setting: ClassWeights | None, num_classes: int) -> None:
    """Refuses weights that are wrong whatever the classes are called.

    Raises:
        UserError: they are not as many as classes, or no numbers that weigh.
    """
    if isinstance(setting, list):
        if len(setting) != num_classes:
            raise UserError(
                f"{SETTING} has {len(setting)} values for {num_classes} classes; state one for each, in their order, "
                "or a mapping of some classes to theirs"
            )
        check_class_weights(setting, SETTING)
    elif isinstance(setting, Mapping):
        if not setting:
            raise UserError(f"{SETTING} is an empty mapping; expected weights of classes, or null")
        check_class_weights([*setting.values(), 1.0], SETTING)


def resolve(
    setting: ClassWeights,
    ids: Sequence[Any],
    names: Sequence[str],
    counts: ClassCounts | None,
    every_class_counts: bool = False,
) -> list[float]:
    """The weight of each class.

    Those by numbers are normalized so that their mean over the training data is 1, so that a loss is as large as
    without them. Classes without training data have the weight 1.

    Args:
        setting: what is stated.
        ids: of the classes, in their order.
        names: of the classes.
        counts: how often training data show each; None: nothing says so.
        every_class_counts: whether each sample has a loss for each class (multi-label): the mean is then over classes.

    Raises:
        UserError: a name means no class, or nothing says how often classes are shown.
    """
    if isinstance(setting, Mapping):
        weights = [1.0] * len(names)
        for key, weight in setting.items():
            weights[find_class(key, ids, names, setting, SETTING)] = float(weight)
        check_class_weights(weights, SETTING)
        return weights
    if not isinstance(setting, str):
        return [float(weight) for weight in setting]
    if counts is None:
        raise UserError(
            f"{SETTING} is {setting}, but nothing says how often the training data show each class: shards show it "
            "only when they are read, and so do loaders of one's own. State numbers: a list, or a mapping of names"
        )
    return _by_number(np.asarray(counts.numbers, dtype=np.float64), setting, every_class_counts).tolist()


def _by_number(numbers: np.ndarray, setting: str, every_class_counts: bool) -> np.ndarray:
    """Weights float64 (classes,) by how often each class is shown."""
    is_shown = numbers > 0
    shown = numbers[is_shown]
    inverse = 1 / shown if setting == "balanced" else (1 - BETA) / (1 - BETA**shown)
    shares = np.full(len(shown), 1 / max(1, len(shown))) if every_class_counts else shown / shown.sum()
    weights = np.ones(len(numbers))
    weights[is_shown] = inverse / (inverse * shares).sum()
    return weights


def describe(
    setting: ClassWeights, weights: Sequence[float], names: Sequence[str], counts: ClassCounts | None, background: bool
) -> str:
    """The line that says which classes have the smallest and the largest weight.

    Args:
        setting: what is stated.
        weights: of each class.
        names: of the classes.
        counts: how often training data show each; None where that is not known.
        background: whether there is a background beside the classes.
    """

    def describe_class(index: int) -> str:
        number = "" if counts is None else f", {counts.numbers[index]:,} {counts.unit}"
        return f"{weights[index]:.4g} ({printable(names[index])}{number})"

    stated = setting if isinstance(setting, str) else "stated"
    smallest, largest = int(np.argmin(weights)), int(np.argmax(weights))
    line = f"{SETTING} {stated}: from {describe_class(smallest)} to {describe_class(largest)}"
    if isinstance(setting, Mapping) and len(setting) < len(names):
        line += f"; the {len(names) - len(setting)} classes that it does not name have 1"
    if isinstance(setting, str) and counts is not None and 0 in counts.numbers:
        unseen = [name for name, number in zip(names, counts.numbers, strict=True) if not number]
        line += f"; without training data, 1: {abbreviate(unseen)}"
    return line + ("; the background has 1" if background else "")
