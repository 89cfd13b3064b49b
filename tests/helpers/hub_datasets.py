"""Images of class folders as the library `datasets` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import datasets

from tests.helpers.archives import class_images
from tests.helpers.tiny import COLORS

Form = Literal["saved", "parquet"]
FORMS: tuple[Form, ...] = ("saved", "parquet")

CLASSES = list(COLORS)


def new_dataset(folder: Path, label: Any = None, feature: Any = None, name: str = "label") -> datasets.Dataset:
    """The images of class folders.

    Args:
        folder: the class folders.
        label: the label of a class; None: its number.
        feature: the type of labels; None: numbers of named classes.
        name: the column of labels.
    """
    images = class_images(folder)
    rows = {
        "image": [{"bytes": image.read_bytes(), "path": image.name} for _, image in images],
        name: [label(class_name) if label else CLASSES.index(class_name) for class_name, _ in images],
    }
    feature = feature or datasets.ClassLabel(names=CLASSES)
    return datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image(), name: feature}))


def write(form: Form, splits: dict[str, datasets.Dataset], root: Path, shards: int = 2) -> Path:
    """Datasets as `save_to_disk` writes them, or as parquet files of the hub."""
    if form == "saved":
        datasets.DatasetDict(splits).save_to_disk(str(root), num_shards=dict.fromkeys(splits, shards))
        return root
    (root / "data").mkdir(parents=True)
    for split, dataset in splits.items():
        for number in range(shards):
            part = dataset.shard(shards, number)
            part.to_parquet(str(root / "data" / f"{split}-{number:05d}-of-{shards:05d}.parquet"), batch_size=4)
    return root


def both_splits(folders: Path, **arguments: Any) -> dict[str, datasets.Dataset]:
    names = {"train": "train", "val": "validation"}
    return {name: new_dataset(folders / split, **arguments) for split, name in names.items()}
