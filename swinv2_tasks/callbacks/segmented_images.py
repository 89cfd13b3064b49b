"""Scores of each segmented image, boundary IoU, and the label maps of the worst images."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swinv2_tasks.callbacks.evaluated_images import EvaluatedImages, Position
from swinv2_tasks.callbacks.evaluated_samples import gather_on_first
from swinv2_tasks.callbacks.segmentation import class_ids, class_names
from swinv2_tasks.datamodules.scene_classes import MOST_CLASSES, colors
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.boundaries import boundary_iou, count_boundaries, small_type
from swinv2_tasks.files import new_folder, remove, replace_file

WORST = 12
"""Images whose label maps are kept."""

SIDE = 640
"""Pixels of the longer side of a label map that is kept; larger ones are reduced."""


STRIP_ROWS = 256
"""Rows of a label map that are taken at a time: as 64-bit integers, one may have a gigabyte."""


class WorstImage(NamedTuple):
    """An image of low mIoU, with its label maps. Of two the lower one is the better image."""

    badness: float
    """−mIoU."""
    position: tuple[int, ...]
    """The negative of where it stands in the evaluation."""
    file: str
    truth: np.ndarray
    """uint8 (h, w), 1 for the first class, 0 where nothing is labeled."""
    prediction: np.ndarray
    """Likewise, 0 for no class."""


class SegmentedImages(EvaluatedImages):
    """Writes scores of each image, and label maps of the worst ones; outside of a training boundary IoU of each class.

    Of a validation, and of a test likewise: val_images.csv, mIoU of each image over the classes that are labeled or
    predicted in it, its pixel accuracy and its worst class; val_image_pixels.npy, the counts of it, uint32 (images, 3,
    classes): pixels labeled and predicted so, labeled, and predicted where anything is labeled; val_worst/ with reduced
    label maps of the 12 images of the lowest mIoU, annotated and predicted; val_boundary.json. The argument is that of
    ``EvaluatedImages``.
    """

    columns = ("miou", "pixel_accuracy", "worst_class", "worst_iou")

    def clear(self) -> None:
        """Forgets the images of the evaluation before."""
        super().clear()
        self._pixels: list[tuple[Position, np.ndarray]] = []
        self._worst: list[WorstImage] = []
        self._boundaries: np.ndarray | None = None

    def values(self, task: Any, outputs: Any, batch: Any, positions: Sequence[Position]) -> list[list[Any]]:
        """Each image's scores; of the worst ones the label maps are kept."""
        names = class_names(task)
        rows = []
        for index, position in enumerate(positions):
            pixels = outputs["pixels"][index].cpu()
            self._pixels.append((position, pixels.numpy().astype(np.uint32)))
            row = image_scores(pixels, names)
            rows.append(row)
            if row[0] is not None and task.num_classes <= MOST_CLASSES:
                file = str(batch["path"][index])
                self._keep(row[0], position, file, batch["mask"][index], outputs["labels"][index], task.num_classes)
        return rows

    def _keep(self, miou: float, position: Position, file: str, mask: Tensor, labels: Tensor, num_classes: int) -> None:
        """Keeps the label maps of an image, if it is among the worst; others stay on their device."""
        negative = tuple(-part for part in position)
        if len(self._worst) == WORST and (-miou, negative) <= self._worst[0][:2]:
            return
        maps = (reduced_map(mask, num_classes), reduced_map(labels, num_classes))
        heapq.heappush(self._worst, WorstImage(-miou, negative, file, *maps))
        if len(self._worst) > WORST:
            heapq.heappop(self._worst)

    def take(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Takes the images of a batch, and outside of a training counts their boundaries."""
        super().take(trainer, task, outputs, batch, batch_idx)
        if trainer.state.fn == "fit" or outputs is None:  # some milliseconds of each image
            return
        for labels, mask in zip(outputs["labels"], batch["mask"], strict=True):
            predicted, labeled = (as_small_integers(indices, task.num_classes) for indices in (labels, mask))
            counts = count_boundaries(predicted, labeled, task.num_classes)
            self._boundaries = counts if self._boundaries is None else self._boundaries + counts

    def finish(self, trainer: Any, task: Any, split: str) -> None:
        """Writes the files; called by all processes as an evaluation ends."""
        files = {position: file for position, file, _ in self._rows}
        gathered = gather_on_first([(position, files[position], pixels) for position, pixels in self._pixels])
        if entries := sorted((entry for entries in gathered for entry in entries), key=lambda entry: entry[0]):
            once = {file: pixels for _, file, pixels in reversed(entries)}  # in the order of the table's rows
            counts = np.stack([*reversed(once.values())])
            replace_file(self.folder / f"{split}_image_pixels.npy", lambda path: save_array(path, counts))
        super().finish(trainer, task, split)
        worst = [image for images in gather_on_first(self._worst) for image in images]
        boundaries = [counts for counts in gather_on_first(self._boundaries) if counts is not None]
        self.clear()
        if not trainer.is_global_zero:
            return
        if worst:
            images = {image.file: image for image in sorted(worst)}  # the worst one last
            write_worst(self.folder / f"{split}_worst", [*images.values()][::-1][:WORST], task.num_classes)
        if boundaries:
            write_boundaries(
                self.folder / f"{split}_boundary.json", sum(boundaries), class_names(task), class_ids(task)
            )


def save_array(path: Path, values: np.ndarray) -> None:
    """Writes an array as .npy, whatever the file's name ends in."""
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def image_scores(pixels: Tensor, names: Sequence[str]) -> list[Any]:
    """The row of an image: mIoU, pixel accuracy, the class of the lowest IoU and that; None where nothing is labeled.

    Of several classes of the lowest IoU, the one with the most labeled pixels is named.

    Args:
        pixels: (3, classes) int64, as of ``pixels_of``.
        names: of the classes.
    """
    hits, labeled, predicted = pixels.double()
    if not labeled.any():
        return [None] * 4
    iou = hits / (labeled + predicted - hits)  # 0 / 0 is NaN
    lowest = iou.nan_to_num(math.inf).min()
    worst = int(labeled.where(iou == lowest, -1).argmax())
    return [iou.nanmean().item(), (hits.sum() / labeled.sum()).item(), names[worst], iou[worst].item()]


def reduced_map(labels: Tensor, num_classes: int) -> np.ndarray:
    """A label map (H, W) of class indices as uint8 (h, w): 1 for the first class, 0 for what is none."""
    height, width = labels.shape
    step = max(height, width) / SIDE
    if step > 1:
        rows = (torch.arange(max(1, round(height / step))) * step + step / 2).long().clamp(max=height - 1)
        columns = (torch.arange(max(1, round(width / step))) * step + step / 2).long().clamp(max=width - 1)
        labels = labels[rows.to(labels.device)][:, columns.to(labels.device)]
    indices = labels.cpu().long()
    is_class = (indices >= 0) & (indices < num_classes)
    return torch.where(is_class, indices + 1, 0).to(torch.uint8).numpy()


def as_small_integers(labels: Tensor, num_classes: int) -> np.ndarray:
    """A label map (H, W) of any device in one or two bytes for a pixel, with the largest value for what is no class."""
    dtype = small_type(num_classes)
    indices = np.empty(tuple(labels.shape), dtype)
    pieces = np.array_split(indices, range(STRIP_ROWS, len(indices), STRIP_ROWS))
    for rows, stored in zip(labels.split(STRIP_ROWS), pieces, strict=True):
        values = rows.cpu().numpy()
        stored[:] = np.where((values >= 0) & (values < num_classes), values, np.iinfo(dtype).max)
    return indices


def write_worst(folder: Path, images: Sequence[WorstImage], num_classes: int) -> None:
    """Writes label maps of the worst images as palette PNG, 1 for the first class, and worst.json, which lists them."""
    palette = [0, 0, 0, *(value for color in colors(num_classes) for value in color)]
    remove(folder)
    try:
        with new_folder(folder) as unfinished:
            entries = []
            for number, image in enumerate(images, start=1):
                names = {"truth": f"{number:02d}_truth.png", "prediction": f"{number:02d}_prediction.png"}
                for name, labels in (("truth", image.truth), ("prediction", image.prediction)):
                    picture = Image.fromarray(labels)
                    picture.putpalette(palette)
                    picture.save(unfinished / names[name], "PNG")
                entries.append({"file": image.file, "miou": -image.badness, **names})
            (unfinished / "worst.json").write_text(json.dumps(entries, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}). Make room or name another place.") from error


def write_boundaries(path: Path, counts: np.ndarray, names: Sequence[str], ids: Sequence[Any]) -> None:
    """Writes boundary IoU as JSON: the mean, and that of each class; null where it is neither labeled nor predicted.

    Args:
        path: the file.
        counts: (3, classes), as of ``count_boundaries``, of all images.
        names: of the classes.
        ids: of the classes.
    """
    ious = boundary_iou(counts)
    plain = [None if math.isnan(iou) else iou for iou in ious.tolist()]
    classes = [
        {"id": class_id, "name": name, "boundary_iou": iou}
        for class_id, name, iou in zip(ids, names, plain, strict=True)
    ]
    mean = None if np.isnan(ious).all() else float(np.nanmean(ious))
    text = json.dumps({"mean_boundary_iou": mean, "classes": classes}, indent=2) + "\n"
    replace_file(path, lambda file: file.write_text(text, "utf-8"))
