"""Image files as a model with n input channels takes them: three are RGB, others are values in [0, 1]."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from swinv2_tasks.datamodules.readers.array_images import array_size, is_array_file, is_tiff, read_array
from swinv2_tasks.datamodules.readers.images import MOST_FILE_BYTES, read_image, unreadable
from swinv2_tasks.datamodules.remarks import FLOATS, remark
from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import StoredFile

_SAY_RANGE = "say by data.value_range which are black and white"

STRETCHED = (2.0, 98.0)
"""Percentiles of a channel that are black and white in pictures, unless its values have 8 bits."""


@dataclass(frozen=True)
class ImageReader:
    """Reads images of a number of channels.

    Images of 3 channels are RGB of 8 bits for each color, as all other images are, whatever their file holds. Those of
    other numbers are float32, scaled by the type of the file's values: of 8 bits 255 is 1, of 16 bits 65535 is 1,
    floating-point numbers stay unchanged. With a range, its ends are 0 and 1; nothing is clipped.

    Args:
        channels: Channels of each image.
        value_range: The values that are 0 and 1; None: by the type of the values.
        exif_rotation: Whether an orientation that a file states is applied.
    """

    channels: int = 3
    value_range: tuple[float, float] | None = None
    exif_rotation: bool = True

    def image(self, path: str | Path, content: bytes | None = None) -> "Image.Image | tv_tensors.Image":
        """An image for torchvision's transforms: RGB of Pillow, or float32 (channels, H, W).

        Args:
            path: The file; where its content is given, only what messages call it.
            content: The file's bytes, where they are in memory already.

        Raises:
            UserError: The file cannot be read, has other channels, or values of no known range.
        """
        content = _content_of(path) if content is None else content
        if self.channels == 3:
            return self._rgb(path, content)
        return tv_tensors.Image(torch.from_numpy(self._values(path, content)).permute(2, 0, 1))

    def pixels(self, path: str | Path) -> np.ndarray:
        """An image uint8 (H, W, 3), RGB, or float32 (H, W, channels).

        Raises:
            UserError: As for `image`.
        """
        content = _content_of(path)
        return np.asarray(self._rgb(path, content)) if self.channels == 3 else self._values(path, content)

    def picture(self, path: str | Path) -> Image.Image:
        """An image as figures show it, in RGB: its first three channels; of one or two channels the first, in gray.

        Values of 8 bits are shown unchanged, others stretched, each channel by itself: `STRETCHED` are black and white.

        Raises:
            UserError: As for `image`.
        """
        content = _content_of(path)
        if self.channels == 3:
            return self._rgb(path, content)
        stored = read_array(path, self.channels, content, self.exif_rotation)
        shown = stored[..., :3] if self.channels > 3 else stored[..., :1]
        if shown.dtype != np.uint8:
            shown = stretch(shown)
        return Image.fromarray(np.ascontiguousarray(shown if shown.shape[2] == 3 else shown.repeat(3, axis=2)))

    def stated_size(self, path: Path) -> tuple[int, int] | None:
        """Height and width by the header of a file that Pillow does not read for these channels; None for others.

        Raises:
            Exception: Whatever the header provokes; a ValueError or an OSError says what is wrong with it.
        """
        if self.channels == 3 and not is_array_file(path):
            return None
        return array_size(path, self.channels, self.exif_rotation)

    def _rgb(self, path: str | Path, content: bytes | None) -> Image.Image:
        if self.value_range is None and not is_array_file(path, content):
            try:
                return read_image(path, content, self.exif_rotation)
            except UserError:
                if not is_tiff(path, content):  # of which Pillow reads some only
                    raise
        values = self._values(path, content)
        if self.value_range is None and (values.min() < 0 or values.max() > 1):
            raise unreadable(path, f"its numbers are not within 0 and 1: {_SAY_RANGE}")
        return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))

    def _values(self, path: str | Path, content: bytes | None) -> np.ndarray:
        """An image's values, scaled: float32 (H, W, channels)."""
        stored = read_array(path, self.channels, content, self.exif_rotation)
        try:
            return scale(stored, self.value_range)
        except ValueError as error:
            raise unreadable(path, str(error)) from error


def _content_of(path: str | Path) -> bytes | None:
    """The bytes of a file that lies within another one; None of one that readers open."""
    if not isinstance(path, StoredFile):
        return None
    try:
        return path.read(MOST_FILE_BYTES)
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error


RGB_READER = ImageReader()
"""Reads images as all are read where nothing says otherwise: RGB of 8 bits, rotated as they say."""


def scale(stored: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    """Values as float32, so that a range is [0, 1]; without one, that of their type.

    Args:
        stored: Numbers of any type.
        value_range: The values that become 0 and 1.

    Raises:
        ValueError: They have no known range, or are not all finite.
    """
    is_float = stored.dtype.kind == "f"
    is_exact = stored.dtype.itemsize <= (4 if is_float else 2)  # as float32
    values: np.ndarray[Any, np.dtype[np.floating]]
    if value_range is not None:
        values = np.array(stored, np.float32 if is_exact else np.float64, order="C")
        values -= value_range[0]
        values /= value_range[1] - value_range[0]
    elif stored.dtype.kind == "b" or is_float:
        values = np.array(stored, np.float32, order="C")
    elif stored.dtype.kind == "u" and stored.dtype.itemsize <= 2:
        values = np.array(stored, np.float32, order="C")
        values /= np.iinfo(stored.dtype).max
    else:
        raise ValueError(f"its values are of the type {stored.dtype}: {_SAY_RANGE}")
    if is_float:
        if not np.isfinite([values.min(), values.max()]).all():
            raise ValueError("not all of its values are finite numbers: replace those that stand for no data")
        if value_range is None:
            remark(FLOATS)
    return values.astype(np.float32, copy=False)


def stretch(shown: np.ndarray) -> np.ndarray:
    """Values (H, W, C) as uint8, each channel from its low percentile to its high one."""
    values = np.nan_to_num(np.array(shown, np.float32))
    low, high = np.percentile(values, STRETCHED, axis=(0, 1))
    width = np.where(high > low, high - low, 1)
    return (((values - low) / width).clip(0, 1) * 255).round().astype(np.uint8)
