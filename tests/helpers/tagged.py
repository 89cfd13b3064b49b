"""A dataset of images in which any of three colored squares may be, with their labels in CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("blue", "green", "red")
COLORS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


def tags(index: int) -> list[str]:
    """The classes that hold for an image: all combinations in turn, none of them among these."""
    return [name for bit, name in enumerate(NAMES) if index >> bit & 1]


def write_image(path: Path, classes: Sequence[str], seed: int = 0) -> None:
    """A gray image of 32 pixels with a square of each class's color, each in a corner of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).normal(128, 10, (32, 32, 3))
    for name in classes:
        row, column = divmod(NAMES.index(name), 2)
        pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = COLORS[name]
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def write_tagged(root: Path, train: int = 24, val: int = 16) -> Path:
    """The dataset, as train.csv and val.csv beside a folder of images."""
    for split, number in (("train", train), ("val", val)):
        lines = ["file,labels"]
        for index in range(number):
            name = f"{split}_{index}.png"
            write_image(root / "images" / name, tags(index), seed=index)
            lines.append(f"{name},{'|'.join(tags(index))}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root
