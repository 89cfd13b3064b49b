"""Mask R-CNN on feature maps, and what the detectors that go on from it share. https://arxiv.org/abs/1703.06870

Built of torchvision's parts: feature pyramid, region proposals, RoIAlign, matching and sampling, box coding, losses.
Departures from torchvision: levels lie at the backbone's own strides instead of quotients of sizes; boxes, anchors and
what is compared with them stay in float32 under autocast; an object without a mask does not train the mask branch.

Shapes: B images, R regions of an image, K classes, C channels of a level, M side of a mask (28). Boxes are left, top,
right, bottom in pixels of the image given to the network. Labels of targets are class indices from 0; inside, class 0
is the background.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import fastrcnn_loss, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, box_iou
from torchvision.ops.poolers import initLevelMapper

from swinv2_tasks.errors import UserError
from swinv2_tasks.heads.fpn import FeaturePyramid
from swinv2_tasks.records import Recorded


class Detector(Recorded):
    """Settings of a detector, which build it once the backbone and the classes are known.

    Args:
        masks: with a mask branch; without, boxes are all that is trained and predicted.
        channels: channels of the pyramid's levels and of the mask branch.
        hidden_channels: width of the box branch's linear layers.
        anchor_scale: side of a square anchor, in strides of its level.
        proposals: regions that are kept of each image.
        sampled_regions: regions of an image that the branches are trained on.
    """

    def __init__(
        self,
        masks: bool = True,
        channels: int = 256,
        hidden_channels: int = 1024,
        anchor_scale: float = 8.0,
        proposals: int = 1000,
        sampled_regions: int = 512,
    ) -> None:
        sizes = {"channels": channels, "hidden_channels": hidden_channels, "anchor_scale": anchor_scale}
        sizes |= {"proposals": proposals, "sampled_regions": sampled_regions}
        for name, value in sizes.items():
            if value <= 0:
                raise UserError(f"detector.{name} must be above 0, not {value}")
        self.masks = masks
        self.channels = channels
        self.hidden_channels = hidden_channels
        self.anchor_scale = anchor_scale
        self.proposals = proposals
        self.sampled_regions = sampled_regions

    def build(self, in_channels: Sequence[int], strides: Sequence[int], num_classes: int) -> DetectionHead:
        """The network on maps of these channels and strides, from the largest map to the smallest."""
        raise NotImplementedError


class MaskRCNN(Detector):
    """Settings of Mask R-CNN; the arguments are those of ``Detector``."""

    def build(self, in_channels: Sequence[int], strides: Sequence[int], num_classes: int) -> MaskRCNNHead:
        return MaskRCNNHead(self, in_channels, strides, num_classes)


@dataclass
class Features:
    """What a network makes of images before it looks at regions."""

    levels: OrderedDict[str, Tensor]
    """(B, C, h, w) each."""
    context: Tensor | None = None
    """What HTC's semantic branch adds to the features of regions, (B, C, h, w) at its stride."""
    stuff_logits: Tensor | None = None
    """Classes of the background by HTC's semantic branch, (B, classes, h, w)."""


class Regions(NamedTuple):
    """Regions that a branch is trained on; of each image the boxes (R, 4) …"""

    boxes: list[Tensor]
    labels: list[Tensor]
    """… (R,) int64: 0 background, k + 1 class k, …"""
    matched: list[Tensor]
    """… (R,) int64, the index of the object that each is compared with, …"""
    annotated: list[Tensor]
    """… (R,) bool, whether it is an annotated box itself rather than a proposal."""


