"""What a run leaves behind: how it was started, what happened, what came out."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from swinv2_tasks.cli.main import main
from swinv2_tasks.text import show_warnings
from swinv2_tasks.training import run_folder as runs
from swinv2_tasks.training.run_record import best_metrics, last_metrics
from tests.helpers.processes import ROOT, run, send_at, start, wait_for
from tests.helpers.runs import read_column
from tests.helpers.tiny import write_config


def test_a_run_says_how_it_was_started(trained: Path) -> None:
    (first,) = json.loads((trained / "run.json").read_text())["starts"]
    assert first["packages"]["torch"] == version("torch") and first["packages"]["lightning"] == version("lightning")
    assert first["arguments"][0] == "fit"
    assert (first["seed"], first["processes"], first["resumed_from"]) == (0, 1, None)
    assert first["cores"] >= 1 and first["memory_gib"] > 0
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 8 and config["ckpt_path"] is None


def test_the_commit_is_that_of_the_package(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert (runs.git_commit() or "").removesuffix("+changes") == head.stdout.strip()


PRINT_COMMIT = "from swinv2_tasks.training.run_folder import git_commit; print(git_commit())"


@pytest.mark.parametrize("is_own", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_asking_for_the_commit_starts_no_program_of_a_repository(is_own: bool, tmp_path: Path) -> None:
    """Not of one around the environment, which is not asked, nor of the package's own."""
    site = tmp_path if is_own else tmp_path / ".venv" / "site-packages"
    shutil.copytree(ROOT / "swinv2_tasks", site / "swinv2_tasks", ignore=shutil.ignore_patterns("__pycache__"))
    hook = tmp_path / "hook.sh"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path / 'canary'}\n")
    hook.chmod(0o755)

    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"], ["config", "core.fsmonitor", str(hook)]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-c", PRINT_COMMIT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert done.stdout.strip() == (head if is_own else "None"), done.stderr
    assert not (tmp_path / "canary").exists()


def test_the_summary_agrees_with_the_metrics(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    losses = read_column(trained, "val/loss")
    assert summary["status"] == "finished" and (summary["epochs"], summary["steps"]) == (8, 24)
    assert summary["best_metrics"]["val/loss"] == min(losses)
    assert summary["last_metrics"]["val/loss"] == losses[-1]
    best = torch.load(summary["best_checkpoint"], weights_only=True)
    assert best["global_step"] == summary["best_metrics"]["step"] + 1
    assert 0 < summary["samples_per_second"] < 1e6
    assert summary["wall_seconds"] > 24 * 6 / summary["samples_per_second"] * 0.9
    assert summary["peak_memory_mib"]["main_process"] > 100
    assert summary["events"] == {} and summary["skipped_samples"] == {}


def test_numbers_that_json_does_not_know_are_null(images: Path, tmp_path: Path) -> None:
    """A loss beyond a million counts as infinite."""
    config = write_config(tmp_path / "tiny.yaml", images)
    one_step = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    astray = ["--model.optimizer.lr=1e8", "--model.schedule.warmup_epochs=0"]
    assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}", *one_step, *astray]) == 0
    text = (tmp_path / "runs" / "tiny" / "0" / "summary.json").read_text()
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert summary["last_metrics"]["val/loss"] is None and summary["last_metrics"]["val/top1"] is not None


@pytest.mark.slow
def test_an_interrupted_run_says_so_until_it_is_finished(images: Path, tmp_path: Path) -> None:
    stops = {"class_path": "tests.helpers.faults.SendSignal"}
    write_config(tmp_path / "tiny.yaml", images, trainer={"callbacks": [stops]})
    assert run(["fit", "--config=tiny.yaml"], tmp_path, **send_at(4, number=signal.SIGTERM)).status == 143
    folder = tmp_path / "runs" / "tiny" / "0"
    before = json.loads((folder / "summary.json").read_text())
    assert (before["status"], before["steps"]) == ("interrupted", 4)
    assert (folder / "learning_curve.png").is_file() and not (folder / "weights.safetensors").exists()
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["RunRecord"]
    assert run(["fit", "--resume", "runs/tiny/0"], tmp_path).status == 0
    after = json.loads((folder / "summary.json").read_text())
    assert (after["status"], after["steps"]) == ("finished", 6)
    assert after["wall_seconds"] > saved["wall_seconds"] > 0  # continues from the checkpoint's
    assert after["samples_per_second"] > 6 * 6 / after["wall_seconds"]  # trains for a part of the time
    first, second = json.loads((folder / "run.json").read_text())["starts"]
    assert (first["resumed_step"], second["resumed_step"]) == (0, 4)
    assert second["resumed_from"].endswith("last.ckpt")


@pytest.mark.slow
def test_events_that_happen_again_are_counted_once(images: Path, tmp_path: Path) -> None:
    """A kill after the fifth step, resumed at the third: each sample is told once, though two epochs meet it."""
    import shutil

    data = Path(shutil.copytree(images, tmp_path / "images"))
    for k in range(6):
        path = data / "train" / "n01" / f"n01_{k}.jpg"
        path.write_bytes(path.read_bytes()[:300])
    stops = {"class_path": "tests.helpers.faults.SendSignal"}
    write_config(tmp_path / "tiny.yaml", data, trainer={"callbacks": [stops]})
    command = ["fit", "--config=tiny.yaml", "--data.faulty_samples=skip", "--data.batch_size=6"]
    assert run(command, tmp_path, **send_at(5)).status == -9
    assert run(["fit", "--resume", "runs/tiny/0"], tmp_path).status == 0
    summary = json.loads((tmp_path / "runs/tiny/0/summary.json").read_text())
    assert summary["events"] == {"sample skipped": 6}
    assert len(summary["skipped_samples"]) == 6


