"""Which frames of a video a clip is made of, and which parts of them a view shows.

Dense clips and their views: https://arxiv.org/abs/1812.03982, section 4; segments: https://arxiv.org/abs/1608.00859.

Shapes: N frames of a video, T frames of a clip, H, W pixels, S side of a view in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from swinv2_tasks.datamodules.transforms import BILINEAR, check, to_normalised_tensor


@dataclass(frozen=True)
class FrameSampling:
    """Which frames of a video a clip is made of.

    Args:
        frames: Frames T of a clip.
        stride: Dense clips: every how many frames of the video one is taken.
        kind: ``dense`` takes a stretch of the video, ``segments`` one frame of each of T equal parts of all of it.
        short: What becomes of a dense clip that is longer than its video: ``loop`` starts the video over, ``hold``
            repeats its last frame. With segments frames repeat where they are.

    Raises:
        UserError: An argument is out of its range.
    """

    frames: int = 32
    stride: int = 2
    kind: Literal["dense", "segments"] = "dense"
    short: Literal["loop", "hold"] = "loop"

    def __post_init__(self) -> None:
        check("frames", self.frames, 1)
        check("stride", self.stride, 1)

    def drawn(self, total: int) -> np.ndarray:
        """A random clip for training: frame numbers (T,) in [0, N), by torch's generator.

        Args:
            total: Frames N of the video.
        """
        if self.kind == "segments":
            return self._of_segments(total, torch.rand(self.frames).numpy())
        return self._from(int(torch.randint(max(1, total - self._span + 1), ())), total)

    def spread(self, total: int, clips: int) -> np.ndarray:
        """Clips spread evenly over a video for evaluation, a single one from its middle: frame numbers (clips, T).

        Args:
            total: Frames N of the video.
            clips: How many.
        """
        if self.kind == "segments":
            places = (np.arange(clips) + 0.5) / clips
            return np.stack([self._of_segments(total, np.full(self.frames, place)) for place in places])
        last = max(0, total - self._span)
        starts = np.linspace(0, last, clips) if clips > 1 else np.array([last / 2])
        return np.stack([self._from(int(start), total) for start in starts])

    @property
    def _span(self) -> int:
        """Frames of the video from a dense clip's first to its last."""
        return (self.frames - 1) * self.stride + 1

    def _of_segments(self, total: int, places: np.ndarray) -> np.ndarray:
        """The frames at places in [0, 1) within each of T equal parts."""
        numbers = (np.arange(self.frames) + places) * (total / self.frames)
        return np.minimum(numbers.astype(np.int64), total - 1)

    def _from(self, start: int, total: int) -> np.ndarray:
        numbers = start + self.stride * np.arange(self.frames)
        return numbers % total if self.short == "loop" else np.minimum(numbers, total - 1)


def as_clip(frames: np.ndarray) -> Tensor:
    """Frames uint8 (T, H, W, 3) as (T, 3, H, W), which transforms take for images."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def view_places(size: Sequence[int], side: Sequence[int], crops: int) -> list[tuple[int, int]]:
    """Top and left of crops spread evenly from one end of a frame to the other; of a single one, in its middle.

    Args:
        size: Height and width of the frame, of which one is the crop's, or nearly so.
        side: Height and width of a crop, at most those of the frame.
        crops: How many.
    """
    room = [have - want for have, want in zip(size, side, strict=True)]
    shares = [k / (crops - 1) for k in range(crops)] if crops > 1 else [0.5]
    return [(round(room[0] * share), round(room[1] * share)) for share in shares]


class EvalViews:
    """Resizes frames so that they cover a size, and cuts views out of them.

    Args:
        size: Height and width of a view in pixels.
        crops: Views beside each other, along the frames' longer side.
        mean: Subtracted from RGB in [0, 1].
        std: Divides the difference.
    """

    def __init__(
        self, size: tuple[int, int], crops: int, mean: tuple[float, float, float], std: tuple[float, float, float]
    ) -> None:
        self.size = size
        self.crops = crops
        self.normalise = v2.Compose([*to_normalised_tensor(mean, std), v2.ToPureTensor()])

    def __call__(self, frames: np.ndarray, chosen: Sequence[int]) -> Tensor:
        """Views of a clip: uint8 (T, H, W, 3) → float32 (views, 3, T, S, S), normalised.

        Args:
            frames: The clip.
            chosen: Which of the crops, by number.
        """
        height, width = frames.shape[1:3]
        factor = max(self.size[0] / height, self.size[1] / width)
        size = [max(self.size[0], round(height * factor)), max(self.size[1], round(width * factor))]
        clip = v2.functional.resize(as_clip(frames), size, interpolation=BILINEAR, antialias=True)
        places = view_places(size, self.size, self.crops)
        views = [clip[:, :, top : top + self.size[0], left : left + self.size[1]] for top, left in places]
        # The normalisation takes the last three axes for an image, whatever stands before them.
        return self.normalise(torch.stack([views[k] for k in chosen])).transpose(1, 2)
