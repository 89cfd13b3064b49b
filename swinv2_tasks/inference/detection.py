"""From proposals to detections: NMS, several scales, horizontal flips, masks at the image's own size.

Soft-NMS: https://arxiv.org/abs/1704.04503. Testing at several scales: https://arxiv.org/abs/2111.09883, section 4.

Pixel i of an image covers [i, i + 1], cell j of a mask the (j + 1)-th of the M parts of its box; a mask is read off at
the centers of pixels, bilinear between the centers of its cells, and is 0 beyond its last cells.

Shapes: B images, R proposals of an image, K classes, n detections, M side of a mask (28), H, W pixels of an image.
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
from swinv2_tasks.inference.segmentation import MOST_SCALE, MOST_VIEWS, Rescaled
from swinv2_tasks.outside_files import shorten


@dataclass(frozen=True)
class DetectionInference:
    """How objects in an image are detected.

    Args:
        score_threshold: probability from which on a proposal counts as an object.
        nms: what becomes of boxes that overlap with a higher-scoring one of their class: ``hard`` drops them,
            ``soft_linear`` and ``soft_gaussian`` lower their scores (soft-NMS).
        nms_threshold: intersection over union from which on ``hard`` drops and ``soft_linear`` lowers.
        sigma: variance of ``soft_gaussian``: scores are multiplied by exp(−IoU² / sigma).
        max_detections: of an image, the highest-scoring ones.
        scales: multiples of the evaluation size that the image is resized to; detections at all of them go through NMS
            together.
        flip: also detects in the horizontally flipped image.
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
        if not self.scales or min(self.scales) <= 0 or max(self.scales) > MOST_SCALE or len(self.scales) > MOST_VIEWS:
            raise UserError(
                f"inference.scales must be up to {MOST_VIEWS} factors above 0 and at most {MOST_SCALE}, not "
                f"{shorten([*self.scales])}"
            )


@dataclass
class Detections:
    """The detections in an image, highest-scoring first."""

    boxes: Tensor
    """(n, 4): left, top, right, bottom in pixels; float32 in those of the image given to the network, float64 in those
    of its file."""
    labels: Tensor
    """(n,) int64 class indices."""
    scores: Tensor
    """(n,) float32 in [0, 1]."""
    masks: Tensor | None
    """(n, M, M) float32 in [0, 1], each filling its box; None without a mask branch."""

    def at(self, size: Sequence[int], image_size: Sequence[int]) -> Detections:
        """The same in pixels of an image of another size (H, W) than that (H, W) of the network's image; on the CPU.

        Boxes are float64: float32 tells apart no more than a ten-thousandth of a pixel at 1,333 of them, and an edge of
        the image would not come out as one.
        """
        own = self.cpu()
        after = torch.tensor([size[1], size[0]] * 2, dtype=torch.float64)
        before = torch.tensor([image_size[1], image_size[0]] * 2, dtype=torch.float64)
        return Detections(own.boxes.double() * after / before, own.labels, own.scores, own.masks)

    def cpu(self) -> Detections:
        """The same detections on the CPU."""
        masks = None if self.masks is None else self.masks.cpu()
        return Detections(self.boxes.cpu(), self.labels.cpu(), self.scores.cpu(), masks)


def pad_images(images: Sequence[Tensor], multiple: int) -> ImageList:
    """Images (C, H, W) of different sizes as one batch, padded with zeros at the right and below.

    Args:
        images: the images.
        multiple: what height and width of the batch are multiples of.
    """
    sizes = _sizes_of(images)
    height, width = (math.ceil(max(sides) / multiple) * multiple for sides in zip(*sizes, strict=True))
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return ImageList(batch, sizes)


def _sizes_of(images: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(int(image.shape[1]), int(image.shape[2])) for image in images]


