"""What the readers of datasets of labeled videos have in common, whatever their layout."""

from pathlib import Path
from typing import Protocol

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.datamodules.classes import Classes
from swinv2_tasks.datamodules.layouts import Split, Splits, describe_set_aside, set_aside
from swinv2_tasks.text import say

VideoSample = tuple[str, int]
"""Path of a video and its class index."""


class VideoSource(Splits, Protocol):
    """The labeled videos of a dataset, as the reader of a layout has them."""

    def classes(self) -> Classes:
        """The classes that the layout shows, as its folders or labels; a label map may state others.

        Raises:
            UserError: There are none.
        """

    def videos(self, split: Split, classes: Classes) -> list[VideoSample]:
        """Paths and class indices of the videos of a split, missing ones included, in an order that does not change.

        Raises:
            UserError: A folder or list is missing, or its content does not fit the classes.
        """

    def verdict_folders(self, split: Split) -> list[Path]:
        """The folders in which the verdicts of `data check` on a split's videos may lie."""


class SetAsideVideos:
    """A dataset without validation videos: a share of each class's training videos is set aside for that.

    Args:
        source: The dataset.
        share: What share.
        seed: Which of them.
    """

    has_splits = True
    validation_settings = None

    def __init__(self, source: VideoSource, share: float, seed: int) -> None:
        self._source = source
        self._share = share
        self._seed = seed

    def classes(self) -> Classes:
        """Those of the dataset."""
        return self._source.classes()

    def has(self, split: Split) -> bool:
        """Whether there are data of a split; of validation where there are training data."""
        return self._source.has("train" if split == "val" else split)

    def place(self, split: Split) -> str:
        """Where the data of a split are."""
        return self._source.place("train" if split == "val" else split)

    def videos(self, split: Split, classes: Classes) -> list[VideoSample]:
        """The videos of a split and their labels."""
        if split == "test":
            return self._source.videos(split, classes)
        videos = self._source.videos("train", classes)
        aside = set_aside([label for _, label in videos], self._share, self._seed)
        if split == "val":
            rank_zero_only(say)(describe_set_aside(aside, self._share, "videos"))
        (kept,) = np.nonzero(aside if split == "val" else ~aside)
        return [videos[index] for index in kept]

    def verdict_folders(self, split: Split) -> list[Path]:
        """Where verdicts may lie."""
        return self._source.verdict_folders("train" if split == "val" else split)
