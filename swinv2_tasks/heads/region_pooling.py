"""Features of regions: RoIAlign over the levels of a feature pyramid. https://arxiv.org/abs/1703.06870, section 3

Pixel i of a map covers [i, i + 1], as it does in images and masks: a region is sampled half a pixel further to the left
and to the top than in torchvision's default, and each of its cells is the mean over as many points as it has pixels.

Shapes: B images, R regions of an image, C channels, S side of what a region is pooled to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

FINEST_SIDE = 14
"""Side of a square region, in cells of the first level, below which the first level is always the one; twice as large
it belongs to the next one. https://arxiv.org/abs/1612.03144, equation 1: 224 pixels belong to stride 16."""


class RegionPooling(nn.Module):
    """Pools each region from the level that fits its size.

    Args:
        strides: of the levels that regions are pooled from; the names of these are "0", "1", ….
        side: S.
    """

    def __init__(self, strides: Sequence[int], side: int) -> None:
        super().__init__()
        self.strides, self.side = tuple(strides), side

    def forward(self, levels: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Levels (B, C, h, w) and each image's boxes (R, 4), in pixels → (ΣR, C, S, S) in the levels' precision."""
        regions = with_image_index(boxes)
        maps = [levels[str(index)] for index in range(len(self.strides))]
        chosen = self.levels_of(regions[:, 1:])

        rows = [(chosen == index).nonzero()[:, 0] for index in range(len(maps))]
        pooled = [
            aligned_pooling(x, regions[of_level], self.side, 1 / stride)
            for x, of_level, stride in zip(maps, rows, self.strides, strict=True)
        ]
        order = torch.cat(rows).argsort()  # from level by level to image by image
        torch._check(order.shape[0] == regions.shape[0])  # which an exported graph cannot know by itself
        return torch.cat(pooled).index_select(0, order)

    def levels_of(self, boxes: Tensor) -> Tensor:
        """The index of the level that each box (R, 4) is pooled from, int64 (R,)."""
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
        finest = FINEST_SIDE * self.strides[0]
        index = torch.floor(torch.log2(sides / finest + 1e-6))
        return index.clamp(0, len(self.strides) - 1).to(torch.int64)


def aligned_pooling(x: Tensor, regions: Tensor, side: int, scale: float) -> Tensor:
    """RoIAlign of regions (R, 5), image index and box, from maps (B, C, h, w) → (R, C, side, side) in x's precision.

    Args:
        x: maps, perhaps in half precision, which would be too coarse for boxes: it is computed in that of the boxes.
        regions: boxes in pixels of the image.
        side: of what each region is pooled to.
        scale: size of the maps over that of the images.
    """
    pooled = roi_align(x.to(regions.dtype), regions, side, scale, sampling_ratio=0, aligned=True)
    return pooled.to(x.dtype)


def with_image_index(boxes: Sequence[Tensor]) -> Tensor:
    """Each image's boxes (R, 4) as one list (ΣR, 5) that names the image first."""
    rows = [torch.cat([one.new_full((one.shape[0], 1), index), one], dim=1) for index, one in enumerate(boxes)]
    return torch.cat(rows)
