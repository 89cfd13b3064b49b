"""Datasets with images of one row, of one column, and videos of a few rows, in the layout of each task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.helpers import motions, objects, photos, scenes, tiny
from tests.helpers.films import write_film

SIZES = {"row": (1, 20_000), "column": (20_000, 1), "band": (2, 30_000)}
"""Height and width of each."""


def draw(size: tuple[int, int]) -> Image.Image:
    """Gray that grows along the image."""
    values = np.linspace(0, 255, size[0] * size[1]).astype(np.uint8).reshape(size)
    return Image.fromarray(np.stack([values] * 3, axis=-1))


def _write_all(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in SIZES.items():
        draw(size).save(folder / f"{name}.png")
    return [f"{name}.png" for name in SIZES]


def write_classification(root: Path) -> Path:
    tiny.write_images(root, train=2, val=1)
    for split in ("train", "val"):
        _write_all(root / split / "n02")
    return root


def write_photos(root: Path) -> Path:
    photos.write_photos(root, train=2, val=1)
    for split in ("train", "val"):
        _write_all(root / split / "n02")
    return root


def write_scenes(root: Path) -> Path:
    scenes.write_scenes(root, train=4, val=1)
    for split in ("training", "validation"):
        _write_all(root / "images" / split)
        for name, (height, width) in SIZES.items():
            labels = (np.arange(height * width).reshape(height, width) * 3 // (height * width) + 1).astype(np.uint8)
            Image.fromarray(labels).save(root / "annotations" / split / f"{name}.png")
    return root


def write_objects(root: Path) -> Path:
    """Each strip has an object in its middle half."""
    objects.write_objects(root, train=4, val=1)
    for split in ("train", "val"):
        _write_all(root / f"{split}2017")

        def add(content: dict[str, Any]) -> None:
            for number, (name, (height, width)) in enumerate(SIZES.items(), start=1000):
                content["images"].append({"id": number, "file_name": f"{name}.png", "height": height, "width": width})
                box = [0, height // 4, 1, height // 2] if width == 1 else [width // 4, 0, width // 2, height]
                left, top, wide, high = box
                outline = [left, top, left + wide, top, left + wide, top + high, left, top + high]
                content["annotations"].append(
                    {
                        "id": number,
                        "image_id": number,
                        "category_id": 3,
                        "bbox": box,
                        "area": wide * high,
                        "iscrowd": 0,
                        "segmentation": [outline],
                    }
                )

        objects.change(root, split, add)
    return root


def write_motions(root: Path) -> Path:
    """One video of a class has frames of 16 × 4,000 pixels."""
    motions.write_motions(root, train=2, val=1)
    for split in ("train", "val"):
        video = sorted((root / split).glob("*.mp4"))[0]
        write_film(video, frames=10, size=(16, 4000))
    return root
