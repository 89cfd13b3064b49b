"""Losses of images of which several classes may hold, or none: each class is a yes or no of its own.

Asymmetric loss: https://arxiv.org/abs/2009.14119. Two departures from the authors' code: losses are averaged over
images and classes, as binary cross-entropy is, where theirs are summed; and the weights that focus on hard examples
have a gradient, as in the paper's section 3, where the code takes them for constants.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_tasks.errors import UserError
from swinv2_tasks.heads.class_losses import WeightedLoss, check_gamma, focus
from swinv2_tasks.hyperparameters import Recorded


class MultiLabelLoss(Recorded, WeightedLoss):
    """What a multi-label task minimizes, as a setting of it; a subclass says how each logit counts.

    Args:
        pos_weight: factor of the loss where a class holds: one for all classes, or one for each; None: 1. As torch's
            ``BCEWithLogitsLoss`` has it.

    Raises:
        UserError: a factor is not above 0.
    """

    pos_weight: Tensor | None

    def __init__(self, pos_weight: float | list[float] | None = None) -> None:
        super().__init__()
        factors = pos_weight if isinstance(pos_weight, list) else [] if pos_weight is None else [pos_weight]
        if pos_weight == [] or not all(0 < factor < math.inf for factor in factors):
            raise UserError(f"model.multi_label_loss.pos_weight is {pos_weight}; expected numbers above 0")
        tensor = None if pos_weight is None else torch.tensor(factors, dtype=torch.float32)
        self.register_buffer("pos_weight", tensor, persistent=False)

    def check_classes(self, num_classes: int) -> None:
        """Makes sure that there are as many factors as classes, or one for all.

        Raises:
            UserError: there are not.
        """
        number = 1 if self.pos_weight is None else len(self.pos_weight)
        if number not in (1, num_classes):
            raise UserError(
                f"model.multi_label_loss.pos_weight has {number} numbers for {num_classes} classes; state one for each "
                "of them, in their order, or one for all"
            )

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each logit, to be averaged.

        Args:
            logits: (B, classes).
            labels: (B, classes) in [0, 1], 1 where a class holds; shares where images are mixed.

        Returns:
            (B, classes) float32, at least 0.
        """
        raise NotImplementedError

    def mean(self, losses: Tensor) -> Tensor:
        """The mean (scalar) of losses (B, classes), each times the weight of its class: over their number.

        As torch's ``BCEWithLogitsLoss(weight=…)``; a weight counts where its class holds and where it does not.
        """
        weights = self.class_weights(losses)
        return losses.mean() if weights is None else (losses * weights).mean()

    def _combine(self, positive: Tensor, negative: Tensor, labels: Tensor) -> Tensor:
        """The losses of classes that hold and that do not, weighted by the labels."""
        if self.pos_weight is not None:
            positive = positive * self.pos_weight
        return labels * positive + (1 - labels) * negative


class BinaryCrossEntropy(MultiLabelLoss):
    """Binary cross-entropy of each class. The argument is that of ``MultiLabelLoss``."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each logit (B, classes)."""
        return F.binary_cross_entropy_with_logits(
            logits.float(), labels.float(), pos_weight=self.pos_weight, reduction="none"
        )


class AsymmetricLoss(MultiLabelLoss):
    """Focuses on hard examples, more so where a class does not hold, and leaves out the easiest of those.

    With p the probability of a class and m = max(p − clip, 0), a class that holds has the loss −(1 − p)^γ₊ log p, one
    that does not −m^γ₋ log(1 − m). Both γ 0 and clip 0 make it binary cross-entropy.

    Args:
        gamma_neg: γ₋, how much less easy negatives count.
        gamma_pos: γ₊, the same of positives.
        clip: probability up to which a negative does not count at all, in [0, 1).
        pos_weight: as in ``MultiLabelLoss``.

    Raises:
        UserError: an argument is out of its range.
    """

    def __init__(
        self,
        gamma_neg: float = 4.0,
        gamma_pos: float = 1.0,
        clip: float = 0.05,
        pos_weight: float | list[float] | None = None,
    ) -> None:
        super().__init__(pos_weight)
        check_gamma(gamma_neg, "model.multi_label_loss.gamma_neg")
        check_gamma(gamma_pos, "model.multi_label_loss.gamma_pos")
        if not 0 <= clip < 1:
            raise UserError(f"model.multi_label_loss.clip is {clip:g}; expected a probability, from 0 to below 1")
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each logit (B, classes)."""
        logits, labels = logits.float(), labels.float()
        probabilities = logits.sigmoid()
        complements = (-logits).sigmoid()  # 1 − p, precise where p is almost 1

        positive = -F.logsigmoid(logits) * focus(complements, self.gamma_pos)
        if self.clip:
            shifted = (probabilities - self.clip).clamp(min=0)
            negative = -torch.log1p(-shifted) * focus(shifted, self.gamma_neg)
        else:
            negative = -F.logsigmoid(-logits) * focus(probabilities, self.gamma_neg)
        return self._combine(positive, negative, labels)


class BinaryFocalLoss(MultiLabelLoss):
    """Focal loss of each class: https://arxiv.org/abs/1708.02002, torchvision's ``sigmoid_focal_loss``.

    With p the probability of a class, one that holds has the loss −α (1 − p)^γ log p, one that does not
    −(1 − α) p^γ log(1 − p).

    Args:
        gamma: γ, how much less easy examples count; at least 0.
        alpha: α, how much a class that holds counts against one that does not, in [0, 1]; None: both count fully.
        pos_weight: as in ``MultiLabelLoss``.

    Raises:
        UserError: an argument is out of its range.
    """

    def __init__(
        self, gamma: float = 2.0, alpha: float | None = 0.25, pos_weight: float | list[float] | None = None
    ) -> None:
        super().__init__(pos_weight)
        check_gamma(gamma, "model.multi_label_loss.gamma")
        if alpha is not None and not 0 <= alpha <= 1:
            raise UserError(f"model.multi_label_loss.alpha is {alpha:g}; expected a share, from 0 to 1, or null")
        self.gamma, self.alpha = gamma, alpha

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each logit (B, classes)."""
        logits, labels = logits.float(), labels.float()
        probabilities = logits.sigmoid()
        complements = (-logits).sigmoid()  # 1 − p, precise where p is almost 1

        positive = -F.logsigmoid(logits) * focus(complements, self.gamma)
        negative = -F.logsigmoid(-logits) * focus(probabilities, self.gamma)
        if self.alpha is not None:
            positive, negative = self.alpha * positive, (1 - self.alpha) * negative
        return self._combine(positive, negative, labels)
