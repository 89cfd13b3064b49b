"""From regions to detections: suppression of doubles, several scales, mirror images, masks at the image's own size.

Soft-NMS: https://arxiv.org/abs/1704.04503. Testing at several scales: https://arxiv.org/abs/2111.09883, section 4.

Shapes: B images, R regions of an image, K classes, n detections, M side of a mask (28), H, W pixels of an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_masks
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from swinv2_tasks.errors import UserError
from swinv2_tasks.heads.mask_rcnn import DetectionHead, Features


@dataclass(frozen=True)
class DetectionInference:
    """How objects are found in an image.

    Args:
        score_threshold: probability from which on a region counts as an object.
        suppression: what becomes of boxes that overlap with a likelier one of their class: ``hard`` drops them,
            ``linear`` and ``gaussian`` lower their scores (soft-NMS).
        nms_threshold: intersection over union from which on ``hard`` drops and ``linear`` lowers.
        sigma: variance of ``gaussian``: scores are multiplied by exp(−IoU² / sigma).
        max_detections: of an image, the likeliest ones.
        scales: factors by which the image is resized; what is found at all of them is taken together.
        flip: also looks at the mirrored image.
        mask_threshold: probability above which a pixel belongs to an object.

    Raises:
        UserError: an argument is out of its range.
    """

    score_threshold: float = 0.05
    suppression: Literal["hard", "linear", "gaussian"] = "hard"
    nms_threshold: float = 0.5
    sigma: float = 0.5
    max_detections: int = 100
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    mask_threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.suppression not in ("hard", "linear", "gaussian"):
            raise UserError(f"inference.suppression must be hard, linear or gaussian, not {self.suppression!r}")
        for name in ("score_threshold", "nms_threshold", "mask_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"inference.{name} must be between 0 and 1, not {getattr(self, name)}")
        if self.sigma <= 0 or self.max_detections < 1:
            raise UserError(
                f"inference.sigma is {self.sigma}, inference.max_detections {self.max_detections}; expected above 0 "
                "and at least 1"
            )
        if not self.scales or min(self.scales) <= 0:
            raise UserError(f"inference.scales must be factors above 0, not {[*self.scales]}")


@dataclass
class Detections:
    """What was found in an image, likeliest first."""

    boxes: Tensor
    """(n, 4) float32: left, top, right, bottom in pixels."""
    labels: Tensor
    """(n,) int64 class indices."""
    scores: Tensor
    """(n,) float32 in [0, 1]."""
    masks: Tensor | None
    """(n, M, M) float32 in [0, 1], each filling its box; None without a mask branch."""

    def at(self, size: Sequence[int], of: Sequence[int]) -> Detections:
        """The same in pixels of an image of another size (H, W) than the one (H, W) it was found in."""
        factors = self.boxes.new_tensor([size[1] / of[1], size[0] / of[0]]).repeat(2)
        return Detections(self.boxes * factors, self.labels, self.scores, self.masks)

    def cpu(self) -> Detections:
        masks = None if self.masks is None else self.masks.cpu()
        return Detections(self.boxes.cpu(), self.labels.cpu(), self.scores.cpu(), masks)


def padded(images: Sequence[Tensor], multiple: int) -> ImageList:
    """Images (3, H, W) of different sizes as one batch, filled up with zeros at the right and below.

    Args:
        images: the images.
        multiple: what height and width of the batch are multiples of.
    """
    sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
    height, width = (math.ceil(max(sides) / multiple) * multiple for sides in zip(*sizes, strict=True))
    batch = images[0].new_zeros(len(images), 3, height, width)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return ImageList(batch, sizes)


@torch.no_grad()
def detect(
    backbone: Callable[[Tensor], list[Tensor]],
    head: DetectionHead,
    images: Sequence[Tensor],
    inference: DetectionInference,
    multiple: int = 32,
) -> list[Detections]:
    """Finds the objects in images (3, H, W), normalised, in pixels of these images; without gradients, in eval mode.

    Args:
        backbone: batches (B, 3, H, W) to maps.
        head: of a detector.
        images: on the network's device.
        inference: how.
        multiple: what the padded sides are multiples of.
    """
    views: list[_View] = []
    for scale in inference.scales:
        resized = [_resized(image, scale) for image in images]
        for mirrored in (False, True)[: 1 + inference.flip]:
            batch = padded([image.flip(2) for image in resized] if mirrored else resized, multiple)
            views.append(_View(batch, head.features(backbone(batch.tensors)), mirrored))
    sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
    found: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in images]
    for view in views:
        regions = head.classify(view.features, view.images)
        for k, (boxes, scores) in enumerate(regions):
            region, label = (scores > inference.score_threshold).nonzero(as_tuple=True)
            chosen = boxes[region, label if boxes.shape[1] > 1 else 0]
            upright = view.upright(chosen, k, sizes[k])
            found[k].append((clip_boxes_to_image(upright, sizes[k]), scores[region, label], label))
    results = []
    for parts in found:
        boxes, scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        boxes, scores, labels = suppressed(boxes, scores, labels, inference)
        results.append(Detections(boxes, labels, scores, None))
    if head.has_masks:
        labels_ = [one.labels for one in results]
        total: list[Tensor] = []
        for view in views:
            boxes_ = [view.seen(one.boxes, k, sizes[k]) for k, one in enumerate(results)]
            masks = head.mask_probabilities(view.features, boxes_, labels_, view.images)
            masks = [one.flip(2) for one in masks] if view.mirrored else masks
            total = [a + b for a, b in zip(total, masks, strict=True)] if total else masks
        for one, summed in zip(results, total, strict=True):
            one.masks = summed / len(views)
    return results


@dataclass
class _View:
    """A batch as the network sees it: at a scale, perhaps mirrored."""

    images: ImageList
    features: Features
    mirrored: bool

    def upright(self, boxes: Tensor, k: int, size: tuple[int, int]) -> Tensor:
        """Boxes of image k of the view, in pixels of that image at a size (H, W) and not mirrored."""
        height, width = self.images.image_sizes[k]
        boxes = self._mirror(boxes, width)
        return boxes * boxes.new_tensor([size[1] / width, size[0] / height]).repeat(2)

    def seen(self, boxes: Tensor, k: int, size: tuple[int, int]) -> Tensor:
        """The way back."""
        height, width = self.images.image_sizes[k]
        return self._mirror(boxes * boxes.new_tensor([width / size[1], height / size[0]]).repeat(2), width)

    def _mirror(self, boxes: Tensor, width: int) -> Tensor:
        if not self.mirrored:
            return boxes
        return torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)


def _resized(image: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return image
    size = [max(1, round(side * scale)) for side in image.shape[1:]]
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


def suppressed(
    boxes: Tensor, scores: Tensor, labels: Tensor, inference: DetectionInference
) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes that stay, likeliest first, with their scores and labels.

    Args:
        boxes: (n, 4).
        scores: (n,).
        labels: (n,): boxes of different classes do not suppress each other.
        inference: how.
    """
    large = ((boxes[:, 2:] - boxes[:, :2]) > 0.01).all(1)
    boxes, scores, labels = boxes[large], scores[large], labels[large]
    if inference.suppression == "hard":
        kept = batched_nms(boxes, scores, labels, inference.nms_threshold)[: inference.max_detections]
    else:
        kept, scores = soft_nms(boxes, scores, labels, inference)
    return boxes[kept], scores[kept], labels[kept]


