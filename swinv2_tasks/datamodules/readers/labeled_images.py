"""What the readers of datasets of labeled images have in common, whatever their layout."""

from typing import Protocol

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.datamodules.classes import Classes
from swinv2_tasks.datamodules.layouts import Split, Splits, describe_set_aside, set_aside
from swinv2_tasks.datamodules.readers.image_lists import Sample
from swinv2_tasks.text import say


class ImageSource(Splits, Protocol):
    """The labeled images of a dataset, as the reader of a layout has them."""

    def classes(self) -> Classes:
        """The classes that the layout shows, as its folders; a class list may state others.

        Raises:
            UserError: There are none.
        """

    def samples(self, split: Split, classes: Classes) -> list[Sample]:
        """The images of a split and their labels, in an order that does not change.

        Args:
            split: Which split.
            classes: Those of the run; labels on disk are their ids or their indices.

        Raises:
            UserError: What is there does not fit the classes, or there is nothing.
        """


class SetAsideImages:
    """A dataset without validation images: a share of each class's training images is set aside for that.

    Args:
        source: The dataset.
        share: What share.
        seed: Which of them.
    """

    has_splits = True
    validation_settings = None

    def __init__(self, source: ImageSource, share: float, seed: int) -> None:
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

    def samples(self, split: Split, classes: Classes) -> list[Sample]:
        """The images of a split and their labels."""
        if split == "test":
            return self._source.samples(split, classes)
        samples = self._source.samples("train", classes)
        aside = self._aside(samples)
        if split == "val":
            rank_zero_only(say)(describe_set_aside(aside, self._share, "images"))
        (kept,) = np.nonzero(aside if split == "val" else ~aside)
        return [samples[index] for index in kept]

    def _aside(self, samples: list[Sample]) -> np.ndarray:
        # Images of several labels go by their first one.
        groups = [label if isinstance(label, int) else (label or [-1])[0] for _, label in samples]
        return set_aside(groups, self._share, self._seed)
