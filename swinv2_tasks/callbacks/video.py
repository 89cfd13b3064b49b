"""What a model predicts of videos, as tables and a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from swinv2_tasks.callbacks.classification import ClassificationPredictions, ids_and_names
from swinv2_tasks.callbacks.multi_label import MultiLabelPredictions
from swinv2_tasks.callbacks.prediction_files import Result
from swinv2_tasks.callbacks.prediction_folder import write_json_list
from swinv2_tasks.callbacks.prediction_journal import Record
from swinv2_tasks.datamodules.readers.videos import Video
from swinv2_tasks.files import replace_file


class VideoPredictions(ClassificationPredictions):
    """Writes predictions.csv, predictions.json and a contact sheet with four frames of each video.

    Predictions are the top 5 classes of a video by the mean over its views. The arguments are those of
    ``ClassificationPredictions``.
    """

    products = ("contact_sheet.png", "predictions.json")

    def parts(self, outputs: Any, batch: Any) -> Iterable[tuple[str, Any]]:
        """Yields each video's file with the sum of its views' probabilities (K,), and how many views these are."""
        for path, probabilities in zip(outputs["path"], outputs["probabilities"].cpu(), strict=True):
            yield path, (probabilities, outputs["views"])

    def result(self, path: str, parts: list[Any], task: Any) -> Result:
        """Returns the file's row: the top classes by the mean over all of its views."""
        total = sum(probabilities for probabilities, _ in parts)
        return super().result(path, [self.choose(total / sum(views for _, views in parts))], task)

    def choose(self, probabilities: Tensor) -> tuple[list[int], list[float]]:
        """The top classes by probabilities (classes,), and these, the highest first."""
        best = probabilities.topk(min(5, len(probabilities)))
        return best.indices.tolist(), best.values.tolist()

    def picture_of(self, record: Record) -> Callable[[], Image.Image]:
        """What draws a video in the gallery: four of its frames."""
        return partial(draw_frames, record["path"])

    def thumbnail(self, path: str) -> Image.Image:
        """Four frames of a video, side by side."""
        return draw_frames(path)

    def finish(self, records: Callable[[], Iterator[Record]], task: Any) -> str:
        """Writes predictions.json, and the contact sheet."""
        ids, names = ids_and_names(task)
        entries = (
            {
                "path": record["path"],
                "classes": [
                    {"id": ids[index], "name": names[index], "score": round(score, 6)}
                    for index, score in zip(*record["details"], strict=True)
                ],
            }
            for record in records()
        )
        replace_file(self.results_folder / "predictions.json", lambda file: write_json_list(file, entries, indent=2))
        return super().finish(records, task)


class MultiLabelVideoPredictions(VideoPredictions, MultiLabelPredictions):
    """The same of videos of which several classes may hold: those from the task's threshold on.

    The arguments are those of ``ClassificationPredictions``.
    """

    def choose(self, probabilities: Tensor) -> tuple[list[int], list[float]]:
        """The classes from the threshold on, and their probabilities, the highest first."""
        return MultiLabelPredictions.choose(self, probabilities)


def draw_frames(path: str, side: int = 2) -> Image.Image:
    """Frames spread evenly over a video, side × side of them in reading order, at a pixel's distance."""
    with Video(path) as video:
        indices = (np.arange(side**2) + 0.5) / side**2 * len(video)
        frames = video.frames(indices.astype(int))
    height, width = frames.shape[1:3]
    sheet = Image.new("RGB", (side * (width + 1) - 1, side * (height + 1) - 1), "white")
    for k, frame in enumerate(frames):
        sheet.paste(Image.fromarray(frame), (k % side * (width + 1), k // side * (height + 1)))
    return sheet
