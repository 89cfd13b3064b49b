"""What the readers of datasets of labeled videos have in common, whatever their layout."""

from pathlib import Path
from typing import Protocol

from swinv2_tasks.datamodules.classes import Classes
from swinv2_tasks.datamodules.layouts import SetAside, Split, Splits, first_labels, source_split

VideoSample = tuple[str, int | list[int]]
"""Path of a video and its class index; where videos may have any number of labels, the indices of all, in order."""


class VideoSource(Splits, Protocol):
    """The labeled videos of a dataset, as the reader of a layout has them."""

    @property
    def multi_label(self) -> bool:
        """Whether a video may have any number of labels, so that all samples have lists of them."""

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


class SetAsideVideos(SetAside[VideoSource]):
    """A dataset without validation videos: a share of each class's training videos is set aside for that."""

    samples_name = "videos"

    @property
    def multi_label(self) -> bool:
        """Whether a video may have any number of labels."""
        return self.source.multi_label

    def classes(self) -> Classes:
        """Those of the dataset."""
        return self.source.classes()

    def videos(self, split: Split, classes: Classes) -> list[VideoSample]:
        """The videos of a split and their labels."""
        videos = self.source.videos(source_split(split), classes)
        return [videos[index] for index in self.kept(split, first_labels([label for _, label in videos]))]

    def verdict_folders(self, split: Split) -> list[Path]:
        """Where verdicts may lie."""
        return self.source.verdict_folders(source_split(split))
