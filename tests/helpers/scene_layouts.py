"""One dataset of scenes in the layouts of several datasets, written from ADE20K's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from swinv2_tasks.datamodules.readers.voc_scenes import voc_color

SPLITS = {"training": "train", "validation": "val"}


def scene_files(scenes: Path, split: str) -> list[tuple[Path, Path]]:
    """The images of a split and their label maps."""
    images = sorted((scenes / "images" / split).iterdir())
    return [(image, scenes / "annotations" / split / f"{image.stem}.png") for image in images]


def save_changed(mask: Path, target: Path, value_of: dict[int, Any]) -> None:
    """A label map with other values or colors; the scenes' are 0 for no class, and 1 to 3."""
    values = np.array(Image.open(mask))
    table = np.array([value_of[value] for value in range(4)], np.uint8)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(table[values]).save(target)


def write_voc(scenes: Path, root: Path, colors: bool = False) -> Path:
    """The classes are VOC's first three; a seam is 255."""
    numbers = {0: 255, 1: 0, 2: 1, 3: 2}
    value_of = {label: voc_color(number) for label, number in numbers.items()} if colors else numbers
    for split, name in SPLITS.items():
        stems = []
        for image, mask in scene_files(scenes, split):
            stems.append(f"{name}_{image.stem}")
            (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
            shutil.copy(image, root / "JPEGImages" / f"{stems[-1]}.jpg")
            save_changed(mask, root / "SegmentationClass" / f"{stems[-1]}.png", value_of)
        (root / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(stems))
    return root


def write_cityscapes(scenes: Path, root: Path, kind: str = "labelIds") -> Path:
    """The classes are Cityscapes' first three; what has none is the label 0 of all, or 255."""
    ids = {0: 0, 1: 7, 2: 8, 3: 11}
    value_of = ids if kind == "labelIds" else {0: 255, 1: 0, 2: 1, 3: 2}
    for split, name in SPLITS.items():
        for number, (image, mask) in enumerate(scene_files(scenes, split)):
            city = f"city{number % 2}"
            stem = f"{city}_{number:06d}"
            target = root / "leftImg8bit" / name / city / f"{stem}_leftImg8bit.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(image).save(target)
            save_changed(mask, root / "gtFine" / name / city / f"{stem}_gtFine_{kind}.png", value_of)
    return root


def write_folders(scenes: Path, root: Path, form: str) -> Path:
    """Images and label maps in folders of the named form, where {0} is the split and {1} the file."""
    for split, name in SPLITS.items():
        for image, mask in scene_files(scenes, split):
            for source, place in zip((image, mask), form.split(), strict=True):
                target = root / place.format(name, image.stem)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    return root
