"""Where the model of a run looks: Grad-CAM of mistakes and right predictions, over what the model got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swinv2_tasks.commands.report.blocks import Example, Examples, Picture, Section
from swinv2_tasks.commands.report.classified import Classified, read_classified
from swinv2_tasks.commands.report.detected import read_file, remedy_of
from swinv2_tasks.commands.report.pictures import SIDE, describe_unreadable, embedded, gray_picture
from swinv2_tasks.commands.report.run import Run, Split
from swinv2_tasks.commands.report.segmentation import SCORES, read_images
from swinv2_tasks.commands.report.trained_model import Reader, TrainedModel
from swinv2_tasks.evaluation.predictions import MultiLabelResults, SingleLabelResults
from swinv2_tasks.inference.grad_cam import class_score, grad_cam, pixel_score
from swinv2_tasks.pages import reduce
from swinv2_tasks.tasks import SegmentationTask
from swinv2_tasks.text import printable, shorten

TITLE = "Where the model looks"

SHOWN = 12
"""Samples."""

MISTAKES = 8
"""Of these, mistakes at most, where there are right predictions."""

STRENGTH = 0.6
"""How much of the color covers the picture at most."""

FRAMES = 4
"""Frames of a clip, two by two."""

NOTE = (
    "Grad-CAM (https://arxiv.org/abs/1610.02391) of the backbone's last map: the brighter, the more a place speaks for "
    "the class, relative to the brightest place of the picture. It shows what the score depends on, as coarsely as the "
    "map is, and not why."
)


@dataclass(frozen=True)
class _Sample:
    """What is to be looked at."""

    path: str
    classes: Sequence[tuple[str, int]]
    """What the class is to the sample, as "labeled", and its index."""
    frame: Literal["", "right", "wrong"]


def attention_section(run: Run, split: Split, model: TrainedModel) -> Section:
    """The section of an evaluation.

    Args:
        run: the run's files.
        split: which evaluation.
        model: the run's model.

    Raises:
        UserError: a file is there and cannot be read.
    """
    if run.task in ("DetectionTask", "SimMIMTask"):
        return Section(TITLE, note="Grad-CAM is drawn of the classes of images, videos and pixels: not of this task.")
    chosen = _choose_pixels(run, split) if isinstance(model.task, SegmentationTask) else _choose_samples(run, split)
    if chosen is None:
        return Section(TITLE, note=f"It needs the predictions of single files: {remedy_of(run, split)} writes them.")

    samples, names = chosen
    reader = Reader(model)
    shown, unreadable = [], 0
    for sample in samples:
        image = reader.read(sample.path)
        unreadable += image is None
        shown.append(_show(sample, image, names, model, reader))
    note = f"{NOTE} The model is {printable(model.checkpoint)}, and what is given of these inputs is what it predicts."
    if run.split is None:
        note += " The files are chosen by the newest validation of the training, of which this model may not be."
    if run.task == "VideoClassificationTask":
        note += " Of each video one clip is looked at; four of its frames are shown, in reading order."
    blocks = [Examples("Grad-CAM", shown)] if shown else []
    return Section(TITLE, blocks, " ".join(filter(None, [note, describe_unreadable(unreadable)])))


# ---- which samples


def _choose_samples(run: Run, split: Split) -> tuple[list[_Sample], Sequence[str]] | None:
    """Of images or videos; None where the run has not written what was predicted of each."""
    classified = read_classified(run, split)
    if classified is None or classified.results is None:
        return None
    if isinstance(classified.results, SingleLabelResults):
        return _choose_single_label(classified.results), classified.names
    return _choose_multi_label(classified, classified.results), classified.names


def _choose_single_label(results: SingleLabelResults) -> list[_Sample]:
    """The most confident mistakes, and the most confident right prediction of each class."""
    wrong, right = np.flatnonzero(~results.is_right), np.flatnonzero(results.is_right)
    mistakes = wrong[np.argsort(-results.scores[wrong, 0], kind="stable")].tolist()
    ordered = right[np.argsort(-results.scores[right, 0], kind="stable")]
    _, first = np.unique(results.labels[ordered], return_index=True)
    of_classes = ordered[np.sort(first)].tolist()

    mistakes = mistakes[: max(MISTAKES, SHOWN - len(of_classes))]
    samples = []
    for k in [*mistakes, *of_classes][:SHOWN]:
        label, predicted = int(results.labels[k]), int(results.predicted[k])
        if label == predicted:
            samples.append(_Sample(results.paths[k], [("labeled and predicted", label)], "right"))
        else:
            samples.append(_Sample(results.paths[k], [("labeled", label), ("predicted", predicted)], "wrong"))
    return samples


def _choose_multi_label(classified: Classified, results: MultiLabelResults) -> list[_Sample]:
    """Those with the highest losses: a class that is missed, one that is wrongly predicted, else a right one."""
    samples = []
    for k in np.argsort(-results.losses, kind="stable")[:SHOWN].tolist():
        labels, predicted = [*results.labels[k]], [*results.classes[k]]
        missed = [("missed", c) for c in labels if c not in predicted][:1]
        false = [("predicted, wrong", c) for c in predicted if c not in labels][:1]
        right = [("labeled and predicted", c) for c in predicted if c in labels][:1]
        samples.append(_Sample(results.paths[k], [*missed, *false] or right, "wrong" if missed or false else "right"))
    return [sample for sample in samples if sample.classes]


def _choose_pixels(run: Run, split: Split) -> tuple[list[_Sample], Sequence[str]] | None:
    """The images of the lowest mIoU, and the worst class of each."""
    scores = read_file(run, f"{split}_classes.json", SCORES, split)
    images = sorted(read_images(run, split), key=lambda image: image[1])
    if scores is None or not images:
        return None
    names = [row["name"] for row in scores["classes"]]
    samples = [
        _Sample(file, [(f"worst class, of IoU {iou:.3f}:", names.index(worst))], "wrong")
        for file, _, _, worst, iou in images[:SHOWN]
        if worst in names
    ]
    return samples, names


# ---- drawn


def _show(sample: _Sample, image: Tensor | None, names: Sequence[str], model: TrainedModel, reader: Reader) -> Example:
    title = PurePath(sample.path).name
    if image is None:
        texts = [f"{what} {shorten(names[index])}" for what, index in sample.classes]
        return Example([embedded(gray_picture(), title)], title, texts, sample.frame)

    task = model.task
    is_segmentation = isinstance(task, SegmentationTask)
    with torch.no_grad():
        outputs = task(image[None])
    pictures, lines = [_as_picture(draw_frames(image, reader), title)], []
    for what, index in sample.classes:
        score = pixel_score(index) if is_segmentation else class_score(index)
        heatmap = grad_cam(task, task.backbone, image[None], score)[0]
        pictures.append(_as_picture(draw_frames(image, reader, heatmap), f"{title}: {what} {names[index]}"))
        line = f"{what} {shorten(names[index])}"
        if is_segmentation:
            share = float((outputs[0].argmax(0) == index).float().mean())
            line += f", predicted of {share:.1%} of the pixels" if share else ", predicted of no pixel: of all pixels"
        else:
            line += f" {float(task.probabilities_of(outputs)[0, index]):.1%}"
        if not heatmap.any():
            line += "; no place speaks for it"
        lines.append(line)
    return Example(pictures, title, lines, sample.frame)


def _as_picture(image: Image.Image, text: str) -> Picture:
    return embedded(reduce(image, SIDE), text)


def draw_frames(image: Tensor, reader: Reader, heatmap: Tensor | None = None) -> Image.Image:
    """An input as the model got it, or four frames of a clip, with what speaks for a class over it.

    Args:
        image: (C, H, W) or (C, T, H, W), normalized.
        reader: knows what it was normalized with.
        heatmap: (H, W) or (T, H, W), at least 0; None: nothing is laid over it.
    """
    if image.ndim == 3:
        return overlay(reader.draw(image), heatmap)
    numbers = [int((k + 0.5) * image.shape[1] / FRAMES) for k in range(FRAMES)]
    peak = None if heatmap is None else float(heatmap.max())
    frames = [overlay(reader.draw(image[:, k]), None if heatmap is None else heatmap[k], peak) for k in numbers]
    width, height = frames[0].size
    sheet = Image.new("RGB", (2 * width + 1, 2 * height + 1), "white")
    for k, frame in enumerate(frames):
        sheet.paste(frame, (k % 2 * (width + 1), k // 2 * (height + 1)))
    return sheet


def overlay(picture: Image.Image, heatmap: Tensor | None, peak: float | None = None) -> Image.Image:
    """A picture in gray with what speaks for a class in color over it; unchanged where nothing is given.

    Args:
        picture: RGB.
        heatmap: (H, W) of the same size, at least 0.
        peak: the value that is the brightest; None: the highest one.
    """
    if heatmap is None:
        return picture
    from matplotlib import colormaps

    values = heatmap.numpy()
    shares = values / (peak or float(values.max()) or 1.0)
    gray = np.asarray(picture.convert("L"), np.float32)[..., None].repeat(3, axis=2)
    colors = colormaps["inferno"](shares)[..., :3] * 255
    cover = STRENGTH * shares[..., None]
    return Image.fromarray((gray * (1 - cover) + colors * cover).round().astype(np.uint8))
