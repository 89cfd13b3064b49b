"""What the readers of datasets of scenes have in common, whatever their layout: images and their label maps."""

from pathlib import Path
from typing import Protocol

from swinv2_tasks.datamodules.layouts import SetAside, Split, Splits, source_split
from swinv2_tasks.datamodules.readers.label_maps import LabelMap
from swinv2_tasks.datamodules.readers.label_values import LabelSettings

ScenePair = tuple[Path, LabelMap]
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


class SetAsideScenes(SetAside[SceneSource]):
    """A dataset without validation images, of whose training images a share is set aside for that."""

    @property
    def class_names(self) -> list[str] | None:
        """Those of the dataset."""
        return self.source.class_names

    @property
    def label_settings(self) -> LabelSettings | None:
        """Those of the dataset."""
        return self.source.label_settings

    def pairs(self, split: Split) -> list[ScenePair]:
        """The images of a split and their label maps."""
        pairs = self.source.pairs(source_split(split))
        return [pairs[index] for index in self.kept(split, [0] * len(pairs))]
