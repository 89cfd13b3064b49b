"""What a run has detected in the images of an evaluation, and what is annotated there, as its files say."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_tasks.callbacks.detection import IMAGE_FOLDER
from swinv2_tasks.commands.report.run import Run, Split
from swinv2_tasks.datamodules.readers.annotations import read_json as load_large_json
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.detection_errors import (
    Boxes,
    ConfidenceCurve,
    Matches,
    confidence_curve,
    match_classes,
)
from swinv2_tasks.records import (
    LARGEST,
    Check,
    Fault,
    each,
    either,
    mapping,
    number,
    optional,
    plain,
    read_json,
    require,
    text,
    values,
    whole,
)
from swinv2_tasks.text import command_word, printable

ID = either(whole(-LARGEST), text)
"""Of a class or an image."""

_STATISTICS = values(number())
_NUMBERS = each(optional(number()))

SCORES = mapping(
    {
        "classes": each(
            mapping(
                {"id": ID, "name": text}, {name: optional(number()) for name in ("box_ap", "mask_ap", "boundary_ap")}
            )
        )
    },
    {"box": _STATISTICS, "mask": _STATISTICS, "boundary": _STATISTICS, "note": text},
)
"""What val_classes.json holds, and val_boundary.json."""

_CURVES_OF_TYPE = mapping(
    {
        "recalls": _NUMBERS,
        "ious": _NUMBERS,
        "precision": each(_NUMBERS),
        "ap": values(_NUMBERS),
        "classes": each(mapping({"id": ID, "precision": _NUMBERS})),
    }
)


def _curves(value: Any) -> Fault | None:
    """Curves of boxes or masks, with as many values as there are recalls and IoUs."""
    fault = _CURVES_OF_TYPE(value)
    if fault is not None:
        return fault
    recalls, ious = len(value["recalls"]), len(value["ious"])
    lengths: dict[str, Check] = {
        "precision": each(each(plain, length=recalls), length=ious),
        "ap": values(each(plain, length=ious)),
    }
    return mapping(lengths)(value)


CURVES = mapping({}, {"box": _curves, "mask": _curves})
"""What val_curves.json holds."""

TRUTH = mapping(
    {
        "images": each(mapping({"id": ID, "file_name": text, "height": number(1), "width": number(1)})),
        "annotations": each(plain),
        "categories": each(mapping({"id": ID, "name": text})),
    },
    {"info": mapping({}, {IMAGE_FOLDER: text})},
)
"""What val_truth.json holds; what ``Boxes.of`` reads of its annotations is checked there, as it is of detections, of
which there may be half a million."""


def remedy_of(run: Run, split: Split) -> str:
    """The command that writes the files of an evaluation."""
    command = "validate" if split == "val" else "test"
    return f"swinv2-tasks {command} --ckpt_path {command_word(run.folder)}"


def _remedy(run: Run, split: Split) -> str:
    return f"To write it again: {remedy_of(run, split)}."


def read_file(run: Run, name: str, check: Any, split: Split) -> Any:
    """What a JSON file of the run says; None where there is none.

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    if not run.has(name):
        return None
    return read_json(run.folder / name, check, _remedy(run, split))


@dataclass(frozen=True)
class Detected:
    """Objects and detections.

    Attributes:
        images: what is stated of each image: id, file_name, height, width.
        annotations: what is stated of each object.
        results: likewise of each detection.
        ids: of the classes.
        names: of the classes, as files have them.
        truth: the objects in arrays, in the same order.
        detections: likewise.
        matches: what became of them, class by class.
    """

    images: Sequence[Mapping[str, Any]]
    annotations: Sequence[Mapping[str, Any]]
    results: Sequence[Mapping[str, Any]]
    ids: Sequence[int]
    names: Sequence[str]
    truth: Boxes
    detections: Boxes
    matches: Matches

    @property
    def object_numbers(self) -> np.ndarray:
        """How many objects there are of each class, without crowds."""
        return np.bincount(self.truth.labels[~self.truth.crowds], minlength=len(self.ids))

    def curve(self, label: int | None = None) -> ConfidenceCurve:
        """Precision, recall and F1 over the score; of a class by its index, or of all detections together."""
        chosen = slice(None) if label is None else self.detections.labels == label
        numbers = self.object_numbers
        objects = int(numbers.sum() if label is None else numbers[label])
        return confidence_curve(self.matches.outcomes[chosen], self.detections.scores[chosen], max(1, objects))


def read_detected(run: Run, split: Split) -> Detected | None:
    """What a run has detected; None where it has not written that, or nothing is annotated.

    Raises:
        UserError: the files cannot be read, or are of different evaluations.
    """
    names = (f"{split}_truth.json", f"{split}_detections.json")
    if not all(map(run.has, names)):
        return None
    truth, results = (_read_large(run.folder / name) for name in names)
    require(truth, TRUTH, f"{printable(run.folder / names[0])} is corrupt: in it,", _remedy(run, split))
    folder = Path(truth.get("info", {}).get(IMAGE_FOLDER, ""))
    images = [{**image, "file_name": str(folder / image["file_name"])} for image in truth["images"]]
    image_ids = [image["id"] for image in images]
    ids = [category["id"] for category in truth["categories"]]
    try:
        objects = Boxes.of(truth["annotations"], image_ids, ids)
        detections = Boxes.of(results, image_ids, ids)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{printable(run.folder)}: {names[0]} and {names[1]} are not objects and detections in the same images. "
            f"{_remedy(run, split)}"
        ) from error
    class_names = [category["name"] for category in truth["categories"]]
    matches = match_classes(objects, detections)
    return Detected(images, truth["annotations"], results, ids, class_names, objects, detections, matches)


def _read_large(path: Path) -> Any:
    """What a JSON file of hundreds of megabytes says.

    The collector would walk through a million new dictionaries again and again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return load_large_json(path)
    finally:
        if was_enabled:
            gc.enable()
