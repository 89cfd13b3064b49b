"""Small pictures of findings: the file, with the boxes, polygons or label map that a finding is about."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from swinv2_tasks.callbacks.batch_pictures import side_by_side
from swinv2_tasks.commands.check.findings import Box, Finding
from swinv2_tasks.datamodules.readers.label_maps import read_colors, read_values
from swinv2_tasks.datamodules.readers.videos import Video
from swinv2_tasks.errors import UserError
from swinv2_tasks.pages import embed

SIDE = 240
"""Pixels of a picture's longer side."""

BOX_COLOR = (255, 60, 60)
OUTLINE_COLOR = (40, 200, 255)


Show = Callable[[str], Image.Image]
"""Makes the picture of a file, RGB."""


def picture_of(finding: Finding, show: Show) -> str | None:
    """A picture as a data URL; None where there is nothing to show."""
    try:
        shown = _shown(finding, show)
    except (UserError, OSError, ValueError, MemoryError, IndexError):  # of a file that has changed since
        return None
    if not shown:
        return None
    return embed(side_by_side(shown))[0]


def _shown(finding: Finding, show: Show) -> list[Image.Image]:
    """The pictures that stand side by side."""
    if finding.label_map is not None:
        return [_label_map(finding.label_map)]
    if not finding.is_drawn:
        return []
    return [
        _reduced(show(path), finding.boxes if path == finding.file else (), finding.outlines)
        for path in (finding.file, *finding.others[:1])
    ]


def middle_frame(path: str) -> Image.Image:
    """What is shown of a video."""
    with Video(path) as video:
        return Image.fromarray(video.frames([len(video) // 2])[0])


def _reduced(image: Image.Image, boxes: Sequence[Box], outlines: Sequence[Sequence[float]]) -> Image.Image:
    """An image of the pictures' size with what is drawn on it, at the places that it has on the whole image."""
    scale = min(1.0, SIDE / max(image.size))
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    canvas = ImageDraw.Draw(small)
    for x, y, width, height in boxes:
        left, right = sorted(_within(value * scale, small.width) for value in (x, x + width))
        top, bottom = sorted(_within(value * scale, small.height) for value in (y, y + height))
        canvas.rectangle((left, top, right, bottom), outline=BOX_COLOR, width=2)
    for outline in outlines:
        size = (small.width, small.height)
        corners = [_within(value * scale, size[axis % 2]) for axis, value in enumerate(outline)]
        if len(corners) >= 4:
            canvas.polygon(corners, outline=OUTLINE_COLOR)
    return small


def _within(value: float, side: int) -> float:
    """A coordinate, brought to the image's edge where it lies beyond."""
    return min(max(value, 0.0), side - 1.0)


def _label_map(path: str) -> Image.Image:
    """A label map with a color for each value."""
    try:
        values = read_values(path)
        colors = (np.arange(256)[:, None] * np.array([[67, 139, 197]]) % 256).astype(np.uint8)
        image = Image.fromarray(colors[values])
    except UserError:
        colors = read_colors(path)
        channels = np.stack([colors >> 16 & 255, colors >> 8 & 255, colors & 255], axis=-1)
        image = Image.fromarray(channels.astype(np.uint8))
    return _reduced(image, (), ())
