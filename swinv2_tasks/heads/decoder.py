"""What turns a backbone's maps into the class of each pixel, as a setting of a task."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from swinv2_tasks.hyperparameters import Recorded


class Decoder(Recorded):
    """Settings of a decoder, which build it once the backbone and the classes are known; a subclass says how.

    Its arguments are plain values, which checkpoints record.
    """

    def build(self, in_channels: Sequence[int], num_classes: int, dropout: float) -> nn.Module:
        """A module from maps to logits.

        Args:
            in_channels: channels of each map (B, C, h, w), from the largest map to the smallest.
            num_classes: number of classes K.
            dropout: probability of dropping a channel before the classifier, in training.

        Returns:
            A module that takes the list of maps and gives logits (B, K, H, W) at the size of the largest.
        """
        raise NotImplementedError
