"""Mask R-CNN against torchvision's with the same weights, and the parts that detectors share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection import roi_heads
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou, roi_align

from swinv2_tasks.errors import UserError
from swinv2_tasks.heads import CascadeMaskRCNNConfig, HTCConfig, MaskRCNNConfig
from swinv2_tasks.heads.mask_rcnn import (
    DetectionHead,
    MaskRCNN,
    ProposalSampler,
    box_loss,
    mask_targets,
    with_masks,
)
from swinv2_tasks.inference.detection import DetectionInference, detect, pad_images
from tests.helpers.detectors import CHANNELS, CLASSES, IMAGES, SETTINGS, STRIDES, new_head, new_maps, new_target


class Levels(nn.Module):
    """Maps that a torchvision detector takes for its backbone's."""

    out_channels = 16


class Pooling(nn.Module):
    """RoIAlign as torchvision's detector calls it, aligned and with adaptive sampling; one box after the other."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, levels: Any, boxes: list[Tensor], sizes: Any) -> Tensor:
        pooled = []
        for image, many in enumerate(boxes):
            for box in many:
                root = float((box[2] - box[0]) * (box[3] - box[1])) ** 0.5
                level = sum(root >= least for least in (112, 224, 448))
                x = levels[str(level)][image : image + 1]
                pooled.append(roi_align(x, [box[None]], self.side, 1 / STRIDES[level], 0, aligned=True))
        return torch.cat(pooled)


def torchvision_with(head: MaskRCNN) -> TorchvisionMaskRCNN:
    """The detector of torchvision with a head's weights; it counts the background among the masks' classes.

    With what it does otherwise replaced: RoIAlign that is not aligned, and anchors of whole pixels.
    """
    anchors = AnchorGenerator(tuple((8 * stride,) for stride in (*STRIDES, 64)), ((0.5, 1.0, 2.0),) * 5)
    root = 0.5**0.5
    shapes = torch.tensor([[1 / root, root], [1.0, 1.0], [root, 1 / root]])
    anchors.cell_anchors = [4 * stride * torch.cat([-shapes, shapes], 1) for stride in (*STRIDES, 64)]
    theirs = TorchvisionMaskRCNN(
        Levels(),
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=2000,
        rpn_post_nms_top_n_train=60,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=60,
        box_batch_size_per_image=40,
        box_head=head.box.layers,
        box_predictor=nn.Identity(),
        mask_head=head.mask.convs,  # type: ignore[union-attr]
        mask_predictor=nn.Identity(),
    )
    theirs.roi_heads.box_roi_pool, theirs.roi_heads.mask_roi_pool = Pooling(7), Pooling(14)
    theirs.rpn.head.load_state_dict(head.rpn.head.state_dict())

    class BoxPredictor(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return head.box.classes(x), head.box.deltas(x)

    class MaskPredictor(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = head.mask.predictor(x)  # type: ignore[union-attr]
            return torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)

    theirs.roi_heads.box_predictor, theirs.roi_heads.mask_predictor = BoxPredictor(), MaskPredictor()
    return theirs


def test_losses_and_gradients_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides of 128 and 192 divide by 64: there torchvision's quotients are the true strides.

    Boxes by L1 and aligned targets of masks are put into torchvision's losses. Matches of low quality differ where two
    objects claim an anchor, or where none has an overlap of 0.3: not here.
    """
    head, images = new_head(), pad_images(IMAGES, 64)
    theirs = torchvision_with(head)
    targets = [new_target(1), new_target(2, number=7)]
    torch.manual_seed(3)
    losses = head.losses(new_maps(), images, targets)

    def l1_loss(predictions: Tensor, targets: Tensor, beta: float, reduction: str) -> Tensor:
        return F.l1_loss(predictions, targets, reduction=reduction)

    def targets_of(masks: Tensor, boxes: Tensor, matched: Tensor, side: int) -> Tensor:
        rois = torch.cat([matched[:, None].to(boxes), boxes], 1)
        return roi_align(masks[:, None].to(boxes), rois, side, 1.0, -1, aligned=True)[:, 0]

    monkeypatch.setattr(F, "smooth_l1_loss", l1_loss)
    monkeypatch.setattr(roi_heads, "project_masks_on_boxes", targets_of)
    shifted = [{**target, "labels": target["labels"] + 1} for target in targets]
    levels = head.pyramid(new_maps())
    torch.manual_seed(3)
    proposals, rpn_losses = theirs.rpn(images, levels, shifted)
    _, roi_losses = theirs.roi_heads(levels, proposals, images.image_sizes, shifted)
    expected = {
        "rpn_class": rpn_losses["loss_objectness"],
        "rpn_box": rpn_losses["loss_rpn_box_reg"],
        "class": roi_losses["loss_classifier"],
        "box": roi_losses["loss_box_reg"],
        "mask": roi_losses["loss_mask"],
    }
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], msg=name)
    ours = torch.autograd.grad(losses["mask"] + losses["box"], [*head.pyramid.parameters()], retain_graph=True)
    other = torch.autograd.grad(
        expected["mask"] + expected["box"], [*head.pyramid.parameters()], allow_unused=True, materialize_grads=True
    )
    for own, their in zip(ours, other, strict=True):
        torch.testing.assert_close(own, their)


