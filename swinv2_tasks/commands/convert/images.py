"""Datasets of labeled images as tables: a row for each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swinv2_tasks.commands.convert.files import Copier
from swinv2_tasks.datamodules.classes import Classes
from swinv2_tasks.datamodules.imagenet import ImageNetDataModule
from swinv2_tasks.datamodules.layouts import Split
from swinv2_tasks.errors import UserError
from swinv2_tasks.progress import WorkProgress
from swinv2_tasks.tables import write_table
from swinv2_tasks.text import printable

SEPARATOR = "|"
"""Between the labels of an image that has several."""


def write_table_of_images(data: ImageNetDataModule, splits: list[Split], folder: Path, copier: Copier) -> None:
    """Writes `images/SPLIT/`, `SPLIT.csv` with the columns file and label, and the classes as `class_names.csv`.

    Args:
        data: The dataset.
        splits: Those that it has.
        folder: Where to write.
        copier: Copies the images.
    """
    ids = data.class_ids
    for class_id in ids:
        if SEPARATOR in class_id or printable(class_id) != class_id:
            raise UserError(f"The class {printable(class_id)} has characters in its id that no table can hold.")
    classes = Classes(ids, data.class_names)
    for split in splits:
        samples = data.source_on_disk.samples(split, classes)
        images = folder / "images" / split
        images.mkdir(parents=True)
        rows: list[list[Any]] = [["file", "label"]]
        with WorkProgress(f"Writing {split}", len(samples)) as progress:
            for path, label in samples:
                labels = [label] if isinstance(label, int) else label
                text = SEPARATOR.join(ids[index] for index in labels)
                rows.append([f"images/{split}/{copier.copy(path, images)}", text])
                progress.advance()
        write_table(folder / f"{split}.csv", rows)
    write_table(folder / "class_names.csv", [["id", "name"], *zip(ids, data.class_names, strict=True)])
