"""Reading image files: the picture that a viewer shows, or one clear message."""

import glob
import io
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from swinv2_tasks.errors import UserError

IMAGE_EXTENSIONS: tuple[str, ...] = (*IMG_EXTENSIONS, ".gif", ".jfif", ".avif")
"""File name endings, in lower case, that mark an image inside a folder."""


def read_image(path: str | Path, content: bytes | None = None) -> Image.Image:
    """Read one image file as the RGB picture that a viewer shows.

    Grayscale (also of 16 bits), palette and CMYK images become RGB, transparent pixels lie on white, and an EXIF
    orientation is applied. Of an animation, the first frame. Embedded colour profiles are not applied.

    Args:
        path: The file; where its content is given, only what messages call it.
        content: The file's bytes, where they are in memory already.

    Raises:
        UserError: The file is missing, empty, truncated, no image, or decodes to more pixels than Pillow's limit
            against decompression bombs; the message names the path and the reason.
    """
    try:
        with warnings.catch_warnings():
            # Broken EXIF is frequent (ImageNet has some) and no reason to bother anyone: the pixels are whole.
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(path if content is None else io.BytesIO(content)) as image:
                return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise _unreadable(path, "the file does not exist") from error
    except IsADirectoryError as error:
        raise _unreadable(path, "it is a folder") from error
    except Image.UnidentifiedImageError as error:
        empty = not content if content is not None else Path(path).stat().st_size == 0
        reason = "the file is empty (0 bytes)" if empty else "its content is not an image of any known format"
        raise _unreadable(path, reason) from error
    # Pillow's decoders raise whatever the bytes provoke (OSError, SyntaxError, struct.error, zlib.error, …).
    except Exception as error:
        raise _unreadable(path, str(error) or type(error).__name__) from error


def list_images(source: str | Path) -> list[Path]:
    """The image files that `source` names, in natural order (img2 before img10).

    Args:
        source: A file (taken whatever its ending), a folder (searched with its subfolders) or a glob pattern
            (`**` crosses folders). Folders and patterns skip hidden files and those without an image's ending.

    Raises:
        UserError: Nothing is there, or nothing that is an image.
    """
    return list_files(source, "image", IMAGE_EXTENSIONS)


def list_files(source: str | Path, kind: str, extensions: tuple[str, ...]) -> list[Path]:
    """The files of a kind that `source` names, in natural order (img2 before img10).

    Args:
        source: A file, a folder or a glob pattern, as in `list_images`.
        kind: What messages call such a file.
        extensions: Endings in lower case that mark one in a folder.

    Raises:
        UserError: Nothing is there, or nothing of the kind.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    pattern = f"{glob.escape(str(path))}/**/*" if path.is_dir() else str(path)
    named = map(Path, glob.glob(pattern, recursive=True))
    files = sorted((one for one in named if is_kind(one, extensions) and one.is_file()), key=_natural_order)
    if not files:
        known = ", ".join(extensions)
        reason = f"holds no {kind}" if path.is_dir() else f"does not exist, and as a pattern it matches no {kind}"
        article = "an" if kind[0] in "aeiou" else "a"
        raise UserError(
            f"{source} {reason}. Expected {article} {kind} file, a folder or a glob pattern; endings: {known}."
        )
    return files


def is_kind(name: str | Path, extensions: tuple[str, ...]) -> bool:
    """Whether a file's name ends so. Hidden files, such as macOS' `._x.jpg`, do not count."""
    path = Path(name)
    return path.suffix.lower() in extensions and not path.name.startswith(".")


def has_image_extension(name: str | Path) -> bool:
    """Whether a file of this name is taken for an image."""
    return is_kind(name, IMAGE_EXTENSIONS)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grayscale of 16 bits scaled to 8. Pillow's own conversion clips at 255 and would return a white picture."""
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        # What is black and what is white in such files is a convention of whoever wrote them.
        raise ValueError("its pixels are 32-bit numbers without a known range; save it with 8 or 16 bits per channel")
    return Image.fromarray((pixels.astype(np.float32) * (255 / 65535)).round().astype(np.uint8))


def _natural_order(path: Path) -> tuple[list[str | int], str]:
    """Sort key that compares runs of digits as numbers and letters without case."""
    parts = re.split(r"(\d+)", str(path))  # text and digits take turns, so that like is compared with like
    return [int(part) if part.isdecimal() else part.lower() for part in parts], str(path)


def _unreadable(path: str | Path, reason: str) -> UserError:
    return UserError(f"Cannot read the image {path}: {reason}. Replace the file, or remove it from the dataset.")
