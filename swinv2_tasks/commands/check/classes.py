"""Checks of classes: which have samples where, how many, and what they are called."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from swinv2_tasks.commands.check.findings import Findings
from swinv2_tasks.progress import count_words

LARGEST_RATIO = 20
"""Samples of the largest class as a multiple of those of the smallest, up to which classes count as balanced."""


def check_classes(findings: Findings, names: Sequence[str], counts: Mapping[str, Counter[int]]) -> None:
    """Adds what is odd about the classes.

    Args:
        findings: Where it is added.
        names: Of the classes, by index.
        counts: Samples (or objects, or label maps) of each class in each split.
    """
    _check_names(findings, names)
    for index, name in enumerate(names):
        in_train = counts["train"][index] if "train" in counts else 1
        in_val = counts["val"][index] if "val" in counts else 1
        if not in_train:
            is_in_val = "val" in counts and in_val
            detail = f"{in_val} in validation" if is_in_val else ""
            findings.add("class_without_train", "train", name, detail)
        elif in_train == 1 and "train" in counts:
            findings.add("single_sample_class", "train", name)
        if in_train and not in_val:
            findings.add("class_without_val", "val", name)
    for split, of_split in counts.items():
        _check_balance(findings, names, split, of_split)


def _check_balance(findings: Findings, names: Sequence[str], split: str, counts: Counter[int]) -> None:
    filled = [(number, index) for index, number in counts.items() if number]
    if len(filled) < 2:
        return
    (least, smallest), (most, largest) = min(filled), max(filled)
    if most > LARGEST_RATIO * least:
        detail = f"{names[largest]} has {count_words(most, 'sample')}, {names[smallest]} {least}"
        findings.add("imbalanced_classes", split, split, detail)


def _check_names(findings: Findings, names: Sequence[str]) -> None:
    """Adds names that differ in case, spaces or underscores alone."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike["".join(filter(str.isalnum, name.casefold())) or name].append(name)
    for first, *others in alike.values():
        for name in others:
            findings.add("similar_class_names", "", name, others=(first,))
