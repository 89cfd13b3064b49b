"""Samples of a batch as the model gets them: denormalized, with their labels drawn.

What each sample is is told from the keys of its batch, which are those of `batches.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from swinv2_tasks.batches import IGNORED
from swinv2_tasks.callbacks.detection import bright_color, draw_objects
from swinv2_tasks.callbacks.segmentation import draw_overlay
from swinv2_tasks.callbacks.simmim import hide_masked
from swinv2_tasks.datamodules.scene_classes import MOST_CLASSES, colors
from swinv2_tasks.datamodules.transforms.classification import denormalize
from swinv2_tasks.text import shorten

SIDE = 512
"""Pixels of the longer side of an image; larger ones are reduced."""

MOST_FRAMES = 8
"""Frames that are shown of a clip, spread evenly over it."""

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

    image: Image.Image
    lines: list[str]
    """What stands below it."""


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
        return [
            SamplePicture(draw_scene(picture(image), _class_indices(mask), names), [])
            for image, mask in zip(images, batch["mask"], strict=False)
        ]
    labels = batch.get("label", [None] * most)
    return [
        SamplePicture(reduce(picture(image)), name_classes(label, names))
        for image, label in zip(images, labels, strict=False)
    ]


def to_picture(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """A normalized image (C, H, W) of the CPU: the first three channels as RGB; of fewer the first one, as gray."""
    values = denormalize(image, mean, std).permute(1, 2, 0).numpy()
    if values.shape[2] < 3:
        values = values[:, :, :1].repeat(3, axis=2)
    return Image.fromarray(np.ascontiguousarray(values[:, :, :3]))


def reduce(image: Image.Image, side: int = SIDE) -> Image.Image:
    """An image whose longer side has at most so many pixels; a smaller one unchanged."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


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
    """An image with its boxes and masks."""
    labels = target["labels"].tolist()
    crowds = target["iscrowd"].tolist() if "iscrowd" in target else [0] * len(labels)
    masks = (
        (mask.cpu().numpy(), bright_color(label)) for mask, label in zip(target.get("masks", ()), labels, strict=False)
    )
    boxes = [
        (
            (left, top, right - left, bottom - top),
            _name(label, names) + (" (crowd)" if is_crowd else ""),
            bright_color(label),
        )
        for (left, top, right, bottom), label, is_crowd in zip(target["boxes"].tolist(), labels, crowds, strict=True)
    ]
    number = len(boxes)
    line = f"{number} object{'' if number == 1 else 's'}"
    return SamplePicture(reduce(draw_objects(image, masks, boxes)), [line])


def _draw_frames(clip: Tensor, picture: Callable[[Tensor], Image.Image]) -> Image.Image:
    """Frames of a clip (C, T, H, W), from left to right."""
    number = clip.shape[1]
    shown = min(number, MOST_FRAMES)
    indices = [int((k + 0.5) * number / shown) for k in range(shown)]
    return side_by_side([reduce(picture(clip[:, index])) for index in indices])


def _class_indices(mask: Tensor) -> np.ndarray:
    """A mask int64 (H, W) as uint8; 255 for what is no class."""
    indices = mask.detach().cpu().numpy()
    return np.where((indices >= 0) & (indices < MOST_CLASSES), indices, IGNORED).astype(np.uint8)


def draw_scene(image: Image.Image, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """An image, and the same under the colors of its classes, with a legend.

    Args:
        image: RGB of H × W pixels.
        labels: uint8 (H, W), class indices, and 255 where there is none.
        names: of the classes.
    """
    small = reduce(image)
    if small.size != image.size:
        labels = np.asarray(Image.fromarray(labels).resize(small.size, Image.Resampling.NEAREST))
    highest = int(labels.max(where=labels != IGNORED, initial=0))
    known = [_name(index, names) for index in range(max(len(names), highest + 1))]
    overlay = draw_overlay(small, labels + np.uint8(1), known, colors(len(known)))  # which wraps 255 to 0, no class
    return side_by_side([small, overlay])


def _draw_masked(image: Tensor, mask: Tensor, picture: Callable[[Tensor], Image.Image]) -> SamplePicture:
    """An image, and the same with gray patches where it is masked."""
    share = float(mask.float().mean())
    pictures = [reduce(picture(image)), reduce(picture(hide_masked(image, mask)))]
    return SamplePicture(side_by_side(pictures), [f"{share:.0%} masked"])


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
    font = ImageFont.load_default(FONT_SIZE)
    width = max(LEAST_WIDTH, *(picture.image.width for picture in pictures)) + GAP
    lines = max(len(picture.lines) for picture in pictures)
    height = max(picture.image.height for picture in pictures) + LINE * lines + GAP
    columns = max(1, min(math.ceil(math.sqrt(len(pictures))), SHEET_WIDTH // width))

    sheet = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, picture in enumerate(pictures):
        left, top = number % columns * width, number // columns * height
        sheet.paste(picture.image, (left, top))
        for row, line in enumerate(picture.lines):
            position = (left, top + picture.image.height + row * LINE)
            draw.text(position, fit_text(line, font, width - GAP), fill="black", font=font)
    return sheet


def fit_text(text: str, font: Any, width: int) -> str:
    """A line that is no wider than so many pixels, in the middle of which characters are left out."""
    if font.getlength(text) <= width:
        return text
    kept = len(text) - 1
    while kept > 2 and font.getlength(_cut(text, kept)) > width:
        kept -= 1
    return _cut(text, kept)


def _cut(text: str, kept: int) -> str:
    end = kept // 2
    return f"{text[: kept - end]}…{text[len(text) - end :]}"
