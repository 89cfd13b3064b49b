"""From regions to detections: NMS, several scales, horizontal flips, masks at the image's own size.

Soft-NMS: https://arxiv.org/abs/1704.04503. Testing at several scales: https://arxiv.org/abs/2111.09883, section 4.

Pixel i of an image covers [i, i + 1], cell j of a mask the (j + 1)-th of the M parts of its box; a mask is read off at
the middles of pixels, bilinear between the middles of its cells, and is 0 beyond its last cells.

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
from torchvision.ops import box_iou, clip_boxes_to_image

from swinv2_tasks.errors import UserError
from swinv2_tasks.heads.mask_rcnn import DetectionHead, Features
from swinv2_tasks.heads.nms import batched_nms
from swinv2_tasks.inference.segmentation import Rescaled


@dataclass(frozen=True)
class DetectionInference:
    """How objects are found in an image.

    Args:
        score_threshold: probability from which on a region counts as an object.
        nms: what becomes of boxes that overlap with a higher-scoring one of their class: ``hard`` drops them,
            ``soft_linear`` and ``soft_gaussian`` lower their scores (soft-NMS).
        nms_threshold: intersection over union from which on ``hard`` drops and ``soft_linear`` lowers.
        sigma: variance of ``soft_gaussian``: scores are multiplied by exp(−IoU² / sigma).
        max_detections: of an image, the highest-scoring ones.
        scales: multiples of the evaluation size that the image is resized to; what is found at all of them is taken
            together.
        flip: also looks at the mirrored image.
        mask_threshold: probability from which on a pixel belongs to an object, above 0.

    Raises:
        UserError: an argument is out of its range.
    """

    score_threshold: float = 0.05
    nms: Literal["hard", "soft_linear", "soft_gaussian"] = "hard"
    nms_threshold: float = 0.5
    sigma: float = 0.5
    max_detections: int = 100
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    mask_threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.nms not in ("hard", "soft_linear", "soft_gaussian"):
            raise UserError(f"inference.nms must be hard, soft_linear or soft_gaussian, not {self.nms!r}")
        for name in ("score_threshold", "nms_threshold", "mask_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"inference.{name} must be between 0 and 1, not {getattr(self, name)}")
        if self.mask_threshold == 0:
            raise UserError(
                "inference.mask_threshold must be above 0: from 0 on every pixel would belong to the object"
            )
        if self.sigma <= 0 or self.max_detections < 1:
            raise UserError(
                f"inference.sigma is {self.sigma}, inference.max_detections {self.max_detections}; expected above 0 "
                "and at least 1"
            )
        if not self.scales or min(self.scales) <= 0:
            raise UserError(f"inference.scales must be factors above 0, not {[*self.scales]}")


@dataclass
class Detections:
    """What was found in an image, highest-scoring first."""

    boxes: Tensor
    """(n, 4): left, top, right, bottom in pixels; float32 in those of the image that was looked at, float64 in those of
    its file."""
    labels: Tensor
    """(n,) int64 class indices."""
    scores: Tensor
    """(n,) float32 in [0, 1]."""
    masks: Tensor | None
    """(n, M, M) float32 in [0, 1], each filling its box; None without a mask branch."""

    def at(self, size: Sequence[int], of: Sequence[int]) -> Detections:
        """The same in pixels of an image of another size (H, W) than the one (H, W) it was found in; on the CPU.

        Boxes are float64: float32 tells apart no more than a ten-thousandth of a pixel at 1,333 of them, and an edge of
        the image would not come out as one.
        """
        found = self.cpu()
        height, width = size
        after, before = torch.tensor([[width, height] * 2, [of[1], of[0]] * 2], dtype=torch.float64)
        return Detections(found.boxes.double() * after / before, found.labels, found.scores, found.masks)

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
    rescaled: Sequence[Rescaled] | None = None,
) -> list[Detections]:
    """Finds the objects in images (3, H, W), normalized, in pixels of these images; without gradients, in eval mode.

    Args:
        backbone: batches (B, 3, H, W) to maps.
        head: of a detector.
        images: on the network's device.
        inference: how.
        multiple: what the padded sides are multiples of.
        rescaled: for each image, what gives it at other scales; None: it is itself resized to them, once more than its
            file was.

    Raises:
        UserError: the network gives NaN or infinite numbers.
    """
    views: list[_View] = []
    for scale in inference.scales:
        sources: Sequence[Rescaled | None] = rescaled or [None] * len(images)
        resized = [_resized(image, scale, source) for image, source in zip(images, sources, strict=True)]
        for mirrored in (False, True)[: 1 + inference.flip]:
            batch = padded([image.flip(2) for image in resized] if mirrored else resized, multiple)
            views.append(_View(batch, head.features(backbone(batch.tensors)), mirrored))
    sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
    found: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in images]
    for view in views:
        regions = head.classify(view.features, view.images)
        if not torch.compiler.is_exporting():
            _check_regions(regions, view.features)
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
            if not torch.compiler.is_exporting():
                _check_finite(masks)
            masks = [one.flip(2) for one in masks] if view.mirrored else masks
            total = [a + b for a, b in zip(total, masks, strict=True)] if total else masks
        for one, summed in zip(results, total, strict=True):
            one.masks = summed / len(views)
    return results


def _check_regions(regions: Sequence[tuple[Tensor, Tensor]], features: Features) -> None:
    """Refuses boxes and probabilities of each image that are not finite."""
    given = [part for one in regions for part in one]
    if not all(len(scores) for _, scores in regions):  # what is not finite is never proposed
        given += features.levels.values()
    _check_finite(given)


def _check_finite(given: Sequence[Tensor]) -> None:
    """Refuses what would be taken for an image without objects."""
    if not torch.stack([one.isfinite().all() for one in given]).all():
        raise UserError(
            "the detector gives NaN or infinite numbers. Its weights or the images hold such numbers, or the precision "
            "is too small for its activations: use trainer.precision=bf16-mixed or 32-true"
        )


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


def _resized(image: Tensor, scale: float, rescaled: Rescaled | None) -> Tensor:
    """An image (3, H, W) at a scale."""
    if scale == 1:
        return image
    if rescaled is not None:
        return rescaled(scale)[0].to(image)
    size = [max(1, round(side * scale)) for side in image.shape[1:]]
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


def suppressed(
    boxes: Tensor, scores: Tensor, labels: Tensor, inference: DetectionInference
) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes that stay, highest-scoring first, with their scores and labels.

    Args:
        boxes: (n, 4).
        scores: (n,).
        labels: (n,): boxes of different classes do not suppress each other.
        inference: how.
    """
    large = ((boxes[:, 2:] - boxes[:, :2]) > 0.01).all(1)
    boxes, scores, labels = boxes[large], scores[large], labels[large]
    if inference.nms == "hard":
        kept = batched_nms(boxes, scores, labels, inference.nms_threshold)[: inference.max_detections]
        return boxes[kept], scores[kept], labels[kept]
    kept, lowered = soft_nms(boxes, scores, labels, inference)
    return boxes[kept], lowered, labels[kept]


