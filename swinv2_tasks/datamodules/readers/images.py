"""Reading image files: the picture that a viewer shows, or one clear message."""

import errno
import fnmatch
import glob
import io
import logging
import os
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from swinv2_tasks.datamodules.readers.pillow_internals import pixel_limit, set_pixel_limit
from swinv2_tasks.datamodules.remarks import ROTATED, SEVERAL_PICTURES, remark
from swinv2_tasks.errors import UserError, reason_of
from swinv2_tasks.outside_files import StoredFile, open_file, read_bytes
from swinv2_tasks.text import printable

log = logging.getLogger("swinv2_tasks")

IMAGE_EXTENSIONS: tuple[str, ...] = (*IMG_EXTENSIONS, ".gif", ".jfif", ".avif", ".npy")
"""File name endings, in lower case, that mark an image inside a folder."""


FORMATS: tuple[str, ...] = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000")
"""The formats that are read, by Pillow's names. It knows more, and hands some of them (EPS) to other programs."""

HEIC_EXTENSIONS = (".heic", ".heif")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_HEIC_ADVICE = "HEIC is not read: convert such files to JPEG or PNG first, as by pillow-heif (pip install pillow-heif)"

MAX_PIXELS = "SWINV2_TASKS_MAX_PIXELS"
"""Environment variable: of how many pixels an image may be. Workers and processes of a run have it, too."""


def read_image(path: str | Path, content: bytes | None = None, exif_rotation: bool = True) -> Image.Image:
    """Read one image file as the RGB picture that a viewer shows.

    Grayscale (also of 16 bits), palette and CMYK images become RGB, transparent pixels lie on white, and an EXIF
    orientation is applied. Of several pages or frames, the first one. Embedded color profiles are not applied.

    Args:
        path: The file, which may lie within another one; where its content is given, only what messages call it.
        content: The file's bytes, where they are in memory already.
        exif_rotation: Whether an EXIF orientation is applied; without, the pixels stay as they are stored.

    Raises:
        UserError: The file is missing, empty, truncated, corrupt, no image of a known format, or decodes to more
            pixels than the limit against decompression bombs; the message names the path and the reason.
    """
    try:
        if content is None and isinstance(path, StoredFile):
            content = path.read(MOST_FILE_BYTES)
        with warnings.catch_warnings():
            # Broken EXIF is frequent (ImageNet has some) and no reason to bother anyone: the pixels are whole.
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # half of what is allowed
            with open_image(path, content) as image:
                image.load()
                is_rotated = exif_rotation and _is_rotated(image)
                if exif_rotation:
                    ImageOps.exif_transpose(image, in_place=True)  # or a second copy of the pixels would be made
                picture = _to_rgb(image)
                _note_peculiarities(image, is_rotated)
                return picture
    except UserError:
        raise
    # Pillow's decoders raise whatever the bytes provoke (OSError, SyntaxError, struct.error, zlib.error, …).
    except Exception as error:
        raise refusal_of(path, content, error) from error


def refusal_of(path: str | Path, content: bytes | None, error: Exception) -> UserError:
    """The error for an image that cannot be read, by what reading it has raised.

    Args:
        path: The file.
        content: Its bytes, where they were in memory already.
        error: Whatever was raised.
    """
    if isinstance(error, FileNotFoundError):
        return unreadable(path, "the file does not exist")
    if isinstance(error, IsADirectoryError):
        return unreadable(path, "it is a folder")
    if isinstance(error, Image.UnidentifiedImageError):
        return unreadable(path, describe_unknown(path, content))
    if isinstance(error, Image.DecompressionBombError):
        return unreadable(path, describe_excess(error))
    return unreadable(path, describe_error(error))


def describe_error(error: Exception) -> str:
    """What is the matter with a file that cannot be read."""
    stated = error.strerror if isinstance(error, OSError) else None
    return stated or reason_of(error)


