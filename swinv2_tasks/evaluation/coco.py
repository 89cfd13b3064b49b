"""COCO's measures of detection: https://cocodataset.org/#detection-eval, by pycocotools or faster-coco-eval.

A metric of our own rather than torchmetrics' MeanAveragePrecision: that one rounds the thresholds to float32, which
changes the numbers, evaluates every class again for the table of classes, and lets every process compute.
"""

from __future__ import annotations

import contextlib
import gc
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pycocotools import mask as coco_masks
from torchmetrics import Metric

from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.coco_curves import CocoCurves, mean_of_existing, read_curves
from swinv2_tasks.inference.detection import Detections, encode_masks

IoUType = Literal["bbox", "segm", "boundary"]
Backend = Literal["pycocotools", "faster_coco_eval"]

STATISTICS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
"""The twelve numbers, in COCO's order. With another `max_detections` than 100, ar100 is called by that number."""

MAX_DETECTIONS = 100
"""How many detections of an image and class COCO scores, the highest-scoring."""

TYPE_NAMES: dict[IoUType, str] = {"bbox": "box", "segm": "mask", "boundary": "boundary"}
"""What scores of each type are called in logs and files."""


@dataclass(frozen=True)
class CocoScores:
    """What COCO's evaluation says of detections, by boxes or by masks.

    Attributes:
        statistics: the twelve numbers by name, in [0, 1]; −1 where there is no object of that size. Eleven with a
            `max_detections` of at most 10, and ten with 1, where some are the same.
        class_ap: average precision (IoU .50 to .95) of each category by id; NaN where there is no object of it.
        curves: what lies behind them.
    """

    statistics: dict[str, float]
    class_ap: dict[int, float]
    curves: CocoCurves | None = None


def coco_scores(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    iou_types: Sequence[IoUType] = ("bbox",),
    backend: Backend = "pycocotools",
    max_detections: int = MAX_DETECTIONS,
) -> dict[IoUType, CocoScores]:
    """Scores detections against annotations.

    Args:
        truth: what an annotation file in COCO's format holds: images, annotations, categories.
        results: {image_id, category_id, score, and bbox or segmentation or both}, as COCO takes submissions.
        iou_types: what is compared: boxes; masks; or masks and their boundaries, of which the lower IoU counts
            (https://arxiv.org/abs/2103.16562), which takes minutes where the others take seconds.
        backend: ``faster_coco_eval`` (extra ``fast``) gives the same numbers several times faster.
        max_detections: how many detections of an image and class count, the highest-scoring; COCO's own number is 100.

    Raises:
        UserError: the backend is not installed, or is pycocotools, for boundaries; results lack what is to be
            compared, or are of unknown images.
    """
    if "boundary" in iou_types and backend != "faster_coco_eval":
        raise UserError("pycocotools knows no boundaries: take the backend faster_coco_eval (extra fast)")
    coco_class, evaluation_class = _backend(backend)
    image_ids = {image["id"] for image in truth["images"]}
    for result in results:
        if result["image_id"] not in image_ids:
            raise UserError(
                f"there is a detection in image {result['image_id']}, which is not among the annotated ones"
            )

    scores: dict[IoUType, CocoScores] = {}
    with _silence():
        # An id of 0, from which some tools count, is taken for "not matched" by COCO's tools.
        annotations = [{**annotation, "id": k} for k, annotation in enumerate(truth["annotations"], start=1)]
        ground_truth = coco_class()
        ground_truth.dataset = {**truth, "annotations": annotations}
        ground_truth.createIndex()
        for iou_type in iou_types:
            detections = coco_class()
            detections.dataset = {
                "images": truth["images"],
                "categories": truth["categories"],
                "annotations": _as_annotations(results, iou_type),
            }
            detections.createIndex()

            evaluation = evaluation_class(ground_truth, detections, iou_type)
            evaluation.params.maxDets = [limit for limit in (1, 10) if limit < max_detections] + [max_detections]
            evaluation.evaluate()
            evaluation.accumulate()
            scores[iou_type] = CocoScores(_statistics(evaluation), _class_ap(evaluation), read_curves(evaluation))
    return scores


