"""Samples of images: labeled ones from files and shards, and those to predict."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from swinv2_tasks.batches import ClassificationBatch
from swinv2_tasks.datamodules.readers.channels import RGB_READER, ImageReader
from swinv2_tasks.datamodules.readers.image_lists import Sample
from swinv2_tasks.datamodules.readers.images import read_image
from swinv2_tasks.datamodules.shards import Shards


class LabeledImages(Dataset):
    """Samples {image, label, path} for `ClassificationBatch`.

    Args:
        samples: Paths and labels; all labels are an index, or all are lists of indices.
        num_classes: Length of the rows that lists of indices become.
        transform: What `reader` gives -> (C, H, W) float32.
        reader: Reads the images.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        num_classes: int,
        transform: Callable[[Any], Tensor],
        reader: ImageReader = RGB_READER,
    ) -> None:
        self.reader = reader
        self.samples = samples
        self.num_classes = num_classes
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def sample_id(self, index: int) -> str:
        """The image's file."""
        return self.samples[index][0]

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.samples[index]
        return labeled_sample(self.transform(self.reader.image(path)), label, self.num_classes, path)


class StreamedImages(Dataset):
    """Samples {image, label, path} for `ClassificationBatch`, of images in shards.

    Args:
        shards: The images and their class ids.
        index_of: Class index of each id.
        num_classes: Length of the rows that lists of indices become.
        transform: PIL image -> (3, H, W) float32.
        labels: Labels that replace those of the shards: all are an index, or all are lists of indices.
    """

    def __init__(
        self,
        shards: Shards,
        index_of: dict[str, int],
        num_classes: int,
        transform: Callable[[Image.Image], Tensor],
        labels: list[int | list[int]] | None = None,
    ) -> None:
        self.shards = shards
        self.index_of = index_of
        self.num_classes = num_classes
        self.transform = transform
        self.labels = labels

    def __len__(self) -> int:
        return len(self.shards)

    def sample_id(self, index: int) -> str:
        """The image's name in its shard."""
        return self.shards.name(index)

    def label(self, index: int) -> int | list[int]:
        """A sample's label, for which it is read."""
        return self._label(index, self.shards[index][1])

    def _label(self, index: int, class_id: str) -> int | list[int]:
        return self.index_of[class_id] if self.labels is None else self.labels[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        content, class_id, name = self.shards[index]
        label = self._label(index, class_id)
        return labeled_sample(self.transform(read_image(name, content)), label, self.num_classes, name)


def labeled_sample(image: Tensor, label: int | list[int], num_classes: int, path: str) -> dict[str, Any]:
    """A sample {image, label, path}."""
    return {"image": image, "label": label_row(label, num_classes), "path": path}


def label_row(label: int | list[int], num_classes: int) -> int | Tensor:
    """A label as samples have it: a list of class indices becomes a row (num_classes,) of zeros with ones at these."""
    if isinstance(label, int):
        return label
    row = torch.zeros(num_classes)
    row[label] = 1
    return row


class UnlabeledImages(Dataset):
    """Samples {image, path} for `PredictBatch`.

    Args:
        paths: The image files.
        transform: What `reader` gives -> (C, H, W) float32.
        reader: Reads the images.
    """

    def __init__(self, paths: list[Path], transform: Callable[[Any], Tensor], reader: ImageReader = RGB_READER) -> None:
        self.reader = reader
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def sample_id(self, index: int) -> str:
        """The image's file."""
        return str(self.paths[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.transform(self.reader.image(self.paths[index])), "path": str(self.paths[index])}


class MixCollate:
    """Collates samples into a ClassificationBatch of training, without paths, then mixes it; None mixes nothing."""

    def __init__(self, mix: Callable[[ClassificationBatch], ClassificationBatch] | None) -> None:
        self.mix = mix

    def __call__(self, samples: list[dict[str, Any]]) -> ClassificationBatch:
        """Stacks samples to a batch, and mixes it where mixing is on."""
        batch: ClassificationBatch = default_collate([_without_path(sample) for sample in samples])
        return batch if self.mix is None else self.mix(batch)


def _without_path(sample: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sample.items() if key != "path"}
