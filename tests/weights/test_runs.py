"""The checkpoint that a run's folder stands for: the best one, of the newest training of a name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from swinv2_tasks import load_weights
from swinv2_tasks.cli.main import main
from swinv2_tasks.errors import UserError
from swinv2_tasks.weights.runs import command_of, find_checkpoint, find_training, is_checkpoint, is_run
from tests.helpers.runs import fit, read_scores, user_error
from tests.helpers.tiny import QUIET, new_task, write_config

QUIETLY = [f"--trainer.{name}={value}" for name, value in QUIET.items()]


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two trainings of a name in ``runs/tiny``: the best checkpoints are of different epochs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "runs/tiny/9")
    shutil.copytree(trained, "runs/tiny/10")
    return tmp_path


def epoch_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["epoch"])


def best_epoch(run: Path) -> int:
    return int(json.loads((run / "summary.json").read_text())["best_metrics"]["epoch"])


# ---- which one


def test_a_run_stands_for_its_best_checkpoint(runs: Path) -> None:
    path, message = find_checkpoint(Path("runs/tiny/9"))
    assert path == Path("runs/tiny/9/checkpoints/best.ckpt")  # not that of the folder which it was copied from
    assert epoch_of(path) == best_epoch(Path("runs/tiny/9"))
    assert message == "runs/tiny/9: taking its best checkpoint, runs/tiny/9/checkpoints/best.ckpt"


def test_a_name_stands_for_its_newest_training(runs: Path) -> None:
    """By number, not by time or by text, and without evaluations and trainings that have no checkpoint yet."""
    os.utime("runs/tiny/9")
    for folder in ("11/checkpoints", "validate_12/checkpoints", "predict_3", "sweep"):
        Path("runs/tiny", folder).mkdir(parents=True)
    path, message = find_checkpoint(Path("runs/tiny"))
    assert path == Path("runs/tiny/10/checkpoints/best.ckpt")
    assert message == "runs/tiny: taking its best checkpoint, runs/tiny/10/checkpoints/best.ckpt"


@pytest.mark.parametrize("dirpath", [None, "kept"])
def test_the_best_one_is_found_whatever_it_is_called(
    dirpath: str | None, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"filename": "epoch-{epoch}", "save_top_k": 2, "dirpath": dirpath}
    config = write_config(tmp_path / "tiny.yaml", images, checkpoint=named, trainer={"max_epochs": 4})
    run = fit(config, Path("runs"))
    expected = Path(json.loads((run / "summary.json").read_text())["best_checkpoint"])
    assert expected.name == f"epoch-{best_epoch(run)}.ckpt"

    path, _ = find_checkpoint(run)
    assert path.resolve() == expected
    assert epoch_of(path) == best_epoch(run)

    moved = shutil.move("runs", "elsewhere")
    path, _ = find_checkpoint(Path(moved) / "tiny")
    assert (path.parent == Path("elsewhere/tiny/0/checkpoints")) == (dirpath is None)
    assert epoch_of(path) == int(path.stem.removeprefix("epoch-"))


def test_without_a_validation_the_last_one_is_taken_and_said_so(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = fit(write_config(tmp_path / "tiny.yaml", images), Path("runs"), "--trainer.limit_val_batches=0")
    path, message = find_checkpoint(run)
    assert path == run / "checkpoints" / "last.ckpt"
    assert "none of its checkpoints is the best" in message
    assert message.endswith(f"taking the last one, {path}")
    assert "\n" not in message


def test_what_is_corrupt_or_gone_is_passed_over(runs: Path) -> None:
    checkpoints = Path("runs/tiny/10/checkpoints")
    last = checkpoints / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    assert find_checkpoint(Path("runs/tiny"))[0] == checkpoints / "best.ckpt"

    (checkpoints / "best.ckpt").unlink()
    path, message = find_checkpoint(Path("runs/tiny"))
    assert path == checkpoints / "previous.ckpt"
    assert "its best checkpoint is gone" in message

    (checkpoints / "previous.ckpt").unlink()
    assert find_checkpoint(Path("runs/tiny"))[0] == Path("runs/tiny/10/weights.safetensors")

    Path("runs/tiny/10/weights.safetensors").unlink()
    with pytest.raises(UserError, match="none of the checkpoints in runs/tiny/10/checkpoints can be read"):
        find_checkpoint(Path("runs/tiny"))


# ---- what is no run


def test_files_and_folders_of_weights_are_what_they_were(runs: Path) -> None:
    Path("face").mkdir()
    Path("face/model.safetensors.index.json").touch()
    Path("last.ckpt").mkdir()
    Path("sharded").mkdir()
    Path("sharded/rest.pt").touch()
    for name in ("face", "last.ckpt", "sharded", "runs/tiny/9/checkpoints/best.ckpt", "missing.ckpt", "x.safetensors"):
        assert is_checkpoint(Path(name)), name
        assert not is_run(Path(name)), name


def test_the_runs_that_are_there_are_listed(runs: Path) -> None:
    for folder, fault, runs_there in (
        ("runs/tiny/3", "there is no run runs/tiny/3", "there are: runs/tiny/9, runs/tiny/10"),
        ("runs/other", "there is no run runs/other", "there is: runs/tiny"),
        ("tiny", "there is no run tiny", "there is: runs/tiny"),
        ("runs", "runs is no run, and holds no training with a checkpoint", "there is: runs/tiny"),
        (
            "runs/tiny/9/checkpoints",
            "runs/tiny/9/checkpoints is no run, and holds no training with a checkpoint",
            "there is: runs/tiny/9",
        ),
    ):
        with pytest.raises(UserError) as error:
            find_training(Path(folder))
        assert str(error.value) == f"{fault}; {runs_there}"


def test_of_many_runs_some_are_named(runs: Path) -> None:
    for number in range(12):
        folder = Path(f"runs/name{number:02}/0/checkpoints/last.ckpt")
        folder.parent.mkdir(parents=True)
        folder.touch()
    with pytest.raises(UserError) as error:
        find_training(Path("runs/other"))
    assert "runs/name00, runs/name01" in str(error.value)
    assert str(error.value).endswith("runs/name09 and 3 more")


def test_where_there_are_none_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no run runs/other; there are none; train one with swinv2-tasks fit"):
        find_training(Path("runs/other"))


def test_a_record_that_is_none_names_no_command(tmp_path: Path) -> None:
    for text in ("", "[]", '{"starts": []}', '{"starts": [{"arguments": []}]}', "null"):
        (tmp_path / "run.json").write_text(text)
        assert command_of(tmp_path) is None


# ---- on the command line


@pytest.mark.slow
def test_commands_take_the_folder_of_a_run(runs: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = "runs/tiny/10/checkpoints/best.ckpt"
    line = f"runs/tiny: taking its best checkpoint, {best}\n"
    for command, *others in (
        ["validate"],
        ["test"],
        ["predict", f"--data.source={images / 'val' / 'n01'}"],
        ["sweep", "--settings=4@32", "--output=sweep"],
    ):
        capsys.readouterr()
        assert main([command, "--ckpt_path=runs/tiny", *QUIETLY, *others]) == 0
        assert capsys.readouterr().out.count(line) == 1, command
    assert json.loads(Path("sweep/sweep.json").read_text())["checkpoint"] == best

    capsys.readouterr()
    assert main(["validate", f"--ckpt_path={best}", *QUIETLY]) == 0
    assert "taking" not in capsys.readouterr().out  # a file needs no word


def test_a_config_may_name_the_folder_of_a_run(runs: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(Path("tiny.yaml"), images, ckpt_path="runs/tiny/9")
    assert main(["validate", f"--config={config}", "--name=again"]) == 0
    assert "taking its best checkpoint, runs/tiny/9/checkpoints/best.ckpt\n" in capsys.readouterr().out
    (evaluation,) = Path("runs/again").iterdir()
    summary = json.loads(Path("runs/tiny/9/summary.json").read_text())
    assert read_scores(evaluation)["val/loss"] == summary["best_metrics"]["val/loss"]


def test_weights_commands_take_the_folder_of_a_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["inspect", "runs/tiny"], ["convert", "runs/tiny/9", "timm.pth", "--format=timm"]):
        assert main(["weights", *command]) == 0
        assert capsys.readouterr().out.startswith(f"{command[1]}: taking its best checkpoint, runs/tiny/")


def test_weights_are_loaded_from_the_folder_of_a_run(runs: Path) -> None:
    report = load_weights(new_task(), "runs/tiny")
    assert report.source == "runs/tiny/10/checkpoints/best.ckpt"
    assert not report.randomly_initialized


def test_a_training_starts_from_weights_of_a_run_and_does_not_guess_a_checkpoint(
    runs: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(Path("tiny.yaml"), images)
    assert main(["fit", f"--config={config}", "--model.weights=runs/tiny", "--trainer.max_epochs=1"]) == 0
    assert "runs/tiny: taking its best checkpoint, runs/tiny/10/checkpoints/best.ckpt\n" in capsys.readouterr().out

    message = user_error(capsys, "fit", f"--config={config}", "--ckpt_path=runs/tiny/9")
    assert "as in runs/tiny/9/checkpoints/last.ckpt" in message
    assert "--resume runs/tiny/9" in message


def test_the_folder_of_an_evaluation_holds_no_checkpoint(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--ckpt_path=runs/tiny/9", "--name=tiny", *QUIETLY]) == 0
    (evaluation,) = [path for path in Path("runs/tiny").iterdir() if path.name not in ("9", "10")]
    message = user_error(capsys, "validate", f"--ckpt_path={evaluation}")
    assert f"{evaluation} was made by validate, which leaves no checkpoint" in message
    assert "there are: runs/tiny/9, runs/tiny/10" in message
