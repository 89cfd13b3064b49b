"""Kinetics' layout: folders of videos for each split, with class folders in them or lists that name their videos.

Kinetics: https://arxiv.org/abs/1705.06950.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from swinv2_tasks.datamodules.classes import Classes, classes_of_folders
from swinv2_tasks.datamodules.layouts import Split, Tree
from swinv2_tasks.datamodules.readers.frame_folders import find_frames
from swinv2_tasks.datamodules.readers.label_cells import Labels
from swinv2_tasks.datamodules.readers.labeled_videos import VideoSample
from swinv2_tasks.datamodules.readers.video_lists import VideoLists, folder_videos
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable


@dataclass(frozen=True)
class VideoFiles:
    """Where the videos of each split are. Paths are in the dataset's root, or absolute.

    Args:
        train_videos: Folder of training videos.
        train_list: List of training videos. None: train.csv or train.txt if there is one, else the class folders of
            train_videos.
        val_videos: Folder of validation videos.
        val_list: List of validation videos.
        test_videos: Folder of test videos; None: the validation videos are tested on.
        test_list: List of test videos.
        split: UCF101 and HMDB51: which of the three official splits.
    """

    train_videos: str = "train"
    train_list: str | None = None
    val_videos: str = "val"
    val_list: str | None = None
    test_videos: str | None = None
    test_list: str | None = None
    split: int = 1


class KineticsSource:
    """Videos that lists name, or that lie in class folders.

    Args:
        root: The dataset's folder.
        files: Where the videos and lists of each split are.
        expected: What is expected in root, for messages.
        labels: How many labels a video has, as a setting states it; None: what the lists show.
    """

    has_splits = True
    validation_settings = "data.files.val_videos or data.files.val_list"

    def __init__(self, root: Path, files: VideoFiles, expected: str, labels: Labels | None = None) -> None:
        self.root = root
        self._expected = expected
        self._labels = labels
        self._lists: dict[Split, str | None] = {
            "train": files.train_list,
            "val": files.val_list,
            "test": files.test_list,
        }
        self._folders: dict[Split, str | None] = {
            "train": files.train_videos,
            "val": files.val_videos,
            "test": files.test_videos,
        }

    @property
    def multi_label(self) -> bool:
        """Whether a video may have any number of labels."""
        return self._labels == "several" if self._labels else self._video_lists.multi_label

    @cached_property
    def _video_lists(self) -> VideoLists:
        """The lists of all splits, which tell together what stands between labels."""
        paths = [path for split in self._lists if self.has(split) and (path := self._list(split)) is not None]
        return VideoLists(list(dict.fromkeys(paths)), self._labels)

    def classes(self) -> Classes:
        """The labels in the training list, or its class folders; the validation's where there is no other."""
        splits: tuple[Split, ...] = ("train", "val")
        for split in splits:
            if (path := self._list(split)) is not None:
                labels = self._video_lists.labels(path)
                return Classes(labels, labels)
            if (folder := self._folder(split)).is_dir():
                return classes_of_folders(folder)
        raise UserError(f"There are no videos in {printable(self.root)}. {self._expected}")

    def has(self, split: Split) -> bool:
        """Whether there is a list or a folder of a split's videos."""
        if self._lists[split] is None and self._folders[split] is None:
            return False  # of the test split, which settings alone name
        return self._list(split) is not None or (self._folders[split] is not None and self._folder(split).is_dir())

    def place(self, split: Split) -> str:
        """The list of a split's videos that is stated, or their folder."""
        stated = self._lists[split]
        return str(self._folder(split) if stated is None else self.root / stated)

    def videos(self, split: Split, classes: Classes) -> list[VideoSample]:
        """Paths and class indices of the videos of a split, missing ones included."""
        folder = self._folder(split)
        path = self._list(split)
        if path is not None:
            return self._video_lists.videos(path, [folder, self.root, path.parent], classes)
        if self._lists[split] is not None:
            raise UserError(f"The list {self.place(split)} (data.files.{split}_list) does not exist. {self._expected}")
        if not folder.is_dir():
            raise UserError(f"The folder {folder} of videos does not exist, nor is there a list. {self._expected}")
        return folder_videos(folder, classes, f"data.files.{split}_videos={self._folders[split]}")

    def verdict_folders(self, split: Split) -> list[Path]:
        """The dataset's folder, and that of the split's list."""
        path = self._list(split)
        return [self.root] if path is None else [self.root, path.parent]

    def _folder(self, split: Split) -> Path:
        return self.root / str(self._folders[split] or "")

    def _list(self, split: Split) -> Path | None:
        """The list of a split's videos, if there is one."""
        stated = self._lists[split]
        names = (f"{split}.csv", f"{split}.txt") if stated is None else (stated,)
        return next((self.root / name for name in names if (self.root / name).is_file()), None)


def find_kinetics(tree: Tree, files: VideoFiles) -> str | None:
    """The lists of the splits that are there, or the folders of their videos."""
    lists = [name for split in ("train", "val") for name in (f"{split}.csv", f"{split}.txt") if tree.has_file(name)]
    folders = [] if find_frames(tree) else [files.train_videos, files.val_videos]
    folders = [name for name in folders if (tree.root / name).is_dir()]
    return ", ".join(lists or [f"{name}/CLASS/" for name in folders]) or None
