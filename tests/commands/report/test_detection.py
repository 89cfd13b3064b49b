"""What a report says of detectors: the numbers of COCO's tools, and where detections are wrong."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swinv2_tasks.cli.main import main
from swinv2_tasks.commands.report.detection import evaluation_sections
from swinv2_tasks.commands.report.run import read_run
from swinv2_tasks.errors import UserError
from tests.helpers.objects import CATEGORIES
from tests.helpers.reported import block, examples, picture_bytes, rows

FILES = ("val_classes.json", "val_curves.json", "val_truth.json", "val_detections.json")


@pytest.fixture(scope="module")
def detected(trained_run: Callable[[str], Path]) -> Path:
    return trained_run("mask_rcnn")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"val_{name}.json").read_text())


def copy_of(folder: Path, target: Path) -> Path:
    """A copy of what a report reads of a run."""
    target.mkdir(parents=True)
    for name in ("config.yaml", *FILES):
        shutil.copy(folder / name, target)
    return target


def test_its_numbers_are_those_of_the_files_to_the_last_digit(detected: Path) -> None:
    sections = evaluation_sections(read_run(detected), "val")
    scores, curves, truth = read(detected, "classes"), read(detected, "curves"), read(detected, "truth")
    for name in ("box", "mask"):
        shown = [row[name] for row in rows(block(sections, "COCO's numbers"))]
        assert shown == [None if value < 0 else value for value in scores[name].values()]

    classes = rows(block(sections, "Classes"))
    of_curves = {row["id"]: row for row in curves["box"]["classes"]}
    assert [row["class"] for row in classes] == list(CATEGORIES.values())
    for row, entry in zip(classes, scores["classes"], strict=True):
        assert (row["box AP"], row["mask AP"]) == (entry["box_ap"], entry["mask_ap"])
        assert row["box AP75"] == of_curves.get(entry["id"], {}).get("ap75")
        objects = [each for each in truth["annotations"] if each["category_id"] == entry["id"] and not each["iscrowd"]]
        assert row["objects"] == len(objects)


def test_the_best_f1_is_that_of_the_detections_it_leaves(detected: Path) -> None:
    """By COCO's own rules, on a file of the detections from that score on."""
    sections = evaluation_sections(read_run(detected), "val")
    (best,) = [row for row in rows(block(sections, "Classes")) if row["class"] == "green disc"]
    results, truth = read(detected, "detections"), read(detected, "truth")
    kept = [row for row in results if row["category_id"] == 5 and row["score"] >= best["from score"]]
    objects = [row for row in truth["annotations"] if row["category_id"] == 5 and not row["iscrowd"]]
    right = round(best["recall"] * len(objects))
    assert best["recall"] == right / len(objects) and best["precision"] == right / len(kept)
    assert best["best F1"] == 2 * right / (len(kept) + len(objects))


def test_examples_are_small_and_name_their_files(detected: Path) -> None:
    sections = evaluation_sections(read_run(detected), "val")
    shown = examples(sections)
    files = {Path(image["file_name"]).name for image in read(detected, "truth")["images"]}
    assert shown and {example.title for example in shown} <= files
    assert picture_bytes(sections) < 2.5e6
    assert len(block(sections, "Worst images").examples[0].pictures) == 2
    assert "gray" not in sections[-1].note


def test_planted_errors_are_the_first_ones_shown(detected: Path, tmp_path: Path) -> None:
    folder = copy_of(detected, tmp_path / "run")
    truth = read(folder, "truth")
    image = truth["images"][1]  # in which there is nothing
    planted = {"image_id": image["id"], "category_id": 90, "bbox": [5.0, 5.0, 30.0, 20.0], "area": 600.0}
    truth["annotations"].append({**planted, "iscrowd": 0, "id": 1000})
    (folder / "val_truth.json").write_text(json.dumps(truth))
    alarm = {"image_id": image["id"], "category_id": 3, "bbox": [40.0, 30.0, 20.0, 25.0], "score": 1.0}
    (folder / "val_detections.json").write_text(json.dumps([*read(folder, "detections"), alarm]))

    sections = evaluation_sections(read_run(folder), "val")
    title = Path(image["file_name"]).name
    first = {name: block(sections, name).examples[0] for name in ("Missed objects", "False alarms", "Worst images")}
    assert {example.title for example in first.values()} == {title}
    assert list(first["Missed objects"].lines) == ["blue bar", "30×20 pixels"]
    assert list(first["False alarms"].lines) == ["red square 100%", "there is no object"]
    assert list(first["Worst images"].lines) == ["1 missed object, 1 false alarm"]


