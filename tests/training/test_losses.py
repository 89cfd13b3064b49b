"""The cross-entropy of pixels, whose enlarged logits exist for one image at a time; the loss of masked patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_tasks.errors import UserError
from swinv2_tasks.training.losses import PixelCrossEntropy, local_statistics, masked_l1

WEIGHTS = [0.5, 1.0, 2.0, 0.0, 3.0]


def random_batch(size: tuple[int, int] = (21, 30), ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 5, 6, 8, generator=generator)
    labels = torch.randint(5, (3, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return logits.requires_grad_(), labels


def enlarge(logits: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("ignored", [0.0, 0.2, "an image"])
def test_value_and_gradient_are_those_of_torch(weights: list[float] | None, ignored: Any) -> None:
    logits, labels = random_batch(ignored=0.2 if ignored == "an image" else ignored)
    if ignored == "an image":
        labels[1] = 255
    loss = PixelCrossEntropy(weights)(logits, labels)
    (2.5 * loss).backward()
    gradient, logits.grad = logits.grad, None
    own = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(enlarge(logits, labels), labels, own, ignore_index=255)
    (2.5 * expected).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-4, atol=1e-7)


def test_without_gradients_the_value_is_the_same() -> None:
    logits, labels = random_batch()
    with torch.no_grad():
        assert torch.equal(PixelCrossEntropy()(logits, labels), PixelCrossEntropy()(logits, labels).detach())
    assert not PixelCrossEntropy()(logits.detach(), labels).requires_grad


def test_a_batch_without_labels_teaches_nothing() -> None:
    logits, labels = random_batch()
    labels.fill_(255)
    for loss in (PixelCrossEntropy(), PixelCrossEntropy(WEIGHTS), PixelCrossEntropy(ohem_threshold=0.7)):
        logits.grad = None
        value = loss(logits, labels)
        value.backward()
        assert value == 0
        assert logits.grad is not None and not logits.grad.any()


def test_logits_of_half_precision_are_summed_in_full() -> None:
    logits, labels = random_batch()
    half = logits.detach().bfloat16().requires_grad_()
    loss = PixelCrossEntropy()(half, labels)
    loss.backward()
    expected = F.cross_entropy(enlarge(half.detach().float(), labels), labels, ignore_index=255)
    assert loss.dtype == torch.float32 and half.grad is not None and half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, expected)


def brute_force(logits: Tensor, labels: Tensor, threshold: float, least: int, weights: list[float] | None) -> float:
    """Image by image: pixels below the threshold, and the hardest ones up to a number."""
    probabilities = enlarge(logits, labels).softmax(1).detach().numpy().astype(np.float64)
    total = count = 0.0
    for image, label in zip(probabilities, labels.numpy(), strict=True):
        own = sorted((image[k, y, x], k) for y, row in enumerate(label) for x, k in enumerate(row) if k != 255)
        for rank, (probability, k) in enumerate(own):
            if probability < threshold or rank < least:
                weight = 1.0 if weights is None else weights[k]
                total -= weight * np.log(probability)
                count += weight
    return total / count


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(("threshold", "least"), [(0.7, 0), (0.05, 200), (0.3, 100), (1.0, 0), (0.01, 10_000)])
def test_hard_pixels_are_those_found_by_brute_force(threshold: float, least: int, weights: list[float] | None) -> None:
    logits, labels = random_batch()
    loss = PixelCrossEntropy(weights, threshold, least)(logits, labels)
    expected = brute_force(logits, labels, threshold, least, weights)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad.any()


def test_easy_pixels_get_no_gradient() -> None:
    """All pixels of the first image are sure to be right."""
    logits, labels = random_batch(ignored=0.0)
    with torch.no_grad():
        labels[0] = 2
        logits[0] = 0
        logits[0, 2] = 20
    PixelCrossEntropy(ohem_threshold=0.7, ohem_min_pixels=0)(logits, labels).backward()
    assert logits.grad is not None
    assert not logits.grad[0].any() and logits.grad[1].any()


@pytest.mark.parametrize(
    "arguments",
    [
        {"ohem_threshold": 0.0},
        {"ohem_threshold": 1.5},
        {"ohem_min_pixels": -1},
        {"class_weights": [-1.0, 1.0]},
        {"class_weights": [0.0, 0.0]},
        {"class_weights": []},
    ],
)
def test_arguments_out_of_range_are_reported(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(arguments))):
        PixelCrossEntropy(**arguments)


# ---- masked patches


@pytest.mark.parametrize(("height", "width", "window"), [(64, 50, 47), (13, 9, 5), (7, 30, 3), (20, 20, 47)])
def test_local_statistics_are_those_of_a_window_moved_by_hand(height: int, width: int, window: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(0.3, 1, (2, 3, height, width))
    images[1, 0, : height // 2] = 0.7  # without any variance
    mean, deviation = local_statistics(torch.tensor(images), window)
    half = window // 2
    for row, column in np.ndindex(height, width):
        part = images[..., max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
        index = (..., row, column)
        np.testing.assert_allclose(mean[index], part.mean((2, 3)), rtol=1e-9, atol=1e-12)
        expected = np.sqrt(part.var((2, 3), ddof=1) + 1e-6)
        np.testing.assert_allclose(deviation[index], expected, rtol=1e-7)


def test_local_statistics_in_float32_are_those_in_float64() -> None:
    images = torch.randn(1, 3, 60, 60, dtype=torch.float64)
    images[..., :50] = 2.5  # sums of squares of equal pixels cancel
    for narrow, wide in zip(local_statistics(images.float(), 47), local_statistics(images, 47), strict=True):
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=1e-5)


def test_masked_l1_is_the_mean_over_masked_pixels() -> None:
    pixels, targets = torch.randn(2, 2, 3, 12, 20).unbind()
    mask = torch.rand(2, 3, 5) < 0.5
    picked = [
        abs(float(pixels[b, c, row, column] - targets[b, c, row, column]))
        for b, c, row, column in np.ndindex(2, 3, 12, 20)
        if mask[b, row // 4, column // 4]
    ]
    assert float(masked_l1(pixels, targets, mask)) == pytest.approx(sum(picked) / len(picked), rel=1e-5)
    assert float(masked_l1(pixels, targets, torch.zeros_like(mask))) == 0
