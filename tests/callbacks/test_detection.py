"""Visualizations and tables of detections."""

from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks
from rich.console import Console

from swinv2_tasks.callbacks.detection import (
    bright_color,
    draw_detections,
    image_ids,
    score_tables,
    write_results,
    write_scores,
)
from swinv2_tasks.callbacks.figures import draw_learning_curve
from swinv2_tasks.drawing import distinct_colors
from swinv2_tasks.evaluation.coco import STATISTICS, CocoScores

NAMES = {3: "cup", 90: "dog"}


def result(category: int, box: list[float], score: float, mask: np.ndarray | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"image_id": 1, "category_id": category, "bbox": box, "score": score}
    if mask is not None:
        code = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
        entry["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}
    return entry


def test_a_visualization_shows_boxes_masks_and_names() -> None:
    image = Image.new("RGB", (600, 450), (100, 100, 100))
    mask = np.zeros((450, 600), bool)
    mask[210:290, 110:190] = True
    results = [result(3, [100, 200, 100, 100], 0.876, mask), result(90, [300, 100, 200, 250], 0.5)]
    pixels = np.asarray(draw_detections(image, results, NAMES)).astype(int)
    assert pixels.shape == (450, 600, 3)
    cup, dog = map(np.array, distinct_colors(2))
    assert np.abs(pixels[240:280, 130:170] - (cup + 100) // 2).max() <= 1  # half mask, half image
    assert (pixels[250, 100] == cup).all() and (pixels[200, 300] == dog).all()  # boxes' edges
    assert (pixels[220, 400] == 100).all()  # within a box without a mask nothing changes
    above = pixels[180:199, 100:160].reshape(-1, 3)
    assert (above == cup).all(1).mean() > 0.3 and (above == 0).all(1).any() | (above == 255).all(1).any()


def test_small_images_are_enlarged_and_labels_stay_within() -> None:
    image = Image.new("RGB", (90, 60), (100, 100, 100))
    results = [result(3, [85, 0, 5, 6], 1.0), result(90, [0, 0, 90, 60], 0.7)]
    picture = draw_detections(image, results, NAMES)
    assert picture.size == (630, 420)
    pixels = np.asarray(picture).astype(int)
    cup = np.array(distinct_colors(1)[0])
    assert (pixels[:60, 400:595] == cup).all(2).any()  # the name of the box in the corner begins left of it


def test_nothing_found_is_the_image() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (420, 500, 3), dtype=np.uint8))
    assert (np.asarray(draw_detections(image, [], NAMES)) == np.asarray(image)).all()


def test_colors_of_classes_differ() -> None:
    colors = [bright_color(index) for index in range(80)]
    assert len(set(colors)) == 80
    assert all(sum(abs(a - b) for a, b in zip(*pair, strict=True)) > 120 for pair in itertools.pairwise(colors))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["000000000139.jpg", "000000000285.jpg"], [139, 285]),
        (["7.jpg", "a.jpg"], [1, 2]),
        (["a/7.jpg", "b/007.png"], [1, 2]),  # the same number
        (["٣.jpg"], [1]),
    ],
)
def test_ids_of_images(names: list[str], expected: list[int]) -> None:
    assert image_ids(names) == dict(zip(names, expected, strict=True))


def scores(value: float, large: float) -> CocoScores:
    return CocoScores({**dict.fromkeys(STATISTICS, value), "ap_large": large}, {3: value, 90: math.nan})


def test_scores_are_written_and_printed(tmp_path: Path) -> None:
    both: Any = {"bbox": scores(0.5, -1.0), "segm": scores(0.25, 0.125)}
    write_scores(tmp_path / "scores.json", both, NAMES)
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["box"]["ap"] == 0.5 and content["box"]["ap_large"] == -1 and content["mask"]["ap_large"] == 0.125
    assert content["classes"] == [
        {"id": 3, "name": "cup", "box_ap": 0.5, "mask_ap": 0.25},
        {"id": 90, "name": "dog", "box_ap": None, "mask_ap": None},
    ]
    console = Console(record=True, width=100)
    for table in score_tables(both, NAMES):
        console.print(table)
    output = console.export_text()
    assert "ap large" in output and "–" in output and "0.1250" in output and "cup" in output and "dog" not in output


def test_results_are_what_cocos_server_takes(tmp_path: Path) -> None:
    results = [result(3, [1.5, 2.5, 3.0, 4.0], 0.5, np.ones((4, 5), bool))]
    write_results(tmp_path / "x.json", results)
    assert json.loads((tmp_path / "x.json").read_text()) == results


def test_of_many_metrics_the_monitored_one_is_drawn(tmp_path: Path) -> None:
    names = [f"val/{iou_type}_{name}" for iou_type in ("box", "mask") for name in STATISTICS]
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", "epoch", "train/loss", *names])
        for step in range(4):
            table.writerow([step, 0, 1 / (step + 1), *(-1 if "large" in name else 0.1 * step for name in names)])
    draw_learning_curve(tmp_path / "metrics.csv", tmp_path / "curve.png", names[0])
    with Image.open(tmp_path / "curve.png") as figure:
        assert figure.width == 2 * figure.height * 5 // 4  # the metric, losses