def open_image(path: str | Path, content: bytes | None = None) -> Image.Image:
    """Open one image file with Pillow, and refuse one whose bytes say that they were altered.

    Pillow checks no checksum of a PNG's pixels and hides what libjpeg warns about.

    Args:
        path: The file.
        content: Its bytes, where they are in memory already.

    Returns:
        The image as stored, in a mode of Pillow; JPEG is decoded already. To be used in a `with`.

    Raises:
        ValueError: The file is corrupt, and how; or decoding it takes more than an image of its size may.
        Image.DecompressionBombError: It has more pixels than are allowed.
        Exception: Whatever Pillow raises for a file that it cannot open.
    """
    limit = _limit_pixels()
    if _begins_as_png(path, content):
        with io.BytesIO(content) if content is not None else open_file(path) as file:
            check_png(file)  # before Pillow, which reads any part into memory
    image = Image.open(path if content is None else io.BytesIO(content), formats=FORMATS)
    try:
        if image.width * image.height > limit:
            raise Image.DecompressionBombError(f"{image.width * image.height} pixels, more than {limit}")
        if image.format in ("JPEG", "MPO"):
            return _decoded_jpeg(image, read_bytes(path, MOST_FILE_BYTES) if content is None else content)
        return image
    except BaseException:
        image.close()
        raise


MOST_PIXELS = 2**27
"""Of an image, unless the environment allows more: 134 megapixels. Decoded, as RGB and as an array an image takes 11
bytes for each, 1.5 GB."""

MOST_FILE_BYTES = 2**30
"""Of an image file: what so many pixels take without compression, of two bytes for each color."""

MOST_PART_BYTES = 2**24
"""Of a part of a PNG beside its pixels: a color profile, EXIF, text."""

MOST_SCANS = 200
"""Of a JPEG: a progressive one has some ten, and each may stand for all pixels in a few bytes."""


def _begins_as_png(path: str | Path, content: bytes | None) -> bool:
    """Whether a file is a PNG by its first bytes.

    Raises:
        OSError: It cannot be read, is no file, or is larger than any image.
    """
    if content is not None:
        return content.startswith(_PNG)
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_FILE_BYTES:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, an image file at most {MOST_FILE_BYTES:,}")
        return file.read(len(_PNG)) == _PNG


_PNG = b"\x89PNG\r\n\x1a\n"


def allowed_pixels(by_itself: int = MOST_PIXELS) -> int:
    """Of how many pixels an image, or a frame of a video, may be.

    Args:
        by_itself: How many unless the environment states a number.

    Raises:
        UserError: What the environment states is no number.
    """
    stated = os.environ.get(MAX_PIXELS)
    if stated is None:
        return by_itself
    if not stated.isdecimal() or not 1 <= len(stated) <= 18 or int(stated) < 1:
        raise UserError(f"{MAX_PIXELS} is {stated!r}; expected a number of pixels, such as 500000000.")
    return int(stated)