def test_detections_are_torchvisions() -> None:
    head, images = new_head().eval(), pad_images(IMAGES, 64)
    theirs = torchvision_with(head).eval()
    maps = new_maps()
    detections = detect(lambda _: maps, head, IMAGES, DetectionInference(), multiple=64)
    with torch.no_grad():
        levels = head.pyramid(maps)
        proposals, _ = theirs.rpn(images, levels)
        expected, _ = theirs.roi_heads(levels, proposals, images.image_sizes)
    assert sum(len(own.boxes) for own in detections) > 50
    for own, their in zip(detections, expected, strict=True):
        torch.testing.assert_close(own.boxes, their["boxes"])
        torch.testing.assert_close(own.labels, their["labels"] - 1)
        torch.testing.assert_close(own.scores, their["scores"])
        torch.testing.assert_close(own.masks, their["masks"][:, 0])


@pytest.mark.parametrize("seed", range(4))
def test_sampled_proposals_are_what_they_claim(seed: int) -> None:
    torch.manual_seed(seed)
    target = new_target(seed, number=5)
    corners = torch.rand(200, 2, 2).sort(1).values * torch.tensor([160.0, 90.0])
    near = target["boxes"].repeat(8, 1) + 3 * torch.randn(40, 4)
    proposals = torch.cat([corners.flatten(1) + torch.tensor([0.0, 0.0, 5.0, 5.0]), near])
    samples = ProposalSampler(0.6, 48)([proposals], [target])
    boxes, labels, matched_indices, is_ground_truth = (part[0] for part in samples)
    iou = box_iou(boxes, target["boxes"])
    assert len(boxes) == 48 and 0 < (labels > 0).sum() <= 12
    assert ((iou.max(1).values >= 0.6) == (labels > 0)).all()
    positive = labels > 0
    assert (matched_indices[positive] == iou.argmax(1)[positive]).all()
    assert (labels[positive] == target["labels"][matched_indices[positive]] + 1).all()
    exact = (boxes[:, None] == target["boxes"]).all(2).any(1)
    assert (is_ground_truth == exact).all()


def test_low_quality_matches_are_the_recipes() -> None:
    """Object 0's best proposal overlaps object 1 more, and shows object 0 all the same."""
    objects = torch.tensor([[0.0, 0.0, 10.0, 20.0], [0.0, 0.0, 10.0, 14.0]])
    proposals = torch.tensor([[0.0, 0.0, 10.0, 16.0], [0.0, 0.0, 10.0, 14.5]])
    overlaps = box_iou(objects, proposals)
    assert (overlaps[1] > overlaps[0]).all() and overlaps[0].argmax() == 0 and (overlaps >= 0.5).all()
    target = {"boxes": objects, "labels": torch.tensor([3, 4])}
    for low_quality, expected in ((True, [0, 1, 0, 1]), (False, [1, 1, 0, 1])):
        samples = ProposalSampler(0.5, 40, low_quality)([proposals], [target])
        assert samples.matched_indices[0].tolist() == expected
        assert samples.labels[0].tolist() == [4 + k for k in expected]
        assert samples.is_ground_truth[0].tolist() == [False, False, True, True]


def test_losses_of_samples_are_means_over_all_of_them() -> None:
    torch.manual_seed(0)
    logits, deltas, regression_targets = torch.randn(6, 4), torch.randn(6, 16), torch.randn(6, 4)
    labels = torch.tensor([0, 3, 1, 0, 0, 3])
    off = sum(
        abs(float(deltas[row, 4 * int(label) + k] - regression_targets[row, k]))
        for row, label in enumerate(labels)
        for k in range(4)
        if label
    )
    assert box_loss(deltas, labels, regression_targets).item() == pytest.approx(off / 6, rel=1e-5)
    wrong = -sum(float(row.log_softmax(0)[label]) for row, label in zip(logits, labels, strict=True))
    head = new_head()
    assert head.mean_class_loss(logits, labels).item() == pytest.approx(wrong / 6, rel=1e-5)
    assert head.mean_class_loss(logits[:0], labels[:0]) == 0


