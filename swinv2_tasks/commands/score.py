"""``swinv2-tasks score``: scores predictions that lie on disk, whoever made them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from swinv2_tasks.callbacks.segmentation import class_table, write_scores
from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.datamodules.masks import read_labels
from swinv2_tasks.datamodules.scene_classes import scene_class_names
from swinv2_tasks.errors import UserError
from swinv2_tasks.metrics import Confusion, SegmentationScores


def ade20k(
    annotations: str, predictions: str, class_names: str | None = None, json: str | None = None
) -> SegmentationScores:
    """Scores label maps by the rules of ADE20K's benchmark: mean IoU, accuracies, and a table of classes.

    Both folders hold PNG files of the same names and sizes, in subfolders or not: 0 for no class, 1 for the first
    class. Pixels whose annotation is 0 are left out; a prediction of 0 elsewhere is wrong.

    Args:
        annotations: folder of the annotated label maps.
        predictions: folder of the predicted label maps.
        class_names: text file with a class name per line, or a table like objectInfo150.txt; without it, ADE20K's 150
            classes.
        json: file to write the scores to.

    Raises:
        UserError: a folder is missing or empty, a prediction is missing, or a pair cannot be read or differs in size.
    """
    names = scene_class_names(class_names)
    truth, predicted = _label_maps(annotations, "annotations"), _label_maps(predictions, "predictions")
    missing = [name for name in truth if name not in predicted]
    if len(missing) == len(truth):
        raise UserError(
            f"No file in {predictions} has the name of one in {annotations}: {abbreviate(list(predicted), 3)} there, "
            f"{abbreviate(list(truth), 3)} here. Expected a prediction FOLDER/NAME.png for each annotation NAME.png."
        )
    if missing:
        raise UserError(
            f"{len(missing)} of {len(truth)} annotations have no prediction in {predictions}: {abbreviate(missing)}. "
            "Predict them as well, or give a folder of annotations without them."
        )
    if json is not None and not Path(json).absolute().parent.is_dir():
        raise UserError(f"--json {json}: the folder {Path(json).parent} does not exist; make it first.")

    def count(name: str) -> Tensor:
        labels, answer = read_labels(truth[name], len(names)), read_labels(predicted[name], len(names))
        if labels.shape != answer.shape:
            sizes = [f"{width}×{height}" for height, width in (labels.shape, answer.shape)]
            raise UserError(
                f"{predicted[name]} has {sizes[1]} pixels, its annotation {truth[name]} {sizes[0]}: predictions are "
                "scored at the annotation's size."
            )
        confusion = Confusion(len(names))
        confusion.update(torch.from_numpy(answer).long() - 1, torch.from_numpy(labels).long() - 1)
        return confusion.counts

    console = Console(stderr=True)
    counts = torch.zeros(len(names), len(names) + 1, dtype=torch.int64)
    with ThreadPoolExecutor(cpu_count()) as pool:
        for one in track(pool.map(count, truth), "Scoring", len(truth), console=console):
            counts += one
    scores = SegmentationScores.of(counts)
    if extra := [name for name in predicted if name not in truth]:
        console.print(f"{len(extra)} predictions without an annotation were left out: {abbreviate(extra)}")
    if json is not None:
        write_scores(Path(json), scores, names)
    Console().print(class_table(scores, names))
    return scores


def _label_maps(folder: str, option: str) -> dict[str, Path]:
    """The PNG files of a folder and its subfolders, by their places in it."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"--{option}: the folder {folder} does not exist.")
    files = {str(path.relative_to(root)): path for path in sorted(root.rglob("*.png")) if path.name[0] != "."}
    if not files:
        raise UserError(f"--{option}: the folder {folder} holds no PNG file; expected label maps NAME.png.")
    return files
