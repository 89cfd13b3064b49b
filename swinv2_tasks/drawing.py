"""What all drawings share: one typeface, colors that are told apart, labels that do not lie on each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ImageFont

Color = tuple[int, int, int]

SAFE_COLORS = ("56b4e9", "e69f00", "009e73", "d55e00", "cc79a7", "f0e442", "0072b2")
"""Told apart by color-blind people too: Okabe and Ito, "Color universal design", 2008."""

MOST_COLORS = 256
"""That differ; then they begin anew."""

LEAST_TEXT, MOST_TEXT = 9, 40
"""Pixels of letters."""

LABELED_SHARE = 0.3
"""Of an image that labels take at most, before their letters are made smaller."""


@cache
def typeface(size: int) -> ImageFont.FreeTypeFont:
    """The font of all drawings, DejaVu Sans as matplotlib brings it, with the letters of most alphabets.

    Args:
        size: in pixels.
    """
    import matplotlib as mpl  # slow to import

    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def text_size(image: tuple[int, int]) -> int:
    """Pixels of letters on an image (width, height)."""
    return max(LEAST_TEXT + 2, min(MOST_TEXT, min(image) // 28))


def fit_text(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
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


# ---- colors


def distinct_colors(number: int) -> list[Color]:
    """RGB of a number of classes or objects: the first few for color-blind people too, each far from all before.

    Fewer colors are the first ones of more.
    """
    palette = _palette()
    return [palette[index % len(palette)] for index in range(number)]


@cache
def _palette() -> list[Color]:
    """The safe colors, then one by one the color that is the farthest from all before, in OKLab."""
    steps = np.linspace(0, 255, 14).round()
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    lab = _oklab(grid)
    is_clear = (lab[:, 0] > 0.4) & (lab[:, 0] < 0.93) & (np.hypot(lab[:, 1], lab[:, 2]) > 0.07)
    grid, lab = grid[is_clear], lab[is_clear]

    chosen = [np.array([*bytes.fromhex(code)], dtype=float) for code in SAFE_COLORS]
    distances = np.min([np.linalg.norm(lab - _oklab(color), axis=1) for color in chosen], axis=0)
    while len(chosen) < MOST_COLORS:
        farthest = int(distances.argmax())
        chosen.append(grid[farthest])
        distances = np.minimum(distances, np.linalg.norm(lab - lab[farthest], axis=1))
    return [(int(red), int(green), int(blue)) for red, green, blue in chosen]


def _oklab(colors: np.ndarray) -> np.ndarray:
    """RGB in [0, 255], (..., 3), in OKLab: Ottosson, "A perceptual color space for image processing", 2020."""
    shares = colors / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )


def ink_on(color: Color) -> str:
    """The color of text on a color: black or white, whichever is clearer."""
    return "white" if 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 128 else "black"


# ---- labels


def label_font(texts: Sequence[str], image: tuple[int, int]) -> ImageFont.FreeTypeFont:
    """The font of some labels on an image (width, height): smaller where they would cover much of it."""
    size = text_size(image)
    widths = [typeface(size).getlength(text) for text in texts]
    covered = sum(widths) * size * 1.2 / (image[0] * image[1])
    if covered > LABELED_SHARE:
        size = max(LEAST_TEXT, int(size * math.sqrt(LABELED_SHARE / covered)))
    return typeface(size)


def place_labels(
    boxes: Sequence[Sequence[float]], sizes: Sequence[tuple[int, int]], image: tuple[int, int]
) -> list[tuple[int, int] | None]:
    """Where labels of boxes lie, so that none lies on another one.

    Each lies above its box where there is room, else within or below it, else as near as there is room; those that come
    first choose first.

    Args:
        boxes: left, top, width and height of each, in pixels.
        sizes: width and height of each label.
        image: width and height of the image, within which they lie.

    Returns:
        Left and top of each; None where there is no room any more.
    """
    taken = np.zeros((0, 4))
    positions: list[tuple[int, int] | None] = []
    for box, (width, height) in zip(boxes, sizes, strict=True):
        candidates = _candidates(box, width, height, image)
        ends = np.add(candidates, (width, height))
        overlaps = (
            (candidates[:, None, 0] < taken[None, :, 2])
            & (ends[:, None, 0] > taken[None, :, 0])
            & (candidates[:, None, 1] < taken[None, :, 3])
            & (ends[:, None, 1] > taken[None, :, 1])
        ).any(axis=1)
        if overlaps.all():
            positions.append(None)
            continue
        x, y = (int(value) for value in candidates[int(np.argmin(overlaps))])
        positions.append((x, y))
        taken = np.vstack([taken, (x, y, x + width, y + height)])
    return positions


def _candidates(box: Sequence[float], width: int, height: int, image: tuple[int, int]) -> np.ndarray:
    """Positions of a label, the best ones first: int64 (n, 2), left and top."""
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    near = [
        (left, top - height),
        (left, top + 1),
        (left, bottom),
        (right - width, top - height),
        (right - width, bottom),
        (left, bottom - height),
    ]
    xs = np.unique([*np.arange(0, max(1, image[0] - width), max(1, width // 2)), max(0, left)])
    ys = np.arange(0, max(1, image[1] - height), height)
    grid = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    order = np.argsort(np.hypot(grid[:, 0] - left, grid[:, 1] - (top - height)), kind="stable")
    candidates = np.concatenate([np.array(near), grid[order]])
    most = (max(0, image[0] - width), max(0, image[1] - height))
    return np.floor(np.clip(candidates, 0, most)).astype(np.int64)
