"""Scoring label maps that lie on disk."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swinv2_tasks.cli.main import main
from tests.helpers.processes import start

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
    paths = [f"--annotations={folder / 'truth'}", f"--predictions={folder / 'predicted'}"]
    return main(["score", "ade20k", *paths, f"--json={folder / 'scores.json'}", *arguments])


def scores(folder: Path, *arguments: str) -> dict[str, Any]:
    assert score(folder, *arguments) == 0
    return json.loads((folder / "scores.json").read_text())


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    write(tmp_path / "truth", TRUTH)
    write(tmp_path / "predicted", PREDICTED)
    return tmp_path


def test_scores_are_those_worked_out_by_hand(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = scores(pairs)
    assert result["miou"] == pytest.approx(sum(IOU.values()) / 4)
    assert result["mean_accuracy"] == pytest.approx(sum(ACCURACY.values()) / 3)
    assert result["pixel_accuracy"] == pytest.approx(4 / 7)
    rows = {row["id"]: row for row in result["classes"]}
    assert len(rows) == 150 and rows[1]["name"] == "wall"
    for k, row in rows.items():
        assert row["iou"] == (pytest.approx(IOU[k]) if k in IOU else None)
        assert row["accuracy"] == (pytest.approx(ACCURACY[k]) if k in ACCURACY else None)
        assert row["pixels"] == {1: 2, 2: 3, 4: 2}.get(k, 0)
    output = capsys.readouterr().out
    assert "wall" in output and "0.6667" in output and "4 of 150 classes" in output
    assert "tree" not in output  # class 5 is nowhere


def test_options_may_be_written_apart(pairs: Path) -> None:
    arguments = ["--annotations", str(pairs / "truth"), "--predictions", str(pairs / "predicted")]
    assert main(["score", "ade20k", *arguments, "--json", str(pairs / "scores.json")]) == 0
    assert (pairs / "scores.json").is_file()


def test_other_classes_have_a_list(pairs: Path) -> None:
    (pairs / "names.txt").write_text("one\ntwo\nthree\nfour\n")
    result = scores(pairs, f"--class_names={pairs / 'names.txt'}")
    assert [row["name"] for row in result["classes"]] == ["one", "two", "three", "four"]
    assert result["miou"] == pytest.approx(sum(IOU.values()) / 4)


def test_subfolders_and_predictions_to_spare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "truth", {"x/a": [[1, 2]], "y/a": [[2, 2]]})
    write(tmp_path / "predicted", {"x/a": [[1, 2]], "y/a": [[2, 1]], "z/a": [[9, 9]]})
    result = scores(tmp_path)
    assert result["pixel_accuracy"] == pytest.approx(3 / 4)
    errors = " ".join(capsys.readouterr().err.split())
    assert "1 predictions without an annotation were left out: z/a.png" in errors


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
    inter, union, right, labeled = np.zeros(150), np.zeros(150), 0, 0
    for name, labels in truth.items():
        masked = predicted[name] * (labels > 0)
        inter += np.histogram(masked * (masked == labels), 150, (1, 150))[0]
        areas = [np.histogram(classes, 150, (1, 150))[0] for classes in (masked, labels)]
        union += areas[0] + areas[1]
        right += ((masked == labels) & (labels > 0)).sum()
        labeled += (labels > 0).sum()
    result = scores(tmp_path)
    assert result["miou"] == pytest.approx((inter / (union - inter)).mean())
    assert result["pixel_accuracy"] == pytest.approx(right / labeled)


def test_nothing_labeled_is_no_score(tmp_path: Path) -> None:
    write(tmp_path / "truth", {"a": [[0, 0]]})
    write(tmp_path / "predicted", {"a": [[1, 2]]})
    result = scores(tmp_path)
    assert result["miou"] is result["pixel_accuracy"] is None


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
    "none to be scored": (
        lambda folder: write(folder / "predicted", {"a": [[1, 2], [1, 2]], "b": [[1], [1]]}),
        ["None of 2", "predicted/a.png", "2×2", "truth/a.png", "3×2"],
    ),
    "a folder for the scores": (lambda folder: (folder / "scores.json").mkdir(), ["--json", "is a folder"]),
}


@pytest.mark.parametrize(("corrupt", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_reported_and_nothing_is_written(
    corrupt: Callable[[Path], Any], words: list[str], pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corrupt(pairs)
    assert score(pairs) == 1
    errors = capsys.readouterr().err
    assert all(word in errors for word in words), errors
    assert "Traceback" not in errors
    assert not (pairs / "scores.json").is_file()


FAULTS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "another size": (
        lambda folder: write(folder / "predicted", {"a": [[1, 2], [1, 2]]}),
        ["predicted/a.png", "2×2", "truth/a.png", "3×2"],
    ),
    "colors": (
        lambda folder: Image.new("RGB", (3, 2)).save(folder / "predicted" / "a.png"),
        ["predicted/a.png", "colors"],
    ),
    "16 bits": (
        lambda folder: Image.fromarray(np.ones((2, 3), np.uint16)).save(folder / "truth" / "a.png"),
        ["truth/a.png", "8-bit"],
    ),
    "too large a label": (
        lambda folder: write(folder / "predicted", {"a": [[1, 2, 151], [1, 2, 3]]}),
        ["predicted/a.png", "151 is no class", "151: 1 ("],
    ),
}


@pytest.mark.parametrize(("corrupt", "words"), FAULTS.values(), ids=FAULTS)
def test_a_pair_that_cannot_be_scored_is_listed_and_the_others_are_scored(
    corrupt: Callable[[Path], Any], words: list[str], pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corrupt(pairs)
    assert score(pairs) == 1
    output, errors = capsys.readouterr()
    result = json.loads((pairs / "scores.json").read_text())
    assert result["label_maps"] == 1 and result["faulty"].keys() == {"a.png"}
    assert result["pixel_accuracy"] == pytest.approx(1 / 2)  # of pair b alone
    assert "1 of 2 label maps are scored" in output and "not scored: a.png: " in output
    assert all(word in result["faulty"]["a.png"] and word in output for word in words), result
    assert "1 of 2 label maps cannot be scored" in errors and "Traceback" not in errors


def test_a_score_says_how_many_files_it_rests_on(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = scores(pairs)
    assert (result["label_maps"], result["faulty"]) == (2, {})
    assert "2 of 2 label maps are scored" in capsys.readouterr().out


def test_label_maps_of_any_name_are_scored_or_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [os.fsdecode(name) for name in (b"caf\xe9", b"a\nb", b"\x1b[31mred", b"$x_1$[red]", b"x" * 251)]
    pairs: Maps = {name: [[1, 2]] for name in names}
    write(tmp_path / "truth", pairs)
    write(tmp_path / "predicted", {**pairs, f"{names[0]} too": [[1]]})
    for name in names[:3]:
        (tmp_path / "predicted" / f"{name}.png").write_bytes(b"no picture")
    assert score(tmp_path) == 1
    output, errors = capsys.readouterr()
    assert "2 of 5 label maps are scored" in output
    for name in (r"caf\xe9.png", r"a\nb.png", r"\x1b[31mred.png"):
        assert f"not scored: {name}: " in output
    assert r"left out: caf\xe9 too.png" in errors
    assert all(line.isprintable() for line in (output + errors).splitlines())
    result = json.loads((tmp_path / "scores.json").read_text())
    assert result["faulty"].keys() == {f"{name}.png" for name in names[:3]}


def test_where_nothing_can_be_written_is_reported_before_the_work(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pairs / "predicted" / "a.png").write_bytes(b"")  # which would be told of, if it were read
    assert score(pairs, "--json=/proc/scores.json") == 1
    output, errors = capsys.readouterr()
    assert "cannot write in /proc (--json)" in errors and "label maps" not in output


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_scoring_at_once(number: int, status: int, tmp_path: Path) -> None:
    picture = write(tmp_path / "one", {"a": np.ones((1500, 1500))}) / "a.png"
    for folder in ("truth", "predicted"):
        (tmp_path / folder).mkdir()
        for k in range(2000):
            os.link(picture, tmp_path / folder / f"{k}.png")
    running = start(["score", "ade20k", "--annotations=truth", "--predictions=predicted"], tmp_path)
    time.sleep(8)
    running.signal(number)
    ended = running.wait(20)
    assert ended.status == status and "Traceback" not in ended.errors


def test_a_file_for_scores_in_no_folder_is_reported_before_the_work(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(pairs, f"--json={pairs / 'nowhere' / 'scores.json'}") == 1
    assert "nowhere" in capsys.readouterr().err


# ---- detections


def test_published_detections_score_the_published_numbers(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = real_data / "cocoeval"
    expected = json.loads((folder / "expected.json").read_text())
    for iou_type, name, key in (("bbox", "fakebbox100", "box"), ("segm", "fakesegm100", "mask")):
        files = ["--annotations", str(folder / "instances_val2014_100.json")]
        files += ["--predictions", str(folder / f"{name}_results.json"), "--json", str(tmp_path / "scores.json")]
        for more in ([], ["--iou-type", iou_type], [f"--iou_type={iou_type}", "--backend", "faster_coco_eval"]):
            assert main(["score", "coco", *files, *more]) == 0
            result = json.loads((tmp_path / "scores.json").read_text())
            assert [*result[key].values()] == pytest.approx(expected[iou_type], abs=1e-6)
            assert len(result["classes"]) == 80
    output = capsys.readouterr().out
    assert "0.5046" in output and "0.3195" in output and "person" in output


BOXES: dict[str, Any] = {
    "images": [{"id": 4, "file_name": "a.jpg", "height": 10, "width": 20}],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 7, "bbox": [0, 0, 10, 10]},
        {"id": 2, "image_id": 4, "category_id": 9, "bbox": [10, 0, 10, 10]},
    ],
    "categories": [{"id": 7, "name": "cup"}, {"id": 9, "name": "dog"}],
}
DETECTIONS: list[dict[str, Any]] = [
    {"image_id": 4, "category_id": 7, "bbox": [0, 0, 10, 8], "score": 0.9},
    {"image_id": 4, "category_id": 9, "bbox": [0, 0, 5, 5], "score": 0.8},
]


def score_boxes(folder: Path, detections: Any, truth: Any, *arguments: str) -> int:
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(detections if isinstance(detections, str) else json.dumps(detections))
    files = [f"--annotations={folder / 'truth.json'}", f"--predictions={folder / 'found.json'}"]
    return main(["score", "coco", *files, f"--json={folder / 'scores.json'}", *arguments])


def test_scores_of_boxes_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    """The cup overlaps by 0.8: found at seven of ten thresholds. The dog is missed."""
    assert score_boxes(tmp_path, DETECTIONS, BOXES) == 0
    result = json.loads((tmp_path / "scores.json").read_text())
    assert result["box"]["ap"] == pytest.approx(0.35) and result["box"]["ap50"] == pytest.approx(0.5)
    assert result["box"]["ap_large"] == -1 and "mask" not in result
    assert result["classes"] == [
        {"id": 7, "name": "cup", "box_ap": pytest.approx(0.7)},
        {"id": 9, "name": "dog", "box_ap": 0.0},
    ]
    assert score_boxes(tmp_path, [], BOXES) == 0  # nothing found
    assert json.loads((tmp_path / "scores.json").read_text())["box"]["ap"] == 0


def test_more_objects_than_detections_that_count_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of three cups in an image two count as found: a precision of 1 at 67 of 101 recalls."""
    boxes = [[12 * k, 0, 10, 10] for k in range(3)]
    truth = {
        "images": [{"id": 4, "file_name": "a.jpg", "height": 10, "width": 40}],
        "annotations": [{"id": k, "image_id": 4, "category_id": 7, "bbox": box} for k, box in enumerate(boxes)],
        "categories": BOXES["categories"],
    }
    detections = [{"image_id": 4, "category_id": 7, "bbox": box, "score": 0.5} for box in boxes]
    for backend in ("pycocotools", "faster_coco_eval"):
        assert score_boxes(tmp_path, detections, truth, "--max-dets", "2", "--backend", backend) == 0
        scored = json.loads((tmp_path / "scores.json").read_text())
        assert scored["box"]["ap"] == pytest.approx(67 / 101) and scored["box"]["ar2"] == pytest.approx(2 / 3)
        assert "1 of 1 images has more objects of a class (up to 3) than the 2 detections" in scored["note"]
        assert scored["note"] in " ".join(capsys.readouterr().err.split())
        assert score_boxes(tmp_path, detections, truth, "--max-dets=3", f"--backend={backend}") == 0
        scored = json.loads((tmp_path / "scores.json").read_text())
        assert scored["box"]["ap"] == pytest.approx(1) and "note" not in scored
        assert "more objects" not in capsys.readouterr().err


