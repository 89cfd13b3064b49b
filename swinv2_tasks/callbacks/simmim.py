"""Visualizations of masked image modeling: images, what the model sees of them, and its reconstructions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from PIL import Image, ImageDraw
from torch import Tensor

from swinv2_tasks.callbacks.evaluated_images import EvaluatedImages, Position
from swinv2_tasks.callbacks.gallery import GallerySample
from swinv2_tasks.callbacks.prediction_files import Predictions, Result
from swinv2_tasks.callbacks.prediction_journal import Record
from swinv2_tasks.datamodules.readers.channels import STRETCHED
from swinv2_tasks.datamodules.transforms.classification import denormalize
from swinv2_tasks.drawing import typeface
from swinv2_tasks.files import replace_file
from swinv2_tasks.heads.simmim import enlarge_mask
from swinv2_tasks.text import printable

HEADINGS = ("image", "masked", "reconstruction")
"""Of the columns of a visualization."""

MOST_ENLARGED = 4
"""Times that images are enlarged, whose single pixels are then seen …"""

MOST_SIDE = 768
"""… unless a side would have more pixels than this."""


class SimMIMImages(EvaluatedImages):
    """Writes val_images.csv or test_images.csv: the loss of each image. The argument is that of ``EvaluatedImages``."""

    columns = ("loss",)

    def values(self, task: Any, outputs: Any, batch: Any, positions: Sequence[Position]) -> list[list[Any]]:
        """The loss of each image."""
        return [[loss] for loss in outputs["losses"].tolist()]


class SimMIMVisualizations(Callback):
    """Draws the first validation images and their reconstructions, as visualizations/epoch_0012.png.

    Args:
        folder: the run's folder.
        images: how many, at most.
    """

    def __init__(self, folder: Path, images: int = 8) -> None:
        self.folder, self.images = folder / "visualizations", images

    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws the reconstructions of a validation's first batch, in the first process."""
        if batch_idx or not trainer.is_global_zero or trainer.sanity_checking:
            return
        task: Any = pl_module
        data = trainer.datamodule
        images, mask = batch["image"][: self.images], batch["mask"][: self.images]
        reconstruction, _ = task.reconstruct(images, mask)
        rows = [
            draw_reconstruction(*sample, data.mean, data.std)
            for sample in zip(images, mask, reconstruction, strict=True)
        ]
        sheet = add_headings(np.concatenate(rows))
        file = self.folder / f"epoch_{trainer.current_epoch:04d}.png"
        replace_file(file, lambda path: sheet.save(path, "PNG"))


class SimMIMPredictions(Predictions):
    """Writes a visualization of each image, its masked patches and the reconstruction, and predictions.csv with losses.

    The argument is that of ``Predictions``.
    """

    folders = ("visualizations",)

    def prepare(self, trainer: Any, task: Any) -> None:
        """Looks up the mean and the std by which the data is normalized."""
        self._normalization = (trainer.datamodule.mean, trainer.datamodule.std)

    def position_of(self, index: int) -> int:
        """The index of the file, from which its masked patches follow."""
        return index  # the patches that are masked follow from it

    def columns(self, task: Any) -> list[str]:
        """The visualization, and the loss on the masked patches."""
        return ["visualization", "loss"]

    def parts(self, outputs: Any, batch: Any) -> Iterable[tuple[str, Any]]:
        """Yields each file with its image, mask, reconstruction and loss."""
        columns = (batch["image"], batch["mask"], outputs["reconstruction"], outputs["losses"].tolist())
        return zip(outputs["path"], zip(*columns, strict=True), strict=True)

    def result(self, path: str, parts: list[Any], task: Any) -> Result:
        """Draws a file's image, masked image and reconstruction side by side."""
        ((image, mask, reconstruction, loss),) = parts
        row = add_headings(draw_reconstruction(image, mask, reconstruction, *self._normalization))
        file = self.save(row, "visualizations", path)
        return Result([file, f"{loss:.6f}"], [file])

    def gallery_sample(self, record: Record, task: Any) -> GallerySample:
        """An image's visualization, with its loss."""
        return GallerySample(record["path"], self.picture_of(record), lines=[f"loss {record['row'][-1]}"])

    def finish(self, records: Callable[[], Iterator[Record]], task: Any) -> str:
        """Says where the visualizations are."""
        return f"visualizations: {printable(self.results_folder / 'visualizations')}"


def draw_reconstruction(
    image: Tensor,
    mask: Tensor,
    reconstruction: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> np.ndarray:
    """An image, the image with gray patches where it is masked, and the reconstruction, side by side.

    Args:
        image: (C, H, W), normalized. Of others than RGB the first three channels are shown, of one or two the first;
            what is black and white in them follows from the image.
        mask: bool (h, w).
        reconstruction: (C, H, W), normalized.
        mean: what was subtracted from values in [0, 1] …
        std: … and what divided the difference.

    Returns:
        uint8 (f·H + 4, 3·(f·W + 4), 3), with a white margin: images are f times as large, 4 times at most.
    """
    images = torch.stack([image.float(), hide_masked(image, mask), reconstruction.float()]).cpu()
    if len(mean) == 3:
        rgb = denormalize(images, mean, std)
    else:
        shape = (1, -1, 1, 1)
        values = images * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
        values = _stretched(values[:, :3] if len(mean) > 3 else values[:, :1].expand(-1, 3, -1, -1))
        rgb = (values.clamp(0, 1) * 255).round().byte()
    factor = max(1, min(MOST_ENLARGED, MOST_SIDE // max(rgb.shape[2:])))
    rgb = rgb.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    rgb = torch.nn.functional.pad(rgb, (0, 4, 0, 4), value=255)
    return rgb.permute(2, 0, 3, 1).flatten(1, 2).numpy()


def add_headings(rows: np.ndarray) -> Image.Image:
    """Rows of reconstructions below the names of their three columns.

    Args:
        rows: uint8 (H, 3·W, 3), as of ``draw_reconstruction``, one or several.
    """
    width = rows.shape[1] // len(HEADINGS)
    size = max(10, min(40, width // 12))
    sheet = Image.new("RGB", (rows.shape[1], rows.shape[0] + 2 * size), "white")
    sheet.paste(Image.fromarray(rows), (0, 2 * size))
    draw, font = ImageDraw.Draw(sheet), typeface(size)
    for column, heading in enumerate(HEADINGS):
        draw.text((column * width + width // 2, size), heading, fill="black", font=font, anchor="mm")
    return sheet


def hide_masked(image: Tensor, mask: Tensor) -> Tensor:
    """A normalized image (3, H, W) as float32, 0, the mean color, in the patches that a mask bool (h, w) says."""
    is_masked = enlarge_mask(mask[None], image.shape[1:])[0]
    return torch.where(is_masked, 0.0, image.float())


def _stretched(images: Tensor) -> Tensor:
    """Images (n, 3, H, W) so that of each channel the low percentile of the first image is 0, and the high one 1."""
    low, high = (torch.quantile(_thinned(images[0].flatten(1)), share / 100, dim=1) for share in STRETCHED)
    width = torch.where(high > low, high - low, 1)
    return (images - low.view(3, 1, 1)) / width.view(3, 1, 1)


def _thinned(values: Tensor) -> Tensor:
    """Values (3, n), of many every so many-th: torch takes quantiles of sixteen million at most."""
    return values[:, :: 1 + values.shape[1] // 2**20]
