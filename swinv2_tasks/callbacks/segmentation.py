"""Label maps, overlays and tables of semantic segmentation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw

from swinv2_tasks.batches import task_data
from swinv2_tasks.callbacks.gallery import GallerySample, Label
from swinv2_tasks.callbacks.prediction_files import Predictions, Result
from swinv2_tasks.callbacks.prediction_journal import Record
from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.datamodules.readers.images import STRIP_PIXELS, strips_of
from swinv2_tasks.datamodules.readers.label_values import label_map_image
from swinv2_tasks.datamodules.scene_classes import MOST_CLASSES, colors
from swinv2_tasks.drawing import typeface
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.segmentation import Confusion, SegmentationScores
from swinv2_tasks.files import replace_file
from swinv2_tasks.records import each, number, sequence, whole
from swinv2_tasks.tables import TerminalTable
from swinv2_tasks.text import printable, shorten


class SegmentationPredictions(Predictions):
    """Writes for each image a label map (palette PNG) and an overlay, and a table of them all.

    Label maps hold the task's class ids, which are what the label maps hold that it was trained on.

    ``labels/`` and ``overlays/`` hold files named like the images, at the images' own sizes; predictions.csv says
    which is which and what share of each image the classes have. The argument is that of ``Predictions``.
    """

    folders = ("labels", "overlays")
    score_name = "share of the image"

    def on_predict_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """Refuses models of more classes than a label map of 8 bits can hold."""
        if (number := getattr(pl_module, "num_classes", 0)) > MOST_CLASSES:
            raise UserError(
                f"label maps of 8 bits hold {MOST_CLASSES} classes, the model has {number}: use task.segment"
            )

    def prepare(self, trainer: Any, task: Any) -> None:
        """Looks up the value of each class in the label maps, and its name."""
        self.class_ids = self._class_ids(trainer, task)
        self.class_names = class_names(task)

    def _class_ids(self, trainer: Any, task: Any) -> list[int] | list[str]:
        """What label maps hold for each class: as they did in training, or as the data's settings say."""
        in_data: Any = task_data(trainer).class_ids if task.class_ids is None else None
        return in_data if in_data is not None and len(in_data) == task.num_classes else class_ids(task)

    def settings(self) -> dict[str, Any]:
        """The values of the classes in the label maps."""
        return {"label_values": self.class_ids}

    def columns(self, task: Any) -> list[str]:
        """Label map, overlay, and each class with its share of the pixels."""
        return ["labels", "overlay", "classes"]

    def parts(self, outputs: Any, batch: Any) -> Iterable[tuple[str, Any]]:
        """Yields each image's file with its label map (H, W) of class indices."""
        return zip(outputs["path"], outputs["labels"], strict=True)

    def result(self, path: str, parts: list[Any], task: Any) -> Result:
        """Writes an image's label map and overlay."""
        (indices,) = parts
        names = class_names(task)
        labels = indices.numpy().astype(np.uint8)
        palette = colors(task.num_classes)
        files = [self.save(label_map_image(labels, self.class_ids, palette), "labels", path)]
        labels += 1
        files.append(self.save(draw_overlay(self.reader.picture(path), labels, names, palette), "overlays", path))
        pixels = _count_pixels(labels)[1 : task.num_classes + 1]
        classes = [k for k in np.argsort(-pixels, kind="stable").tolist() if pixels[k]]
        shares = [float(pixels[k] / labels.size) for k in classes]
        present = [f"{names[k]} {share:.4f}" for k, share in zip(classes, shares, strict=True)]
        return Result([*files, "; ".join(present)], files, [classes, shares])

    def are_details(self, details: Any, task: Any) -> bool:
        """Whether they are class indices, and as many shares."""
        check = sequence(each(whole(0, task.num_classes - 1)), each(number(0, 1)))
        return check(details) is None and len(details[0]) == len(details[1])

    def gallery_sample(self, record: Record, task: Any) -> GallerySample:
        """An image's overlay, and the classes in it with their shares of the pixels."""
        names = class_names(task)
        labels = [Label(names[index], share) for index, share in zip(*record["details"], strict=True)]
        return GallerySample(record["path"], self.picture_of(record), labels)

    def finish(self, records: Callable[[], Iterator[Record]], task: Any) -> str:
        """Says where the label maps are and what their values mean."""
        pairs = zip(self.class_ids, self.class_names, strict=True)
        meaning = abbreviate([f"{class_id} is {name}" for class_id, name in pairs])
        labels, overlays = (printable(self.results_folder / name) for name in self.folders)
        return f"label maps: {labels} ({meaning})\noverlays: {overlays}"


