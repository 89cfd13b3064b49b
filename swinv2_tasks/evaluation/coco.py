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
from swinv2_tasks.inference.detection import Detections, encode_masks

IoUType = Literal["bbox", "segm"]
Backend = Literal["pycocotools", "faster_coco_eval"]

STATISTICS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
"""The twelve numbers, in COCO's order. With another `max_detections` than 100, ar100 is called by that number."""

MAX_DETECTIONS = 100
"""How many detections of an image and class COCO scores, the highest-scoring."""

KINDS: dict[IoUType, str] = {"bbox": "box", "segm": "mask"}


@dataclass(frozen=True)
class CocoScores:
    """What COCO's evaluation says of detections of one kind.

    Attributes:
        statistics: the twelve numbers by name, in [0, 1]; −1 where there is no object of that size. Eleven with a
            `max_detections` of at most 10, and ten with 1, where some are the same.
        class_ap: average precision (IoU .50 to .95) of each category by id; NaN where there is no object of it.
    """

    statistics: dict[str, float]
    class_ap: dict[int, float]


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
        iou_types: what is compared: boxes, masks.
        backend: ``faster_coco_eval`` (extra ``fast``) gives the same numbers several times faster.
        max_detections: how many detections of an image and class count, the highest-scoring; COCO's own number is 100.

    Raises:
        UserError: the backend is not installed; results lack what is to be compared, or are of unknown images.
    """
    coco_class, evaluation_class = _backend(backend)
    known = {image["id"] for image in truth["images"]}
    for result in results:
        if result["image_id"] not in known:
            raise UserError(
                f"there is a detection in image {result['image_id']}, which is not among the annotated ones"
            )
    scores: dict[IoUType, CocoScores] = {}
    with _undisturbed():
        annotated = coco_class()
        # An id of 0, from which some tools count, is taken for "not matched" by COCO's tools.
        numbered = [{**one, "id": number} for number, one in enumerate(truth["annotations"], start=1)]
        annotated.dataset = {**truth, "annotations": numbered}
        annotated.createIndex()
        for kind in iou_types:
            found = coco_class()
            annotations = _as_annotations(results, kind)
            found.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": annotations}
            found.createIndex()
            evaluation = evaluation_class(annotated, found, kind)
            evaluation.params.maxDets = [limit for limit in (1, 10) if limit < max_detections] + [max_detections]
            evaluation.evaluate()
            evaluation.accumulate()
            class_precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
            means = [_mean(class_precision[:, :, k], nothing=math.nan) for k in range(class_precision.shape[2])]
            class_ap = dict(zip(map(int, evaluation.params.catIds), means, strict=True))
            scores[kind] = CocoScores(_statistics(evaluation), class_ap)
    return scores


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
    """The twelve numbers of an accumulated evaluation; COCO's own summary knows but a limit of 100 detections."""
    precision = np.asarray(evaluation.eval["precision"])  # IoU thresholds, recalls, classes, object sizes, limits
    recall = np.asarray(evaluation.eval["recall"])  # IoU thresholds, classes, object sizes, limits
    sizes = list(enumerate(("small", "medium", "large"), start=1))
    precisions = {"ap": precision[..., 0, -1], "ap50": precision[0, ..., 0, -1], "ap75": precision[5, ..., 0, -1]}
    precisions |= {f"ap_{name}": precision[..., k, -1] for k, name in sizes}
    recalls = {f"ar{limit}": recall[..., 0, k] for k, limit in enumerate(evaluation.params.maxDets)}
    recalls |= {f"ar_{name}": recall[..., k, -1] for k, name in sizes}
    return {name: _mean(values, nothing=-1.0) for name, values in (precisions | recalls).items()}


def _mean(values: np.ndarray, nothing: float) -> float:
    """The mean of what was measured: −1 stands for classes without an object."""
    measured = values[values > -1]
    return float(measured.mean()) if len(measured) else nothing


def describe_limit(truth: Mapping[str, Any], max_detections: int, per_class: bool, remedy: str) -> str | None:
    """One line that says how many images hold more objects than detections count; None where none does.

    Args:
        truth: what an annotation file in COCO's format holds.
        max_detections: how many detections of an image count.
        per_class: whether they are counted class by class, as COCO's evaluation does, or all together.
        remedy: the setting that raises the number.
    """
    keys = ("image_id", "category_id") if per_class else ("image_id",)
    counts = Counter(tuple(one[key] for key in keys) for one in truth["annotations"] if not one["iscrowd"])
    over = {places[0] for places, number in counts.items() if number > max_detections}
    if not over:
        return None
    most = max(counts.values())
    have = "has" if len(over) == 1 else "have"
    objects = "objects of a class" if per_class else "objects"
    return (
        f"{len(over)} of {len(truth['images'])} images {have} more {objects} (up to {most}) than the {max_detections} "
        f"detections that count: AP and AR cannot reach 1. To count more: {remedy} {most}"
    )


