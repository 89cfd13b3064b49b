"""How two segmentations differ in the images that both were evaluated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from swinv2_tasks.commands.compare.differences import INTERVALS, MOST_EXAMPLES, class_table, number_of
from swinv2_tasks.commands.report.blocks import Block, Example, Examples, Numbers, Section
from swinv2_tasks.commands.report.detected import read_file
from swinv2_tasks.commands.report.pictures import (
    Drawing,
    describe_unreadable,
    draw_files,
    embedded,
    gray_picture,
    reader_of,
)
from swinv2_tasks.commands.report.run import Run, Split, split_title
from swinv2_tasks.commands.report.segmentation import SCORES, SIDE, read_images
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.bootstrap import mean_difference, ratio_differences
from swinv2_tasks.pages import reduce
from swinv2_tasks.text import printable


class Segmented(NamedTuple):
    """What a run has segmented."""

    classes: Sequence[Mapping[str, Any]]
    """What val_classes.json says of each."""
    files: Sequence[str]
    """The images where anything is labeled."""
    mious: np.ndarray
    """Of each, (n,)."""
    pixels: np.ndarray
    """Of each, (n, 3, classes): labeled and predicted so, labeled, predicted."""


def difference_sections(first: Run, second: Run, split: Split) -> list[Section]:
    """What a second run segments otherwise than a first one.

    Raises:
        UserError: a file of theirs is there and cannot be read.
    """
    title = f"{split_title(split)} images"
    before, after = read_segmented(first, split), read_segmented(second, split)
    if before is None or after is None:
        return [Section(title, [], "What they segmented in each image is not written: validate both again.")]
    if [row["id"] for row in before.classes] != [row["id"] for row in after.classes]:
        return [Section(title, [], "Their classes differ, so that no images are compared.")]
    positions = {file: k for k, file in enumerate(after.files)}
    common = [(k, positions[file]) for k, file in enumerate(before.files) if file in positions]
    total = max(len(before.files), len(after.files))
    note = f"{len(common):,} images that both were evaluated on" + ("." if len(common) == total else f", of {total:,}.")
    if not common:
        return [Section(title, [], note)]

    own, others = [k for k, _ in common], [k for _, k in common]
    mious = (before.mious[own], after.mious[others])
    pixels = (before.pixels[own].astype(np.float64), after.pixels[others].astype(np.float64))
    ratios = [(hits, labeled + predicted - hits) for hits, labeled, predicted in map(_by_count, pixels)]
    differences = ratio_differences(ratios[0], ratios[1])
    ious = [_ratio(hits.sum(0), unions.sum(0)) for hits, unions in ratios]
    names = [row["name"] for row in before.classes]
    sizes = [int(number) for number in pixels[0][:, 1].sum(0)]
    table = class_table(names, ious[0], ious[1], differences, "IoU", sizes, "pixels")
    mean = mean_difference(mious[0], mious[1])
    numbers = Numbers("", [number_of("mIoU of an image, on average", mean)], f"Second minus first. {INTERVALS}")
    files = [before.files[k] for k in own]
    return [Section(title, [numbers, table], note), *_examples(first, files, mious[0], mious[1])]


def _by_count(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return pixels[:, 0], pixels[:, 1], pixels[:, 2]


def _ratio(numerators: np.ndarray, denominators: np.ndarray) -> list[float | None]:
    pairs = zip(numerators.tolist(), denominators.tolist(), strict=True)
    return [numerator / denominator if denominator else None for numerator, denominator in pairs]


def read_segmented(run: Run, split: Split) -> Segmented | None:
    """What a run has segmented; None where it has not written that of each image.

    Raises:
        UserError: a file is there and cannot be read.
    """
    scores = read_file(run, f"{split}_classes.json", SCORES, split)
    images = read_images(run, split, every=True)
    path = run.folder / f"{split}_image_pixels.npy"
    if scores is None or not images or not path.is_file():
        return None
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)  # so that it costs no more than it has
        if pixels.shape != (len(images), 3, len(scores["classes"])) or pixels.dtype != np.uint32:
            raise ValueError("another shape")
    except (OSError, ValueError) as error:
        raise UserError(f"{printable(path)} is not of this evaluation's images. Validate again.") from error
    is_labeled = [k for k, image in enumerate(images) if not np.isnan(image[1])]
    files = [images[k][0] for k in is_labeled]
    mious = np.array([images[k][1] for k in is_labeled])
    return Segmented(scores["classes"], files, mious, np.asarray(pixels)[is_labeled])


def _examples(run: Run, files: Sequence[str], before: np.ndarray, after: np.ndarray) -> list[Section]:
    """The images whose mIoU differs most, each way."""
    gain = after - before
    better = [int(k) for k in np.argsort(-gain, kind="stable")[:MOST_EXAMPLES] if gain[k] > 0]
    worse = [int(k) for k in np.argsort(gain, kind="stable")[:MOST_EXAMPLES] if gain[k] < 0]
    chosen = [*better, *worse]
    drawn = draw_files(reader_of(run), [Drawing(files[k], lambda image: [reduce(image, SIDE)]) for k in chosen])
    pictures = dict(zip(chosen, drawn, strict=True))

    def show(k: int) -> Example:
        image = (pictures[k] or [gray_picture()])[0]
        title = PurePath(files[k]).name
        lines = [f"mIoU {before[k]:.3f} → {after[k]:.3f}"]
        return Example([embedded(image, title)], title, lines, "right" if gain[k] > 0 else "wrong")

    titles = ("Better in the second run", "Worse in it")
    blocks: list[Block] = [
        Examples(title, [show(k) for k in own]) for title, own in zip(titles, (better, worse), strict=True) if own
    ]
    note = describe_unreadable(sum(images is None for images in drawn))
    return [Section("images that differ most", blocks, note)] if blocks else []
