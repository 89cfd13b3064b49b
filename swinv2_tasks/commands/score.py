"""``swinv2-tasks score``: scores predictions that lie on disk, whoever made them."""

from __future__ import annotations

import sys
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swinv2_tasks.callbacks.detection import score_tables
from swinv2_tasks.callbacks.detection import write_scores as write_detection_scores
from swinv2_tasks.callbacks.segmentation import class_table, write_scores
from swinv2_tasks.child_processes import available_cores
from swinv2_tasks.datamodules.classes import abbreviate
from swinv2_tasks.datamodules.readers.annotations import (
    CocoAnnotations,
    compress,
    describe_unmatched,
    is_far_outside,
    is_finite,
    read_annotations,
    read_json,
)
from swinv2_tasks.datamodules.readers.label_values import (
    Background,
    LabelSettings,
    count_values,
    fitting_coding,
    possible_codings,
)
from swinv2_tasks.datamodules.scene_classes import scene_class_names
from swinv2_tasks.errors import FaultyFiles, UserError
from swinv2_tasks.evaluation.coco import MAX_DETECTIONS, Backend, CocoScores, IoUType, coco_scores, describe_limit
from swinv2_tasks.evaluation.segmentation import Confusion, SegmentationScores
from swinv2_tasks.files import prove_writable
from swinv2_tasks.outside_files import shorten
from swinv2_tasks.progress import WorkProgress
from swinv2_tasks.text import printable, say


