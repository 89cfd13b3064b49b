"""Augmentation of detection. What it is made of is in `detection_steps.py`.

Multi-scale training and resize-crop-resize: https://arxiv.org/abs/2103.14030, appendix A2; large-scale jitter and
copy-paste: https://arxiv.org/abs/2012.07177.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from swinv2_tasks.datamodules.readers.packed_images import CocoObject
from swinv2_tasks.datamodules.transforms.augmentation import Augmentation
from swinv2_tasks.datamodules.transforms.classification import MOST_SCALE, MOST_SIDE, check
from swinv2_tasks.datamodules.transforms.scenes import Scene

SceneTransform = Callable[[np.ndarray, Sequence[CocoObject], np.ndarray | None, str], Scene]
"""Makes a scene of an image uint8 (H, W, 3) or float32 (H, W, C), its annotated objects, the classes of its background
uint8 (H, W) or None, and what messages call the image. Objects of which nothing is left are left out."""


class DetectionAugmentation(Augmentation):
    """The augmentation of detection: a subclass says by ``build`` what is done to an image and its objects.

    Attributes:
        copy_paste: Probability of pasting objects of another training image over an image; it needs masks.
    """

    copy_paste: float = 0.0

    def build(self, masks: bool) -> SceneTransform:
        """The transform of each training image with its objects.

        `DetectionTransform` makes one of transforms of albumentations:
        ``return DetectionTransform([A.RandomScale(), HorizontalFlip(p=0.5)], masks)``, both of `detection_steps.py`.

        Args:
            masks: Whether masks are wanted.
        """
        raise NotImplementedError

    def largest_size(self) -> tuple[int, int] | None:
        """The most pixels that the short and the long side of results may have, for which memory is planned.

        None, unless a subclass says otherwise: those of evaluation are taken.
        """
        return None


@dataclass(frozen=True)
class MultiScaleAugmentation(DetectionAugmentation):
    """The published recipe: multi-scale training, some images cropped before, and a horizontal flip.

    Args:
        min_size: Range of the short side in pixels …
        min_size_step: … and the step between those that one is drawn from, for each image.
        max_size: The most that the long side may have.
        crop: Probability of resizing to a short side of 400, 500 or 600 and cropping to sides of 384 to 600 before
            that.
        horizontal_flip: Probability of a horizontal flip.
        copy_paste: Probability of pasting objects of another training image over an image.

    Raises:
        UserError: A value is out of its range.
    """

    min_size: tuple[int, int] = (480, 800)
    min_size_step: int = 32
    max_size: int = 1333
    crop: float = 0.0
    horizontal_flip: float = 0.5
    copy_paste: float = 0.0

    def __post_init__(self) -> None:
        check("augmentation.min_size", self.min_size[1], 1, MOST_SIDE)
        check("augmentation.min_size", self.min_size[0], 1, self.min_size[1])
        check("augmentation.min_size_step", self.min_size_step, 1)
        check("augmentation.max_size", self.max_size, self.min_size[0], MOST_SIDE)
        check("augmentation.crop", self.crop, 0, 1)
        check_flip_and_paste(self.horizontal_flip, self.copy_paste)

    def build(self, masks: bool) -> SceneTransform:
        """Resizes or crops, then flips, an image with its objects."""
        # albumentations takes a second to import, and only training needs it.
        from swinv2_tasks.datamodules.transforms.detection_steps import (
            A,
            DetectionTransform,
            HorizontalFlip,
            RandomCrop,
            RandomShortestSize,
        )

        resize = RandomShortestSize(self._sizes(), self.max_size, p=1 - self.crop)
        if self.crop:
            resize_crop_resize = [
                RandomShortestSize((400, 500, 600), None),
                RandomCrop(384, 600),
                RandomShortestSize(self._sizes(), self.max_size),
            ]
            resize = A.OneOf([resize, A.Sequential(resize_crop_resize, p=self.crop)], p=1.0)
        return DetectionTransform([resize, HorizontalFlip(p=self.horizontal_flip)], masks)

    def largest_size(self) -> tuple[int, int]:
        """The largest short side and the limit of the long one."""
        return min(max(self._sizes()), self.max_size), self.max_size

    def _sizes(self) -> list[int]:
        """The lengths that the short side is drawn from."""
        least, greatest = self.min_size
        return list(range(least, greatest + 1, self.min_size_step))


@dataclass(frozen=True)
class ScaleJitterAugmentation(DetectionAugmentation):
    """Large-scale jitter: resizing to a random multiple of a square, cropping to that square, a horizontal flip.

    Args:
        target_size: Side of the square in pixels.
        scale_range: Range of the multiple.
        horizontal_flip: Probability of a horizontal flip.
        copy_paste: Probability of pasting objects of another training image over an image.

    Raises:
        UserError: A value is out of its range.
    """

    target_size: int = 1024
    scale_range: tuple[float, float] = (0.1, 2.0)
    horizontal_flip: float = 0.5
    copy_paste: float = 0.0

    def __post_init__(self) -> None:
        check("augmentation.target_size", self.target_size, 1, MOST_SIDE)
        check("augmentation.scale_range", self.scale_range[1], 1e-3, MOST_SCALE)
        check("augmentation.scale_range", self.scale_range[0], 1e-3, self.scale_range[1])
        check_flip_and_paste(self.horizontal_flip, self.copy_paste)

    def build(self, masks: bool) -> SceneTransform:
        """Rescales by a random factor, crops and flips an image with its objects."""
        from swinv2_tasks.datamodules.transforms.detection_steps import DetectionTransform, HorizontalFlip, RandomCrop
        from swinv2_tasks.datamodules.transforms.segmentation_steps import RandomRescale

        size = self.target_size
        steps = [
            RandomRescale((size, size), self.scale_range),
            RandomCrop(size, size),
            HorizontalFlip(p=self.horizontal_flip),
        ]
        return DetectionTransform(steps, masks)

    def largest_size(self) -> tuple[int, int]:
        """The target size on both sides."""
        return self.target_size, self.target_size


def check_flip_and_paste(horizontal_flip: float, copy_paste: float) -> None:
    """Refuses probabilities that are out of their range.

    Raises:
        UserError: One is.
    """
    check("augmentation.horizontal_flip", horizontal_flip, 0, 1)
    check("augmentation.copy_paste", copy_paste, 0, 1)
