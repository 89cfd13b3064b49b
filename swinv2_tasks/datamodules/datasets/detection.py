"""Samples of images with their objects: to train with, to evaluate, to predict."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from swinv2_tasks.batches import IGNORED
from swinv2_tasks.datamodules.datasets.segmentation import RescaledFile, Scenes
from swinv2_tasks.datamodules.readers.annotations import check_masks, rasterize
from swinv2_tasks.datamodules.readers.channels import RGB_READER, ImageReader
from swinv2_tasks.datamodules.readers.label_maps import read_values
from swinv2_tasks.datamodules.readers.packed_images import CocoImage, PackedImages
from swinv2_tasks.datamodules.transforms.classification import fitting_size, normalize, resize
from swinv2_tasks.datamodules.transforms.detection import SceneTransform
from swinv2_tasks.datamodules.transforms.scenes import Scene, paste_objects
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable


class CocoImages(Dataset):
    """What training and evaluation share: images by index.

    Args:
        images: Images and their objects.
        folder: Where the image files are.
        reader: Reads the images.
    """

    def __init__(self, images: PackedImages, folder: Path, reader: ImageReader = RGB_READER) -> None:
        self.images = images
        self.folder = folder
        self.reader = reader

    def __len__(self) -> int:
        return len(self.images)

    def sample_id(self, index: int) -> str:
        """The image's file."""
        return str(self.folder / self.images[index].file_name)

    def read(self, index: int) -> tuple[CocoImage, np.ndarray]:
        """An image's entry, and its pixels as `reader` gives them, (H, W, C).

        Raises:
            UserError: The file cannot be read or is of another size than declared.
        """
        entry = self.images[index]
        path = self.folder / entry.file_name
        pixels = self.reader.pixels(path)
        if pixels.shape[:2] != (entry.height, entry.width):
            as_shown = "as a viewer shows it" if self.reader.exif_rotation else "as stored"
            is_turned = pixels.shape[:2] == (entry.width, entry.height)
            other = str(not self.reader.exif_rotation).lower()
            advice = f" If boxes are of the other orientation: data.exif_rotation={other}." if is_turned else ""
            raise UserError(
                f"The image {printable(path)} (id {entry.id}) has {pixels.shape[1]}×{pixels.shape[0]} pixels "
                f"{as_shown}, its annotation file declares {entry.width}×{entry.height}: boxes would lie elsewhere. "
                f"Mend the file or its annotations.{advice}"
            )
        return entry, pixels


class TrainingObjects(CocoImages):
    """Samples {images, targets} for `DetectionBatch`.

    Args:
        images: Images and their objects.
        folder: Where the image files are.
        transform: What an augmentation has built.
        mean: Subtracted from values in [0, 1].
        std: Divides the difference.
        copy_paste: Probability of pasting objects of another image.
        stuff: Folder of label maps of the background, named like the images.
        stuff_classes: How many classes they have.
        reader: Reads the images.
    """

    def __init__(
        self,
        images: PackedImages,
        folder: Path,
        transform: SceneTransform,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        copy_paste: float = 0.0,
        stuff: Path | None = None,
        stuff_classes: int = 0,
        reader: ImageReader = RGB_READER,
    ) -> None:
        super().__init__(images, folder, reader)
        self.transform = transform
        self.mean = mean
        self.std = std
        self.copy_paste = copy_paste
        self.stuff = stuff
        self.stuff_classes = stuff_classes

    def __getitem__(self, index: int) -> dict[str, Any]:
        entry, scene = self._scene(index)
        if self.copy_paste and torch.rand(()) < self.copy_paste:
            _, other = self._scene(int(torch.randint(len(self), ())))
            scene = paste_objects(scene, other)

        boxes = torch.from_numpy(scene["boxes"])
        target: dict[str, Any] = {
            "boxes": boxes,
            "labels": torch.from_numpy(scene["labels"]),
            "image_id": entry.id,
            "area": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
            "iscrowd": torch.zeros(len(boxes), dtype=torch.int64),
        }

        if scene["masks"] is not None:
            target["masks"] = torch.from_numpy(scene["masks"])
            pixels = torch.from_numpy(scene["masks"].sum((1, 2), dtype=np.int64)).float()
            target["area"] = pixels.where(pixels > 0, target["area"])  # an object that has only a box keeps the box's

        if scene["stuff"] is not None:
            target["stuff"] = torch.from_numpy(scene["stuff"])
        return {"images": normalize(scene["image"], self.mean, self.std), "targets": target}

    def _scene(self, index: int) -> tuple[CocoImage, Scene]:
        entry, pixels = self.read(index)
        stuff = None
        if self.stuff is not None:
            path = (self.stuff / entry.file_name).with_suffix(".png")
            stuff = read_values(path)
            if stuff.shape != pixels.shape[:2]:
                raise UserError(
                    f"The label map {printable(path)} is not of its image's {entry.width}×{entry.height} pixels."
                )
            if (stuff[stuff < IGNORED] >= self.stuff_classes).any():
                raise UserError(
                    f"The label map {printable(path)} holds {stuff[stuff < IGNORED].max()}, data.stuff_classes is "
                    f"{self.stuff_classes}: classes count from 0."
                )
        where = f"image {entry.id} ({self.folder / entry.file_name})"
        return entry, self.transform(pixels, entry.objects, stuff, where)


