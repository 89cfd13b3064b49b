"""Folders of frames: a video is a folder whose images, in natural order, are its frames.

``train/CLASS/VIDEO/*.jpg`` and ``val/CLASS/VIDEO/*.jpg``, or ``CLASS/VIDEO/*.jpg`` without splits.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from swinv2_tasks.datamodules.classes import Classes, abbreviate, classes_of_folders
from swinv2_tasks.datamodules.layouts import Split, Tree, join
from swinv2_tasks.datamodules.readers.images import has_image_extension, natural_order, read_image
from swinv2_tasks.datamodules.readers.labeled_videos import VideoSample
from swinv2_tasks.datamodules.readers.video_packets import UnreadableVideo
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable


class FrameFolder:
    """A folder of frames, read like a video file.

    Args:
        path: The folder.

    Raises:
        UnreadableVideo: It holds no image.
    """

    def __init__(self, path: str) -> None:
        self._files = frame_files(path)
        if not self._files:
            raise UnreadableVideo("it is a folder without images")

    def __len__(self) -> int:
        return len(self._files)

    def read(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Frames by number, uint8 RGB (H, W, 3) each.

        Raises:
            UnreadableVideo: One cannot be read, or is of another size than the first.
        """
        frames: list[np.ndarray] = []
        for number in numbers:
            try:
                frames.append(np.asarray(read_image(self._files[number])))
            except UserError as error:
                raise UnreadableVideo(f"frame {number}: {error}") from error
            if frames[-1].shape != frames[0].shape:
                name = printable(self._files[number].name)
                raise UnreadableVideo(f"frame {number} ({name}) is of another size than the others")
        return frames

    def close(self) -> None:
        """Nothing is open between two reads."""


def frame_files(path: str | Path) -> list[Path]:
    """The images in a folder, in natural order."""
    return sorted((file for file in Path(path).iterdir() if has_image_extension(file)), key=natural_order)


class FrameFolders:
    """Folders of frames in class folders.

    Args:
        tree: The dataset's folder.
        folders: The folder of each split.
        has_splits: Whether there are splits; without, all is the training's.
    """

    validation_settings = None
    multi_label = False

    def __init__(self, tree: Tree, folders: dict[Split, str], has_splits: bool) -> None:
        self._tree = tree
        self._folders = folders
        self.has_splits = has_splits

    def classes(self) -> Classes:
        """The class folders of the training videos, or of the validation's where there are no others."""
        return classes_of_folders(self._tree.root / self._folders["train" if self.has("train") else "val"])

    def has(self, split: Split) -> bool:
        """Whether there is a folder of a split."""
        return split in self._folders

    def place(self, split: Split) -> str:
        """The folder of a split."""
        return str(self._tree.root / self._folders.get(split, split))

    def videos(self, split: Split, classes: Classes) -> list[VideoSample]:
        """The folders of frames of a split, and their class indices."""
        if not self.has(split):
            raise UserError(f"There is no folder {printable(self.place(split))} of videos.")
        parent = self._folders[split]
        names = self._tree.folders(parent)
        index_of = classes.index_of(names, self._tree.root / parent)
        if unknown := [name for name in names if name not in index_of]:
            raise UserError(
                f"{printable(self.place(split))} has folders that are no class: {abbreviate(unknown)}. Classes: "
                f"{abbreviate(classes.ids)}. Remove the folders, or set data.class_names to the list that they belong "
                "to."
            )
        return [
            (str(self._tree.root / parent / name / video), index_of[name])
            for name in names
            for video in self._tree.folders(join(parent, name))
        ]

    def verdict_folders(self, split: Split) -> list[Path]:
        """The dataset's folder."""
        return [self._tree.root]


def frame_folders(tree: Tree) -> tuple[dict[Split, str], bool]:
    """The folders of the splits in which class folders hold folders of images, and whether there are splits."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    named = {split: tree.split_folder(split) for split in splits}
    folders = {split: name for split, name in named.items() if name is not None and _holds_frames(tree, name)}
    if any(named.values()):
        return folders, True
    return ({"train": ""} if _holds_frames(tree, "") else {}), False


def _holds_frames(tree: Tree, parent: str) -> bool:
    """Whether the first folder in the first class folder holds images."""
    for name in tree.folders(parent)[:1]:
        for video in tree.folders(join(parent, name))[:1]:
            return any(map(has_image_extension, tree.files(join(join(parent, name), video))))
    return False


def find_frames(tree: Tree) -> str | None:
    """The folders of the splits, with what is in them."""
    folders, _ = frame_folders(tree)
    return ", ".join(join(name, "CLASS/VIDEO/*.jpg") for name in folders.values()) or None


def open_frames(tree: Tree) -> FrameFolders:
    """The dataset in a folder."""
    return FrameFolders(tree, *frame_folders(tree))
