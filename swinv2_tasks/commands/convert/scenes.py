"""Datasets of scenes as ADE20K writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from swinv2_tasks.batches import IGNORED
from swinv2_tasks.commands.convert.files import Copier
from swinv2_tasks.datamodules.ade20k import ADE20KDataModule
from swinv2_tasks.datamodules.layouts import Split
from swinv2_tasks.errors import UserError
from swinv2_tasks.progress import WorkProgress
from swinv2_tasks.text import printable

FOLDERS: dict[Split, str] = {"train": "training", "val": "validation", "test": "testing"}
"""What ADE20K calls the splits."""


def write_scenes(data: ADE20KDataModule, splits: list[Split], folder: Path, copier: Copier) -> None:
    """Writes `images/SPLIT/`, `annotations/SPLIT/*.png` with 0 for what is left out, 1, 2, … for classes, classes.txt.

    Args:
        data: The dataset.
        splits: Those that it has.
        folder: Where to write.
        copier: Copies the images.
    """
    names = data.class_names
    for name in names:
        if printable(name) != name or "\t" in name:
            raise UserError(f"The class {printable(name)} has characters in its name that no list can hold.")
    for split in splits:
        pairs = data.source_on_disk.pairs(split)
        images, labels = (folder / part / FOLDERS[split] for part in ("images", "annotations"))
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        with WorkProgress(f"Writing {split}", len(pairs)) as progress:
            for image, label_map in pairs:
                name = copier.copy(image, images)
                values = data.coding.read(label_map)
                counted = np.where(values == IGNORED, 0, values.astype(np.uint8) + 1).astype(np.uint8)
                Image.fromarray(counted).save(labels / f"{Path(name).stem}.png")
                progress.advance()
    # What follows a comma in a class list is a synonym.
    lines = [name.replace(",", " ") for name in names]
    (folder / "classes.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
