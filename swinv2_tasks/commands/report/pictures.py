"""Pictures of samples for a report, drawn from their files, which may be gone by then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from swinv2_tasks.commands.report.blocks import Picture
from swinv2_tasks.commands.report.run import Run
from swinv2_tasks.datamodules.readers.channels import RGB_READER, ImageReader
from swinv2_tasks.errors import UserError
from swinv2_tasks.pages import embed

SIDE = 320
"""Pixels of a picture's longer side."""

MOST_BYTES = 40_000
"""Of a picture."""

Draw = Callable[[Image.Image], Sequence[Image.Image]]
"""Makes of a file's image, RGB, the pictures that are shown of it."""


@dataclass(frozen=True)
class Drawing:
    """What is to be drawn of a file."""

    file: str
    draw: Draw
    number: int = 1
    """How many pictures ``draw`` gives."""


def reader_of(run: Run) -> ImageReader:
    """Reads images as the run has read them; RGB where its config does not say."""
    data = run.config.get("data")
    settings = data.get("init_args") if isinstance(data, Mapping) else None
    if not isinstance(settings, Mapping):
        return RGB_READER
    channels, ends = settings.get("channels", 3), settings.get("value_range")
    value_range = (ends[0], ends[1]) if isinstance(ends, list | tuple) and len(ends) == 2 else None
    return ImageReader(
        channels if isinstance(channels, int) else 3, value_range, settings.get("exif_rotation") is not False
    )


def draw_files(reader: ImageReader, drawings: Sequence[Drawing]) -> list[list[Image.Image] | None]:
    """The pictures of each file; None of a file that cannot be read any more.

    One file after the other: what Pillow warns of is kept back for all threads at once.
    """

    def draw(drawing: Drawing) -> list[Image.Image] | None:
        try:
            return [*drawing.draw(reader.picture(Path(drawing.file)))]
        except (UserError, OSError, ValueError, MemoryError):  # of a file that has changed since
            return None

    return [draw(drawing) for drawing in drawings]


def gray_picture(side: int = SIDE) -> Image.Image:
    """What stands for an image that cannot be read any more."""
    return Image.new("RGB", (side, side * 3 // 4), "lightgray")


def embedded(image: Image.Image, text: str, most_bytes: int = MOST_BYTES) -> Picture:
    """A picture of a page.

    Args:
        image: RGB.
        text: what it shows, for whoever does not see it.
        most_bytes: it is reduced until it fits.
    """
    return Picture(embed(image, most_bytes)[0], text)


def describe_unreadable(number: int) -> str:
    """A sentence on files that cannot be read any more; empty where all can."""
    if not number:
        return ""
    them = "1 image cannot" if number == 1 else f"{number} images cannot"
    return f"{them} be read any more and {'is' if number == 1 else 'are'} shown gray."
