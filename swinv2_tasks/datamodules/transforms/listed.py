"""Augmentations of one's own as lists of transforms, and presets by name, for each task.

Which transforms a list may name is in `transform_lists.py`; what lists build is in `listed_steps.py`, which imports
albumentations and is needed in training alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from swinv2_tasks.batches import ClassificationBatch
from swinv2_tasks.datamodules.transforms.classification import (
    MOST_SIDE,
    ClassificationAugmentation,
    ImageNetAugmentation,
    RandomErasing,
    check,
)
from swinv2_tasks.datamodules.transforms.detection import (
    DetectionAugmentation,
    MultiScaleAugmentation,
    SceneTransform,
)
from swinv2_tasks.datamodules.transforms.segmentation import ADE20KAugmentation, SegmentationAugmentation
from swinv2_tasks.datamodules.transforms.simmim import CropFlipAugmentation, SimMIMAugmentation
from swinv2_tasks.datamodules.transforms.transform_lists import (
    ImagePreset,
    Preset,
    TransformList,
    check_entries,
    check_preset,
    preset_of_images,
    preset_of_scenes,
)
from swinv2_tasks.datamodules.transforms.video import KineticsAugmentation, VideoAugmentation


@dataclass(frozen=True)
class ClassificationTransformList(ClassificationAugmentation):
    """A list of transforms for images, and what is done to batches.

    An image that does not have the model's size after them is resized to cover it, and its middle is cropped.

    Args:
        transforms: The list: mappings of ``name`` and arguments.
        random_erasing: As in `ImageNetAugmentation`, and so the following.
        mixup: Alpha of mixup; 0 turns it off.
        cutmix: Alpha of cutmix; 0 turns it off.
        mixup_switch_prob: Probability that a batch gets cutmix rather than mixup, when both are on.
        repeats: How many times an epoch has each of its images, one after the other.

    Raises:
        UserError: A value is out of its range, or the list names something else than transforms.
    """

    transforms: TransformList
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_switch_prob: float = 0.5
    repeats: int = 1

    def __post_init__(self) -> None:
        check_entries(self.transforms)
        check("augmentation.random_erasing", self.random_erasing, 0, 1)
        self._published()  # which looks at its own

    def build(
        self, image_size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Callable[[Image.Image], Tensor]:
        """The transforms, the model's size, normalization and erasing, in this order."""
        from swinv2_tasks.datamodules.transforms.listed_steps import ListedImage

        listed = ListedImage(self.transforms, image_size, mean, std)
        return v2.Compose([listed, RandomErasing(self.random_erasing)]) if self.random_erasing else listed

    def build_mixing(self, num_classes: int) -> Callable[[ClassificationBatch], ClassificationBatch] | None:
        """As the published one."""
        return self._published().build_mixing(num_classes)

    def _published(self) -> ImageNetAugmentation:
        return ImageNetAugmentation(
            mixup=self.mixup, cutmix=self.cutmix, mixup_switch_prob=self.mixup_switch_prob, repeats=self.repeats
        )


