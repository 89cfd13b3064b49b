"""What is measured of a file, once: whether it decodes in full, its sizes and channels, and what tells it from others.

The perceptual hash is the signs of an image's lowest 8×8 frequencies about their median (pHash,
https://www.phash.org/docs/design.html), of the image at 32×32 pixels. It hardly changes with compression or size.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from swinv2_tasks.datamodules.readers.channels import RGB_READER, ImageReader
from swinv2_tasks.datamodules.readers.images import FORMATS, MOST_FILE_BYTES
from swinv2_tasks.datamodules.readers.label_maps import read_colors, read_values
from swinv2_tasks.datamodules.readers.videos import Video
from swinv2_tasks.errors import UserError, reason_of
from swinv2_tasks.outside_files import open_file, read_bytes

Media = Literal["image", "label map", "colored label map", "video"]

HASH_SIDE = 32
"""Pixels of a side from which the hash is made."""

THUMBNAIL_SIDE = 8
"""Pixels of a side of the thumbnail that tells images of like hashes apart."""

THUMBNAIL_BYTES = 3 * THUMBNAIL_SIDE**2

SAMPLED_SIDE = 64
"""Rows and columns of an image, about, whose pixels are taken for mean and deviation."""

MOST_VALUES = 256
"""Values of a label map that are counted, the most frequent ones."""


class Task(NamedTuple):
    """A file to measure, and as what."""

    path: str
    media: Media
    reader: ImageReader = RGB_READER
    """Of an image: how the dataset reads it."""


@dataclass(slots=True)
class Facts:
    """What was measured of a file."""

    reason: str = ""
    """Why it cannot be read; empty where it can."""
    content: str = ""
    """Digest of the file's bytes."""
    pixels: str = ""
    """Digest of the pixels, as they are read."""
    format: str = ""
    mode: str = ""
    """Pillow's, as stored; of other images than RGB, their channels."""
    bits: int = 8
    width: int = 0
    """In pixels, as shown: after EXIF's orientation."""
    height: int = 0
    orientation: int = 1
    """EXIF's, where it is followed."""
    hash: int | None = None
    """64 bits; None where an image shows nothing to tell it by."""
    thumbnail: str = ""
    """RGB of 8×8 pixels, in base64."""
    deviation: float = 0.0
    """Of the gray values, in [0, 255]."""
    mean: tuple[float, ...] = ()
    """Of each channel, in [0, 1] where the values are."""
    square: tuple[float, ...] = ()
    """Means of the squares."""
    values: dict[int, int] | None = None
    """Of a label map: pixels of each value."""
    frames: int = 0
    """Of a video."""

    def as_json(self) -> dict[str, Any]:
        """What is not the default, as JSON has it."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in facts.items() if value != defaults[name]}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Facts:
        """The facts that ``as_json`` gave.

        Raises:
            TypeError, ValueError, AttributeError: it is something else.
        """
        facts = cls(**entry)
        facts.mean, facts.square = tuple(map(float, facts.mean)), tuple(map(float, facts.square))
        if facts.values is not None:
            facts.values = {int(value): int(pixels) for value, pixels in facts.values.items()}
        numbers = (facts.width, facts.height, facts.orientation, facts.frames, facts.bits, facts.hash or 0)
        texts = (facts.reason, facts.content, facts.pixels, facts.format, facts.mode, facts.thumbnail)
        if not all(isinstance(number, int) for number in numbers) or not all(isinstance(text, str) for text in texts):
            raise ValueError("a value of another type")
        if not 0 <= (facts.hash or 0) < 2**64 or len(base64.b64decode(facts.thumbnail)) not in (0, THUMBNAIL_BYTES):
            raise ValueError("no hash, or no thumbnail")
        if facts.hash is not None and not facts.thumbnail:
            raise ValueError("a hash without a thumbnail")
        return facts


def measure(task: Task) -> Facts:
    """What there is to know of a file; of one that cannot be read, why."""
    try:
        if task.media == "image":
            return _measure_image(task.path, task.reader)
        if task.media == "video":
            return _measure_video(task.path)
        return _measure_label_map(task.path, has_colors=task.media == "colored label map")
    except UserError as error:
        return Facts(reason=_shorten(str(error), task.path))
    except OSError as error:
        return Facts(reason=error.strerror or reason_of(error))
    except MemoryError:
        return Facts(reason="it takes more memory than there is")


def _shorten(message: str, path: str) -> str:
    """A reader's message without the file's name and its advice: what is the matter with the file."""
    text = message.partition(f"{path}: ")[2] or message
    return text.removesuffix(" Replace the file, or remove it from the dataset.").rstrip(".")


# ---- images


def _measure_image(path: str, reader: ImageReader) -> Facts:
    content = read_bytes(path, MOST_FILE_BYTES)
    image = reader.image(path, content)  # which decodes all of it
    facts = Facts(content=digest(content))
    if isinstance(image, Image.Image):
        _note_header(facts, content)
        pixels = shown = np.asarray(image)
    else:
        facts.mode = f"{reader.channels} channel{'s' * (reader.channels > 1)}"
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        shown = np.asarray(reader.picture(path))
    if not reader.exif_rotation:
        facts.orientation = 1
    _note_pixels(facts, pixels)
    _note_looks(facts, shown)
    return facts


def _note_header(facts: Facts, content: bytes) -> None:
    """What the file states of itself: read_image gives RGB whatever it was made of."""
    try:
        opened = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:  # .npy, and TIFF that Pillow does not know
        facts.mode = "3 channels"
        return
    with warnings.catch_warnings(), opened as image:
        warnings.simplefilter("ignore")  # of broken EXIF
        facts.format, facts.mode = image.format or "", image.mode
        if image.mode.startswith("I") or (image.format == "PNG" and _png_bits(content) == 16):
            facts.bits = 16
        if image.has_transparency_data:
            facts.mode = "RGBA" if image.mode in ("P", "RGB") else image.mode
        try:
            facts.orientation = int(image.getexif().get(0x0112, 1))
        except Exception:  # broken EXIF, which bothers no reader
            facts.orientation = 1


def _png_bits(content: bytes) -> int:
    """Bits of a channel of a PNG: https://www.w3.org/TR/png-3/#11IHDR."""
    return content[24]


