"""NMS within groups of boxes: exported, it is torchvision's, whatever the number of boxes."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from swinv2_tasks.heads.nms import batched_nms


class NMSOfSome(nn.Module):
    """NMS of the boxes that are chosen: their number is not known before it runs."""

    def forward(self, boxes: Tensor, scores: Tensor, groups: Tensor, chosen: Tensor) -> Tensor:
        return batched_nms(boxes[chosen], scores[chosen], groups[chosen], 0.3)


def random_boxes(number: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    corners = 60 * torch.rand(number, 2, generator=generator)
    boxes = torch.cat([corners, corners + 10 + 40 * torch.rand(number, 2, generator=generator)], 1)
    return boxes, torch.rand(number, generator=generator), torch.randint(0, 3, (number,), generator=generator)


def test_exported_nms_is_torchvisions() -> None:
    boxes, scores, groups = random_boxes(60)
    program = torch.export.export(NMSOfSome(), (boxes, scores, groups, scores > 0.5)).module()
    for threshold in (0.0, 0.5, 0.9, 2.0):
        chosen = scores > threshold
        expected = torchvision.ops.batched_nms(boxes[chosen], scores[chosen], groups[chosen], 0.3)
        assert torch.equal(program(boxes, scores, groups, chosen), expected)
        assert len(expected) < chosen.sum() or threshold > 0.5


@pytest.mark.parametrize("number", [0, 1, 60, 2000])
def test_nms_is_torchvisions(number: int) -> None:
    boxes, scores, groups = random_boxes(number)
    expected = torchvision.ops.batched_nms(boxes, scores, groups, 0.3)
    assert torch.equal(batched_nms(boxes, scores, groups, 0.3), expected)
