"""Region proposals: which anchors may hold an object, and where. https://arxiv.org/abs/1506.01497, section 3.1

torchvision's network and its choice of proposals, trained as in the published recipes of Swin's detectors: anchors are
not rounded to whole pixels; an object that no anchor meets well takes the one that meets it best, if at all well; an
anchor counts for an image only where it lies in the image.

Shapes: B images, A anchors of an image, G objects, R regions. Boxes are left, top, right, bottom in pixels.
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
"""Intersection over union from which on an anchor shows an object, and below which it shows none."""

LEAST_MATCH = 0.3
"""Intersection over union from which on an object's best anchor shows it all the same."""

UNDECIDED = -2


class RegionProposals(RegionProposalNetwork):
    """torchvision's region proposal network with the training of the published recipes.

    Args:
        channels: channels of the levels.
        anchors: of all levels.
        kept: proposals of an image in training, and otherwise.
        inside: whether anchors that reach beyond the image are left out of training.
        beta: the box loss is quadratic up to this offset and linear beyond it; 0 is L1.
        padding: what the sides of an image by itself would be padded to a multiple of, in pixels; anchors of a batch
            that lie beyond are left out of training.
    """

    def __init__(
        self,
        channels: int,
        anchors: Anchors,
        kept: tuple[int, int],
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
            post_nms_top_n={"training": kept[0], "testing": kept[1]},
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
        logits, deltas = self.head(maps)
        numbers = [x[0].numel() for x in logits]
        anchors = self.anchor_generator(images, maps)

        logits, deltas = concat_box_prediction_layers(logits, deltas)
        proposals = self.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
        boxes, _ = self.filter_proposals(proposals, logits, images.image_sizes, numbers)
        if not self.training:
            return boxes, {}

        assert targets is not None
        labels, objects = self.assign_targets_to_anchors(anchors, list(targets), images.image_sizes)
        aims = list(self.box_coder.encode(objects, anchors))
        class_loss, box_loss = self.compute_loss(logits, deltas, labels, aims)
        return boxes, {"loss_objectness": class_loss, "loss_rpn_box_reg": box_loss}

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
        top = self._get_top_n_idx(objectness, list(num_anchors_per_level))
        levels = torch.cat([top.new_full((number,), level) for level, number in enumerate(num_anchors_per_level)])

        kept_boxes, kept_scores = [], []
        for image, size in enumerate(image_shapes):
            boxes = clip_boxes_to_image(proposals[image, top[image]], size)
            scores = objectness[image, top[image]].sigmoid()
            level = levels[top[image]]

            large = ((boxes[:, 2:] - boxes[:, :2]) >= self.min_size).all(1)
            usable = (large & (scores >= self.score_thresh)).nonzero()[:, 0]  # NaN is not
            boxes, scores, level = boxes[usable], scores[usable], level[usable]

            kept = batched_nms(boxes, scores, level, self.nms_thresh)[: self.post_nms_top_n()]
            kept_boxes.append(boxes[kept])
            kept_scores.append(scores[kept])
        return kept_boxes, kept_scores

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
            objects' boxes (A, 4) that positive ones are compared with.
        """
        labels, objects = [], []
        for k, (boxes, target) in enumerate(zip(anchors, targets, strict=True)):
            usable = torch.ones_like(boxes[:, 0], dtype=torch.bool) if sizes is None else self.usable(boxes, sizes[k])
            truth = target["boxes"].to(boxes)
            matched = match_boxes(box_iou(truth, boxes[usable]), FOREGROUND, BACKGROUND, LEAST_MATCH)

            label = torch.full_like(boxes[:, 0], -1)
            label[usable] = (matched >= 0).to(label) - (matched == UNDECIDED).to(label)
            labels.append(label)

            compared = torch.zeros_like(boxes)
            if len(truth):
                compared[usable] = truth[matched.clamp(min=0)]
            objects.append(compared)
        return labels, objects

    def usable(self, anchors: Tensor, size: tuple[int, int]) -> Tensor:
        """Which anchors (A, 4) of a batch an image of a size (H, W) is trained on, bool (A,).

        Those whose middle lies in the image, padded by itself; with ``inside`` those that lie in the image as a whole,
        unless it is too small for any.
        """
        height, width = size
        padded = anchors.new_tensor([math.ceil(side / self.padding) * self.padding for side in (width, height)])
        middles = (anchors[:, :2] + anchors[:, 2:]) / 2
        near = (middles < padded - 0.5).all(1)  # middles are whole numbers, but for rounding
        if not self.inside:
            return near

        limits = anchors.new_tensor([width, height])
        within = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2:] < limits).all(1)
        return torch.where(within.any(), within, near)

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Losses of the sampled anchors: whether they show an object, and the offsets of those that do.

        Args:
            objectness: logits of all images' anchors (ΣA, 1).
            pred_bbox_deltas: offsets (ΣA, 4).
            labels: of each image (A,), as ``assign_targets_to_anchors`` gives them.
            regression_targets: of each image, the offsets that positive anchors should have (A, 4).
        """
        positive, negative = (torch.cat(part).bool() for part in self.fg_bg_sampler(labels))
        sampled = positive | negative
        number = sampled.sum().clamp(min=1)

        truth = torch.cat(labels)[sampled]
        class_loss = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], truth, reduction="sum")
        aims = torch.cat(regression_targets)[positive]
        box_loss = F.smooth_l1_loss(pred_bbox_deltas[positive], aims, beta=self.beta, reduction="sum")
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
        """Boxes (proportions, 4) around 0 of a side's square and of rectangles as large, height over width as given."""
        halves = [
            (side / math.sqrt(ratio) / 2, side * math.sqrt(ratio) / 2) for ratio in aspect_ratios for side in scales
        ]
        boxes = [(-x, -y, x, y) for x, y in halves]
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
        logits, deltas = super().forward(x)
        return [one.float() for one in logits], [one.float() for one in deltas]


def match_boxes(iou: Tensor, foreground: float, background: float, least: float | None) -> Tensor:
    """Which object each box shows: an index, −1 for none, −2 where that is not to be said.

    A box shows the object that it overlaps most, from ``foreground`` on. Beyond that, where ``least`` is given, all
    boxes that overlap an object as much as any does show that object, whatever else they overlap; of several such
    objects the last one.

    Args:
        iou: intersection over union of objects and boxes (G, R).
        foreground: from which on a box shows an object.
        background: below which it shows none.
        least: what an object's best boxes must have; None: only ``foreground`` counts.

    Returns:
        int64 (R,).
    """
    matched = torch.full(iou.shape[1:], -1, dtype=torch.int64, device=iou.device)
    if iou.numel() == 0:
        return matched

    best, nearest = iou.max(0)
    matched[best >= background] = UNDECIDED
    matched = torch.where(best >= foreground, nearest, matched)
    if least is None:
        return matched

    most = iou.max(1).values
    objects, boxes = ((iou == most[:, None]) & (most >= least)[:, None]).nonzero(as_tuple=True)
    last = torch.full_like(matched, -1).scatter_reduce(0, boxes, objects, "amax")
    return torch.where(last >= 0, last, matched)
