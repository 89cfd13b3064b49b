"""How two detectors differ in the images that both were evaluated on."""

from __future__ import annotations

import numpy as np

from swinv2_tasks.commands.compare.differences import INTERVALS, MOST_EXAMPLES, class_table, number_of
from swinv2_tasks.commands.report.blocks import Block, Example, Examples, Numbers, Section
from swinv2_tasks.commands.report.detected import Detected, read_detected
from swinv2_tasks.commands.report.detection_examples import IMAGE_BYTES, draw_image, file_title
from swinv2_tasks.commands.report.pictures import describe_unreadable, draw_files, embedded, gray_picture, reader_of
from swinv2_tasks.commands.report.run import Run, Split, split_title
from swinv2_tasks.evaluation.bootstrap import (
    RankedDetections,
    average_precisions,
    mean_difference,
    precision_difference,
)
from swinv2_tasks.evaluation.detection_errors import IGNORED, RIGHT

ORDER = "Annotated, first run, second run."
"""What the pictures of an image show, from left to right."""


def difference_sections(first: Run, second: Run, split: Split) -> list[Section]:
    """What a second run detects otherwise than a first one.

    Raises:
        UserError: a file of theirs is there and cannot be read.
    """
    title = f"{split_title(split)} images"
    before, after = read_detected(first, split), read_detected(second, split)
    if before is None or after is None:
        return [Section(title, [], "What they detected in each image is not written: validate both again.")]
    files = [[image["file_name"] for image in detected.images] for detected in (before, after)]
    if files[0] != files[1] or before.ids != after.ids or len(before.truth) != len(after.truth):
        return [Section(title, [], "They were evaluated on other images, objects or classes: none are compared.")]

    objects = [_objects_of(before, k) for k in range(len(before.ids))]
    ranked = [[_ranked(detected, k) for k in range(len(before.ids))] for detected in (before, after)]
    differences = [
        precision_difference(of_first, of_second, own)
        for of_first, of_second, own in zip(ranked[0], ranked[1], objects, strict=True)
    ]
    once = np.ones((1, len(before.images)))
    precisions = [
        [float(average_precisions(of_class, own, once)[0]) if own.sum() else None for of_class, own in pairs]
        for pairs in (list(zip(of_run, objects, strict=True)) for of_run in ranked)
    ]
    sizes = [int(own.sum()) for own in objects]
    table = class_table(before.names, precisions[0], precisions[1], differences, "box AP at IoU .50", sizes, "objects")
    shares = [_shares_right(detected) for detected in (before, after)]
    right = mean_difference(shares[0], shares[1])
    note = f"{len(before.images):,} images that both were evaluated on."
    numbers = Numbers("", [number_of("F1 of an image, on average", right)], f"Second minus first. {INTERVALS}")
    return [Section(title, [numbers, table], note), *_examples(first, before, after, shares)]


def _objects_of(detected: Detected, label: int) -> np.ndarray:
    """How many objects of a class each image has, without crowds."""
    truth = detected.truth
    return np.bincount(truth.images[(truth.labels == label) & ~truth.crowds], minlength=len(detected.images))


def _ranked(detected: Detected, label: int) -> RankedDetections:
    own = (detected.detections.labels == label) & (detected.matches.outcomes != IGNORED)
    outcomes = detected.matches.outcomes[own]
    return RankedDetections(detected.detections.images[own], detected.detections.scores[own], outcomes == RIGHT)


def _shares_right(detected: Detected) -> np.ndarray:
    """F1 of each image, from the score on at which the run's own F1 is highest; 1 where there is nothing at all."""
    threshold, images = detected.curve().best_threshold or 0.0, len(detected.images)
    counted = (detected.detections.scores >= threshold) & (detected.matches.outcomes != IGNORED)
    images_of = detected.detections.images[counted]
    right = np.bincount(images_of[detected.matches.outcomes[counted] == RIGHT], minlength=images)
    total = np.bincount(images_of, minlength=images)
    objects = np.bincount(detected.truth.images[~detected.truth.crowds], minlength=images)
    return np.where(total + objects > 0, 2 * right / np.maximum(1, total + objects), 1.0)


def _examples(run: Run, before: Detected, after: Detected, shares: list[np.ndarray]) -> list[Section]:
    """Images in which one run is right and the other wrong, those of the largest difference first."""
    gain = shares[1] - shares[0]
    better = [int(k) for k in np.argsort(-gain, kind="stable")[: MOST_EXAMPLES // 2] if gain[k] > 0]
    worse = [int(k) for k in np.argsort(gain, kind="stable")[: MOST_EXAMPLES // 2] if gain[k] < 0]
    thresholds = [detected.curve().best_threshold or 0.0 for detected in (before, after)]
    drawings = [
        draw_image(detected, k, threshold)
        for k in [*better, *worse]
        for detected, threshold in zip((before, after), thresholds, strict=True)
    ]
    drawn = draw_files(reader_of(run), drawings)
    pictures = [images or [gray_picture()] * 2 for images in drawn]

    def show(position: int, k: int) -> Example:
        (truth, first), (_, second) = pictures[2 * position], pictures[2 * position + 1]
        title = file_title(before, k)
        texts = ("annotated objects", "first run", "second run")
        own = [
            embedded(image, f"{text} in {title}", IMAGE_BYTES // 2)
            for image, text in zip((truth, first, second), texts, strict=True)
        ]
        return Example(own, title, [f"F1 {shares[0][k]:.3f} → {shares[1][k]:.3f}"], "right" if gain[k] > 0 else "wrong")

    blocks: list[Block] = [
        Examples(title, [show(start + offset, k) for offset, k in enumerate(chosen)], ORDER)
        for title, start, chosen in (("Better in the second run", 0, better), ("Worse in it", len(better), worse))
        if chosen
    ]
    note = describe_unreadable(sum(images is None for images in drawn) // 2)
    return [Section("images that one gets right", blocks, note)] if blocks else []
