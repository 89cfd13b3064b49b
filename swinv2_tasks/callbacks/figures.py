"""Learning curves and contact sheets."""

from __future__ import annotations

import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw, ImageOps

from swinv2_tasks.callbacks.output_names import short_names
from swinv2_tasks.datamodules.readers.images import read_image
from swinv2_tasks.drawing import fit_text, typeface
from swinv2_tasks.errors import Interrupted, UserError
from swinv2_tasks.files import replace_file
from swinv2_tasks.progress import format_number
from swinv2_tasks.text import label, printable
from swinv2_tasks.training.run_loggers import read_numbers

MOST_SHARE = 0.05
"""Of a training's time that drawing its curve takes at most, but for the last time."""

MOST_CURVES = 6
"""In a panel, beside the monitored one."""


class LearningCurve(Callback):
    """Draws what the run's metrics.csv holds as learning_curve.png after each validation, and when fit ends.

    Where validations follow each other so fast that drawing took more than ``MOST_SHARE`` of the time, some are left
    out; the end, and an interruption, are always drawn.
    """

    def __init__(self) -> None:
        self._folder: str | None = None
        self._not_before = -math.inf

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for the folder while all processes take part: a single one may be interrupted."""
        self._folder = trainer.log_dir

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the curve of a training so far."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and time.monotonic() >= self._not_before:
            started = time.monotonic()
            self._draw(trainer)
            ended = time.monotonic()
            self._not_before = ended + (ended - started) / MOST_SHARE

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
            draw_learning_curve(metrics, metrics.with_name("learning_curve.png"), *_monitored(trainer))


def _monitored(trainer: Trainer) -> tuple[str | None, bool]:
    """The metric by which checkpoints are the best, None where there is none, and whether more is better."""
    for callback in trainer.checkpoint_callbacks:
        if (monitor := getattr(callback, "monitor", None)) is not None:
            return str(monitor), getattr(callback, "mode", "min") == "max"
    return None, True


class _Point(NamedTuple):
    """A value of a metric, and when it was logged."""

    step: int
    value: float
    epoch: int | None


def draw_learning_curve(metrics: Path, target: Path, monitor: str | None = None, more_is_better: bool = True) -> None:
    """Plots columns of a metrics.csv over steps and epochs: metrics, losses, the learning rate.

    Args:
        metrics: CSV file with a ``step`` column, and perhaps an ``epoch`` column; empty cells are left out.
        target: PNG file to write.
        monitor: the column by which checkpoints are the best: its panel comes first, with its best value marked.
        more_is_better: whether that is the highest value.
    """
    columns = _read_columns(metrics)
    panels = _choose_panels(columns, monitor)
    if not panels:
        return
    from matplotlib.figure import Figure  # slow to import, needed once

    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (title, names) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharex=True)[0], panels.items(), strict=True
    ):
        for name in names:
            steps, values, _ = zip(*columns[name], strict=True)
            style: dict[str, Any] = {"marker": "."} if len(steps) < 30 else {}
            if name == monitor and len(names) > 1:
                style |= {"linewidth": 2.5, "zorder": 3}
            axes.plot(steps, values, label=label(name), **style)
        if monitor in names:
            title = _mark_best(axes, columns[monitor], more_is_better) or title
        axes.set_title(label(title), fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="medium" if len(names) < 4 else "x-small")
        _add_epochs(axes, [point for name in names for point in columns[name]])
    replace_file(target, lambda file: save_figure(figure, file))


def _read_columns(metrics: Path) -> dict[str, list[_Point]]:
    """The points of each column that has any."""
    columns: dict[str, list[_Point]] = defaultdict(list)
    for row in read_numbers(metrics)[1]:
        epoch = int(float(row["epoch"])) if row.get("epoch") else None
        for name, cell in row.items():
            if name not in ("step", "epoch") and cell and row["step"]:
                columns[name].append(_Point(int(row["step"]), float(cell), epoch))
    return columns


def _choose_panels(columns: Mapping[str, Sequence[_Point]], monitor: str | None) -> dict[str, list[str]]:
    """The columns of each panel, by its title, that of the monitored one first."""
    panels: dict[str, list[str]] = {"metric": [], "loss": [], "learning rate": []}
    for name, points in columns.items():
        if name.endswith("loss"):
            panels["loss"].append(name)
        elif name == "lr":
            panels["learning rate"].append(name)
        elif name != "img/s" and max(point.value for point in points) >= 0:  # COCO's −1 stands for nothing
            panels["metric"].append(name)

    for title, names in panels.items():
        if len(names) > MOST_CURVES:
            panels[title] = [monitor] if monitor is not None and monitor in names else names[:MOST_CURVES]
    ordered = sorted(panels.items(), key=lambda panel: monitor not in panel[1])  # which keeps the order of the others
    return {title: names for title, names in ordered if names}


def _mark_best(axes: Any, points: Sequence[_Point], more_is_better: bool) -> str:
    """Draws a ring around the best of some points; what it is, in words, empty where all are NaN."""
    numbers = [point for point in points if math.isfinite(point.value)]
    if not numbers:
        return ""
    best = (max if more_is_better else min)(numbers, key=lambda point: point.value)
    axes.plot([best.step], [best.value], "o", markersize=11, fillstyle="none", color="black", zorder=4)
    when = f"step {best.step}" if best.epoch is None else f"epoch {best.epoch + 1}"
    return f"best {format_number(best.value)} in {when}"


def _add_epochs(axes: Any, points: Sequence[_Point]) -> None:
    """Adds an axis above with the last step of each epoch, of many of some."""
    last_steps: dict[int, int] = {}
    for point in points:
        if point.epoch is not None:
            last_steps[point.epoch] = max(point.step, last_steps.get(point.epoch, 0))
    if len(last_steps) < 2:
        return
    stride = math.ceil(len(last_steps) / 8)
    shown = sorted(last_steps)[stride - 1 :: stride]
    above = axes.secondary_xaxis("top")
    above.set_xticks([last_steps[epoch] for epoch in shown], [str(epoch + 1) for epoch in shown], fontsize=8)
    above.set_xlabel("epoch", fontsize=8)


CELL = (220, 310)
"""Pixels of an image's cell in a contact sheet: its name, a square, up to five lines."""

