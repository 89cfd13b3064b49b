"""Norms of a backbone's maps, and the feature pyramid of detection.

Feature pyramid: https://arxiv.org/abs/1612.03144, by torchvision.

Shapes: B batch, C channels, h, w height and width of a map.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool


class MapNorms(nn.ModuleList):
    """A LayerNorm over the channels of each map: a backbone's maps come without a norm of their own.

    Args:
        in_channels: channels of each map, ``backbone.channels``.
    """

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__(nn.LayerNorm(channels) for channels in in_channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, h, w) → normalized maps of the same shapes."""
        return [norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, x in zip(self, maps, strict=True)]


class FeaturePyramid(nn.Module):
    """Norms, then torchvision's feature pyramid, with a last level of every other position of the one before.

    Args:
        in_channels: channels of each map, from the largest map to the smallest.
        channels: channels of every level.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.norms = MapNorms(in_channels)
        self.pyramid = FeaturePyramidNetwork(list(in_channels), channels, LastLevelMaxPool())

    def forward(self, maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        """Maps (B, C, h, w) → levels (B, channels, h, w) named "0", "1", …, and "pool" of half the last one's size."""
        named = OrderedDict((str(level), x) for level, x in enumerate(self.norms(maps)))
        return self.pyramid(named)
