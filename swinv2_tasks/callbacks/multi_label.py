"""Tables and figures of images and videos of which several classes may hold."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from swinv2_tasks.callbacks.classification import ClassificationPredictions, ids_and_names
from swinv2_tasks.callbacks.figures import draw_contact_sheet
from swinv2_tasks.callbacks.gallery import GallerySample, Label
from swinv2_tasks.callbacks.prediction_files import Result
from swinv2_tasks.callbacks.prediction_journal import Record
from swinv2_tasks.evaluation.multi_label import MultiLabelScores
from swinv2_tasks.files import replace_file
from swinv2_tasks.tables import TerminalTable
from swinv2_tasks.text import printable

MOST_LINES = 5
"""Classes that the contact sheet shows of an image, at most."""


class MultiLabelPredictions(ClassificationPredictions):
    """Writes predictions.csv, the probability of each class from the task's threshold on, and a contact sheet.

    The arguments are those of ``ClassificationPredictions``.
    """

    def columns(self, task: Any) -> list[str]:
        """Ids and names of the predicted classes, and for each class its probability."""
        ids, _ = ids_and_names(task)
        return ["ids", "names", *(f"score {class_id}" for class_id in ids)]

    def prepare(self, trainer: Any, task: Any) -> None:
        """Notes the threshold."""
        self.threshold: float = task.threshold

    def parts(self, outputs: Any, batch: Any) -> Iterable[tuple[str, Any]]:
        """Yields each image's file with the indices of its classes and their probabilities, the highest first."""
        for path, probabilities in zip(outputs["path"], outputs["probabilities"].cpu(), strict=True):
            yield path, self.choose(probabilities)

    def choose(self, probabilities: Tensor) -> tuple[list[int], list[float]]:
        """The classes that are predicted by probabilities (classes,), and these, the highest first."""
        order = probabilities.argsort(descending=True, stable=True)
        scores = probabilities[order]
        number = int((scores >= self.threshold).sum())
        return order[:number].tolist(), scores[:number].tolist()

    def result(self, path: str, parts: list[Any], task: Any) -> Result:
        """Returns the file's row: ids and names with | between, then a cell per class, empty below the threshold."""
        ((classes, scores),) = parts
        ids, names = ids_and_names(task)
        cells = [""] * len(ids)
        for index, score in zip(classes, scores, strict=True):
            cells[index] = f"{score:.6f}"
        predicted = ["|".join(str(texts[index]) for index in classes) for texts in (ids, names)]
        return Result([*predicted, *cells], [], [classes, scores])

    def gallery_sample(self, record: Record, task: Any) -> GallerySample:
        """An image with the classes that are predicted of it."""
        _, names = ids_and_names(task)
        labels = [Label(names[k], score) for k, score in zip(*record["details"], strict=True)]
        lines = [] if labels else [f"none from {self.threshold:g}"]
        return GallerySample(record["path"], self.picture_of(record), labels, lines)

    def finish(self, records: Callable[[], Iterator[Record]], task: Any) -> str:
        """Draws the contact sheet of the first images with their highest-scoring classes."""
        _, names = ids_and_names(task)
        captions = []
        for record in itertools.islice(records(), self.images):
            pairs = [*zip(*record["details"], strict=True)]
            lines = [f"{names[k]} {score:.0%}" for k, score in pairs[:MOST_LINES]]
            if len(pairs) > MOST_LINES:
                lines[-1] = f"and {len(pairs) - MOST_LINES + 1} more"
            captions.append((record["path"], lines or [f"none from {self.threshold:g}"]))
        sheet = self.results_folder / "contact_sheet.png"
        replace_file(sheet, lambda file: draw_contact_sheet(captions, file, self.thumbnail))
        return f"contact sheet: {printable(sheet)}"


class MultiLabelTable(Callback):
    """Writes multi-label scores per class as val_classes.json or test_classes.json, and prints them.

    In the course of a training they are written only; of one label a sample there is no such table.

    Args:
        folder: where to write: the run's folder.
        samples: what samples are, as the table calls them.
    """

    def __init__(self, folder: Path, samples: str = "images") -> None:
        self.folder = folder
        self.samples = samples
        self.prints_scores = False
        """Whether nobody else has to, outside of a training."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes whether there will be a table."""
        self.prints_scores = bool(getattr(pl_module, "multi_label", False))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes whether there will be a table."""
        self.prints_scores = bool(getattr(pl_module, "multi_label", False))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the validation's table, unless it is the check before training."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the test's table."""
        self._write(trainer, pl_module, "test")

    def _write(self, trainer: Trainer, task: Any, split: str) -> None:
        scores: MultiLabelScores | None = getattr(task, f"{split}_multi_label").scores
        if scores is None or not trainer.is_global_zero:
            return
        ids, names = ids_and_names(task)
        write_scores(self.folder / f"{split}_classes.json", scores, ids, names, task.threshold, self.samples)
        if trainer.state.fn != "fit":
            class_table(scores, ids, names, task.threshold, self.samples).print()


def write_scores(
    path: Path, scores: MultiLabelScores, ids: Sequence[Any], names: Sequence[str], threshold: float, samples: str
) -> None:
    """Writes scores as JSON: means, the threshold, F1 over it, and under ``classes`` a row each; null for nothing."""

    def number(value: float) -> float | None:
        return None if math.isnan(value) else float(value)

    content: dict[str, Any] = {name: number(getattr(scores, name)) for name in ("map", "macro_f1", "micro_f1")}
    content["threshold"] = threshold
    content["f1_curve"] = {
        name: [number(value) for value in getattr(scores.curve, name)]
        for name in ("thresholds", "micro_f1", "macro_f1")
    }
    content["classes"] = [
        {
            "id": class_id,
            "name": name,
            **{column: number(getattr(scores, column)[k]) for column in ("ap", "precision", "recall", "f1")},
            samples: int(scores.positives[k]),
        }
        for k, (class_id, name) in enumerate(zip(ids, names, strict=True))
    ]
    text = json.dumps(content, indent=2) + "\n"
    replace_file(path, lambda file: file.write_text(text, "utf-8"))


def class_table(
    scores: MultiLabelScores, ids: Sequence[Any], names: Sequence[str], threshold: float, samples: str
) -> TerminalTable:
    """The scores of the classes that hold or are predicted for any sample, and their means."""
    table = TerminalTable(title=f"mAP {scores.map:.4f}, F1 from {threshold:g} on", show_footer=True)
    is_shown = [positives > 0 or not math.isnan(f1) for positives, f1 in zip(scores.positives, scores.f1, strict=True)]
    table.add_column("id", "", justify="right")
    table.add_column("class", f"{sum(is_shown)} of {len(names)} classes", overflow="fold")
    table.add_column("AP", f"{scores.map:.4f}", justify="right")
    table.add_column("precision", "", justify="right")
    table.add_column("recall", "", justify="right")
    table.add_column("F1", f"{scores.macro_f1:.4f}, all at once {scores.micro_f1:.4f}", justify="right")
    table.add_column(samples, "", justify="right")
    for k, name in enumerate(names):
        if is_shown[k]:
            columns = (scores.ap, scores.precision, scores.recall, scores.f1)
            cells = ["–" if math.isnan(column[k]) else f"{column[k]:.4f}" for column in columns]
            table.add_row(str(ids[k]), name, *cells, f"{scores.positives[k]:,}")
    return table