def soft_nms(boxes: Tensor, scores: Tensor, labels: Tensor, inference: DetectionInference) -> tuple[Tensor, Tensor]:
    """Soft-NMS: takes the highest-scoring box, lowers the scores of those of its class that overlap with it, and so on.

    Boxes are taken in the order of their lowered scores, whatever their class; so the first ``max_detections`` are all.

    Args:
        boxes: (n, 4).
        scores: (n,).
        labels: (n,).
        inference: how; boxes whose score falls to the threshold or below are dropped.

    Returns:
        Indices of the boxes taken, in that order, and their scores as they were then.
    """
    if torch.compiler.is_exporting():  # a graph does not know whether there is any box: here is one without a score
        boxes = torch.cat([boxes, boxes.new_tensor([[0.0, 0.0, 1.0, 1.0]])])
        scores = torch.cat([scores, scores.new_zeros(1)])
        labels = torch.cat([labels, labels.new_full((1,), -1)])
        turns = inference.max_detections
    else:
        turns = min(inference.max_detections, len(boxes))

    waiting, classes = scores.clone(), labels.clone()
    order, lowered = [labels[:0]], [scores[:0]]
    for _ in range(turns):
        best = waiting.argmax()
        order.append(best[None])
        lowered.append(waiting[best][None])

        overlap = box_iou(boxes[best][None], boxes)[0] * (classes == classes[best])
        if inference.nms == "soft_gaussian":
            waiting = waiting * torch.exp(-overlap.square() / inference.sigma)
        else:
            waiting = torch.where(overlap > inference.nms_threshold, waiting * (1 - overlap), waiting)
        waiting[best] = classes[best] = -1  # of no class, it stays behind all others

    indices, values = torch.cat(order), torch.cat(lowered)
    kept = values > inference.score_threshold
    return indices[kept], values[kept]


CHUNK_PIXELS = 2**20
"""Pixels of a mask that are drawn at a time on the way to run lengths."""


def pasted(mask: Tensor, box: Tensor, size: Sequence[int]) -> Tensor:
    """The mask (M, M) of a box (4,) at its place in an image (H, W), float32 in [0, 1].

    As ``grid_sample`` with ``align_corners=False`` over the whole image gives it; only the pixels near the box, where
    it is not 0, are computed.
    """
    image = mask.new_zeros(int(size[0]), int(size[1]), dtype=torch.float32)
    rows, columns, down, across = _placed(box.tolist(), mask.shape[-1], size)
    if down.size and across.size:
        left, right = (torch.from_numpy(weights).to(image.device) for weights in (down, across))
        image[rows, columns] = left @ mask.float() @ right.T
    return image


