"""Which frames of a video a clip is made of, and which parts of them a view shows.

Dense clips and their views: https://arxiv.org/abs/1812.03982, section 4; segments: https://arxiv.org/abs/1608.00859.
Where dense clips begin, how frames are resized and where crops lie follows the published code of Video Swin,
https://github.com/open-mmlab/mmaction2 (1.x).

Shapes: N frames of a video, T frames of a clip, H, W pixels, S side of a view in pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from swinv2_tasks.datamodules.transforms.augmentation import Augmentation
from swinv2_tasks.datamodules.transforms.classification import (
    BILINEAR,
    check,
    check_crop_and_flip,
    check_pixel_changes,
    normalization_steps,
    train_transform,
)
from swinv2_tasks.errors import UserError

LONGEST = 64
"""How many times longer than a view frames may be."""


MOST_FRAMES = 1024
"""Of a clip."""


@dataclass(frozen=True)
class FrameSampling:
    """Which frames of a video a clip is made of.

    Args:
        frames: Frames T of a clip.
        stride: Dense clips: every how many frames of the video one is taken.
        mode: ``dense`` takes a stretch of the video, at a random position in training; ``segments`` one frame of each
            of T equal parts of all of it, at a random position of each part in training.
        short: What becomes of a dense clip that is longer than its video: ``loop`` starts the video over, ``hold``
            repeats its last frame. With segments frames repeat where they are.

    Raises:
        UserError: An argument is out of its range.
    """

    frames: int = 32
    stride: int = 2
    mode: Literal["dense", "segments"] = "dense"
    short: Literal["loop", "hold"] = "loop"

    def __post_init__(self) -> None:
        check("sampling.frames", self.frames, 1, MOST_FRAMES)
        check("sampling.stride", self.stride, 1, 2**20)
        for name, choices in (("mode", ("dense", "segments")), ("short", ("loop", "hold"))):
            if getattr(self, name) not in choices:
                raise UserError(f"data.sampling.{name} is {getattr(self, name)!r}; expected {' or '.join(choices)}.")

    def draw(self, total: int) -> np.ndarray:
        """A random clip for training: frame numbers (T,) in [0, N), by torch's generator.

        Args:
            total: Frames N of the video.
        """
        if self.mode == "segments":
            return self._of_segments(total, torch.rand(self.frames).numpy())
        # The published code counts the stride after the last frame as part of a clip here.
        return self._from(int(torch.randint(max(1, total - self.frames * self.stride + 1), ())), total)

    def spread(self, total: int, clips: int) -> np.ndarray:
        """Clips spread evenly over a video for evaluation, a single one from its middle: frame numbers (clips, T).

        Args:
            total: Frames N of the video.
            clips: How many.
        """
        if self.mode == "segments":
            offsets = (np.arange(clips) + 0.5) / clips
            return np.stack([self._of_segments(total, np.full(self.frames, offset)) for offset in offsets])
        last = max(0, total - self._span)
        starts = np.round(np.linspace(0, last, clips)) if clips > 1 else np.array([last // 2])
        return np.stack([self._from(int(start), total) for start in starts])

    @property
    def _span(self) -> int:
        """Frames of the video from a dense clip's first to its last."""
        return (self.frames - 1) * self.stride + 1

    def _of_segments(self, total: int, offsets: np.ndarray) -> np.ndarray:
        """The frames at offsets in [0, 1) within each of T equal parts."""
        numbers = (np.arange(self.frames) + offsets) * (total / self.frames)
        return np.minimum(numbers.astype(np.int64), total - 1)

    def _from(self, start: int, total: int) -> np.ndarray:
        numbers = start + self.stride * np.arange(self.frames)
        return numbers % total if self.short == "loop" else np.minimum(numbers, total - 1)


