"""What the readers of datasets of scenes have in common, whatever their layout: images and their label maps."""

from pathlib import Path
from typing import Protocol

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.datamodules.layouts import Split, Splits, describe_set_aside, set_aside
from swinv2_tasks.datamodules.readers.label_values import LabelSettings
from swinv2_tasks.text import say

ScenePair = tuple[Path, Path]
"""An image file and its label map."""


class SceneSource(Splits, Protocol):
    """The images of a dataset and their label maps, as the reader of a layout has them."""

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, where the layout states them."""

    @property
    def label_settings(self) -> LabelSettings | None:
        """What the values of label maps are, where the layout states it."""

    def pairs(self, split: Split) -> list[ScenePair]:
        """The images of a split, each with the label map that it has, or should have.

        Raises:
            UserError: A folder or list is missing, or there is no image.
        """


class SetAsideScenes:
    """A dataset without validation images, of whose training images a share is set aside for that.

    Args:
        source: The dataset.
        share: What share.
        seed: Which of them.
    """

    has_splits = True
    validation_settings = None

    def __init__(self, source: SceneSource, share: float, seed: int) -> None:
        self._source = source
        self._share = share
        self._seed = seed
        self.class_names = source.class_names
        self.label_settings = source.label_settings

    def has(self, split: Split) -> bool:
        """Whether there are data of a split; of validation where there are training data."""
        return self._source.has("train" if split == "val" else split)

    def place(self, split: Split) -> str:
        """Where the data of a split are."""
        return self._source.place("train" if split == "val" else split)

    def pairs(self, split: Split) -> list[ScenePair]:
        """The images of a split and their label maps."""
        if split == "test":
            return self._source.pairs(split)
        pairs = self._source.pairs("train")
        aside = set_aside([0] * len(pairs), self._share, self._seed)
        if split == "val":
            rank_zero_only(say)(describe_set_aside(aside, self._share, "images"))
        (kept,) = np.nonzero(aside if split == "val" else ~aside)
        return [pairs[index] for index in kept]
