"""What a report says of segmentation: the numbers of the run's files, and the worst images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swinv2_tasks.commands.report.run import read_run
from swinv2_tasks.commands.report.segmentation import evaluation_sections
from swinv2_tasks.errors import UserError
from swinv2_tasks.tables import read_table
from tests.helpers.reported import block, examples, picture_bytes, rows
from tests.helpers.runs import evaluate, from_last


@pytest.fixture(scope="module")
def evaluation(trained_run: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluate(tmp_path_factory.mktemp("evaluated"), from_last(trained_run("segmentation")))


@pytest.fixture
def copied(evaluation: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluation, tmp_path / "run"))


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_its_numbers_are_those_of_the_files_to_the_last_digit(evaluation: Path) -> None:
    sections = evaluation_sections(read_run(evaluation), "val")
    scores, boundary = read(evaluation, "val_classes.json"), read(evaluation, "val_boundary.json")
    numbers = {number.name: number.value for number in block(sections, "Scores").numbers}
    assert numbers == {
        "mIoU": scores["miou"],
        "mean accuracy": scores["mean_accuracy"],
        "pixel accuracy": scores["pixel_accuracy"],
        "mean boundary IoU": boundary["mean_boundary_iou"],
    }
    pixels = sum(row["pixels"] for row in scores["classes"])
    for row, entry, near in zip(rows(block(sections, "Classes")), scores["classes"], boundary["classes"], strict=True):
        assert [*row.values()] == [
            *(entry["name"], entry["iou"], near["boundary_iou"], entry["accuracy"], entry["pixels"] / pixels),
        ]

    confusion = read(evaluation, "val_confusion.json")
    pairs = rows(block(sections, "Most confused classes"))
    for row in pairs:
        true, predicted = (confusion["classes"].index(row[name]) for name in ("true", "predicted"))
        assert row["pixels"] == confusion["counts"][true][predicted]
        assert row["share of the true class"] == row["pixels"] / sum(confusion["counts"][true])
    wrong = sum(count for k, counts in enumerate(confusion["counts"]) for j, count in enumerate(counts) if j != k)
    assert sum(row["pixels"] for row in pairs) == wrong

    images = {Path(row["file"]).name: row for row in read_table(evaluation / "val_images.csv")}
    for row in rows(block(sections, "Images")):
        expected = images[row["image"]]
        assert (str(row["mIoU"]), str(row["pixel accuracy"])) == (expected["miou"], expected["pixel_accuracy"])


def test_the_worst_images_come_with_their_errors(evaluation: Path) -> None:
    sections = evaluation_sections(read_run(evaluation), "val")
    worst = read(evaluation / "val_worst", "worst.json")
    shown = examples(sections)
    assert [example.title for example in shown] == [Path(entry["file"]).name for entry in worst]
    assert {len(example.pictures) for example in shown} == {4}
    assert picture_bytes(sections) < 2.5e6 and sections[-1].note == ""


def test_images_that_are_gone_are_gray(copied: Path) -> None:
    worst = read(copied / "val_worst", "worst.json")
    worst[0]["file"] = str(copied / "gone.jpg")
    (copied / "val_worst" / "worst.json").write_text(json.dumps(worst))
    sections = evaluation_sections(read_run(copied), "val")
    assert sections[-1].note == "1 image cannot be read any more and is shown gray."


def test_what_is_missing_is_said_with_the_command_that_writes_it(copied: Path) -> None:
    for name in ("val_boundary.json", "val_confusion.json", "val_images.csv", "val_worst/worst.json"):
        (copied / name).unlink()
    (section,) = evaluation_sections(read_run(copied), "val")
    assert section.note == (
        f"swinv2-tasks validate --ckpt_path {copied} measures boundary IoU and the confusion matrix and the worst "
        "images as well."
    )
    (copied / "val_classes.json").unlink()
    (section,) = evaluation_sections(read_run(copied), "val")
    assert section.note == f"There is no val_classes.json: swinv2-tasks validate --ckpt_path {copied} writes it."


@pytest.mark.parametrize("counts", [[[1, 2, 3, 0]] * 2, [[1, 2, 3, 0], [1], [2]], [[-1, 2, 3, 0]] * 3, 5], ids=str)
def test_counts_of_other_classes_are_refused(copied: Path, counts: Any) -> None:
    content = {**read(copied, "val_confusion.json"), "counts": counts}
    (copied / "val_confusion.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"val_confusion\.json is corrupt: in it, counts"):
        evaluation_sections(read_run(copied), "val")


@pytest.mark.parametrize("name", ["val_images.csv", "val_confusion.json", "val_worst/01_truth.png"])
def test_files_that_cannot_be_read_are_refused(copied: Path, name: str) -> None:
    (copied / name).write_text("file,miou\nx,y\n")
    with pytest.raises(UserError, match=name.rpartition("/")[2]):
        evaluation_sections(read_run(copied), "val")
