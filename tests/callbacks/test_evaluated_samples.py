"""On how many samples a score rests, in every task: said beside the score, with the names of those left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules import SimMIMDataModule
from tests.helpers import photos, tiny
from tests.helpers.broken_files import cut_off
from tests.helpers.processes import run
from tests.helpers.tiny_tasks import TINY_TASKS

EVALUATED = {
    "classification": ("val/n02/n02_1.jpg", 12),
    "segmentation": ("images/validation/scene_2.jpg", 5),
    "mask_rcnn": ("val2017/val_3.jpg", 5),
    "video": ("val/val000002___000000_000001.mp4", 8),
    "simmim": ("", 6),
}
"""Of each task the evaluated file that will be cut off, and how many are evaluated."""


def write_spoiled(name: str, folder: Path) -> tuple[Path, Path, int]:
    """A config, a file that cannot be read any more, and the number of files."""
    task = TINY_TASKS[name]
    root = task.write_data(folder / "data")
    file, number = EVALUATED[name]
    path = root / file if file else Path(photos_of(root)[1])  # every so many-th of the photos is evaluated
    return task.config(folder, root), cut_off(path), number


def photos_of(root: Path) -> list[str]:
    data = SimMIMDataModule(str(root), **photos.DATA)
    data.setup("validate")
    return [data.val_dataset.sample_id(k) for k in range(6)]  # type: ignore[union-attr]


def read_samples(folder: Path, split: str) -> dict[str, Any]:
    return json.loads(next(folder.rglob(f"{split}_samples.json")).read_text())


@pytest.mark.parametrize(
    "task",
    [pytest.param(task, marks=pytest.mark.slow) if task in ("segmentation", "video") else task for task in EVALUATED],
)
def test_what_an_evaluation_left_out_is_named_beside_the_score(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, bad, number = write_spoiled(task, tmp_path)
    for command, split in (("validate", "val"), ("test", "test")):  # of videos, testing reads six views
        arguments = [command, f"--config={config}", f"--runs={tmp_path / command}"]
        assert main(arguments) == 1
        assert str(bad) in capsys.readouterr().err  # by default it stops
        assert main([*arguments, "--data.faulty_samples=skip"]) == 0
        errors = capsys.readouterr().err
        assert f"{split}: the scores are of {number - 1} of {number} samples; left out" in errors
        assert str(bad) in errors.partition("left out")[2]
        record = read_samples(tmp_path / command, split)
        assert (record["scored"], record["of"], [*record["left_out"]]) == (number - 1, number, [str(bad)])


def test_a_training_says_it_once_and_keeps_it_beside_the_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, bad, _ = write_spoiled("classification", tmp_path)
    arguments = ["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}", "--data.faulty_samples=skip"]
    assert main([*arguments, "--trainer.max_epochs=3"]) == 0
    assert capsys.readouterr().err.count("the scores are of 11 of 12 samples") == 1
    assert [*read_samples(tmp_path / "runs", "val")["left_out"]] == [str(bad)]


def test_whole_data_leave_nothing_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny.write_config(tmp_path / "config.yaml", tiny.write_images(tmp_path / "data"))
    arguments = ["validate", f"--config={config}", f"--runs={tmp_path / 'runs'}"]
    assert main([*arguments, "--name=strict"]) == 0
    assert not [*(tmp_path / "runs").rglob("val_samples.json")]
    assert main([*arguments, "--data.faulty_samples=skip", "--trainer.limit_val_batches=1"]) == 0
    assert read_samples(tmp_path / "runs", "val") == {"scored": 6, "of": 6, "left_out": {}}
    assert "the scores are of" not in capsys.readouterr().err


@pytest.mark.slow
def test_processes_count_together(tmp_path: Path) -> None:
    config, bad, number = write_spoiled("mask_rcnn", tmp_path)
    done = run(["validate", f"--config={config}", "--data.faulty_samples=skip"], tmp_path, processes=2)
    assert done.status == 0, done.errors
    assert done.errors.count(f"the scores are of {number - 1} of {number} samples") == 1
    assert [*read_samples(tmp_path / "runs", "val")["left_out"]] == [str(bad)]