def all_pasted(masks: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """The masks (n, M, M) of boxes (n, 4) at their places in an image (H, W), float32 (n, H, W) in [0, 1]."""
    if torch.compiler.is_exporting():
        return _pasted_at_once(masks, boxes, size)
    images = torch.empty(len(masks), int(size[0]), int(size[1]), device=masks.device)
    for image, mask, box in zip(images, masks, boxes, strict=True):
        image[:] = pasted(mask, box, size)
    return images


def _pasted_at_once(masks: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """The same in one graph, where neither the number of masks nor the size of a box is known; boxes have an area."""
    weights = []
    for axis in (1, 0):  # down, across
        start, end = boxes[:, axis, None].double(), boxes[:, axis + 2, None].double()
        cell = (end - start) / masks.shape[-1]
        pixels = torch.arange(int(size[1 - axis]), device=boxes.device, dtype=torch.float64) + 0.5
        places = (pixels - start) / cell - 0.5  # in cells, from the middle of the first one
        cells = torch.arange(masks.shape[-1], device=boxes.device)
        weights.append((1 - (places[:, :, None] - cells).abs()).clamp(min=0).float())
    down, across = weights
    return down @ masks.float() @ across.transpose(1, 2)


def encoded_masks(detections: Detections, size: Sequence[int], threshold: float) -> list[dict[str, Any]]:
    """Run lengths, in COCO's compressed form, of the detections' pixels in an image (H, W); on the CPU.

    The masks are those of ``pasted``, from a threshold on. No image is ever drawn: memory grows neither with the number
    of masks nor with the size of the image.
    """
    assert detections.masks is not None
    height, width = int(size[0]), int(size[1])
    codes = []
    for mask, box in zip(detections.masks.float().numpy(), detections.boxes.tolist(), strict=True):
        edges = _run_edges(mask, box, (height, width), threshold)
        counts = np.diff(edges, prepend=0, append=height * width)
        if len(counts) > 1 and counts[-1] == 0:  # the last pixel belongs to the object
            counts = counts[:-1]
        code = coco_masks.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        codes.append({"size": [height, width], "counts": code["counts"].decode()})
    return codes


def _run_edges(mask: np.ndarray, box: list[float], size: tuple[int, int], threshold: float) -> np.ndarray:
    """Where the runs of a mask (M, M) begin and end, in turns, in an image (H, W) whose pixels are counted down the
    columns; int64 (2 · runs,). Columns are drawn a few at a time."""
    rows, columns, down, across = _placed(box, len(mask), size)
    if not down.size or not across.size:
        return np.zeros(0, dtype=np.int64)

    number = len(down)
    stretched = mask.T @ down.T  # (M, rows)
    step = max(1, CHUNK_PIXELS // number)
    found = []
    for start in range(0, len(across), step):
        part = across[start : start + step] @ stretched
        inside = np.zeros((len(part), number + 2), dtype=bool)  # with a pixel outside above and below each column
        np.greater_equal(part, threshold, out=inside[:, 1:-1])

        flat = inside.ravel()
        column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), number + 2)
        found.append((columns.start + start + column) * size[0] + rows.start + row)
    edges = np.concatenate(found)

    # A run that ends at the foot of a column goes on at the head of the next one.
    going_on = np.flatnonzero(edges[1:-1:2] == edges[2::2])
    return np.delete(edges, np.concatenate([2 * going_on + 1, 2 * going_on + 2]))


def _placed(box: Sequence[float], side: int, size: Sequence[int]) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    """Where in an image (H, W) a mask of M × M cells that fills a box is not 0: rows and columns; and what each cell
    counts for these, float32 (rows, M) and (columns, M). Nothing where the box has no area or lies outside."""
    left, top, right, bottom = box
    rows, down = _cell_weights(top, bottom, side, int(size[0]))
    columns, across = _cell_weights(left, right, side, int(size[1]))
    return rows, columns, down, across


def _cell_weights(start: float, end: float, side: int, length: int) -> tuple[slice, np.ndarray]:
    """Along one axis of an image of a length: the pixels within reach of a box from start to end, and what each of its
    cells counts for them, float32 (pixels, side)."""
    cell = (end - start) / side
    if not 0 < cell < math.inf:
        return slice(0, 0), np.zeros((0, side), dtype=np.float32)
    first = min(length, max(0, math.floor(start - cell / 2)))
    last = max(first, min(length, math.ceil(end + cell / 2)))
    places = (np.arange(first, last) + 0.5 - start) / cell - 0.5  # in cells, from the middle of the first one
    weights = 1 - np.abs(places[:, None] - np.arange(side))
    return slice(first, last), weights.clip(min=0).astype(np.float32)
