"""Non-maximum suppression (NMS) within groups of boxes, which can be exported too."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """As torchvision's ``batched_nms``, also under ``torch.export``.

    Args:
        boxes: (n, 4), with coordinates of at least 0.
        scores: (n,), of at least 0.
        groups: (n,) int64; boxes of different groups, levels or classes, do not suppress each other.
        iou_threshold: intersection over union above which the lower-scoring box is dropped.

    Returns:
        int64 indices of the boxes that are kept, highest-scoring first.
    """
    if torch.compiler.is_exporting():
        return _nms_of_shifted_boxes(boxes, scores, groups, iou_threshold)
    return torchvision.ops.batched_nms(boxes, scores, groups, iou_threshold)


def _nms_of_shifted_boxes(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """NMS with each group shifted to a place of its own, as torchvision does it for up to 1,000 boxes on the CPU.

    torchvision's function asks how many boxes there are, which a graph does not know; and it tells the exporter that
    two boxes are kept at least. So two are added, in groups of their own and behind all others.
    """
    boxes = torch.cat([boxes, boxes.new_tensor([0.0, 0.0, 1.0, 1.0]).repeat(2, 1)])
    scores = torch.cat([scores, scores.new_full((2,), -1.0)])
    groups = torch.cat([groups, groups.new_tensor([-1, -2])])

    shifts = groups.to(boxes) * (boxes.max() + 1)
    return torchvision.ops.nms(boxes + shifts[:, None], scores, iou_threshold)[:-2]
