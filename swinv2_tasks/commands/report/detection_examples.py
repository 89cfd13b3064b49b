"""Where detections are wrong: the worst images, objects that nothing hits, and false alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_masks

from swinv2_tasks.callbacks.detection import bright_color, draw_objects
from swinv2_tasks.commands.report.blocks import Example, Examples, Picture, Section
from swinv2_tasks.commands.report.detected import Detected
from swinv2_tasks.commands.report.pictures import (
    SIDE,
    Drawing,
    describe_unreadable,
    draw_files,
    embedded,
    gray_picture,
    reader_of,
)
from swinv2_tasks.commands.report.run import Run
from swinv2_tasks.evaluation.detection_errors import WRONG, overlaps
from swinv2_tasks.pages import reduce
from swinv2_tasks.progress import count_words
from swinv2_tasks.text import shorten

WORST = 12
"""Images with the most errors that are shown."""

CROPS = 12
"""Objects that nothing hits, and false alarms, that are shown of each."""

IMAGE_SIDE = 480
"""Pixels of the longer side of a whole image."""

IMAGE_BYTES = 70_000


def examples(run: Run, detected: Detected) -> Section:
    """The section of images; those that cannot be read any more are gray."""
    threshold = detected.curve().best_threshold or 0.0
    worst = _worst_images(detected, threshold)
    missed = _missed_objects(detected)
    alarms = _false_alarms(detected)

    drawings = [draw_image(detected, index, threshold) for index in worst]
    drawings += [_crop(detected, detected.annotations[k], detected.truth.images[k]) for k in missed]
    drawings += [_crop(detected, detected.results[k], detected.detections.images[k]) for k in alarms]
    drawn = draw_files(reader_of(run), drawings)
    pictures = [images or [gray_picture()] * drawing.number for images, drawing in zip(drawn, drawings, strict=True)]

    first, second = len(worst), len(worst) + len(missed)
    blocks = [
        _show_worst(detected, worst, pictures[:first], threshold),
        _show_missed(detected, missed, pictures[first:second]),
        _show_alarms(detected, alarms, pictures[second:]),
    ]
    return Section(
        "Where detections are wrong",
        [block for block in blocks if block.examples],
        describe_unreadable(sum(images is None for images in drawn)),
    )


# ---- which


def _errors_of(detected: Detected, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """How many objects are missed in each image, and how many detections are wrong, from a score on."""
    images, truth = len(detected.images), detected.truth
    is_hit = detected.matches.hit_scores >= threshold  # never NaN
    missed = np.bincount(truth.images[~is_hit & ~truth.crowds], minlength=images)
    is_wrong = (detected.matches.outcomes == WRONG) & (detected.detections.scores >= threshold)
    return missed, np.bincount(detected.detections.images[is_wrong], minlength=images)


def _worst_images(detected: Detected, threshold: float) -> list[int]:
    """The images with the most errors, the worst first."""
    errors = np.add(*_errors_of(detected, threshold))
    return [int(index) for index in np.argsort(-errors, kind="stable")[:WORST] if errors[index]]


def _missed_objects(detected: Detected) -> list[int]:
    """The largest objects that no detection of their class hits, whatever its score."""
    truth = detected.truth
    areas = truth.boxes[:, 2] * truth.boxes[:, 3]
    missed = np.flatnonzero(np.isnan(detected.matches.hit_scores) & ~truth.crowds)
    return missed[np.argsort(-areas[missed], kind="stable")][:CROPS].tolist()


def _false_alarms(detected: Detected) -> list[int]:
    """The detections that are wrong, the highest-scoring ones."""
    wrong = np.flatnonzero(detected.matches.outcomes == WRONG)
    return wrong[np.argsort(-detected.detections.scores[wrong], kind="stable")][:CROPS].tolist()


def _reason(detected: Detected, index: int) -> str:
    """Why a detection is wrong: what it overlaps most."""
    detections, truth = detected.detections, detected.truth
    others = np.flatnonzero((truth.images == detections.images[index]) & ~truth.crowds)
    ious = overlaps(detections.boxes[index][None], truth.boxes[others], truth.crowds[others])[0]
    same = truth.labels[others] == detections.labels[index]
    if len(others) and (ious * same).max() >= 0.5:
        return "an object that another detection hits better"
    if len(others) and ious.max() >= 0.5:
        return f"it is {_name(detected, truth.labels[others[ious.argmax()]])}"
    if len(others) and ious.max() >= 0.1:
        best = others[ious.argmax()]
        return f"it overlaps {_name(detected, truth.labels[best])} by an IoU of {ious.max():.2f}"
    return "there is no object"


def _name(detected: Detected, label: Any) -> str:
    return shorten(detected.names[int(label)])


# ---- drawn


def draw_image(detected: Detected, index: int, threshold: float) -> Drawing:
    """An image with its objects, and with its detections from a score on."""
    objects = [detected.annotations[k] for k in np.flatnonzero(detected.truth.images == index).tolist()]
    is_shown = (detected.detections.images == index) & (detected.detections.scores >= threshold)
    results = sorted((detected.results[k] for k in np.flatnonzero(is_shown).tolist()), key=lambda entry: entry["score"])

    def draw_both(image: Image.Image) -> list[Image.Image]:
        small = reduce(image, IMAGE_SIDE)
        return [_draw(small, image.size, entries, detected) for entries in (objects, results)]

    return Drawing(detected.images[index]["file_name"], draw_both, 2)


def _draw(
    small: Image.Image, size: tuple[int, int], entries: Sequence[Mapping[str, Any]], detected: Detected
) -> Image.Image:
    """A reduced image with objects or detections, which are stated in pixels of a size (width, height)."""
    colors = {class_id: bright_color(k) for k, class_id in enumerate(detected.ids)}
    names = dict(zip(detected.ids, detected.names, strict=True))
    across, down = small.width / size[0], small.height / size[1]
    masks = (
        (_mask(entry["segmentation"], small.size), colors[entry["category_id"]])
        for entry in entries
        if isinstance(entry.get("segmentation"), Mapping)
    )
    boxes = []
    for entry in entries:
        x, y, width, height = entry["bbox"]
        score = f" {entry['score']:.0%}" if "score" in entry else " (crowd)" if entry.get("iscrowd") else ""
        text = shorten(names[entry["category_id"]], 24) + score
        boxes.append(((across * x, down * y, across * width, down * height), text, colors[entry["category_id"]]))
    return draw_objects(small, masks, boxes)


def _mask(code: Any, size: tuple[int, int]) -> np.ndarray:
    """A mask of run lengths at a size (width, height)."""
    mask = Image.fromarray(coco_masks.decode(code))
    return np.asarray(mask if mask.size == size else mask.resize(size, Image.Resampling.NEAREST))


def _crop(detected: Detected, entry: Mapping[str, Any], index: Any) -> Drawing:
    """A box with what surrounds it."""

    def draw_crop(image: Image.Image) -> list[Image.Image]:
        x, y, width, height = entry["bbox"]
        margin = max(0.35 * max(width, height), 8)
        left, top = max(0, round(x - margin)), max(0, round(y - margin))
        right = max(left + 1, min(image.width, round(x + width + margin)))
        bottom = max(top + 1, min(image.height, round(y + height + margin)))
        part = image.crop((left, top, right, bottom))
        small = reduce(part, SIDE)
        scale = small.width / part.width
        box = (scale * (x - left), scale * (y - top), scale * width, scale * height)
        color = bright_color(detected.ids.index(entry["category_id"]))
        return [reduce(draw_objects(small, (), [(box, "", color)]), SIDE)]

    return Drawing(detected.images[int(index)]["file_name"], draw_crop)


# ---- shown


def file_title(detected: Detected, index: Any) -> str:
    """The name of an image's file."""
    return PurePath(detected.images[int(index)]["file_name"]).name