class VideoAugmentation(Augmentation):
    """The augmentation of video classification: a subclass says by ``build`` what is done to a clip."""

    def build(
        self, image_size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Callable[[Tensor], Tensor]:
        """The transform of each training clip, alike for all of its frames.

        Args:
            image_size: Height and width of the result in pixels.
            mean: Subtracted from RGB in [0, 1].
            std: Divides the difference.

        Returns:
            Frames uint8 (T, 3, H, W) of any size -> (T, 3, height, width) float32, normalized.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class KineticsAugmentation(VideoAugmentation):
    """The published recipe, a random crop and a horizontal flip; and what image classification does beyond them.

    Args:
        crop_scale: Range of the random crop's area as a share of the frame's, within (0, 1].
        horizontal_flip: Probability of a horizontal flip.
        rand_augment_ops: RandAugment operations drawn for each clip, each then applied with probability 0.5; 0 turns
            RandAugment off.
        rand_augment_magnitude: Their strength, 0 to 10: the mean of a normal distribution of standard deviation 0.5.
        color_jitter: Largest relative change of brightness, contrast and saturation; only used without RandAugment.
        random_erasing: Probability of erasing a rectangle to noise.

    Raises:
        UserError: A value is out of its range.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    horizontal_flip: float = 0.5
    rand_augment_ops: int = 0
    rand_augment_magnitude: int = 9
    color_jitter: float = 0.0
    random_erasing: float = 0.0

    def __post_init__(self) -> None:
        check_crop_and_flip(self.crop_scale, self.horizontal_flip)
        check_pixel_changes(self.rand_augment_ops, self.rand_augment_magnitude, self.color_jitter, self.random_erasing)

    def build(self, image_size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> v2.Compose:
        """Crop, flip, RandAugment or color jitter, normalization and erasing, alike for all frames."""
        transform = train_transform(
            image_size,
            mean,
            std,
            self.crop_scale,
            self.horizontal_flip,
            self.rand_augment_ops,
            self.rand_augment_magnitude,
            self.color_jitter,
            self.random_erasing,
            BILINEAR,
            antialias=False,
        )
        return v2.Compose([tv_tensors.Video, transform])


def as_clip(frames: np.ndarray) -> Tensor:
    """Frames uint8 (T, H, W, 3) as (T, 3, H, W), which transforms take for images."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def resize_to_cover(clip: Tensor, size: tuple[int, int], crop_pct: float = 1.0) -> Tensor:
    """Frames (T, 3, H, W), resized until a view covers a share of their short side: bilinear, without antialiasing.

    Args:
        clip: The frames.
        size: Height and width of the view.
        crop_pct: The share, in (0, 1].

    Raises:
        UserError: The frames are so long that they would fill the memory.
    """
    height, width = clip.shape[-2:]
    factor = max(size[0] / height, size[1] / width) / crop_pct
    if height * factor * width * factor > LONGEST * size[0] * size[1] / crop_pct**2:
        raise UserError(
            f"Frames of {width}×{height} pixels are too long: resized to views of {size[1]}×{size[0]}, they would fill "
            "the memory. Cut the video to the part that matters, or remove it from the dataset."
        )
    new_size = [max(size[0], int(height * factor + 0.5)), max(size[1], int(width * factor + 0.5))]
    return v2.functional.resize(clip, new_size, interpolation=BILINEAR, antialias=False)


def view_offsets(size: Sequence[int], side: Sequence[int], crops: int) -> list[tuple[int, int]]:
    """Top and left of crops spread evenly along the axis with more room, in the middle of the other.

    Args:
        size: Height and width of the frame.
        side: Height and width of a crop, at most those of the frame.
        crops: How many.
    """
    room = [frame - crop for frame, crop in zip(size, side, strict=True)]
    axis = int(room[1] >= room[0])
    offsets = []
    for k in range(crops):
        offset = [pixels // 2 for pixels in room]
        if crops > 1:
            offset[axis] = k * (room[axis] // (crops - 1))
        offsets.append((offset[0], offset[1]))
    return offsets


class EvalViews:
    """Resizes frames so that they cover a size, and cuts views out of them.

    Args:
        size: Height and width of a view in pixels.
        crops: Views beside each other, along the frames' longer side.
        mean: Subtracted from RGB in [0, 1].
        std: Divides the difference.
        crop_pct: The share of the frames' short side that a view covers, in (0, 1].
    """

    def __init__(
        self,
        size: tuple[int, int],
        crops: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        crop_pct: float = 1.0,
    ) -> None:
        self.size = size
        self.crops = crops
        self.crop_pct = crop_pct
        self.normalize = v2.Compose([*normalization_steps(mean, std), v2.ToPureTensor()])

    def __call__(self, frames: np.ndarray, chosen: Sequence[int]) -> Tensor:
        """Views of a clip: uint8 (T, H, W, 3) → float32 (views, 3, T, S, S), normalized.

        Args:
            frames: The clip.
            chosen: Which of the crops, by number.
        """
        clip = resize_to_cover(as_clip(frames), self.size, self.crop_pct)
        height, width = self.size
        offsets = view_offsets(clip.shape[-2:], self.size, self.crops)
        views = [clip[:, :, top : top + height, left : left + width] for top, left in offsets]
        # The normalization takes the last three axes for an image, whatever stands before them.
        return self.normalize(torch.stack([views[k] for k in chosen])).transpose(1, 2)
