"""Multi-label losses beside the paper's formulas, written out number by number."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional

from swinv2_tasks.errors import UserError
from swinv2_tasks.training import AsymmetricLoss, BinaryCrossEntropy


def logits_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 4 * torch.randn(7, 5, generator=generator), (torch.rand(7, 5, generator=generator) < 0.4).float()


def written_out(logit: float, label: float, gamma_neg: float, gamma_pos: float, clip: float) -> float:
    """Equations 4 to 7 of the paper, of one logit."""
    p = 1 / (1 + math.exp(-logit))
    shifted = max(p - clip, 0.0)
    positive = (1 - p) ** gamma_pos * math.log(p)
    negative = shifted**gamma_neg * math.log(1 - shifted)
    return -label * positive - (1 - label) * negative


@pytest.mark.parametrize(("gamma_neg", "gamma_pos", "clip"), [(4, 1, 0.05), (2, 0, 0.2), (0, 3, 0), (0.5, 0.5, 0.3)])
def test_the_asymmetric_loss_is_the_papers(gamma_neg: float, gamma_pos: float, clip: float) -> None:
    logits, labels = logits_and_labels()
    losses = AsymmetricLoss(gamma_neg, gamma_pos, clip)(logits, labels)
    pairs = zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True)
    expected = torch.tensor([written_out(*pair, gamma_neg, gamma_pos, clip) for pair in pairs]).view(7, 5)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)


def test_without_focus_and_clip_it_is_binary_cross_entropy_also_of_shares_and_in_its_gradient() -> None:
    logits, _ = logits_and_labels()
    shares = torch.rand(7, 5, generator=torch.Generator().manual_seed(1))
    gradients = []
    for loss in (AsymmetricLoss(0, 0, 0, pos_weight=2.0), BinaryCrossEntropy(pos_weight=2.0)):
        leaf = logits.clone().requires_grad_()
        losses = loss(leaf, shares)
        losses.sum().backward()
        gradients.append((losses.detach(), leaf.grad))
    torch.testing.assert_close(*gradients)


def test_binary_cross_entropy_weighs_positives_of_each_class_as_torch_does() -> None:
    logits, labels = logits_and_labels()
    weights = [1.0, 2.0, 3.0, 4.0, 5.0]
    expected = functional.binary_cross_entropy_with_logits(
        logits, labels, pos_weight=torch.tensor(weights), reduction="none"
    )
    torch.testing.assert_close(BinaryCrossEntropy(weights)(logits, labels), expected)
    torch.testing.assert_close(AsymmetricLoss(0, 0, 0, weights)(logits, labels), expected)


@pytest.mark.parametrize("gammas", [(4, 1, 0.05), (0.5, 0.5, 0.05), (0.5, 0.5, 0)])
def test_certain_logits_have_finite_losses_and_gradients(gammas: tuple[float, float, float]) -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0]]).repeat(2, 1).requires_grad_()
    loss = AsymmetricLoss(*gammas)(logits, torch.tensor([[1.0, 1, 1], [0, 0, 0]])).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_half_precision_is_computed_in_single() -> None:
    logits, labels = logits_and_labels()
    assert AsymmetricLoss()(logits.bfloat16(), labels).dtype == torch.float32


def test_copies_keep_their_settings() -> None:
    loss = copy.deepcopy(AsymmetricLoss(2.0, 0.5, 0.1, [1.0, 2.0]))
    assert loss.init_args == {"gamma_neg": 2.0, "gamma_pos": 0.5, "clip": 0.1, "pos_weight": [1.0, 2.0]}
    assert loss.pos_weight is not None and loss.pos_weight.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"gamma_neg": -1.0}, "gamma_neg"),
        ({"gamma_pos": -0.1}, "gamma_pos"),
        ({"clip": 1.0}, "clip"),
        ({"pos_weight": []}, "pos_weight"),
        ({"pos_weight": [1.0, 0.0]}, "pos_weight"),
        ({"pos_weight": -2.0}, "pos_weight"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        AsymmetricLoss(**arguments)


def test_factors_of_other_classes_are_refused() -> None:
    BinaryCrossEntropy(2.0).check_classes(3)
    with pytest.raises(UserError, match="2 numbers for 3 classes"):
        BinaryCrossEntropy([1.0, 2.0]).check_classes(3)
