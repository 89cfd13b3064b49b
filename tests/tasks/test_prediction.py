"""Predictions of every task: nothing that was predicted is lost, bad files are listed, a rerun resumes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swinv2_tasks.cli.main import main
from tests.helpers.motions import write_motions
from tests.helpers.processes import run
from tests.helpers.runs import fit, last_checkpoint, read_table
from tests.helpers.tiny_tasks import ON_ONE_DETECTOR, TINY_TASKS

ON_IMAGES = [task for task in ON_ONE_DETECTOR if task != "video"]


@pytest.fixture(scope="module")
def checkpoint(dataset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a task, by its name, that was trained for one step; made once."""
    one_step = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}

    @cache
    def train(task: str) -> Path:
        folder = tmp_path_factory.mktemp(task)
        config = TINY_TASKS[task].config(folder, dataset(task), trainer=one_step)
        return last_checkpoint(fit(config, folder / "runs"))

    return train


def write_source(folder: Path, task: str, number: int = 7) -> Path:
    """Files to predict, of which number 2 cannot be read."""
    folder.mkdir()
    if task == "video":
        videos = sorted((write_motions(folder.parent / "motions", train=1) / "val").glob("*.mp4"))
        for k, video in zip(range(number), itertools.cycle(videos), strict=False):
            shutil.copy(video, folder / f"{k}.mp4")
        (folder / "2.mp4").write_bytes(b"no video")
        return folder
    rng = np.random.default_rng(0)
    for k in range(number):
        pixels = rng.integers(0, 256, (40 + k, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.jpg")
    content = (folder / "2.jpg").read_bytes()
    (folder / "2.jpg").write_bytes(content[: len(content) // 2])
    return folder


def command(checkpoint: Path, source: Path, out: Path, *arguments: str) -> list[str]:
    runs = f"--runs={out.parent / 'runs'}"
    return ["predict", f"--ckpt_path={checkpoint}", f"--data.source={source}", f"--output={out}", runs, *arguments]


def table(out: Path) -> list[dict[str, str]]:
    return read_table(out / "predictions.csv")


def results(out: Path) -> dict[str, bytes]:
    """All that was predicted, by file, without the folder's own name, which is the gallery's title."""
    files = [path for path in out.rglob("*") if path.is_file() and ".progress" not in path.parts]
    return {str(path.relative_to(out)): path.read_bytes().replace(str(out).encode(), b"") for path in files}


@pytest.mark.parametrize(
    "task",
    [task if task == "classification" else pytest.param(task, marks=pytest.mark.slow) for task in ON_ONE_DETECTOR],
)
def test_bad_files_are_listed_and_the_others_predicted(
    task: str, checkpoint: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint(task)
    source, out = write_source(tmp_path / "source", task), tmp_path / "out"
    capfd.readouterr()
    assert main(command(model, source, out)) == 1
    rows = table(out)
    assert [Path(row["path"]).stem for row in rows] == [str(k) for k in range(7)]
    assert [bool(row["error"]) for row in rows] == [k == 2 for k in range(7)]
    for row in rows:
        filled = [
            cell for name, cell in row.items() if name not in ("path", "error") and not name.startswith("objects")
        ]
        assert all(filled) if not row["error"] else not any(filled)
    errors = capfd.readouterr().err
    assert "1 of 7 files could not be predicted" in errors
    assert errors.count(str(source / Path(rows[2]["path"]).name)) == 1  # named once
    assert "Traceback" not in errors

    # What is done is not predicted again, and a file that was mended is.
    first = results(out)
    assert main(command(model, source, out)) == 1
    assert "6 of 7 files are predicted already" in capfd.readouterr().out
    assert results(out) == first
    bad = Path(rows[2]["path"])
    shutil.copy(bad.with_stem("3"), bad)
    assert main(command(model, source, out)) == 0
    assert not any(row["error"] for row in table(out))
    assert {name for name in first if name != "predictions.csv"} <= results(out).keys()


@pytest.mark.parametrize(
    "task",
    [task if task == "classification" else pytest.param(task, marks=pytest.mark.slow) for task in ON_ONE_DETECTOR],
)
def test_a_prediction_that_is_killed_resumes(task: str, checkpoint: Any, tmp_path: Path) -> None:
    model = checkpoint(task)
    source = write_source(tmp_path / "source", task, number=20)
    batches = "--data.batch_size=3"
    assert main(command(model, source, tmp_path / "whole", batches)) == 1

    out = tmp_path / "out"
    kill = "--trainer.callbacks+=tests.helpers.faults.SignalInPrediction"
    assert run(command(model, source, out, batches, kill), tmp_path).status == -signal.SIGKILL
    before, whole = table(out), table(tmp_path / "whole")  # valid at any moment
    assert before == whole[: len(before)] and 1 <= len(before) < 20
    with (out / ".progress" / "0.jsonl").open("a") as file:
        file.write('[{"path": "cut o')
    assert main(command(model, source, out, batches)) == 1
    assert results(out) == results(tmp_path / "whole")


@pytest.mark.parametrize("task", ["classification", pytest.param("mask_rcnn", marks=pytest.mark.slow)])
def test_records_with_odd_details_are_predicted_again(task: str, checkpoint: Any, tmp_path: Path) -> None:
    source, out = write_source(tmp_path / "source", task), tmp_path / "out"
    (source / "2.jpg").unlink()
    assert main(command(checkpoint(task), source, out)) == 0
    first = results(out)

    odd = [[[10**6], [0.5]], [[0], ["x"]], [[0]], [{"score": "x"}], 3, None]
    path = out / ".progress" / "0.jsonl"
    records = [record for line in path.read_text().splitlines() for record in json.loads(line)]
    for record, details in zip(records, odd, strict=True):
        record["details"] = details
    path.write_text(json.dumps(records) + "\n")
    (out / ".progress" / "done.jsonl").write_text("")
    assert main(command(checkpoint(task), source, out)) == 0
    assert results(out) == first


@pytest.mark.slow
def test_a_file_that_ends_its_worker_is_named_and_without_it_the_same_command_resumes(
    checkpoint: Any, dataset: Callable[[str], Path], tmp_path: Path
) -> None:
    model = checkpoint("classification")
    source = write_source(tmp_path / "source", "classification", number=8)
    deadly = source / "n02_3.jpg"  # after the others in natural order
    shutil.copy(source / "7.jpg", deadly)
    classes = {"class_path": "tests.helpers.faults.DeadlyImages", "init_args": {"num_workers": 1, "batch_size": 2}}
    config = TINY_TASKS["classification"].config(tmp_path, dataset("classification"), data=classes)
    out = tmp_path / "out"
    name, *rest = command(model, source, out)
    arguments = [name, f"--config={config}", *rest]

    died = run(arguments, tmp_path)
    assert died.status == 1
    (line,) = [line for line in died.errors.splitlines() if line.startswith("swinv2-tasks: ")]
    assert f"while it read {deadly}" in line and "move it out of data.source and run the same command again" in line
    before = table(out)
    assert before and all(row["path"] != str(deadly) for row in before)

    deadly.rename(tmp_path / "elsewhere.jpg")
    again = run(arguments, tmp_path)
    assert again.status == 1 and "1 of 8 files could not be predicted" in again.errors  # the one that is cut off
    assert "of 8 files are predicted already" in again.output and len(table(out)) == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_predicted(number: int, checkpoint: Any, tmp_path: Path) -> None:
    model = checkpoint("mask_rcnn")
    source, out = write_source(tmp_path / "source", "mask_rcnn", number=20), tmp_path / "out"
    signals = ["--trainer.callbacks+=tests.helpers.faults.SignalInPrediction", f"--trainer.callbacks.number={number}"]
    done = run(command(model, source, out, *signals), tmp_path)
    assert done.status == 128 + number, done.errors
    assert "what it predicted is kept" in done.errors
    rows = table(out)
    predicted = sum(not row["error"] for row in rows)
    assert 2 <= predicted < 20
    assert f"{predicted} of 20 files are predicted" in done.output
    ids = {entry["image_id"] for entry in json.loads((out / "detections.json").read_text())}
    assert ids <= {int(row["image_id"]) for row in rows if not row["error"]}


@pytest.mark.slow
@pytest.mark.parametrize("task", ON_ONE_DETECTOR)
def test_two_processes_resume_one_and_write_the_same(task: str, checkpoint: Any, tmp_path: Path) -> None:
    model = checkpoint(task)
    source = write_source(tmp_path / "source", task, number=11)
    assert main(command(model, source, tmp_path / "whole")) == 1
    done = run(command(model, source, tmp_path / "two"), tmp_path, 2)
    assert done.status == 1 and "1 of 11 files could not be predicted" in done.errors
    assert results(tmp_path / "two") == results(tmp_path / "whole")

    out = tmp_path / "out"
    assert main(command(model, source, out, "--trainer.limit_predict_batches=4", "--data.batch_size=2")) in (0, 1)
    done = run(command(model, source, out, "--data.batch_size=2"), tmp_path, 2)
    assert done.status == 1 and "are predicted already" in done.output
    assert main(command(model, source, tmp_path / "small", "--data.batch_size=2")) == 1
    assert results(out) == results(tmp_path / "small")


@pytest.mark.slow
def test_results_of_another_model_or_of_other_settings_are_replaced(
    checkpoint: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint("segmentation")
    source, out = write_source(tmp_path / "source", "segmentation"), tmp_path / "out"
    assert main(command(model, source, out)) == 1
    first = results(out)
    capfd.readouterr()
    (source / "6.jpg").unlink()
    assert main(command(model, source, out, "--data.resize=[96,48]")) == 1
    assert "made with other settings (data.resize): they are replaced" in capfd.readouterr().out
    assert results(out).keys() == first.keys() - {"labels/6.png", "overlays/6.png"}
    assert main(command(model, source, tmp_path / "new", "--data.resize=[96,48]")) == 1
    assert results(out) == results(tmp_path / "new")

    import torch

    contents = torch.load(model, weights_only=True)
    for value in contents["state_dict"].values():
        if value.is_floating_point():
            value += 0.1
    torch.save(contents, tmp_path / "other.ckpt")
    capfd.readouterr()
    assert main(command(tmp_path / "other.ckpt", source, out, "--data.resize=[96,48]")) == 1
    printed = capfd.readouterr().out
    assert "of another model: they are replaced" in printed and "already" not in printed


@pytest.mark.slow
def test_a_file_that_was_changed_is_predicted_again(checkpoint: Any, tmp_path: Path) -> None:
    model = checkpoint("classification")
    source, out = write_source(tmp_path / "source", "classification"), tmp_path / "out"
    assert main(command(model, source, out)) == 1
    shutil.copy(source / "5.jpg", source / "4.jpg")
    assert main(command(model, source, out)) == 1
    rows = table(out)
    assert rows[4] == {**rows[5], "path": rows[4]["path"]}


NAMES = [
    b"a.jpg", b"a.png", b"a.jpg.png", b"a.jpg.png.png", b"A.png", b"caf\xe9.png", b"$x$ $\\frac{.png", b"l\nx.png",
    b"\x1b[31mred.png", b"[red]b[/].png", b"*?.png", b"x" * 251 + b".png", b"x" * 250 + b".jpeg", b"y" * 251 + b".bmp",
    "日本語".encode() * 27 + b".png", b"a.png.d/a.jpg", b"b.png/c.jpg", b"b.jpg", b"-.jpg", b"a .. .png", b"no ending",
]  # fmt: skip


@pytest.mark.parametrize("task", ON_IMAGES)
def test_any_name_has_a_place_of_its_own(
    task: str, checkpoint: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint(task)
    source, out = tmp_path / "source[1]", tmp_path / "out $a$ [b]"
    for k, name in enumerate(NAMES):
        path = os.path.join(os.fsencode(source), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Image.new("RGB", (40, 36), (10 * k, 20, 30)).save(tmp_path / "image.png")
        shutil.copy(tmp_path / "image.png", path)
    expected = len(NAMES) - 1  # one has no image's ending
    capfd.readouterr()
    assert main(command(model, source, out)) == 0
    rows = table(out)
    assert len(rows) == expected and not any(row["error"] for row in rows)
    assert f"{expected} predictions: " in capfd.readouterr().out
    paths = [os.path.join(source, os.fsdecode(name)) for name in NAMES if name != b"no ending"]
    assert sorted(row["path"] for row in rows) == sorted(paths)
    for folder in ("labels", "overlays", "visualizations"):
        if (out / folder).exists():
            written = [path for path in (out / folder).rglob("*") if path.is_file()]
            assert len(written) == len({str(path).casefold() for path in written}) == expected
    if task == "classification":
        assert Image.open(out / "contact_sheet.png").width > 400


@pytest.mark.parametrize(
    "task", [name if name == "segmentation" else pytest.param(name, marks=pytest.mark.slow) for name in ON_ONE_DETECTOR]
)
def test_the_folder_is_proven_writable_before_the_work(
    task: str, checkpoint: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint(task)
    source = write_source(tmp_path / "source", task)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / ".progress").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "a" / "b", Path("/dev/full"), tmp_path / "taken"):
        capfd.readouterr()
        assert main(command(model, source, output, f"--runs={tmp_path / 'runs'}")) == 1
        output, errors = capfd.readouterr()
        assert "predictions cannot go to" in errors and "is a file" in errors and "--output" in errors
        assert "backbone" not in output  # not even the weights were read
    assert main(command(model, source, Path("/proc/nowhere"), f"--runs={tmp_path / 'runs'}")) == 1
    assert "predictions cannot go to /proc/nowhere" in capfd.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
    assert os.listdir(tmp_path / "taken") == [".progress"]
    assert not any(tmp_path.glob("runs/*/*"))


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_what_is_predicted(checkpoint: Any, tmp_path: Path) -> None:
    model = checkpoint("segmentation")
    source, out = write_source(tmp_path / "source", "segmentation", number=30), tmp_path / "out"
    large = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(large).save(source / "9.jpg")  # its overlay takes more than there is room
    done = run(command(model, source, out, "--trainer.callbacks+=tests.helpers.faults.FullDisk"), tmp_path)
    assert done.status == 1
    assert (
        "cannot be written: File too large" in done.errors
        and "what was predicted before is kept" in done.errors.lower()
    )
    assert "Traceback" not in done.errors
    assert [Path(row["path"]).stem for row in table(out)] == [str(k) for k in range(9)]
    assert main(command(model, source, out)) == 1
    assert main(command(model, source, tmp_path / "whole")) == 1
    assert results(out) == results(tmp_path / "whole")


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_error_when_asked_for_stops_and_keeps(
    task: str, checkpoint: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint(task)
    source, out = write_source(tmp_path / "source", task), tmp_path / "out"
    stop = ["--data.faulty_samples=error", "--data.batch_size=1"]
    assert main(command(model, source, out, *stop)) == 1
    assert [Path(row["path"]).stem for row in table(out)] == ["0", "1"]
    printed = capfd.readouterr()
    assert "2.jpg" in printed.err and "2 of 7 files are predicted" in printed.out
    budget = ["--data.faulty_budget=0", "--data.batch_size=1"]
    assert main(command(model, source, tmp_path / "other", *budget)) == 1
    assert "faulty_budget allows 0" in capfd.readouterr().err
    assert len(table(tmp_path / "other")) >= 2


def test_nothing_that_can_be_read_is_a_table_of_reasons(
    checkpoint: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for k in range(60):
        (source / f"{k}.png").write_bytes(b"no image")
    assert main(command(checkpoint("classification"), source, tmp_path / "out")) == 1
    printed = capfd.readouterr()
    assert "60 of 60 files could not be predicted" in printed.err and "and 10 more" in printed.err
    assert [bool(row["error"]) for row in table(tmp_path / "out")] == [True] * 60
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("task", ON_IMAGES)
def test_strips_are_predicted_or_refused_in_little_memory(task: str, checkpoint: Any, tmp_path: Path) -> None:
    model = checkpoint(task)
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for name, size in (("0", (1, 20_000)), ("1", (20_000, 1)), ("2", (40, 36)), ("3", (1, 1))):
        Image.new("RGB", size, "red").save(source / f"{name}.png")
    crop = ["--data.crop_pct=0.875"] if task in ("classification", "simmim") else []
    done = run(command(model, source, out, *crop, "--trainer.callbacks+=tests.helpers.faults.LittleMemory"), tmp_path)
    assert "Traceback" not in done.errors and done.status in (0, 1), done.errors
    rows = table(out)
    assert len(rows) == 4 and not rows[2]["error"]
    assert done.status == any(row["error"] for row in rows)
    assert all("memory" not in row["error"] for row in rows)


def test_a_run_without_a_folder_of_its_own_keeps_what_it_predicted(checkpoint: Any, tmp_path: Path) -> None:
    model = checkpoint("classification")
    source = write_source(tmp_path / "source", "classification")
    arguments = [f"--ckpt_path={model}", f"--data.source={source}", f"--runs={tmp_path / 'runs'}"]
    assert main(["predict", *arguments, "--data.faulty_samples=error", "--data.batch_size=1"]) == 1
    (out,) = tmp_path.glob("runs/*/*/predictions")
    assert len(table(out)) == 2
