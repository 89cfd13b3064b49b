"""Mask R-CNN against torchvision's with the same weights, and the parts that detectors share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, box_iou

from swinv2_tasks.detection_inference import DetectionInference, detect, padded
from swinv2_tasks.errors import UserError
from swinv2_tasks.heads import MaskRCNN
from swinv2_tasks.heads.mask_rcnn import MaskRCNNHead, RegionSampler, pooling, with_masks
from tests.backbone.checkpoints import randomise

CHANNELS, STRIDES, CLASSES = (8, 16, 24, 32), (4, 8, 16, 32), 5
SETTINGS: dict[str, Any] = {"channels": 16, "hidden_channels": 32, "proposals": 60, "sampled_regions": 40}


def new_head(**settings: Any) -> MaskRCNNHead:
    torch.manual_seed(0)
    head = MaskRCNN(**{**SETTINGS, **settings}).build(CHANNELS, STRIDES, CLASSES)
    randomise(head)
    return head


def new_maps(batch: int = 2, height: int = 128, width: int = 192, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, c, -(-height // s), -(-width // s)) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def new_target(seed: int, number: int = 4, height: int = 100, width: int = 180) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, 2, generator=generator).sort(1).values * torch.tensor([width - 40, height - 40])
    boxes = torch.cat([corners[:, 0], corners[:, 1] + 20], 1)
    masks = torch.zeros(number, 128, 192, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return {"boxes": boxes, "labels": torch.randint(CLASSES, (number,), generator=generator), "masks": masks}


class Levels(nn.Module):
    """Maps that a torchvision detector takes for its backbone's."""

    out_channels = 16


def torchvision_with(head: MaskRCNNHead) -> TorchvisionMaskRCNN:
    """torchvision's detector with a head's weights; it counts the background among the masks' classes."""
    anchors = AnchorGenerator(tuple((8 * stride,) for stride in (*STRIDES, 64)), ((0.5, 1.0, 2.0),) * 5)
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
        mask_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2),
        mask_head=head.mask.convs,  # type: ignore[union-attr]
        mask_predictor=nn.Identity(),
    )
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


IMAGES = [torch.zeros(3, 100, 180), torch.zeros(3, 128, 192)]


def test_losses_and_gradients_are_torchvisions() -> None:
    """Sides of 128 and 192 divide by 64: there torchvision's quotients are the true strides."""
    head, images = new_head(), padded(IMAGES, 64)
    theirs = torchvision_with(head)
    targets = [new_target(1), new_target(2, number=7)]
    torch.manual_seed(3)
    losses = head.losses(new_maps(), images, targets)
    shifted = [{**target, "labels": target["labels"] + 1} for target in targets]
    levels = head.pyramid(new_maps())
    torch.manual_seed(3)
    proposals, rpn_losses = theirs.rpn(images, levels, shifted)
    _, region_losses = theirs.roi_heads(levels, proposals, images.image_sizes, shifted)
    expected = {
        "rpn_class": rpn_losses["loss_objectness"],
        "rpn_box": rpn_losses["loss_rpn_box_reg"],
        "class": region_losses["loss_classifier"],
        "box": region_losses["loss_box_reg"],
        "mask": region_losses["loss_mask"],
    }
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], msg=name)
    ours = torch.autograd.grad(losses["mask"] + losses["box"], [*head.pyramid.parameters()], retain_graph=True)
    other = torch.autograd.grad(expected["mask"] + expected["box"], [*head.pyramid.parameters()])
    for one, two in zip(ours, other, strict=True):
        torch.testing.assert_close(one, two)


def test_detections_are_torchvisions() -> None:
    head, images = new_head().eval(), padded(IMAGES, 64)
    theirs = torchvision_with(head).eval()
    maps = new_maps()
    found = detect(lambda _: maps, head, IMAGES, DetectionInference(), multiple=64)
    with torch.no_grad():
        levels = head.pyramid(maps)
        proposals, _ = theirs.rpn(images, levels)
        expected, _ = theirs.roi_heads(levels, proposals, images.image_sizes)
    assert sum(len(one.boxes) for one in found) > 50
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.boxes, other["boxes"])
        torch.testing.assert_close(one.labels, other["labels"] - 1)
        torch.testing.assert_close(one.scores, other["scores"])
        torch.testing.assert_close(one.masks, other["masks"][:, 0])


