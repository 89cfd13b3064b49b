"""Comparisons of runs: settings, scores and curves of files, differences of classes, samples that one gets right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swinv2_tasks.callbacks.class_tables import write_scores as write_class_scores
from swinv2_tasks.callbacks.detection import IMAGE_FOLDER
from swinv2_tasks.callbacks.segmentation import write_scores as write_scene_scores
from swinv2_tasks.cli.main import main
from swinv2_tasks.commands.compare.command import name_runs
from swinv2_tasks.evaluation.coco import coco_scores
from swinv2_tasks.evaluation.predictions import SingleLabelResults, rounded, write_single_label
from swinv2_tasks.evaluation.segmentation import SegmentationScores
from swinv2_tasks.tables import write_table
from tests.helpers.evaluated_runs import read_rows, write_run

METRICS = [{"step": step, "epoch": step // 2, "train/loss": 1 / (step + 1), "val/top1": step / 10} for step in range(6)]


def compare(folder: Path, *runs: Path) -> tuple[Path, str]:
    page = folder / "compare.html"
    assert main(["compare", *map(str, runs), f"--output={page}"]) == 0
    return page, page.read_text("utf-8")


def test_settings_scores_and_curves_of_three_runs(tmp_path: Path) -> None:
    optimizers = [{"class_path": "torch.optim.AdamW", "init_args": {"lr": rate}} for rate in (0.1, 0.2, 0.1)]
    runs = [
        write_run(
            tmp_path / "runs" / name / "0",
            "ClassificationTask",
            METRICS[: 4 + index],
            {"model": {"class_path": "swinv2_tasks.tasks.ClassificationTask", "init_args": {"optimizer": optimizer}}},
        )
        for index, (name, optimizer) in enumerate(zip("abc", optimizers, strict=True))
    ]
    page, text = compare(tmp_path, *runs)
    assert read_rows(page, "Settings that differ</h2>") == [["model.optimizer.lr", "0.1", "0.2", "0.1"]]
    rows = {row[0]: row[1:] for row in read_rows(page, "Scores</h2>")}
    assert rows["val/top1"] == ["0.3000", "0.4000", "0.5000"] and "epochs" in rows
    assert text.count("<svg") == 2 and "a/0" in text and "c/0" in text


def test_runs_of_the_same_config_have_no_setting_that_differs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, "SimMIMTask", METRICS) for name in ("a", "b")]
    assert "Their configs are the same." in compare(tmp_path, *runs)[1]


def test_names_are_the_shortest_that_differ() -> None:
    assert name_runs([Path("/r/a/0"), Path("/r/a/1")]) == ["a/0", "a/1"]
    assert name_runs([Path("/r/x/a/0"), Path("/r/y/a/0")]) == ["x/a/0", "y/a/0"]
    assert len({*name_runs([Path("/r/a/0"), Path("/r/a/0")])}) == 2


def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a", "ClassificationTask", METRICS)
    assert main(["compare", str(run)]) == 2
    assert "two runs or more" in capsys.readouterr().err
    assert main(["compare"]) == 2
    assert main(["compare", str(run), str(tmp_path)]) == 1
    assert "no config.yaml" in capsys.readouterr().err
    assert not Path("compare.html").exists()
    other = write_run(tmp_path / "b", "SegmentationTask", METRICS)
    assert "Their tasks differ" in compare(tmp_path, run, other)[1]


# ---- detection


def write_detections(run: Path, images: Path, share: float, seed: int) -> tuple[dict, list]:  # type: ignore[type-arg]
    """Objects of two classes in images, of which a share is detected, and some false alarms."""
    layout, rng = np.random.default_rng(0), np.random.default_rng(seed)
    truth: dict = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]}  # type: ignore[type-arg]
    results = []
    truth["info"] = {IMAGE_FOLDER: str(images)}
    for image in range(40):
        truth["images"].append({"id": image, "file_name": f"{image}.png", "width": 100, "height": 100})
        for k in range(int(layout.integers(1, 4))):
            box = [30.0 * k, 10.0, 20.0, 30.0]
            category = int(layout.choice([3, 7]))
            entry = {"image_id": image, "category_id": category, "bbox": box}
            number = len(truth["annotations"]) + 1
            truth["annotations"].append({**entry, "id": number, "area": 600.0, "iscrowd": 0})
            if rng.random() < (share if category == 3 else 0.7):
                results.append({**entry, "score": float(rng.uniform(0.5, 1))})
        results.append(
            {"image_id": image, "category_id": 3, "bbox": [50.0, 60.0, 20, 20], "score": float(rng.random())}
        )
    (run / "val_truth.json").write_text(json.dumps(truth))
    (run / "val_detections.json").write_text(json.dumps(results))
    return truth, results


def test_detectors_are_compared_class_by_class_with_cocos_precision(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for image in range(40):
        Image.new("RGB", (100, 100), (6 * image, 100, 100)).save(tmp_path / "images" / f"{image}.png")
    runs = [write_run(tmp_path / name, "DetectionTask", METRICS) for name in ("a", "b")]
    contents = [
        write_detections(run, tmp_path / "images", share, seed=1) for run, share in zip(runs, (0.3, 0.95), strict=True)
    ]
    page, text = compare(tmp_path, *runs)
    rows = {row[0]: row for row in read_rows(page, "validation images</h2>")}
    for name, category in (("cat", 3), ("dog", 7)):
        for column, (truth, results) in enumerate(contents, start=1):
            own = {
                **truth,
                "annotations": [entry for entry in truth["annotations"] if entry["category_id"] == category],
            }
            of_class = [result for result in results if result["category_id"] == category]
            assert float(rows[name][column]) == pytest.approx(
                coco_scores(own, of_class)["bbox"].statistics["ap50"], abs=1e-4
            )
    assert float(rows["cat"][4]) > 0  # the interval is above 0
    assert float(rows["dog"][4]) <= 0 <= float(rows["dog"][5])
    assert "Better in the second run" in text and text.count("data:image/jpeg") >= 9
    assert page.stat().st_size < 10 * 2**20


def test_detectors_of_other_images_are_not_compared(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, "DetectionTask", METRICS) for name in ("a", "b")]
    for run in runs:
        write_detections(run, tmp_path / run.name, 0.5, 0)
    assert "none are compared" in compare(tmp_path, *runs)[1]
    (runs[0] / "val_truth.json").unlink()
    assert "validate both again" in compare(tmp_path, *runs)[1]


# ---- classification


def write_predictions(run: Path, images: Path, accuracy: float, seed: int, first: int = 0) -> np.ndarray:
    """Predictions of samples of three classes, of which class 0 is predicted right this often; what is right."""
    rng = np.random.default_rng(seed)
    labels = np.arange(first, 240) % 3
    is_right = rng.random(len(labels)) < np.where(labels == 0, accuracy, 0.6)
    predicted = np.where(is_right, labels, (labels + 1) % 3)
    scores = rounded(np.sort(rng.dirichlet([2, 1, 1], len(labels)))[:, ::-1])
    classes = np.stack([predicted, (predicted + 1) % 3, (predicted + 2) % 3], axis=1)
    label_scores = np.take_along_axis(scores, np.argmax(classes == labels[:, None], 1)[:, None], 1)[:, 0]
    paths = [str(images / f"{k}.png") for k in range(first, 240)]
    results = SingleLabelResults(paths, labels, label_scores, rounded(-np.log(label_scores + 1e-9)), classes, scores)
    write_single_label(run / "val_predictions.csv", results, ["a", "b", "c"], ["ant", "bee", "cat"])
    write_class_scores(run / "val_classes.json", results, ["a", "b", "c"], ["ant", "bee", "cat"], "images")
    return is_right


def test_classifiers_are_compared_by_the_samples_that_both_have(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for image in range(240):
        Image.new("RGB", (8, 8), (image, 100, 100)).save(tmp_path / "images" / f"{image}.png")
    runs = [write_run(tmp_path / name, "ClassificationTask", METRICS) for name in ("a", "b")]
    before = write_predictions(runs[0], tmp_path / "images", 0.3, 1)
    after = write_predictions(runs[1], tmp_path / "images", 0.9, 2, first=30)
    page, text = compare(tmp_path, *runs)
    assert "210 images that both were evaluated on, of 240." in text

    labels, common = np.arange(30, 240) % 3, before[30:]
    rows = {row[0]: row for row in read_rows(page, "validation samples</h2>")}
    for k, name in enumerate(("ant", "bee", "cat")):
        own = labels == k
        recalls = [float(right[own].mean()) for right in (common, after)]
        assert [float(cell) for cell in rows[name][1:4]] == pytest.approx([*recalls, recalls[1] - recalls[0]], abs=1e-4)
        assert rows[name][6] == str(own.sum())
    assert float(rows["ant"][4]) > 0 and "ant" in read_rows(page, "validation samples</h2>")[0]
    assert f"Right in the second run alone ({(after & ~common).sum()})" in text
    assert f"Right in the first run alone ({(common & ~after).sum()})" in text
    top1 = repr(float((after.astype(float) - common).mean()))
    assert f'data-value="{top1}"' in text


# ---- segmentation


def write_segmentation(run: Path, images: Path, seed: int, factor: float) -> np.ndarray:
    """Counts of two classes in 30 images; the share of pixels that is right grows with a factor in the first class."""
    layout, rng = np.random.default_rng(0), np.random.default_rng(seed)
    labeled = layout.integers(50, 100, (30, 2))
    hits = (labeled * np.array([factor, 0.5]) * rng.uniform(0.9, 1, (30, 2))).astype(int)
    predicted = hits + (labeled - hits)[:, ::-1]
    pixels = np.stack([hits, labeled, predicted], axis=1)
    ious = hits / (labeled + predicted - hits)
    rows = [[str(images / f"{k}.png"), ious[k].mean(), 0.5, "sky", ious[k].min()] for k in range(30)]
    write_table(run / "val_images.csv", [["file", "miou", "pixel_accuracy", "worst_class", "worst_iou"], *rows])
    np.save(run / "val_image_pixels.npy", pixels.astype(np.uint32))
    confusion = torch.zeros(2, 3, dtype=torch.int64)
    for k in range(2):
        confusion[k, k], confusion[k, 1 - k] = int(hits[:, k].sum()), int((labeled - hits)[:, k].sum())
    write_scene_scores(run / "val_classes.json", SegmentationScores.of(confusion), ["sky", "road"], [1, 2])
    return pixels


def test_segmentations_are_compared_class_by_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    for image in range(30):
        Image.new("RGB", (16, 16), (8 * image, 100, 100)).save(tmp_path / "images" / f"{image}.png")
    runs = [write_run(tmp_path / name, "SegmentationTask", METRICS) for name in ("a", "b")]
    for run, factor in zip(runs, (0.6, 0.95), strict=True):
        write_segmentation(run, tmp_path / "images", seed=1, factor=factor)
    page, text = compare(tmp_path, *runs)
    rows = {row[0]: row for row in read_rows(page, "validation images</h2>")}
    for column, run in enumerate(runs, start=1):
        for entry in json.loads((run / "val_classes.json").read_text())["classes"]:
            assert float(rows[entry["name"]][column]) == pytest.approx(entry["iou"], abs=1e-4)
    assert float(rows["sky"][4]) > 0 and "Better in the second run" in text

    np.save(runs[1] / "val_image_pixels.npy", np.zeros((2, 3, 2), np.uint32))
    assert main(["compare", *map(str, runs)]) == 1
    assert "not of this evaluation" in capsys.readouterr().err
    np.save(runs[1] / "val_image_pixels.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert main(["compare", *map(str, runs)]) == 1
    (runs[1] / "val_image_pixels.npy").unlink()
    assert "validate both again" in compare(tmp_path, *runs)[1]
