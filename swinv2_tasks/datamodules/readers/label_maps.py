"""Reading and writing label maps: image files whose pixels are numbers or colors that stand for classes."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from swinv2_tasks.datamodules.readers.images import (
    describe_error,
    describe_excess,
    describe_unknown,
    open_image,
    strips_of,
)
from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import open_file
from swinv2_tasks.text import printable


class DrawnLabelMap(Protocol):
    """A label map that is no file, but drawn whenever it is asked for. As text, it says where it comes from."""

    def draw(self) -> np.ndarray:
        """Values, uint8 (H, W).

        Raises:
            UserError: It cannot be drawn.
        """


LabelMap = Path | DrawnLabelMap
"""A file, or what draws a label map."""


def read_values(path: str | Path) -> np.ndarray:
    """Read a label map whose pixels are numbers.

    Args:
        path: A grayscale or palette PNG of 8 bits or fewer per pixel, or another lossless format; of a palette image
            the indices are the numbers, its colors do not matter.

    Returns:
        Values, uint8 (H, W).

    Raises:
        UserError: The file is missing or broken, lossy, or holds colors or numbers of 16 bits; the message names it.
    """
    mode, pixels = _read(path, ("L", "P", "1"))
    if pixels is None:
        raise UserError(
            f"The label map {printable(path)} holds colors or transparency (mode {mode}); expected one number per "
            "pixel, in a grayscale or palette PNG. If each color stands for a class, the setting palette says which; "
            "otherwise convert them to numbers first."
        )
    return pixels


def read_colors(path: str | Path) -> np.ndarray:
    """Read a label map whose pixels are colors.

    Args:
        path: A PNG, or another lossless format; a palette image has the colors of its palette.

    Returns:
        Colors 0xRRGGBB, int32 (H, W).

    Raises:
        UserError: The file is missing or broken, lossy, partly transparent, or holds numbers of 16 bits; the message
            names it.
    """
    mode, colors = _read(path, ("L", "LA", "P", "PA", "1", "RGB", "RGBA"), as_colors=True)
    if colors is None:
        raise UserError(f"The label map {printable(path)} has the mode {mode}; expected colors, as RGB.")
    if colors.min() < 0:
        raise UserError(
            f"The label map {printable(path)} is partly transparent: there its colors say nothing. Save it as RGB."
        )
    return colors


def read_numbers(path: str | Path) -> np.ndarray:
    """Read a mask whose pixels number objects.

    Args:
        path: As for `read_values`, but of up to 16 bits per pixel.

    Returns:
        Numbers, uint8 or uint16 (H, W).

    Raises:
        UserError: The file is missing or broken, lossy, or holds colors or larger numbers; the message names it.
    """
    mode, pixels = _read(path, ("L", "P", "1", *_DEEP_MODES))
    if pixels is None:
        raise UserError(
            f"The mask {printable(path)} holds colors or transparency (mode {mode}); expected a number for each "
            "object, in a grayscale or palette PNG of 8 or 16 bits."
        )
    return pixels


_DEEP_MODES = ("I;16", "I;16B", "I")
"""Pillow's modes of images of 16 bits; the last one is of 32, of which a PNG has 16."""


def _colors(image: Image.Image) -> np.ndarray:
    """Colors 0xRRGGBB, int32 (H, W); −1 where an image is transparent."""
    red, green, blue, alpha = np.asarray(image.convert("RGBA")).astype(np.int32).transpose(2, 0, 1)
    return np.where(alpha < 255, -1, red << 16 | green << 8 | blue)


def _read(path: str | Path, modes: Sequence[str], as_colors: bool = False) -> tuple[str, np.ndarray | None]:
    """The mode of a label map and, where it is one of some modes, its numbers or colors, those of `_colors`, (H, W)."""
    name = printable(path)
    pixels = None
    try:
        with open_image(path) as image:
            mode, file_format = image.mode, image.format
            if mode in modes:
                number_type = np.uint16 if mode in _DEEP_MODES else np.uint8
                pixels = np.empty((image.height, image.width), np.int32 if as_colors else number_type)
                for top, strip in strips_of(image):
                    values = _colors(strip) if as_colors else np.asarray(strip)
                    if mode == "I" and (values.min() < 0 or values.max() >= 2**16):
                        raise ValueError("its numbers are not from 0 to 65,535")
                    pixels[top : top + strip.height] = values
    except FileNotFoundError as error:
        raise UserError(f"There is no label map {name}.") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"Cannot read the label map {name}: {describe_unknown(path)}. Replace it.") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"Cannot read the label map {name}: {describe_excess(error)}.") from error
    # Pillow's decoders raise whatever the bytes provoke.
    except Exception as error:
        raise UserError(f"Cannot read the label map {name}: {describe_error(error)}. Replace it.") from error
    if file_format == "JPEG":
        raise UserError(
            f"The label map {name} is a JPEG, whose compression changes pixels and with them classes; make it again "
            "from its source, as a PNG."
        )
    if mode.startswith(("I", "F")) and mode not in modes:
        raise UserError(
            f"The label map {name} has 16 or more bits per pixel (mode {mode}); expected numbers from 0 to 255: write "
            "them as an 8-bit PNG."
        )
    if pixels is not None and not as_colors and mode == "L" and file_format == "PNG":
        pixels = pixels // _spread(path)
    return mode, pixels


def _spread(path: str | Path) -> int:
    """By what Pillow multiplies the pixels of a grayscale PNG of less than 8 bits, to make it look right."""
    with open_file(path) as file:
        bits = file.read(25)[24]
    return {2: 85, 4: 17}.get(bits, 1)


def write_values(path: Path, values: np.ndarray, colors: dict[int, tuple[int, int, int]]) -> None:
    """Write a label map as a palette PNG.

    Args:
        path: The file; its folder must be there.
        values: uint8 (H, W).
        colors: RGB of values; others are black.
    """
    values_image(values, colors).save(path, compress_level=zlib.Z_BEST_SPEED)


def values_image(values: np.ndarray, colors: dict[int, tuple[int, int, int]]) -> Image.Image:
    """A label map, uint8 (H, W), as a palette image with RGB colors of values; others are black."""
    image = Image.fromarray(values)
    image.putpalette([channel for value in range(max(colors) + 1) for channel in colors.get(value, (0, 0, 0))])
    return image
