"""What an annotation file states costs no more than its text: numbers, run lengths, outlines, sizes, many objects."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from swinv2_tasks.commands.score import coco as score_coco
from swinv2_tasks.datamodules.readers import annotations
from swinv2_tasks.datamodules.readers.annotations import check_masks, compress, rasterize, read_annotations
from swinv2_tasks.errors import UserError
from tests.helpers.prices import MOST_MEMORY, call, refusal

DIGITS = 10**400 - 1
ZEROS = "0" * 2_000_000


def content(image: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """An image of 640 × 480 pixels with one object."""
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8], **changes}
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 480, "width": 640, **(image or {})}],
        "annotations": [box],
        "categories": [{"id": 1, "name": "cat"}],
    }


REFUSED: dict[str, dict[str, Any]] = {
    "id": content(id=DIGITS),
    "image": content(image_id=DIGITS),
    "category": content(category_id=DIGITS),
    "box": content(bbox=[1, 1, DIGITS, 1]),
    "long box": content(bbox=list(range(100_000))),
    "area": content(area=DIGITS),
    "crowd": content(iscrowd=DIGITS),
    "height": content({"height": DIGITS}),
    "width": content({"width": 10**9}),
    "counts": content(segmentation={"size": [480, 640], "counts": [DIGITS]}),
    "size": content(segmentation={"size": [10**9, 10**9], "counts": [1]}),
    "long size": content(segmentation={"size": [1] * 100_000, "counts": [1]}),
    "outline": content(segmentation=[[0, 0, 639, 479] * 250_000]),
    "far": content(segmentation=[[0, 0, 10**9, 0, 5, 5]]),
    "digits in it": content(segmentation=[[0, 0, DIGITS, 0, 5, 5]]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_numbers_that_no_image_has_are_refused_in_a_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(REFUSED[name]))
    message = refusal(read_annotations, path)
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' + "[" * 5000 + "]" * 5000 + "}"])
def test_nested_annotations_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "instances.json").write_text(text)
    assert "nested" in refusal(read_annotations, tmp_path / "instances.json")


def test_a_pipe_in_the_place_of_annotations_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "instances.json")
    assert "is a pipe" in refusal(read_annotations, tmp_path / "instances.json")


def test_a_million_points_are_drawn() -> None:
    outline = [[10, 10, 20, 10, 20, 20, 10, 20] * 1, [15.0, 15.0] * 1_000_000]
    outcome = call(draw, outline)
    assert outcome.error is None
    assert outcome.peak < MOST_MEMORY


def draw(outline: Any) -> int:
    return int(rasterize(outline, 480, 640, "an object").sum())


@pytest.mark.parametrize("counts", [ZEROS, "o" * 2_000_000, "P" * 2_000_000, ZEROS + "0x", "8~"])
def test_megabytes_of_run_lengths_are_added_up_at_once(counts: str) -> None:
    assert "do not add up" in refusal(compress, {"size": [480, 640], "counts": counts}, "an object")


@pytest.mark.parametrize("seed", range(40))
def test_run_lengths_mean_the_same_pixels_with_empty_ones_among_them(seed: int) -> None:
    draw = np.random.default_rng(seed)
    height, width = draw.integers(1, 40, 2).tolist()
    pixels = (draw.random((height, width)) < draw.random()).astype(np.uint8)
    code = coco_masks.encode(np.asfortranarray(pixels))
    for counts in (code["counts"], code["counts"].decode()):
        np.testing.assert_array_equal(
            coco_masks.decode(compress({"size": [height, width], "counts": counts}, "")), pixels
        )

    flat = np.concatenate([[0], pixels.T.ravel(), [0]])
    edges = np.flatnonzero(np.diff(flat))
    runs = np.diff(edges, prepend=0, append=height * width).tolist()
    for _ in range(20):
        place = int(draw.integers(len(runs)))
        part = int(draw.integers(runs[place] + 1))
        runs[place : place + 1] = [part, 0, runs[place] - part]
    compressed = compress({"size": [height, width], "counts": runs}, "")
    np.testing.assert_array_equal(coco_masks.decode(compressed), pixels)
    assert len(compressed["counts"]) <= len(code["counts"]) + 1


def test_masks_of_many_objects_are_not_drawn_where_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"50 objects on image 3, .* would take 4\.7 GiB.*data\.masks=false"):
        check_masks(50, 10_000, 10_000, "image 3")
    check_masks(1000, 800, 1333, "an image")
    monkeypatch.setattr(annotations, "MOST_MASK_BYTES", 10)
    with pytest.raises(UserError):
        check_masks(1, 1, 11, "an image")


@pytest.mark.parametrize(
    "detection",
    [
        {"image_id": DIGITS, "category_id": 1, "score": 0.5, "bbox": [1, 1, 8, 8]},
        {"image_id": [1] * 10_000, "category_id": 1, "score": 0.5, "bbox": [1, 1, 8, 8]},
        {"image_id": 1, "category_id": {"a": 1}, "score": 0.5, "bbox": [1, 1, 8, 8]},
        {"image_id": 1, "category_id": 1, "score": DIGITS, "bbox": [1, 1, 8, 8]},
        {"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [DIGITS] * 100_000},
        {
            "image_id": 1,
            "category_id": 1,
            "score": 0.5,
            "segmentation": {"size": [480, 640], "counts": "0" * 2_000_000},
        },
        {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": {"size": [DIGITS], "counts": "0"}},
    ],
)
def test_detections_are_refused_alike(detection: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(content()))
    (tmp_path / "found.json").write_text(json.dumps([detection]))
    message = refusal(score_coco, str(tmp_path / "truth.json"), str(tmp_path / "found.json"))
    assert "detection 0" in message or "found.json" in message
