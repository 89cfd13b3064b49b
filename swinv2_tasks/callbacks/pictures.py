"""Learning curves, and predictions as tables and pictures."""

from __future__ import annotations

import csv
import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageOps
from torch import Tensor

from swinv2_tasks.datamodules.images import read_image
from swinv2_tasks.errors import Interrupted, UserError


class LearningCurve(Callback):
    """Draws what the run's metrics.csv holds as learning_curve.png, at the end of fit or when it is interrupted."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt | Interrupted):
            self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        log_dir = trainer.log_dir  # asks all processes, so before the first goes on alone
        if not trainer.is_global_zero or log_dir is None:
            return
        for logger in trainer.loggers:
            logger.save()
        metrics = Path(log_dir) / "metrics.csv"
        if metrics.is_file():
            draw_learning_curve(metrics, metrics.with_name("learning_curve.png"))


def draw_learning_curve(metrics: Path, picture: Path) -> None:
    """Plots each group of columns of a metrics.csv (loss, accuracies, learning rate) over the step.

    Args:
        metrics: CSV file with a ``step`` column; empty cells are left out.
        picture: PNG file to write.
    """
    columns: dict[str, list[tuple[int, float]]] = defaultdict(list)
    with metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, cell in row.items():
                if name not in ("step", "epoch") and cell:
                    columns[name].append((int(row["step"]), float(cell)))
    panels: dict[str, list[str]] = defaultdict(list)
    for name in columns:
        panels["loss" if name.endswith("loss") else name if name in ("lr", "img/s") else "metric"].append(name)
    panels["metric"] = [name for name in panels["metric"] if max(value for _, value in columns[name]) >= 0]  # COCO's −1
    if len(panels["metric"]) > 12:
        for name in panels.pop("metric"):
            panels[name.partition("_")[0]].append(name)
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        return
    from matplotlib.figure import Figure  # slow to import, needed once

    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (title, names) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], sorted(panels.items()), strict=True
    ):
        for name in names:
            steps, values = zip(*columns[name], strict=True)
            axes.plot(steps, values, label=name, marker="." if len(steps) < 30 else None)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="medium" if len(names) < 8 else "x-small")
    figure.savefig(picture, dpi=100)


def check_folder(folder: str | None) -> None:
    """Makes sure that a folder for predictions can be made.

    Raises:
        UserError: a file is in its place.
    """
    for place in (Path(folder or "."), *Path(folder or ".").parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"predictions cannot go to {folder}: {place} is a file; name a folder with --output")


def of_all_processes(batches: list[Any], trainer: Trainer) -> list[Any]:
    """What all processes have made of their batches, which were dealt out in turn; to be called by all of them."""
    if trainer.world_size == 1:
        return batches
    shares: list[list[Any]] = [[]] * trainer.world_size
    torch.distributed.all_gather_object(shares, batches)
    return [batch for turn in itertools.zip_longest(*shares) for batch in turn if batch is not None]


class Answer(NamedTuple):
    """The likeliest classes of a file, from the likeliest on."""

    path: str
    scores: list[float]
    classes: list[int]
    """Class indices."""


class ClassificationPredictions(Callback):
    """Writes predictions.csv, the five likeliest classes of each image, and a contact sheet of the images with them.

    Args:
        folder: where to write; made when it is missing. None: ``predictions`` in the run's folder.
        pictures: how many images the contact sheet shows at most.
    """

    def __init__(self, folder: str | None = None, pictures: int = 48) -> None:
        self.folder = folder
        self.pictures = pictures
        self._batches: list[Any] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_folder(self.folder)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, Any],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        scores: Tensor = outputs["scores"]
        self._batches.append(list(zip(outputs["path"], scores.tolist(), outputs["classes"].tolist(), strict=True)))

    def answers(self, batches: list[Any]) -> list[Answer]:
        """What the batches of all processes say, in order."""
        return [Answer(*row) for batch in batches for row in batch]

    def picture(self, path: str) -> Image.Image:
        """What the contact sheet shows of a file."""
        return read_image(path)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches, self._batches = self._batches, []
        batches = of_all_processes(batches, trainer)
        log_dir = trainer.log_dir  # asks all processes, so before the first goes on alone
        if not trainer.is_global_zero:
            return
        folder = Path(self.folder or Path(log_dir or ".") / "predictions")
        folder.mkdir(parents=True, exist_ok=True)
        task: Any = pl_module
        ids = task.class_ids or list(range(task.num_classes))
        self.write(folder, self.answers(batches), ids, [str(name) for name in task.class_names or ids])

    def write(self, folder: Path, answers: list[Answer], ids: list[Any], names: list[str]) -> None:
        """Writes what was answered, for classes of these ids and names."""
        number = len(answers[0].classes) if answers else 0
        with (folder / "predictions.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["path", *(f"{what}{k}" for k in range(1, number + 1) for what in ("id", "name", "score"))])
            for path, scores, classes in answers:
                cells = ((ids[c], names[c], f"{score:.6f}") for c, score in zip(classes, scores, strict=True))
                table.writerow([path, *(cell for three in cells for cell in three)])
        draw_contact_sheet(
            [
                (path, [f"{names[c]} {score:.0%}" for c, score in zip(classes, scores, strict=True)])
                for path, scores, classes in answers[: self.pictures]
            ],
            folder / "contact_sheet.png",
            self.picture,
        )
        print(f"{len(answers)} predictions: {folder / 'predictions.csv'}, pictures: {folder / 'contact_sheet.png'}")


def draw_contact_sheet(
    images: list[tuple[str, list[str]]],
    picture: Path,
    read: Callable[[str], Image.Image] = read_image,
    columns: int = 6,
) -> None:
    """Draws images side by side with lines of text below each.

    Args:
        images: file and lines of each.
        picture: PNG file to write.
        read: file to picture.
        columns: images per row.
    """
    if not images:
        raise UserError("there is nothing to draw: no image was predicted")
    from matplotlib.figure import Figure

    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(2.2 * columns, 3.1 * rows), layout="constrained")
    for axes in (grid := figure.subplots(rows, columns, squeeze=False)).flat:
        axes.axis("off")
    for axes, (path, lines) in zip(grid.flat, images, strict=False):
        # Squares all, or the layout, which knows nothing of aspects, lets lines run into the row below.
        axes.imshow(ImageOps.pad(read(path), (256, 256), color="white"))
        axes.set_title(Path(path).name[-24:], fontsize=7)
        text = "\n".join(line if len(line) <= 26 else f"…{line[-25:]}" for line in lines)
        axes.text(0, -0.04, text, transform=axes.transAxes, fontsize=7, va="top", family="monospace")
    figure.savefig(picture, dpi=100)
