"""Samples of scenes: images with their label maps, and those to predict."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from swinv2_tasks.batches import IGNORED
from swinv2_tasks.datamodules.readers.channels import RGB_READER, ImageReader
from swinv2_tasks.datamodules.readers.label_values import LabelCoding
from swinv2_tasks.datamodules.readers.scenes import ScenePair
from swinv2_tasks.datamodules.transforms.classification import fitting_size, normalize, resize, scaled_size
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable


def check_size(path: str | Path, size: tuple[int, int], smallest_side: int) -> None:
    """Refuses an image that is too small for the model.

    Args:
        path: The image file.
        size: Height and width in pixels that the model would be given.
        smallest_side: What each side must have: that of the model's patches.

    Raises:
        UserError: A side has fewer pixels.
    """
    if min(size) < smallest_side:
        raise UserError(
            f"The image {printable(path)} would be given to the model as {size[1]}×{size[0]} pixels, less than one of "
            f"its patches of {smallest_side}×{smallest_side}. Replace the file or remove it, or raise data.resize."
        )


class Resize:
    """Resizes an image for evaluation, keeping its proportions, and leaves the labels unchanged.

    Args:
        limits: What the long and the short side may have, in pixels; None: as many as they have.
    """

    def __init__(self, limits: tuple[int, int] | None) -> None:
        self.limits = limits

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Resizes an image (H, W, C) to its evaluation size; the mask keeps the file's."""
        return resize(image, fitting_size(image.shape[:2], self.limits)), mask


class RescaledFile:
    """An image file at any multiple of its evaluation size, read when asked: `rescaled(scale)` → (1, C, h, w) float32.

    Args:
        path: The image file.
        limits: What the long and the short side may have at scale 1, in pixels; None: as many as they have.
        mean: Subtracted from values in [0, 1].
        std: Divides the difference.
        smallest_side: What each side of the image must have at any scale: the model's patch.
        reader: Reads the file.
    """

    def __init__(
        self,
        path: Path,
        limits: tuple[int, int] | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        smallest_side: int = 1,
        reader: ImageReader = RGB_READER,
    ) -> None:
        self.path = path
        self.limits = limits
        self.mean = mean
        self.std = std
        self.smallest_side = smallest_side
        self.reader = reader
        self._pixels: np.ndarray | None = None

    def __call__(self, scale: float) -> Tensor:
        """The file's image at a scale, (1, C, H, W) float32, normalized; the file is read once."""
        if self._pixels is None:
            self._pixels = self.reader.pixels(self.path)
        size = scaled_size(self._pixels.shape[:2], self.limits, scale)
        check_size(self.path, size, self.smallest_side)
        return normalize(resize(self._pixels, size), self.mean, self.std)[None]


class LabeledScenes(Dataset):
    """Samples {image, mask, path} for `SegmentationBatch`, in evaluation also {rescaled}.

    Args:
        pairs: Images and label maps.
        coding: How label maps are read.
        transform: What `reader` gives (H, W, C) and mask uint8 (H, W) of class indices and 255 -> the same, of
            other sizes; `Resize` in evaluation.
        mean: Subtracted from values in [0, 1].
        std: Divides the difference.
        size: Height and width that smaller results are filled up to, at the right and below; None: they are not.
        smallest_side: What each side of a result that is not filled up must have: the model's patch.
        reader: Reads the images.
    """

    def __init__(
        self,
        pairs: list[ScenePair],
        coding: LabelCoding,
        transform: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        size: tuple[int, int] | None = None,
        smallest_side: int = 1,
        reader: ImageReader = RGB_READER,
    ) -> None:
        self.reader = reader
        self.pairs = pairs
        self.coding = coding
        self.transform = transform
        self.mean = mean
        self.std = std
        self.size = size
        self.smallest_side = smallest_side

    def __len__(self) -> int:
        return len(self.pairs)

    def sample_id(self, index: int) -> str:
        """The image's file."""
        return str(self.pairs[index][0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        image_path, label_map = self.pairs[index]
        image = self.reader.pixels(image_path)
        mask = self.coding.read(label_map)
        if mask.shape != image.shape[:2]:
            height, width = mask.shape
            raise UserError(
                f"The label map {label_map} has {width}×{height} pixels, its image {image_path} "
                f"{image.shape[1]}×{image.shape[0]}; expected one label per pixel."
            )

        image, mask = self.transform(image, mask)
        if self.size is None:
            check_size(image_path, image.shape[:2], self.smallest_side)
        pixels = normalize(image, self.mean, self.std)
        targets = torch.from_numpy(mask.astype(np.int64))
        if self.size is not None:
            below = self.size[0] - mask.shape[0]
            right = self.size[1] - mask.shape[1]
            if min(below, right) < 0:
                raise UserError(
                    f"data.augmentation gives an image of {mask.shape[1]}×{mask.shape[0]} pixels; expected at most "
                    f"data.crop_size, {self.size[1]}×{self.size[0]}."
                )
            pixels = F.pad(pixels, (0, right, 0, below))
            targets = F.pad(targets, (0, right, 0, below), value=IGNORED)

        sample = {"image": pixels, "mask": targets, "path": str(image_path)}
        if isinstance(self.transform, Resize):
            limits = self.transform.limits
            sample["rescaled"] = RescaledFile(image_path, limits, self.mean, self.std, self.smallest_side, self.reader)
        return sample


class Scenes(Dataset):
    """Samples {image, path, size, rescaled} for `SegmentationPredictBatch`.

    Args:
        paths: The image files.
        limits: What the long and the short side may have, in pixels; None: as many as they have.
        mean: Subtracted from values in [0, 1].
        std: Divides the difference.
        smallest_side: What each side of a resized image must have: the model's patch.
        reader: Reads the images.
    """

    def __init__(
        self,
        paths: list[Path],
        limits: tuple[int, int] | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        smallest_side: int = 1,
        reader: ImageReader = RGB_READER,
    ) -> None:
        self.paths = paths
        self.limits = limits
        self.mean = mean
        self.std = std
        self.smallest_side = smallest_side
        self.reader = reader

    def __len__(self) -> int:
        return len(self.paths)

    def sample_id(self, index: int) -> str:
        """The image's file."""
        return str(self.paths[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        image = self.reader.pixels(path)
        size = image.shape[:2]
        image = resize(image, fitting_size(size, self.limits))
        check_size(path, image.shape[:2], self.smallest_side)
        return {
            "image": normalize(image, self.mean, self.std),
            "path": str(path),
            "size": size,
            "rescaled": RescaledFile(path, self.limits, self.mean, self.std, self.smallest_side, self.reader),
        }


def scenes_as_batch(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate samples of one size to evaluate."""
    batch = {
        "image": torch.stack([sample["image"] for sample in samples]),
        "mask": torch.stack([sample["mask"] for sample in samples]),
    }
    return batch | {name: [sample[name] for sample in samples] for name in ("path", "rescaled")}


def scenes_as_prediction_batch(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate the only sample of a batch to predict."""
    (sample,) = samples
    return {
        "image": sample["image"][None],
        "path": [sample["path"]],
        "size": sample["size"],
        "rescaled": [sample["rescaled"]],
    }
