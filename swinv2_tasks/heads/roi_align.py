"""RoIAlign over the levels of a feature pyramid.

https://arxiv.org/abs/1703.06870, section 3.

Pixel i of a map covers [i, i + 1], as it does in images and masks: a RoI is sampled half a pixel further to the left
and to the top than in torchvision's default, and each of its cells is the mean over as many points as it has pixels.

Shapes: B images, R RoIs of an image, C channels, S side of what a RoI is pooled to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from swinv2_tasks.torch_internals import check

FINEST_SIDE = 14
"""Side of a square RoI, in cells of the first level, below which the first level is always the one; twice as large it
belongs to the next one. https://arxiv.org/abs/1612.03144, equation 1: 224 pixels belong to stride 16."""


class MultiLevelRoIAlign(nn.Module):
    """Pools each RoI from the level that fits its size.

    Args:
        strides: of the levels that RoIs are pooled from; the names of these are "0", "1", ….
        side: S.
    """

    def __init__(self, strides: Sequence[int], side: int) -> None:
        super().__init__()
        self.strides, self.side = tuple(strides), side

    def forward(self, levels: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Levels (B, C, h, w) and each image's boxes (R, 4), in pixels → (ΣR, C, S, S) in the levels' precision."""
        rois = to_roi_format(boxes)
        maps = [levels[str(index)] for index in range(len(self.strides))]
        level_indices = self.levels_of(rois[:, 1:])

        rows = [(level_indices == index).nonzero()[:, 0] for index in range(len(maps))]
        pooled = [
            pool_rois(x, rois[level_rows], self.side, 1 / stride)
            for x, level_rows, stride in zip(maps, rows, self.strides, strict=True)
        ]

        order = torch.cat(rows).argsort()  # from level by level to image by image
        check(order.shape[0] == rois.shape[0])  # which an exported graph cannot know by itself
        return torch.cat(pooled).index_select(0, order)

    def levels_of(self, boxes: Tensor) -> Tensor:
        """The index of the level that each box (R, 4) is pooled from, int64 (R,)."""
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
        finest = FINEST_SIDE * self.strides[0]
        index = torch.floor(torch.log2(sides / finest + 1e-6))
        return index.clamp(0, len(self.strides) - 1).to(torch.int64)


def pool_rois(x: Tensor, rois: Tensor, side: int, scale: float) -> Tensor:
    """RoIAlign of RoIs (R, 5), image index and box, from maps (B, C, h, w) → (R, C, side, side) in x's precision.

    Args:
        x: maps, perhaps in half precision, which would be too coarse for boxes: it is computed in that of the boxes.
        rois: boxes in pixels of the image.
        side: of what each RoI is pooled to.
        scale: size of the maps over that of the images.
    """
    pooled = roi_align(x.to(rois.dtype), rois, side, scale, sampling_ratio=0, aligned=True)
    return pooled.to(x.dtype)


def to_roi_format(boxes: Sequence[Tensor]) -> Tensor:
    """Each image's boxes (R, 4) as one list (ΣR, 5), with the image's index first."""
    rows = []
    for index, image_boxes in enumerate(boxes):
        indices = image_boxes.new_full((image_boxes.shape[0], 1), index)
        rows.append(torch.cat([indices, image_boxes], dim=1))
    return torch.cat(rows)
