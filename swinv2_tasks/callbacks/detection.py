"""Result files, visualizations and tables of detection."""

from __future__ import annotations

import colorsys
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw
from pycocotools import mask as coco_masks

from swinv2_tasks.callbacks.gallery import GallerySample, Label
from swinv2_tasks.callbacks.prediction_files import Predictions, Result
from swinv2_tasks.callbacks.prediction_folder import write_json_list
from swinv2_tasks.callbacks.prediction_journal import Record
from swinv2_tasks.datamodules.readers.images import strips_of
from swinv2_tasks.drawing import Color, distinct_colors, ink_on, label_font, place_labels, text_size
from swinv2_tasks.evaluation.coco import TYPE_NAMES, CocoScores, IoUType, as_results
from swinv2_tasks.evaluation.coco_curves import describe_curves
from swinv2_tasks.files import replace_file
from swinv2_tasks.records import each, mapping, number
from swinv2_tasks.tables import TerminalTable
from swinv2_tasks.text import printable, say, shorten

log = logging.getLogger("swinv2_tasks")

IMAGE_FOLDER = "image_folder"
"""Entry of ``info`` in val_truth.json."""


class DetectionPredictions(Predictions):
    """Writes detections.json, all detections as COCO takes submissions; a visualization of each image; a table of all.

    ``visualizations/`` holds the visualizations, named like the images. predictions.csv says which id each image has in
    detections.json: the number that its file is named, where all images are named by different numbers, otherwise its
    position in the order.

    Args:
        folder: where to write; made when it is missing. None: ``predictions`` in the run's folder.
        least_score: visualizations show detections of at least this score.
    """

    folders = ("visualizations",)
    products = ("detections.json",)

    def __init__(self, folder: str | None = None, least_score: float = 0.3) -> None:
        super().__init__(folder)
        self.least_score = least_score
        self._ids: dict[str, int] = {}

    def settings(self) -> dict[str, Any]:
        """The least score that is drawn and counted."""
        return {"least_score": self.least_score}

    def prepare(self, trainer: Any, task: Any) -> None:
        """Assigns an image id to each file."""
        self._ids = image_ids(self.paths)

    def position_of(self, index: int) -> int:
        """The image id of a file, which its results state."""
        return self._ids[self.paths[index]]

    def columns(self, task: Any) -> list[str]:
        """Image id, visualization, and the objects counted by class."""
        return ["image_id", "visualization", f"objects of score {self.least_score} or more"]

    def parts(self, outputs: Any, batch: Any) -> Iterable[tuple[str, Any]]:
        """Yields each image's file with its detections, its (height, width) in pixels and its reader."""
        readers = [getattr(file, "reader", self.reader) for file in batch.get("rescaled", outputs)]
        return zip(batch["paths"], zip(outputs, batch["sizes"], readers, strict=True), strict=True)

    def result(self, path: str, parts: list[Any], task: Any) -> Result:
        """Draws an image's detections; all of them, in COCO's results format, are the details."""
        ((detections, size, reader),) = parts
        names = class_names(task)
        results = as_results(detections, self._ids[path], size, task.ids, task.inference.mask_threshold)
        visible = [result for result in results if result["score"] >= self.least_score]
        image = reader.picture(path)
        file = self.save(draw_detections(image, visible, names), "visualizations", path)
        counts = Counter(names[result["category_id"]] for result in visible)
        summary = "; ".join(f"{number} {name}" for name, number in counts.most_common())
        return Result([str(self._ids[path]), file, summary], [file], results)

    def are_details(self, details: Any, task: Any) -> bool:
        """Whether they are detections in COCO's results format."""
        return _RESULTS(details) is None

    def gallery_sample(self, record: Record, task: Any) -> GallerySample:
        """An image's visualization, and the classes of the objects that it shows with their highest scores."""
        names = class_names(task)
        scores: dict[str, list[float]] = {}
        for result in record["details"]:
            if result["score"] >= self.least_score:
                scores.setdefault(names[result["category_id"]], []).append(result["score"])
        labels = [Label(name, max(of_class), len(of_class)) for name, of_class in scores.items()]
        labels.sort(key=lambda label: -label.score)
        lines = [] if labels else [f"no object of score {self.least_score:g} or more"]
        return GallerySample(record["path"], self.picture_of(record), labels, lines)

    def finish(self, records: Callable[[], Iterator[Record]], task: Any) -> str:
        """Writes detections.json: COCO results of all images, of any score."""
        number = 0

        def results() -> Iterator[Any]:
            nonlocal number
            for record in records():
                number += len(record["details"])
                yield from record["details"]

        file = self.results_folder / "detections.json"
        replace_file(file, lambda unfinished: write_json_list(unfinished, results()))
        folder = self.results_folder / "visualizations"
        return f"{number} detections: {printable(file)}\nvisualizations: {printable(folder)}"


_RESULTS = each(mapping({"category_id": number(), "score": number(), "bbox": each(number(), length=4)}))


