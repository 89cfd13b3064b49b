"""Checks of annotated objects: their boxes, and that masks fit them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_masks

from swinv2_tasks.commands.check.findings import Box, Findings
from swinv2_tasks.datamodules.readers.annotations import compress
from swinv2_tasks.errors import UserError

SMALLEST_SIDE = 2.0
"""Pixels below which a box counts as tiny."""

WHOLE = 0.99
"""Share of an image's area from which on a box is of all of it."""

SLACK = 1.0
"""Pixels by which a box may reach beyond its image: rounding."""

LEAST_OVERLAP = 0.6
"""Intersection over union of an object's box and that of its mask, below which they do not fit."""


class AnnotatedObject(NamedTuple):
    """An object as annotated, whether or not that makes sense."""

    id: Any
    label: int
    box: Box
    segmentation: Any
    is_crowd: bool


class AnnotatedImage(NamedTuple):
    """An image with its objects, or those of them that are known so far."""

    path: str
    width: int
    height: int
    objects: Sequence[AnnotatedObject] = ()


# ---- of a box alone: x, y, width, height, and the image's width and height


def degenerate_box(box: Box, width: int, height: int) -> str | None:
    """It has no area."""
    return _size(box) if box[2] <= 0 or box[3] <= 0 else None


def box_outside(box: Box, width: int, height: int) -> str | None:
    """It does not touch its image."""
    x, y, box_width, box_height = box
    is_outside = x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0
    return f"{_edges(box)}, the image is {width}×{height}" if is_outside else None


def box_beyond_edge(box: Box, width: int, height: int) -> str | None:
    """It reaches beyond its image."""
    x, y, box_width, box_height = box
    beyond = max(-x, -y, x + box_width - width, y + box_height - height)
    return f"{_edges(box)}, the image is {width}×{height}" if beyond > SLACK else None


def tiny_box(box: Box, width: int, height: int) -> str | None:
    """There is hardly anything in it."""
    return _size(box) if min(box[2], box[3]) < SMALLEST_SIDE else None


def whole_image_box(box: Box, width: int, height: int) -> str | None:
    """It says nothing of where the object is."""
    return _size(box) if box[2] * box[3] >= WHOLE * width * height else None


BOX_CHECKS: dict[str, Callable[[Box, int, int], str | None]] = {
    "degenerate_box": degenerate_box,
    "box_outside": box_outside,
    "box_beyond_edge": box_beyond_edge,
    "tiny_box": tiny_box,
    "whole_image_box": whole_image_box,
}
"""The first that holds counts."""


def check_object(findings: Findings, split: str, image: AnnotatedImage, entry: AnnotatedObject) -> None:
    """Adds what is wrong with an object, whatever else is on its image."""
    _check_box(findings, split, image, entry)
    if entry.segmentation is not None:
        _check_mask(findings, split, image, entry)


def _check_box(findings: Findings, split: str, image: AnnotatedImage, entry: AnnotatedObject) -> None:
    if entry.is_crowd:
        return
    for name, check in BOX_CHECKS.items():
        if (detail := check(entry.box, image.width, image.height)) is not None:
            _add(findings, name, split, image, f"object {entry.id}: {detail}", boxes=(entry.box,))
            return


def check_repeated(findings: Findings, split: str, image: AnnotatedImage) -> None:
    """Adds boxes that stand there before, by a pixel at most."""
    known: dict[tuple[int, ...], AnnotatedObject] = {}
    for entry in image.objects:
        if entry.is_crowd:
            continue
        edges = tuple(round(value) for value in entry.box)
        other = known.setdefault(edges, entry)
        if other is not entry:
            name = "duplicate_box" if other.label == entry.label else "contradicting_boxes"
            _add(findings, name, split, image, f"objects {other.id} and {entry.id}", boxes=(entry.box,))


# ---- masks