@pytest.mark.slow
def test_deterministic_mode_is_one_flag(images: Path, tmp_path: Path) -> None:
    write_config(tmp_path / "tiny.yaml", images)
    for name in ("one", "two"):
        done = run(["fit", "--config=tiny.yaml", "--trainer.deterministic=true", f"--name={name}"], tmp_path)
        assert done.status == 0, done.errors
    first, second = (
        torch.load(tmp_path / "runs" / name / "0" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "two")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_second_ctrl_c_ends_at_once(images: Path, tmp_path: Path) -> None:
    """While a step lasts so long that the first one is still waiting for its end."""
    slow = {"class_path": "tests.helpers.faults.SlowImages"}
    write_config(tmp_path / "tiny.yaml", images, data=slow)
    going = start(["fit", "--config=tiny.yaml", "--trainer.max_epochs=50"], tmp_path)
    wait_for((tmp_path / "reading").exists)
    going.signal(signal.SIGINT)
    wait_for(lambda: "Ctrl-C again stops at once" in going.log.with_suffix(".err").read_text())
    assert going.process.is_alive()
    going.signal(signal.SIGINT)
    ended = going.wait(20)
    assert ended.status not in (0, None)


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_sigterm_outside_of_training_is_no_success(command: str, images: Path, trained: Path, tmp_path: Path) -> None:
    slow = {"class_path": "tests.helpers.faults.SlowValidation", "init_args": {"batch_size": 1}}
    write_config(tmp_path / "tiny.yaml", images, data=slow)
    going = start([command, "--config=tiny.yaml"], tmp_path)
    wait_for((tmp_path / "validating").exists)
    going.signal(signal.SIGTERM)
    ended = going.wait(60)
    assert ended.status == 143, ended.errors
    assert "stopped by SIGTERM" in ended.errors


def test_metrics_of_a_run_that_is_not_resumed_stay(trained: Path, images: Path, tmp_path: Path) -> None:
    """Starting from a run's config makes a run of its own."""
    before = (trained / "metrics.csv").read_bytes()
    config = trained / "config.yaml"
    assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}", "--trainer.max_epochs=1"]) == 0
    assert (trained / "metrics.csv").read_bytes() == before


def test_a_run_that_failed_listens_no_longer(images: Path, tmp_path: Path) -> None:
    """Its folder is gone: what a later run in the same process logs must not go there."""
    show_warnings()
    logger = logging.getLogger("swinv2_tasks")
    before = [*logger.handlers]
    write_config(tmp_path / "tiny.yaml", images, data={"class_path": "tests.helpers.faults.NotANumber"})
    assert main(["fit", "--allow=tests", f"--config={tmp_path / 'tiny.yaml'}", f"--runs={tmp_path / 'runs'}"]) == 1
    assert [handler for handler in logger.handlers if handler not in before] == []


# ---- rows that belong together


ROWS: list[dict[str, float]] = [
    {"epoch": 0, "step": 2, "train/loss": 9.0},
    {"epoch": 0, "step": 2, "val/loss": 1.0, "val/top1": 0.8},
    {"epoch": 1, "step": 5, "train/loss": 8.0},
    {"epoch": 1, "step": 5, "val/loss": 1.0, "val/top1": 0.7},
    {"epoch": 2, "step": 6, "train/loss": 7.0},
    {"epoch": 2, "step": 7, "train/loss": 6.0},
]


def test_the_best_and_the_last_metrics_are_each_of_one_epoch() -> None:
    """No loss of an epoch beside the score of another: the third epoch was stopped before its validation."""
    assert last_metrics(ROWS) == {"epoch": 2, "step": 7, "train/loss": 6.0}
    assert last_metrics(ROWS[:4]) == {"epoch": 1, "step": 5, "train/loss": 8.0, "val/loss": 1.0, "val/top1": 0.7}
    watch = ModelCheckpoint(monitor="val/top1", mode="max")
    assert best_metrics(ROWS, watch) == {"epoch": 0, "step": 2, "train/loss": 9.0, "val/loss": 1.0, "val/top1": 0.8}
    assert best_metrics(ROWS, ModelCheckpoint(monitor="val/loss"))["epoch"] == 0  # the first of equals is kept
    watch.best_model_score = torch.tensor(
        0.7, dtype=torch.float64
    )  # of the checkpoint there is, where not every validation writes one
    assert best_metrics(ROWS, watch)["epoch"] == 1
    assert best_metrics([], watch) == {"val/top1": 0.7}
    assert best_metrics(ROWS, ModelCheckpoint()) == best_metrics(ROWS, None) == last_metrics([]) == {}


def test_a_score_that_is_no_number_is_not_the_best() -> None:
    rows = [{"epoch": 0, "step": 1, "val/loss": math.nan}, {"epoch": 1, "step": 3, "val/loss": 2.0}]
    assert best_metrics(rows, ModelCheckpoint(monitor="val/loss"))["epoch"] == 1
    assert math.isnan(best_metrics(rows[:1], ModelCheckpoint(monitor="val/loss"))["val/loss"])


def test_metrics_of_an_epoch_that_was_stopped_are_not_mixed(images: Path, tmp_path: Path) -> None:
    stops = {"class_path": "tests.helpers.faults.SendSignal"}
    write_config(tmp_path / "tiny.yaml", images, trainer={"callbacks": [stops]})
    assert run(["fit", "--config=tiny.yaml"], tmp_path, **send_at(5, number=signal.SIGTERM)).status == 143
    summary = json.loads((tmp_path / "runs" / "tiny" / "0" / "summary.json").read_text())
    assert summary["last_metrics"]["epoch"] == 1 and "train/loss" in summary["last_metrics"]
    assert "val/loss" not in summary["last_metrics"] and summary["best_metrics"]["epoch"] == 0
