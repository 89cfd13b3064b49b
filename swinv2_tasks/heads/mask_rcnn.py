"""Mask R-CNN on feature maps, and what the detectors that extend it share.

https://arxiv.org/abs/1703.06870

Built of torchvision's parts: feature pyramid, region proposals, RoIAlign, sampling, box coding. Departures from
torchvision, as in the published recipes: RoIAlign and the mask targets are sampled half a pixel further to the left and
top, anchors are not rounded, proposals are matched as these recipes do, and boxes learn by L1. Others: levels lie at
the backbone's own strides instead of quotients of sizes; boxes, anchors and what is compared with them stay in float32
under autocast; an object without a mask does not train the mask branch.

Shapes: B images, R proposals (RoIs) of an image, K classes, C channels of a level, M side of a mask (28). Boxes are
left, top, right, bottom in pixels of the image given to the network. Labels of targets are class indices from 0; in
here, class 0 is the background.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import box_iou

from swinv2_tasks.errors import UserError
from swinv2_tasks.heads.class_losses import ClassLoss, CrossEntropy
from swinv2_tasks.heads.fpn import FeaturePyramid
from swinv2_tasks.heads.roi_align import MultiLevelRoIAlign, pool_rois
from swinv2_tasks.heads.rpn import Anchors, RegionProposals, match_boxes
from swinv2_tasks.heads.torchvision_internals import BalancedPositiveNegativeSampler, BoxCoder
from swinv2_tasks.hyperparameters import Recorded


class DetectorConfig(Recorded):
    """Settings of a detector, which build it once the backbone and the classes are known.

    Args:
        masks: with a mask branch; without, boxes are all that is trained and predicted.
        channels: channels of the pyramid's levels and of the mask branch.
        representation_size: width of the box branch's linear layers.
        anchor_scale: side of a square anchor, in strides of its level.
        post_nms_top_n: proposals that are kept of each image after NMS; twice as many in the training of a cascade.
        batch_size_per_image: proposals of an image that the branches are trained on.
    """

    def __init__(
        self,
        masks: bool = True,
        channels: int = 256,
        representation_size: int = 1024,
        anchor_scale: float = 8.0,
        post_nms_top_n: int = 1000,
        batch_size_per_image: int = 512,
    ) -> None:
        sizes = {"channels": channels, "representation_size": representation_size, "anchor_scale": anchor_scale}
        sizes |= {"post_nms_top_n": post_nms_top_n, "batch_size_per_image": batch_size_per_image}
        for name, value in sizes.items():
            if value <= 0:
                raise UserError(f"detector.{name} must be above 0, not {value}")
        self.masks = masks
        self.channels = channels
        self.representation_size = representation_size
        self.anchor_scale = anchor_scale
        self.post_nms_top_n = post_nms_top_n
        self.batch_size_per_image = batch_size_per_image

    def build(self, in_channels: Sequence[int], strides: Sequence[int], num_classes: int) -> DetectionHead:
        """The network on maps of these channels and strides, from the largest map to the smallest."""
        raise NotImplementedError


class MaskRCNNConfig(DetectorConfig):
    """Settings of Mask R-CNN; the arguments are those of ``DetectorConfig``."""

    def build(self, in_channels: Sequence[int], strides: Sequence[int], num_classes: int) -> MaskRCNN:
        """The Mask R-CNN on maps of these channels and strides."""
        return MaskRCNN(self, in_channels, strides, num_classes)


@dataclass
class Features:
    """What a network makes of images before it looks at proposals."""

    levels: OrderedDict[str, Tensor]
    """(B, C, h, w) each."""
    context: Tensor | None = None
    """What HTC's semantic branch adds to the features of RoIs, (B, C, h, w) at its stride."""
    stuff_logits: Tensor | None = None
    """Classes of the background by HTC's semantic branch, (B, classes, h, w)."""


class SampledProposals(NamedTuple):
    """Proposals that a branch is trained on; a tensor for each image."""

    boxes: list[Tensor]
    """(R, 4)."""
    labels: list[Tensor]
    """(R,) int64: 0 background, k + 1 class k."""
    matched_indices: list[Tensor]
    """(R,) int64: index of the object that a box is compared with."""
    is_ground_truth: list[Tensor]
    """(R,) bool: whether a box is a ground-truth box itself rather than a proposal."""


