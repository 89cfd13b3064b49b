"""COCO's numbers: those published with its own tools, by both backends, and after a round trip of the annotations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks

from swinv2_tasks.datamodules import CocoDataModule
from swinv2_tasks.datamodules.coco import CocoFiles
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.coco import (
    STATISTICS,
    TYPE_NAMES,
    Backend,
    CocoMetric,
    IoUType,
    as_annotations,
    as_results,
    coco_scores,
    describe_limit,
)
from tests.helpers.evaluated_objects import random_objects
from tests.helpers.objects import CATEGORIES, DATA, write_objects

BACKENDS: list[Backend] = ["pycocotools", "faster_coco_eval"]
KIND_FILES: dict[IoUType, str] = {"bbox": "fakebbox100_results.json", "segm": "fakesegm100_results.json"}


@pytest.fixture(scope="module")
def rebuilt(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Any]]:
    """The annotations of cocoeval as they come out of the datamodule's targets; and the targets with their sizes.

    Its images are not there: black ones of their sizes take their places.
    """
    source = real_data / "cocoeval" / "instances_val2014_100.json"
    root = tmp_path_factory.mktemp("cocoeval")
    (root / "images").mkdir()
    content = json.loads(source.read_text())
    for image in content["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(root / "images" / image["file_name"], quality=5)
    (root / "instances.json").write_text(source.read_text())
    data = CocoDataModule(
        str(root),
        files=CocoFiles(val_images="images", val_annotations="instances.json"),
        num_workers=0,
        resize=(64, 48),
    )
    data.setup("validate")
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": content["categories"]}
    targets = []
    for batch in data.val_dataloader():
        (target,), (size,) = batch["targets"], batch["sizes"]
        entry = as_annotations(target, size, data.class_ids)
        truth["images"].append(entry["image"])
        truth["annotations"] += entry["annotations"]
        targets.append((target, size))
    for number, annotation in enumerate(truth["annotations"], start=1):
        annotation["id"] = number
    truth["ids"] = data.class_ids
    return truth, targets


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", KIND_FILES)
def test_the_numbers_are_those_of_cocos_tools(
    iou_type: IoUType, backend: Backend, real_data: Path, rebuilt: Any
) -> None:
    folder = real_data / "cocoeval"
    expected = json.loads((folder / "expected.json").read_text())[iou_type]
    results = json.loads((folder / KIND_FILES[iou_type]).read_text())
    for truth in (json.loads((folder / "instances_val2014_100.json").read_text()), rebuilt[0]):
        scores = coco_scores(truth, results, [iou_type], backend)[iou_type]
        assert list(scores.statistics) == list(STATISTICS)
        assert [*scores.statistics.values()] == pytest.approx(expected, abs=1e-6)
        class_aps = [value for value in scores.class_ap.values() if not math.isnan(value)]
        assert sum(class_aps) / len(class_aps) == pytest.approx(expected[0], abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_truth_as_predictions_scores_one(backend: Backend, rebuilt: Any, real_data: Path) -> None:
    truth, targets = rebuilt
    results: list[dict[str, Any]] = []
    for target, size in targets:
        predictions = {
            "boxes": target["boxes"],
            "labels": target["labels"],
            "scores": torch.ones(len(target["labels"])),
        }
        predictions["masks"] = target["masks"][:, None].float()
        results += as_results(predictions, target["image_id"], size, truth["ids"])
    results = json.loads(json.dumps(results))
    official = json.loads((real_data / "cocoeval" / "instances_val2014_100.json").read_text())
    for ground_truth in (truth, official):
        for scores in coco_scores(ground_truth, results, ("bbox", "segm"), backend).values():
            precise = {name: value for name, value in scores.statistics.items() if name.startswith("ap")}
            assert precise == pytest.approx(dict.fromkeys(precise, 1.0))
            assert scores.statistics["ar100"] == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(3))
def test_backends_agree_and_the_order_of_images_does_not_matter(seed: int) -> None:
    truth, detections = random_objects(seed, images=20)
    values = []
    for backend in BACKENDS:
        for order in (range(20), reversed(range(20))):
            metric = CocoMetric(masks=True, backend=backend)
            metric.classes = (list(CATEGORIES), list(CATEGORIES.values()))
            for k in order:
                metric.update(10 * k, detections[k], truth[k])
            values.append({name: value.item() for name, value in metric.compute().items()})
            assert [entry["image_id"] for entry in metric.results] == sorted(
                entry["image_id"] for entry in metric.results
            )
    assert values[0] == values[1] and values[2] == values[3]
    assert values[2] == pytest.approx(values[0], abs=1e-9)
    assert set(values[0]) == {f"{iou_type}_{name}" for iou_type in ("box", "mask") for name in STATISTICS}
    assert 0 < values[0]["box_ap"] < 1 and 0 < values[0]["mask_ap"] < 1


def test_a_metric_starts_again_after_reset() -> None:
    truth, detections = random_objects(0)
    metric = CocoMetric(masks=False)
    metric.classes = (list(CATEGORIES), list(CATEGORIES.values()))
    values = []
    for _ in range(2):
        for k, results in enumerate(detections):
            metric.update(10 * k, results, truth[k])
        values.append(metric.compute())
        metric.reset()
    assert values[0] == values[1] and metric.update_count == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_detection_scores_zero_and_no_object_of_a_size_minus_one(backend: Backend) -> None:
    truth, _ = random_objects(1)
    metric = CocoMetric(masks=True, backend=backend)
    metric.classes = (list(CATEGORIES), list(CATEGORIES.values()))
    for k, image in enumerate(truth):
        metric.update(10 * k, [], image)
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values["box_ap"] == values["mask_ar100"] == 0
    large = any(annotation["area"] > 96**2 for image in truth for annotation in image["annotations"])
    assert (values["box_ap_large"] == -1) == (not large)


def test_images_without_annotations_are_not_scored() -> None:
    _, detections = random_objects(0)
    metric = CocoMetric(masks=True)
    for k, results in enumerate(detections):
        metric.update(10 * k, results, None)
    assert metric.compute() == {}
    assert len(metric.results) == sum(map(len, detections))


def test_a_class_without_objects_has_no_precision() -> None:
    truth, detections = random_objects(2, images=10)
    annotations = [
        annotation for entry in truth for annotation in entry["annotations"] if annotation["category_id"] != 5
    ]
    content = {
        "images": [entry["image"] for entry in truth],
        "annotations": [{**entry, "id": k} for k, entry in enumerate(annotations, start=1)],
        "categories": [{"id": k, "name": name} for k, name in CATEGORIES.items()],
    }
    (scores,) = coco_scores(content, [entry for results in detections for entry in results]).values()
    assert math.isnan(scores.class_ap[5]) and scores.class_ap[3] >= 0 and TYPE_NAMES["bbox"] == "box"


def many_objects(number: int, first_id: int = 1, classes: int = 1) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An image with a grid of objects, and detections that find each of them, the last ones with the lowest scores."""
    boxes = [[20.0 * (k % 20), 20.0 * (k // 20), 10.0, 10.0] for k in range(number)]
    annotations = [
        {"id": first_id + k, "image_id": 1, "category_id": 1 + k % classes, "bbox": box, "area": 100, "iscrowd": 0}
        for k, box in enumerate(boxes)
    ]
    for annotation, (x, y, width, height) in zip(annotations, boxes, strict=True):
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    truth = {
        "images": [{"id": 1, "height": 400, "width": 400}],
        "annotations": annotations,
        "categories": [{"id": 1 + k, "name": f"{k}"} for k in range(classes)],
    }
    codes = [coco_masks.frPyObjects(annotation["segmentation"], 400, 400)[0] for annotation in annotations]
    detections = [
        {"image_id": 1, "category_id": 1 + k % classes, "bbox": box, "score": 0.9 - k / 1000, "segmentation": code}
        for k, (box, code) in enumerate(zip(boxes, codes, strict=True))
    ]
    return truth, detections


@pytest.mark.parametrize("backend", BACKENDS)
def test_detections_beyond_the_limit_do_not_count(backend: Backend) -> None:
    """Of 200 objects 100 count as found: precision is 1 up to a recall of .5, at 51 of COCO's 101 recalls."""
    truth, detections = many_objects(200)
    for limit, recall, names in (
        (100, 0.5, ["ar1", "ar10", "ar100"]),
        (300, 1.0, ["ar1", "ar10", "ar300"]),
        (10, 0.05, ["ar1", "ar10"]),
        (1, 0.005, ["ar1"]),
    ):
        for scores in coco_scores(truth, detections, ("bbox", "segm"), backend, limit).values():
            reached = sum(threshold <= recall + 1e-9 for threshold in np.linspace(0, 1, 101)) / 101
            for name in ("ap", "ap50", "ap75", "ap_small"):
                assert scores.statistics[name] == pytest.approx(reached)
            assert scores.class_ap[1] == pytest.approx(reached)
            assert [name for name in scores.statistics if name[2:].isdecimal() and name[:2] == "ar"] == names
            assert scores.statistics[names[-1]] == scores.statistics["ar_small"] == pytest.approx(recall)
            assert scores.statistics["ap_large"] == -1


@pytest.mark.parametrize("backend", BACKENDS)
def test_annotations_may_be_numbered_from_zero(backend: Backend) -> None:
    """COCO's tools take an id of 0 for "matched with nothing".

    The object would count as missed, and its detection as wrong.
    """
    truth, detections = many_objects(3, first_id=0)
    before = json.dumps(truth)
    for scores in coco_scores(truth, detections, ("bbox", "segm"), backend).values():
        assert scores.statistics["ap"] == scores.statistics["ar100"] == pytest.approx(1.0)
    assert json.dumps(truth) == before


def test_images_with_more_objects_than_detections_that_count_are_described() -> None:
    truth, _ = many_objects(200, classes=2)
    assert describe_limit(truth, 100, True, "--max-dets") is None
    line = describe_limit(truth, 99, True, "--max-dets")
    assert line is not None and "1 of 1 images has more objects of a class (up to 100) than the 99" in line
    line = describe_limit(truth, 199, False, "--limit")
    assert line is not None and "more objects (up to 200) than the 199" in line and "--limit 200" in line
    for annotation in truth["annotations"][:1]:
        annotation["iscrowd"] = 1  # a crowd need not be found
    assert describe_limit(truth, 199, False, "--limit") is None


def test_the_metric_scores_as_many_detections_as_the_model_may_find() -> None:
    truth, detections = many_objects(200)
    image = {"image": truth["images"][0], "annotations": truth["annotations"]}
    for limit, ap in ((100, 51 / 101), (300, 1.0)):
        metric = CocoMetric(masks=True, max_detections=limit)
        metric.classes = ([1], ["thing"])
        metric.update(1, detections[:limit], image)
        values = metric.compute()
        assert values["box_ap"] == values["mask_ap"] == pytest.approx(ap)
        assert f"box_ar{limit}" in values
        assert (metric.limit is None) == (limit == 300)


def test_what_cannot_be_scored_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, detections = random_objects(0)
    content = {
        "images": [entry["image"] for entry in truth],
        "annotations": [],
        "categories": [{"id": k, "name": name} for k, name in CATEGORIES.items()],
    }
    results = [entry for image_results in detections for entry in image_results]
    with pytest.raises(UserError, match="image 999, which is not among"):
        coco_scores(content, [{**results[0], "image_id": 999}])
    without = [{name: value for name, value in results[0].items() if name != "segmentation"}]
    with pytest.raises(UserError, match="has no segmentation: segm cannot be scored"):
        coco_scores(content, without, ["segm"])
    with pytest.raises(UserError, match="must be pycocotools or faster_coco_eval"):
        CocoMetric(masks=True, backend="coco")  # type: ignore[arg-type]
    monkeypatch.setitem(__import__("sys").modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match=r"pip install 'swinv2-tasks\[fast\]'"):
        CocoMetric(masks=True, backend="faster_coco_eval")


def test_targets_of_the_datamodule_score_one_against_themselves(tmp_path: Path) -> None:
    data = CocoDataModule(str(write_objects(tmp_path)), **DATA)
    data.setup("validate")
    metric = CocoMetric(masks=True)
    metric.classes = (data.class_ids, data.class_names)
    for batch in data.val_dataloader():
        (target,), (size,), (image_id,) = batch["targets"], batch["sizes"], batch["image_ids"]
        predictions = {name: target[name] for name in ("boxes", "labels")}
        predictions |= {"scores": torch.ones(len(target["labels"])), "masks": target["masks"][:, None].float()}
        results = as_results(predictions, image_id, size, data.class_ids)
        assert {entry["category_id"] for entry in results} <= set(CATEGORIES)
        metric.update(image_id, results, as_annotations(target, size, data.class_ids))
    values = metric.compute()
    assert values["box_ap"] == values["mask_ap"] == 1
