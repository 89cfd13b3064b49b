"""Samples of images with their random masks."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swinv2_tasks.datamodules.datasets.classification import UnlabeledImages
from swinv2_tasks.datamodules.readers.channels import RGB_READER, ImageReader


class MaskedImages(UnlabeledImages):
    """Samples {image, path, mask} for `SimMIMBatch`.

    Args:
        paths: The image files.
        transform: What `reader` gives -> (C, H, W) float32.
        patches: Patches along height and width.
        ratio: Share of them that is masked.
        train: Draw another mask each time, from torch's global generator; otherwise the same for each image.
        reader: Reads the images.
    """

    def __init__(
        self,
        paths: list[Path],
        transform: Callable[[Any], Tensor],
        patches: tuple[int, int],
        ratio: float,
        train: bool,
        reader: ImageReader = RGB_READER,
    ) -> None:
        super().__init__(paths, transform, reader)
        self.patches = patches
        self.ratio = ratio
        self.train = train

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        generator = None if self.train else torch.Generator().manual_seed(index)
        return {**sample, "mask": random_mask(self.patches, self.ratio, generator)}


def random_mask(patches: tuple[int, int], ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """A mask of which a share is True, at random positions.

    Args:
        patches: Patches along height and width.
        ratio: Share of them that is masked, rounded up to whole patches.
        generator: Of random numbers; None: torch's global one.

    Returns:
        bool (height, width).
    """
    number = math.prod(patches)
    masked = math.ceil(number * ratio - 1e-9)  # a product that should be whole may come out just above
    mask = torch.zeros(number, dtype=torch.bool)
    mask[torch.randperm(number, generator=generator)[:masked]] = True
    return mask.view(patches)