@torch.no_grad()
def detect(
    backbone: Callable[[Tensor], list[Tensor]],
    head: DetectionHead,
    images: Sequence[Tensor],
    inference: DetectionInference,
    multiple: int = 32,
    rescaled: Sequence[Rescaled] | None = None,
) -> list[Detections]:
    """Detects objects in images (3, H, W), normalized, in pixels of these images; without gradients, in eval mode.

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
    views = _view_images(backbone, head, images, inference, multiple, rescaled)
    sizes = _sizes_of(images)
    results = []
    for candidates in _collect_candidates(views, head, sizes, inference):
        boxes, scores, labels = suppress(*candidates, inference)
        results.append(Detections(boxes, labels, scores, None))

    if head.has_masks:
        for detections, masks in zip(results, _average_masks(views, head, results, sizes), strict=True):
            detections.masks = masks
    return results


@dataclass
class _View:
    """A batch as the network sees it: at a scale, perhaps horizontally flipped."""

    images: ImageList
    features: Features
    is_flipped: bool

    def to_image(self, boxes: Tensor, k: int, size: tuple[int, int]) -> Tensor:
        """Boxes of image k of the view, in pixels of that image at a size (H, W) and not flipped."""
        height, width = self.images.image_sizes[k]
        boxes = self._flip(boxes, width)
        return boxes * boxes.new_tensor([size[1] / width, size[0] / height]).repeat(2)

    def from_image(self, boxes: Tensor, k: int, size: tuple[int, int]) -> Tensor:
        """Undoes ``to_image``."""
        height, width = self.images.image_sizes[k]
        return self._flip(boxes * boxes.new_tensor([width / size[1], height / size[0]]).repeat(2), width)

    def _flip(self, boxes: Tensor, width: int) -> Tensor:
        if not self.is_flipped:
            return boxes
        return torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)


def _view_images(
    backbone: Callable[[Tensor], list[Tensor]],
    head: DetectionHead,
    images: Sequence[Tensor],
    inference: DetectionInference,
    multiple: int,
    rescaled: Sequence[Rescaled] | None,
) -> list[_View]:
    """The images at each scale, unflipped and flipped, with their features."""
    views = []
    sources: Sequence[Rescaled | None] = rescaled or [None] * len(images)
    for scale in inference.scales:
        resized = [_resize(image, scale, source) for image, source in zip(images, sources, strict=True)]
        for is_flipped in (False, True)[: 1 + inference.flip]:
            batch = pad_images([image.flip(2) for image in resized] if is_flipped else resized, multiple)
            views.append(_View(batch, head.features(backbone(batch.tensors)), is_flipped))
    return views


def _resize(image: Tensor, scale: float, rescaled: Rescaled | None) -> Tensor:
    """An image (3, H, W) at a scale."""
    if scale == 1:
        return image
    if rescaled is not None:
        return rescaled(scale)[0].to(image)
    size = [max(1, round(side * scale)) for side in image.shape[1:]]
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


def _collect_candidates(
    views: Sequence[_View], head: DetectionHead, sizes: Sequence[tuple[int, int]], inference: DetectionInference
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Boxes (n, 4), scores (n,) and labels (n,) above the threshold, of each image from all views together."""
    parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in sizes]
    for view in views:
        proposals = head.classify(view.features, view.images)
        if not torch.compiler.is_exporting():
            _check_proposals(proposals, view.features)
        for k, (boxes, scores) in enumerate(proposals):
            row, label = (scores > inference.score_threshold).nonzero(as_tuple=True)
            own_boxes = boxes[row, label if boxes.shape[1] > 1 else 0]
            in_image = clip_boxes_to_image(view.to_image(own_boxes, k, sizes[k]), sizes[k])
            parts[k].append((in_image, scores[row, label], label))

    candidates = []
    for image_parts in parts:
        boxes, scores, labels = (torch.cat(part) for part in zip(*image_parts, strict=True))
        candidates.append((boxes, scores, labels))
    return candidates


def _average_masks(
    views: Sequence[_View], head: DetectionHead, results: Sequence[Detections], sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """The masks (n, M, M) of each image's detections, the mean over all views."""
    labels = [detections.labels for detections in results]
    totals: list[Tensor] = []
    for view in views:
        boxes = [view.from_image(detections.boxes, k, sizes[k]) for k, detections in enumerate(results)]
        masks = head.mask_probabilities(view.features, boxes, labels, view.images)
        if not torch.compiler.is_exporting():
            _check_finite(masks)
        if view.is_flipped:
            masks = [image_masks.flip(2) for image_masks in masks]
        totals = [total + mask for total, mask in zip(totals, masks, strict=True)] if totals else masks
    return [total / len(views) for total in totals]


def _check_proposals(proposals: Sequence[tuple[Tensor, Tensor]], features: Features) -> None:
    """Refuses boxes and probabilities of each image that are not finite."""
    tensors = [tensor for image_proposals in proposals for tensor in image_proposals]
    if not all(len(scores) for _, scores in proposals):  # what is not finite is never proposed
        tensors += features.levels.values()
    _check_finite(tensors)


def _check_finite(tensors: Sequence[Tensor]) -> None:
    """Refuses what would be taken for an image without objects."""
    if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
        raise UserError(
            "the detector gives NaN or infinite numbers. Its weights or the images hold such numbers, or the precision "
            "is too small for its activations: use trainer.precision=bf16-mixed or 32-true"
        )


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, inference: DetectionInference
) -> tuple[Tensor, Tensor, Tensor]:
    """NMS as ``inference`` says: the boxes that are kept, highest-scoring first, with their scores and labels.

    Args:
        boxes: (n, 4).
        scores: (n,).
        labels: (n,): boxes of different classes do not suppress each other.
        inference: how.
    """
    is_large = ((boxes[:, 2:] - boxes[:, :2]) > 0.01).all(1)
    boxes, scores, labels = boxes[is_large], scores[is_large], labels[is_large]
    if inference.nms == "hard":
        indices = batched_nms(boxes, scores, labels, inference.nms_threshold)[: inference.max_detections]
        return boxes[indices], scores[indices], labels[indices]
    indices, new_scores = soft_nms(boxes, scores, labels, inference)
    return boxes[indices], new_scores, labels[indices]


