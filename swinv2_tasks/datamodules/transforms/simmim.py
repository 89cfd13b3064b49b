"""Augmentation of masked image modeling: https://arxiv.org/abs/2111.09886, section 4.1.2."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from swinv2_tasks.datamodules.transforms.augmentation import Augmentation
from swinv2_tasks.datamodules.transforms.classification import BILINEAR, check_crop_and_flip, train_transform


class SimMIMAugmentation(Augmentation):
    """The augmentation of masked image modeling: a subclass says by ``build`` what is done to an image."""

    def build(
        self, image_size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Callable[[Image.Image], Tensor]:
        """The transform of each training image.

        Args:
            image_size: Height and width of the result in pixels.
            mean: Subtracted from RGB in [0, 1].
            std: Divides the difference.

        Returns:
            RGB image of any size -> (3, height, width) float32, normalized. With other channels than RGB, of which
            there are as many as means, it is given float32 (C, H, W) as ``tv_tensors.Image``.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class CropFlipAugmentation(SimMIMAugmentation):
    """The published recipe: a random crop, resized bilinearly, and a horizontal flip.

    Args:
        crop_scale: Range of the random crop's area as a share of the image's, within (0, 1].
        horizontal_flip: Probability of a horizontal flip.

    Raises:
        UserError: A value is out of its range.
    """

    crop_scale: tuple[float, float] = (0.67, 1.0)
    horizontal_flip: float = 0.5

    def __post_init__(self) -> None:
        check_crop_and_flip(self.crop_scale, self.horizontal_flip)

    def build(self, image_size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> v2.Compose:
        """Crops, flips and normalizes."""
        return train_transform(image_size, mean, std, self.crop_scale, self.horizontal_flip, interpolation=BILINEAR)