def _as_annotations(results: Sequence[Mapping[str, Any]], kind: IoUType) -> list[dict[str, Any]]:
    """Results with the ids and areas that the evaluation expects; a mask's area is its pixels, not its box."""
    key = {"bbox": "bbox", "segm": "segmentation"}[kind]
    annotations = []
    for number, result in enumerate(results, start=1):
        if key not in result:
            raise UserError(
                f"detection {number - 1} (image {result['image_id']}) has no {key}: {kind} cannot be scored"
            )
        if kind == "segm":
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
def _undisturbed() -> Iterator[None]:
    """Keeps the garbage collector away, which would walk through a million new dictionaries again and again, and what
    COCO's tools print."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if was_enabled:
            gc.enable()


def as_results(
    found: Detections | Mapping[str, torch.Tensor],
    image_id: int,
    size: Sequence[int],
    class_ids: Sequence[int],
    mask_threshold: float = 0.5,
) -> list[dict[str, Any]]:
    """Detections as COCO takes submissions: {image_id, category_id, bbox, score, segmentation}.

    Args:
        found: what is in an image, in its pixels and on the CPU: ``Detections``, or what ``task(x)`` gives, {boxes
            (n, 4), labels (n,), scores (n,), and perhaps masks (n, 1, H, W)}.
        image_id: the image's id.
        size: height and width of the image.
        class_ids: the category of each class index.
        mask_threshold: probability from which on a pixel belongs to an object.
    """
    codes: list[dict[str, Any]] | None = None
    if isinstance(found, Detections):
        boxes, labels, scores = found.boxes, found.labels, found.scores
        if found.masks is not None:
            codes = encode_masks(found, size, mask_threshold)
    else:
        boxes, labels, scores = found["boxes"], found["labels"], found["scores"]
        if "masks" in found:
            codes = _encoded(found["masks"][:, 0] >= mask_threshold)
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": class_ids[label], "bbox": box, "score": score}
        for box, label, score in zip(_with_sides(boxes), labels.tolist(), scores.tolist(), strict=True)
    ]
    for result, code in zip(results, codes or [], strict=codes is not None):
        result["segmentation"] = code
    return results


def as_annotations(target: Mapping[str, Any], size: Sequence[int], class_ids: Sequence[int]) -> dict[str, Any]:
    """A ``DetectionTarget`` of evaluation as what an annotation file says of the image: {image, annotations}."""
    columns = [target[name].tolist() for name in ("labels", "area", "iscrowd")]
    annotations = [
        {
            "image_id": target["image_id"],
            "category_id": class_ids[label],
            "bbox": box,
            "area": area,
            "iscrowd": crowd,
        }
        for box, label, area, crowd in zip(_with_sides(target["boxes"]), *columns, strict=True)
    ]
    if "masks" in target:
        for annotation, code in zip(annotations, _encoded(target["masks"]), strict=True):
            annotation["segmentation"] = code
    image = {"id": target["image_id"], "height": int(size[0]), "width": int(size[1])}
    return {"image": image, "annotations": annotations}


def _with_sides(boxes: torch.Tensor) -> list[list[float]]:
    """Boxes (n, 4) of left, top, right, bottom as COCO states them: left, top, width, height."""
    corners, opposite = boxes.double().chunk(2, dim=1)
    return torch.cat([corners, opposite - corners], dim=1).tolist()


def _encoded(masks: torch.Tensor) -> list[dict[str, Any]]:
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
        self.kinds: tuple[IoUType, ...] = ("bbox", "segm") if masks else ("bbox",)
        self.backend = backend
        self.classes: tuple[list[int], list[str]] = ([], [])
        """Ids and names of the categories, to be set before ``compute``."""
        self.scores: dict[IoUType, CocoScores] = {}
        """Of the last ``compute``."""
        self.limit: str | None = None
        """Of the last ``compute``: what images with more objects than detections that count make of the scores."""
        self.results: list[dict[str, Any]] = []
        """Detections of the last ``compute`` over all processes, in order of their images; on the first process."""
        self._found: list[tuple[int, list[dict[str, Any]]]] = []
        self._truth: list[dict[str, Any]] = []

    @property
    def images(self) -> int:
        """How many images this process has taken."""
        return len(self._found)

    def update(self, image_id: int, results: list[dict[str, Any]], truth: dict[str, Any] | None) -> None:
        """Takes what was found in an image, as of ``as_results``, and what ``as_annotations`` says of it, if known."""
        self._found.append((image_id, results))
        if truth is not None:
            self._truth.append(truth)

    def compute(self) -> dict[str, torch.Tensor]:
        """{box_ap, box_ap50, …, mask_ap, …}: STATISTICS of boxes and masks; nothing where nothing is annotated."""
        parts = [(self._found, self._truth)]
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        first = not distributed or torch.distributed.get_rank() == 0
        if distributed:
            gathered: list[Any] | None = [None] * torch.distributed.get_world_size() if first else None
            torch.distributed.gather_object(parts[0], gathered)
            parts = gathered or []
        shared: list[Any] = [None]
        if first:
            shared[0] = self._score(parts)
        if distributed:
            torch.distributed.broadcast_object_list(shared)
        if isinstance(shared[0], UserError):
            raise shared[0]
        self.scores = shared[0]
        return {
            f"{KINDS[kind]}_{name}": torch.tensor(value, dtype=torch.float64, device=self.device)
            for kind, scores in self.scores.items()
            for name, value in scores.statistics.items()
        }

    def _score(self, parts: list[Any]) -> dict[IoUType, CocoScores] | UserError:
        found = sorted((one for part in parts for one in part[0]), key=lambda one: one[0])
        self.results = [result for _, results in found for result in results]
        truth = sorted((one for part in parts for one in part[1]), key=lambda one: one["image"]["id"])
        if not truth:
            return {}
        annotations = [annotation for one in truth for annotation in one["annotations"]]
        categories = [{"id": k, "name": name} for k, name in zip(*self.classes, strict=True)]
        content = {"images": [one["image"] for one in truth], "annotations": annotations, "categories": categories}
        self.limit = describe_limit(content, self.max_detections, False, "--model.inference.max_detections")
        # The task finds no more than its limit in an image, of all classes together. Where that is below COCO's limit,
        # it is the one that counts.
        counted = max(self.max_detections, MAX_DETECTIONS)
        try:
            return coco_scores(content, self.results, self.kinds, self.backend, counted)
        except UserError as error:  # the other processes wait
            return error

    def reset(self) -> None:
        super().reset()
        self._found, self._truth = [], []
