"""Metrics of our own against a count by hand."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from swinv2_tasks.evaluation.classification import AnyLabelAccuracy, Confusion, SegmentationScores, VideoScores


def batch(images: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random scores and none to three right answers per image."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(images, classes, generator=generator) < 0.15).float()
    labels[::4] = 0  # nobody could label these
    return torch.randn(images, classes, generator=generator), labels


def by_hand(scores: Tensor, labels: Tensor, k: int) -> float:
    hits, images = 0, 0
    for row, right in zip(scores.tolist(), labels.tolist(), strict=True):
        answers = {index for index, value in enumerate(right) if value}
        best = sorted(range(len(row)), key=lambda index: -row[index])[:k]
        images += bool(answers)
        hits += bool(answers & set(best))
    return hits / images


@pytest.mark.parametrize("k", [1, 3, 7])
def test_share_of_images_with_a_right_answer_among_the_best(k: int) -> None:
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


def test_nothing_labelled_gives_no_number() -> None:
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
    one, two = AnyLabelAccuracy(), AnyLabelAccuracy()
    one.update(*first)
    two.update(*second)
    one.merge_state(two)
    together = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    assert one.compute().item() == pytest.approx(by_hand(together[0], together[1], 1))


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


# ---- segmentation


def scores_of(classes: int, predictions: object, labels: object) -> SegmentationScores:
    metric = Confusion(classes)
    metric.update(torch.tensor(predictions), torch.tensor(labels))
    metric.compute()
    assert metric.scores is not None
    return metric.scores


def test_scores_worked_out_by_hand() -> None:
    """Of 8 pixels 7 are labelled. Class 0: 2 of 3 right, once predicted elsewhere: IoU 2 / 4. Class 1: 2 of 3, once
    elsewhere: 2 / 4. Class 2: its only pixel is missed. Class 3 is nowhere."""
    labels = [[0, 0, 0, 1], [1, 1, 2, 255]]
    predictions = [[0, 0, 1, 1], [1, 0, 4, 0]]  # 4 is no class
    scores = scores_of(4, predictions, labels)
    assert scores.iou.tolist() == pytest.approx([0.5, 0.5, 0.0, math.nan], nan_ok=True)
    assert scores.accuracy.tolist() == pytest.approx([2 / 3, 2 / 3, 0.0, math.nan], nan_ok=True)
    assert scores.pixels.tolist() == [3, 3, 1, 0]
    assert (scores.miou, scores.mean_accuracy) == (pytest.approx(1 / 3), pytest.approx(4 / 9))
    assert scores.pixel_accuracy == pytest.approx(4 / 7)


def test_a_class_that_is_predicted_but_never_labelled_counts_as_missed() -> None:
    scores = scores_of(3, [0, 0, 2, 2], [0, 0, 0, 0])
    assert scores.iou.tolist() == pytest.approx([0.5, math.nan, 0.0], nan_ok=True)
    assert scores.accuracy.tolist() == pytest.approx([0.5, math.nan, math.nan], nan_ok=True)
    assert (scores.miou, scores.mean_accuracy) == (0.25, 0.5)


@pytest.mark.parametrize("ignored", [255, -1, 3])
def test_pixels_without_a_label_are_left_out_whatever_is_predicted(ignored: int) -> None:
    scores = scores_of(3, [0, 1, 2, 7], [0, ignored, ignored, ignored])
    assert scores.iou.tolist() == pytest.approx([1.0, math.nan, math.nan], nan_ok=True)
    assert scores.pixel_accuracy == 1.0


def test_scores_are_those_of_brute_force_in_one_piece_and_in_many() -> None:
    draw = np.random.default_rng(0)
    labels, predictions = draw.integers(-1, 6, (5, 9, 11)), draw.integers(0, 6, (5, 9, 11))
    labels[labels == 4] = 0  # a class without labels
    valid = labels >= 0
    ious = []
    for k in range(6):
        one, other = (labels == k) & valid, (predictions == k) & valid
        ious.append((one & other).sum() / (one | other).sum())
    whole, pieces = Confusion(6), Confusion(6)
    whole.update(torch.from_numpy(predictions), torch.from_numpy(labels))
    for prediction, label in zip(predictions.astype(np.uint8), labels, strict=True):
        pieces.update(torch.from_numpy(prediction), torch.from_numpy(label))
    found = whole.compute()
    assert found == pieces.compute()
    assert found["miou"].item() == pytest.approx(np.mean(ious))
    assert found["pixel_accuracy"].item() == pytest.approx((labels == predictions)[valid].mean())


def test_without_labels_there_are_no_scores() -> None:
    assert all(value.isnan() for value in Confusion(3).compute().values())


def views_of_videos(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and ids of five views of each of 30 videos of 7 classes, in a random order."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.arange(30).repeat_interleave(5)[torch.randperm(150, generator=generator)]
    labels = torch.randint(7, (30,), generator=generator)[ids]
    return 2 * torch.randn(150, 7, generator=generator), labels, ids


def test_videos_are_scored_by_the_mean_over_their_views() -> None:
    logits, labels, ids = views_of_videos()
    metric = VideoScores(7)
    metric.update(logits, labels, ids)
    found = metric.compute()
    hits, fives, losses = [], [], []
    for video in range(30):
        mean = logits[ids == video].double().softmax(1).mean(0)
        label = int(labels[ids == video][0])
        order = mean.argsort(descending=True).tolist()
        hits.append(order[0] == label)
        fives.append(label in order[:5])
        losses.append(-math.log(mean[label]))
    assert found["top1"].item() == pytest.approx(np.mean(hits)) and 0 < np.mean(hits) < np.mean(fives) < 1
    assert found["top5"].item() == pytest.approx(np.mean(fives))
    assert found["loss"].item() == pytest.approx(np.mean(losses), rel=1e-6)


def test_scores_of_videos_do_not_depend_on_order_and_batches() -> None:
    logits, labels, ids = views_of_videos(1)
    whole, parts = VideoScores(7), VideoScores(7)
    whole.update(logits, labels, ids)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(2))
    for part in order.split(13):
        parts.update(logits[part], labels[part], ids[part])
    one, other = whole.compute(), parts.compute()
    assert all(torch.equal(one[name], other[name]) for name in one)
    parts.reset()
    parts.update(logits[:5], labels[:5], torch.arange(5))
    assert not torch.equal(parts.compute()["loss"], one["loss"])


def test_thousands_of_views_are_summed_as_they_come() -> None:
    """More than are kept before they are summed, twice, with ids that grow in between and are seen again after."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.cat(
        [torch.randint(high, (2 * VideoScores.PENDING // 3,), generator=generator) for high in (50, 900, 9)]
    )
    ids = torch.cat([ids, ids])
    logits, labels = torch.randn(len(ids), 7, generator=generator), ids % 7
    metric = VideoScores(7)
    for start in range(0, len(ids), 100):
        part = slice(start, start + 100)
        metric.update(logits[part], labels[part], ids[part])
    found = metric.compute()
    sums = torch.zeros(900, 7, dtype=torch.float64).index_add(0, ids, logits.double().softmax(1))
    seen = sums.sum(1) > 0
    means, right = sums[seen] / sums[seen].sum(1, keepdim=True), (torch.arange(900) % 7)[seen]
    assert found["top1"].item() == pytest.approx((means.argmax(1) == right).double().mean().item())
    assert found["loss"].item() == pytest.approx(-means[torch.arange(len(right)), right].log().mean().item(), rel=1e-6)
    metric.update(logits[:9], labels[:9], ids[:9])
    metric.reset()
    metric.update(logits[:1], labels[:1], ids[:1])
    loss = torch.nn.functional.cross_entropy(logits[:1], labels[:1])
    assert metric.compute()["loss"].item() == pytest.approx(loss.item(), rel=1e-6)


def test_views_that_were_seen_without_gradients_in_inference_mode_count_outside_of_it() -> None:
    logits, labels, ids = views_of_videos(4)
    metric, plain = VideoScores(7), VideoScores(7)
    with torch.inference_mode():
        metric.reset()
        metric.update(logits[:75], labels[:75], ids[:75])
        metric.compute()
        metric.update(logits[75:], labels[75:], ids[75:])
    plain.update(logits, labels, ids)
    assert metric.compute() == plain.compute()


def test_a_sure_and_wrong_answer_has_a_finite_loss() -> None:
    metric = VideoScores(3)
    metric.update(torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([1]), torch.tensor([4]))
    found = metric.compute()
    assert found["top1"] == 0 and 20 < found["loss"] < 30