def test_what_cannot_be_found_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = json.loads(json.dumps(BOXES))
    truth["annotations"][0]["iscrowd"] = 1
    assert score_boxes(tmp_path, [{**DETECTIONS[1], "bbox": [15, 5, -3, 2]}], truth) == 0
    errors = " ".join(capsys.readouterr().err.split())
    assert "of 2 objects 1 are crowds" in errors and "set iscrowd to 0" in errors
    assert "1 of 1 detections have a box without area" in errors


def masks(**changes: Any) -> dict[str, Any]:
    return {
        "image_id": 4,
        "category_id": 7,
        "score": 0.5,
        "segmentation": {"size": [10, 20], "counts": [200]},
        **changes,
    }


@pytest.mark.parametrize(
    ("detections", "arguments", "words"),
    [
        ("{", [], ["found.json is no JSON"]),
        ({"a": 1}, [], ["no list of objects"]),
        ([1], [], ["no list of objects"]),
        ([{"image_id": 4, "score": 1}], [], ["detection 0", "lacks category_id"]),
        ([{**DETECTIONS[0], "image_id": 5}], [], ["detection 0", "image_id 5", "does not know"]),
        ([DETECTIONS[0], {**DETECTIONS[0], "category_id": 8}], [], ["detection 1", "category_id 8"]),
        ([{**DETECTIONS[0], "score": float("nan")}], [], ["the score nan"]),
        ([{**DETECTIONS[0], "bbox": [1, 2, 3]}], [], ["bbox [1, 2, 3]"]),
        ([{**DETECTIONS[0], "bbox": [1, 2, 3, float("inf")]}], [], ["four finite numbers"]),
        (
            [masks(segmentation={"size": [20, 10], "counts": "abc"})],
            [],
            ["no run lengths of its image's size [10, 20]"],
        ),
        ([masks(segmentation=[[1, 2, 3, 4, 5, 6]])], [], ["no run lengths"]),
        ([masks(segmentation={"size": [10, 20], "counts": [199]})], [], ["do not add up to the 200 pixels"]),
        ([masks()], [], ["has masks", "only boxes"]),
        ([{**DETECTIONS[0], "bbox": [0, 0, 1e308, 1e308]}], [], ["detection 0", "far outside of its image 4"]),
        ([{**DETECTIONS[0], "bbox": [-1e9, 0, 9, 9]}], [], ["detection 0", "far outside"]),
        ([{**DETECTIONS[0], "bbox": [0, 0, 10**400, 9]}], [], ["more than 100 digits"]),
        ([masks(segmentation={"size": [10, 20], "counts": [10**30]})], [], ["do not add up to the 200 pixels"]),
        (DETECTIONS, ["--max-dets=0"], ["--max-dets is 0", "at least 1"]),
        (DETECTIONS, ["--iou-type", "segm"], ["has no masks, only boxes"]),
        (DETECTIONS, ["--json=nowhere/x.json"], ["nowhere", "make it first"]),
    ],
)
def test_detections_that_cannot_be_scored_are_reported(
    detections: Any, arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score_boxes(tmp_path, detections, BOXES, *arguments) == 1
    errors = capsys.readouterr().err
    assert all(word in errors for word in words), errors
    assert "Traceback" not in errors and not (tmp_path / "scores.json").exists()


def test_annotations_that_cannot_be_scored_against_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score_boxes(tmp_path, DETECTIONS, {k: v for k, v in BOXES.items() if k != "annotations"}) == 1
    assert "no annotations to score against" in capsys.readouterr().err
    assert main(["score", "coco", "--annotations=nowhere.json", f"--predictions={tmp_path / 'found.json'}"]) == 1
    assert "Cannot read nowhere.json" in capsys.readouterr().err


def test_objects_with_only_a_box_have_no_pixels(tmp_path: Path) -> None:
    truth = json.loads(json.dumps(BOXES))
    truth["annotations"][0]["segmentation"] = [[0, 0, 10, 0, 10, 10, 0, 10]]
    detections = [masks(segmentation={"size": [10, 20], "counts": [0, 100, 100]}), masks(category_id=9)]
    assert score_boxes(tmp_path, detections, truth) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [row["mask_ap"] for row in scores["classes"]] == pytest.approx([1.0, 0.0])