def _class_ap(evaluation: Any) -> dict[int, float]:
    """The average precision of each category of an accumulated evaluation, by id."""
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]  # IoU thresholds, recalls, classes
    means = [mean_of_existing(precision[:, :, k], empty=math.nan) for k in range(precision.shape[2])]
    return dict(zip(map(int, evaluation.params.catIds), means, strict=True))


def _backend(name: Backend) -> tuple[Any, Any]:
    if name == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    if name != "faster_coco_eval":
        raise UserError(f"the backend must be pycocotools or faster_coco_eval, not {name!r}")
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise UserError(
            "the backend faster_coco_eval is not installed: pip install 'swinv2-tasks[fast]', or take pycocotools"
        ) from error
    return COCO, COCOeval_faster


def _statistics(evaluation: Any) -> dict[str, float]:
    """The twelve numbers of an accumulated evaluation; COCO's own summary is for a limit of 100 detections alone."""
    precision = np.asarray(evaluation.eval["precision"])  # IoU thresholds, recalls, classes, object sizes, limits
    recall = np.asarray(evaluation.eval["recall"])  # IoU thresholds, classes, object sizes, limits
    sizes = list(enumerate(("small", "medium", "large"), start=1))
    precisions = {"ap": precision[..., 0, -1], "ap50": precision[0, ..., 0, -1], "ap75": precision[5, ..., 0, -1]}
    precisions |= {f"ap_{name}": precision[..., k, -1] for k, name in sizes}
    recalls = {f"ar{limit}": recall[..., 0, k] for k, limit in enumerate(evaluation.params.maxDets)}
    recalls |= {f"ar_{name}": recall[..., k, -1] for k, name in sizes}
    return {name: mean_of_existing(values, empty=-1.0) for name, values in (precisions | recalls).items()}


def describe_limit(truth: Mapping[str, Any], max_detections: int, per_class: bool, remedy: str) -> str | None:
    """One line that says how many images hold more objects than detections count; None where none does.

    Args:
        truth: what an annotation file in COCO's format holds.
        max_detections: how many detections of an image count.
        per_class: whether they are counted class by class, as COCO's evaluation does, or all together.
        remedy: the setting that raises the number.
    """
    keys = ("image_id", "category_id") if per_class else ("image_id",)
    annotations = [annotation for annotation in truth["annotations"] if not annotation["iscrowd"]]
    counts = Counter(tuple(annotation[key] for key in keys) for annotation in annotations)
    crowded = {group[0] for group, number in counts.items() if number > max_detections}  # images
    if not crowded:
        return None

    most = max(counts.values())
    have = "has" if len(crowded) == 1 else "have"
    objects = "objects of a class" if per_class else "objects"
    return (
        f"{len(crowded)} of {len(truth['images'])} images {have} more {objects} (up to {most}) than the "
        f"{max_detections} detections that count: AP and AR cannot reach 1. To count more: {remedy} {most}"
    )


def _as_annotations(results: Sequence[Mapping[str, Any]], iou_type: IoUType) -> list[dict[str, Any]]:
    """Results with the ids and areas that the evaluation expects; a mask's area is its pixels, not its box."""
    key = "bbox" if iou_type == "bbox" else "segmentation"
    annotations = []
    for number, result in enumerate(results, start=1):
        if key not in result:
            raise UserError(
                f"detection {number - 1} (image {result['image_id']}) has no {key}: {iou_type} cannot be scored"
            )
        if iou_type != "bbox":
            code = result["segmentation"]
            shape = {
                "segmentation": code,
                "area": float(coco_masks.area(code)),
                "bbox": coco_masks.toBbox(code).tolist(),
            }
        else:
            box = result["bbox"]
            shape = {"bbox": box, "area": box[2] * box[3]}
        shape["id"], shape["iscrowd"] = number, 0
        for name in ("image_id", "category_id", "score"):
            shape[name] = result[name]
        annotations.append(shape)
    return annotations


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Turns off the garbage collector and what COCO's tools print.

    The collector would walk through a million new dictionaries again and again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if was_enabled:
            gc.enable()