def _limit_pixels() -> int:
    """Lets Pillow take images of as many pixels as are allowed, and returns that number.

    By itself it refuses those of more than 178,956,970.
    """
    limit = allowed_pixels()
    if MAX_PIXELS in os.environ:
        set_pixel_limit((limit + 1) // 2)
    return limit


@contextmanager
def restored_limit() -> Iterator[None]:
    """Within it, the environment may be given another limit of pixels: afterwards it is as before."""
    stated, pillows = os.environ.get(MAX_PIXELS), pixel_limit()
    try:
        yield
    finally:
        set_pixel_limit(pillows)
        os.environ.pop(MAX_PIXELS, None)
        if stated is not None:
            os.environ[MAX_PIXELS] = stated


def describe_unknown(path: str | Path, content: bytes | None = None) -> str:
    """What is the matter with a file that Pillow does not take for an image; its content where that is in memory."""
    if content is None:
        with open_file(path) as file:
            content = file.read(12)
    if not content:
        return "the file is empty (0 bytes)"
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC_BRANDS:
        return _HEIC_ADVICE
    return "its content is not an image of any known format"


def describe_excess(error: Image.DecompressionBombError) -> str:
    """What is the matter with a file of too many pixels, and how to allow them."""
    numbers = [int(number) for number in re.findall(r"\d+", str(error))]
    pixels, limit = numbers if len(numbers) == 2 else (0, 0)
    limit = min(limit, allowed_pixels())  # Pillow's own may be higher
    excess = f"it has {pixels:,} pixels, more than the {limit:,} that are allowed" if pixels else str(error)
    return f"{excess}; allow more by --max_pixels (or {MAX_PIXELS})"


def _is_rotated(image: Image.Image) -> bool:
    """Whether an image is to be shown rotated or flipped."""
    with suppress(Exception):  # broken EXIF
        return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    return False


def _note_peculiarities(image: Image.Image, is_rotated: bool) -> None:
    """Notes of an image that was read, but not as its pixels are stored, or not all of it."""
    if is_rotated:
        remark(ROTATED)
    with suppress(Exception):  # broken frames behind a first one that is whole
        if getattr(image, "is_animated", False):
            remark(SEVERAL_PICTURES)


_ORIENTATION = 0x0112


def check_png(file: BinaryIO) -> None:
    """Check that a PNG file is whole: all its parts are there, and each has the checksum that it states.

    https://www.w3.org/TR/png-3/#5Chunk-layout

    Args:
        file: At its start. Little of it is in memory at a time.

    Raises:
        ValueError: It is not whole, or a part beside the pixels is larger than such a part may be.
    """
    file.seek(len(_PNG))
    while len(head := file.read(8)) == 8:
        length, chunk_type = int.from_bytes(head[:4]), head[4:]
        part = chunk_type.decode("ascii", "replace")
        if chunk_type not in (b"IDAT", b"fdAT") and length > MOST_PART_BYTES:
            raise ValueError(f"its part {part!r} has {length:,} bytes, such a part at most {MOST_PART_BYTES:,}")
        checksum = zlib.crc32(chunk_type)
        while length and (piece := file.read(min(length, 2**20))):
            checksum = zlib.crc32(piece, checksum)
            length -= len(piece)
        stated = file.read(4)
        if length or len(stated) < 4:
            break
        if checksum != int.from_bytes(stated):
            raise ValueError(f"it is corrupt, as the checksum of its part {part!r} fails")
        if chunk_type == b"IEND":
            return
    raise ValueError("it is corrupt or truncated, as it has no end")


def _decoded_jpeg(image: Image.Image, content: bytes) -> Image.Image:
    """An opened JPEG, decoded; the pixels are those of Pillow, which takes a little longer.

    Raises:
        ValueError: libjpeg warns about the file, or cannot decode it.
    """
    scans = content.count(b"\xff\xda")  # nothing else is written so, in a thumbnail's data neither
    if scans > MOST_SCANS:
        raise ValueError(f"it has {scans:,} scans, an image at most {MOST_SCANS}")
    colors = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}.get(image.mode)
    if colors is None:
        return image
    try:
        pixels = simplejpeg.decode_jpeg(content, colors, strict=True)
    except ValueError as error:
        try:
            simplejpeg.decode_jpeg(content, colors, strict=False)
        except ValueError:
            return image  # of a kind that simplejpeg does not know, or beyond repair: Pillow reports it
        raise ValueError(f"it is corrupt or truncated ({error})") from error
    if image.mode == "CMYK":  # whose inks mean different things in different files, which Pillow knows
        return image
    decoded = Image.fromarray(pixels[..., 0] if image.mode == "L" else pixels)
    decoded.format = image.format
    decoded.info = image.info  # EXIF among it
    vars(decoded)["is_animated"] = getattr(image, "is_animated", False)  # of MPO, which holds several JPEGs
    image.close()
    return decoded