def _note_pixels(facts: Facts, pixels: np.ndarray) -> None:
    """Size, digest and statistics of pixels, uint8 or float32 (H, W, channels)."""
    facts.height, facts.width, channels = pixels.shape
    facts.pixels = digest(f"{facts.width}×{facts.height}".encode(), np.ascontiguousarray(pixels).data)

    row_step, column_step = (max(1, side // SAMPLED_SIDE) for side in pixels.shape[:2])
    sample = pixels[::row_step, ::column_step].reshape(-1, channels).astype(np.float64)
    if pixels.dtype == np.uint8:
        sample /= 255
    facts.mean = tuple(sample.mean(axis=0).round(6).tolist())
    facts.square = tuple((sample**2).mean(axis=0).round(6).tolist())


def _note_looks(facts: Facts, pixels: np.ndarray) -> None:
    """What an image looks like, by which like ones are told: of uint8 (H, W, 3)."""
    reduced = cv2.resize(pixels, (HASH_SIDE, HASH_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    thumbnail = reduced.reshape(THUMBNAIL_SIDE, HASH_SIDE // THUMBNAIL_SIDE, THUMBNAIL_SIDE, -1, 3).mean(axis=(1, 3))
    facts.thumbnail = base64.b64encode(thumbnail.round().astype(np.uint8).tobytes()).decode()
    gray = reduced @ np.array([0.299, 0.587, 0.114], np.float32)
    facts.deviation = round(float(gray.std()), 3)
    facts.hash = perceptual_hash(gray) if facts.deviation >= FLATTEST else None


FLATTEST = 3.0
"""Deviation of the gray values, of 255, below which a hash would be of noise: images of about a single color."""


def perceptual_hash(gray: np.ndarray) -> int:
    """64 bits of an image's gray values, float32 (32, 32)."""
    frequencies = _COSINES @ gray @ _COSINES.T
    bits = frequencies.ravel() > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes())


def _cosines() -> np.ndarray:
    """The lowest frequencies of the discrete cosine transform, float32 (8, 32)."""
    frequency, position = np.arange(8)[:, None], np.arange(HASH_SIDE)[None]
    return np.cos(math.pi * frequency * (2 * position + 1) / (2 * HASH_SIDE)).astype(np.float32)


_COSINES = _cosines()


def digest(*contents: Any) -> str:
    """32 characters that no other content has."""
    hashed = hashlib.blake2b(digest_size=16)
    for content in contents:
        hashed.update(content)
    return hashed.hexdigest()


# ---- label maps


def _measure_label_map(path: str, has_colors: bool) -> Facts:
    labels = read_colors(path) if has_colors else read_values(path)
    height, width = labels.shape
    distinct, pixels = np.unique(labels, return_counts=True) if has_colors else _counted(labels)
    most_frequent = np.argsort(-pixels, kind="stable")[:MOST_VALUES]
    values = dict(zip(distinct[most_frequent].tolist(), pixels[most_frequent].tolist(), strict=True))
    return Facts(width=width, height=height, values=values)


def _counted(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a label map, uint8, and the pixels of each; much faster than ``np.unique``."""
    pixels = np.bincount(labels.ravel(), minlength=256)
    (distinct,) = np.nonzero(pixels)
    return distinct, pixels[distinct]


# ---- videos


def _measure_video(path: str) -> Facts:
    """Of a video that decodes in full: its middle frame is what it is told by."""
    facts = Facts()
    if not Path(path).is_dir():
        facts.content = _file_digest(path)
    with Video(path) as video:
        facts.frames = len(video)
        (frame,) = video.frames([len(video) // 2])
    _note_pixels(facts, frame)
    _note_looks(facts, frame)
    facts.pixels = ""  # of a frame, which other videos may have
    return facts


def _file_digest(path: str) -> str:
    """The digest of a file of any size."""
    hashed = hashlib.blake2b(digest_size=16)
    with open_file(path) as file:
        while piece := file.read(2**20):
            hashed.update(piece)
    return hashed.hexdigest()