class DetectionHead(nn.Module):
    """Pyramid and region proposals; subclasses say what becomes of the proposals.

    Args:
        config: the settings.
        in_channels: channels of each map, ``backbone.channels``.
        strides: of each map, ``backbone.strides``.
        num_classes: number of classes K.
    """

    # What the published recipe of a detector says of its region proposals:

    anchors_inside: bool
    """Whether anchors that reach beyond their image are left out of training."""

    rpn_beta: float
    """Offset up to which the loss of proposals' boxes is quadratic; 0 is L1."""

    training_proposals: int
    """How many times as many proposals are kept in training."""

    stuff_classes: int = 0
    """Classes of the background that training targets have maps of; 0 without a semantic branch."""

    def __init__(
        self, config: DetectorConfig, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        levels = [*strides, 2 * strides[-1]]
        self.pyramid = FeaturePyramid(in_channels, config.channels)
        anchors = Anchors([config.anchor_scale * stride for stride in levels], levels)
        self.rpn = RegionProposals(
            config.channels,
            anchors,
            (self.training_proposals * config.post_nms_top_n, config.post_nms_top_n),
            inside=self.anchors_inside,
            beta=self.rpn_beta,
            padding=max(32, strides[-1]),
        )
        self.box_pool, self.mask_pool = MultiLevelRoIAlign(strides, 7), MultiLevelRoIAlign(strides, 14)
        self.num_classes, self.has_masks = num_classes, config.masks
        self.class_loss: ClassLoss = CrossEntropy()
        """Of the box branches; its first class is the background."""

    def features(self, maps: Sequence[Tensor]) -> Features:
        """Maps (B, C, h, w) of the backbone → what RoIs are pooled from."""
        return Features(self.pyramid(maps))

    def losses(self, maps: Sequence[Tensor], images: ImageList, targets: Sequence[Any]) -> dict[str, Tensor]:
        """The parts of the loss, to be summed.

        Args:
            maps: the backbone's, (B, C, h, w).
            images: the padded images, which the maps were made of, and their own sizes.
            targets: a ``DetectionTarget`` for each image.
        """
        features = self.features(maps)
        proposals, rpn_losses = self.rpn(images, features.levels, targets)
        losses = {"rpn_class": rpn_losses["loss_objectness"], "rpn_box": rpn_losses["loss_rpn_box_reg"]}
        return losses | self.roi_losses(features, proposals, images, targets)

    def propose(self, features: Features, images: ImageList) -> list[Tensor]:
        """Proposals (R, 4) of each image, highest-scoring first; in eval mode."""
        return self.rpn(images, features.levels)[0]

    def roi_losses(
        self, features: Features, proposals: list[Tensor], images: ImageList, targets: Sequence[Any]
    ) -> dict[str, Tensor]:
        """The parts of the loss that come of RoIs, which are sampled from proposals (R, 4) of each image."""
        raise NotImplementedError

    def mean_class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss (scalar) of the classes of samples, over their number, also with class weights; 0 without samples.

        Args:
            logits: (R, K + 1).
            labels: (R,), 0 for the background.
        """
        return self.class_loss.losses(logits, labels).sum() / max(1, len(labels))

    def classify(self, features: Features, images: ImageList) -> list[tuple[Tensor, Tensor]]:
        """Of each image the boxes (R, K, 4), or (R, 1, 4) where all classes share them, and probabilities (R, K)."""
        raise NotImplementedError

    def mask_probabilities(
        self, features: Features, boxes: list[Tensor], labels: list[Tensor], images: ImageList
    ) -> list[Tensor]:
        """Masks (n, M, M) in [0, 1] of each image's boxes (n, 4) and their classes (n,), from 0; a box fills M × M."""
        raise NotImplementedError


class MaskRCNN(DetectionHead):
    """Mask R-CNN: one stage. The arguments are those of ``DetectionHead``."""

    anchors_inside = False
    rpn_beta = 0.0
    training_proposals = 1

    def __init__(
        self, config: MaskRCNNConfig, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__(config, in_channels, strides, num_classes)
        hidden = config.representation_size
        self.box = BoxBranch(TwoMLPHead(config.channels * 7**2, hidden), hidden, num_classes, num_classes + 1)
        self.mask = MaskBranch(config.channels, num_classes) if config.masks else None
        self.sample = ProposalSampler(0.5, config.batch_size_per_image, low_quality=True)
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0))

    def roi_losses(
        self, features: Features, proposals: list[Tensor], images: ImageList, targets: Sequence[Any]
    ) -> dict[str, Tensor]:
        """The losses ``class``, ``box`` and, with a mask branch, ``mask``."""
        samples = self.sample(proposals, targets)
        logits, deltas = self.box(self.box_pool(features.levels, samples.boxes))
        labels = torch.cat(samples.labels)
        regression_targets = torch.cat([*self.coder.encode(ground_truth_boxes(samples, targets), samples.boxes)])
        losses = {"class": self.mean_class_loss(logits, labels), "box": box_loss(deltas, labels, regression_targets)}

        if self.mask is not None:
            mask_samples = with_masks(samples, targets)
            mask_logits = self.mask(self.mask_pool(features.levels, mask_samples.boxes))
            losses["mask"] = mask_loss(mask_logits, mask_samples, targets)
        return losses

    def classify(self, features: Features, images: ImageList) -> list[tuple[Tensor, Tensor]]:
        """Of each image the boxes (R, K, 4) and probabilities (R, K), one box per class."""
        proposals = self.propose(features, images)
        numbers = [boxes.shape[0] for boxes in proposals]
        logits, deltas = self.box(self.box_pool(features.levels, proposals))

        # The first box and the first probability are the background's.
        boxes = decode(self.coder, deltas, proposals)[:, 1:].split(numbers)
        scores = logits.softmax(1)[:, 1:].split(numbers)
        return list(zip(boxes, scores, strict=True))

    def mask_probabilities(
        self, features: Features, boxes: list[Tensor], labels: list[Tensor], images: ImageList
    ) -> list[Tensor]:
        """Masks (n, M, M) in [0, 1] of each image's boxes (n, 4), each of its box's class."""
        assert self.mask is not None
        logits = self.mask(self.mask_pool(features.levels, boxes))
        return masks_of_classes(logits.sigmoid(), labels)


