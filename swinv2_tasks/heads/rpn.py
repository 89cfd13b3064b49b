"""Region proposals: which anchors may hold an object, and where.

https://arxiv.org/abs/1506.01497, section 3.1.

torchvision's network and its choice of proposals, trained as in the published recipes of Swin's detectors: anchors are
not rounded to whole pixels; an object that no anchor overlaps well is matched to the one that overlaps it best, from an
IoU of 0.3 on; an anchor counts for an image only where it lies in the image.

Shapes: B images, A anchors of an image, G objects, R proposals. Boxes are left, top, right, bottom in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import box_iou, clip_boxes_to_image

from swinv2_tasks.heads.nms import batched_nms

FOREGROUND, BACKGROUND = 0.7, 0.3
"""Intersection over union from which on an anchor is positive, and below which it is negative."""

LOW_QUALITY = 0.3
"""Intersection over union from which on an object's best anchor is positive all the same."""

BETWEEN_THRESHOLDS = -2
"""What is neither positive nor negative is matched to this instead of an index, as in torchvision's Matcher."""


class RegionProposals(RegionProposalNetwork):
    """torchvision's region proposal network with the training of the published recipes.

    Args:
        channels: channels of the levels.
        anchors: of all levels.
        post_nms_top_n: proposals that are kept of an image in training, and otherwise.
        inside: whether anchors that reach beyond the image are left out of training.
        beta: the box loss is quadratic up to this offset and linear beyond it; 0 is L1.
        padding: what the sides of an image by itself would be padded to a multiple of, in pixels; anchors of a batch
            that lie beyond are left out of training.
    """

    def __init__(
        self,
        channels: int,
        anchors: Anchors,
        post_nms_top_n: tuple[int, int],
        inside: bool = False,
        beta: float = 0.0,
        padding: int = 32,
    ) -> None:
        super().__init__(
            anchors,
            Float32RPNHead(channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=FOREGROUND,
            bg_iou_thresh=BACKGROUND,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": post_nms_top_n[0], "testing": post_nms_top_n[1]},
            nms_thresh=0.7,
        )
        self.inside, self.beta, self.padding = inside, beta, padding

    def forward(
        self, images: ImageList, features: Mapping[str, Tensor], targets: Sequence[Any] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals (R, 4) of each image, highest-scoring first, and in training the losses.

        Args:
            images: the padded images' own sizes.
            features: levels (B, C, h, w).
            targets: in training, of each image, with ``boxes`` (G, 4).
        """
        maps = list(features.values())
        level_logits, level_deltas = self.head(maps)
        numbers = [x[0].numel() for x in level_logits]
        anchors = self.anchor_generator(images, maps)

        logits, deltas = concat_box_prediction_layers(level_logits, level_deltas)
        # Proposals are inputs of what follows, through which nothing learns.
        boxes = self.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
        proposals, _ = self.filter_proposals(boxes, logits, images.image_sizes, numbers)
        if not self.training:
            return proposals, {}

        assert targets is not None
        labels, matched_boxes = self.assign_targets_to_anchors(anchors, list(targets), images.image_sizes)
        regression_targets = list(self.box_coder.encode(matched_boxes, anchors))
        class_loss, box_loss = self.compute_loss(logits, deltas, labels, regression_targets)
        return proposals, {"loss_objectness": class_loss, "loss_rpn_box_reg": box_loss}

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: Sequence[tuple[int, int]],
        num_anchors_per_level: Sequence[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The proposals of each image that are kept (R, 4), highest-scoring first, and their scores (R,).

        As torchvision's, by operations that can be exported.

        Args:
            proposals: of all anchors, (B, A, 4).
            objectness: their logits, (B · A, 1).
            image_shapes: height and width of each image.
            num_anchors_per_level: anchors of an image on each level.
        """
        objectness = objectness.detach().reshape(len(proposals), -1)
        top = self.top_of_levels(objectness, num_anchors_per_level)
        levels = torch.cat([top.new_full((number,), level) for level, number in enumerate(num_anchors_per_level)])

        kept_boxes, kept_scores = [], []
        for image, size in enumerate(image_shapes):
            boxes = clip_boxes_to_image(proposals[image, top[image]], size)
            scores = objectness[image, top[image]].sigmoid()
            level = levels[top[image]]

            is_large = ((boxes[:, 2:] - boxes[:, :2]) >= self.min_size).all(1)
            usable = (is_large & (scores >= self.score_thresh)).nonzero()[:, 0]  # NaN is not
            boxes, scores, level = boxes[usable], scores[usable], level[usable]

            indices = batched_nms(boxes, scores, level, self.nms_thresh)[: self.post_nms_top_n()]
            kept_boxes.append(boxes[indices])
            kept_scores.append(scores[indices])
        return kept_boxes, kept_scores

    def top_of_levels(self, objectness: Tensor, num_anchors_per_level: Sequence[int]) -> Tensor:
        """Of each level the highest-scoring anchors, as indices (B, K) into objectness (B, A)."""
        indices, first = [], 0
        for scores in objectness.split(list(num_anchors_per_level), dim=1):
            number = min(self.pre_nms_top_n(), scores.shape[1])
            indices.append(scores.topk(number, dim=1).indices + first)
            first += scores.shape[1]
        return torch.cat(indices, dim=1)

    @torch.no_grad()
    def assign_targets_to_anchors(
        self,
        anchors: list[Tensor],
        targets: list[Any],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What each image's anchors (A, 4) are trained to say.

        Args:
            anchors: of each image.
            targets: of each image, with ``boxes`` (G, 4).
            sizes: height and width of each image; None: every anchor counts.

        Returns:
            Of each image labels (A,) float32, 1 for an object, 0 for none, −1 for what is not trained on; and the
            ground-truth boxes (A, 4) that positive ones are compared with.
        """
        labels, matched_boxes = [], []
        for k, (boxes, target) in enumerate(zip(anchors, targets, strict=True)):
            every_anchor = torch.ones_like(boxes[:, 0], dtype=torch.bool)
            usable = every_anchor if sizes is None else self.usable(boxes, sizes[k])
            truth = target["boxes"].to(boxes)
            matches = match_boxes(box_iou(truth, boxes[usable]), FOREGROUND, BACKGROUND, LOW_QUALITY)

            image_labels = torch.full_like(boxes[:, 0], -1)
            is_positive, is_ignored = matches >= 0, matches == BETWEEN_THRESHOLDS
            image_labels[usable] = is_positive.to(image_labels) - is_ignored.to(image_labels)
            labels.append(image_labels)

            image_boxes = torch.zeros_like(boxes)
            if len(truth):
                image_boxes[usable] = truth[matches.clamp(min=0)]
            matched_boxes.append(image_boxes)
        return labels, matched_boxes

    def usable(self, anchors: Tensor, size: tuple[int, int]) -> Tensor:
        """Which anchors (A, 4) of a batch an image of a size (H, W) is trained on, bool (A,).

        Those whose center lies in the image, padded by itself; with ``inside`` those that lie in the image as a whole,
        unless it is too small for any.
        """
        height, width = size
        padded = anchors.new_tensor([math.ceil(side / self.padding) * self.padding for side in (width, height)])
        centers = (anchors[:, :2] + anchors[:, 2:]) / 2
        is_near = (centers < padded - 0.5).all(1)  # centers are whole numbers, but for rounding
        if not self.inside:
            return is_near

        limits = anchors.new_tensor([width, height])
        is_inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2:] < limits).all(1)
        return torch.where(is_inside.any(), is_inside, is_near)

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Losses of the sampled anchors: whether they are positive, and the offsets of those that are.

        Args:
            objectness: logits of all images' anchors (ΣA, 1).
            pred_bbox_deltas: offsets (ΣA, 4).
            labels: of each image (A,), as ``assign_targets_to_anchors`` gives them.
            regression_targets: of each image, the offsets that positive anchors should have (A, 4).
        """
        positive, negative = (torch.cat(part).bool() for part in self.fg_bg_sampler(labels))
        is_sampled = positive | negative
        number = is_sampled.sum().clamp(min=1)

        logits, truth = objectness.flatten()[is_sampled], torch.cat(labels)[is_sampled]
        class_loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum")

        deltas, targets = pred_bbox_deltas[positive], torch.cat(regression_targets)[positive]
        box_loss = F.smooth_l1_loss(deltas, targets, beta=self.beta, reduction="sum")
        return class_loss / number, box_loss / number


class Anchors(AnchorGenerator):
    """torchvision's anchors, of three proportions, in float32, at given strides and not rounded to whole pixels.

    torchvision divides the image's side by the map's, which gives a stride of 61 where a map of 13 covers 800 pixels.

    Args:
        sides: of a level's square anchor, in pixels.
        strides: of each level.
    """

    def __init__(self, sides: Sequence[float], strides: Sequence[int]) -> None:
        super().__init__(tuple((side,) for side in sides), ((0.5, 1.0, 2.0),) * len(sides))
        self.strides = tuple(strides)

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Tensor:
        """Boxes (proportions, 4) around 0, each of a square's area and an aspect ratio, height over width."""
        boxes = []
        for ratio in aspect_ratios:
            for side in scales:
                half_width, half_height = side / math.sqrt(ratio) / 2, side * math.sqrt(ratio) / 2
                boxes.append((-half_width, -half_height, half_width, half_height))
        return torch.tensor(boxes, dtype=dtype, device=device)

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
        """Logits and deltas of each level, in float32 also under autocast."""
        logits, deltas = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in deltas]


def match_boxes(iou: Tensor, foreground: float, background: float, low_quality: float | None) -> Tensor:
    """Which object each box is matched to: an index, −1 for none, −2 between the two thresholds.

    A box is matched to the object that it overlaps most, from ``foreground`` on. Beyond that, where ``low_quality`` is
    given, all boxes that overlap an object as much as any does are matched to that object, whatever else they overlap;
    of several such objects to the last one.

    Args:
        iou: intersection over union of objects and boxes (G, R).
        foreground: from which on a box is positive.
        background: below which it is negative.
        low_quality: what an object's best boxes must have; None: only ``foreground`` counts.

    Returns:
        int64 (R,).
    """
    matches = torch.full(iou.shape[1:], -1, dtype=torch.int64, device=iou.device)
    if iou.numel() == 0:
        return matches

    best_iou, best_object = iou.max(0)
    matches[best_iou >= background] = BETWEEN_THRESHOLDS
    matches = torch.where(best_iou >= foreground, best_object, matches)
    if low_quality is None:
        return matches

    highest = iou.max(1).values
    is_best_box = (iou == highest[:, None]) & (highest >= low_quality)[:, None]
    objects, boxes = is_best_box.nonzero(as_tuple=True)
    last_object = torch.full_like(matches, -1).scatter_reduce(0, boxes, objects, "amax")
    return torch.where(last_object >= 0, last_object, matches)