def test_masks_to_learn_are_shares_of_cells() -> None:
    """A box of 56 pixels from a whole one on: each of its 28 cells is two pixels wide and high."""
    torch.manual_seed(0)
    masks = (torch.rand(3, 90, 80) < 0.5).to(torch.uint8)
    boxes = torch.tensor([[5.0, 9.0, 61.0, 65.0], [20.0, 30.0, 76.0, 86.0]])
    targets = mask_targets(masks, boxes, torch.tensor([2, 0]), 28)
    for target, mask, (left, top) in zip(targets, (masks[2], masks[0]), ((5, 9), (20, 30)), strict=True):
        cells = mask[top : top + 56, left : left + 56].float().reshape(28, 2, 28, 2)
        torch.testing.assert_close(target, cells.mean((1, 3)))


def without_proposals(head: DetectionHead) -> None:
    """Lets each proposal shrink to a point."""
    nn.init.zeros_(head.rpn.head.bbox_pred.weight)
    with torch.no_grad():
        head.rpn.head.bbox_pred.bias.fill_(-50)


def nothing_annotated() -> dict[str, Tensor]:
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 128, 192)}


@pytest.mark.parametrize("settings", [MaskRCNNConfig, CascadeMaskRCNNConfig, HTCConfig])
@pytest.mark.parametrize("objects", ["none", "some"])
def test_a_detector_that_proposes_nothing_trains_all_the_same(settings: Any, objects: str) -> None:
    torch.manual_seed(0)
    head = settings(**SETTINGS).build(CHANNELS, STRIDES, CLASSES)
    without_proposals(head)
    images = pad_images(IMAGES, 32)
    target = nothing_annotated()
    losses = head.losses(new_maps(), images, [target, target if objects == "none" else new_target(1)])
    total = torch.stack([*losses.values()]).sum()
    total.backward()
    assert total.isfinite() and total > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert all(buffer.isfinite().all() for buffer in head.buffers())
    if objects == "none":  # then no proposal is left at all
        assert all(loss == 0 for name, loss in losses.items() if not name.startswith("rpn"))


@pytest.mark.parametrize("settings", [MaskRCNNConfig, CascadeMaskRCNNConfig, HTCConfig])
@pytest.mark.parametrize("how", [{}, {"nms": "soft_gaussian", "scales": (0.5, 1.0), "flip": True}])
def test_a_detector_that_proposes_nothing_finds_nothing(settings: Any, how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    head = settings(**SETTINGS).build(CHANNELS, STRIDES, CLASSES).eval()
    without_proposals(head)

    def backbone(batch: Tensor) -> list[Tensor]:
        return new_maps(len(batch), *batch.shape[2:])

    for detections in detect(backbone, head, IMAGES, DetectionInference(**how)):
        assert (
            detections.boxes.shape == (0, 4) and detections.masks is not None and detections.masks.shape == (0, 28, 28)
        )
        assert len(detections.labels) == len(detections.scores) == 0


def test_an_image_without_objects_trains_the_background() -> None:
    head, images = new_head(), pad_images(IMAGES, 32)
    empty = nothing_annotated()
    for targets in ([empty, new_target(1)], [empty, empty]):
        losses = head.losses(new_maps(), images, targets)
        total = torch.stack([*losses.values()]).sum()
        total.backward()
        assert total.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_an_object_with_only_a_box_does_not_train_the_mask_branch() -> None:
    target = new_target(1, number=3)
    target["masks"][1] = 0
    samples = ProposalSampler(0.5, 40)([torch.rand(10, 4)], [target])
    masked = with_masks(samples, [target])
    assert set(samples.matched_indices[0][samples.labels[0] > 0].tolist()) == {0, 1, 2}
    assert set(masked.matched_indices[0].tolist()) == {0, 2}
    assert all(len(part[0]) == len(masked.boxes[0]) for part in masked)


def test_data_without_masks_are_refused_by_a_mask_branch_only() -> None:
    target = new_target(1)
    del target["masks"]
    images = pad_images(IMAGES, 32)
    with pytest.raises(UserError, match="masks=false"):
        new_head().losses(new_maps(), images, [target, target])
    losses = new_head(masks=False).losses(new_maps(), images, [target, target])
    assert losses.keys() == {"rpn_class", "rpn_box", "class", "box"}
    detections = detect(lambda _: new_maps(), new_head(masks=False).eval(), IMAGES, DetectionInference())
    assert detections[0].masks is None and len(detections[0].boxes)


def test_boxes_stay_exact_under_bfloat16() -> None:
    """Proposals of a network in bfloat16 are no multiples of what 8 bits can tell apart."""
    head, images = new_head().eval(), pad_images(IMAGES, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = head.features(new_maps())
        results = head.classify(features, images)
    for boxes, scores in results:
        assert boxes.dtype == scores.dtype == torch.float32
        assert (boxes != boxes.bfloat16()).float().mean() > 0.5


@pytest.mark.parametrize(
    "name", ["channels", "representation_size", "anchor_scale", "post_nms_top_n", "batch_size_per_image"]
)
def test_settings_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"detector.{name} must be above 0"):
        MaskRCNNConfig(**{name: 0})