def as_results(
    detections: Detections | Mapping[str, torch.Tensor],
    image_id: int,
    size: Sequence[int],
    class_ids: Sequence[int],
    mask_threshold: float = 0.5,
) -> list[dict[str, Any]]:
    """Detections as COCO takes submissions: {image_id, category_id, bbox, score, segmentation}.

    Args:
        detections: what is in an image, in its pixels and on the CPU: ``Detections``, or what ``task(x)`` gives, {boxes
            (n, 4), labels (n,), scores (n,), and perhaps masks (n, 1, H, W)}.
        image_id: the image's id.
        size: height and width of the image.
        class_ids: the category of each class index.
        mask_threshold: probability from which on a pixel belongs to an object.
    """
    codes: list[dict[str, Any]] | None = None
    if isinstance(detections, Detections):
        boxes, labels, scores = detections.boxes, detections.labels, detections.scores
        if detections.masks is not None:
            codes = encode_masks(detections, size, mask_threshold)
    else:
        boxes, labels, scores = detections["boxes"], detections["labels"], detections["scores"]
        if "masks" in detections:
            codes = _encode(detections["masks"][:, 0] >= mask_threshold)

    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": class_ids[label], "bbox": box, "score": score}
        for box, label, score in zip(_to_xywh(boxes), labels.tolist(), scores.tolist(), strict=True)
    ]
    for result, code in zip(results, codes or [], strict=codes is not None):
        result["segmentation"] = code
    return results


def as_annotations(
    target: Mapping[str, Any], size: Sequence[int], class_ids: Sequence[int], file_name: str | None = None
) -> dict[str, Any]:
    """A ``DetectionTarget`` of evaluation as what an annotation file says of the image: {image, annotations}.

    Args:
        target: the objects of an image.
        size: height and width of the image.
        class_ids: the category of each class index.
        file_name: the image's file, where it is known.
    """
    columns = [target[name].tolist() for name in ("labels", "area", "iscrowd")]
    annotations = [
        {
            "image_id": target["image_id"],
            "category_id": class_ids[label],
            "bbox": box,
            "area": area,
            "iscrowd": crowd,
        }
        for box, label, area, crowd in zip(_to_xywh(target["boxes"]), *columns, strict=True)
    ]
    if "masks" in target:
        for annotation, code in zip(annotations, _encode(target["masks"]), strict=True):
            annotation["segmentation"] = code
    image = {"id": target["image_id"], "height": int(size[0]), "width": int(size[1])}
    if file_name is not None:
        image["file_name"] = file_name
    return {"image": image, "annotations": annotations}


def _to_xywh(boxes: torch.Tensor) -> list[list[float]]:
    """Boxes (n, 4) of left, top, right, bottom as COCO states them: left, top, width, height."""
    corners, opposite = boxes.double().chunk(2, dim=1)
    return torch.cat([corners, opposite - corners], dim=1).tolist()


def _encode(masks: torch.Tensor) -> list[dict[str, Any]]:
    """Run lengths, in COCO's compressed form, of masks (n, H, W) of 0 and 1."""
    codes = coco_masks.encode(np.asfortranarray(masks.to("cpu", torch.uint8).permute(1, 2, 0).numpy()))
    return [{"size": [int(side) for side in code["size"]], "counts": code["counts"].decode()} for code in codes]


