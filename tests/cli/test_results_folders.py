"""Where trainings, evaluations and predictions write: each to a folder of its own, or to what --output names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from swinv2_tasks.cli.main import main
from tests.helpers.broken_files import cut_off
from tests.helpers.processes import start, wait_for
from tests.helpers.runs import from_last, read_scores, read_table, user_error
from tests.helpers.tiny import QUIET, write_config, write_images

QUIETLY = [f"--trainer.{name}={value}" for name, value in QUIET.items()]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, an empty one."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def source(images: Path) -> str:
    return f"--data.source={images / 'val' / 'n01'}"


def names_in(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def visible_in(folder: str) -> list[str]:
    return [name for name in names_in(folder) if not name.startswith(".")]


# ---- in the folder of all runs


@pytest.mark.slow
def test_trainings_are_numbered_and_evaluations_named(
    workplace: Path, images: Path, trained: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", f"--config={write_config(workplace / 'tiny.yaml', images)}", "--trainer.max_epochs=1"]
    again = [from_last(trained), "--name=tiny", *QUIETLY]
    for command, folder, label, shown in (
        (fit, "0", "run", "runs/tiny/0"),
        (["validate", *again], "validate_0", "results", "runs/tiny/validate_0"),
        (["validate", *again], "validate_1", "results", "runs/tiny/validate_1"),
        (["test", *again], "test_0", "results", "runs/tiny/test_0"),
        (["predict", *again, source], "predict_0", "results", "runs/tiny/predict_0/predictions"),
        (fit, "1", "run", "runs/tiny/1"),
        (["predict", *again, source], "predict_1", "results", "runs/tiny/predict_1/predictions"),
    ):
        before = {*Path("runs").glob("*/*")}
        capsys.readouterr()
        assert main(command) == 0
        assert {*Path("runs").glob("*/*")} - before == {Path("runs/tiny", folder)}
        assert [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(f"  {label} ")] == [
            [label, shown]
        ]
    assert read_scores(Path("runs/tiny/validate_0")) == read_scores(Path("runs/tiny/validate_1"))
    assert Path("runs/tiny/predict_1/predictions/predictions.csv").is_file()


def test_numbers_of_others_do_not_count(workplace: Path, trained: Path) -> None:
    for name in ("7", "test_5", "validate_2", "validate_x", "validate"):
        Path("runs/tiny", name).mkdir(parents=True)
    assert main(["validate", from_last(trained), "--name=tiny", *QUIETLY]) == 0
    assert Path("runs/tiny/validate_3/metrics.csv").is_file()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_evaluation_that_fails_leaves_no_folder(
    command: str, workplace: Path, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = failing_arguments(command, tmp_path, trained)
    user_error(capsys, command, *arguments)
    assert names_in(workplace) == []

    assert main(["validate", from_last(trained), "--name=tiny", *QUIETLY]) == 0
    user_error(capsys, command, *arguments)
    assert [str(path) for path in Path("runs").glob("*/*")] == ["runs/tiny/validate_0"]


def failing_arguments(command: str, folder: Path, trained: Path) -> list[str]:
    """Arguments of a command that fails once its folder is there."""
    arguments = [from_last(trained), *QUIETLY]
    if command == "predict":
        (folder / "empty").mkdir()
        return [*arguments, f"--data.source={folder / 'empty'}"]
    data = write_images(folder / "images")
    for path in (data / "val" / "n01").iterdir():
        cut_off(path)
    return [*arguments, f"--data.root={data}", "--data.class_names=null", "--data.faulty_samples=error"]


# ---- where there is no place for runs


@pytest.mark.parametrize("runs", ["runs", "runs/below"])
def test_without_a_place_for_runs_the_options_are_named(
    runs: str, workplace: Path, images: Path, trained: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").write_text("mine")
    for command, *others in (["validate"], ["test"], ["predict", source]):
        message = user_error(capsys, command, from_last(trained), f"--runs={runs}", *others)
        assert f"cannot make a folder for this run in {runs}/tiny: " in message
        assert "--runs" in message and "--output" in message and "\n" not in message
    message = user_error(capsys, "fit", f"--config={write_config(workplace / 'tiny.yaml', images)}", f"--runs={runs}")
    assert f"{runs}/tiny" in message and "--runs" in message and "--output" not in message
    assert Path("runs").read_text() == "mine"


@pytest.mark.parametrize("output", ["out", "a/b/out", "../elsewhere", "."])
@pytest.mark.parametrize("command", ["validate", "test"])
def test_an_evaluation_writes_to_output_alone(
    command: str, output: str, workplace: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").write_text("mine")
    arguments = [command, from_last(trained), f"--output={output}", *QUIETLY]
    assert main(arguments) == 0
    assert f"  results     {output}\n" in capsys.readouterr().out
    scores = read_scores(Path(output), "val" if command == "validate" else "test")
    assert scores
    assert {"config.yaml", "metrics.csv", "run.json"} <= {*names_in(output)}
    assert Path("runs").read_text() == "mine"

    assert main(arguments) == 0  # again, in its place
    assert read_scores(Path(output), "val" if command == "validate" else "test") == scores
    assert len(read_table(Path(output, "metrics.csv"))) == 1


@pytest.mark.slow
def test_a_prediction_shows_its_results_alone_in_output_and_resumes(
    workplace: Path, trained: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").write_text("mine")
    arguments = ["predict", from_last(trained), source, "--output=out", *QUIETLY]
    assert main(arguments) == 0
    assert "  results     out\n" in capsys.readouterr().out
    assert visible_in("out") == ["contact_sheet.png", "gallery.html", "predictions.csv"]
    assert names_in(".") == ["out", "runs"]
    before = read_table(Path("out/predictions.csv"))

    assert main(arguments) == 0
    assert f"out: {len(before)} of {len(before)} files are predicted already\n" in capsys.readouterr().out
    assert read_table(Path("out/predictions.csv")) == before
    assert visible_in("out") == ["contact_sheet.png", "gallery.html", "predictions.csv"]
    record = json.loads(Path("out/.progress/run/run.json").read_text())
    assert [start["arguments"][0] for start in record["starts"]] == ["predict", "predict"]
    assert Path("out/.progress/run/config.yaml").is_file()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_what_fails_leaves_output_as_it_was(
    command: str, workplace: Path, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = failing_arguments(command, tmp_path, trained)
    user_error(capsys, command, *arguments, "--output=a/b")
    assert names_in(workplace) == []

    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    user_error(capsys, command, *arguments, "--output=mine")
    assert names_in("mine") == ["notes.txt"]
    assert names_in(workplace) == ["mine"]


@pytest.mark.slow
def test_a_folder_with_results_of_another_command_is_refused(
    workplace: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, "training")
    metrics = Path("training/metrics.csv").read_bytes()
    message = user_error(capsys, "validate", from_last(trained), "--output=training")
    assert message.endswith("--output: training holds what fit has written; name another folder")
    assert Path("training/metrics.csv").read_bytes() == metrics

    assert main(["validate", from_last(trained), "--output=out", *QUIETLY]) == 0
    message = user_error(capsys, "test", from_last(trained), "--output=out")
    assert "--output: out holds what validate has written" in message
    assert read_scores(Path("out"))


@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_named(
    workplace: Path, trained: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("mine")
    for command, *others in (["validate"], ["test"], ["predict", source]):
        for output in ("file", "file/below"):
            message = user_error(capsys, command, from_last(trained), f"--output={output}", *others)
            assert "file" in message and "--output" in message
    assert names_in(workplace) == ["file"]


def test_two_processes_do_not_write_to_one_output(
    workplace: Path, images: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = {"class_path": "tests.helpers.faults.SlowValidation"}
    config = write_config(workplace / "tiny.yaml", images, data=slow)
    first = start(["validate", f"--config={config}", from_last(trained), "--output=out"], workplace)
    wait_for(Path("validating").exists)
    message = user_error(capsys, "validate", from_last(trained), "--output=out", *QUIETLY)
    assert message.endswith("out is in use by another process, which has not ended")
    assert first.wait().status == 0
    scores = read_scores(Path("out"))

    assert main(["validate", from_last(trained), "--output=out", *QUIETLY]) == 0
    assert read_scores(Path("out")) == scores
