"""Videos in which any of three colored squares may be, with their labels in lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.helpers.tagged import tags, write_image


def write_video(path: Path, classes: Sequence[str], seed: int = 0, frames: int = 10) -> None:
    """A video of 32 pixels and a few frames that all show the squares of the classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    still = path.with_suffix(".png")
    write_image(still, classes, seed)
    pixels = np.asarray(Image.open(still).convert("RGB"))
    still.unlink()
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        file.mux(stream.encode())


def write_tagged_videos(root: Path, train: int = 24, val: int = 16) -> Path:
    """The dataset, as train.txt and val.txt beside folders of videos; a line of a video without labels is its path."""
    for split, number in (("train", train), ("val", val)):
        lines = []
        for index in range(number):
            name = f"{split}/{index}.mp4"
            write_video(root / name, tags(index), seed=index + 1000 * (split == "val"))
            lines.append(f"{name} {','.join(tags(index))}".strip())
        (root / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    return root
