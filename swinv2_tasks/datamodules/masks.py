"""Reading and writing label maps: PNG files whose pixels are class numbers, not colours."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from swinv2_tasks.datamodules.images import open_image
from swinv2_tasks.errors import UserError, printable


def read_labels(path: str | Path, num_classes: int) -> np.ndarray:
    """Read a label map.

    Args:
        path: A grayscale or palette PNG of 8 bits or fewer per pixel; a palette's colours do not matter.
        num_classes: The largest label allowed.

    Returns:
        Labels, uint8 (H, W), in 0 … num_classes.

    Raises:
        UserError: The file is missing or broken, holds colours or 16-bit numbers, or a label above the class count; the
            message names it.
    """
    name = printable(path)
    try:
        content = Path(path).read_bytes()
        with open_image(path, content) as image:
            mode, kind = image.mode, image.format
            if mode in ("L", "P", "1"):
                labels = np.array(image, dtype=np.uint8)
    except FileNotFoundError as error:
        raise UserError(f"There is no label map {name}.") from error
    except Image.UnidentifiedImageError as error:
        empty = "the file is empty (0 bytes)" if not content else "its content is not an image of any known format"
        raise UserError(f"Cannot read the label map {name}: {empty}. Replace it.") from error
    # Pillow's decoders raise whatever the bytes provoke.
    except Exception as error:
        raise UserError(f"Cannot read the label map {name}: {error or type(error).__name__}. Replace it.") from error
    if mode.startswith(("I", "F")):
        raise UserError(
            f"The label map {name} has 16 or more bits per pixel (mode {mode}); expected 8: write labels 0 to "
            f"{num_classes} as an 8-bit PNG."
        )
    if mode not in ("L", "P", "1"):
        raise UserError(
            f"The label map {name} holds colours (mode {mode}); expected one class number per pixel, in a grayscale "
            "or palette PNG. Convert its colours to class numbers first."
        )
    if kind == "JPEG":
        raise UserError(f"The label map {name} is a JPEG, whose compression changes class numbers; save it as a PNG.")
    if mode == "L" and kind == "PNG":
        labels = labels // _spread(content)
    if labels.max() > num_classes:
        wrong = [int(label) for label in np.unique(labels) if label > num_classes]
        raise UserError(
            f"The label map {name} has labels above the class count {num_classes}: {', '.join(map(str, wrong[:8]))}. "
            "Expected 0 for unlabelled pixels and 1 for the first class; data.class_names states the classes."
        )
    return labels


def _spread(content: bytes) -> int:
    """By what Pillow multiplies the pixels of a grayscale PNG of less than 8 bits, to make it look right."""
    bits = content[24]
    return {2: 85, 4: 17}.get(bits, 1)


def write_labels(path: Path, labels: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> None:
    """Write a label map as a palette PNG.

    Args:
        path: The file; its folder must be there.
        labels: uint8 (H, W), 0 for none.
        colours: RGB of labels 1, 2, …; 0 is black.
    """
    image = Image.fromarray(labels)
    image.putpalette([value for colour in ((0, 0, 0), *colours) for value in colour])
    image.save(path, compress_level=zlib.Z_BEST_SPEED)