MARGIN, FRAME, NAME_LINE, LINE, LETTERS = 8, 4, 24, 14, 11
"""Pixels of a cell's parts: around it, of the frame, of the name and of a line, with letters of that size."""

FRAMES = {True: (0, 158, 115), False: (213, 60, 0)}
"""Colors of the frames around images whose classes are known: predicted right, predicted wrong."""


def draw_contact_sheet(
    images: Sequence[tuple[str, Sequence[str]]],
    target: Path,
    read: Callable[[str], Image.Image] = read_image,
    columns: int = 6,
    are_right: Sequence[bool | None] = (),
) -> None:
    """Draws images side by side with lines of text below each.

    Args:
        images: file and lines of each.
        target: PNG file to write.
        read: from a file to the image that is shown of it.
        columns: images per row.
        are_right: whether what is predicted of each is right, for a green frame or a red one; None where it is not
            known, as of those that have no entry.
    """
    if not images:
        raise UserError("there is nothing to draw: no image was predicted")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * CELL[0], rows * CELL[1]), "white")
    draw, font = ImageDraw.Draw(sheet), typeface(LETTERS)
    width = CELL[0] - 2 * MARGIN
    names = short_names([path for path, _ in images])
    frames = [*are_right, *[None] * len(images)]
    for number, ((path, lines), name, is_right) in enumerate(zip(images, names, frames, strict=False)):
        left = number % columns * CELL[0] + MARGIN
        top = number // columns * CELL[1] + NAME_LINE
        draw.text((left, top - LINE - 4), fit_text(printable(name), font, width), fill="black", font=font)
        if is_right is not None:
            corners = (left - FRAME, top - FRAME, left + width + FRAME - 1, top + width + FRAME - 1)
            draw.rectangle(corners, fill=FRAMES[is_right])
        sheet.paste(_thumbnail(path, read, width), (left, top))
        for row, line in enumerate(lines):
            position = (left, top + width + FRAME + 2 + row * LINE)
            draw.text(position, fit_text(printable(line), font, width), fill="black", font=font)
    sheet.save(target, "PNG")


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


def _thumbnail(path: str, read: Callable[[str], Image.Image], side: int) -> Image.Image:
    """A file's image in a white square; gray where it cannot be read any more."""
    try:
        image = read(path)
    except UserError:
        return Image.new("RGB", (side, side), "lightgray")
    scale = side / max(image.size)
    if min(image.size) * scale < 1:  # a strip, of which less than a pixel would be left
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    return ImageOps.pad(image, (side, side), color="white")
