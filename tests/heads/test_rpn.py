"""Region proposals: anchors, which of them show an object, what they learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from swinv2_tasks.heads import CascadeMaskRCNNConfig, HTCConfig, MaskRCNNConfig
from swinv2_tasks.heads.mask_rcnn import DetectionHead
from swinv2_tasks.heads.rpn import BETWEEN_THRESHOLDS, Anchors, RegionProposals, match_boxes
from swinv2_tasks.inference.detection import pad_images
from tests.helpers.detectors import CHANNELS, CLASSES, SETTINGS, STRIDES, new_head, new_maps

# ---- anchors


def anchors_of(head: DetectionHead, levels: Any) -> Tensor:
    return head.rpn.anchor_generator(pad_images([torch.zeros(3, 90, 150)], 32), list(levels.values()))[0]


def test_anchors_lie_at_the_strides_and_are_not_rounded() -> None:
    """Of maps whose sides are not those of the image divided by the stride: 100 / 4 = 25, 25 / 2 → 13."""
    head = new_head()
    levels = head.pyramid(new_maps(1, 96, 160))
    anchors = anchors_of(head, levels)
    start = 0
    for level, stride in zip(levels.values(), (4, 8, 16, 32, 64), strict=True):
        rows, columns = level.shape[2:]
        part = anchors[start : start + 3 * rows * columns].view(rows, columns, 3, 4)
        start += 3 * rows * columns
        centers = (part[..., :2] + part[..., 2:]) / 2
        assert (centers[..., 0] - stride * torch.arange(columns)[None, :, None]).abs().max() < 1e-3
        assert (centers[..., 1] - stride * torch.arange(rows)[:, None, None]).abs().max() < 1e-3
        for shape, ratio in zip(part[0, 0], (0.5, 1.0, 2.0), strict=True):
            width, height = (shape[2:] - shape[:2]).tolist()
            assert height / width == pytest.approx(ratio, rel=1e-6)
            assert width * height == pytest.approx((8 * stride) ** 2, rel=1e-6)
    assert start == len(anchors)


# ---- which anchors show an object


def plainly_matched(iou: list[list[float]], foreground: float, background: float, least: float | None) -> list[int]:
    """The rule in loops, as the published recipes' assigner goes through it."""
    boxes = range(len(iou[0]))
    matched = []
    for box in boxes:
        column = [row[box] for row in iou]
        most = max(column)
        if most >= foreground:
            matched.append(column.index(most))
        else:
            matched.append(BETWEEN_THRESHOLDS if most >= background else -1)
    for index, row in enumerate(iou):
        if least is not None and max(row) >= least:
            for box in boxes:
                if row[box] == max(row):
                    matched[box] = index
    return matched


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rule", [(0.7, 0.3, 0.3), (0.5, 0.5, 0.5), (0.6, 0.6, None)])
def test_boxes_are_matched_by_the_rule(rule: tuple[float, float, float | None], seed: int) -> None:
    """Overlaps in steps of a tenth, so that several boxes meet an object equally well."""
    generator = torch.Generator().manual_seed(seed)
    iou = torch.randint(0, 10, (6, 25), generator=generator).double() / 10
    expected = plainly_matched(iou.tolist(), *rule)
    assert match_boxes(iou, *rule).tolist() == expected


def test_an_object_that_no_box_meets_well_takes_none() -> None:
    """The matcher of torchvision would take the best one, however bad."""
    iou = torch.tensor([[0.2, 0.1, 0.25], [0.35, 0.1, 0.0]])
    assert match_boxes(iou, 0.7, 0.3, 0.3).tolist() == [1, -1, -1]
    assert match_boxes(torch.zeros(0, 3), 0.7, 0.3, 0.3).tolist() == [-1, -1, -1]
    assert match_boxes(torch.zeros(2, 0), 0.7, 0.3, 0.3).tolist() == []


def test_anchors_of_an_image_are_those_of_its_own_padding_or_inside() -> None:
    """An image of 70×40 in a batch of 160×96: by itself it would be padded to 96×64."""
    strides = (4, 8, 16, 32, 64)
    anchors = Anchors([2 * stride for stride in strides], strides)
    levels = [torch.zeros(1, 4, math.ceil(96 / stride), math.ceil(160 / stride)) for stride in strides]
    (boxes,) = anchors(pad_images([torch.zeros(3, 96, 160)], 32), levels)
    near = RegionProposals(4, anchors, (10, 10)).usable(boxes, (40, 70))
    within = RegionProposals(4, anchors, (10, 10), inside=True).usable(boxes, (40, 70))
    for box, is_near, is_within in zip(boxes.tolist(), near.tolist(), within.tolist(), strict=True):
        left, top, right, bottom = box
        assert is_near == (round((left + right) / 2) < 96 and round((top + bottom) / 2) < 64)
        assert is_within == (left >= 0 and top >= 0 and right < 70 and bottom < 40)
    assert 0 < within.sum() < near.sum() < len(boxes)