class DetectionScores(Callback):
    """Writes COCO's numbers of an evaluation and what they follow from, and prints them outside of a training.

    Of a validation, and of a test likewise: val_classes.json, the numbers, those of each class too; val_curves.json,
    precision over recall, AP by IoU and size; val_detections.json, which COCO's server takes as a submission; and
    val_truth.json, the annotations with the images' files, from which any tool computes them again.

    Args:
        folder: where to write: the run's folder.
    """

    prints_scores = True
    """Nobody else has to, outside of a training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reported_limit: str | None = None
        self._written_images: list[int] | None = None
        """Ids of the images whose annotations have been written: they stay the same in a training."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the validation's scores, unless it is the check before training."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the test's scores."""
        self._write(trainer, pl_module, "test")

    def _write(self, trainer: Trainer, task: Any, split: str) -> None:
        metric = getattr(task, f"{split}_scores")
        if not trainer.is_global_zero:
            return
        names = class_names(task)
        results = self.folder / f"{split}_detections.json"
        write_results(results, metric.results)
        if metric.scores:
            write_scores(self.folder / f"{split}_classes.json", metric.scores, names, metric.limit)
            write_curves(self.folder / f"{split}_curves.json", metric.scores, names)
            self._write_truth(self.folder / f"{split}_truth.json", metric.truth)
        if trainer.state.fn != "fit":
            for table in score_tables(metric.scores, names) if metric.scores else []:
                table.print()
            say(f"{len(metric.results)} detections: {printable(results)}")
        if metric.limit not in (None, self._reported_limit):  # in a training, once
            log.warning(metric.limit)
            self._reported_limit = metric.limit

    def _write_truth(self, path: Path, truth: Mapping[str, Any]) -> None:
        """Writes the annotations, unless they stand there; nothing of a loader that does not name its images' files.

        As in COCO's own files, these are relative to a folder, which ``info`` names: the one that all lie in.
        """
        ids = [image["id"] for image in truth["images"]]
        if ids == self._written_images or not all("file_name" in image for image in truth["images"]):
            return
        files = [os.path.abspath(image["file_name"]) for image in truth["images"]]
        folder = os.path.commonpath([os.path.dirname(file) for file in files])
        images = [
            {**image, "file_name": os.path.relpath(file, folder)}
            for image, file in zip(truth["images"], files, strict=True)
        ]
        content = json.dumps({"info": {IMAGE_FOLDER: folder}, **truth, "images": images})
        replace_file(path, lambda file: file.write_text(content, "utf-8"))
        self._written_images = ids


def class_names(task: Any) -> dict[int, str]:
    """Names of a task's categories by their ids; their numbers where it knows none."""
    return dict(zip(task.ids, map(str, task.class_names or task.ids), strict=True))


def image_ids(paths: Sequence[str]) -> dict[str, int]:
    """An id for each image: the number that its file is named, or where not all have one of their own, its position."""
    stems = [Path(path).stem for path in paths]
    if all(stem.isascii() and stem.isdecimal() for stem in stems) and len(set(map(int, stems))) == len(stems):
        return dict(zip(paths, map(int, stems), strict=True))
    return {path: position for position, path in enumerate(paths, start=1)}


