"""Scoring label maps that lie on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swinv2_tasks.__main__ import main

Maps = dict[str, Any]

# Pair a: label 0 does not count. Class 1: 2 pixels, both right, and predicted once more where there is class 2.
# Class 2: 3 pixels, 1 right, one missed by 0 (no class), one taken for 1. Pair b: a pixel of class 4 is taken for 3.
TRUTH: Maps = {"a": [[0, 1, 1], [2, 2, 2]], "b": [[4, 4]]}
PREDICTED: Maps = {"a": [[2, 1, 1], [2, 0, 1]], "b": [[4, 3]]}
IOU = {1: 2 / 3, 2: 1 / 3, 3: 0.0, 4: 1 / 2}
ACCURACY = {1: 1.0, 2: 1 / 3, 4: 1 / 2}


def write(folder: Path, maps: Maps) -> Path:
    for name, labels in maps.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(labels, dtype=np.uint8)).save(path)
    return folder


def score(folder: Path, *arguments: str) -> int:
    places = [f"--annotations={folder / 'truth'}", f"--predictions={folder / 'predicted'}"]
    return main(["score", "ade20k", *places, f"--json={folder / 'scores.json'}", *arguments])


def scores(folder: Path, *arguments: str) -> dict[str, Any]:
    assert score(folder, *arguments) == 0
    return json.loads((folder / "scores.json").read_text())


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    write(tmp_path / "truth", TRUTH)
    write(tmp_path / "predicted", PREDICTED)
    return tmp_path


def test_scores_are_those_worked_out_by_hand(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = scores(pairs)
    assert found["miou"] == pytest.approx(sum(IOU.values()) / 4)
    assert found["mean_accuracy"] == pytest.approx(sum(ACCURACY.values()) / 3)
    assert found["pixel_accuracy"] == pytest.approx(4 / 7)
    rows = {row["id"]: row for row in found["classes"]}
    assert len(rows) == 150 and rows[1]["name"] == "wall"
    for k, row in rows.items():
        assert row["iou"] == (pytest.approx(IOU[k]) if k in IOU else None)
        assert row["accuracy"] == (pytest.approx(ACCURACY[k]) if k in ACCURACY else None)
        assert row["pixels"] == {1: 2, 2: 3, 4: 2}.get(k, 0)
    shown = capsys.readouterr().out
    assert "wall" in shown and "0.6667" in shown and "4 of 150 classes" in shown
    assert "tree" not in shown  # class 5 is nowhere


def test_options_may_be_written_apart(pairs: Path) -> None:
    arguments = ["--annotations", str(pairs / "truth"), "--predictions", str(pairs / "predicted")]
    assert main(["score", "ade20k", *arguments, "--json", str(pairs / "scores.json")]) == 0
    assert (pairs / "scores.json").is_file()


def test_other_classes_have_a_list(pairs: Path) -> None:
    (pairs / "names.txt").write_text("one\ntwo\nthree\nfour\n")
    found = scores(pairs, f"--class_names={pairs / 'names.txt'}")
    assert [row["name"] for row in found["classes"]] == ["one", "two", "three", "four"]
    assert found["miou"] == pytest.approx(sum(IOU.values()) / 4)


def test_subfolders_and_predictions_to_spare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "truth", {"x/a": [[1, 2]], "y/a": [[2, 2]]})
    write(tmp_path / "predicted", {"x/a": [[1, 2]], "y/a": [[2, 1]], "z/a": [[9, 9]]})
    found = scores(tmp_path)
    assert found["pixel_accuracy"] == pytest.approx(3 / 4)
    told = " ".join(capsys.readouterr().err.split())
    assert "1 predictions without an annotation were left out: z/a.png" in told


def test_scores_are_those_of_the_benchmarks_rules(tmp_path: Path) -> None:
    """By its published formulas: predictions are masked by the labels, areas summed over all images."""
    draw = np.random.default_rng(0)
    truth = {f"{k}": draw.integers(0, 151, (30, 40 + k)) for k in range(4)}
    predicted = {
        k: np.where(draw.random(labels.shape) < 0.5, labels, draw.integers(0, 151, labels.shape))
        for k, labels in truth.items()
    }
    write(tmp_path / "truth", truth)
    write(tmp_path / "predicted", predicted)
    inter, union, right, labelled = np.zeros(150), np.zeros(150), 0, 0
    for name, labels in truth.items():
        masked = predicted[name] * (labels > 0)
        inter += np.histogram(masked * (masked == labels), 150, (1, 150))[0]
        areas = [np.histogram(one, 150, (1, 150))[0] for one in (masked, labels)]
        union += areas[0] + areas[1]
        right += ((masked == labels) & (labels > 0)).sum()
        labelled += (labels > 0).sum()
    found = scores(tmp_path)
    assert found["miou"] == pytest.approx((inter / (union - inter)).mean())
    assert found["pixel_accuracy"] == pytest.approx(right / labelled)


def test_nothing_labelled_is_no_score(tmp_path: Path) -> None:
    write(tmp_path / "truth", {"a": [[0, 0]]})
    write(tmp_path / "predicted", {"a": [[1, 2]]})
    found = scores(tmp_path)
    assert found["miou"] is found["pixel_accuracy"] is None


def remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


MISTAKES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no folder of annotations": (lambda folder: remove(folder / "truth"), ["--annotations", "does not exist"]),
    "no folder of predictions": (lambda folder: remove(folder / "predicted"), ["--predictions", "does not exist"]),
    "an empty folder": (
        lambda folder: [path.unlink() for path in (folder / "predicted").iterdir()],
        ["--predictions", "no PNG file"],
    ),
    "a prediction missing": (
        lambda folder: (folder / "predicted" / "b.png").unlink(),
        ["1 of 2 annotations", "b.png"],
    ),
    "no names in common": (
        lambda folder: [path.rename(path.with_name(f"x{path.name}")) for path in (folder / "predicted").iterdir()],
        ["No file in", "xa.png", "a.png"],
    ),
    "another size": (
        lambda folder: write(folder / "predicted", {"a": [[1, 2], [1, 2]]}),
        ["predicted/a.png", "2×2", "truth/a.png", "3×2"],
    ),
    "colours": (
        lambda folder: Image.new("RGB", (3, 2)).save(folder / "predicted" / "a.png"),
        ["predicted/a.png", "colours"],
    ),
    "16 bits": (
        lambda folder: Image.fromarray(np.ones((2, 3), np.uint16)).save(folder / "truth" / "a.png"),
        ["truth/a.png", "8-bit"],
    ),
    "too large a label": (
        lambda folder: write(folder / "predicted", {"a": [[1, 2, 151], [1, 2, 3]]}),
        ["predicted/a.png", "above the class count 150", "151"],
    ),
}


@pytest.mark.parametrize(("damage", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_and_nothing_is_written(
    damage: Callable[[Path], Any], words: list[str], pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(pairs)
    assert score(pairs) == 1
    told = capsys.readouterr().err
    assert all(word in told for word in words), told
    assert "Traceback" not in told
    assert not (pairs / "scores.json").exists()


def test_a_file_for_scores_in_no_folder_is_told_before_the_work(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(pairs, f"--json={pairs / 'nowhere' / 'scores.json'}") == 1
    assert "nowhere" in capsys.readouterr().err