def soft_nms(boxes: Tensor, scores: Tensor, labels: Tensor, inference: DetectionInference) -> tuple[Tensor, Tensor]:
    """Soft-NMS: takes the highest-scoring box, lowers the scores of those of its class that overlap with it, and so on.

    Boxes are taken in the order of their lowered scores, whatever their class; so the first ``max_detections`` are all.

    Args:
        boxes: (n, 4).
        scores: (n,).
        labels: (n,).
        inference: how; boxes whose score falls to the threshold or below are dropped.

    Returns:
        Indices of the boxes taken, in that order, and their scores at that time.
    """
    if torch.compiler.is_exporting():  # a graph does not know whether there is any box: here is one without a score
        boxes = torch.cat([boxes, boxes.new_tensor([[0.0, 0.0, 1.0, 1.0]])])
        scores = torch.cat([scores, scores.new_zeros(1)])
        labels = torch.cat([labels, labels.new_full((1,), -1)])
        rounds = inference.max_detections
    else:
        rounds = min(inference.max_detections, len(boxes))

    current_scores, classes = scores.clone(), labels.clone()
    order, taken_scores = [labels[:0]], [scores[:0]]
    for _ in range(rounds):
        best = current_scores.argmax()
        order.append(best[None])
        taken_scores.append(current_scores[best][None])

        overlap = box_iou(boxes[best][None], boxes)[0] * (classes == classes[best])
        if inference.nms == "soft_gaussian":
            current_scores = current_scores * torch.exp(-overlap.square() / inference.sigma)
        else:
            is_near = overlap > inference.nms_threshold
            current_scores = torch.where(is_near, current_scores * (1 - overlap), current_scores)
        current_scores[best] = classes[best] = -1  # of no class, it stays behind all others

    indices, final_scores = torch.cat(order), torch.cat(taken_scores)
    is_kept = final_scores > inference.score_threshold
    return indices[is_kept], final_scores[is_kept]


CHUNK_PIXELS = 2**20
"""Pixels of a mask that are drawn at a time on the way to run lengths."""


def paste_mask(mask: Tensor, box: Tensor, size: Sequence[int]) -> Tensor:
    """The mask (M, M) of a box (4,) pasted into an image (H, W), float32 in [0, 1].

    As ``grid_sample`` with ``align_corners=False`` over the whole image gives it; only the pixels near the box, where
    it is not 0, are computed.
    """
    image = mask.new_zeros(int(size[0]), int(size[1]), dtype=torch.float32)
    rows, columns, row_weights, column_weights = _weigh_cells(box.tolist(), mask.shape[-1], size)
    if row_weights.size and column_weights.size:
        down = torch.from_numpy(row_weights).to(image.device)
        across = torch.from_numpy(column_weights).to(image.device)
        image[rows, columns] = down @ mask.float() @ across.T
    return image


