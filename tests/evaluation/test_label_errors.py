"""Labels that are probably wrong, of synthetic probabilities and beside confident learning by its definition."""

from __future__ import annotations

import numpy as np

from swinv2_tasks.evaluation.label_errors import find_label_errors


def predictions(
    samples: int, classes: int, wrong: int, sharpness: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, of which the first ones are wrong, probabilities of a model that knows better, and the true classes."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, samples)
    logits = rng.normal(0, 1, (samples, classes))
    logits[np.arange(samples), truth] += sharpness
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = truth.copy()
    labels[:wrong] = (truth[:wrong] + rng.integers(1, classes, wrong)) % classes
    return labels, probabilities, truth


def top(probabilities: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :number]
    return order, np.take_along_axis(probabilities, order, axis=1)


def test_planted_errors_are_listed_first() -> None:
    """Of a model that is right in 95 of 100 cases; the class that is shown is suggested."""
    labels, probabilities, truth = predictions(500, 10, wrong=10, sharpness=3.5)
    assert 0.9 < (probabilities.argmax(1) == truth).mean() < 0.97
    own = probabilities[np.arange(500), labels]
    errors = find_label_errors(labels, own, *top(probabilities, 5))
    listed = errors.samples[:30].tolist()
    assert len({*listed} & {*range(10)}) >= 9
    suggested = dict(zip(listed, errors.suggested.tolist(), strict=False))
    assert all(suggested[k] == truth[k] for k in range(10) if k in suggested)


def test_they_are_those_of_the_definition() -> None:
    """Thresholds of the paper's equation 2, and its margins, sample by sample."""
    labels, probabilities, _ = predictions(300, 6, wrong=30, sharpness=2, seed=1)
    own = probabilities[np.arange(300), labels]
    thresholds = [np.mean([own[i] for i in range(300) if labels[i] == j]) for j in range(6)]
    expected = []
    for i in range(300):
        others = [j for j in range(6) if j != labels[i]]
        best = max(others, key=lambda j: probabilities[i, j])
        margin = own[i] - probabilities[i, best]
        if margin < 0:
            expected.append((margin, i, best, any(probabilities[i, j] >= thresholds[j] for j in others)))
    errors = find_label_errors(labels, own, *top(probabilities, 6))
    assert 20 < errors.is_wrong.sum() < len(expected) - 20
    assert [*zip(errors.margins, errors.samples, errors.suggested, errors.is_wrong, strict=True)] == sorted(expected)


def test_by_a_class_that_no_sample_bears_no_label_counts_as_wrong() -> None:
    labels = np.array([0, 0, 1])
    probabilities = np.array([[0.1, 0.2, 0.7], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1]])
    errors = find_label_errors(labels, probabilities[np.arange(3), labels], *top(probabilities, 3))
    assert errors.samples.tolist() == [0] and errors.is_wrong.tolist() == [False]


def test_without_samples_there_are_none() -> None:
    nothing = np.zeros(0)
    errors = find_label_errors(nothing.astype(int), nothing, np.zeros((0, 5), int), np.zeros((0, 5)))
    assert len(errors.samples) == len(errors.margins) == 0