class CocoMetric(Metric):
    """COCO's numbers over all processes: gathered and computed once, on the first one.

    Memory grows with detections and annotated objects, as run lengths, not with images.

    Args:
        masks: whether masks are scored beside boxes.
        backend: what computes.
        max_detections: how many detections of an image and class count.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, masks: bool, backend: Backend = "pycocotools", max_detections: int = MAX_DETECTIONS) -> None:
        super().__init__(sync_on_compute=False)  # compute gathers itself
        _backend(backend)
        self.max_detections = max_detections
        self.iou_types: tuple[IoUType, ...] = ("bbox", "segm") if masks else ("bbox",)
        self.backend = backend
        self.classes: tuple[list[int], list[str]] = ([], [])
        """Ids and names of the categories, to be set before ``compute``."""
        self.scores: dict[IoUType, CocoScores] = {}
        """Of the last ``compute``."""
        self.limit: str | None = None
        """Of the last ``compute``: what images with more objects than detections that count make of the scores."""
        self.results: list[dict[str, Any]] = []
        """Detections of the last ``compute`` over all processes, in order of their images; on the first process."""
        self.truth: dict[str, Any] | None = None
        """The ground truth likewise, as an annotation file states it; None where nothing is annotated."""
        self._results: list[tuple[int, list[dict[str, Any]]]] = []
        self._truth: list[dict[str, Any]] = []

    @property
    def images(self) -> int:
        """How many images this process has taken."""
        return len(self._results)

    def update(self, image_id: int, results: list[dict[str, Any]], truth: dict[str, Any] | None) -> None:
        """Takes the detections in an image, as of ``as_results``, and its ground truth, as of ``as_annotations``."""
        self._results.append((image_id, results))
        if truth is not None:
            self._truth.append(truth)

    def compute(self) -> dict[str, torch.Tensor]:
        """{box_ap, box_ap50, …, mask_ap, …}: STATISTICS of boxes and masks; nothing where nothing is annotated."""
        parts = [(self._results, self._truth)]
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        is_first = not is_distributed or torch.distributed.get_rank() == 0
        if is_distributed:
            gathered: list[Any] | None = [None] * torch.distributed.get_world_size() if is_first else None
            torch.distributed.gather_object(parts[0], gathered)
            parts = gathered or []

        outcome: list[Any] = [None]
        if is_first:
            outcome[0] = self._score(parts)
        if is_distributed:
            torch.distributed.broadcast_object_list(outcome)
        if isinstance(outcome[0], UserError):
            raise outcome[0]

        self.scores = outcome[0]
        return {
            f"{TYPE_NAMES[iou_type]}_{name}": torch.tensor(value, dtype=torch.float64, device=self.device)
            for iou_type, scores in self.scores.items()
            for name, value in scores.statistics.items()
        }

    def _score(self, parts: list[Any]) -> dict[IoUType, CocoScores] | UserError:
        """Scores the results and the ground truth of all processes; an error instead, for which the others wait."""
        results = [image for part in parts for image in part[0]]
        results.sort(key=lambda image: image[0])
        self.results = [detection for _, detections in results for detection in detections]

        truth = [image for part in parts for image in part[1]]
        truth.sort(key=lambda image: image["image"]["id"])
        if not truth:
            self.truth = None
            return {}
        annotations = [annotation for image in truth for annotation in image["annotations"]]
        content = {
            "images": [image["image"] for image in truth],
            "annotations": [{"id": number, **entry} for number, entry in enumerate(annotations, start=1)],
            "categories": [{"id": class_id, "name": name} for class_id, name in zip(*self.classes, strict=True)],
        }
        self.truth = content
        self.limit = describe_limit(content, self.max_detections, False, "--model.inference.max_detections")
        # The task detects no more than its limit in an image, of all classes together. Where that is below COCO's
        # limit, it is the one that counts.
        max_detections = max(self.max_detections, MAX_DETECTIONS)
        try:
            return coco_scores(content, self.results, self.iou_types, self.backend, max_detections)
        except UserError as error:
            return error

    def reset(self) -> None:
        """Forgets the results and the ground truth."""
        super().reset()
        self._results, self._truth = [], []
