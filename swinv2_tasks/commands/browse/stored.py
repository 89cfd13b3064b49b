"""The samples of a split as its files have them: which there are, what classes they show, and how they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from swinv2_tasks.batches import IGNORED
from swinv2_tasks.callbacks.batch_pictures import (
    SIDE,
    SamplePicture,
    draw_scene,
    draw_target,
    name_classes,
    spread_frames,
)
from swinv2_tasks.commands.check.datasets import SPLITS, TaskName
from swinv2_tasks.datamodules import (
    ADE20KDataModule,
    CocoDataModule,
    ImageNetDataModule,
    KineticsDataModule,
    SimMIMDataModule,
)
from swinv2_tasks.datamodules.datasets.classification import LabeledImages, StreamedImages, label_row
from swinv2_tasks.datamodules.datasets.detection import CocoImages
from swinv2_tasks.datamodules.datasets.segmentation import LabeledScenes, Resize
from swinv2_tasks.datamodules.datasets.simmim import MaskedImages
from swinv2_tasks.datamodules.datasets.video import TrainingClips
from swinv2_tasks.datamodules.layouts import Split
from swinv2_tasks.datamodules.readers.annotations import rasterize
from swinv2_tasks.datamodules.readers.videos import Video
from swinv2_tasks.errors import UserError
from swinv2_tasks.pages import reduce
from swinv2_tasks.progress import count_words
from swinv2_tasks.text import printable


@dataclass(frozen=True)
class Labels:
    """The classes that samples show."""

    of: Callable[[int], Collection[int]]
    """Class indices of a sample."""
    are_known: bool = True
    """Whether they are known without reading the sample, which may fail."""


class StoredSamples(Dataset):
    """Samples by index, each drawn.

    Args:
        dataset: Whose samples they are.
        draw: Draws one.
    """

    def __init__(self, dataset: Any, draw: Callable[[int], SamplePicture]) -> None:
        self.dataset = dataset
        self._draw = draw

    def __len__(self) -> int:
        return len(self.dataset)

    def sample_id(self, index: int) -> str:
        """The sample's file."""
        return str(self.dataset.sample_id(index))

    def __getitem__(self, index: int) -> SamplePicture:
        return self._draw(index)


def split_names(task: TaskName, data: Any) -> list[Split]:
    """The splits that there are, as training would have them: some samples may be set aside for validation."""
    if task == "simmim":
        return ["train", "val"]
    return [split for split in SPLITS if data.has(split)]


def open_split(task: TaskName, data: Any, split: Split) -> StoredSamples:
    """The samples of a split.

    Raises:
        UserError: The labels are not in order, or samples are missing all together.
    """
    openers: dict[TaskName, Callable[[Any, Split], StoredSamples]] = {
        "imagenet": _open_images,
        "coco": _open_objects,
        "ade20k": _open_scenes,
        "kinetics": _open_videos,
        "simmim": _open_unlabeled,
    }
    return openers[task](data, split)


def labels_of(dataset: Any) -> Labels:
    """The classes that the samples of a dataset show; none of one without labels."""
    if isinstance(dataset, LabeledImages):
        return Labels(lambda index: _as_collection(dataset.samples[index][1]))
    if isinstance(dataset, StreamedImages):
        return Labels(lambda index: _as_collection(dataset.label(index)), are_known=False)
    if isinstance(dataset, CocoImages):
        ends, labels = dataset.images.object_ends, dataset.images.objects.labels
        return Labels(lambda index: set(labels[ends[index - 1] if index else 0 : ends[index]].tolist()))
    if isinstance(dataset, LabeledScenes):
        return Labels(lambda index: _labels_of_scene(dataset, index), are_known=False)
    if isinstance(dataset, TrainingClips):
        return Labels(lambda index: _as_collection(dataset.videos[index][1]))
    return Labels(lambda index: ())


def _as_collection(label: int | list[int]) -> Collection[int]:
    return (label,) if isinstance(label, int) else label


def _labels_of_scene(dataset: LabeledScenes, index: int) -> Collection[int]:
    labels = np.unique(dataset.coding.read(dataset.pairs[index][1])).tolist()
    return {label for label in labels if label != IGNORED}


