"""Images of class folders within tars, in the order of the folders."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from swinv2_tasks.datamodules import ImageNetDataModule


def class_images(folder: Path) -> list[tuple[str, Path]]:
    """The class and the file of each image in class folders, in the order in which these are read."""
    return [(parent.name, image) for parent in sorted(folder.iterdir()) for image in sorted(parent.iterdir())]


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], **settings: int) -> Path:
    """A tar of files, by their names and contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **settings) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_webdataset(
    folders: Path, root: Path, label: Callable[[str], tuple[str, bytes]], per_tar: int = 4, train: str = "train"
) -> Path:
    """The images of `train/` and `val/` as tars of a few samples each.

    Args:
        folders: the class folders.
        root: where to write.
        label: the ending and the content of the member that has a class's label.
        per_tar: samples of a tar.
        train: what the tars of training images are called.
    """
    for split, name in (("train", train), ("val", "val")):
        images = class_images(folders / split)
        for number, start in enumerate(range(0, len(images), per_tar)):
            members = []
            for index, (class_name, image) in enumerate(images[start : start + per_tar], start):
                ending, content = label(class_name)
                key = f"sub.folder/{class_name}_{index:05d}"
                members += [(f"{key}{image.suffix}", image.read_bytes()), (f"{key}.{ending}", content)]
            write_tar(root / f"{name}-{number:06d}.tar", members)
    return root


def batches(data: ImageNetDataModule) -> list[dict[str, Any]]:
    """Two epochs of training and one of validation."""
    data.setup("fit")
    loaded = []
    for _ in range(2):
        random.seed(0)
        torch.manual_seed(0)
        loaded += list(data.train_dataloader())
    return [*loaded, *data.val_dataloader()]