def soft_nms(boxes: Tensor, scores: Tensor, labels: Tensor, inference: DetectionInference) -> tuple[Tensor, Tensor]:
    """Soft-NMS: takes the likeliest box and lowers the scores of those of its class that overlap with it; and so on.

    Boxes are taken in the order of their lowered scores, whatever their class; so the first ``max_detections`` are all.

    Args:
        boxes: (n, 4).
        scores: (n,).
        labels: (n,).
        inference: how; boxes whose score falls to the threshold or below are dropped.

    Returns:
        Indices of the boxes taken, in that order, and all scores (n,) as they were when taken or in the end.
    """
    scores, waiting = scores.clone(), scores.clone()
    taken = []
    for _ in range(min(inference.max_detections, len(boxes))):
        best = waiting.argmax()
        taken.append(best)
        scores[best] = waiting[best]
        overlap = box_iou(boxes[best][None], boxes)[0] * (labels == labels[best])
        if inference.suppression == "gaussian":
            waiting = waiting * torch.exp(-overlap.square() / inference.sigma)
        else:
            waiting = torch.where(overlap > inference.nms_threshold, waiting * (1 - overlap), waiting)
        waiting[best] = -1
    if not taken:
        return labels[:0], scores
    order = torch.stack(taken)
    return order[scores[order] > inference.score_threshold], scores


def pasted(mask: Tensor, box: Tensor, size: Sequence[int]) -> Tensor:
    """The mask (M, M) of a box (4,) at its place in an image (H, W), float32 in [0, 1]; as torchvision's."""
    large, scale = expand_masks(mask[None, None], padding=1)
    edges = expand_boxes(box[None], scale).to(torch.int64)[0]
    return paste_mask_in_image(large[0, 0], edges, size[0], size[1])


def encoded_masks(detections: Detections, size: Sequence[int], threshold: float) -> list[dict[str, Any]]:
    """Run lengths, in COCO's compressed form, of the detections' pixels in an image (H, W); on the CPU.

    One mask after the other is drawn, so that memory does not grow with their number.
    """
    assert detections.masks is not None
    codes = []
    for mask, box in zip(detections.masks, detections.boxes, strict=True):
        pixels = (pasted(mask, box, size) > threshold).numpy()
        code = coco_masks.encode(np.asfortranarray(pixels, dtype=np.uint8))
        codes.append({"size": [int(side) for side in size], "counts": code["counts"].decode()})
    return codes
