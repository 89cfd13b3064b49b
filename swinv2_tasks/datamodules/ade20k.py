"""ADE20K scene parsing and everything laid out like it: images, and label maps of the same names.

ADE20K: https://arxiv.org/abs/1608.05442.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from swinv2_tasks.datamodules.base import BaseDataModule, FaultChoice
from swinv2_tasks.datamodules.batch import IGNORED
from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.datamodules.images import list_images, read_image
from swinv2_tasks.datamodules.masks import read_labels
from swinv2_tasks.datamodules.scene_classes import scene_class_names
from swinv2_tasks.datamodules.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check,
    fitting_size,
    height_width,
    normalised,
    resized,
)
from swinv2_tasks.errors import UserError

_EXPECTED = (
    "Expected data.root with images/training/*.jpg, images/validation/*.jpg, and annotations/training/*.png, "
    "annotations/validation/*.png of the same names. Folders of other names: data.train_dir and data.val_dir; a class "
    "list: data.class_names. To have data to try: swinv2-tasks sample-data data/sample."
)


class ADE20KDataModule(BaseDataModule):
    """Semantic segmentation from ADE20K's folders: ROOT/images/SPLIT/*.jpg and ROOT/annotations/SPLIT/*.png.

    Label maps hold 0 for "other", which is ignored and never predicted, and from 1 on the classes. Yields
    `SegmentationBatch`, and `SegmentationPredictBatch` from `source`. Testing uses the validation images: ADE20K's test
    labels are not public.

    Args:
        root: Dataset folder. Only predicting does without it.
        crop_size: Training: side of the crops given to the model in pixels, or height and width.
        resize: Limits of the long and the short side in pixels: images are resized to fit, keeping their proportions.
            None: images keep their size.
        batch_size: Crops per batch and process in training; evaluation takes one image at a time, each of its own size.
        num_workers: Loading processes of each loader; 0 loads in the main process.
        train_dir: Name of the training folder in images and in annotations.
        val_dir: Name of the validation folder in both.
        class_names: The class list, that of label 1 first: a text file with a name per line, a table like
            objectInfo150.txt, or a list. Without it, ADE20K's 150 classes.
        source: What to predict: an image, a folder or a glob pattern.
        mean: Normalisation, per RGB channel: subtracted from values in [0, 1].
        std: Normalisation, per RGB channel: divides the difference.
        scale_range: Training: range of the random factor of `resize`.
        cat_max_ratio: Training: share of a crop's labelled pixels that one class may have; ten crops are tried. 1 takes
            the first.
        flip: Training: probability of a horizontal flip.
        photometric_distortion: Training: random brightness, contrast, saturation and hue.
        faulty_samples: What happens on a pair that cannot be read: `error` stops, `skip` leaves it out of its batch.
        faulty_budget: How many different pairs `skip` may leave out in a run before it stops.

    Raises:
        UserError: An argument is out of its range. Missing or malformed data is reported by `setup`, or as soon as the
            classes are asked for.
    """

    eval_batch_size = 1
    size_setting = "resize"

    def __init__(
        self,
        root: str | None = None,
        crop_size: int | tuple[int, int] = 512,
        resize: tuple[int, int] | None = (2048, 512),
        batch_size: int = 16,
        num_workers: int = 8,
        train_dir: str = "training",
        val_dir: str = "validation",
        class_names: str | list[str] | None = None,
        source: str | None = None,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        scale_range: tuple[float, float] = (0.5, 2.0),
        cat_max_ratio: float = 0.75,
        flip: float = 0.5,
        photometric_distortion: bool = True,
        faulty_samples: FaultChoice = "error",
        faulty_budget: int = 10,
    ) -> None:
        super().__init__(batch_size, num_workers, mean, std, faulty_samples, faulty_budget)
        if resize is not None:
            check("resize", resize[1], 1, resize[0])
        check("scale_range", scale_range[0], 1e-3, scale_range[1])
        check("cat_max_ratio", cat_max_ratio, 0, 1)
        check("flip", flip, 0, 1)
        self.root = root
        self.resize = None if resize is None else (resize[0], resize[1])
        self.train_dir = train_dir
        self.val_dir = val_dir
        self.source = source
        self._class_source = class_names
        self._crop_size = height_width(crop_size, "crop_size")
        self._augmentation = (
            self.resize,
            (scale_range[0], scale_range[1]),
            self._crop_size,
            cat_max_ratio,
            flip,
            photometric_distortion,
        )

    @cached_property
    def class_names(self) -> list[str]:
        return scene_class_names(self._class_source)

    @property
    def class_ids(self) -> list[int]:
        """1, 2, …: what label maps hold."""
        return list(range(1, len(self.class_names) + 1))

    def setup(self, stage: str) -> None:
        """Find the images that `stage` (fit, validate, test or predict) needs, and their label maps.

        Raises:
            UserError: A folder is missing, holds no image, or an image has no label map.
        """
        if stage == "predict":
            if self.source is None:
                raise UserError("Nothing to predict: set data.source to an image, a folder or a glob pattern.")
            self.collate = one_image
            self.predict_dataset = Scenes(list_images(self.source), self.resize, self.mean, self.std)
            return
        if stage == "fit" and self.train_dataset is None:
            from swinv2_tasks.datamodules.scene_transforms import TrainTransform

            pairs, transform = self._pairs(self.train_dir), TrainTransform(*self._augmentation)
            self.train_dataset = LabelledScenes(
                pairs, self.num_classes, transform, self.mean, self.std, self._crop_size
            )
        if self.val_dataset is None:
            pairs = self._pairs(self.val_dir)
            self.val_dataset = LabelledScenes(pairs, self.num_classes, Resize(self.resize), self.mean, self.std)
            self.test_dataset = self.val_dataset

    def _pairs(self, split: str) -> list[tuple[Path, Path]]:
        """The images of a split and their label maps, which are all there unless faulty samples are skipped."""
        if self.root is None:
            raise UserError(f"No dataset: set data.root to its folder. {_EXPECTED}")
        root = Path(self.root).expanduser()
        folder, labels = root / "images" / split, root / "annotations" / split
        for place in (root, folder, labels):
            if not place.is_dir():
                raise UserError(f"The dataset folder {place} does not exist. {_EXPECTED}")
        pairs = [(path, labels / path.relative_to(folder).with_suffix(".png")) for path in list_images(folder)]
        missing = [str(image) for image, mask in pairs if not mask.is_file()]
        if len(missing) == len(pairs):
            raise UserError(
                f"None of the {len(pairs)} images in {folder} has a label map of its name in {labels}: "
                f"{pairs[0][1]} should be that of {pairs[0][0].name}. {_EXPECTED}"
            )
        if missing and self.faults.policy == "error":
            raise UserError(
                f"{len(missing)} of {len(pairs)} images have no label map of their name in {labels}: "
                f"{abbreviate(missing)}. Add the label maps or remove the images, or leave such samples out: "
                "data.faulty_samples=skip."
            )
        return pairs


class Resize:
    """Resizes an image for evaluation, keeping its proportions, and leaves the labels as they are.

    Args:
        limits: What the long and the short side may have, in pixels; None: as many as they have.
    """

    def __init__(self, limits: tuple[int, int] | None) -> None:
        self.limits = limits

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return resized(image, fitting_size(image.shape[:2], self.limits)), mask


class LabelledScenes(Dataset):
    """Samples {image, mask, path} for `SegmentationBatch`.

    Args:
        pairs: Images and label maps.
        num_classes: Number of classes; labels go from 0, none, to this number.
        transform: Image uint8 (H, W, 3) and mask uint8 (H, W) of class indices and 255 -> the same, of other sizes.
        mean: Subtracted from RGB in [0, 1].
        std: Divides the difference.
        size: Height and width that smaller results are filled up to, at the right and below; None: they are not.
    """

    def __init__(
        self,
        pairs: list[tuple[Path, Path]],
        num_classes: int,
        transform: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        size: tuple[int, int] | None = None,
    ) -> None:
        self.pairs = pairs
        self.num_classes = num_classes
        self.transform = transform
        self.mean = mean
        self.std = std
        self.size = size

    def __len__(self) -> int:
        return len(self.pairs)

    def sample_id(self, index: int) -> str:
        return str(self.pairs[index][0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        image_path, mask_path = self.pairs[index]
        image = np.asarray(read_image(image_path))
        labels = read_labels(mask_path, self.num_classes)
        if labels.shape != image.shape[:2]:
            height, width = labels.shape
            raise UserError(
                f"The label map {mask_path} has {width}×{height} pixels, its image {image_path} "
                f"{image.shape[1]}×{image.shape[0]}; expected one label per pixel."
            )
        mask = labels - np.uint8(1)  # 0, no class, becomes 255
        image, mask = self.transform(image, mask)
        pixels = normalised(image, self.mean, self.std)
        targets = torch.from_numpy(mask.astype(np.int64))
        if self.size is not None:
            below, right = (side - have for side, have in zip(self.size, mask.shape, strict=True))
            pixels, targets = F.pad(pixels, (0, right, 0, below)), F.pad(targets, (0, right, 0, below), value=IGNORED)
        return {"image": pixels, "mask": targets, "path": str(image_path)}


class Scenes(Dataset):
    """Samples {image, path, size} for `SegmentationPredictBatch`.

    Args:
        paths: The image files.
        limits: What the long and the short side may have, in pixels; None: as many as they have.
        mean: Subtracted from RGB in [0, 1].
        std: Divides the difference.
    """

    def __init__(
        self,
        paths: list[Path],
        limits: tuple[int, int] | None,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        self.paths = paths
        self.limits = limits
        self.mean = mean
        self.std = std

    def __len__(self) -> int:
        return len(self.paths)

    def sample_id(self, index: int) -> str:
        return str(self.paths[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.asarray(read_image(self.paths[index]))
        size = image.shape[:2]
        image = resized(image, fitting_size(size, self.limits))
        return {"image": normalised(image, self.mean, self.std), "path": str(self.paths[index]), "size": size}


def one_image(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate the only sample of a batch to predict."""
    (sample,) = samples
    return {"image": sample["image"][None], "path": [sample["path"]], "size": sample["size"]}