def ade20k(
    annotations: str,
    predictions: str,
    class_names: str | list[str] | None = None,
    json: str | None = None,
    background: Background | None = None,
    ignore_label: int | list[int] | list[list[int]] | None = None,
    label_values: dict[int, str] | None = None,
    palette: str | list[list[int]] | None = None,
) -> SegmentationScores:
    """Scores label maps by the rules of ADE20K's benchmark: mean IoU, accuracies, and a table of classes.

    Both folders hold PNG files of the same names and sizes, in subfolders or not, whose pixels mean the same. Pixels
    whose annotation is left out do not count, whatever is predicted there; elsewhere such a prediction is wrong. The
    settings from background on are those of training: what predict has written is scored as validate does. A pair that
    cannot be scored is listed with the reason beside the score, which says how many it rests on.

    Args:
        annotations: folder of the annotated label maps.
        predictions: folder of the predicted label maps.
        class_names: text file with a class name per line, a table like objectInfo150.txt, or a list; without it,
            ADE20K's 150 classes.
        json: file to write the scores to.
        background: what 0 is: ignore, no class, so that classes count from 1, or class, the first one; without it,
            ignore for ADE20K's classes, for others what the annotations tell, if they do.
        ignore_label: further values that are left out: a number or several; with a palette, colors [R, G, B].
        label_values: in the place of background: the class name of each value, as in {0: sky, 255: road}.
        palette: label maps hold colors: [R, G, B] of each class in their order, or a text file of `R G B` or
            `R G B NAME` lines.

    Raises:
        FaultyFiles: some pairs cannot be read, differ in size or do not fit the settings; the others are scored, and
            the score is written, which lists them with the reasons.
        UserError: a folder is missing or empty, a prediction is missing, none of the pairs can be scored, or the scores
            cannot be written.
    """
    names = scene_class_names(class_names, prefix="--")
    truth, predicted = _label_maps(annotations, "annotations"), _label_maps(predictions, "predictions")
    unpredicted = [name for name in truth if name not in predicted]
    if len(unpredicted) == len(truth):
        raise UserError(
            f"No file in {predictions} has the name of one in {annotations}: {abbreviate(list(predicted), 3)} there, "
            f"{abbreviate(list(truth), 3)} here. Expected a prediction FOLDER/NAME.png for each annotation NAME.png."
        )
    if unpredicted:
        raise UserError(
            f"{len(unpredicted)} of {len(truth)} annotations have no prediction in {predictions}: "
            f"{abbreviate(unpredicted)}. Predict them as well, or give a folder of annotations without them."
        )
    if json is not None:
        _prove_writable(json)
    settings = LabelSettings(background, ignore_label, label_values, palette, prefix="--")
    codings = possible_codings(names, settings, is_ade20k=class_names is None)
    coding = codings[0]
    if len(codings) > 1 and (maps := count_values([*truth.values()], False, len(truth), skip_faulty=True)):
        coding = fitting_coding(codings, maps, annotations, tolerated=(len(maps) - 1) // 2)
        say(f"--background is not set; the annotations only fit {coding.background}: {coding.meaning}", file=sys.stderr)

    def count(name: str) -> Tensor:
        labels, prediction = coding.read(truth[name]), coding.read(predicted[name])
        if labels.shape != prediction.shape:
            sizes = [f"{width}×{height}" for height, width in (labels.shape, prediction.shape)]
            raise UserError(
                f"{printable(predicted[name])} has {sizes[1]} pixels, its annotation {printable(truth[name])} "
                f"{sizes[0]}: predictions are scored at the annotation's size."
            )
        confusion = Confusion(len(names))
        confusion.update(torch.from_numpy(prediction), torch.from_numpy(labels))
        return confusion.counts

    counts = torch.zeros(len(names), len(names) + 1, dtype=torch.int64)
    faults: dict[str, str] = {}
    pool = ThreadPoolExecutor(available_cores())
    try:
        with WorkProgress("Scoring", len(truth)) as progress:
            pairs = {name: pool.submit(count, name) for name in truth}
            for name in truth:
                try:
                    counts += pairs.pop(name).result()
                except UserError as error:
                    faults[name] = str(error)
                progress.advance(faulty=name in faults)
    finally:
        pool.shutdown(cancel_futures=True)  # when interrupted, no further pair is begun
    if len(faults) == len(truth):
        raise UserError(f"None of {len(truth)} label maps can be scored. The first one: {next(iter(faults.values()))}")

    scores = SegmentationScores.of(counts)
    if extra := [name for name in predicted if name not in truth]:
        say(
            f"{len(extra)} predictions without an annotation were left out: {abbreviate(extra)}",
            file=sys.stderr,
        )
    if json is not None:
        basis = {"label_maps": len(truth) - len(faults), "faulty": faults}
        write_scores(Path(json), scores, names, coding.class_ids, basis)
    class_table(scores, names, coding.class_ids).print()
    say(f"{len(truth) - len(faults)} of {len(truth)} label maps are scored")
    for name, reason in faults.items():
        say(f"  not scored: {printable(name)}: {printable(reason)}")
    if faults:
        raise FaultyFiles(
            f"{len(faults)} of {len(truth)} label maps cannot be scored, for the reasons above: the score does without",
            faults,
        )
    return scores


def _prove_writable(json: str) -> None:
    """Makes sure, before the work, that the scores can be written."""
    path = Path(json)
    if not path.absolute().parent.is_dir():
        raise UserError(f"--json {printable(json)}: the folder {printable(path.parent)} does not exist; make it first.")
    if path.is_dir():
        raise UserError(f"--json {printable(json)} is a folder; name a file.")
    prove_writable(path.parent, "--json")


def _label_maps(folder: str, option: str) -> dict[str, Path]:
    """The PNG files of a folder and its subfolders, by their places in it."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"--{option}: the folder {folder} does not exist.")
    files = {str(path.relative_to(root)): path for path in sorted(root.rglob("*.png")) if path.name[0] != "."}
    if not files:
        raise UserError(f"--{option}: the folder {folder} holds no PNG file; expected label maps NAME.png.")
    return files


def coco(
    annotations: str,
    predictions: str,
    iou_type: IoUType | list[IoUType] | None = None,
    backend: Backend = "pycocotools",
    json: str | None = None,
    max_dets: int = MAX_DETECTIONS,
) -> dict[IoUType, CocoScores]:
    """Scores detections by COCO's rules: the twelve numbers for boxes and masks, and a table of classes.

    Args:
        annotations: annotation file in COCO's format.
        predictions: detections as COCO takes submissions: a JSON list of {image_id, category_id, score, and bbox or
            segmentation or both}.
        iou_type: what is scored: bbox, segm, or both, as in --iou-type bbox segm; boundary, masks by the IoU of their
            boundaries, with the backend faster_coco_eval; without it, boxes and masks, as far as the predictions and
            the annotations hold them.
        backend: what computes; faster_coco_eval needs the extra fast.
        json: file to write the scores to.
        max_dets: how many detections of an image and class count, the highest-scoring; COCO's own number is 100.

    Raises:
        UserError: a file is missing or malformed, or a detection is of an unknown image or category.
    """
    if json is not None:
        _prove_writable(json)
    if max_dets < 1:
        raise UserError(f"--max-dets is {max_dets}; expected a number of detections, at least 1.")
    read = read_annotations(Path(annotations).expanduser())
    if not read.has_objects:
        raise UserError(f"--annotations: {annotations} has no annotations to score against.")
    results = _detections(predictions, read)
    iou_types: list[IoUType]
    if iou_type is None:
        iou_types = ["bbox"] if not results or "bbox" in results[0] else []
        iou_types += ["segm"] if read.has_masks and results and "segmentation" in results[0] else []
    else:
        iou_types = [iou_type] if isinstance(iou_type, str) else iou_type
    of_masks = [name for name in iou_types if name != "bbox"]
    if of_masks and not read.has_masks:
        raise UserError(f"--iou-type {of_masks[0]}: {annotations} has no masks, only boxes.")
    if not iou_types:
        raise UserError(f"{predictions} has masks, {annotations} only boxes: there is nothing to compare.")
    truth = _truth(read)
    scores = coco_scores(truth, results, iou_types, backend, max_dets)
    names = dict(zip(read.class_ids, read.class_names, strict=True))
    limit = describe_limit(truth, max_dets, True, "--max-dets")
    if json is not None:
        write_detection_scores(Path(json), scores, names, limit)
    for table in score_tables(scores, names):
        table.print()
    image_ids = {result["image_id"] for result in results}
    say(f"{len(results):,} detections, in {len(image_ids):,} of {len(read.images):,} images, are scored")
    for note in (describe_unmatched(read, bool(of_masks)), _describe_empty(predictions, results), limit):
        if note is not None:
            say(note, file=sys.stderr)
    return scores


def _describe_empty(path: str, results: list[dict[str, Any]]) -> str | None:
    """One line on boxes that can match nothing; None where there are none."""
    empty = sum(min(result["bbox"][2:]) <= 0 for result in results if result.get("bbox") is not None)
    if not empty:
        return None
    return (
        f"{path}: {empty} of {len(results)} detections have a box without area, which counts as wrong. "
        "Boxes are x, y, width, height."
    )


def _truth(read: CocoAnnotations) -> dict[str, Any]:
    """Annotations as COCO's tools take them; an object that has only a box has no pixels."""
    images, annotations = [], []
    for image in read.images:
        images.append({"id": image.id, "height": image.height, "width": image.width})
        no_pixels = {"size": [image.height, image.width], "counts": [image.height * image.width]}
        for annotation in image.objects:
            where = f"annotation {annotation.id} in {read.path}"
            pixels = annotation.segmentation or no_pixels
            annotations.append(
                {
                    "id": annotation.id,
                    "image_id": image.id,
                    "category_id": read.class_ids[annotation.label],
                    "bbox": list(annotation.box),
                    "area": annotation.area,
                    "iscrowd": int(annotation.crowd),
                    "segmentation": compress(pixels, where) if isinstance(pixels, dict) else pixels,
                }
            )
    categories = [{"id": k, "name": name} for k, name in zip(read.class_ids, read.class_names, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _lacks(known: Container[Any], value: Any) -> bool:
    """Whether an id of a JSON file is none of those known: it may be a list, which no set can be asked about."""
    return not isinstance(value, int | float) or value not in known


def _detections(path: str, read: CocoAnnotations) -> list[dict[str, Any]]:
    """The detections of a file, of known images and categories, with masks of their images' sizes.

    Raises:
        UserError: the file is missing or malformed.
    """
    content = read_json(Path(path).expanduser())
    expected = "expected a list of {image_id, category_id, score, and bbox or segmentation or both}"
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise UserError(f"The detections {path} are no list of objects; {expected}.")

    images = read.images
    sizes = dict(zip(images.ids.tolist(), np.stack([images.heights, images.widths], axis=1).tolist(), strict=True))
    class_ids = set(read.class_ids)
    for index, entry in enumerate(content):
        where = f"detection {index} in {path}"
        if absent := {"image_id", "category_id", "score"} - entry.keys():
            raise UserError(f"{where} lacks {', '.join(sorted(absent))}; {expected}.")

        for key, known in (("image_id", sizes), ("category_id", class_ids)):
            if _lacks(known, entry[key]):
                raise UserError(
                    f"{where} is of {key} {shorten(entry[key])}, which {read.path} does not know: are they of the same "
                    "data?"
                )
        if not is_finite(entry["score"]):
            raise UserError(f"{where} has the score {shorten(entry['score'])}, expected a finite number.")

        box = entry.get("bbox")
        if box is not None and not (isinstance(box, list) and len(box) == 4 and all(map(is_finite, box))):
            raise UserError(f"{where} has the bbox {shorten(box)}, expected four finite numbers: x, y, width, height.")
        if box is not None and is_far_outside(box, *sizes[entry["image_id"]]):
            raise UserError(f"{where} has the bbox {shorten(box)}, far outside of its image {entry['image_id']}.")

        code = entry.get("segmentation")
        if code is not None:
            if not isinstance(code, dict) or code.get("size") != sizes[entry["image_id"]] or "counts" not in code:
                raise UserError(
                    f"{where} has a segmentation that is no run lengths of its image's size "
                    f"{sizes[entry['image_id']]}, height and width."
                )
            entry["segmentation"] = compress(code, where)
    return content