def _show_worst(
    detected: Detected, worst: Sequence[int], pictures: Sequence[Sequence[Image.Image]], threshold: float
) -> Examples:
    missed, wrong = _errors_of(detected, threshold)
    shown = []
    for index, images in zip(worst, pictures, strict=True):
        numbers = [count_words(int(missed[index]), "missed object"), count_words(int(wrong[index]), "false alarm")]
        texts = ("annotated objects", "detections")
        both: list[Picture] = [
            embedded(image, f"{text} in {file_title(detected, index)}", IMAGE_BYTES)
            for image, text in zip(images, texts, strict=True)
        ]
        shown.append(Example(both, file_title(detected, index), [", ".join(numbers)]))
    note = f"Most missed objects and false alarms from a score of {threshold:.3f} on; left annotated, right detected."
    return Examples("Worst images", shown, note)


def _show_missed(detected: Detected, missed: Sequence[int], pictures: Sequence[Sequence[Image.Image]]) -> Examples:
    shown = []
    for k, (image,) in zip(missed, pictures, strict=True):
        name, title = _name(detected, detected.truth.labels[k]), file_title(detected, detected.truth.images[k])
        width, height = detected.truth.boxes[k, 2:]
        shown.append(
            Example([embedded(image, f"{name} in {title}")], title, [name, f"{width:.0f}×{height:.0f} pixels"])
        )
    note = "Objects that no detection of their class overlaps by an IoU of .50, whatever its score; the largest."
    return Examples("Missed objects", shown, note)


def _show_alarms(detected: Detected, alarms: Sequence[int], pictures: Sequence[Sequence[Image.Image]]) -> Examples:
    shown = []
    for k, (image,) in zip(alarms, pictures, strict=True):
        name, title = (
            _name(detected, detected.detections.labels[k]),
            file_title(detected, detected.detections.images[k]),
        )
        lines = [f"{name} {detected.detections.scores[k]:.0%}", _reason(detected, k)]
        shown.append(Example([embedded(image, f"{name} in {title}")], title, lines))
    return Examples("False alarms", shown, "Detections that hit no object of their class; the highest-scoring.")