def list_images(source: str | Path) -> list[Path]:
    """The image files that `source` names, in natural order (img2 before img10).

    Args:
        source: A file (taken whatever its ending), a folder (searched with its subfolders) or a glob pattern
            (`**` crosses folders). Folders and patterns skip hidden files and those without an image's ending.

    Raises:
        UserError: Nothing is there, or nothing that is an image.
    """
    return list_files(source, "image", IMAGE_EXTENSIONS)


def list_files(source: str | Path, media: str, extensions: tuple[str, ...]) -> list[Path]:
    """The images, or the videos, that `source` names, in natural order (img2 before img10).

    Args:
        source: A file, a folder or a glob pattern, as in `list_images`.
        media: What messages call such a file: image, video.
        extensions: Endings in lower case that mark such files in a folder.

    Raises:
        UserError: Nothing is there, or no such file.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    candidates = set(files_below(path) if path.is_dir() else _match_pattern(str(path)))
    files = sorted((file for file in candidates if has_extension(file, extensions)), key=natural_order)
    others = candidates.difference(files)
    if not files:
        known = ", ".join(extensions)
        reason = f"holds no {media}" if path.is_dir() else f"does not exist, and as a pattern it matches no {media}"
        article = "an" if media[0] in "aeiou" else "a"
        rest = describe_others(others, media)
        raise UserError(
            f"{printable(source)} {reason}{rest and f', but {rest}'}. Expected {article} {media} file, a folder or a "
            f"glob pattern; endings: {known}."
        )
    mention_others(path, others, media)
    return files


def mention_others(folder: str | Path, files: Iterable[Path], media: str) -> None:
    """Says in a line how many files in a folder are no images, or no videos, and so are left out."""
    if text := describe_others(files, media):
        rank_zero_only(log.warning)("%s: left out: %s", printable(folder), text)


def describe_others(files: Iterable[Path], media: str) -> str:
    """How many files are not of a kind, by their endings, and what to do about HEIC; empty where there are none.

    Hidden files do not count.
    """
    endings = Counter(printable(file.suffix.lower() or "no ending") for file in files if not file.name.startswith("."))
    if not endings:
        return ""
    listed = ", ".join(f"{number} × {ending}" for ending, number in endings.most_common(4))
    more = ", …" if len(endings) > 4 else ""
    number = endings.total()
    text = f"{number} file{'s' * (number > 1)} that {'are' if number > 1 else 'is'} no {media} ({listed}{more})"
    has_heic = media == "image" and any(ending in endings for ending in HEIC_EXTENSIONS)
    return f"{text}. {_HEIC_ADVICE}" if has_heic else text


def files_below(folder: str | Path) -> Iterator[Path]:
    """The files in a folder and its subfolders, hidden folders left out; links to files and to folders are followed.

    A folder is searched once, whatever links lead to it: where it really is, if that is below `folder`. Links back to
    where they lie are not followed. Warnings count such links, and folders that cannot be searched. Links to nothing
    count as files: that there is nothing is reported when they are read.
    """
    seen = {_identity(parent) for parent in Path(folder).resolve().parents}
    not_followed: list[str] = []
    refused: list[str] = []
    starts = [str(folder)]
    while starts:
        links: list[str] = []
        for start in starts:
            if _identity(start) in seen:
                not_followed.append(start)
                continue
            seen.add(_identity(start))

            for parent, folders, files in os.walk(start, onerror=lambda error: refused.append(str(error.filename))):
                paths = [os.path.join(parent, name) for name in sorted(folders) if not name.startswith(".")]
                links += [path for path in paths if os.path.islink(path)]
                real = [path for path in paths if not os.path.islink(path) and _identity(path) not in seen]
                seen.update(map(_identity, real))
                folders[:] = map(os.path.basename, real)
                yield from (Path(parent, name) for name in sorted(files) if _is_file(os.path.join(parent, name)))
        starts = links
    _warn(folder, "links lead to folders that are searched anyway or lie above, and are not followed", not_followed)
    _warn(folder, "folders cannot be searched", refused)


def _identity(folder: str | Path) -> tuple[int, int]:
    """What distinguishes a folder from others, by whatever name it is reached."""
    try:
        stat = os.stat(folder)
    except OSError:  # it has just gone, or nobody may look
        return (-1, -1)
    return (stat.st_dev, stat.st_ino)


def _is_file(path: str) -> bool:
    """Whether it is a file, or a link to nothing; no folder, pipe or device."""
    return os.path.isfile(path) or not os.path.exists(path)


def _warn(folder: str | Path, what: str, paths: list[str]) -> None:
    if paths:
        few = ", ".join(map(printable, paths[:3])) + (", …" if len(paths) > 3 else "")
        log.warning("%s: %d %s: %s", printable(folder), len(paths), what, few)


def _match_pattern(pattern: str) -> list[Path]:
    """The files that a glob pattern matches; `**` matches the folders that `files_below` searches."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return [Path(name) for name in glob.glob(pattern) if _is_file(name)]
    wildcard = parts.index("**")
    starts = glob.glob(os.path.join(*parts[:wildcard])) if wildcard else ["."]
    return [
        path
        for start in starts
        if os.path.isdir(start)
        for path in files_below(start)
        if _matches(path.relative_to(start).parts, parts[wildcard:])
    ]


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether the parts of a path match those of a pattern, in which `**` stands for any number of them."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skipped:], pattern[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def has_extension(name: str | Path, extensions: tuple[str, ...]) -> bool:
    """Whether a file's name ends so. Hidden files, such as macOS' `._x.jpg`, do not count."""
    path = Path(name)
    return path.suffix.lower() in extensions and not path.name.startswith(".")