def write_results(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Writes detections as COCO takes submissions: a JSON list of {image_id, category_id, bbox, score, …}."""
    replace_file(path, lambda file: write_json_list(file, results))


def write_curves(path: Path, scores: Mapping[IoUType, CocoScores], names: Mapping[int, str]) -> None:
    """Writes as JSON, under ``box`` and ``mask``, what ``describe_curves`` says."""
    content = {
        TYPE_NAMES[iou_type]: describe_curves(of_type.curves, names)
        for iou_type, of_type in scores.items()
        if of_type.curves is not None
    }
    text = json.dumps(content) + "\n"
    replace_file(path, lambda file: file.write_text(text, "utf-8"))


def write_scores(
    path: Path, scores: Mapping[IoUType, CocoScores], names: Mapping[int, str], note: str | None = None
) -> None:
    """Writes scores as JSON: under ``box`` and ``mask`` the twelve numbers, under ``classes`` each class's AP.

    −1, where there is no object of a size, is COCO's own; null where there is no object of a class. A note, what the
    scores leave out, is written under that name.
    """
    content: dict[str, Any] = {TYPE_NAMES[iou_type]: of_type.statistics for iou_type, of_type in scores.items()}
    rows = []
    for category, name in names.items():
        row = {"id": category, "name": name}
        for iou_type, of_type in scores.items():
            row[f"{TYPE_NAMES[iou_type]}_ap"] = _number(of_type.class_ap.get(category, math.nan))
        rows.append(row)
    content["classes"] = rows
    if note is not None:
        content["note"] = note
    text = json.dumps(content, indent=2) + "\n"
    replace_file(path, lambda file: file.write_text(text, "utf-8"))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def score_tables(scores: Mapping[IoUType, CocoScores], names: Mapping[int, str]) -> list[TerminalTable]:
    """COCO's twelve numbers, and the average precision of each class that is annotated anywhere."""
    totals = TerminalTable(title="COCO scores")
    classes = TerminalTable(title="AP of each class")
    totals.add_column("")
    classes.add_column("id", justify="right")
    classes.add_column("class", overflow="fold")
    for iou_type in scores:
        totals.add_column(TYPE_NAMES[iou_type], justify="right")
        classes.add_column(f"{TYPE_NAMES[iou_type]} AP", justify="right")

    for name in next(iter(scores.values())).statistics:
        values = [of_type.statistics[name] for of_type in scores.values()]
        totals.add_row(name.replace("_", " "), *("–" if value < 0 else f"{value:.4f}" for value in values))
    for category, name in names.items():
        values = [of_type.class_ap.get(category, math.nan) for of_type in scores.values()]
        cells = ["–" if math.isnan(value) else f"{value:.4f}" for value in values]
        if not all(map(math.isnan, values)):
            classes.add_row(str(category), name, *cells)
    return [totals, classes]


def draw_detections(image: Image.Image, results: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> Image.Image:
    """An image with the masks, boxes, names and scores of detections, the highest-scoring on top.

    Args:
        image: RGB of H × W pixels; one with sides below 400 is enlarged, to make room for the names,
            to at most 4000.
        results: detections as of ``as_results``.
        names: of the categories, by id.
    """
    ordered = sorted(results, key=lambda result: result["score"])
    palette = distinct_colors(len(ordered))[::-1]  # the highest-scoring one has the first color
    masks = (
        (coco_masks.decode(result["segmentation"]), color)
        for result, color in zip(ordered, palette, strict=True)
        if "segmentation" in result
    )
    boxes = [
        (result["bbox"], f"{shorten(names[result['category_id']])} {result['score']:.0%}", color)
        for result, color in zip(ordered, palette, strict=True)
    ]
    return draw_objects(image, masks, boxes)


def draw_objects(
    image: Image.Image, masks: Iterable[tuple[np.ndarray, Color]], boxes: Sequence[tuple[Sequence[float], str, Color]]
) -> Image.Image:
    """An image with masks and boxes, the last ones on top.

    Args:
        image: RGB of H × W pixels; one with sides below 400 is enlarged, to make room for the texts, to at most 4000.
        masks: uint8 (H, W), 1 inside, and the color of each; taken one by one, as each may have 10⁸ pixels.
        boxes: left, top, width and height; a line of text; the color.
    """
    drawing = image.copy()
    for mask, color in masks:
        _draw_mask(drawing, mask, color)
    factor = max(1, min(math.ceil(400 / min(image.size)), 4000 // max(image.size)))
    if factor > 1:
        drawing = drawing.resize((factor * image.width, factor * image.height))
    scaled = [[factor * side for side in box] for box, _, _ in boxes]
    _draw_boxes(drawing, scaled, [text for _, text, _ in boxes], [color for _, _, color in boxes])
    return drawing


def _draw_mask(drawing: Image.Image, mask: np.ndarray, color: tuple[int, int, int]) -> None:
    """Lays a color over a mask's pixels, uint8 (H, W), half transparent; in strips, as an image may have 10⁸ pixels."""
    for top, strip in strips_of(drawing):
        inside = mask[top : top + strip.height]
        if inside.any():
            colored = Image.blend(strip, Image.new("RGB", strip.size, color), 0.5)
            drawing.paste(colored, (0, top), Image.fromarray(255 * np.ascontiguousarray(inside)))


def _draw_boxes(
    drawing: Image.Image, boxes: Sequence[Sequence[float]], texts: Sequence[str], palette: Sequence[Color]
) -> None:
    """Draws boxes (left, top, width, height), then their texts, of which the last ones choose their places first."""
    draw = ImageDraw.Draw(drawing)
    line_width = max(1, text_size(drawing.size) // 8)
    for (x, y, width, height), color in zip(boxes, palette, strict=True):
        draw.rectangle((x, y, x + width, y + height), outline=color, width=line_width)

    labeled = [index for index, text in enumerate(texts) if text][::-1]
    font = label_font([texts[index] for index in labeled], drawing.size)
    line_height = sum(font.getmetrics())
    sizes = [(math.ceil(font.getlength(texts[index])) + 4, line_height) for index in labeled]
    positions = place_labels([boxes[index] for index in labeled], sizes, drawing.size)
    for index, (width, height), position in zip(labeled, sizes, positions, strict=True):
        if position is None:
            continue
        (x, y), color = position, palette[index]
        if not _touches((x, y, width, height), boxes[index]):  # a line says whose it is
            draw.line((x + width // 2, y + height // 2, boxes[index][0], boxes[index][1]), fill=color, width=line_width)
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
        draw.text((x + 2, y), texts[index], fill=ink_on(color), font=font)


def _touches(label: Sequence[float], box: Sequence[float]) -> bool:
    """Whether two rectangles (left, top, width, height) touch or overlap, within two pixels."""
    return all(
        label[axis] <= box[axis] + box[axis + 2] + 2 and box[axis] <= label[axis] + label[axis + 2] + 2
        for axis in (0, 1)
    )


def bright_color(index: int) -> tuple[int, int, int]:
    """RGB of a class by its index: neighbors in the list are far apart on the color circle."""
    hue = index * 0.618034 % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 if index // 8 % 2 == 0 else 0.5, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
