"""Annotated images with detections in them, and COCO's own evaluation of them."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from swinv2_tasks.evaluation.coco import as_annotations, as_results
from tests.helpers.objects import CATEGORIES


def random_objects(seed: int, images: int = 6) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Annotated images, and results that find some of their objects roughly and some that are not there."""
    rng = np.random.default_rng(seed)
    truth, detections = [], []
    for k in range(images):
        number = int(rng.integers(0, 5))
        corners = rng.random((number, 2)) * 60
        boxes = torch.from_numpy(np.concatenate([corners, corners + 10 + 50 * rng.random((number, 2))], 1)).float()
        masks = torch.zeros(number, 120, 120, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        labels = torch.from_numpy(rng.integers(0, 3, number))
        target = {"boxes": boxes, "labels": labels, "masks": masks, "image_id": 10 * k}
        target |= {"area": masks.sum((1, 2)).float(), "iscrowd": torch.from_numpy(rng.integers(0, 2, number) // 2)}
        truth.append(as_annotations(target, (120, 120), list(CATEGORIES)))
        moved = (boxes + torch.from_numpy(rng.normal(0, 4, (number, 4))).float()).clamp(0, 119)
        moved[:, 2:] = moved[:, 2:].maximum(moved[:, :2] + 1)
        shifted = masks.roll((int(rng.integers(0, 4)), int(rng.integers(0, 4))), (1, 2))[:, None].float()
        scores = torch.from_numpy(rng.random(number).round(1)).float()
        prediction = {"boxes": moved, "labels": labels, "scores": scores, "masks": shifted}
        detections.append(as_results(prediction, 10 * k, (120, 120), list(CATEGORIES)))
    return truth, detections


def content_of(truth: list[dict[str, Any]]) -> dict[str, Any]:
    """What an annotation file says of some images."""
    annotations = [annotation for entry in truth for annotation in entry["annotations"]]
    return {
        "images": [entry["image"] for entry in truth],
        "annotations": [{**entry, "id": k} for k, entry in enumerate(annotations, start=1)],
        "categories": [{"id": k, "name": name} for k, name in CATEGORIES.items()],
    }


def evaluate(
    content: dict[str, Any], results: list[dict[str, Any]], iou_type: str, evaluation_class: type[Any] = COCOeval
) -> Any:
    """The evaluation of pycocotools as its own users run it."""
    if iou_type == "segm":  # or loadRes took the boxes' areas
        results = [{key: value for key, value in entry.items() if key != "bbox"} for entry in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        evaluation = evaluation_class(truth, truth.loadRes(results), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