class DetectionHead(nn.Module):
    """Pyramid and region proposals; subclasses say what becomes of the regions.

    Args:
        settings: of the detector.
        in_channels: channels of each map, ``backbone.channels``.
        strides: of each map, ``backbone.strides``.
        num_classes: number of classes K.
    """

    def __init__(
        self, settings: Detector, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        levels = [*strides, 2 * strides[-1]]
        self.pyramid = FeaturePyramid(in_channels, settings.channels)
        anchors = Anchors([settings.anchor_scale * stride for stride in levels], levels)
        kept = {"training": settings.proposals, "testing": settings.proposals}
        self.rpn = RegionProposalNetwork(
            anchors,
            Float32RPNHead(settings.channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n=kept,
            nms_thresh=0.7,
        )
        self.box_pool, self.mask_pool = pooling(strides, 7), pooling(strides, 14)
        self.num_classes, self.has_masks = num_classes, settings.masks

    def features(self, maps: Sequence[Tensor]) -> Features:
        """Maps (B, C, h, w) of the backbone → what regions are described by."""
        return Features(self.pyramid(maps))

    def losses(self, maps: Sequence[Tensor], images: ImageList, targets: Sequence[Any]) -> dict[str, Tensor]:
        """The parts of the loss, to be summed.

        Args:
            maps: the backbone's, (B, C, h, w).
            images: the padded images, which the maps were made of, and their own sizes.
            targets: a ``DetectionTarget`` for each image.
        """
        features = self.features(maps)
        proposals, found = self.rpn(images, features.levels, list(targets))
        losses = {"rpn_class": found["loss_objectness"], "rpn_box": found["loss_rpn_box_reg"]}
        return losses | self.region_losses(features, proposals, images, targets)

    def propose(self, features: Features, images: ImageList) -> list[Tensor]:
        """Regions (R, 4) of each image that may hold an object, likeliest first; in eval mode."""
        return self.rpn(images, features.levels)[0]

    def region_losses(
        self, features: Features, proposals: list[Tensor], images: ImageList, targets: Sequence[Any]
    ) -> dict[str, Tensor]:
        """The parts of the loss that come of regions, which are sampled from proposals (R, 4) of each image."""
        raise NotImplementedError

    def classify(self, features: Features, images: ImageList) -> list[tuple[Tensor, Tensor]]:
        """Of each image the boxes (R, K, 4), or (R, 1, 4) where all classes share them, and probabilities (R, K)."""
        raise NotImplementedError

    def mask_probabilities(
        self, features: Features, boxes: list[Tensor], labels: list[Tensor], images: ImageList
    ) -> list[Tensor]:
        """Masks (n, M, M) in [0, 1] of each image's boxes (n, 4) and their classes (n,), from 0; a box fills M × M."""
        raise NotImplementedError


class MaskRCNNHead(DetectionHead):
    """Mask R-CNN: one look at each region. The arguments are those of ``DetectionHead``."""

    def __init__(
        self, settings: MaskRCNN, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__(settings, in_channels, strides, num_classes)
        hidden = settings.hidden_channels
        self.box = BoxBranch(TwoMLPHead(settings.channels * 7**2, hidden), hidden, num_classes, num_classes + 1)
        self.mask = MaskBranch(settings.channels, num_classes) if settings.masks else None
        self.sample = RegionSampler(0.5, settings.sampled_regions)
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0))

    def region_losses(
        self, features: Features, proposals: list[Tensor], images: ImageList, targets: Sequence[Any]
    ) -> dict[str, Tensor]:
        regions = self.sample(proposals, targets)
        logits, deltas = self.box(self.box_pool(features.levels, regions.boxes, images.image_sizes))
        objects = [matched_boxes(target, matched) for target, matched in zip(targets, regions.matched, strict=True)]
        aims = list(self.coder.encode(objects, regions.boxes))
        names = ("class", "box")
        losses = dict(zip(names, fastrcnn_loss(logits, deltas, regions.labels, aims), strict=True))
        if self.mask is not None:
            masked = with_masks(regions, targets)
            pooled = self.mask_pool(features.levels, masked.boxes, images.image_sizes)
            losses["mask"] = mask_loss(self.mask(pooled), masked, targets)
        return losses

    def classify(self, features: Features, images: ImageList) -> list[tuple[Tensor, Tensor]]:
        proposals = self.propose(features, images)
        numbers = [len(boxes) for boxes in proposals]
        logits, deltas = self.box(self.box_pool(features.levels, proposals, images.image_sizes))
        boxes = self.coder.decode(deltas, proposals)[:, 1:].split(numbers)
        scores = logits.softmax(1)[:, 1:].split(numbers)
        return list(zip(boxes, scores, strict=True))

    def mask_probabilities(
        self, features: Features, boxes: list[Tensor], labels: list[Tensor], images: ImageList
    ) -> list[Tensor]:
        assert self.mask is not None
        logits = self.mask(self.mask_pool(features.levels, boxes, images.image_sizes))
        return masks_of_classes(logits.sigmoid(), labels)


class Anchors(AnchorGenerator):
    """torchvision's anchors, of three proportions, in float32 and at given strides.

    torchvision divides the image's side by the map's, which gives a stride of 61 where a map of 13 covers 800 pixels.

    Args:
        sides: of a level's square anchor, in pixels.
        strides: of each level.
    """

    def __init__(self, sides: Sequence[float], strides: Sequence[int]) -> None:
        super().__init__(tuple((side,) for side in sides), ((0.5, 1.0, 2.0),) * len(sides))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Levels (B, C, h, w) → for each image the anchors (Σ 3·h·w, 4) of all levels."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        sizes: Any = [x.shape[2:] for x in feature_maps]
        strides: Any = [(stride, stride) for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(sizes, strides))
        return [anchors] * len(image_list.image_sizes)


class Float32RPNHead(RPNHead):
    """torchvision's, whose offsets are added to anchors in float32: bfloat16 has 8 bits, a coordinate needs more."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [one.float() for one in logits], [one.float() for one in deltas]


class BoxBranch(nn.Module):
    """What a region shows, and where its box should be.

    Args:
        layers: features (R, C, 7, 7) → (R, width).
        width: what the layers give.
        num_classes: number of classes K.
        boxes: boxes per region: K + 1, or 1 for all classes.
    """

    def __init__(self, layers: nn.Module, width: int, num_classes: int, boxes: int) -> None:
        super().__init__()
        self.layers = layers
        self.classes = nn.Linear(width, num_classes + 1)
        self.deltas = nn.Linear(width, 4 * boxes)
        for linear, std in ((self.classes, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (R, C, 7, 7) → logits (R, K + 1), the background's first, and offsets (R, 4 · boxes), float32."""
        x = self.layers(x)
        return self.classes(x).float(), self.deltas(x).float()


class MaskBranch(nn.Module):
    """The pixels of a region's object, for each class it may be of.

    Args:
        channels: channels C of the features and in between.
        num_classes: number of classes K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.convs = MaskRCNNHeads(channels, [channels] * 4, dilation=1)
        self.predictor = MaskRCNNPredictor(channels, channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features (R, C, 14, 14) → logits (R, K, 28, 28), float32."""
        return self.predictor(self.convs(x)).float()


class RegionSampler:
    """Chooses the regions that a branch is trained on: annotated boxes among them, at most a quarter of objects.

    Args:
        threshold: intersection over union with an object from which on a region counts as one.
        number: regions per image.
    """

    def __init__(self, threshold: float, number: int) -> None:
        self.match = Matcher(threshold, threshold, allow_low_quality_matches=False)
        self.balance = BalancedPositiveNegativeSampler(number, 0.25)

    @torch.no_grad()
    def __call__(self, proposals: Sequence[Tensor], targets: Sequence[Any]) -> Regions:
        """Samples of each image's proposals (R, 4)."""
        sampled = Regions([], [], [], [])
        for boxes, target in zip(proposals, targets, strict=True):
            objects = target["boxes"].to(boxes)
            candidates = torch.cat([boxes, objects])
            matched = torch.zeros(len(candidates), dtype=torch.int64, device=boxes.device)
            labels = torch.zeros_like(matched)
            if len(objects):
                found = self.match(box_iou(objects, candidates))
                matched = found.clamp(min=0)
                labels = torch.where(found >= 0, target["labels"][matched] + 1, 0)
            positive, negative = self.balance([labels])
            chosen = torch.where(positive[0] | negative[0])[0]
            sampled.boxes.append(candidates[chosen])
            sampled.labels.append(labels[chosen])
            sampled.matched.append(matched[chosen])
            sampled.annotated.append(chosen >= len(boxes))
        return sampled


def pooling(strides: Sequence[int], side: int) -> MultiScaleRoIAlign:
    """torchvision's RoIAlign over levels of given strides, to side × side.

    It would find the strides out from the first images it sees, and be wrong when these are much smaller than padded.
    """
    pool = _Pooling([str(level) for level in range(len(strides))], side, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])))
    return pool


