"""Samples of a batch as the model gets them: denormalized, with their labels drawn.

What each sample is is told from the keys of its batch, which are those of `batches.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from swinv2_tasks.batches import IGNORED
from swinv2_tasks.callbacks.detection import draw_objects
from swinv2_tasks.callbacks.segmentation import LegendEntry, beside_legend, class_legend, color_classes
from swinv2_tasks.callbacks.simmim import hide_masked
from swinv2_tasks.datamodules.readers.channels import stretch
from swinv2_tasks.datamodules.scene_classes import MOST_CLASSES, colors
from swinv2_tasks.datamodules.transforms.classification import denormalize
from swinv2_tasks.drawing import distinct_colors, fit_text, typeface
from swinv2_tasks.pages import reduce
from swinv2_tasks.progress import count_words
from swinv2_tasks.text import shorten

SIDE = 512
"""Pixels of the longer side of an image; larger ones are reduced."""

MOST_FRAMES = 8
"""Frames that are shown of a clip or video, spread evenly over it."""

MOST_CLASSES_NAMED = 3
"""Classes that are named of an image that shows several."""

SHEET_WIDTH = 2048
"""Pixels of a row of samples, about; a single one may be wider."""

GAP = 4
"""Pixels between pictures."""

FONT_SIZE = 12
LINE = 16
LEAST_WIDTH = 120
"""Pixels of the room for a line of text below an image, at least."""


class SamplePicture(NamedTuple):
    """A sample, drawn."""

    images: list[Image.Image]
    """What stands side by side: frames, or an image and what is drawn over it."""
    lines: list[str]
    """What stands below."""
    legend: Sequence[LegendEntry] = ()
    """Of the last image: what its colors are."""

    @property
    def image(self) -> Image.Image:
        """The images in a row, with the legend."""
        if not self.legend:
            return side_by_side(self.images)
        sheet = beside_legend(self.images[-1].size, self.legend)
        sheet.paste(self.images[-1], (0, 0))
        return side_by_side([*self.images[:-1], sheet])


def draw_samples(
    batch: Any, mean: Sequence[float], std: Sequence[float], names: Sequence[str], most: int
) -> list[SamplePicture]:
    """The samples of a batch, drawn.

    Args:
        batch: of training, on any device. Images of classification, images beside the same under their label maps or
            with gray masked patches, images with boxes and masks, frames of clips side by side.
        mean: what was subtracted from each channel in [0, 1] …
        std: … and what divided the difference.
        names: of the classes, in the order of their indices; a class without a name is called by its index.
        most: how many samples are drawn at most.

    Returns:
        The first ones; none of a batch of another kind.
    """
    if not isinstance(batch, Mapping):
        return []

    def picture(image: Tensor) -> Image.Image:
        return to_picture(image.detach().cpu(), mean, std)

    if "images" in batch and "targets" in batch:
        pairs = zip(batch["images"][:most], batch["targets"], strict=False)
        return [_draw_detection(picture(image), target, names) for image, target in pairs]
    if "clip" in batch:
        labels = batch.get("label", [None] * most)
        pairs = zip(batch["clip"][:most], labels, strict=False)
        return [SamplePicture(_draw_frames(clip[0], picture), name_classes(label, names)) for clip, label in pairs]
    if "image" not in batch:
        return []
    images = batch["image"][:most]
    if "mask" in batch and batch["mask"].dtype == torch.bool:
        return [_draw_masked(image, mask, picture) for image, mask in zip(images, batch["mask"], strict=False)]
    if "mask" in batch:
        pairs = zip(images, batch["mask"], strict=False)
        return [draw_scene(picture(image), _class_indices(mask), names) for image, mask in pairs]
    labels = batch.get("label", [None] * most)
    return [
        SamplePicture([reduce(picture(image), SIDE)], name_classes(label, names))
        for image, label in zip(images, labels, strict=False)
    ]


def to_picture(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """A normalized image (C, H, W) of the CPU, in RGB.

    Of other channels than three the first three are shown, or the first one in gray, stretched: in images of 16 bits
    all may be next to black.
    """
    if len(image) == 3:
        return Image.fromarray(denormalize(image, mean, std).permute(1, 2, 0).contiguous().numpy())
    values = image.float().numpy().transpose(1, 2, 0)  # of which each channel is stretched by itself, whatever its mean
    shown = stretch(values[..., :3] if len(image) > 3 else values[..., :1])
    return Image.fromarray(np.ascontiguousarray(shown if shown.shape[2] == 3 else shown.repeat(3, axis=2)))


def name_classes(label: Any, names: Sequence[str]) -> list[str]:
    """Lines on the classes of a sample.

    Args:
        label: an index; or a row of each class's share, of which the largest are named; None: nothing is known.
        names: of the classes.
    """
    if label is None:
        return []
    label = torch.as_tensor(label).detach().cpu()
    if label.ndim == 0:
        return [_name(int(label), names)]
    shares = label.float()
    order = shares.argsort(descending=True, stable=True).tolist()
    present = [index for index in order if shares[index] >= 0.005]  # label smoothing gives each a little
    lines = [
        _name(index, names) + ("" if shares[index] == 1 else f" {float(shares[index]):.0%}")
        for index in present[:MOST_CLASSES_NAMED]
    ]
    if not lines:
        return ["no class"]
    more = len(present) - len(lines)
    return [*lines, f"and {more} more"] if more else lines


def _name(index: int, names: Sequence[str]) -> str:
    return shorten(names[index]) if 0 <= index < len(names) else f"class {index}"


def _draw_detection(image: Image.Image, target: Mapping[str, Any], names: Sequence[str]) -> SamplePicture:
    """An image with the boxes and masks of its target."""
    labels = target["labels"].tolist()
    crowds = target["iscrowd"].tolist() if "iscrowd" in target else [False] * len(labels)
    masks = (mask.cpu().numpy() for mask in target.get("masks", ()))
    return draw_target(image, target["boxes"].tolist(), labels, crowds, masks, names)


def draw_target(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    crowds: Sequence[bool],
    masks: Iterable[np.ndarray | None],
    names: Sequence[str],
) -> SamplePicture:
    """An image with boxes and masks.

    Args:
        image: RGB of H × W pixels.
        boxes: left, top, right and bottom of each object in pixels.
        labels: class index of each.
        crowds: whether each is a crowd.
        masks: uint8 (H, W), 1 inside, of each object or none; taken one by one, as each may have 10⁸ pixels.
        names: of the classes.
    """
    small = reduce(image, SIDE)  # first, or the texts on a large one would be too small to read
    across, down = small.width / image.width, small.height / image.height

    def shrink(mask: np.ndarray) -> np.ndarray:
        if small.size == image.size:
            return mask
        return np.asarray(Image.fromarray(mask).resize(small.size, Image.Resampling.NEAREST))

    palette = distinct_colors(len(labels))  # so that objects of a class are told apart
    drawn_masks = ((shrink(mask), color) for mask, color in zip(masks, palette, strict=False) if mask is not None)
    drawn_boxes = [
        (
            (across * left, down * top, across * (right - left), down * (bottom - top)),
            _name(label, names) + (" (crowd)" if is_crowd else ""),
            color,
        )
        for (left, top, right, bottom), label, is_crowd, color in zip(boxes, labels, crowds, palette, strict=True)
    ]
    lines = [count_words(len(labels), "object"), *_count_classes(labels, names)]
    return SamplePicture([reduce(draw_objects(small, drawn_masks, drawn_boxes), SIDE)], lines)


def _count_classes(labels: Sequence[int], names: Sequence[str]) -> list[str]:
    """A line on how many objects there are of each class, the most frequent first; none without objects."""
    counts = Counter(labels).most_common()
    parts = [f"{number} {_name(label, names)}" for label, number in counts[:MOST_CLASSES_NAMED]]
    more = len(counts) - len(parts)
    return [", ".join(parts) + (f", {count_words(more, 'more class', 'more classes')}" if more else "")] * bool(parts)


def _draw_frames(clip: Tensor, picture: Callable[[Tensor], Image.Image]) -> list[Image.Image]:
    """Frames of a clip (C, T, H, W), in their order."""
    return [reduce(picture(clip[:, index]), SIDE) for index in spread_frames(clip.shape[1])]


def spread_frames(number: int) -> list[int]:
    """Which frames of so many are shown, spread evenly."""
    shown = min(number, MOST_FRAMES)
    return [int((k + 0.5) * number / shown) for k in range(shown)]


def _class_indices(mask: Tensor) -> np.ndarray:
    """A mask int64 (H, W) as uint8; 255 for what is no class."""
    indices = mask.detach().cpu().numpy()
    return np.where((indices >= 0) & (indices < MOST_CLASSES), indices, IGNORED).astype(np.uint8)


def draw_scene(image: Image.Image, labels: np.ndarray, names: Sequence[str]) -> SamplePicture:
    """An image, and the same under the colors of its classes.

    Args:
        image: RGB of H × W pixels.
        labels: uint8 (h, w), class indices, and 255 where there is none; in evaluation of another size than the image.
        names: of the classes.
    """
    highest = int(labels.max(where=labels != IGNORED, initial=0))
    known = [_name(index, names) for index in range(max(len(names), highest + 1))]
    palette = colors(len(known))
    numbers = labels + np.uint8(1)  # which wraps 255 to 0, no class
    legend = class_legend(numbers, known, palette)
    unlabeled = np.count_nonzero(numbers == 0) / numbers.size
    lines = [f"{unlabeled:.1%} not labeled"] if unlabeled else []

    small = reduce(image, SIDE)
    if small.size != numbers.shape[::-1]:
        numbers = np.asarray(Image.fromarray(numbers).resize(small.size, Image.Resampling.NEAREST))
    overlay = small.copy()
    color_classes(small, numbers, palette, overlay)
    return SamplePicture([small, overlay], lines, legend)


def _draw_masked(image: Tensor, mask: Tensor, picture: Callable[[Tensor], Image.Image]) -> SamplePicture:
    """An image, and the same with gray patches where it is masked."""
    share = float(mask.float().mean())
    return SamplePicture(
        [reduce(picture(image), SIDE), reduce(picture(hide_masked(image, mask)), SIDE)], [f"{share:.0%} masked"]
    )


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Images in a row, at their tops."""
    width = sum(image.width for image in images) + GAP * (len(images) - 1)
    row = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + GAP
    return row


def arrange(pictures: Sequence[SamplePicture]) -> Image.Image:
    """Samples in rows of equal cells, each at the top left of its cell, with its lines below."""
    font = typeface(FONT_SIZE)
    images = [picture.image for picture in pictures]
    width = max(LEAST_WIDTH, *(image.width for image in images)) + GAP
    lines = max(len(picture.lines) for picture in pictures)
    height = max(image.height for image in images) + LINE * lines + GAP
    columns = max(1, min(math.ceil(math.sqrt(len(pictures))), SHEET_WIDTH // width))

    sheet = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, image) in enumerate(zip(pictures, images, strict=True)):
        left, top = number % columns * width, number // columns * height
        sheet.paste(image, (left, top))
        for row, line in enumerate(picture.lines):
            position = (left, top + image.height + row * LINE)
            draw.text(position, fit_text(line, font, width - GAP), fill="black", font=font)
    return sheet
