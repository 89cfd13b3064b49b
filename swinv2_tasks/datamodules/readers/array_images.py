"""Images of any number of channels as their file holds them: NumPy's .npy, TIFF, and what Pillow reads.

Pillow reads no TIFF of more than four channels, none of several channels of 16 bits and no planar one of these;
tifffile, which needs nothing but NumPy, does. GeoTIFF is read as TIFF: where on Earth its pixels lie does not matter.
"""

import io
import math
import os
import warnings
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile
from PIL import Image, ImageOps

from swinv2_tasks.datamodules.readers.images import (
    MAX_PIXELS,
    MOST_FILE_BYTES,
    allowed_pixels,
    open_image,
    refusal_of,
)
from swinv2_tasks.datamodules.remarks import ROTATED, SEVERAL_PICTURES, remark
from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import open_file

NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""What TIFF files begin with: of either byte order, the last two are BigTIFF."""

MOST_CHANNELS = 1024
"""Of an image: hyperspectral cameras have some hundreds."""

CHANNELS_OF_RGB = 3
"""An image of n channels may have as many values as one of RGB of the most pixels allowed."""

_DEFLATE = ("ADOBE_DEFLATE", "DEFLATE")
_LARGE_SEGMENT = 2**16
"""Compressed bytes of a segment (TIFF's strips and the like) from which on it is inflated
to see how much comes out: before, 64 MB at most."""


def read_array(path: str | Path, channels: int, content: bytes | None = None, exif_rotation: bool = True) -> np.ndarray:
    """Reads an image file's values, of the type that they are stored in: (H, W, channels).

    Of .npy the axes are told apart by the number of channels: (H, W), (H, W, C) or (C, H, W). Channels of TIFF are the
    samples of a page, interleaved or planar, or pages of one sample each. Other files are read by Pillow; gray ones of
    16 bits keep them.

    Args:
        path: The file; where its content is given, only what messages call it.
        channels: How many the image must have.
        content: The file's bytes, where they are in memory already.
        exif_rotation: Whether an orientation that the file states is applied.

    Raises:
        UserError: The file cannot be read, has another number of channels or more values than are allowed.
    """
    try:
        with _opened(path, content) as file:
            start = file.read(8)
            file.seek(0)
            if start.startswith(NPY):
                return _read_npy(file, channels)
            if start.startswith(TIFF) and (pixels := _read_tiff(file, channels, exif_rotation)) is not None:
                return pixels
        return _read_by_pillow(path, content, channels, exif_rotation)
    except UserError:
        raise
    except Exception as error:  # the readers raise whatever the bytes provoke
        raise refusal_of(path, content, error) from error


def array_size(path: Path, channels: int, exif_rotation: bool = True) -> tuple[int, int] | None:
    """Height and width of an image that NumPy or tifffile reads, from its header; None for other files.

    Args:
        path: The file.
        channels: How many the image must have.
        exif_rotation: Whether an orientation that the file states counts.

    Raises:
        Exception: Whatever the header provokes; a ValueError or an OSError says what is wrong with it.
    """
    with _opened(path, None) as file:
        start = file.read(8)
        file.seek(0)
        if start.startswith(NPY):
            shape = _npy_header(file, channels)[0]
            height, width = (shape[axis] for axis in _npy_axes(shape, channels)[:2])
            return height, width
        if start.startswith(TIFF):
            with tifffile.TiffFile(file) as tiff:
                first = _pages(tiff, channels)[0]
                height, width = first.imagelength, first.imagewidth
                return (width, height) if exif_rotation and _orientation(first) > 4 else (height, width)
    return None


def is_array_file(path: str | Path, content: bytes | None = None) -> bool:
    """Whether a file is one of NumPy's, by its first bytes; a file that cannot be opened is none."""
    try:
        with _opened(path, content) as file:
            return file.read(len(NPY)) == NPY
    except OSError:
        return False


def is_tiff(path: str | Path, content: bytes | None = None) -> bool:
    """Whether a file is a TIFF, by its first bytes; a file that cannot be opened is none."""
    try:
        with _opened(path, content) as file:
            return file.read(4) in TIFF
    except OSError:
        return False


def _opened(path: str | Path, content: bytes | None) -> BinaryIO:
    return open_file(path) if content is None else io.BytesIO(content)


def _check_price(height: int, width: int, channels: int) -> None:
    """Refuses an image of more values than are allowed, before anything is made of them.

    Raises:
        ValueError: It has more.
    """
    limit = allowed_pixels()
    if height * width > limit or height * width * channels > CHANNELS_OF_RGB * limit:
        plural = "s" * (channels != 1)
        raise ValueError(
            f"it has {height * width:,} pixels of {channels} channel{plural}, more than the {limit:,} of "
            f"{CHANNELS_OF_RGB} that are allowed; allow more by --max_pixels (or {MAX_PIXELS})"
        )


def _mismatch(has: str, channels: int) -> ValueError:
    return ValueError(f"it has {has}, but data.channels is {channels}")


# ---- NumPy


def _read_npy(file: BinaryIO, channels: int) -> np.ndarray:
    """The values of a .npy file, mapped rather than read where it lies on disk."""
    shape, is_fortran, dtype = _npy_header(file, channels)
    axes = _npy_axes(shape, channels)
    offset, order = file.tell(), "F" if is_fortran else "C"
    if isinstance(file, io.BytesIO):
        pixels = np.frombuffer(file.getvalue(), dtype, math.prod(shape), offset).reshape(shape, order=order)  # type: ignore[call-overload]
    else:
        pixels = np.memmap(file, dtype, "r", offset, shape, order=order)  # type: ignore[call-overload]
    if pixels.ndim == 2:
        return np.asarray(pixels)[..., None]
    return np.asarray(pixels).transpose(axes)


def _npy_header(file: BinaryIO, channels: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of a .npy file, which then stands at its values; nothing in it is executed.

    Raises:
        ValueError: It holds no image, more values than are allowed, or fewer than it states.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read: save an array of numbers")
    _check_type(dtype)
    height, width = (shape[axis] for axis in _npy_axes(shape, channels)[:2])
    _check_price(height, width, channels)
    offset = file.tell()
    there = file.seek(0, os.SEEK_END) - offset
    file.seek(offset)
    needed = math.prod(shape) * dtype.itemsize
    if there < needed:
        raise ValueError(f"it is truncated: {there:,} bytes of values instead of {needed:,}")
    return shape, is_fortran, dtype


def _npy_axes(shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
    """Which axes of an array are height, width and channels; of two axes there is one channel."""
    shown = f"the shape {shape}"
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"it has {shown}, no image: expected (height, width), with channels last or first")
    if len(shape) == 2:
        if channels != 1:
            raise _mismatch(f"{shown}, so 1 channel", channels)
        return 0, 1
    is_last, is_first = shape[2] == channels, shape[0] == channels
    if is_last and is_first:
        raise ValueError(f"it has {shown}, of which channels may be the first or the last: save it with another side")
    if not (is_last or is_first):
        raise _mismatch(shown, channels)
    return (0, 1, 2) if is_last else (1, 2, 0)


def _check_type(dtype: np.dtype) -> None:
    if dtype.kind not in "buif":
        raise ValueError(f"its values are of the type {dtype}; expected whole or floating-point numbers")


# ---- TIFF


def _read_tiff(file: BinaryIO, channels: int, exif_rotation: bool) -> np.ndarray | None:
    """The values of a TIFF; None where only Pillow knows how it is compressed, or what its colors are."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > MOST_FILE_BYTES:
        raise ValueError(f"it has {size:,} bytes, an image file at most {MOST_FILE_BYTES:,}")
    with tifffile.TiffFile(file) as tiff:
        pages = _pages(tiff, channels)
        if any(page.photometric is not None and page.photometric.name in _COLOR_CODES for page in pages):
            if channels <= CHANNELS_OF_RGB + 1:
                return None
            raise ValueError(f"its colors are coded as {pages[0].photometric.name}; expected plain values")
        for page in pages:
            if not _is_known(page):
                if len(pages) == 1 and channels == 1:
                    return None
                raise ValueError(_unknown_compression(page))
            _check_segments(file, page, size)
        arrays = [_page_array(page) for page in pages]
        pixels = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=2)
        _check_type(pixels.dtype)
        orientation = _orientation(pages[0])
        if exif_rotation and orientation != 1:
            remark(ROTATED)
            return _oriented(pixels, orientation)
        return pixels


_COLOR_CODES = ("PALETTE", "YCBCR", "CIELAB", "ICCLAB", "ITULAB", "LOGL", "LOGLUV")
"""Ways to code colors in which the values of a TIFF are no intensities."""


def _pages(tiff: tifffile.TiffFile, channels: int) -> list[Any]:
    """The pages of a TIFF that together have so many channels: one, or as many as there are channels.

    Their sizes are checked before anything is made of them.
    """
    first: Any = tiff.pages.first
    _check_price(first.imagelength, first.imagewidth, channels)
    if first.imagedepth != 1:
        raise ValueError("it holds a volume, no image")
    if first.samplesperpixel == channels:
        if channels > 1 or not _follows(tiff, 1):
            return [first]
        remark(SEVERAL_PICTURES)
        return [first]
    if first.samplesperpixel != 1:
        raise _mismatch(f"{first.samplesperpixel} channels", channels)

    pages = [first]
    while len(pages) <= channels and (page := _follows(tiff, len(pages))) is not None:
        pages.append(page)
    like_first = {(page.imagelength, page.imagewidth, page.samplesperpixel, page.dtype) for page in pages}
    if len(pages) != channels or len(like_first) > 1:
        many = f"more than {channels}" if len(pages) > channels else str(len(pages))
        alike = "" if len(like_first) == 1 else ", which differ in size or type"
        raise _mismatch(f"1 channel in {many} page{'s' * (many != '1')}{alike}", channels)
    return pages


def _follows(tiff: tifffile.TiffFile, number: int) -> Any:
    """A page of a TIFF by its number, as long as it is no smaller copy of another (an overview) and no mask."""
    try:
        page: Any = tiff.pages[number]
    except IndexError:
        return None
    return None if page.subfiletype & 0b101 else page


def _is_known(page: Any) -> bool:
    """Whether a page is compressed in a way whose price is known, and that can be read."""
    name = page.compression.name
    return name in ("NONE", "PACKBITS", *_DEFLATE) or (name == "LZW" and find_spec("imagecodecs") is not None)


def _unknown_compression(page: Any) -> str:
    name = page.compression.name
    remedy = "pip install 'swinv2-tasks[tiff]' (imagecodecs), or " if name == "LZW" else ""
    return f"it is compressed by {name}, which is not read: {remedy}write it with Deflate or without compression"


def _check_segments(file: BinaryIO, page: Any, size: int) -> None:
    """Refuses a page whose segments are missing, or would become more than an image of its size takes."""
    if page.dtype is None:
        raise ValueError(f"its values have {page.bitspersample} bits, which are not read")
    expected = math.prod(page.chunks) * page.dtype.itemsize
    if page.is_tiled and expected > 4 * max(page.nbytes, 2**20):
        raise ValueError("its segments are larger than the image")
    if len(page.dataoffsets) != len(page.databytecounts) or not page.dataoffsets:
        raise ValueError("it is corrupt: it states no place of its values")
    if len(page.dataoffsets) < math.prod(page.chunked):
        raise ValueError("it is corrupt: segments are missing")
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if offset <= 0 or count <= 0 or offset + count > size:
            raise ValueError("it is truncated: it ends before its last value, or leaves segments out")
        if page.compression.name != "NONE" and count > 2 * expected + 1024:
            raise ValueError("it is corrupt: a compressed segment is larger than its values")
        if page.compression.name in _DEFLATE and count > _LARGE_SEGMENT:
            file.seek(offset)
            _check_inflated(file.read(count), expected)


def _check_inflated(data: bytes, expected: int) -> None:
    """Refuses Deflate of which more comes out than the values of a segment."""
    inflater = zlib.decompressobj()
    total = 0
    while data:
        total += len(inflater.decompress(data, 2**20))
        if total > expected + 2**16:
            raise ValueError("it is corrupt: a segment inflates to more than its values")
        data = inflater.unconsumed_tail


def _page_array(page: Any) -> np.ndarray:
    """A page's values (H, W, samples), where 0 is black."""
    pixels = page.asarray(maxworkers=1)
    axes = page.axes
    if axes == "YX":
        pixels = pixels[..., None]
    elif axes == "SYX":
        pixels = pixels.transpose(1, 2, 0)
    elif axes != "YXS":
        raise ValueError(f"its axes are {axes}; expected an image")
    if page.photometric is not None and page.photometric.name == "MINISWHITE":
        if pixels.dtype.kind not in "bu":
            raise ValueError("0 is white in it, and its numbers have no greatest one: save it with 0 as black")
        return ~pixels
    return pixels


def _orientation(page: Any) -> int:
    tag = page.tags.get(274)
    return tag.value if tag is not None and tag.value in range(1, 9) else 1


def _oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, C) as they are to be shown, by the number that TIFF and EXIF have for it."""
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


# ---- what Pillow reads


def _read_by_pillow(path: str | Path, content: bytes | None, channels: int, exif_rotation: bool) -> np.ndarray:
    """The values of a file that Pillow reads; colors of a palette are looked up, one bit becomes 0 and 255."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # broken EXIF
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with open_image(path, content) as image:
            _check_price(image.height, image.width, len(image.getbands()))
            image.load()
            if exif_rotation:
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "P" or image.mode == "PA":
                image = image.convert("RGBA" if channels == 4 else "RGB")
            elif image.mode == "1":
                image = image.convert("L")
            pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype == np.int32 and pixels.min() >= 0 and pixels.max() <= 65535:
        pixels = pixels.astype(np.uint16)  # as Pillow holds some gray images of 16 bits
    if pixels.shape[2] == 1 and channels == CHANNELS_OF_RGB:
        pixels = pixels.repeat(3, axis=2)  # gray is a color
    if pixels.shape[2] != channels:
        raise _mismatch(f"{pixels.shape[2]} channel{'s' * (pixels.shape[2] != 1)}", channels)
    return pixels
