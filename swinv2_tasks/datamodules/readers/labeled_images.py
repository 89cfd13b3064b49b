"""What the readers of datasets of labeled images have in common, whatever their layout."""

from collections.abc import Collection, Sequence
from typing import Protocol

from swinv2_tasks.datamodules.classes import Classes
from swinv2_tasks.datamodules.layouts import SetAside, Split, Splits, first_labels, source_split
from swinv2_tasks.datamodules.readers.image_lists import Sample
from swinv2_tasks.datamodules.readers.packed_samples import labels_of, select


class ImageSource(Splits, Protocol):
    """The labeled images of a dataset, as the reader of a layout has them."""

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of labels, so that all samples have lists of them."""

    @property
    def table_names(self) -> Collection[str]:
        """Files in the dataset's folder that have the labels, and so are no class lists."""

    def classes(self) -> Classes:
        """The classes that the layout shows, as its folders; a class list may state others.

        Raises:
            UserError: There are none.
        """

    def samples(self, split: Split, classes: Classes) -> Sequence[Sample]:
        """The images of a split and their labels, in an order that does not change.

        Args:
            split: Which split.
            classes: Those of the run; labels on disk are their ids or their indices.

        Raises:
            UserError: What is there does not fit the classes, or there is nothing.
        """


class SetAsideImages(SetAside[ImageSource]):
    """A dataset without validation images: a share of each class's training images is set aside for that."""

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of labels."""
        return self.source.multi_label

    @property
    def table_names(self) -> Collection[str]:
        """Those of the dataset."""
        return self.source.table_names

    def classes(self) -> Classes:
        """Those of the dataset."""
        return self.source.classes()

    def samples(self, split: Split, classes: Classes) -> Sequence[Sample]:
        """The images of a split and their labels."""
        samples = self.source.samples(source_split(split), classes)
        return select(samples, self.kept(split, first_labels(labels_of(samples))))
