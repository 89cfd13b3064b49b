"""Tables and figures of classified images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from swinv2_tasks.callbacks.figures import draw_contact_sheet
from swinv2_tasks.callbacks.gallery import GallerySample, Label
from swinv2_tasks.callbacks.prediction_files import Predictions, Result
from swinv2_tasks.callbacks.prediction_journal import Record
from swinv2_tasks.files import replace_file
from swinv2_tasks.records import each, number, sequence, whole
from swinv2_tasks.text import printable


class ClassificationPredictions(Predictions):
    """Writes predictions.csv, the top 5 classes of each image, and a contact sheet of the images with them.

    Args:
        folder: where to write; made when it is missing. None: ``predictions`` in the run's folder.
        images: how many images the contact sheet shows at most.
    """

    products: tuple[str, ...] = ("contact_sheet.png",)

    def __init__(self, folder: str | None = None, images: int = 48) -> None:
        super().__init__(folder)
        self.images = images

    def columns(self, task: Any) -> list[str]:
        """Id, name and score of each of the top 5 classes, or of as many as there are."""
        return [f"{what}{k}" for k in range(1, min(5, task.num_classes) + 1) for what in ("id", "name", "score")]

    def parts(self, outputs: Any, batch: Any) -> Iterable[tuple[str, Any]]:
        """Yields each image's file with its top class indices and their scores."""
        rows = zip(outputs["classes"].tolist(), outputs["scores"].tolist(), strict=True)
        return zip(outputs["path"], rows, strict=True)

    def result(self, path: str, parts: list[Any], task: Any) -> Result:
        """Returns the file's row: original ids, names and scores in [0, 1], highest first."""
        ((classes, scores),) = parts
        ids, names = ids_and_names(task)
        cells = [
            cell
            for index, score in zip(classes, scores, strict=True)
            for cell in (str(ids[index]), names[index], f"{score:.6f}")
        ]
        return Result(cells, [], [classes, scores])

    def are_details(self, details: Any, task: Any) -> bool:
        """Whether they are class indices, and as many scores."""
        _, names = ids_and_names(task)
        check = sequence(each(whole(0, len(names) - 1)), each(number(0, 1.001)))
        return check(details) is None and len(details[0]) == len(details[1])

    def thumbnail(self, path: str) -> Image.Image:
        """What the contact sheet shows of a file."""
        return self.reader.picture(path)

    def gallery_sample(self, record: Record, task: Any) -> GallerySample:
        """An image with its top classes: it is filtered by the first one, the others are lines below."""
        ids, names = ids_and_names(task)
        labels = [Label(names[k], score) for k, score in zip(*record["details"], strict=True)]
        truth = find_truth(record["path"], ids, names)
        is_right = None if truth is None else truth == names[record["details"][0][0]]
        rest = [label.text for label in labels[1:]]
        return GallerySample(record["path"], self.picture_of(record), labels[:1], rest, truth, is_right)

    def finish(self, records: Callable[[], Iterator[Record]], task: Any) -> str:
        """Draws the contact sheet of the first images with their top classes."""
        samples = [self.gallery_sample(record, task) for record in itertools.islice(records(), self.images)]
        captions = [(sample.path, [*(label.text for label in sample.labels), *sample.lines]) for sample in samples]
        are_right = [sample.is_right for sample in samples]
        sheet = self.results_folder / "contact_sheet.png"
        replace_file(sheet, lambda file: draw_contact_sheet(captions, file, self.thumbnail, are_right=are_right))
        return f"contact sheet: {printable(sheet)}"


def find_truth(path: str, ids: Sequence[Any], names: Sequence[str]) -> str | None:
    """The class that a file is known to be of, as its folder is called so, by name or id; None where it is not."""
    folder = Path(path).parent.name
    for class_id, name in zip(ids, names, strict=True):
        if folder in (name, str(class_id)):
            return name
    return None


def ids_and_names(task: Any) -> tuple[list[Any], list[str]]:
    """Ids and names of a task's classes; their numbers where it knows none."""
    ids = task.class_ids or list(range(task.num_classes))
    return ids, [str(name) for name in task.class_names or ids]
