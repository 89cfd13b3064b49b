"""Cascade Mask R-CNN: sampling by stage, refinement, losses, and what is averaged."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from swinv2_tasks.heads import CascadeMaskRCNNConfig
from swinv2_tasks.heads.batch_norm import BatchNorm2d
from swinv2_tasks.heads.cascade import giou_loss
from swinv2_tasks.heads.mask_rcnn import SampledProposals
from swinv2_tasks.heads.torchvision_internals import BoxCoder
from swinv2_tasks.inference.detection import pad_images
from tests.helpers import detectors
from tests.helpers.detectors import CLASSES, IMAGES, new_maps, new_target, spy_on_stages

new_head = partial(detectors.new_head, CascadeMaskRCNNConfig)


def test_the_box_branch_is_that_of_the_papers() -> None:
    head = new_head()
    for branch in head.boxes:
        layers = [type(layer) for layer in branch.layers.modules()]
        assert (
            layers.count(torch.nn.Conv2d) == 4 and layers.count(BatchNorm2d) == 4 and layers.count(torch.nn.Linear) == 1
        )
        assert branch.deltas.out_features == 4 and branch.classes.out_features == CLASSES + 1


def test_each_stage_samples_at_its_threshold_from_the_boxes_that_the_one_before_refined() -> None:
    head, images = new_head(masks=False), pad_images(IMAGES, 32)
    targets = [new_target(1), new_target(2, number=6)]
    samples, deltas = spy_on_stages(head)
    head.losses(new_maps(), images, targets)
    assert len(samples) == len(deltas) == 3
    for stage, threshold in enumerate((0.5, 0.6, 0.7)):
        for k, target in enumerate(targets):
            boxes, labels = samples[stage][1].boxes[k], samples[stage][1].labels[k]
            best = box_iou(boxes, target["boxes"]).max(1).values
            assert ((best >= threshold) == (labels > 0)).all()
    weights = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
    for stage in (0, 1):
        stage_samples = samples[stage][1]
        start = 0
        for k, (height, width) in enumerate(images.image_sizes):
            boxes = stage_samples.boxes[k]
            part = deltas[stage][start : start + len(boxes)]
            start += len(boxes)
            center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            shift = part[:, :2] / torch.tensor(weights[stage][:2])
            growth = (part[:, 2:] / torch.tensor(weights[stage][2:])).clamp(max=4.135166556742356)
            center, size = center + shift * size, size * growth.exp()
            expected = torch.cat([center - size / 2, center + size / 2], 1)
            expected = expected.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
            is_ground_truth = (boxes[:, None] == targets[k]["boxes"]).all(2).any(1)
            torch.testing.assert_close(samples[stage + 1][0][k], expected[~is_ground_truth], atol=1e-3, rtol=1e-4)
            assert is_ground_truth.any()


def test_refined_boxes_pass_no_gradient_to_the_stage_before() -> None:
    head, images = new_head(masks=False), pad_images(IMAGES, 32)
    losses = head.losses(new_maps(), images, [new_target(1), new_target(2)])
    losses["box2"].backward()
    assert all(p.grad is None for p in head.boxes[0].parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in head.boxes[1].parameters())


def test_losses_are_weighted_by_stage_and_measure_decoded_boxes() -> None:
    """A plain computation of GIoU over all sampled proposals, times ten, times the stage's weight."""
    head, images = new_head(masks=False), pad_images(IMAGES, 32)
    targets = [new_target(1), new_target(2, number=6)]
    samples, _ = spy_on_stages(head)
    outputs: list[tuple[Tensor, Tensor]] = []
    for branch in head.boxes:
        branch.register_forward_hook(lambda _, inputs, out: outputs.append(out))
    losses = head.losses(new_maps(), images, targets)
    for stage, weight in enumerate((1.0, 0.5, 0.25)):
        stage_samples, (logits, deltas) = samples[stage][1], outputs[stage]
        decoded = BoxCoder((*[10.0 * (stage + 1)] * 2, *[5.0 * (stage + 1)] * 2)).decode(deltas, stage_samples.boxes)[
            :, 0
        ]
        labels = torch.cat(stage_samples.labels)
        truth = torch.cat([t["boxes"][m] for t, m in zip(targets, stage_samples.matched_indices, strict=True)])
        total = 0.0
        for box, true_box, label in zip(decoded.tolist(), truth.tolist(), labels.tolist(), strict=True):
            if label:
                total += 1 - plain_giou(box, true_box)
        expected = torch.tensor(weight * 10 * total / len(labels))
        torch.testing.assert_close(losses[f"box{stage + 1}"].detach(), expected, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(losses[f"class{stage + 1}"], weight * F.cross_entropy(logits, labels))


def plain_giou(first: list[float], second: list[float]) -> float:
    def area(box: list[float]) -> float:
        return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

    inner = [max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3])]
    outer = [min(first[0], second[0]), min(first[1], second[1]), max(first[2], second[2]), max(first[3], second[3])]
    union = area(first) + area(second) - area(inner)
    return area(inner) / union - (area(outer) - union) / area(outer)


def test_giou_of_no_object_is_no_loss() -> None:
    background = torch.zeros(3, dtype=torch.int64)
    samples = SampledProposals([torch.rand(3, 4)], [background], [background], [])
    loss = giou_loss(torch.rand(3, 4, requires_grad=True), samples, [{"boxes": torch.zeros(0, 4)}])
    assert loss == 0
    loss.backward()


def test_logits_and_masks_are_means_over_the_stages() -> None:
    head, images = new_head().eval(), pad_images(IMAGES, 32)
    outputs: list[tuple[Tensor, Tensor]] = []
    inputs: list[Tensor] = []
    for branch in head.boxes:
        branch.register_forward_hook(lambda _, arguments, out: (outputs.append(out), inputs.append(arguments[0]))[0])
    with torch.no_grad():
        features = head.features(new_maps())
        proposals = head.propose(features, images)
        results = head.classify(features, images)
        scores = torch.cat([image_scores for _, image_scores in results])
        torch.testing.assert_close(scores, (sum(out[0] for out in outputs) / 3).softmax(1)[:, 1:])
        assert [boxes.shape for boxes, _ in results] == [(len(boxes), 1, 4) for boxes in proposals]
        # Each stage took other boxes: those that the one before it gave.
        assert not torch.allclose(inputs[0], inputs[1]) and not torch.allclose(inputs[1], inputs[2])
        boxes, labels = [image_proposals[:3] for image_proposals in proposals], [torch.tensor([0, 2, 4])] * 2
        masks = head.mask_probabilities(features, boxes, labels, images)
        pooled = head.mask_pool(features.levels, boxes)
        mean = sum(branch(pooled).sigmoid() for branch in head.masks) / 3
        expected = mean[torch.arange(6), torch.cat(labels)].split(3)
    for own, reference in zip(masks, expected, strict=True):
        torch.testing.assert_close(own, reference)


@pytest.mark.parametrize("empty", [1, 2])
def test_images_without_objects_train(empty: int) -> None:
    head, images = new_head(), pad_images(IMAGES, 32)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 9, 9)}
    losses = head.losses(new_maps(), images, [nothing] * empty + [new_target(1)] * (2 - empty))
    assert set(losses) == {"rpn_class", "rpn_box"} | {f"{n}{k}" for n in ("class", "box", "mask") for k in (1, 2, 3)}
    total = torch.stack([*losses.values()]).sum()
    total.backward()
    assert total.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
