"""Images without labels, and random masks over their patches, for SimMIM: https://arxiv.org/abs/2111.09886."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swinv2_tasks.datamodules.base import BaseDataModule, FaultChoice
from swinv2_tasks.datamodules.datasets.simmim import MaskedImages
from swinv2_tasks.datamodules.readers.images import list_images
from swinv2_tasks.datamodules.transforms.classification import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check,
    eval_transform,
    height_width,
)
from swinv2_tasks.datamodules.transforms.listed import SimMIMChoice, simmim_augmentation
from swinv2_tasks.datamodules.transforms.simmim import CropFlipAugmentation
from swinv2_tasks.errors import UserError

_EXPECTED = (
    "Expected data.root with images in it, at any depth; a part of it: data.train_dir, data.val_dir. To have data to "
    "try: swinv2-tasks sample-data data/sample."
)


class SimMIMDataModule(BaseDataModule):
    """Images of a folder, at any depth and in any format, and for each a mask over its patches.

    Yields `SimMIMBatch`, in prediction as well. There are no classes. In evaluation the mask of an image is always the
    same. Testing uses the validation images.

    Args:
        root: Folder of the images. Only predicting does without it.
        image_size: Side of the images given to the model in pixels, or height and width: multiples of mask_patch_size.
        batch_size: Images per batch and process.
        num_workers: DataLoader workers of each loader; 0 loads in the main process. None: as many as cores are there
            for each device of the run, at most 8.
        train_dir: Folder of the training images, relative to root, or absolute; None: root itself.
        val_dir: Folder of the validation images; None: every so many-th training image is set aside instead.
        val_share: Share of the images that is set aside where there is no val_dir, at least one.
        source: What to predict: an image, a folder or a glob pattern.
        mask_patch_size: Side of the patches that are masked as one, in pixels.
        mask_ratio: Share of the patches that is masked, rounded up.
        mean: Normalization, per channel: subtracted from values in [0, 1]. Other images than RGB need their own.
        std: Normalization, per channel: divides the difference.
        channels: Channels of the images: 3 for RGB; otherwise of TIFF, NumPy's .npy and what else has as many.
        value_range: The values of the files that become 0 and 1. None: of 8 and 16 bits the whole range, floating-point
            numbers stay unchanged.
        crop_pct: Evaluation: side of the center crop as a share of the resized short side; 1.0 stretches the whole
            image to image_size instead.
        augmentation: Training: what is done to images: the published recipe, a preset's name, a list of transforms
            (docs/augmentation.md) or one of your own.
        faulty_samples: What happens on an image that cannot be read: `error` stops, `skip` leaves it out of its batch.
            None: `skip` in prediction, which lists them, else `error`.
        faulty_budget: How many different images `skip` may leave out in a run before it stops. None: 10, in
            prediction any number.

    Raises:
        UserError: An argument is out of its range. Missing data is reported by `setup`.
    """

    def __init__(
        self,
        root: str | None = None,
        image_size: int | tuple[int, int] = 192,
        batch_size: int = 128,
        num_workers: int | None = None,
        train_dir: str | None = None,
        val_dir: str | None = None,
        val_share: float = 0.01,
        source: str | None = None,
        mask_patch_size: int = 32,
        mask_ratio: float = 0.6,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        channels: int = 3,
        value_range: tuple[float, float] | None = None,
        crop_pct: float = 0.875,
        augmentation: SimMIMChoice = CropFlipAugmentation(),
        faulty_samples: FaultChoice | None = None,
        faulty_budget: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, mean, std, faulty_samples, faulty_budget, channels, value_range)
        check("mask_patch_size", mask_patch_size, 1)
        check("mask_ratio", mask_ratio, 0, 1)
        check("val_share", val_share, 0, 0.9)
        sides = height_width(image_size)
        if any(side % mask_patch_size for side in sides):
            near = [max(1, round(side / mask_patch_size)) * mask_patch_size for side in sides]
            raise UserError(
                f"data.image_size is {image_size}, which patches of data.mask_patch_size={mask_patch_size} do not "
                f"divide. Take {near[0] if len(set(near)) == 1 else near}, or another mask_patch_size."
            )
        self.root, self.train_dir, self.val_dir = root, train_dir, val_dir
        self.val_share, self.source = val_share, source
        self.mask_patch_size, self.mask_ratio = mask_patch_size, mask_ratio
        self._patches = (sides[0] // mask_patch_size, sides[1] // mask_patch_size)
        self._image_size = sides
        self._eval_transform = eval_transform(image_size, mean, std, crop_pct)
        self.augmentation = simmim_augmentation(augmentation, sides)

    @property
    def class_names(self) -> list[str]:
        """Empty: there are no labels."""
        return []

    @property
    def class_ids(self) -> list[str]:
        """Empty: there are no labels."""
        return []

    def example_batch(self, batch_size: int, num_classes: int) -> dict[str, Any]:
        """A training batch of the images' size, of arbitrary values."""
        mask = torch.empty(batch_size, *self._patches, dtype=torch.bool)
        return {"image": torch.empty(batch_size, self.channels, *self._image_size), "mask": mask}

    def setup(self, stage: str) -> None:
        """Find the images that `stage` (fit, validate, test or predict) needs.

        Raises:
            UserError: A folder is missing or holds no image.
        """
        if stage == "predict":
            if self.source is None:
                raise UserError("Nothing to predict: set data.source to an image, a folder or a glob pattern.")
            self.predict_dataset = self._masked(list_images(self.source), self._eval_transform)
            return
        if stage == "fit" and self.train_dataset is None:
            train, _ = self._split()
            self.mention_left_out(self.augmentation)
            transform = self.augmentation.build(self._image_size, self.mean, self.std)
            self.train_dataset = self._masked(train, transform, train=True)
        if self.val_dataset is None and self.needs_validation(stage):
            val = self._split()[1] if self.val_dir is None else list_images(self._folder(self.val_dir))
            self.val_dataset = self.test_dataset = self._masked(val, self._eval_transform)

    def _masked(self, paths: list[Path], transform: Callable[[Any], Tensor], train: bool = False) -> MaskedImages:
        return MaskedImages(paths, transform, self._patches, self.mask_ratio, train, self.reader)

    def _split(self) -> tuple[list[Path], list[Path]]:
        """Training images, and those that are set aside where there is no folder of validation images."""
        folder = self._folder(self.train_dir)
        paths = list_images(folder)
        if self.val_dir is not None:
            return paths, []
        if len(paths) < 2:
            raise UserError(f"There is only one image in {folder}, none to set aside for validation. {_EXPECTED}")
        aside = max(1, round(len(paths) * self.val_share))
        held = {(2 * k + 1) * len(paths) // (2 * aside) for k in range(aside)}  # spread evenly
        return [path for k, path in enumerate(paths) if k not in held], [paths[k] for k in sorted(held)]

    def _folder(self, name: str | None) -> Path:
        """A folder of the dataset, made sure that it exists."""
        if self.root is None:
            raise UserError(f"No dataset: set data.root to its folder. {_EXPECTED}")
        folder = Path(self.root).expanduser() / (name or "")
        if name is not None and name == self.val_dir and not folder.is_dir():
            raise self.missing_validation(folder, "data.val_dir")
        if not folder.is_dir():
            raise UserError(f"The dataset folder {folder} does not exist. {_EXPECTED}")
        return folder