def _check_mask(findings: Findings, split: str, image: AnnotatedImage, entry: AnnotatedObject) -> None:
    where = f"object {entry.id}"
    if isinstance(entry.segmentation, dict):
        bounds = _bounds_of_runs(findings, split, image, entry)
    else:
        bounds = _bounds_of_polygons(findings, split, image, entry)
    has_area = entry.box[2] > 0 and entry.box[3] > 0
    if bounds is None or entry.is_crowd or not has_area or max(entry.box[2:]) < 8:  # smaller ones may be a pixel off
        return
    if (overlap := _overlap(_clip(bounds, image), _clip(entry.box, image))) < LEAST_OVERLAP:
        outlines = tuple(map(tuple, entry.segmentation)) if isinstance(entry.segmentation, list) else ()
        detail = f"{where}: box {_edges(entry.box)}, mask {_edges(bounds)}, IoU {overlap:.2f}"
        _add(findings, "mask_box_mismatch", split, image, detail, boxes=(entry.box, bounds), outlines=outlines)


def _bounds_of_runs(findings: Findings, split: str, image: AnnotatedImage, entry: AnnotatedObject) -> Box | None:
    """The box of a mask of run lengths; None where it is broken or empty."""
    code, where = entry.segmentation, f"object {entry.id}"
    if code.get("size") != [image.height, image.width]:
        detail = f"{where}: run lengths of {str(code.get('size'))[:40]}, the image is {image.height}×{image.width}"
        _add(findings, "broken_mask", split, image, detail, boxes=(entry.box,))
        return None
    try:
        x, y, width, height = coco_masks.toBbox(compress(code, where)).tolist()
    except (UserError, KeyError, TypeError, ValueError):
        detail = f"{where}: run lengths that do not add up to the image's pixels"
        _add(findings, "broken_mask", split, image, detail, boxes=(entry.box,))
        return None
    return (x, y, width, height) if width and height else None


def _bounds_of_polygons(findings: Findings, split: str, image: AnnotatedImage, entry: AnnotatedObject) -> Box | None:
    """The box of a mask of polygons; None where none of them encloses anything."""
    where, boxes = f"object {entry.id}", (entry.box,)
    polygons = [_corners(part) for part in entry.segmentation] if isinstance(entry.segmentation, list) else [None]
    if any(part is None for part in polygons):
        _add(findings, "broken_mask", split, image, f"{where}: no pairs of finite numbers", boxes=boxes)
        return None
    whole = [part for part in polygons if part is not None and len(part) >= 3]
    if len(whole) < len(polygons):
        _add(findings, "short_polygon", split, image, where, boxes=boxes)
    if not whole:
        return None

    corners = np.concatenate(whole)
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    if max(-left, -top, right - image.width, bottom - image.height) > SLACK:
        outlines = tuple(tuple(part.ravel().tolist()) for part in whole)
        detail = f"{where}: up to {right:g}, {bottom:g} from {left:g}, {top:g}"
        _add(findings, "polygon_outside", split, image, detail, boxes=boxes, outlines=outlines)
    return left, top, right - left, bottom - top


def _corners(part: Any) -> np.ndarray | None:
    """The corners of a polygon, (corners, 2); None where it is none."""
    try:
        corners = np.array(part, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    is_list = corners.ndim == 1 and not len(corners) % 2 and np.isfinite(corners).all()
    return corners.reshape(-1, 2) if is_list else None


def _clip(box: Box, image: AnnotatedImage) -> Box:
    """What of a box lies within its image."""
    left, top = max(0.0, box[0]), max(0.0, box[1])
    right, bottom = min(float(image.width), box[0] + box[2]), min(float(image.height), box[1] + box[3])
    return left, top, max(0.0, right - left), max(0.0, bottom - top)


def _overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes; 1 where neither has an area."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    union = first[2] * first[3] + second[2] * second[3] - shared
    return shared / union if union > 0 else 1.0


# ---- words


def _add(findings: Findings, check: str, split: str, image: AnnotatedImage, detail: str, **drawn: Any) -> None:
    findings.add(check, split, image.path, detail, is_drawn=True, **drawn)


def _size(box: Box) -> str:
    return f"{box[2]:g}×{box[3]:g} pixels"


def _edges(box: Box) -> str:
    """Left, top, right and bottom edge."""
    return f"{box[0]:g}, {box[1]:g} to {box[0] + box[2]:g}, {box[1] + box[3]:g}"