def paste_masks(masks: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """The masks (n, M, M) of boxes (n, 4) pasted into images (H, W), float32 (n, H, W) in [0, 1]."""
    if torch.compiler.is_exporting():
        return _paste_masks_in_a_graph(masks, boxes, size)
    images = torch.empty(len(masks), int(size[0]), int(size[1]), device=masks.device)
    for image, mask, box in zip(images, masks, boxes, strict=True):
        image[:] = paste_mask(mask, box, size)
    return images


def _paste_masks_in_a_graph(masks: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """The same in one graph, where neither the number of masks nor the size of a box is known; boxes have an area."""
    cells = torch.arange(masks.shape[-1], device=boxes.device)
    weights = []
    for axis in (1, 0):  # down, across
        start, end = boxes[:, axis, None].double(), boxes[:, axis + 2, None].double()
        cell = (end - start) / masks.shape[-1]
        pixels = torch.arange(int(size[1 - axis]), device=boxes.device, dtype=torch.float64) + 0.5
        positions = (pixels - start) / cell - 0.5  # in cells, from the center of the first one
        weights.append((1 - (positions[:, :, None] - cells).abs()).clamp(min=0).float())
    down, across = weights
    return down @ masks.float() @ across.transpose(1, 2)


def encode_masks(detections: Detections, size: Sequence[int], threshold: float) -> list[dict[str, Any]]:
    """Run lengths, in COCO's compressed form, of the detections' pixels in an image (H, W); on the CPU.

    The masks are those of ``paste_mask``, from a threshold on. No image is ever drawn: memory grows neither with the
    number of masks nor with the size of the image.
    """
    assert detections.masks is not None
    height, width = int(size[0]), int(size[1])
    codes = []
    for mask, box in zip(detections.masks.float().numpy(), detections.boxes.tolist(), strict=True):
        edges = _find_run_edges(mask, box, (height, width), threshold)
        counts = np.diff(edges, prepend=0, append=height * width)
        if len(counts) > 1 and counts[-1] == 0:  # the last pixel belongs to the object
            counts = counts[:-1]
        code = coco_masks.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        codes.append({"size": [height, width], "counts": code["counts"].decode()})
    return codes


def _find_run_edges(mask: np.ndarray, box: list[float], size: tuple[int, int], threshold: float) -> np.ndarray:
    """Where the runs of a mask (M, M) begin and end, in turns, in an image (H, W); int64 (2 · runs,).

    The image's pixels are counted down the columns, of which a few are drawn at a time.
    """
    rows, columns, row_weights, column_weights = _weigh_cells(box, len(mask), size)
    if not row_weights.size or not column_weights.size:
        return np.zeros(0, dtype=np.int64)

    height = len(row_weights)
    stretched = mask.T @ row_weights.T  # (M, rows)
    step = max(1, CHUNK_PIXELS // height)
    edges = []
    for start in range(0, len(column_weights), step):
        values = column_weights[start : start + step] @ stretched  # (columns of the chunk, rows)
        inside = np.zeros((len(values), height + 2), dtype=bool)  # with a pixel outside above and below each column
        np.greater_equal(values, threshold, out=inside[:, 1:-1])

        flat = inside.ravel()
        column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), height + 2)
        edges.append((columns.start + start + column) * size[0] + rows.start + row)
    return _join_runs(np.concatenate(edges))


def _join_runs(edges: np.ndarray) -> np.ndarray:
    """Joins each run that ends at the foot of a column with the one that begins at the head of the next column."""
    is_continued = np.flatnonzero(edges[1:-1:2] == edges[2::2])
    return np.delete(edges, np.concatenate([2 * is_continued + 1, 2 * is_continued + 2]))


def _weigh_cells(box: Sequence[float], side: int, size: Sequence[int]) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    """Where in an image (H, W) a mask of M × M cells that fills a box is not 0, and the weight of each cell there.

    Returns:
        The rows and columns, and for these the cells' weights, float32 (rows, M) and (columns, M). Nothing where the
        box has no area or lies outside.
    """
    left, top, right, bottom = box
    rows, row_weights = _weigh_cells_along_axis(top, bottom, side, int(size[0]))
    columns, column_weights = _weigh_cells_along_axis(left, right, side, int(size[1]))
    return rows, columns, row_weights, column_weights


def _weigh_cells_along_axis(start: float, end: float, side: int, length: int) -> tuple[slice, np.ndarray]:
    """How a mask is pasted along one axis of an image of a length.

    Returns:
        The pixels within reach of a box from start to end, and the weight of each of its cells for them, float32
        (pixels, side).
    """
    cell = (end - start) / side
    if not 0 < cell < math.inf:
        return slice(0, 0), np.zeros((0, side), dtype=np.float32)
    first = min(length, max(0, math.floor(start - cell / 2)))
    last = max(first, min(length, math.ceil(end + cell / 2)))
    positions = (np.arange(first, last) + 0.5 - start) / cell - 0.5  # in cells, from the center of the first one
    weights = 1 - np.abs(positions[:, None] - np.arange(side))
    return slice(first, last), weights.clip(min=0).astype(np.float32)
