"""Augmentation of semantic segmentation. What it is made of is in `segmentation_steps.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from swinv2_tasks.datamodules.transforms.augmentation import Augmentation
from swinv2_tasks.datamodules.transforms.classification import MOST_SCALE, check


class SegmentationAugmentation(Augmentation):
    """The augmentation of semantic segmentation: a subclass says by ``build`` what is done to image and mask."""

    def build(
        self, crop_size: tuple[int, int], resize: tuple[int, int] | None
    ) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """The transform of each training image and its mask.

        Args:
            crop_size: Height and width in pixels that the results may have at most; what they lack is padded.
            resize: Limits of the long and the short side that evaluation resizes images to; None: it does not.

        Returns:
            Image uint8 (H, W, 3), RGB, or of other channels float32 (H, W, C), and mask uint8 (H, W) of class indices,
            255 where ignored -> the same of another size.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ADE20KAugmentation(SegmentationAugmentation):
    """The published recipe: random resize, crop, horizontal flip and photometric distortion.

    Args:
        scale_range: Range of the random factor of the evaluation's size.
        cat_max_ratio: Share of a crop's labeled pixels that one class may have; ten crops are tried. 1 takes the first.
        horizontal_flip: Probability of a horizontal flip.
        photometric_distortion: Random brightness, contrast, saturation and hue.

    Raises:
        UserError: A value is out of its range.
    """

    scale_range: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    horizontal_flip: float = 0.5
    photometric_distortion: bool = True

    def __post_init__(self) -> None:
        check("augmentation.scale_range", self.scale_range[1], 1e-3, MOST_SCALE)
        check("augmentation.scale_range", self.scale_range[0], 1e-3, self.scale_range[1])
        check("augmentation.cat_max_ratio", self.cat_max_ratio, 0, 1)
        check("augmentation.horizontal_flip", self.horizontal_flip, 0, 1)

    def build(
        self, crop_size: tuple[int, int], resize: tuple[int, int] | None
    ) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Rescales, crops, flips and distorts the colors of an image; its mask moves with it."""
        # albumentations takes a second to import, and only training needs it.
        from swinv2_tasks.datamodules.transforms.segmentation_steps import (
            A,
            ClassLimitedCrop,
            RandomRescale,
            SegmentationTransform,
            photometric_distortion,
        )

        steps: list[Any] = [
            RandomRescale(resize, self.scale_range),
            ClassLimitedCrop(crop_size, self.cat_max_ratio),
            A.HorizontalFlip(p=self.horizontal_flip),
        ]
        return SegmentationTransform(steps, photometric_distortion() if self.photometric_distortion else [])

    def left_out(self, channels: int) -> list[str]:
        """The photometric distortion, where images are not RGB."""
        return ["photometric distortion"] if self.photometric_distortion and channels != 3 else []
