"""RoIAlign against plain bilinear sampling, and that it is not off by half a pixel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from swinv2_tasks.heads.roi_align import MultiLevelRoIAlign, pool_rois, to_roi_format


def value_at(x: Tensor, column: float, row: float) -> float:
    """Bilinear between the centers of cells, of a map (h, w); the border's values extend for a cell, then 0."""
    height, width = x.shape
    if not -1 <= row - 0.5 <= height or not -1 <= column - 0.5 <= width:
        return 0.0
    row, column = (min(max(position - 0.5, 0.0), side - 1) for position, side in ((row, height), (column, width)))
    top, left = min(int(row), height - 1), min(int(column), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    below, beside = row - top, column - left
    upper = (1 - beside) * x[top, left] + beside * x[top, right]
    lower = (1 - beside) * x[bottom, left] + beside * x[bottom, right]
    return float((1 - below) * upper + below * lower)


def plainly_pooled(x: Tensor, box: list[float], side: int, stride: int) -> Tensor:
    """Of a map (h, w) the means over points spread evenly in each cell, about one for each of the map's own."""
    left, top, right, bottom = (edge / stride for edge in box)
    width, height = (right - left) / side, (bottom - top) / side
    down, across = max(1, math.ceil(height)), max(1, math.ceil(width))
    pooled = torch.zeros(side, side)
    for row in range(side):
        for column in range(side):
            values = [
                value_at(x, left + width * (column + (i + 0.5) / across), top + height * (row + (j + 0.5) / down))
                for i in range(across)
                for j in range(down)
            ]
            pooled[row, column] = sum(values) / len(values)
    return pooled


def test_rois_are_pooled_as_by_plain_sampling_from_the_level_of_their_size() -> None:
    """A RoI of 112 pixels belongs to stride 8, one of 224 to 16, as in the paper; all larger ones to the last."""
    torch.manual_seed(0)
    strides = (4, 8, 16)
    levels = {str(k): torch.randn(2, 1, 256 // stride, 320 // stride) for k, stride in enumerate(strides)}
    boxes = [
        torch.tensor([[3.2, 4.9, 70.1, 50.3], [100.0, 20.0, 212.1, 132.1], [-9.0, -3.0, 320.0, 256.0]]),
        torch.tensor([[30.5, 61.2, 33.9, 70.0], [10.0, 10.0, 121.9, 121.9], [8.0, 8.0, 233.0, 233.0]]),
    ]
    expected_levels = [0, 1, 2, 0, 0, 2]
    pooled = MultiLevelRoIAlign(strides, 5)(levels, boxes)
    assert pooled.shape == (6, 1, 5, 5)
    for k, (roi, level) in enumerate(zip(pooled, expected_levels, strict=True)):
        box = torch.cat(boxes)[k].tolist()
        expected = plainly_pooled(levels[str(level)][k // 3, 0], box, 5, strides[level])
        torch.testing.assert_close(roi[0], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("stride", [4, 8])
@pytest.mark.parametrize("side", [7, 14])
def test_a_roi_of_a_ramp_reads_its_own_positions(side: int, stride: int) -> None:
    """A map whose cells hold the positions of their centers, in pixels: each cell of a RoI must find its own."""
    positions = stride * (torch.arange(40) + 0.5)
    levels = {"0": torch.stack([positions.expand(40, 40), positions[:, None].expand(40, 40)])[None]}
    left, top, right, bottom = 17.3, 21.9, 98.2, 75.4
    pooled = MultiLevelRoIAlign((stride,), side)(levels, [torch.tensor([[left, top, right, bottom]])])[0]
    parts = (torch.arange(side) + 0.5) / side
    torch.testing.assert_close(pooled[0], (left + (right - left) * parts).expand(side, side))
    torch.testing.assert_close(pooled[1], (top + (bottom - top) * parts)[:, None].expand(side, side))


def test_nothing_to_pool_gives_nothing_and_still_a_gradient() -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    pooled = MultiLevelRoIAlign((4,), 7)({"0": x}, [torch.zeros(0, 4), torch.zeros(0, 4)])
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert x.grad is not None and not x.grad.any()


def test_boxes_stay_exact_beside_features_of_half_precision() -> None:
    x = torch.randn(1, 2, 64, 64)
    boxes = [torch.tensor([[100.37, 3.11, 201.93, 77.77]])]
    exact = pool_rois(x.bfloat16().float(), to_roi_format(boxes), 7, 1 / 4)
    pooled = MultiLevelRoIAlign((4,), 7)({"0": x.bfloat16()}, boxes)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled, exact.bfloat16())
