"""Scores, boundaries and label maps of segmented images: those of the predictions, on any number of processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swinv2_tasks.callbacks.segmented_images import reduced_map
from swinv2_tasks.datamodules import ADE20KDataModule
from swinv2_tasks.evaluation.boundaries import boundary_iou, count_boundaries
from swinv2_tasks.tables import read_table
from swinv2_tasks.tasks import SegmentationTask
from tests.helpers.processes import run
from tests.helpers.runs import evaluate, from_last, last_checkpoint, newest_run
from tests.helpers.scenes import DATA, NAMES


@pytest.fixture(scope="module")
def segmenter(trained_run: Callable[[str], Path]) -> Path:
    return trained_run("segmentation")


@pytest.fixture(scope="module")
def evaluation(segmenter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluate(tmp_path_factory.mktemp("evaluated"), from_last(segmenter))


@pytest.fixture(scope="module")
def maps(segmenter: Path, dataset: Callable[[str], Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What is predicted and what is labeled in each validation image, by its file."""
    task = SegmentationTask.load_from_checkpoint(last_checkpoint(segmenter)).eval()
    data = ADE20KDataModule(str(dataset("segmentation")), class_names=NAMES, **DATA)
    data.setup("validate")
    predicted = {}
    for batch in data.val_dataloader():
        (path,), mask = batch["path"], batch["mask"][0]
        predicted[path] = (task.segment(batch["image"], mask.shape, batch["rescaled"][0]).numpy(), mask.numpy())
    return predicted


def test_each_image_has_the_scores_of_its_prediction(
    evaluation: Path, maps: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    rows = read_table(evaluation / "val_images.csv")
    assert [row["file"] for row in rows] == list(maps)
    for row, (prediction, labels) in zip(rows, maps.values(), strict=True):
        labeled = labels < 3
        ious = {}
        for k in range(3):
            own, predicted = (labels == k) & labeled, (prediction == k) & labeled
            if (own | predicted).any():
                ious[NAMES[k]] = float((own & predicted).sum() / (own | predicted).sum())
        assert float(row["miou"]) == pytest.approx(np.mean([*ious.values()]), abs=1e-12)
        assert float(row["pixel_accuracy"]) == (prediction == labels)[labeled].mean()
        assert float(row["worst_iou"]) == min(ious.values()) == ious[row["worst_class"]]


def test_counts_and_boundaries_are_those_of_all_predictions(
    evaluation: Path, maps: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    confusion = json.loads((evaluation / "val_confusion.json").read_text())
    expected = np.zeros((3, 4), dtype=int)
    for prediction, labels in maps.values():
        np.add.at(expected, (labels[labels < 3], prediction[labels < 3]), 1)
    assert confusion == {"classes": NAMES, "counts": expected.tolist()}

    pixels = np.load(evaluation / "val_image_pixels.npy")
    hits, labeled, predicted = pixels.sum(0)
    assert hits.tolist() == expected.diagonal().tolist() and labeled.tolist() == expected.sum(1).tolist()
    assert predicted.tolist() == expected[:, :3].sum(0).tolist()
    ious = pixels[:, 0] / np.maximum(1, pixels[:, 1] + pixels[:, 2] - pixels[:, 0])
    for own, row in zip(pixels, read_table(evaluation / "val_images.csv"), strict=True):
        unions = own[1] + own[2] - own[0]
        assert float(row["worst_iou"]) == (own[0] / np.maximum(1, unions))[unions > 0].min()

    boundary = json.loads((evaluation / "val_boundary.json").read_text())
    ious = boundary_iou(sum(count_boundaries(*pair, 3) for pair in maps.values()))
    assert [row["boundary_iou"] for row in boundary["classes"]] == ious.tolist()
    assert boundary["mean_boundary_iou"] == ious.mean()


def test_label_maps_of_the_worst_images_are_kept(
    evaluation: Path, maps: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    worst = json.loads((evaluation / "val_worst" / "worst.json").read_text())
    scores = {row["file"]: float(row["miou"]) for row in read_table(evaluation / "val_images.csv")}
    assert [entry["miou"] for entry in worst] == sorted(scores.values())
    for entry in worst:
        prediction, labels = maps[entry["file"]]
        stored = [np.asarray(Image.open(evaluation / "val_worst" / entry[name])) for name in ("truth", "prediction")]
        np.testing.assert_array_equal(stored[0], np.where(labels < 3, labels + 1, 0))
        np.testing.assert_array_equal(stored[1], prediction + 1)


def test_large_label_maps_are_reduced() -> None:
    labels = torch.arange(1300).repeat_interleave(2).expand(1300, 2600) // 650
    small = reduced_map(labels, 2)
    assert small.shape == (320, 640)
    assert small[:, :320].tolist() == [[1] * 320] * 320 and not (small[:, 320:] == 1).any()
    assert reduced_map(torch.tensor([[0, 5, -1, 1]]), 2).tolist() == [[1, 0, 0, 2]]


def test_a_training_keeps_the_same_but_for_boundaries(segmenter: Path) -> None:
    names = {path.name for path in segmenter.glob("val_*")}
    assert {"val_images.csv", "val_confusion.json", "val_worst"} <= names
    assert "val_boundary.json" not in names
    assert not [path for path in segmenter.iterdir() if path.name.startswith(".val")]


def test_a_test_writes_files_of_its_own(segmenter: Path, evaluation: Path, tmp_path: Path) -> None:
    folder = evaluate(tmp_path, from_last(segmenter), command="test")  # on the validation images: there are no others
    for name in ("classes.json", "confusion.json", "images.csv", "boundary.json"):
        assert (folder / f"test_{name}").read_bytes() == (evaluation / f"val_{name}").read_bytes()
    assert (folder / "test_worst" / "worst.json").is_file() and not [*folder.glob("val_*")]


@pytest.mark.slow
def test_two_processes_write_what_one_does(segmenter: Path, evaluation: Path, tmp_path: Path) -> None:
    arguments = ["validate", from_last(segmenter), f"--runs={tmp_path}", "--name=evaluation"]
    assert run(arguments, tmp_path, 2).status == 0
    folder = newest_run(tmp_path, "evaluation", "validate")
    files = [
        "val_images.csv",
        "val_image_pixels.npy",
        "val_confusion.json",
        "val_boundary.json",
        "val_worst/worst.json",
    ]
    files += [f"val_worst/{path.name}" for path in (evaluation / "val_worst").glob("*.png")]
    for name in files:
        assert (folder / name).read_bytes() == (evaluation / name).read_bytes(), name
