"""Reading an image costs what its pixels account for, and no more pixels are read than are allowed."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swinv2_tasks.datamodules.readers import images
from swinv2_tasks.datamodules.readers.images import read_image
from swinv2_tasks.datamodules.readers.label_maps import read_colors, read_values
from tests.helpers.prices import MOST_MEMORY, call, refusal


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


def png_of_zeros(path: Path, side: int, color_type: int = 6) -> None:
    """A square PNG without anything in it: some hundred kilobytes for any number of pixels."""
    channels = {0: 1, 2: 3, 6: 4}[color_type]
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(1 + channels * side)) for _ in range(side)) + packer.flush()
    header = side.to_bytes(4) * 2 + bytes([8, color_type, 0, 0, 0])
    path.write_bytes(images._PNG + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def with_part(path: Path, kind: bytes, content: bytes) -> None:
    """A small PNG with a further part behind its header."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png")
    whole = file.getvalue()
    path.write_bytes(whole[:33] + chunk(kind, content) + whole[33:])


def hollow(path: Path) -> None:
    """A file of a terabyte that takes no room on the disk."""
    Image.new("RGB", (8, 8)).save(path, "jpeg")
    with path.open("r+b") as file:
        file.truncate(2**40)


def many_scans(path: Path) -> None:
    """A progressive JPEG with the same scan, for all pixels and few bytes, over and over."""
    Image.new("L", (8192, 8192)).save(path, "jpeg", progressive=True)
    content = path.read_bytes()
    scan, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    path.write_bytes(content[:end] + content[scan:end] * 3000 + content[end:])


IMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "177 megapixels": (lambda path: png_of_zeros(path, 13_300), "176,890,000 pixels, more than the 134,217,728"),
    "profile": (lambda path: with_part(path, b"iCCP", b"x\0\0" + zlib.compress(bytes(200_000_000))), "too large"),
    "text": (lambda path: with_part(path, b"zTXt", b"x\0\0" + zlib.compress(bytes(200_000_000))), "too large"),
    "large part": (lambda path: with_part(path, b"tEXt", bytes(20_000_000)), "its part 'tEXt' has 20,000,000 bytes"),
    "terabyte": (hollow, "an image file at most"),
    "scans": (many_scans, "scans, an image at most"),
    "pipe": (os.mkfifo, "is a pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a pipe, a socket or a device"),
    "circle": (lambda path: path.symlink_to(path.name), "symbolic links"),
}


@pytest.mark.parametrize("read", [read_image, read_values])
@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_costs_more_than_its_bytes_is_refused(
    name: str, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    write, words = IMAGES[name]
    path = tmp_path / "image.png"
    write(path)
    message = refusal(read, path)
    assert words in message
    assert str(path) in message


def shape_of(path: Path) -> tuple[int, ...]:
    return np.asarray(read_image(path)).shape


def shape_of_colors(path: Path) -> tuple[int, ...]:
    return read_colors(path).shape


@pytest.mark.slow
@pytest.mark.parametrize("measure", [shape_of, shape_of_colors])
def test_the_largest_image_is_read_within_two_gigabytes(measure: Callable[[Path], Any], tmp_path: Path) -> None:
    """With a channel of transparency, which takes the most memory."""
    side = 11_585
    png_of_zeros(tmp_path / "map.png", side, 2 if measure is shape_of_colors else 6)
    outcome = call(measure, tmp_path / "map.png")
    assert outcome.text.startswith(f"({side}, {side}")
    assert outcome.peak < MOST_MEMORY


def random_pixels(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


MODES: dict[str, Image.Image] = {
    "RGB": Image.fromarray(random_pixels(50, 40, 3)),
    "RGBA": Image.fromarray(random_pixels(50, 40, 4)),
    "LA": Image.fromarray(random_pixels(50, 40, 2)),
    "L": Image.fromarray(random_pixels(50, 40)),
    "I;16": Image.fromarray(random_pixels(50, 40, dtype=np.uint16)),
    "P": Image.fromarray(random_pixels(50, 40, 3)).quantize(20),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rotated", [False, True])
def test_strips_give_the_picture_that_the_whole_gives(
    mode: str, rotated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.png"
    exif = Image.Exif()
    exif[0x0112] = 6 if rotated else 1
    MODES[mode].save(path, exif=exif, **({"transparency": 3} if mode == "P" else {}))
    reads = [read_image, *([read_colors] if mode in ("RGB", "L") else [])]
    whole = [np.asarray(read(path)) for read in reads]
    monkeypatch.setattr(images, "STRIP_PIXELS", 130)  # three rows, and two in the end
    for read, expected in zip(reads, whole, strict=True):
        np.testing.assert_array_equal(np.asarray(read(path)), expected)
    assert whole[0].shape == ((40, 50, 3) if rotated else (50, 40, 3))


def test_a_picture_stays_what_it_was_when_its_file_goes(tmp_path: Path) -> None:
    """Pillow maps files without compression into memory."""
    path = tmp_path / "image.bmp"
    MODES["RGB"].save(path)
    picture = read_image(path)
    path.write_bytes(b"")
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(MODES["RGB"]))