class EvaluatedObjects(CocoImages):
    """Samples {images, paths, sizes, image_ids, rescaled, targets} for `DetectionEvalBatch`.

    Targets are those of the annotations, unchanged.

    Args:
        images: Images and their objects.
        folder: Where the image files are.
        limits: What the long and the short side may have, in pixels.
        masks: Whether targets hold masks.
        has_targets: Whether there are targets.
        mean: Subtracted from values in [0, 1].
        std: Divides the difference.
        reader: Reads the images.
    """

    def __init__(
        self,
        images: PackedImages,
        folder: Path,
        limits: tuple[int, int],
        masks: bool,
        has_targets: bool,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        reader: ImageReader = RGB_READER,
    ) -> None:
        super().__init__(images, folder, reader)
        self.limits = limits
        self.masks = masks
        self.has_targets = has_targets
        self.mean = mean
        self.std = std

    def __getitem__(self, index: int) -> dict[str, Any]:
        entry, pixels = self.read(index)
        size = (entry.height, entry.width)
        image = normalize(resize(pixels, fitting_size(size, self.limits)), self.mean, self.std)
        path = str(self.folder / entry.file_name)
        file = self.folder / entry.file_name
        rescaled = RescaledFile(file, self.limits, self.mean, self.std, reader=self.reader)
        sample = {"images": image, "paths": path, "sizes": size, "image_ids": entry.id, "rescaled": rescaled}
        return {**sample, "targets": self.target(entry)} if self.has_targets else sample

    def target(self, entry: CocoImage) -> dict[str, Any]:
        """All annotated objects of an image, crowds as well.

        In float64, which gives annotated numbers back: some overlaps are just COCO's thresholds.
        """
        objects = entry.objects
        boxes = torch.tensor([annotation.box for annotation in objects], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]  # width and height become right and bottom

        target = {
            "boxes": boxes,
            "labels": torch.tensor([annotation.label for annotation in objects], dtype=torch.int64),
            "image_id": entry.id,
            "area": torch.tensor([annotation.area for annotation in objects], dtype=torch.float64),
            "iscrowd": torch.tensor([int(annotation.crowd) for annotation in objects], dtype=torch.int64),
        }

        if self.masks:
            path = self.folder / entry.file_name
            check_masks(len(objects), entry.height, entry.width, f"image {entry.id} ({path})")
            masks = np.zeros((len(objects), entry.height, entry.width), np.uint8)
            for mask, annotation in zip(masks, objects, strict=True):
                if annotation.segmentation is not None:
                    where = f"annotation {annotation.id} of image {entry.id} ({path})"
                    mask[:] = rasterize(annotation.segmentation, entry.height, entry.width, where)
            target["masks"] = torch.from_numpy(masks)
        return target


class PredictedObjects(Dataset):
    """Samples {images, paths, sizes, rescaled} for `DetectionPredictBatch`.

    Args:
        scenes: The images, read and resized.
    """

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes
        self.paths = scenes.paths

    def __len__(self) -> int:
        return len(self.scenes)

    def sample_id(self, index: int) -> str:
        """The image's file."""
        return self.scenes.sample_id(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.scenes[index]
        return {
            "images": sample["image"],
            "paths": sample["path"],
            "sizes": sample["size"],
            "rescaled": sample["rescaled"],
        }


def collate_lists(samples: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """A batch of samples of different sizes: a list of each of their entries."""
    return {name: [sample[name] for sample in samples] for name in samples[0]}