def has_image_extension(name: str | Path) -> bool:
    """Whether a file of this name is taken for an image."""
    return has_extension(name, IMAGE_EXTENSIONS)


STRIP_PIXELS = 2**22
"""Pixels of an image that are converted at a time, where that takes more memory than the result."""


def strips_of(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """An image in strips of whole rows, one after the other, each with the number of its first row."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield top, image if rows >= image.height else image.crop((0, top, image.width, bottom))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.has_transparency_data:
        picture = Image.new("RGB", image.size)
        for top, strip in strips_of(image):
            white = Image.new("RGBA", strip.size, "white")
            picture.paste(Image.alpha_composite(white, strip.convert("RGBA")).convert("RGB"), (0, top))
        return picture
    is_own = image.mode == "RGB" and not getattr(image, "readonly", False)  # and not the file's memory
    return image if is_own else image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grayscale of 16 bits scaled to 8. Pillow's own conversion clips at 255 and would return a white picture."""
    gray = Image.new("L", image.size)
    for top, strip in strips_of(image):
        pixels = np.asarray(strip)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            # What is black and what is white in such files is a convention of whoever wrote them.
            raise ValueError(
                "its pixels are 32-bit numbers without a known range; save it with 8 or 16 bits per channel"
            )
        scaled = (pixels.astype(np.float32) * (255 / 65535)).round().astype(np.uint8)
        gray.paste(Image.fromarray(scaled), (0, top))
    return gray


def natural_order(path: Path) -> tuple[list[str | int], str]:
    """Sort key that compares runs of digits as numbers and letters without case: img2 comes before img10."""
    parts = re.split(r"(\d+)", str(path))  # text and digits take turns, so that like is compared with like
    return [int(part) if part.isdecimal() else part.lower() for part in parts], str(path)


def unreadable(path: str | Path, reason: str) -> UserError:
    """The error for an image that cannot be read."""
    return UserError(
        f"Cannot read the image {printable(path)}: {reason}. Replace the file, or remove it from the dataset."
    )
