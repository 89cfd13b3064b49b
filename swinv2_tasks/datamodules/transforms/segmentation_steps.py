"""Steps of augmentation that treat an image and its mask alike, by albumentations.

Recipe: https://arxiv.org/abs/2111.09883, appendix A3, and the published segmentation code. A module of its own, since
albumentations takes a second to import and only training needs it.
"""

import os
import random
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from swinv2_tasks.batches import IGNORED
from swinv2_tasks.datamodules.transforms.classification import fitting_size, resize

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or the import asks the network for a newer version

import albumentations as A


class Rescale(A.DualTransform):
    """Resizes to the height and width that a subclass draws as ``size``."""

    def __init__(self, p: float = 1.0) -> None:
        super().__init__(p=p)

    def apply(self, img: np.ndarray, size: tuple[int, int], **params: Any) -> np.ndarray:
        """Resizes an image to (height, width)."""
        return resize(img, size)

    def apply_to_mask(self, mask: np.ndarray, size: tuple[int, int], **params: Any) -> np.ndarray:
        """Resizes a label map to (height, width), by the nearest pixel."""
        return cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)

    def apply_to_keypoints(self, keypoints: np.ndarray, size: tuple[int, int], **params: Any) -> np.ndarray:
        """Scales points (n, ≥2), x and y first."""
        moved = keypoints.copy()
        moved[:, :2] *= [size[1] / params["shape"][1], size[0] / params["shape"][0]]
        return moved


class RandomRescale(Rescale):
    """Resizes to the largest size that fits into a random multiple of (long side, short side), keeping proportions.

    Args:
        limits: long and short side in pixels; None: those of the image.
        scale_range: least and greatest multiple.
    """

    def __init__(self, limits: tuple[int, int] | None, scale_range: tuple[float, float]) -> None:
        super().__init__()
        self.limits, self.scale_range = limits, scale_range

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draws a scale and computes the size that fits the limits so scaled."""
        return {"size": fitting_size(params["shape"][:2], self.limits, self.py_random.uniform(*self.scale_range))}


class ClassLimitedCrop(A.DualTransform):
    """A random crop in which no class covers too much: up to ten are tried, the last one is taken in any case.

    Args:
        size: height and width in pixels; what an image lacks is not padded.
        cat_max_ratio: share of a crop's labeled pixels that one class may have; 1 takes the first crop.
    """

    def __init__(self, size: tuple[int, int], cat_max_ratio: float) -> None:
        super().__init__(p=1.0)
        self.size, self.cat_max_ratio = size, cat_max_ratio

    @property
    def targets_as_params(self) -> list[str]:
        """Drawing the region looks at the mask."""
        return ["mask"]

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draws the region, up to ten times until no class has too large a share of its labels."""
        mask = data["mask"]
        height, width = (min(side, limit) for side, limit in zip(mask.shape, self.size, strict=True))

        for _ in range(10):
            top = self.py_random.randint(0, mask.shape[0] - height)
            left = self.py_random.randint(0, mask.shape[1] - width)
            region = (slice(top, top + height), slice(left, left + width))

            counts = np.bincount(mask[region].ravel(), minlength=256)[:IGNORED]
            if self.cat_max_ratio == 1 or 0 < counts.max() < self.cat_max_ratio * counts.sum():
                break
        return {"region": region}

    def apply(self, img: np.ndarray, region: tuple[slice, slice], **params: Any) -> np.ndarray:
        """Crops an image or a mask to the region."""
        return img[region]


class SegmentationTransform:
    """Applies steps of albumentations to an image and its mask, by random numbers from torch's generator.

    Args:
        steps: Transforms of albumentations.
        colors: Further ones, which change the colors of RGB images and are left out of others.
    """

    def __init__(self, steps: Sequence[Any], colors: Sequence[Any] = ()) -> None:
        self.transforms = A.Compose([*steps, *colors])
        self.geometry = A.Compose([*steps])

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, C) and mask uint8 (H, W), 255 where ignored -> the same, as the steps leave them."""
        transforms = self.transforms if image.shape[2] == 3 else self.geometry
        reseed(transforms)
        both = transforms(image=image, mask=mask)
        return both["image"], both["mask"]


def reseed(transforms: A.Compose) -> None:
    """Lets a pipeline's next random numbers follow from torch's generator."""
    seed = int(torch.randint(2**62, ()))
    # One generator for all: by set_random_seed each transform gets its own of the same seed, and an image would be
    # flipped just when it is made brighter.
    transforms.set_random_state(np.random.default_rng(seed), random.Random(seed))


def photometric_distortion() -> list[Any]:
    """Random changes of colors, each half of the time.

    Brightness moves by up to 32 of 255; contrast is multiplied with 0.5 to 1.5, before or after the other colors;
    saturation with 0.5 to 1.5; hue is turned by up to 36 degrees.
    """

    def jitter(**changes: Any) -> A.ColorJitter:
        none = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}
        return A.ColorJitter(**{**none, **changes}, p=0.5)

    def contrast() -> A.RandomBrightnessContrast:
        return A.RandomBrightnessContrast(brightness_limit=0, contrast_limit=0.5, p=0.5)

    colors = [jitter(saturation=(0.5, 1.5)), jitter(hue=(-0.1, 0.1))]
    return [
        A.RandomBrightnessContrast(brightness_limit=32 / 255, contrast_limit=0, p=0.5),
        A.OneOf([A.Sequential([contrast(), *colors]), A.Sequential([*colors, contrast()])], p=1.0),
    ]
