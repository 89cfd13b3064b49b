"""What classes are learned by: cross-entropy and focal loss, with a weight for each class.

Focal loss: https://arxiv.org/abs/1708.02002, here of softmax probabilities, its α a weight of each class.

Shapes: N samples, K classes. Labels are class indices (N,), or probabilities (N, K), as where images are mixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_tasks.errors import UserError
from swinv2_tasks.hyperparameters import Recorded


class WeightedLoss(nn.Module):
    """A loss that may have a weight for each class.

    They are no buffer: averages of the weights in training would average them too, from before they are known.
    """

    def __init__(self) -> None:
        super().__init__()
        self._class_weights: tuple[float, ...] | None = None
        self._is_pending = False
        self._on_device: dict[torch.device, Tensor] = {}

    def expect_class_weights(self) -> None:
        """Refuses to compute a loss until the weights are set, as they depend on data that nobody has read yet."""
        self._is_pending = True

    def set_class_weights(self, weights: Sequence[float] | None) -> None:
        """States the weight of each class, at least 0; None: all are 1."""
        self._class_weights = None if weights is None else tuple(weights)
        self._is_pending = False
        self._on_device = {}

    def class_weights(self, like: Tensor) -> Tensor | None:
        """The weights (K,) float32, on the device of a tensor; None where all are 1.

        Raises:
            UserError: they are not known yet.
        """
        if self._is_pending:
            raise UserError(
                "model.class_weights follow from training data, which no trainer has given: state a number for each "
                "class with task.set_class_weights([…])"
            )
        if self._class_weights is None:
            return None
        if like.device not in self._on_device:
            self._on_device[like.device] = torch.tensor(self._class_weights, device=like.device)
        return self._on_device[like.device]


class ClassLoss(Recorded, WeightedLoss):
    """What classifiers of one class a sample minimize, as a setting of theirs; a subclass says how a sample counts."""

    label_smoothing = 0.0
    """Share of the target that is spread over all classes."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss (scalar), as torch's ``cross_entropy`` takes it.

        With class indices it is the sum of the weighted losses over the sum of the weights of the samples' own
        classes; with probabilities, or without weights, it is over the number of samples.

        Args:
            logits: (N, K).
            labels: (N,) or (N, K).
        """
        losses = self.losses(logits, labels)
        weights = self.class_weights(logits)
        if weights is None or labels.is_floating_point():
            return losses.mean()
        total = weights[labels].sum()
        return losses.sum() / total.clamp(min=torch.finfo(torch.float32).tiny)  # 0 where none counts

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each sample, with the weights of the classes.

        Args:
            logits: (N, K).
            labels: (N,) or (N, K).

        Returns:
            (N,), float32 also of logits in half precision, at least 0.
        """
        raise NotImplementedError


class CrossEntropy(ClassLoss):
    """Cross-entropy of the softmax of the logits, torch's ``cross_entropy``."""

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each sample (N,)."""
        return F.cross_entropy(
            at_least_float32(logits),
            labels,
            self.class_weights(logits),
            reduction="none",
            label_smoothing=self.label_smoothing,
        )


class FocalLoss(ClassLoss):
    """Cross-entropy in which samples count the less, the surer the network is of their class already.

    A sample whose class has the probability p has the loss −(1 − p)^γ log p; where several classes share a target,
    by mixing or label smoothing, each counts so by its share. γ 0 makes it cross-entropy. α is ``class_weights``.

    Args:
        gamma: γ, how much less easy samples count; at least 0.

    Raises:
        UserError: γ is below 0.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        check_gamma(gamma, "the gamma of FocalLoss")
        self.gamma = gamma

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each sample (N,)."""
        log_probabilities = at_least_float32(logits).log_softmax(1)
        complements = -torch.expm1(log_probabilities)  # 1 − p, precise where p is almost 1
        terms = -log_probabilities * focus(complements, self.gamma)
        if (weights := self.class_weights(logits)) is not None:
            terms = terms * weights

        are_shares = labels.is_floating_point()
        own = (terms * labels).sum(1) if are_shares else terms.gather(1, labels[:, None])[:, 0]
        if not self.label_smoothing:
            return own
        return (1 - self.label_smoothing) * own + self.label_smoothing * terms.mean(1)


_LEAST = 1e-8
"""Probabilities from which on their powers have a gradient: that of a root is infinite at 0."""


def focus(probabilities: Tensor, gamma: float) -> Tensor | float:
    """The weight of samples that are wrong by these probabilities."""
    return 1.0 if gamma == 0 else probabilities.clamp(min=_LEAST) ** gamma


def check_gamma(gamma: float, name: str) -> None:
    """Refuses powers that would raise the weight of easy samples.

    Raises:
        UserError: it is negative, or no number.
    """
    if not 0 <= gamma < math.inf:
        raise UserError(f"{name} is {gamma:g}; expected a number of at least 0")


def at_least_float32(x: Tensor) -> Tensor:
    """A tensor in float32, or in float64 where it is so already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_class_weights(weights: Sequence[float], name: str) -> None:
    """Refuses numbers that weigh no class.

    Raises:
        UserError: one is negative or not finite, or none is above 0.
    """
    values: list[Any] = [*weights]
    if not all(0 <= value < math.inf for value in values) or not any(values):
        raise UserError(f"{name} must be numbers of at least 0, some above it, not {values}")