def test_anchors_lie_at_the_strides() -> None:
    """Of maps whose sides are not those of the image divided by the stride: 100 / 4 = 25, 25 / 2 → 13, …"""
    head = new_head()
    levels = head.pyramid(new_maps(1, 96, 160))
    anchors = head.rpn.anchor_generator(padded([torch.zeros(3, 90, 150)], 32), list(levels.values()))[0]
    start = 0
    for level, stride in zip(levels.values(), (4, 8, 16, 32, 64), strict=True):
        rows, columns = level.shape[2:]
        part = anchors[start : start + 3 * rows * columns].view(rows, columns, 3, 4)
        start += 3 * rows * columns
        middles = (part[..., :2] + part[..., 2:]) / 2
        assert (middles[..., 0] == stride * torch.arange(columns)[None, :, None]).all()
        assert (middles[..., 1] == stride * torch.arange(rows)[:, None, None]).all()
        square = part[0, 0, 1]
        assert (square[2:] - square[:2]).tolist() == [8 * stride, 8 * stride]
    assert start == len(anchors)


def test_regions_are_pooled_at_the_strides_whatever_was_seen_first() -> None:
    """torchvision's own would take a stride of 2 for 4 from an image of 20 pixels, padded to 32."""
    pool = pooling((4, 8), 2)
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    levels = {"0": ramp[..., :8, :8], "1": ramp[..., :4, :4]}
    first = pool(levels, [torch.tensor([[0.0, 0.0, 16.0, 16.0]])], [(20, 20)])
    later = pool(levels, [torch.tensor([[0.0, 0.0, 16.0, 16.0]])], [(64, 64)])
    torch.testing.assert_close(first, later)
    torch.testing.assert_close(first[0, 0, 0], torch.tensor([1.0, 3.0]) - 0.5 + 0.5)


@pytest.mark.parametrize("seed", range(4))
def test_sampled_regions_are_what_they_claim(seed: int) -> None:
    torch.manual_seed(seed)
    target = new_target(seed, number=5)
    corners = torch.rand(200, 2, 2).sort(1).values * torch.tensor([160.0, 90.0])
    near = target["boxes"].repeat(8, 1) + 3 * torch.randn(40, 4)
    proposals = torch.cat([corners.flatten(1) + torch.tensor([0.0, 0.0, 5.0, 5.0]), near])
    regions = RegionSampler(0.6, 48)([proposals], [target])
    boxes, labels, matched, annotated = (part[0] for part in regions)
    iou = box_iou(boxes, target["boxes"])
    assert len(boxes) == 48 and 0 < (labels > 0).sum() <= 12
    assert ((iou.max(1).values >= 0.6) == (labels > 0)).all()
    positive = labels > 0
    assert (matched[positive] == iou.argmax(1)[positive]).all()
    assert (labels[positive] == target["labels"][matched[positive]] + 1).all()
    exact = (boxes[:, None] == target["boxes"]).all(2).any(1)
    assert (annotated == exact).all()


def test_an_image_without_objects_trains_the_background() -> None:
    head, images = new_head(), padded(IMAGES, 32)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 128, 192)}
    for targets in ([empty, new_target(1)], [empty, empty]):
        losses = head.losses(new_maps(), images, targets)
        total = torch.stack([*losses.values()]).sum()
        total.backward()
        assert total.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_an_object_with_only_a_box_does_not_train_the_mask_branch() -> None:
    target = new_target(1, number=3)
    target["masks"][1] = 0
    regions = RegionSampler(0.5, 40)([torch.rand(10, 4)], [target])
    masked = with_masks(regions, [target])
    assert set(regions.matched[0][regions.labels[0] > 0].tolist()) == {0, 1, 2}
    assert set(masked.matched[0].tolist()) == {0, 2}
    assert all(len(part[0]) == len(masked.boxes[0]) for part in masked)


def test_data_without_masks_are_refused_by_a_mask_branch_only() -> None:
    target = new_target(1)
    del target["masks"]
    images = padded(IMAGES, 32)
    with pytest.raises(UserError, match="masks=false"):
        new_head().losses(new_maps(), images, [target, target])
    losses = new_head(masks=False).losses(new_maps(), images, [target, target])
    assert losses.keys() == {"rpn_class", "rpn_box", "class", "box"}
    found = detect(lambda _: new_maps(), new_head(masks=False).eval(), IMAGES, DetectionInference())
    assert found[0].masks is None and len(found[0].boxes)


def test_boxes_stay_exact_under_bfloat16() -> None:
    """Proposals of a network in bfloat16 are no multiples of what 8 bits can tell apart."""
    head, images = new_head().eval(), padded(IMAGES, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = head.features(new_maps())
        regions = head.classify(features, images)
    for boxes, scores in regions:
        assert boxes.dtype == scores.dtype == torch.float32
        assert (boxes != boxes.bfloat16()).float().mean() > 0.5


@pytest.mark.parametrize("name", ["channels", "hidden_channels", "anchor_scale", "proposals", "sampled_regions"])
def test_settings_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"detector.{name} must be above 0"):
        MaskRCNN(**{name: 0})