def test_images_that_are_gone_are_gray(detected: Path, tmp_path: Path) -> None:
    folder = copy_of(detected, tmp_path / "run")
    truth = read(folder, "truth")
    truth["info"]["image_folder"] += "/gone"
    (folder / "val_truth.json").write_text(json.dumps(truth))
    sections = evaluation_sections(read_run(folder), "val")
    number = len(examples(sections))
    assert f"{number} images cannot be read any more and are shown gray." in sections[-1].note


@pytest.mark.parametrize("missing", [FILES, FILES[1:], FILES[2:3], FILES[3:]], ids=lambda names: names[0])
def test_what_is_missing_is_said_with_the_command_that_writes_it(
    detected: Path, tmp_path: Path, missing: tuple[str, ...]
) -> None:
    folder = copy_of(detected, tmp_path / "run")
    for name in missing:
        (folder / name).unlink()
    sections = evaluation_sections(read_run(folder), "val")
    assert f"swinv2-tasks validate --ckpt_path {folder}" in sections[0].note
    assert all(name in sections[0].note for name in missing if missing != FILES)
    assert len(sections) == 1 and not examples(sections)


@pytest.mark.parametrize("content", ['[{"image_id": 5}]', '{"a": 1}', "[1]", "no JSON"])
def test_files_that_do_not_fit_are_refused(detected: Path, tmp_path: Path, content: str) -> None:
    folder = copy_of(detected, tmp_path / "run")
    (folder / "val_detections.json").write_text(content)
    with pytest.raises(UserError, match=r"val_detections.json"):
        evaluation_sections(read_run(folder), "val")


def test_curves_of_other_lengths_are_refused(detected: Path, tmp_path: Path) -> None:
    folder = copy_of(detected, tmp_path / "run")
    curves = read(folder, "curves")
    del curves["mask"]["recalls"][5]
    (folder / "val_curves.json").write_text(json.dumps(curves))
    with pytest.raises(UserError, match=r"val_curves\.json is corrupt: in it, mask\.precision\.0"):
        evaluation_sections(read_run(folder), "val")


def test_boundary_ap_is_shown_once_its_command_was_run(detected: Path, tmp_path: Path) -> None:
    folder = copy_of(detected, tmp_path / "run")
    note = block(evaluation_sections(read_run(folder), "val"), "COCO's numbers").note
    command = note[note.index("swinv2-tasks score") : note.index(" (pip install")]
    assert main(shlex.split(command)[1:]) == 0
    sections = evaluation_sections(read_run(folder), "val")
    shown = rows(block(sections, "COCO's numbers"))
    assert shown[0]["boundary"] == read(folder, "boundary")["boundary"]["ap"] <= shown[0]["mask"]
    classes = {row["class"]: row["boundary AP"] for row in rows(block(sections, "Classes"))}
    assert classes == {row["name"]: row["boundary_ap"] for row in read(folder, "boundary")["classes"]}


def test_a_detector_that_detects_nothing_has_scores_alone(detected: Path, tmp_path: Path) -> None:
    folder = copy_of(detected, tmp_path / "run")
    (folder / "val_detections.json").write_text("[]")
    sections = evaluation_sections(read_run(folder), "val")
    assert [section.title for section in sections] == ["Detection"]
    assert {row["best F1"] for row in rows(block(sections, "Classes"))} <= {0.0, None}
