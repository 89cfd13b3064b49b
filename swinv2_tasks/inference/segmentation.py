"""Segmenting an image of any size: as a whole or by a sliding window, at several scales, flipped, in bounded memory.

Multi-scale and flipped inference: https://arxiv.org/abs/2111.09883, section 4 (ADE20K).

Logits stay at the network's own stride, a sixteenth of the pixels or less. Only the result is enlarged, some rows at a
time. Overlapping windows average logits; scales and horizontal flips average probabilities.

Shapes: K classes, h, w height and width of logits in cells, H, W height and width of an image in pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import shorten

Network = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) → logits (B, K, h, w), h = ⌈H / stride⌉ and w likewise."""

Rescaled = Callable[[float], Tensor]
"""A factor → the image (1, 3, h, w) at that multiple of its evaluation size, made of the pixels of its file."""

MOST_SCALE = 16
"""Multiple of the evaluation size that an image is resized to, at most."""

MOST_VIEWS = 64
"""Scales that are averaged, at most."""

MOST_CROP = 8192
"""Pixels of a side of the sliding window, at most."""

STRIP = 2**24
"""Numbers that are enlarged at a time: 64 MiB of float32."""


@dataclass(frozen=True)
class Inference:
    """How an image is segmented.

    Args:
        mode: ``whole`` gives the network the image in one piece, ``slide`` one window after the other.
        crop_size: side of the sliding window in pixels, or height and width; multiples of the network's stride.
        stride: step from one window to the next in pixels, at most the window's side.
        blend: what a window's logits weigh where windows overlap: the same everywhere (``uniform``), or most in the
            middle (``gaussian``, whose deviation is an eighth of the window's side).
        sliding_window_batch_size: windows that go through the network at a time.
        scales: multiples of the evaluation size that the image is resized to; probabilities are averaged.
        flip: averages with the horizontally flipped image.

    Raises:
        UserError: an argument is out of its range.
    """

    mode: Literal["whole", "slide"] = "whole"
    crop_size: int | tuple[int, int] = 512
    stride: int | tuple[int, int] = 340
    blend: Literal["uniform", "gaussian"] = "uniform"
    sliding_window_batch_size: int = 4
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("mode", ("whole", "slide")), ("blend", ("uniform", "gaussian"))):
            if getattr(self, name) not in choices:
                raise UserError(f"inference.{name} must be {' or '.join(choices)}, not {getattr(self, name)!r}")
        if not 0 < max(pair(self.crop_size)) <= MOST_CROP:
            raise UserError(f"inference.crop_size is {self.crop_size}; expected sides of 1 to {MOST_CROP} pixels")
        if not all(0 < step <= side for step, side in zip(pair(self.stride), pair(self.crop_size), strict=True)):
            raise UserError(
                f"inference.stride is {self.stride}, inference.crop_size {self.crop_size}: the stride must be above 0 "
                "and at most the crop's size, or pixels between two windows would be left out"
            )
        if self.sliding_window_batch_size < 1:
            raise UserError(
                f"inference.sliding_window_batch_size must be at least 1, not {self.sliding_window_batch_size}"
            )
        if not self.scales or min(self.scales) <= 0 or max(self.scales) > MOST_SCALE or len(self.scales) > MOST_VIEWS:
            raise UserError(
                f"inference.scales must be up to {MOST_VIEWS} factors above 0 and at most {MOST_SCALE}, not "
                f"{shorten([*self.scales])}"
            )

    def rescale(self, factor: float, multiple: int) -> Inference:
        """The same for images whose sides are larger by a factor: a sliding window and its step grow along.

        Args:
            factor: by which images grow.
            multiple: what the window's sides stay multiples of: the network's stride in pixels.
        """
        if self.mode == "whole":
            return self
        crop_size = [max(1, round(side * factor / multiple)) * multiple for side in pair(self.crop_size)]
        steps = zip(pair(self.stride), pair(self.crop_size), crop_size, strict=True)
        stride = [max(1, round(step * new / old)) for step, old, new in steps]
        return dataclasses.replace(self, crop_size=(crop_size[0], crop_size[1]), stride=(stride[0], stride[1]))


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a side or of both."""
    height, width = (value, value) if isinstance(value, int) else value
    return height, width


@torch.no_grad()
def segment(
    network: Network,
    image: Tensor,
    size: Sequence[int],
    inference: Inference,
    stride: int,
    rescaled: Rescaled | None = None,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    """The highest-scoring class of each pixel, without gradients.

    Args:
        network: images to logits.
        image: (1, 3, h, w), normalized, on the network's device.
        size: height H and width W of the result, which may be another size than the image's.
        inference: how.
        stride: the network's stride in pixels.
        rescaled: gives the image at other scales; None: it is itself resized to them, once more than its file was.
        dtype: of the result.

    Returns:
        Class indices (H, W), on the image's device.
    """
    views = list(view_logits(network, image, inference, stride, rescaled))
    labels = torch.empty(tuple(size), dtype=dtype, device=image.device)
    for start, strip in _enlarge_in_strips(views, size, image.device):
        labels[start : start + strip.shape[1]] = strip.argmax(0)
    return labels


@torch.no_grad()
def segment_probabilities(
    network: Network,
    image: Tensor,
    size: Sequence[int],
    inference: Inference,
    stride: int,
    rescaled: Rescaled | None = None,
) -> Tensor:
    """The probability of each class at each pixel, (K, H, W) float32, on the CPU; otherwise as ``segment``."""
    views = list(view_logits(network, image, inference, stride, rescaled))
    strips = []
    for _, strip in _enlarge_in_strips(views, size, image.device):
        probabilities = strip.softmax(0) if len(views) == 1 else strip
        strips.append(probabilities.cpu())
    return torch.cat(strips, 1)


def view_logits(
    network: Network, image: Tensor, inference: Inference, stride: int, rescaled: Rescaled | None = None
) -> Iterator[Tensor]:
    """Logits (K, h, w) of the image at each scale, and of the flipped image, flipped back.

    With a sliding window they lie on the CPU, else where the network is.
    """
    for scale in inference.scales:
        resized = image
        if scale != 1 and rescaled is not None:
            resized = rescaled(scale).to(image)
        elif scale != 1:
            sides = [max(1, round(side * scale)) for side in image.shape[2:]]
            resized = F.interpolate(image, sides, mode="bilinear", align_corners=False, antialias=True)
        for is_flipped in (False, True)[: 1 + inference.flip]:
            x = resized.flip(3) if is_flipped else resized
            logits = network(x)[0].float() if inference.mode == "whole" else _slide(network, x, inference, stride)
            yield logits.flip(2) if is_flipped else logits


def _slide(network: Network, image: Tensor, inference: Inference, stride: int) -> Tensor:
    """The weighted mean (K, h, w) of the logits of all windows that meet in a cell, on the CPU."""
    crop_size = pair(inference.crop_size)
    if any(side % stride for side in crop_size):
        raise UserError(
            f"inference.crop_size is {inference.crop_size}; expected multiples of {stride}, the network's stride"
        )

    cells = [-(-side // stride) for side in image.shape[2:]]
    window = [min(side // stride, number) for side, number in zip(crop_size, cells, strict=True)]
    steps = [step / stride for step in pair(inference.stride)]
    rows, columns = (_window_starts(*axis) for axis in zip(cells, window, steps, strict=True))
    corners = [(top, left) for top in rows for left in columns]

    kernel = _kernel(window, inference.blend)
    total: Tensor | None = None
    weights = torch.zeros(cells)
    batch_size = inference.sliding_window_batch_size
    for first in range(0, len(corners), batch_size):
        batch_corners = corners[first : first + batch_size]
        crops = torch.cat([_crop(image, corner, window, stride) for corner in batch_corners])
        for (top, left), logits in zip(batch_corners, network(crops).float().cpu(), strict=True):
            if total is None:
                total = torch.zeros(len(logits), *cells)

            inside = (slice(top, top + window[0]), slice(left, left + window[1]))
            total[:, *inside] += logits * kernel
            weights[inside] += kernel

    assert total is not None
    return total.div_(weights)


def _window_starts(cells: int, window: int, step: float) -> list[int]:
    """The first cell of each window along an axis; the last window ends with the axis."""
    count = math.ceil((cells - window) / step)
    return sorted({*(int(k * step) for k in range(count)), cells - window})


def _crop(image: Tensor, corner: tuple[int, int], window: Sequence[int], stride: int) -> Tensor:
    """A window of whole cells, padded with zeros where the image ends within the last one."""
    top, left, height, width = (stride * number for number in (*corner, *window))
    crop = image[:, :, top : top + height, left : left + width]
    return F.pad(crop, (0, width - crop.shape[3], 0, height - crop.shape[2]))


def _kernel(window: Sequence[int], blend: str) -> Tensor:
    """The weight of each cell of a window (h, w), in (0, 1]."""
    if blend == "uniform":
        return torch.ones(*window)
    axes = [torch.linspace(-1 + 1 / side, 1 - 1 / side, side).mul(4).square().mul(-0.5).exp() for side in window]
    return axes[0][:, None] * axes[1]


def _enlarge_in_strips(
    views: Sequence[Tensor], size: Sequence[int], device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """First row and rows (K, n, W) of the views, enlarged: logits of a single one, mean probabilities of several."""
    number = max(1, STRIP // (len(views[0]) * size[1]))
    for start in range(0, size[0], number):
        rows = torch.arange(start, min(start + number, size[0]))
        if len(views) == 1:
            yield start, _enlarge_rows(views[0], rows, size, device)
            continue
        total = _enlarge_rows(views[0], rows, size, device).softmax(0)
        for view in views[1:]:
            total += _enlarge_rows(view, rows, size, device).softmax(0)
        yield start, total.div_(len(views))


def _enlarge_rows(logits: Tensor, rows: Tensor, size: Sequence[int], device: torch.device) -> Tensor:
    """Some rows (K, n, W) of logits (K, h, w) that are interpolated bilinearly to a size (H, W)."""
    height = logits.shape[1]
    position = ((rows + 0.5) * (height / size[0]) - 0.5).clamp(0, height - 1)
    first, last = int(position[0]), min(int(position[-1]) + 1, height - 1)
    part = logits[:, first : last + 1].to(device)
    lower = (position.long() - first).to(device)
    upper = (lower + 1).clamp(max=last - first)
    share = (position - position.floor()).to(device)[:, None]
    between = torch.lerp(part[:, lower], part[:, upper], share)
    return F.interpolate(between[None], (len(rows), size[1]), mode="bilinear", align_corners=False)[0]
