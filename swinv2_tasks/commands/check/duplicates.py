"""Checks for copies: the same bytes, the same pixels, or images that look the same, within a split and across splits.

Near-duplicates are pairs whose perceptual hashes differ in few of 64 bits. Of two such hashes, one of four bands of 16
bits differs in at most one bit, so all pairs are among those that share a band but for one bit (Norouzi et al.,
multi-index hashing, https://arxiv.org/abs/1307.2982).
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from swinv2_tasks.commands.check.facts import Facts
from swinv2_tasks.commands.check.findings import Findings

MOST_BITS = 7
"""Bits by which the hashes of near-duplicates differ at most."""

MOST_DIFFERENCE = 5.0
"""Mean difference of their thumbnails at most, of 255."""

BANDS = 4
BAND_BITS = 16

MOST_PAIRS = 2**22
"""Pairs of images that are compared at a time."""


class Item(NamedTuple):
    """A file of a split, which can be read."""

    split: str
    path: str
    labels: tuple[int, ...]
    facts: Facts


def check_duplicates(findings: Findings, items: Sequence[Item]) -> None:
    """Adds the copies among files; each is named as a copy of the first one, in the order of the items."""
    different = _check_equal(findings, items, lambda item: item.facts.content, "duplicate")
    different = _check_equal(findings, different, lambda item: item.facts.pixels, "same_pixels")
    _check_near(findings, different)


def _check_equal(findings: Findings, items: Sequence[Item], digest: Callable[[Item], str], check: str) -> list[Item]:
    """Adds the items whose digest another one has; returns the first one of each digest."""
    groups: dict[str, list[Item]] = defaultdict(list)
    firsts: list[Item] = []
    for item in items:
        group = groups[digest(item)] if digest(item) else []
        if not group:
            firsts.append(item)
        group.append(item)
    for group in groups.values():
        for position, item in enumerate(group[1:], start=1):
            _add(findings, check, item, group[:position])
    return firsts


def _add(findings: Findings, check: str, item: Item, before: Sequence[Item]) -> None:
    """Adds a copy of others: of those of another split, if there are such."""
    elsewhere = [other for other in before if other.split != item.split]
    other = (elsewhere or before)[0]
    where = "across_splits" if elsewhere else "in_split"
    findings.add(f"{check}_{where}", item.split, item.path, others=(other.path,), is_drawn=True)
    other_labels = [other for other in before if other.labels != item.labels]
    if other_labels:
        findings.add("contradicting_labels", item.split, item.path, others=(other_labels[0].path,), is_drawn=True)


def _check_near(findings: Findings, items: Sequence[Item]) -> None:
    """Adds the items that look like an earlier one: like one of another split, if there is such."""
    hashed = [item for item in items if item.facts.hash is not None]
    if len(hashed) < 2:
        return
    hashes = np.array([item.facts.hash for item in hashed], np.uint64)
    thumbnails = np.stack([np.frombuffer(base64.b64decode(item.facts.thumbnail), np.uint8) for item in hashed])

    earlier: dict[int, list[int]] = defaultdict(list)
    for first, second in near_pairs(hashes, thumbnails).tolist():
        earlier[second].append(first)
    for index, others in sorted(earlier.items()):
        elsewhere = [other for other in others if hashed[other].split != hashed[index].split]
        other = hashed[min(elsewhere or others)]
        name = "near_duplicate_across_splits" if elsewhere else "near_duplicate_in_split"
        findings.add(name, hashed[index].split, hashed[index].path, others=(other.path,), is_drawn=True)


def near_pairs(hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """The pairs of images that look the same, int64 (pairs, 2), the first index below the second; sorted.

    Args:
        hashes: Perceptual hashes, uint64 (images,).
        thumbnails: uint8 (images, values).
    """
    kept: list[np.ndarray] = [np.zeros((0, 2), np.int64)]
    for first, second in _candidates(hashes):
        near = np.bitwise_count(hashes[first] ^ hashes[second]) <= MOST_BITS
        first, second = first[near], second[near]
        difference = np.abs(thumbnails[first].astype(np.int16) - thumbnails[second]).mean(axis=1)
        is_alike = difference <= MOST_DIFFERENCE
        kept.append(np.stack([first[is_alike], second[is_alike]], axis=1))
    return np.unique(np.concatenate(kept), axis=0)


def _candidates(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of pairs that share a band but for one bit, some at a time: the first below the second."""
    variants = [0, *(1 << position for position in range(BAND_BITS))]
    for band in range(BANDS):
        keys = (hashes >> np.uint64(band * BAND_BITS)).astype(np.uint16)
        order = np.argsort(keys, kind="stable")
        sorted_keys = keys[order]
        for variant in variants:
            wanted = keys ^ np.uint16(variant)
            starts = np.searchsorted(sorted_keys, wanted, side="left")
            ends = np.searchsorted(sorted_keys, wanted, side="right")
            yield from _expand(order, starts, ends)


def _expand(order: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of each index with those that stand from its start to its end."""
    sizes = ends - starts
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    begin = 0
    while begin < len(sizes):
        end = max(begin + 1, int(np.searchsorted(bounds, bounds[begin] + MOST_PAIRS, side="right")) - 1)
        first = np.repeat(np.arange(begin, end), sizes[begin:end])
        offsets = np.arange(len(first)) - np.repeat(bounds[begin:end] - bounds[begin], sizes[begin:end])
        second = order[np.repeat(starts[begin:end], sizes[begin:end]) + offsets]
        is_later = first < second
        yield first[is_later], second[is_later]
        begin = end
