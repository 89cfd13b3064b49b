"""Scores of videos: worked out by hand, in any order and batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

from swinv2_tasks.evaluation.video import MultiLabelVideoScores, VideoScores


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
    scores = metric.compute()
    hits, fives, losses = [], [], []
    for video in range(30):
        mean = logits[ids == video].double().softmax(1).mean(0)
        label = int(labels[ids == video][0])
        order = mean.argsort(descending=True).tolist()
        hits.append(order[0] == label)
        fives.append(label in order[:5])
        losses.append(-math.log(mean[label]))
    assert scores["top1"].item() == pytest.approx(np.mean(hits)) and 0 < np.mean(hits) < np.mean(fives) < 1
    assert scores["top5"].item() == pytest.approx(np.mean(fives))
    assert scores["loss"].item() == pytest.approx(np.mean(losses), rel=1e-6)


def test_scores_of_videos_do_not_depend_on_order_and_batches() -> None:
    logits, labels, ids = views_of_videos(1)
    whole, parts = VideoScores(7), VideoScores(7)
    whole.update(logits, labels, ids)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(2))
    for part in order.split(13):
        parts.update(logits[part], labels[part], ids[part])
    scores, scores_of_parts = whole.compute(), parts.compute()
    assert all(torch.equal(scores[name], scores_of_parts[name]) for name in scores)
    parts.reset()
    parts.update(logits[:5], labels[:5], torch.arange(5))
    assert not torch.equal(parts.compute()["loss"], scores["loss"])


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
    scores = metric.compute()
    sums = torch.zeros(900, 7, dtype=torch.float64).index_add(0, ids, logits.double().softmax(1))
    has_views = sums.sum(1) > 0
    means, right = sums[has_views] / sums[has_views].sum(1, keepdim=True), (torch.arange(900) % 7)[has_views]
    assert scores["top1"].item() == pytest.approx((means.argmax(1) == right).double().mean().item())
    assert scores["loss"].item() == pytest.approx(-means[torch.arange(len(right)), right].log().mean().item(), rel=1e-6)
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


def test_a_sure_and_wrong_prediction_has_a_finite_loss() -> None:
    metric = VideoScores(3)
    metric.update(torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([1]), torch.tensor([4]))
    scores = metric.compute()
    assert scores["top1"] == 0 and 20 < scores["loss"] < 30


def several_labels(labels: Tensor, seed: int = 0) -> Tensor:
    """Rows of 0 and 1 for each video's label, of which the first video has none."""
    rows = torch.rand(7, 7, generator=torch.Generator().manual_seed(seed)) < 0.4
    rows[labels[0]] = False
    return rows[labels].float()


def test_videos_of_several_labels_are_scored_by_the_mean_over_their_views() -> None:
    logits, labels, ids = views_of_videos()
    rows = several_labels(labels)
    metric = MultiLabelVideoScores(7, 0.4, torch.nn.BCEWithLogitsLoss(reduction="none"))
    metric.update(logits, rows, ids)
    scores = metric.compute()

    means = torch.stack([logits[ids == video].double().sigmoid().mean(0) for video in range(30)])
    truth = torch.stack([rows[ids == video][0] for video in range(30)]).int()
    assert (truth.sum(1) == 0).any() and (truth.sum(1) > 1).any()
    assert scores["map"].item() == pytest.approx(multilabel_average_precision(means, truth, 7).item(), abs=1e-6)
    for average in ("micro", "macro"):
        expected = multilabel_f1_score(means, truth, 7, threshold=0.4, average=average)
        assert scores[f"{average}_f1"].item() == pytest.approx(expected.item(), abs=1e-6)
    losses = torch.nn.functional.binary_cross_entropy(means, truth.double())
    assert scores["loss"].item() == pytest.approx(losses.item(), rel=1e-5)
    assert metric.scores is not None and metric.scores.positives.tolist() == truth.sum(0).tolist()


def test_scores_of_several_labels_do_not_depend_on_order_and_batches() -> None:
    logits, labels, ids = views_of_videos(1)
    rows = several_labels(labels)
    whole, parts = (MultiLabelVideoScores(7, 0.5, torch.nn.BCEWithLogitsLoss(reduction="none")) for _ in range(2))
    whole.update(logits, rows, ids)
    for part in torch.randperm(150, generator=torch.Generator().manual_seed(2)).split(13):
        parts.update(logits[part], rows[part], ids[part])
    scores, scores_of_parts = whole.compute(), parts.compute()
    assert all(torch.equal(scores[name], scores_of_parts[name]) for name in scores)
    parts.reset()
    parts.update(torch.full((1, 7), 200.0), torch.ones(1, 7), torch.zeros(1, dtype=torch.int64))  # saturated
    assert parts.compute()["map"].item() == 1 and parts.compute()["loss"].item() < 1e-6