# ---- classification


def _open_images(data: ImageNetDataModule, split: Split) -> StoredSamples:
    dataset = data.stored_images(split)
    return StoredSamples(dataset, partial(_draw_image, data, dataset))


def _draw_image(data: ImageNetDataModule, dataset: LabeledImages | StreamedImages, index: int) -> SamplePicture:
    sample = dataset[index]
    image = sample["image"]
    if not isinstance(image, Image.Image):
        image = data.reader.picture(dataset.sample_id(index))
    return SamplePicture([reduce(image, SIDE)], name_classes(sample["label"], data.class_names))


# ---- detection


def _open_objects(data: CocoDataModule, split: Split) -> StoredSamples:
    annotations, folder = data.read_split(split)
    dataset = CocoImages(annotations.images, folder, data.reader)
    return StoredSamples(dataset, partial(_draw_objects, data, dataset))


def _draw_objects(data: CocoDataModule, dataset: CocoImages, index: int) -> SamplePicture:
    """An image with all that is annotated on it, crowds too, of which one mask at a time is in memory."""
    image, pixels = dataset.read(index)
    path = dataset.folder / image.file_name
    shown = Image.fromarray(pixels) if data.channels == 3 else data.reader.picture(path)
    where = f"image {image.id} ({printable(path)})"
    masks = (
        None if entry.segmentation is None else rasterize(entry.segmentation, image.height, image.width, where)
        for entry in image.objects
    )
    boxes = [(x, y, x + width, y + height) for x, y, width, height in (entry.box for entry in image.objects)]
    labels = [entry.label for entry in image.objects]
    crowds = [entry.crowd for entry in image.objects]
    return draw_target(shown, boxes, labels, crowds, masks, data.class_names)


# ---- segmentation


def _open_scenes(data: ADE20KDataModule, split: Split) -> StoredSamples:
    pairs = data.pairs(split)
    dataset = LabeledScenes(pairs, data.coding, Resize(None), data.mean, data.std, reader=data.reader)
    return StoredSamples(dataset, partial(_draw_scene, data, dataset))


def _draw_scene(data: ADE20KDataModule, dataset: LabeledScenes, index: int) -> SamplePicture:
    path, label_map = dataset.pairs[index]
    image = data.reader.picture(path)
    labels = dataset.coding.read(label_map)
    if labels.shape != (image.height, image.width):
        raise UserError(
            f"The label map {printable(label_map)} has {labels.shape[1]}×{labels.shape[0]} pixels, its image "
            f"{printable(path)} {image.width}×{image.height}; expected one label per pixel."
        )
    return draw_scene(image, labels, data.class_names)


# ---- video


def _open_videos(data: KineticsDataModule, split: Split) -> StoredSamples:
    dataset = TrainingClips(data.videos(split), data.num_classes, data.sampling, lambda clip: clip, data.decoder)
    return StoredSamples(dataset, partial(_draw_video, data, dataset))


def _draw_video(data: KineticsDataModule, dataset: TrainingClips, index: int) -> SamplePicture:
    path, label = dataset.videos[index]
    with Video(path, data.decoder) as video:
        number = len(video)
        frames = video.frames(spread_frames(number))
    images = [reduce(Image.fromarray(frame), SIDE) for frame in frames]
    row = label_row(label, data.num_classes)
    return SamplePicture(images, [*name_classes(row, data.class_names), count_words(number, "frame")])


# ---- SimMIM


def _open_unlabeled(data: SimMIMDataModule, split: Split) -> StoredSamples:
    data.setup("fit")
    dataset = data.train_dataset if split == "train" else data.val_dataset
    assert isinstance(dataset, MaskedImages)
    return StoredSamples(dataset, partial(_draw_unlabeled, data, dataset))


def _draw_unlabeled(data: SimMIMDataModule, dataset: MaskedImages, index: int) -> SamplePicture:
    return SamplePicture([reduce(data.reader.picture(dataset.paths[index]), SIDE)], [])
