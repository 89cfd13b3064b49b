"""Multi-label scores beside torchmetrics' and beside counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

from swinv2_tasks.evaluation import MultiLabelMetric, multi_label_scores
from swinv2_tasks.evaluation.multi_label import average_precision, f1_curve


def random_predictions(images: int = 60, classes: int = 6, ties: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(images, classes, generator=generator)
    if ties:
        logits = logits.round()
    return logits, (torch.rand(images, classes, generator=generator) < 0.3).float()


def by_thresholds(scores: np.ndarray, labels: np.ndarray) -> float:
    """Average precision by its definition: precision and recall at each score as a threshold."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= threshold
        new_recall = (taken & labels).sum() / labels.sum()
        total += (new_recall - recall) * (taken & labels).sum() / taken.sum()
        recall = new_recall
    return total


@pytest.mark.parametrize("ties", [True, False])
def test_average_precision_is_torchmetrics_and_the_definition(ties: bool) -> None:
    logits, labels = random_predictions(ties=ties)
    scores = multi_label_scores(logits.numpy(), labels.bool().numpy())
    reference = multilabel_average_precision(logits.double(), labels.int(), 6, average=None)
    assert scores.ap == pytest.approx(reference.numpy(), abs=1e-6)
    assert scores.map == pytest.approx(float(reference.mean()), abs=1e-6)
    by_definition = [by_thresholds(logits[:, k].numpy(), labels[:, k].bool().numpy()) for k in range(6)]
    assert scores.ap == pytest.approx(by_definition, abs=1e-12)


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_f1_is_torchmetrics(threshold: float) -> None:
    logits, labels = random_predictions(ties=False)
    scores = multi_label_scores(logits.numpy(), labels.bool().numpy(), threshold)
    for average, ours in (("macro", scores.macro_f1), ("micro", scores.micro_f1)):
        reference = multilabel_f1_score(logits.sigmoid(), labels.int(), 6, threshold, average=average)  # type: ignore[arg-type]
        assert ours == pytest.approx(float(reference), abs=1e-6)


def test_classes_without_images_do_not_count_and_wrong_predictions_of_them_do() -> None:
    logits = np.array([[3.0, -3, 3, -3], [-3.0, -3, -3, -3]], dtype=np.float32)
    labels = np.array([[1, 0, 0, 1], [0, 0, 0, 0]], dtype=bool)
    scores = multi_label_scores(logits, labels)
    assert scores.positives.tolist() == [1, 0, 0, 1]
    assert np.isnan(scores.ap).tolist() == [False, True, True, False]
    assert scores.map == pytest.approx((1 + 1 / 2) / 2)  # of the fourth class both images have the same score
    np.testing.assert_equal(scores.precision, [1, np.nan, 0, np.nan])
    np.testing.assert_equal(scores.recall, [1, np.nan, np.nan, 0])
    np.testing.assert_equal(scores.f1, [1, np.nan, 0, 0])
    assert scores.macro_f1 == pytest.approx(1 / 3)
    assert scores.micro_f1 == pytest.approx(2 / 4)


def test_no_positive_at_all_is_nan() -> None:
    scores = multi_label_scores(np.full((2, 2), -9, dtype=np.float32), np.zeros((2, 2), dtype=bool))
    assert np.isnan([scores.map, scores.macro_f1, scores.micro_f1]).all()
    assert np.isnan(average_precision(np.array([1.0]), np.array([False])))


def test_certain_logits_are_told_apart_where_their_probabilities_are_both_one() -> None:
    assert average_precision(np.array([30.0, 40.0], dtype=np.float32), np.array([False, True])) == 1


def test_the_metric_is_the_same_in_any_batches_and_order() -> None:
    logits, labels = random_predictions()
    whole, parts = MultiLabelMetric(), MultiLabelMetric()
    whole.update(logits, labels)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    for indices in order.split(7):
        parts.update(logits[indices].double(), labels[indices])
    assert whole.compute() == parts.compute()
    assert whole.scores is not None and whole.scores.positives.sum() == labels.sum()
    whole.reset()
    whole.update(logits[:3], labels[:3])
    assert whole.compute() != parts.compute()


def test_f1_over_the_threshold_is_scikit_learns_to_the_last_digit() -> None:
    """Also where probabilities are the thresholds, and of a class that holds for no image."""
    logits, labels = random_predictions(ties=False)
    probabilities = logits.double().sigmoid().numpy()
    probabilities[:20] = probabilities[:20].round(2)
    truth = labels.bool().numpy()
    truth[:, 2] = False
    curve = f1_curve(probabilities, truth)
    assert curve.thresholds.tolist() == [k / 100 for k in range(101)]
    for k, threshold in enumerate(curve.thresholds):
        predicted = probabilities >= threshold
        assert curve.micro_f1[k] == f1_score(truth, predicted, average="micro", zero_division=np.nan)
        of_classes = f1_score(truth, predicted, average=None, zero_division=np.nan)
        assert curve.macro_f1[k] == of_classes[~np.isnan(of_classes)].mean()


def test_the_curve_has_the_f1_of_the_threshold() -> None:
    logits, labels = random_predictions()
    for threshold in (0.5, 0.73):
        scores = multi_label_scores(logits.numpy(), labels.bool().numpy(), threshold)
        step = round(100 * threshold)
        assert (scores.curve.micro_f1[step], scores.curve.macro_f1[step]) == (scores.micro_f1, scores.macro_f1)
