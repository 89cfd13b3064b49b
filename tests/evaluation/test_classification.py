"""ReaL accuracy: shares worked out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from swinv2_tasks.evaluation.classification import AnyLabelAccuracy


def batch(images: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random scores and none to three correct labels per image."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(images, classes, generator=generator) < 0.15).float()
    labels[::4] = 0  # nobody could label these
    return torch.randn(images, classes, generator=generator), labels


def by_hand(scores: Tensor, labels: Tensor, k: int) -> float:
    hits, images = 0, 0
    for row, right in zip(scores.tolist(), labels.tolist(), strict=True):
        correct = {index for index, value in enumerate(right) if value}
        best = sorted(range(len(row)), key=lambda index: -row[index])[:k]
        images += bool(correct)
        hits += bool(correct & set(best))
    return hits / images


@pytest.mark.parametrize("k", [1, 3, 7])
def test_share_of_images_with_a_correct_label_among_the_best(k: int) -> None:
    scores, labels = batch(40, 7, seed=0)
    metric = AnyLabelAccuracy(k)
    metric.update(scores, labels)
    assert metric.compute().item() == pytest.approx(by_hand(scores, labels, k))
    assert 0 < by_hand(scores, labels, 1) < by_hand(scores, labels, 3) < 1


def test_images_without_labels_do_not_count() -> None:
    metric = AnyLabelAccuracy()
    metric.update(
        torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    )
    assert metric.compute().item() == 0.5


def test_nothing_labeled_gives_no_number() -> None:
    metric = AnyLabelAccuracy()
    metric.update(torch.rand(3, 2), torch.zeros(3, 2))
    assert metric.compute().isnan()


def test_updates_add_up() -> None:
    scores, labels = batch(41, 5, seed=1)
    metric = AnyLabelAccuracy(2)
    for part in (slice(0, 3), slice(3, 20), slice(20, 41)):
        metric.update(scores[part], labels[part])
    assert metric.compute().item() == pytest.approx(by_hand(scores, labels, 2))


def test_counts_of_several_processes_are_summed() -> None:
    """Merging two metrics' states is what torchmetrics does across processes."""
    first, second = batch(30, 5, seed=2), batch(8, 5, seed=3)
    metric, other_metric = AnyLabelAccuracy(), AnyLabelAccuracy()
    metric.update(*first)
    other_metric.update(*second)
    metric.merge_state(other_metric)
    together = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    assert metric.compute().item() == pytest.approx(by_hand(together[0], together[1], 1))


def test_reset_and_copies_start_from_nothing() -> None:
    metric = AnyLabelAccuracy()
    metric.update(*batch(10, 5, seed=4))
    untouched = copy.deepcopy(metric)
    metric.reset()
    scores, labels = batch(12, 5, seed=5)
    metric.update(scores, labels)
    assert metric.compute().item() == pytest.approx(by_hand(scores, labels, 1))
    first_scores, first_labels = batch(10, 5, seed=4)
    assert untouched.compute().item() == pytest.approx(by_hand(first_scores, first_labels, 1))