class _Pooling(MultiScaleRoIAlign):
    """RoIAlign that also takes features of half precision beside boxes in float32, as with ``bf16-true``."""

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        first = next(iter(x.values()))
        kind = first.dtype
        if kind == boxes[0].dtype or torch.is_autocast_enabled(first.device.type):  # which sees to it itself
            return super().forward(x, boxes, image_shapes)
        wide = {name: level.to(boxes[0].dtype) for name, level in x.items()}
        return super().forward(wide, boxes, image_shapes).to(kind)


def matched_boxes(target: Any, matched: Tensor) -> Tensor:
    """The annotated box (R, 4) that each region is compared with; zeros where there is none in the image."""
    boxes = target["boxes"].float()
    return boxes[matched] if len(boxes) else boxes.new_zeros(len(matched), 4)


def with_masks(regions: Regions, targets: Sequence[Any]) -> Regions:
    """Those regions that show an object whose mask is known."""
    kept = []
    for labels, matched, target in zip(regions.labels, regions.matched, targets, strict=True):
        if "masks" not in target:
            raise UserError(
                "the data has no masks: train boxes alone with --model.detector.init_args.masks=false, or annotate "
                "segmentations"
            )
        known = target["masks"].flatten(1).any(1).bool()
        kept.append((labels > 0) & known[matched] if len(known) else labels > 0)
    return Regions(*([x[keep] for x, keep in zip(part, kept, strict=True)] for part in regions))


def mask_loss(logits: Tensor, regions: Regions, targets: Sequence[Any]) -> Tensor:
    """Binary cross-entropy of the masks (R, K, M, M) of regions that show objects."""
    masks, labels = [target["masks"] for target in targets], [target["labels"] for target in targets]
    return maskrcnn_loss(logits, regions.boxes, masks, labels, regions.matched)


def masks_of_classes(probabilities: Tensor, labels: Sequence[Tensor]) -> list[Tensor]:
    """Of masks (Σn, K, M, M) those of each image's classes (n,) → (n, M, M) each."""
    rows = torch.arange(len(probabilities), device=probabilities.device)
    return list(probabilities[rows, torch.cat([*labels])].split([len(one) for one in labels]))