class ClassTable(Callback):
    """Writes scores per class as val_classes.json or test_classes.json at the end of an evaluation, and prints them.

    In the course of a training they are written only. The counts that they follow from are in val_confusion.json or
    test_confusion.json.

    Args:
        folder: where to write: the run's folder.
    """

    prints_scores = True
    """Nobody else has to, outside of a training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the validation's table, unless it is the check before training."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the test's table."""
        self._write(trainer, pl_module, "test")

    def _write(self, trainer: Trainer, task: Any, split: str) -> None:
        confusion: Confusion = getattr(task, f"{split}_confusion")
        scores = confusion.scores
        if scores is None or confusion.matrix is None or not trainer.is_global_zero:
            return
        names = class_names(task)
        ids = class_ids(task)
        write_scores(self.folder / f"{split}_classes.json", scores, names, ids)
        write_confusion(self.folder / f"{split}_confusion.json", confusion.matrix.tolist(), names)
        if trainer.state.fn != "fit":
            class_table(scores, names, ids).print()


def class_names(task: Any) -> list[str]:
    """Names of a task's classes; their numbers where it knows none."""
    return [str(name) for name in task.class_names or range(1, task.num_classes + 1)]


def class_ids(task: Any) -> list[int] | list[str]:
    """What label maps hold for each class of a task; 1, 2, … where it knows none."""
    return task.class_ids or list(range(1, task.num_classes + 1))


def write_scores(
    path: Path,
    scores: SegmentationScores,
    names: Sequence[str],
    ids: Sequence[int] | Sequence[str],
    basis: Mapping[str, Any] | None = None,
) -> None:
    """Writes scores as JSON: the three means, and under ``classes`` a row per class; null where there is nothing.

    ``basis`` is what they rest on, which is written between the two.
    """

    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    content: dict[str, Any] = {
        name: number(getattr(scores, name)) for name in ("miou", "mean_accuracy", "pixel_accuracy")
    }
    content |= basis or {}
    content["classes"] = [
        {"id": class_id, "name": name, "iou": number(iou), "accuracy": number(accuracy), "pixels": pixels}
        for class_id, name, iou, accuracy, pixels in zip(
            ids, names, scores.iou.tolist(), scores.accuracy.tolist(), scores.pixels.tolist(), strict=True
        )
    ]
    text = json.dumps(content, indent=2) + "\n"
    replace_file(path, lambda file: file.write_text(text, "utf-8"))


