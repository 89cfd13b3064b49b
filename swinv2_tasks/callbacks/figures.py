"""Learning curves and contact sheets."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageOps

from swinv2_tasks.datamodules.readers.images import read_image
from swinv2_tasks.errors import Interrupted, UserError
from swinv2_tasks.files import replace_file
from swinv2_tasks.text import label, printable
from swinv2_tasks.training.run_loggers import read_numbers


class LearningCurve(Callback):
    """Draws what the run's metrics.csv holds as learning_curve.png, at the end of fit or when it is interrupted."""

    def __init__(self) -> None:
        self._folder: str | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for the folder while all processes take part: a single one may be interrupted."""
        self._folder = trainer.log_dir

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the curve of a training that ended."""
        self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draws the curve of a training that was interrupted; after errors nothing is drawn."""
        if isinstance(exception, KeyboardInterrupt | Interrupted):
            self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or self._folder is None:
            return
        for logger in trainer.loggers:
            logger.save()
        metrics = Path(self._folder) / "metrics.csv"
        if metrics.is_file():
            draw_learning_curve(metrics, metrics.with_name("learning_curve.png"))


def draw_learning_curve(metrics: Path, target: Path) -> None:
    """Plots each group of columns of a metrics.csv (loss, accuracies, learning rate) over the step.

    Args:
        metrics: CSV file with a ``step`` column; empty cells are left out.
        target: PNG file to write.
    """
    columns: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in read_numbers(metrics)[1]:
        for name, cell in row.items():
            if name not in ("step", "epoch") and cell and row["step"]:
                columns[name].append((int(row["step"]), float(cell)))
    panels = _group_columns(columns)
    if not panels:
        return
    from matplotlib.figure import Figure  # slow to import, needed once

    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (title, names) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], sorted(panels.items()), strict=True
    ):
        for name in names:
            steps, values = zip(*columns[name], strict=True)
            axes.plot(steps, values, label=label(name), marker="." if len(steps) < 30 else None)
        axes.set(title=label(title), xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="medium" if len(names) < 8 else "x-small")
    replace_file(target, lambda file: save_figure(figure, file))


def _group_columns(columns: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, list[str]]:
    """The columns of each panel, by its title: losses, metrics, the learning rate, the speed."""
    panels: dict[str, list[str]] = defaultdict(list)
    for name, points in columns.items():
        if name.endswith("loss"):
            panels["loss"].append(name)
        elif name in ("lr", "img/s", "grad_norm"):
            panels[name].append(name)
        elif max(value for _, value in points) >= 0:  # COCO's −1 stands for nothing
            panels["metric"].append(name)

    if len(panels["metric"]) > 12:
        for name in panels.pop("metric"):
            panels[name.partition("_")[0]].append(name)
    return {title: names for title, names in panels.items() if names}


def draw_contact_sheet(
    images: list[tuple[str, list[str]]],
    target: Path,
    read: Callable[[str], Image.Image] = read_image,
    columns: int = 6,
) -> None:
    """Draws images side by side with lines of text below each.

    Args:
        images: file and lines of each.
        target: PNG file to write.
        read: from a file to the image that is shown of it.
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
        axes.imshow(_thumbnail(path, read))
        axes.set_title(label(printable(Path(path).name)[-24:]), fontsize=7)
        text = "\n".join(label(line if len(line) <= 26 else f"…{line[-25:]}") for line in map(printable, lines))
        font = {"fontsize": 7, "family": "monospace"}
        axes.text(0, -0.04, text, transform=axes.transAxes, va="top", **font)
    save_figure(figure, target)


def save_figure(figure: Any, target: Any, file_format: str = "png") -> None:
    """Writes a figure of matplotlib, whatever scripts the names in it are of: what no font has is a box.

    Args:
        figure: the figure.
        target: path or stream.
        file_format: png or svg.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*missing from", category=UserWarning)
        figure.savefig(target, dpi=100, format=file_format)


def _thumbnail(path: str, read: Callable[[str], Image.Image], side: int = 256) -> Image.Image:
    """A file's image in a white square; gray where it cannot be read any more."""
    try:
        image = read(path)
    except UserError:
        return Image.new("RGB", (side, side), "lightgray")
    scale = side / max(image.size)
    if min(image.size) * scale < 1:  # a strip, of which less than a pixel would be left
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    return ImageOps.pad(image, (side, side), color="white")