class BoxBranch(nn.Module):
    """The class of a RoI, and where its box should be.

    Args:
        layers: features (R, C, 7, 7) → (R, width).
        width: what the layers give.
        num_classes: number of classes K.
        boxes: boxes per RoI: K + 1, or 1 for all classes.
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
    """The pixels of a RoI's object, for each class it may be of.

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


class ProposalSampler:
    """Samples the proposals that a branch is trained on: ground-truth boxes among them, at most a quarter positive.

    Args:
        threshold: intersection over union with an object from which on a proposal is positive.
        number: proposals per image.
        low_quality: whether an object's best proposal is matched to it even where it overlaps another one more.
    """

    def __init__(self, threshold: float, number: int, low_quality: bool = False) -> None:
        self.threshold, self.low_quality = threshold, low_quality
        self.balance = BalancedPositiveNegativeSampler(number, 0.25)

    @torch.no_grad()
    def __call__(self, proposals: Sequence[Tensor], targets: Sequence[Any]) -> SampledProposals:
        """Samples of each image's proposals (R, 4)."""
        samples = SampledProposals([], [], [], [])
        low_quality_threshold = self.threshold if self.low_quality else None
        for boxes, target in zip(proposals, targets, strict=True):
            truth = target["boxes"].to(boxes)
            matches = match_boxes(box_iou(truth, boxes), self.threshold, self.threshold, low_quality_threshold)

            # Ground-truth boxes are candidates, too, each matched to itself.
            candidates = torch.cat([boxes, truth])
            matches = torch.cat([matches, torch.arange(len(truth), device=matches.device)])
            matched_indices = matches.clamp(min=0)
            labels = torch.zeros_like(matches)
            if len(truth):
                labels = torch.where(matches >= 0, target["labels"][matched_indices] + 1, 0)

            positive, negative = self.balance([labels])
            indices = torch.where(positive[0] | negative[0])[0]
            samples.boxes.append(candidates[indices])
            samples.labels.append(labels[indices])
            samples.matched_indices.append(matched_indices[indices])
            samples.is_ground_truth.append(indices >= len(boxes))
        return samples


