"""What is said of runs with nothing left to do, of those that nothing validates, and of checkpoints that diverged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_tasks.cli.main import main
from swinv2_tasks.weights.runs import checkpoint_of
from tests.helpers.processes import run
from tests.helpers.tiny import write_config, write_images
from tests.helpers.tiny_tasks import TINY_TASKS

EACH_DATA = ["classification", *(pytest.param(name, marks=pytest.mark.slow) for name in ("segmentation", "mask_rcnn"))]
EACH_DATA += [pytest.param(name, marks=pytest.mark.slow) for name in ("video", "simmim")]


def state_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and times of all files."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.fixture
def finished(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of two epochs, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "tiny.yaml", images)
    assert main(["fit", "--config=tiny.yaml"]) == 0
    return Path("runs/tiny/0")


# ---- finished


@pytest.mark.parametrize("arguments", [[], ["--trainer.max_epochs=2"], ["--data.batch_size=3"]])
def test_a_finished_run_is_left_alone(arguments: list[str], finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state_of(finished)
    capsys.readouterr()
    assert main(["fit", "--resume", str(finished), *arguments]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "runs/tiny/0 is finished: 2 epochs, 6 steps; nothing was changed.",
        "To train longer: swinv2-tasks fit --resume runs/tiny/0 --trainer.max_epochs 4",
    ]
    assert state_of(finished) == before


@pytest.mark.slow
def test_a_finished_run_is_trained_longer_as_its_message_says(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "--resume", str(finished)])
    command = capsys.readouterr().out.splitlines()[-1].partition("swinv2-tasks ")[2]
    assert main(command.split()) == 0
    assert torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 12
    assert main(command.split()) == 0
    assert "is finished: 4 epochs, 12 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_one_that_was_to_take_a_number_of_steps_takes_more(
    finished: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ["--trainer.max_steps=2", "--trainer.max_epochs=-1"]
    assert main(["fit", "--config=tiny.yaml", *limits]) == 0
    assert main(["fit", "--resume", "runs/tiny/1"]) == 0
    assert "runs/tiny/1 --trainer.max_steps 4\n" in capsys.readouterr().out


@pytest.mark.slow
def test_each_process_leaves_a_finished_run_alone(finished: Path, tmp_path: Path) -> None:
    done = run(["fit", "--resume", str(finished)], tmp_path, processes=2)
    assert done.status == 0 and done.output.count("is finished") == 1


# ---- without validation


@pytest.mark.parametrize("name", EACH_DATA)
def test_a_fit_without_validation_data_ends_well(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    task = TINY_TASKS[name]
    data = task.write_data(tmp_path / "data")
    config = task.config(tmp_path, data, trainer={"max_epochs": 1})
    remove_validation(data)
    changes = {"simmim": ["--data.train_dir=train", "--data.val_dir=val"], "segmentation": ["--data.background=ignore"]}
    arguments = ["fit", f"--config={config}", *changes.get(name, [])]

    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "There are no validation data" in error and "--trainer.limit_val_batches 0" in error
    assert main([*arguments, "--trainer.limit_val_batches=0"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert any(
        "not validated (trainer.limit_val_batches is 0), so no checkpoint is the best by val/" in line
        for line in output
    )
    command = next(line for line in output if line.startswith("  swinv2-tasks validate --ckpt_path "))
    (checkpoint,) = tmp_path.glob("runs/*/0/checkpoints/last.ckpt")
    assert checkpoint_of(command.split()[-1]).resolve() == checkpoint
    assert (checkpoint.parents[1] / "weights.safetensors").is_file()


def remove_validation(data: Path) -> None:
    for path in [*data.rglob("*val*")]:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


@pytest.mark.slow
def test_a_validation_of_data_that_are_not_there_suggests_no_training(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_images(tmp_path / "mine")
    shutil.rmtree(data / "val")
    assert main(["validate", f"--ckpt_path={finished}/checkpoints/last.ckpt", f"--data.root={data}"]) == 1
    error = capsys.readouterr().err
    assert "There are no validation data" in error and "limit_val_batches" not in error


@pytest.mark.slow
def test_what_watches_a_validation_that_is_not_made_is_named(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = '[{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}}]'
    arguments = ["fit", "--config=tiny.yaml", "--trainer.limit_val_batches=0", f"--trainer.callbacks={stopping}"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "`val/loss`" in error and "raise trainer.limit_val_batches" in error and "Traceback" not in error


# ---- diverged


def spoil(path: Path, part: str) -> None:
    """Puts NaN into the weights or the optimizer's state of a checkpoint."""
    contents: dict[str, Any] = torch.load(path, weights_only=True)
    if part == "weights":
        next(value for value in contents["state_dict"].values() if value.is_floating_point()).fill_(float("nan"))
    else:
        next(iter(contents["optimizer_states"][0]["state"].values()))["exp_avg"].fill_(float("inf"))
    torch.save(contents, path)


@pytest.mark.parametrize("part", ["weights", "optimizer"])
def test_a_resumed_run_passes_over_checkpoints_that_are_not_finite(
    part: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished / "checkpoints"
    (folder / "best.ckpt").unlink()
    previous = torch.load(folder / "previous.ckpt", weights_only=True)["global_step"]
    spoil(folder / "last.ckpt", part)
    capsys.readouterr()

    longer = ["fit", "--resume", str(finished), "--trainer.max_epochs=3"]
    assert main(longer) == 0
    output = capsys.readouterr().out
    assert "last.ckpt is passed over: 1 of its tensors hold NaN or infinite numbers" in output
    assert f"at step {previous} from {folder / 'previous.ckpt'}" in output
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 9

    for path in folder.iterdir():
        spoil(path, part)
    assert main([*longer[:-1], "--trainer.max_epochs=4"]) == 1
    assert "has no intact checkpoint to resume from" in capsys.readouterr().err