@dataclass(frozen=True)
class SimMIMTransformList(SimMIMAugmentation):
    """A list of transforms for images that are masked.

    An image that does not have the model's size after them is resized to cover it, and its middle is cropped.

    Args:
        transforms: The list: mappings of ``name`` and arguments.

    Raises:
        UserError: The list names something else than transforms.
    """

    transforms: TransformList

    def __post_init__(self) -> None:
        check_entries(self.transforms)

    def build(
        self, image_size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Callable[[Image.Image], Tensor]:
        """The transforms, the model's size and normalization, in this order."""
        from swinv2_tasks.datamodules.transforms.listed_steps import ListedImage

        return ListedImage(self.transforms, image_size, mean, std)


@dataclass(frozen=True)
class VideoTransformList(VideoAugmentation):
    """A list of transforms for clips, all of whose frames get the same random numbers.

    Frames that do not have the model's size after them are resized to cover it, and their middle is cropped.

    Args:
        transforms: The list: mappings of ``name`` and arguments.

    Raises:
        UserError: The list names something else than transforms.
    """

    transforms: TransformList

    def __post_init__(self) -> None:
        check_entries(self.transforms)

    def build(
        self, image_size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Callable[[Tensor], Tensor]:
        """The transforms, the model's size and normalization of each frame, in this order."""
        from swinv2_tasks.datamodules.transforms.listed_steps import ListedClip, ListedImage

        return ListedClip(ListedImage(self.transforms, image_size, mean, std))


@dataclass(frozen=True)
class SegmentationTransformList(SegmentationAugmentation):
    """A list of transforms for images and their masks, which get them at evaluation's size.

    A result that is larger than the crop is cropped at a random position. What transforms show beyond an image's edges
    is ignored in its mask.

    Args:
        transforms: The list: mappings of ``name`` and arguments.

    Raises:
        UserError: The list names something else than transforms.
    """

    transforms: TransformList

    def __post_init__(self) -> None:
        check_entries(self.transforms)

    def build(
        self, crop_size: tuple[int, int], resize: tuple[int, int] | None
    ) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Evaluation's size, the transforms and the crop, in this order."""
        from swinv2_tasks.datamodules.transforms.listed_steps import ListedScene

        return ListedScene(self.transforms, crop_size, resize)


@dataclass(frozen=True)
class DetectionTransformList(DetectionAugmentation):
    """A list of transforms for images with boxes and masks.

    Args:
        transforms: The list: mappings of ``name`` and arguments.
        resize: Limits of the long and the short side that images are resized to before, as evaluation does; None: they
            are not.
        copy_paste: Probability of pasting objects of another training image over an image.

    Raises:
        UserError: A value is out of its range, or the list names something else than transforms.
    """

    transforms: TransformList
    resize: tuple[int, int] | None = None
    copy_paste: float = 0.0

    def __post_init__(self) -> None:
        check_entries(self.transforms)
        if self.resize is not None:
            check("augmentation.resize", self.resize[0], 1, MOST_SIDE)
            check("augmentation.resize", self.resize[1], 1, self.resize[0])
        check("augmentation.copy_paste", self.copy_paste, 0, 1)

    def build(self, masks: bool) -> SceneTransform:
        """The size, then the transforms."""
        from swinv2_tasks.datamodules.transforms.listed_steps import ListedObjects

        return ListedObjects(self.transforms, self.resize, masks)


# ---- what a datamodule's setting stands for

ClassificationChoice = ClassificationAugmentation | ImagePreset | TransformList
SimMIMChoice = SimMIMAugmentation | ImagePreset | TransformList
VideoChoice = VideoAugmentation | ImagePreset | TransformList
SegmentationChoice = SegmentationAugmentation | Preset | TransformList
DetectionChoice = DetectionAugmentation | Preset | TransformList


def classification_augmentation(choice: ClassificationChoice, size: tuple[int, int]) -> ClassificationAugmentation:
    """The augmentation that a setting stands for: itself, a preset's or a list's.

    Args:
        choice: The setting.
        size: Height and width of the images that the model gets.

    Raises:
        UserError: There is no such preset, or the list names something else than transforms.
    """
    if isinstance(choice, ClassificationAugmentation):
        return choice
    if choice == "published":
        return ImageNetAugmentation()
    return ClassificationTransformList(_images(choice, size))


def simmim_augmentation(choice: SimMIMChoice, size: tuple[int, int]) -> SimMIMAugmentation:
    """The same for masked image modeling."""
    if isinstance(choice, SimMIMAugmentation):
        return choice
    return CropFlipAugmentation() if choice == "published" else SimMIMTransformList(_images(choice, size))


def video_augmentation(choice: VideoChoice, size: tuple[int, int]) -> VideoAugmentation:
    """The same for clips."""
    if isinstance(choice, VideoAugmentation):
        return choice
    return KineticsAugmentation() if choice == "published" else VideoTransformList(_images(choice, size))


def segmentation_augmentation(choice: SegmentationChoice) -> SegmentationAugmentation:
    """The same for images with masks."""
    if isinstance(choice, SegmentationAugmentation):
        return choice
    return ADE20KAugmentation() if choice == "published" else SegmentationTransformList(_scenes(choice))


def detection_augmentation(choice: DetectionChoice, resize: tuple[int, int]) -> DetectionAugmentation:
    """The same for images with objects.

    Args:
        choice: The setting.
        resize: Limits of the long and the short side in evaluation.
    """
    if isinstance(choice, DetectionAugmentation):
        return choice
    return MultiScaleAugmentation() if choice == "published" else DetectionTransformList(_scenes(choice), resize)


def _images(choice: str | TransformList, size: tuple[int, int]) -> TransformList:
    if not isinstance(choice, str):
        return choice
    check_preset(choice, ImagePreset)
    return preset_of_images(choice, size)


def _scenes(choice: str | TransformList) -> TransformList:
    if not isinstance(choice, str):
        return choice
    check_preset(choice, Preset)
    return preset_of_scenes(choice)
