"""Losses of classes beside torch's cross-entropy, torchvision's focal loss, and the paper's formula written out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from swinv2_tasks.errors import UserError
from swinv2_tasks.heads import ClassLoss, CrossEntropy, FocalLoss
from swinv2_tasks.training import BinaryCrossEntropy, BinaryFocalLoss

WEIGHTS = [0.25, 4.0, 1.0, 0.5, 2.0]


def new_logits(samples: int = 7) -> Tensor:
    return 4 * torch.randn(samples, 5, generator=torch.Generator().manual_seed(0))


def new_indices() -> Tensor:
    return torch.tensor([0, 4, 1, 1, 3, 0, 2])


def new_shares() -> Tensor:
    """As mixup makes them."""
    first, second = F.one_hot(new_indices(), 5).float(), F.one_hot(new_indices().flip(0), 5).float()
    return 0.3 * first + 0.7 * second


def with_weights(loss: ClassLoss, weights: list[float] | None, smoothing: float) -> ClassLoss:
    loss.set_class_weights(weights)
    loss.label_smoothing = smoothing
    return loss


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("new_labels", [new_indices, new_shares])
@pytest.mark.parametrize("new_loss", [CrossEntropy, lambda: FocalLoss(0.0)])
def test_means_and_gradients_are_those_of_torchs_cross_entropy(
    weights: list[float] | None, smoothing: float, new_labels: Callable[[], Tensor], new_loss: Callable[[], ClassLoss]
) -> None:
    """Hard labels over the sum of their weights, soft ones over their number."""
    loss = with_weights(new_loss(), weights, smoothing)
    tensor = None if weights is None else torch.tensor(weights)
    logits, reference = (new_logits().requires_grad_() for _ in range(2))
    value = loss(logits, new_labels())
    expected = F.cross_entropy(reference, new_labels(), tensor, label_smoothing=smoothing)
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(logits.grad, reference.grad)


def focal(logits: list[float], target: list[float], gamma: float, weights: list[float]) -> float:
    """−Σ t α (1 − p)^γ log p of one sample."""
    total = sum(math.exp(logit) for logit in logits)
    probabilities = [math.exp(logit) / total for logit in logits]
    return -sum(
        share * weight * (1 - p) ** gamma * math.log(p)
        for share, weight, p in zip(target, weights, probabilities, strict=True)
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("new_labels", [new_indices, new_shares])
def test_the_focal_loss_is_the_papers(gamma: float, smoothing: float, new_labels: Callable[[], Tensor]) -> None:
    loss = with_weights(FocalLoss(gamma), WEIGHTS, smoothing)
    labels = new_labels()
    targets = labels if labels.is_floating_point() else F.one_hot(labels, 5).float()
    targets = (1 - smoothing) * targets + smoothing / 5
    rows = zip(new_logits().tolist(), targets.tolist(), strict=True)
    expected = [focal(logits, target, gamma, WEIGHTS) for logits, target in rows]
    torch.testing.assert_close(loss.losses(new_logits(), labels), torch.tensor(expected), rtol=1e-4, atol=1e-6)
    over = len(labels) if labels.is_floating_point() else sum(WEIGHTS[k] for k in labels.tolist())
    assert loss(new_logits(), labels).item() == pytest.approx(sum(expected) / over, rel=1e-4)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.5, 0.7), (0.0, 0.25), (3.0, None)])
def test_the_focal_loss_of_several_labels_is_torchvisions(gamma: float, alpha: float | None) -> None:
    labels = (torch.rand(7, 5, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    logits, reference = (new_logits().requires_grad_() for _ in range(2))
    losses = BinaryFocalLoss(gamma, alpha)(logits, labels)
    expected = sigmoid_focal_loss(reference, labels, -1 if alpha is None else alpha, gamma)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)
    losses.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(logits.grad, reference.grad, rtol=1e-4, atol=1e-6)


def test_two_classes_by_softmax_are_one_by_sigmoid() -> None:
    """The difference of two logits is the logit of one of them: torchvision's α is the weight of both classes."""
    logits = torch.randn(9, 2, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 1, 1, 0, 0, 1, 0, 0, 1])
    loss = FocalLoss(2.0)
    loss.set_class_weights([0.75, 0.25])
    expected = sigmoid_focal_loss(logits[:, 1] - logits[:, 0], labels.float(), alpha=0.25, gamma=2.0)
    torch.testing.assert_close(loss.losses(logits, labels), expected)


def test_classes_of_several_labels_are_weighed_as_by_torch() -> None:
    labels = (new_logits() > 0).float()
    loss = BinaryCrossEntropy(pos_weight=3.0)
    loss.set_class_weights(WEIGHTS)
    pos_weight = torch.tensor(3.0)
    expected = F.binary_cross_entropy_with_logits(new_logits(), labels, torch.tensor(WEIGHTS), pos_weight=pos_weight)
    torch.testing.assert_close(loss.mean(loss(new_logits(), labels)), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_certain_logits_have_finite_losses_and_gradients(gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0]]).repeat(2, 1).requires_grad_()
    loss = FocalLoss(gamma)(logits, torch.tensor([0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", [CrossEntropy(), FocalLoss(), BinaryFocalLoss()])
def test_half_precision_is_computed_in_single_also_under_autocast(loss: ClassLoss) -> None:
    labels = new_shares()
    half = new_logits().bfloat16()
    expected = loss(half.float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(half, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)


def test_samples_that_do_not_count_have_no_loss() -> None:
    loss = CrossEntropy()
    loss.set_class_weights([0.0, 1.0, 1.0, 1.0, 1.0])
    logits = new_logits().requires_grad_()
    value = loss(logits, torch.zeros(7, dtype=torch.int64))
    value.backward()
    assert value == 0 and logits.grad is not None and not logits.grad.any()


def test_weights_that_are_not_known_yet_are_not_taken_for_one() -> None:
    loss = CrossEntropy()
    loss.expect_class_weights()
    with pytest.raises(UserError, match="set_class_weights"):
        loss(new_logits(), new_indices())
    copied = copy.deepcopy(loss)
    copied.set_class_weights(WEIGHTS)
    assert copied(new_logits(), new_indices()) > 0


@pytest.mark.parametrize(
    ("new_loss", "named"),
    [
        (lambda: FocalLoss(-1.0), "gamma"),
        (lambda: BinaryFocalLoss(gamma=-0.5), "gamma"),
        (lambda: BinaryFocalLoss(alpha=1.5), "alpha"),
    ],
)
def test_settings_out_of_range_are_refused(new_loss: Callable[[], object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        new_loss()
