"""What SimMIM adds to a backbone: the token of masked patches, and the decoder from the last map to pixels.

https://arxiv.org/abs/2111.09886, section 3; names and initialization as in the published code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SimMIMHead(nn.Module):
    """Pixels from the last map of a backbone, by one linear layer per position.

    Args:
        embed_dim: channels of the backbone's patch embedding, ``backbone.channels[0]``.
        in_channels: channels of its last map.
        stride: pixels per position of that map, along each side.
        image_channels: channels of the images.

    Attributes:
        mask_token: (1, 1, embed_dim), what takes the place of masked tokens.
    """

    def __init__(self, embed_dim: int, in_channels: int, stride: int, image_channels: int = 3) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.norm = nn.LayerNorm(in_channels)
        self.decoder = nn.Sequential(
            nn.Conv2d(in_channels, stride**2 * image_channels, kernel_size=1), nn.PixelShuffle(stride)
        )

    def token(self) -> Tensor:
        """The mask token, a copy that outlasts the call: the weights of a sharded head are gathered in calls alone."""
        return self.mask_token.clone()

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, h, w) of which the last is used → pixels (B, image_channels, h·stride, w·stride)."""
        return self.decoder(self.norm(maps[-1].movedim(1, -1)).movedim(-1, 1))


def enlarge_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask of patches (B, h, w) at another size, a multiple of its own: (B, *size)."""
    for axis, side in enumerate(size, start=1):
        mask = mask.repeat_interleave(side // mask.shape[axis], dim=axis)
    return mask
