"""Cascade Mask R-CNN: each stage takes the boxes that the one before it refined.

https://arxiv.org/abs/1712.00726

With the settings of the Swin papers: box branches of four convolutions with batch norm and one linear layer, boxes that
all classes share, and a loss on the decoded boxes (GIoU, https://arxiv.org/abs/1902.09630).

Shapes: as in mask_rcnn.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss

from swinv2_tasks.heads.batch_norm import BatchNorm2d
from swinv2_tasks.heads.mask_rcnn import (
    BoxBranch,
    DetectionHead,
    DetectorConfig,
    Features,
    MaskBranch,
    ProposalSampler,
    SampledProposals,
    decode,
    ground_truth_boxes,
    mask_loss,
    masks_of_classes,
    with_masks,
)
from swinv2_tasks.heads.torchvision_internals import BoxCoder

THRESHOLDS = (0.5, 0.6, 0.7)
"""Intersection over union from which on a proposal is positive, stage by stage."""

WEIGHTS = (1.0, 0.5, 0.25)
"""Weights of the losses of each stage."""

CODER_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
"""Factors of the offsets that a stage predicts, which become smaller from stage to stage."""

GIOU_WEIGHT = 10.0


class CascadeMaskRCNNConfig(DetectorConfig):
    """Settings of Cascade Mask R-CNN; the arguments are those of ``DetectorConfig``."""

    def build(self, in_channels: Sequence[int], strides: Sequence[int], num_classes: int) -> CascadeMaskRCNN:
        """The Cascade Mask R-CNN on maps of these channels and strides."""
        return CascadeMaskRCNN(self, in_channels, strides, num_classes)


class CascadeMaskRCNN(DetectionHead):
    """Cascade Mask R-CNN: three stages. The arguments are those of ``DetectionHead``."""

    anchors_inside = True
    rpn_beta = 1 / 9
    training_proposals = 2

    def __init__(
        self, config: DetectorConfig, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__(config, in_channels, strides, num_classes)
        channels, hidden = config.channels, config.representation_size
        self.boxes = nn.ModuleList(
            BoxBranch(
                FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [hidden], norm_layer=BatchNorm2d),
                hidden,
                num_classes,
                boxes=1,
            )
            for _ in THRESHOLDS
        )
        self.masks = nn.ModuleList(self.mask_branches(config, num_classes) if config.masks else [])
        self.samplers = [ProposalSampler(threshold, config.batch_size_per_image) for threshold in THRESHOLDS]
        self.coders = [BoxCoder(weights) for weights in CODER_WEIGHTS]

    def mask_branches(self, config: DetectorConfig, num_classes: int) -> list[MaskBranch]:
        """A mask branch for each stage."""
        return [MaskBranch(config.channels, num_classes) for _ in THRESHOLDS]

    def roi_losses(
        self, features: Features, proposals: list[Tensor], images: ImageList, targets: Sequence[Any]
    ) -> dict[str, Tensor]:
        """The weighted losses of each stage: ``class1``, ``box1``, ``mask1``, ``class2`` and so on."""
        losses = {}
        for stage, weight in enumerate(WEIGHTS):
            samples = self.samplers[stage](proposals, targets)
            logits, deltas = self.boxes[stage](self.box_features(features, samples.boxes))
            decoded = decode(self.coders[stage], deltas, samples.boxes)[:, 0]
            losses[f"class{stage + 1}"] = weight * self.mean_class_loss(logits, torch.cat(samples.labels))
            losses[f"box{stage + 1}"] = weight * GIOU_WEIGHT * giou_loss(decoded, samples, targets)

            proposals = self.refine(decoded, samples, images)
            if self.has_masks:
                mask_samples = with_masks(self.sample_for_masks(stage, samples, proposals, targets), targets)
                mask_logits = self.mask_logits(stage, self.mask_features(features, mask_samples.boxes))
                losses[f"mask{stage + 1}"] = weight * mask_loss(mask_logits, mask_samples, targets)
        return losses

    def classify(self, features: Features, images: ImageList) -> list[tuple[Tensor, Tensor]]:
        """Boxes of the last stage (R, 1, 4), and the probabilities (R, K) that the mean of all stages' logits gives."""
        boxes = self.propose(features, images)
        numbers = [image_boxes.shape[0] for image_boxes in boxes]
        logits = []
        for branch, coder in zip(self.boxes, self.coders, strict=True):
            stage_logits, deltas = branch(self.box_features(features, boxes))
            logits.append(stage_logits)
            decoded = decode(coder, deltas, boxes)[:, 0].split(numbers)
            boxes = [
                clip_boxes_to_image(image_boxes, size)
                for image_boxes, size in zip(decoded, images.image_sizes, strict=True)
            ]

        scores = torch.stack(logits).mean(0).softmax(1)[:, 1:].split(numbers)
        return [(image_boxes[:, None], image_scores) for image_boxes, image_scores in zip(boxes, scores, strict=True)]

    def mask_probabilities(
        self, features: Features, boxes: list[Tensor], labels: list[Tensor], images: ImageList
    ) -> list[Tensor]:
        """The mean of all stages' masks."""
        logits = self.all_mask_logits(self.mask_features(features, boxes))
        return masks_of_classes(torch.stack([stage_logits.sigmoid() for stage_logits in logits]).mean(0), labels)

    def box_features(self, features: Features, boxes: list[Tensor]) -> Tensor:
        """Features (ΣR, C, 7, 7) of each image's boxes (R, 4)."""
        return self.box_pool(features.levels, boxes)

    def mask_features(self, features: Features, boxes: list[Tensor]) -> Tensor:
        """Features (ΣR, C, 14, 14) of each image's boxes (R, 4)."""
        return self.mask_pool(features.levels, boxes)

    def sample_for_masks(
        self, stage: int, samples: SampledProposals, refined: list[Tensor], targets: Sequence[Any]
    ) -> SampledProposals:
        """The proposals that a stage's mask branch is trained on: those of its box branch."""
        return samples

    def mask_logits(self, stage: int, x: Tensor) -> Tensor:
        """Features (R, C, 14, 14) → logits (R, K, 28, 28) of a stage."""
        return self.masks[stage](x)

    def all_mask_logits(self, x: Tensor) -> list[Tensor]:
        """Features (R, C, 14, 14) → logits (R, K, 28, 28) of every stage."""
        return [self.mask_logits(stage, x) for stage in range(len(self.masks))]

    @torch.no_grad()
    def refine(self, decoded: Tensor, samples: SampledProposals, images: ImageList) -> list[Tensor]:
        """The proposals of the next stage: decoded boxes (ΣR, 4), within their image.

        Without those of ground-truth boxes, which the next sampler adds itself: they would make its task too easy.
        """
        boxes = decoded.split([len(image_boxes) for image_boxes in samples.boxes])
        return [
            clip_boxes_to_image(image_boxes[~is_ground_truth], size)
            for image_boxes, is_ground_truth, size in zip(
                boxes, samples.is_ground_truth, images.image_sizes, strict=True
            )
        ]


def giou_loss(decoded: Tensor, samples: SampledProposals, targets: Sequence[Any]) -> Tensor:
    """1 − GIoU of the decoded boxes (ΣR, 4) of positive samples, over the number of all samples."""
    truth = torch.cat(ground_truth_boxes(samples, targets))
    positive = torch.cat(samples.labels) > 0
    total = generalized_box_iou_loss(decoded[positive], truth[positive], reduction="sum")
    return total / max(1, len(positive))