def test_an_image_too_small_for_any_anchor_is_trained_on_those_near_it() -> None:
    anchors = Anchors([64.0], [8])
    (boxes,) = anchors(pad_images([torch.zeros(3, 32, 32)], 32), [torch.zeros(1, 4, 4, 4)])
    assert RegionProposals(4, anchors, (10, 10), inside=True).usable(boxes, (30, 30)).all()


@pytest.mark.parametrize("settings", [MaskRCNNConfig, CascadeMaskRCNNConfig, HTCConfig])
def test_detectors_train_their_proposals_as_their_recipes_do(settings: Any) -> None:
    rpn = settings(**SETTINGS).build(CHANNELS, STRIDES, CLASSES).rpn
    is_cascade = settings is not MaskRCNNConfig
    assert (rpn.inside, rpn.beta) == ((True, 1 / 9) if is_cascade else (False, 0))
    assert rpn.train().post_nms_top_n() == (120 if is_cascade else 60)
    assert rpn.eval().post_nms_top_n() == 60


@pytest.mark.parametrize("inside", [False, True])
def test_labels_are_given_to_usable_anchors_alone(inside: bool) -> None:
    torch.manual_seed(0)
    anchors = Anchors([16.0, 32.0], [4, 8])
    (boxes,) = anchors(
        pad_images([torch.zeros(3, 96, 160)], 32), [torch.zeros(1, 4, 24, 40), torch.zeros(1, 4, 12, 20)]
    )
    rpn = RegionProposals(4, anchors, (10, 10), inside=inside)
    objects = torch.tensor([[3.2, 4.1, 21.7, 19.9], [30.0, 8.0, 60.0, 38.0], [0.0, 0.0, 70.0, 40.0]])
    (labels,), (compared,) = rpn.assign_targets_to_anchors([boxes], [{"boxes": objects}], [(40, 70)])
    usable = rpn.usable(boxes, (40, 70))
    expected = plainly_matched(box_iou(objects, boxes[usable]).tolist(), 0.7, 0.3, 0.3)
    assert (labels[~usable] == -1).all()
    assert labels[usable].tolist() == [1 if k >= 0 else 0 if k == -1 else -1 for k in expected]
    for box, index in zip(compared[usable], expected, strict=True):
        assert index < 0 or torch.equal(box, objects[index])
    assert set(labels.tolist()) == {-1.0, 0.0, 1.0}


# ---- losses


@pytest.mark.parametrize("beta", [0.0, 1 / 9])
def test_losses_are_means_over_sampled_anchors(beta: float) -> None:
    torch.manual_seed(1)
    rpn = RegionProposals(4, Anchors([16.0], [4]), (10, 10), beta=beta)
    labels = [torch.tensor([1.0, -1, 0, 0, 1]), torch.tensor([0.0, 0, -1, -1, 0])]
    logits, deltas, regression_targets = torch.randn(10, 1), torch.randn(10, 4), torch.randn(10, 4)
    losses = rpn.compute_loss(logits, deltas, labels, [*regression_targets.split(5)])
    class_sum, box_sum, number = 0.0, 0.0, 0
    for logit, delta, regression_target, label in zip(
        logits, deltas, regression_targets, torch.cat(labels).tolist(), strict=True
    ):
        if label >= 0:
            number += 1
            probability = 1 / (1 + math.exp(-float(logit)))
            class_sum -= math.log(probability if label else 1 - probability)
        if label == 1:
            for offset in (delta - regression_target).abs().tolist():
                box_sum += offset**2 / (2 * beta) if offset < beta else offset - beta / 2
    assert [loss.item() for loss in losses] == pytest.approx([class_sum / number, box_sum / number], rel=1e-5)


def test_no_anchor_to_train_on_is_no_loss() -> None:
    rpn = RegionProposals(4, Anchors([16.0], [4]), (10, 10))
    logits, deltas = torch.randn(6, 1, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    losses = rpn.compute_loss(logits, deltas, [torch.full((6,), -1.0)], [torch.zeros(6, 4)])
    assert [loss.item() for loss in losses] == [0, 0]
    sum(losses).backward()  # type: ignore[union-attr]
    assert logits.grad is not None and not logits.grad.any()