def decode(coder: BoxCoder, deltas: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """Boxes (ΣR, k, 4) that offsets (ΣR, 4k) make of each image's boxes (R, 4), of which there may be none."""
    decoded = coder.decode_single(deltas, torch.cat([*boxes]))
    return decoded.reshape(deltas.shape[0], deltas.shape[1] // 4, 4)


def ground_truth_boxes(samples: SampledProposals, targets: Sequence[Any]) -> list[Tensor]:
    """The boxes (R, 4) of each image that its samples are compared with; zeros in an image without objects."""
    matched_boxes = []
    for target, matched_indices in zip(targets, samples.matched_indices, strict=True):
        boxes = target["boxes"].float()
        matched_boxes.append(boxes[matched_indices] if len(boxes) else boxes.new_zeros(len(matched_indices), 4))
    return matched_boxes


def with_masks(samples: SampledProposals, targets: Sequence[Any]) -> SampledProposals:
    """Those positive samples whose object has a mask."""
    selections = []
    for labels, matched_indices, target in zip(samples.labels, samples.matched_indices, targets, strict=True):
        if "masks" not in target:
            raise UserError(
                "the data has no masks: train boxes alone with --model.detector.masks=false, or annotate segmentations"
            )
        has_mask = target["masks"].flatten(1).any(1).bool()
        selections.append((labels > 0) & has_mask[matched_indices] if len(has_mask) else labels > 0)
    return SampledProposals(
        *([x[selection] for x, selection in zip(part, selections, strict=True)] for part in samples)
    )


def box_loss(deltas: Tensor, labels: Tensor, regression_targets: Tensor) -> Tensor:
    """L1 (scalar) of the offsets of positive samples, over the number of all samples.

    Args:
        deltas: for each class (R, 4 · (K + 1)).
        labels: (R,), 0 for the background.
        regression_targets: offsets that lead to the objects (R, 4).
    """
    positive = labels.nonzero()[:, 0]
    class_deltas = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)
    own_deltas = class_deltas[positive, labels[positive]]
    return F.l1_loss(own_deltas, regression_targets[positive], reduction="sum") / max(1, len(labels))


def mask_loss(logits: Tensor, samples: SampledProposals, targets: Sequence[Any]) -> Tensor:
    """Binary cross-entropy (scalar) of the masks (R, K, M, M) of positive samples; 0 where there are none."""
    labels, masks = [], []
    for target, boxes, matched_indices in zip(targets, samples.boxes, samples.matched_indices, strict=True):
        labels.append(target["labels"][matched_indices])
        masks.append(mask_targets(target["masks"], boxes, matched_indices, logits.shape[-1]))

    rows = torch.arange(len(logits), device=logits.device)
    own_logits = logits[rows, torch.cat(labels)]
    total = F.binary_cross_entropy_with_logits(own_logits, torch.cat(masks), reduction="sum")
    return total / max(1, own_logits.numel())


def mask_targets(masks: Tensor, boxes: Tensor, matched_indices: Tensor, side: int) -> Tensor:
    """What a mask branch should say of RoIs: the share of each of a box's M × M cells that its object covers.

    Args:
        masks: of an image's objects, (G, H, W) of 0 and 1.
        boxes: RoIs of the image (R, 4).
        matched_indices: the object of each RoI (R,).
        side: M.

    Returns:
        float32 (R, M, M) in [0, 1].
    """
    rois = torch.cat([matched_indices[:, None].to(boxes), boxes], dim=1)
    return pool_rois(masks[:, None].to(boxes), rois, side, 1.0)[:, 0]


def masks_of_classes(probabilities: Tensor, labels: Sequence[Tensor]) -> list[Tensor]:
    """Of masks (Σn, K, M, M) those of each image's classes (n,) → (n, M, M) each."""
    rows = torch.arange(probabilities.shape[0], device=probabilities.device)
    numbers = [image_labels.shape[0] for image_labels in labels]
    return list(probabilities[rows, torch.cat([*labels])].split(numbers))
