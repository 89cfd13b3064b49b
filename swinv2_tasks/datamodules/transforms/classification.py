"""Image classification transforms of the Swin papers: torchvision.transforms.v2, RandAugment and erasing by timm.

Recipe: https://arxiv.org/abs/2111.09883 (appendix) and the published training configuration, whose
``rand-m9-mstd0.5-inc1`` and erasing are timm's own. A departure from it: mixup and cutmix pair each image with its
neighbor in the shuffled batch (there: first with last).
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from swinv2_tasks.batches import ClassificationBatch
from swinv2_tasks.datamodules.transforms.augmentation import Augmentation
from swinv2_tasks.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's training pixels per RGB channel, in [0, 1]."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation that goes with IMAGENET_MEAN."""

BICUBIC = InterpolationMode.BICUBIC
BILINEAR = InterpolationMode.BILINEAR


class ClassificationAugmentation(Augmentation):
    """The augmentation of image classification: a subclass says by ``build`` what is done to an image.

    One that also mixes the images of a batch, and their labels, overrides ``build_mixing``.

    Attributes:
        repeats: How many times an epoch has each of its images, one after the other.
    """

    repeats: int = 1

    def build(
        self, image_size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Callable[[Image.Image], Tensor]:
        """The transform of each training image.

        Args:
            image_size: Height and width of the result in pixels.
            mean: Subtracted from values in [0, 1].
            std: Divides the difference.

        Returns:
            RGB image of any size -> (3, height, width) float32, normalized. With other channels than RGB, of which
            there are as many as means, it is given float32 (C, H, W) as ``tv_tensors.Image``.
        """
        raise NotImplementedError

    def build_mixing(self, num_classes: int) -> Callable[[ClassificationBatch], ClassificationBatch] | None:
        """What is done to each training batch as a whole; None, unless a subclass says otherwise: nothing.

        Args:
            num_classes: Number of classes.

        Returns:
            Batch with labels (B,) int64 -> batch with labels (B, num_classes) float32, whose rows sum to 1.
        """
        return None


@dataclass(frozen=True)
class ImageNetAugmentation(ClassificationAugmentation):
    """The published recipe: random crop, horizontal flip, RandAugment, random erasing, mixup and cutmix.

    Args:
        crop_scale: Range of the random crop's area as a share of the image's, within (0, 1].
        horizontal_flip: Probability of a horizontal flip.
        rand_augment_ops: RandAugment operations drawn for each image, each then applied with probability 0.5; 0 turns
            RandAugment off.
        rand_augment_magnitude: Their strength, 0 to 10: the mean of a normal distribution of standard deviation 0.5.
        color_jitter: Largest relative change of brightness, contrast and saturation. Only used without RandAugment,
            which has these operations already; the published training code skips it likewise.
        random_erasing: Probability of erasing a rectangle to noise, drawn for each pixel.
        mixup: Alpha of mixup's Beta(alpha, alpha); 0 turns it off.
        cutmix: Alpha of cutmix's Beta(alpha, alpha); 0 turns it off.
        mixup_switch_prob: Probability that a batch gets cutmix rather than mixup, when both are on.
        repeats: Repeated augmentation, https://arxiv.org/abs/1901.09335: how many times an epoch has each of its
            images, one after the other, each time augmented anew. An epoch stays as long, with fewer different images.

    Raises:
        UserError: A value is out of its range.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    horizontal_flip: float = 0.5
    rand_augment_ops: int = 2
    rand_augment_magnitude: int = 9
    color_jitter: float = 0.4
    random_erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    mixup_switch_prob: float = 0.5
    repeats: int = 1

    def __post_init__(self) -> None:
        check_crop_and_flip(self.crop_scale, self.horizontal_flip)
        check_pixel_changes(self.rand_augment_ops, self.rand_augment_magnitude, self.color_jitter, self.random_erasing)
        check("augmentation.mixup", self.mixup, 0)
        check("augmentation.cutmix", self.cutmix, 0)
        check("augmentation.mixup_switch_prob", self.mixup_switch_prob, 0, 1)
        check("augmentation.repeats", self.repeats, 1, 1000)

    def build(self, image_size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> v2.Compose:
        """Crop, flip, RandAugment or color jitter, normalization and erasing, in this order.

        Of images that are not RGB, RandAugment and color jitter are left out.
        """
        return train_transform(
            image_size,
            mean,
            std,
            self.crop_scale,
            self.horizontal_flip,
            self.rand_augment_ops,
            self.rand_augment_magnitude,
            self.color_jitter,
            self.random_erasing,
        )

    def left_out(self, channels: int) -> list[str]:
        """RandAugment or color jitter, where images are not RGB."""
        stated = {"RandAugment": self.rand_augment_ops, "color jitter": self.color_jitter}
        return [] if channels == 3 else [name for name, strength in stated.items() if strength][:1]

    def build_mixing(self, num_classes: int) -> v2.Transform | None:
        """Mixup or CutMix, drawn for each batch where both are on; None where both are off."""
        mixup = v2.MixUp(alpha=self.mixup, num_classes=num_classes) if self.mixup else None
        cutmix = v2.CutMix(alpha=self.cutmix, num_classes=num_classes) if self.cutmix else None
        if mixup and cutmix:
            return v2.RandomChoice([mixup, cutmix], p=[1 - self.mixup_switch_prob, self.mixup_switch_prob])
        return mixup or cutmix


def check_crop_and_flip(crop_scale: tuple[float, float], horizontal_flip: float) -> None:
    """Refuses settings of a random crop and a horizontal flip that are out of their ranges.

    Raises:
        UserError: One is.
    """
    check("augmentation.crop_scale", crop_scale[0], 1e-4, crop_scale[1])
    check("augmentation.crop_scale", crop_scale[1], crop_scale[0], 1)
    check("augmentation.horizontal_flip", horizontal_flip, 0, 1)


def check_pixel_changes(
    rand_augment_ops: int, rand_augment_magnitude: int, color_jitter: float, random_erasing: float
) -> None:
    """Refuses settings of RandAugment, color jitter and random erasing that are out of their ranges.

    Raises:
        UserError: One is.
    """
    check("augmentation.rand_augment_ops", rand_augment_ops, 0)
    check("augmentation.rand_augment_magnitude", rand_augment_magnitude, 0, 10)
    check("augmentation.color_jitter", color_jitter, 0)
    check("augmentation.random_erasing", random_erasing, 0, 1)


def train_transform(
    image_size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    crop_scale: tuple[float, float],
    horizontal_flip: float,
    rand_augment_ops: int = 0,
    rand_augment_magnitude: int = 0,
    color_jitter: float = 0.0,
    random_erasing: float = 0.0,
    interpolation: InterpolationMode = BICUBIC,
    antialias: bool = True,
) -> v2.Compose:
    """Random crop and augmentation, as the augmentations of several tasks have it: PIL image -> (3, H, W) float32.

    Images of C other channels, float32 (C, H, W), keep them, and get no operations on colors.
    Videos of torchvision (T, 3, H, W) -> the same shape, alike for all frames; with BILINEAR, since tensors know no
    other way to be rotated. The result is normalized.

    Args:
        image_size: Height and width of the result in pixels.
        mean: Subtracted from values in [0, 1].
        std: Divides the difference.
        crop_scale: As in `ImageNetAugmentation`, and so the following.
        horizontal_flip: Probability of a horizontal flip.
        rand_augment_ops: RandAugment operations drawn for each image.
        rand_augment_magnitude: Their strength.
        color_jitter: Largest relative change of colors, without RandAugment.
        random_erasing: Probability of erasing a rectangle.
        interpolation: How pixels are resized and moved.
        antialias: Whether the crop is smoothed where it is made smaller.
    """
    steps: list[Callable[[Any], Any]] = [
        v2.RandomResizedCrop(image_size, scale=crop_scale, interpolation=interpolation, antialias=antialias),
        v2.RandomHorizontalFlip(horizontal_flip),
    ]
    is_rgb = len(mean) == 3
    if is_rgb and rand_augment_ops:
        steps.append(RandAugment(rand_augment_ops, rand_augment_magnitude, mean, interpolation))
    elif is_rgb and color_jitter:
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    steps += normalization_steps(mean, std)
    if random_erasing:
        steps.append(RandomErasing(random_erasing))
    return v2.Compose([*steps, v2.ToPureTensor()])


class RandAugment:
    """timm's RandAugment, such as ``rand-m9-n2-mstd0.5-inc1``: PIL image or video of torchvision -> the same.

    It draws from the global generators of Python and NumPy.

    Args:
        ops: Operations drawn for each image, each then applied with probability 0.5.
        magnitude: Mean of their strength, 0 to 10.
        mean: The color in [0, 1] of what lies beyond the image's edges.
        interpolation: How pixels are moved.
    """

    def __init__(self, ops: int, magnitude: int, mean: tuple[float, ...], interpolation: InterpolationMode) -> None:
        from timm.data.auto_augment import rand_augment_transform  # slow to import, and few configs need it

        settings = {
            "img_mean": tuple(min(255, round(255 * value)) for value in mean),
            "interpolation": Image.Resampling[interpolation.name],
        }
        self.augment = rand_augment_transform(f"rand-m{magnitude}-n{ops}-mstd0.5-inc1", settings)
        for op in self.augment.ops:
            if op.name == "PosterizeIncreasing":
                op.aug_fn = posterize

    def __call__(self, image: Any) -> Any:
        """Augments a PIL image, or all frames of a video alike."""
        if isinstance(image, tv_tensors.Video):
            return tv_tensors.wrap(treat_alike(image, self._of_frame), like=image)
        return self.augment(image)

    def _of_frame(self, frame: Tensor) -> Tensor:
        return v2.functional.pil_to_tensor(self.augment(v2.functional.to_pil_image(frame)))


def posterize(image: Image.Image, bits: int, fillcolor: object = None, resample: object = None) -> Image.Image:
    """An image with the highest bits of its colors: timm's operation, which at full strength asks for 0 bits.

    That is a black image, as it was with the Pillow of the published code; today's refuses it.

    Args:
        image: RGB.
        bits: How many are kept, 0 to 8.
        fillcolor: What timm passes to all operations.
        resample: The same.
    """
    return image.point([value >> (8 - bits) << (8 - bits) for value in range(256)] * 3)


class RandomErasing:
    """timm's erasing of a rectangle to noise, drawn for each pixel: (3, H, W) or clips (T, 3, H, W), normalized.

    It draws from the global generators of Python and torch.

    Args:
        probability: Of erasing.
    """

    def __init__(self, probability: float) -> None:
        from timm.data.random_erasing import RandomErasing as Erasing

        self.erase = Erasing(probability, mode="pixel", device="cpu")

    def __call__(self, image: Tensor) -> Tensor:
        """Erases from an image (3, H, W), or alike from all frames of a clip (T, 3, H, W)."""
        return self.erase(image) if image.ndim == 3 else treat_alike(image, self.erase)


def treat_alike(frames: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Frames (T, …) after a transform that draws the same random numbers for each of them."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    done = []
    for frame in frames:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        done.append(transform(frame))
    return torch.stack(done)


def eval_transform(
    image_size: int | tuple[int, int],
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    crop_pct: float = 0.875,
) -> v2.Compose:
    """Resize and center crop: PIL image -> (3, H, W) float32, normalized.

    Args:
        image_size: Side of the result in pixels, or (height, width).
        mean: Subtracted from values in [0, 1].
        std: Divides the difference.
        crop_pct: Side of the crop as a share of the resized image's short side, in (0, 1]: 0.875 resizes to 256
            for a crop of 224. At 1.0 the whole image is stretched to the size instead, without a crop.

    Raises:
        UserError: A value is out of its range.
    """
    check("crop_pct", crop_pct, 0.01, 1)
    size = height_width(image_size)
    if crop_pct == 1.0:
        steps: list[v2.Transform] = [v2.Resize(size, interpolation=BICUBIC, antialias=True)]
    else:
        # 1e-6: a quotient that should be whole may come out just below (the published code truncates as well).
        cover = [int(side / crop_pct + 1e-6) for side in size]
        steps = [CutStrip(cover), ResizeToCover(cover), v2.CenterCrop(size)]
    return v2.Compose([*steps, *normalization_steps(mean, std), v2.ToPureTensor()])


MOST_SIDE = 8192
"""Pixels of a side of the images that a model is given: a square of so many takes 0.8 GB."""


MOST_SCALE = 16
"""By which images are enlarged at most beyond their evaluation's size."""


def height_width(image_size: int | tuple[int, int], name: str = "image_size") -> tuple[int, int]:
    """(height, width) in pixels of a side or of a pair; `name` is that of the setting.

    Raises:
        UserError: A side is less than one pixel, or more than `MOST_SIDE`.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    for side in (height, width):
        check(name, side, 1, MOST_SIDE)
    return height, width


class ResizeToCover(v2.Transform):
    """Resize, keeping the proportions, to the smallest image that covers `size` = (height, width).

    For a square this is v2.Resize(side), which knows no counterpart for other shapes.
    """

    def __init__(self, size: list[int]) -> None:
        super().__init__()
        self.size = size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Computes the covering size in whole pixels, truncated as by ``v2.Resize``."""
        height, width = v2.query_size(flat_inputs)
        new_height, new_width = self.size
        if new_height * width >= new_width * height:
            return {"size": [new_height, new_height * width // height]}
        return {"size": [new_width * height // width, new_width]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resizes with bicubic interpolation and antialiasing."""
        return v2.functional.resize(inpt, params["size"], interpolation=BICUBIC, antialias=True)


class CutStrip(v2.Transform):
    """Cuts the middle out of an image that is so long that covering `size` = (height, width) would fill the memory.

    What is cut off lies outside of a crop of that size, which follows; other images stay unchanged.
    """

    largest = 2**25
    """Pixels of a covering image that are taken without a cut: those of a strip of 256 × 131,072."""

    def __init__(self, size: list[int]) -> None:
        super().__init__()
        self.size = size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Computes the sides to keep; None where the whole image may be resized."""
        sides = list(v2.query_size(flat_inputs))
        factor = max(new / old for new, old in zip(self.size, sides, strict=True))
        if sides[0] * sides[1] * factor**2 <= self.largest:
            return {"sides": None}
        for axis, new in enumerate(self.size):
            # With what the interpolation looks at beyond the edges, and an even number of pixels less than there are.
            wanted = math.ceil(new / factor) + 2 * math.ceil(2 * max(1, 1 / factor))
            sides[axis] = min(sides[axis], wanted + (sides[axis] - wanted) % 2)
        return {"sides": sides}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cuts the middle out."""
        return inpt if params["sides"] is None else v2.functional.center_crop(inpt, params["sides"])


def normalization_steps(mean: tuple[float, ...], std: tuple[float, ...]) -> list[v2.Transform]:
    """What turns an image (PIL, uint8 array or tensor) into float32 in [0, 1], minus the mean, divided by the std."""
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]


def fitting_size(size: tuple[int, int], limits: tuple[int, int] | None, scale: float = 1.0) -> tuple[int, int]:
    """The largest (height, width) of the same proportions that fits into multiples of the limits.

    Args:
        size: Height and width in pixels.
        limits: What the long and the short side may have, in pixels; None: as many as they have.
        scale: Factor of the limits.
    """
    long, short = limits or (max(size), min(size))
    factor = scale * min(long / max(size), short / min(size))
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def scaled_size(size: tuple[int, int], limits: tuple[int, int] | None, scale: float) -> tuple[int, int]:
    """The (height, width) at which an image is evaluated at a scale, as published code (mmsegmentation's) computes it.

    The limits are scaled and cut down to whole pixels, then the image is fitted into them.

    Args:
        size: Height and width of the image file in pixels.
        limits: What the long and the short side may have at scale 1, in pixels; None: as many as they have.
        scale: The factor.
    """
    long, short = limits or (max(size), min(size))
    return fitting_size(size, (max(1, int(long * scale)), max(1, int(short * scale))))


MOST_CV_CHANNELS = 4
"""Channels that OpenCV resizes at once in all of its versions."""


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolate an image (H, W, C) bilinearly to (height, width)."""
    if image.shape[2] <= MOST_CV_CHANNELS:
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(
            *size, -1
        )  # which drops an axis of 1
    groups = np.split(image, range(MOST_CV_CHANNELS, image.shape[2], MOST_CV_CHANNELS), axis=2)
    return np.concatenate([resize(np.ascontiguousarray(group), size) for group in groups], axis=2)


def normalize(image: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """An image (H, W, C), uint8 or float32, as (C, H, W) float32: scaled to [0, 1], minus mean, divided by deviation.

    Floating-point numbers are taken to be scaled already.
    """
    return v2.Compose(normalization_steps(mean, std))(image).as_subclass(Tensor)


def denormalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalized images or frames (…, C, H, W) as uint8 of the same shape; values out of range become the nearest."""
    shape = (-1, 1, 1)
    scaled = images.float() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    return (scaled.nan_to_num(0.0).clamp(0, 1) * 255).round().byte()


def check(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Refuses a setting of the data that is out of its range.

    Raises:
        UserError: The value is below `low` or above `high`.
    """
    if not low <= value <= high:
        expected = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise UserError(f"data.{name} is {value:g}; expected a value {expected}.")