def write_confusion(path: Path, counts: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    """Writes pixel counts as JSON: ``classes``, their names, and ``counts``, a row for each.

    A row is of the pixels that are labeled so: how many are predicted as each class, and last as none.
    """
    rows = ",\n".join(json.dumps(list(row)) for row in counts)
    text = f'{{"classes": {json.dumps(list(names))}, "counts": [\n{rows}\n]}}\n'
    replace_file(path, lambda file: file.write_text(text, "utf-8"))


def class_table(scores: SegmentationScores, names: Sequence[str], ids: Sequence[int] | Sequence[str]) -> TerminalTable:
    """The scores of the classes that are labeled or predicted anywhere, and their means."""
    table = TerminalTable(title=f"mIoU {scores.miou:.4f}", show_footer=True)
    share = scores.pixels / max(1, int(scores.pixels.sum()))
    table.add_column("id", "", justify="right")
    table.add_column("class", f"{int((~scores.iou.isnan()).sum())} of {len(names)} classes", overflow="fold")
    table.add_column("IoU", f"{scores.miou:.4f}", justify="right")
    table.add_column("accuracy", f"{scores.mean_accuracy:.4f}", justify="right")
    table.add_column("pixels", f"{scores.pixel_accuracy:.4f} right", justify="right")
    for k, name in enumerate(names):
        if not math.isnan(scores.iou[k]):
            accuracy = "–" if math.isnan(scores.accuracy[k]) else f"{scores.accuracy[k]:.4f}"
            table.add_row(str(ids[k]), name, f"{scores.iou[k]:.4f}", accuracy, f"{share[k]:.2%}")
    return table


class LegendEntry(NamedTuple):
    """A line of a legend."""

    text: str
    color: tuple[int, int, int]


def draw_overlay(
    image: Image.Image, labels: np.ndarray, names: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """An image under its classes' colors, with dark lines between classes, and a legend at the right.

    Args:
        image: RGB of H × W pixels.
        labels: uint8 (H, W), 1 for the first class.
        names: of the classes.
        palette: RGB of the classes.
    """
    sheet = beside_legend(image.size, class_legend(labels, names, palette))
    color_classes(image, labels, palette, sheet)
    return sheet


def class_legend(
    labels: np.ndarray, names: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> list[LegendEntry]:
    """The classes in a label map with the shares of the pixels that they have, the largest first.

    Args:
        labels: uint8 (H, W), 1 for the first class.
        names: of the classes.
        palette: RGB of the classes.
    """
    pixels = _count_pixels(labels)
    classes = [k for k in np.argsort(-pixels, kind="stable").tolist() if pixels[k] and k]
    return [LegendEntry(f"{shorten(names[k - 1])} {pixels[k] / labels.size:.1%}", palette[k - 1]) for k in classes]


def color_classes(
    image: Image.Image, labels: np.ndarray, palette: Sequence[tuple[int, int, int]], sheet: Image.Image
) -> None:
    """Draws an image under its classes' colors, with dark lines between classes, at the top left of a sheet.

    Args:
        image: RGB of H × W pixels.
        labels: uint8 (H, W), 1 for the first class.
        palette: RGB of the classes.
        sheet: RGB, at least as large.
    """
    table = np.array([(0, 0, 0), *palette], dtype=np.uint8)
    for top, strip in strips_of(image):  # as an image may have 10⁸ pixels, of which few copies fit into the memory
        bottom = top + strip.height
        overlay = Image.blend(strip, Image.fromarray(table[labels[top:bottom]]), 0.5)
        overlay.paste((0, 0, 0), mask=Image.fromarray(_edges(labels, top, bottom)))
        sheet.paste(overlay, (0, top))


def _count_pixels(labels: np.ndarray) -> np.ndarray:
    """How many pixels have each value of a label map uint8 (H, W): int64 (256,)."""
    pixels = np.zeros(256, dtype=np.int64)
    for rows in np.array_split(labels, max(1, labels.size // STRIP_PIXELS)):
        pixels += np.bincount(rows.ravel(), minlength=256)
    return pixels


def _edges(labels: np.ndarray, top: int, bottom: int) -> np.ndarray:
    """Where, in some rows, a label differs from that at its left or above it: bool (bottom − top, W)."""
    own = labels[top:bottom]
    edges = np.zeros(own.shape, dtype=bool)
    edges[:, 1:] = own[:, 1:] != own[:, :-1]
    first = max(1, top)
    edges[first - top :] |= labels[first:bottom] != labels[first - 1 : bottom - 1]
    return edges


def beside_legend(image: tuple[int, int], legend: Sequence[LegendEntry]) -> Image.Image:
    """Room for an image (width, height), and a legend at its right, as many lines as there is room for."""
    size = max(10, min(40, image[1] // 24))
    line = size * 3 // 2
    rows = max(1, image[1] // line)
    shown = legend if len(legend) <= rows else legend[: rows - 1]
    texts = [entry.text for entry in shown]
    if len(shown) < len(legend):
        texts.append(f"and {len(legend) - len(shown)} more")

    font = typeface(size)
    width = 2 * line + max((int(font.getlength(text)) for text in texts), default=0)
    sheet = Image.new("RGB", (image[0] + width, image[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for row, text in enumerate(texts):
        x, y = image[0] + size // 2, row * line + size // 4
        if row < len(shown):
            draw.rectangle((x, y, x + size, y + size), fill=shown[row].color, outline="black")
        draw.text((x + line, y + size // 2), text, fill="black", font=font, anchor="lm")
    return sheet
