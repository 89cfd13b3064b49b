"""The sizes of image files, read from their headers: for layouts whose annotations do not state them."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from PIL import Image

from swinv2_tasks.child_processes import available_cores
from swinv2_tasks.datamodules.readers.channels import RGB_READER, ImageReader
from swinv2_tasks.datamodules.readers.images import FORMATS, describe_error, unreadable
from swinv2_tasks.errors import UserError

_ORIENTATION = 0x0112
_TURNED = range(5, 9)
"""Values of the EXIF orientation of images that a viewer turns by a quarter."""


def image_size(path: Path, reader: ImageReader = RGB_READER) -> tuple[int, int]:
    """Height and width of an image in pixels, as a viewer shows it.

    Args:
        path: The file.
        reader: What it is read by: it says whether EXIF orientations count, and how many channels there are.

    Raises:
        UserError: The file is none that can be read.
    """
    try:
        if (size := reader.stated_size(path)) is not None:
            return size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF, and sizes that are refused when the image is read
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                with suppress(Exception):  # broken EXIF
                    if reader.exif_rotation and image.getexif().get(_ORIENTATION, 1) in _TURNED:
                        return width, height
                return height, width
    except Exception as error:  # Pillow raises whatever the bytes provoke
        raise unreadable(path, describe_error(error)) from error


def image_sizes(paths: Sequence[Path], reader: ImageReader = RGB_READER) -> list[tuple[int, int] | UserError]:
    """Height and width of each image; the error, where it cannot be read."""

    def size_or_error(path: Path) -> tuple[int, int] | UserError:
        try:
            return image_size(path, reader)
        except UserError as error:
            return error

    with ThreadPoolExecutor(min(8, available_cores())) as pool:
        return list(pool.map(size_or_error, paths))
