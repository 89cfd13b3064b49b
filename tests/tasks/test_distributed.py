"""Evaluation, prediction and faults on several processes: bitwise identical to those on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_tasks.progress import format_number
from tests.helpers.connections import python_path
from tests.helpers.processes import ROOT, run
from tests.helpers.runs import last_checkpoint, read_table
from tests.helpers.tiny import write_config, write_images


def evaluate(folder: Path, checkpoint: Path, data: Path, processes: int, *settings: str) -> dict[str, str]:
    """The metrics that `validate` logs, digit by digit."""
    arguments = [f"--ckpt_path={checkpoint}", f"--data.root={data}", f"--data.class_names={data / 'classes.csv'}"]
    done = run(["validate", *arguments, f"--name={processes}", *settings], folder, processes)
    assert done.status == 0, done.errors
    (row,) = read_table(folder / "runs" / str(processes) / "validate_0" / "metrics.csv")
    return row


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that classifies some images wrongly."""
    folder = tmp_path_factory.mktemp("poor")
    data = write_images(folder / "images")
    write_config(folder / "tiny.yaml", data, trainer={"max_epochs": 1})
    assert run(["fit", "--config=tiny.yaml", "--model.optimizer.lr=0.001"], folder).status == 0
    return folder / "runs" / "tiny" / "0" / "checkpoints" / "last.ckpt"


@pytest.mark.slow
def test_processes_that_the_program_starts_score_as_one(trained: Path, images: Path, tmp_path: Path) -> None:
    """12 images in batches of 5: one process has two batches, the other one."""
    rows = [evaluate(tmp_path, last_checkpoint(trained), images, number, "--data.batch_size=5") for number in (1, 2)]
    assert rows[0] == rows[1]
    assert 0 < float(rows[0]["val/loss"]) < 10


@pytest.mark.slow
def test_several_labels_per_image_on_several_processes(poor: Path, tmp_path: Path) -> None:
    """ReaL labels: the process without a batch does not even know that its labels would be of that kind."""
    data = write_images(tmp_path / "images", train=1, val=1)
    (tmp_path / "real.json").write_text(json.dumps({f"n0{k}_0.jpg": [0, k - 1] for k in (1, 2, 3)}))
    settings = (f"--data.real_labels={tmp_path / 'real.json'}", "--data.batch_size=2")
    rows = [evaluate(tmp_path, poor, data, processes, *settings) for processes in (1, 3)]
    assert rows[0] == rows[1]
    assert "val/real_top1" in rows[0] and "val/top1" not in rows[0]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["swinv2_tasks.tasks.ClassificationTask", "tests.helpers.normed.NormedTask"])
def test_validations_within_a_training_are_exact(task: str, tmp_path: Path) -> None:
    """Uneven shares of batches, also of a model with running statistics: validating its checkpoint alone agrees."""
    data = write_images(tmp_path / "images", val=3)  # 9 images: 5 batches of 2
    write_config(tmp_path / "tiny.yaml", data, model={"class_path": task})
    trained = run(["fit", "--config=tiny.yaml", "--data.batch_size=2", "--trainer.max_epochs=2"], tmp_path, processes=2)
    assert trained.status == 0, trained.errors
    last = [row for row in read_table(tmp_path / "runs/tiny/0/metrics.csv") if row["val/loss"]][-1]
    alone = ["--config=tiny.yaml", "--data.batch_size=2", "--ckpt_path=runs/tiny/0/checkpoints/last.ckpt", "--name=one"]
    checked = run(["validate", *alone], tmp_path)
    assert checked.status == 0, checked.errors
    (row,) = read_table(tmp_path / "runs/one/validate_0/metrics.csv")
    assert {name: row[name] for name in ("val/top1", "val/loss")} == {
        name: last[name] for name in ("val/top1", "val/loss")
    }


# ---- faults


def corrupt(data: Path, *names: str) -> None:
    for name in names:
        path = data / name
        path.write_bytes(path.read_bytes()[:300])


def read_samples(folder: Path) -> dict[str, list[str]]:
    """Sum of pixels and names of the samples of each step."""
    lines = [line.split() for line in (folder / "journal" / "seen_0.txt").read_text().splitlines()]
    return {f"{epoch} {batch}": names for epoch, batch, _, *names in lines}


JOURNAL: dict[str, Any] = {"class_path": "tests.helpers.faults.Journal", "init_args": {"folder": "journal"}}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_skipped_samples_are_logged_and_counted(workers: int, tmp_path: Path) -> None:
    data = write_images(tmp_path / "images")
    corrupt(data, "train/n01/n01_2.jpg", "train/n03/n03_0.jpg", "val/n02/n02_1.jpg")
    write_config(tmp_path / "tiny.yaml", data, trainer={"callbacks": [JOURNAL]})
    settings = [f"--data.num_workers={workers}", "--data.faulty_samples=skip", "--data.faulty_budget=3"]
    done = run(["fit", "--config=tiny.yaml", *settings], tmp_path)
    assert done.status == 0, done.errors
    summary = json.loads((tmp_path / "runs/tiny/0/summary.json").read_text())
    assert {Path(name).name for name in summary["skipped_samples"]} == {"n01_2.jpg", "n03_0.jpg", "n02_1.jpg"}
    events = [json.loads(line) for line in (tmp_path / "runs/tiny/0/events.jsonl").read_text().splitlines()]
    assert summary["events"] == {"sample skipped": len(events)}
    assert all("runcated" in event["reason"] for event in events)
    trained = [event["epoch"] for event in events if "train" in event["sample"]]
    assert sorted(trained) == [0, 0]  # each once, though met in both epochs
    assert done.errors.count("skipped: ") == len(events)
    whole = write_images(tmp_path / "whole")
    (tmp_path / "intact").mkdir()
    write_config(tmp_path / "intact" / "tiny.yaml", whole, trainer={"callbacks": [JOURNAL]})
    assert run(["fit", "--config=tiny.yaml"], tmp_path / "intact").status == 0
    assert read_samples(tmp_path) == read_samples(tmp_path / "intact")  # the same samples in the same batches


def test_more_bad_samples_than_allowed_stop_the_run(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images")
    corrupt(data, *(f"train/n01/n01_{k}.jpg" for k in range(4)))
    write_config(tmp_path / "tiny.yaml", data)
    done = run(["fit", "--config=tiny.yaml", "--data.faulty_samples=skip", "--data.faulty_budget=2"], tmp_path)
    assert done.status == 1
    assert "3 samples could not be read, data.faulty_budget allows 2" in done.errors
    assert "Traceback" not in done.errors


@pytest.mark.slow
def test_the_budget_is_one_for_all_processes(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images", train=8)
    corrupt(data, *(f"train/n01/n01_{k}.jpg" for k in range(4)))
    write_config(tmp_path / "tiny.yaml", data)
    settings = ["--data.faulty_samples=skip", "--data.batch_size=3"]
    done = run(["fit", "--config=tiny.yaml", *settings, "--data.faulty_budget=3"], tmp_path, processes=2)
    assert done.status == 1
    assert "data.faulty_budget allows 3" in done.errors
    done = run(["fit", "--config=tiny.yaml", *settings, "--data.faulty_budget=4"], tmp_path, processes=2)
    assert done.status == 0, done.errors
    summary = json.loads(next((tmp_path / "runs/tiny").glob("*/summary.json")).read_text())
    assert len(summary["skipped_samples"]) == 4


def test_a_dead_worker_names_what_it_read(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images")
    settings = {"class_path": "tests.helpers.faults.DeadlyImages", "init_args": {"num_workers": 2}}
    write_config(tmp_path / "tiny.yaml", data, data=settings)
    done = run(["fit", "--config=tiny.yaml"], tmp_path)
    assert done.status == 1
    assert "a DataLoader worker died while it read" in done.errors and "n02_3.jpg" in done.errors
    assert "Traceback" not in done.errors


@pytest.mark.slow
def test_a_mistake_met_by_one_process_is_reported_once(tmp_path: Path) -> None:
    """The first process then only learns that the other one is gone."""
    data = write_images(tmp_path / "images", train=8)
    corrupt(data, *(f"train/{name}/{name}_{k}.jpg" for name in ("n01", "n02") for k in range(8)))
    write_config(tmp_path / "tiny.yaml", data)
    for _ in range(2):  # whichever process meets it first
        done = run(["fit", "--config=tiny.yaml", "--data.batch_size=1"], tmp_path, processes=2)
        assert done.status == 1
        assert "Cannot read the image" in done.errors
        assert "Traceback" not in done.errors


# ---- non-finite steps


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bad_step_stops_or_is_skipped(processes: int, tmp_path: Path) -> None:
    """A picture whose pixels are not numbers, in one process alone."""
    data = write_images(tmp_path / "images")
    write_config(tmp_path / "tiny.yaml", data, data={"class_path": "tests.helpers.faults.NotANumber"})
    command = ["fit", "--config=tiny.yaml", "--data.batch_size=3", "--trainer.max_epochs=2"]
    stopped = run(command, tmp_path, processes)
    assert stopped.status == 1
    assert "the loss is nan and gradients are not finite: backbone." in stopped.errors
    if processes == 1:
        message = stopped.errors.splitlines()[-1]
        assert message.startswith("swinv2-tasks: stopped before step")
        assert (tmp_path / message.partition("listed in ")[2].partition(". Look")[0]).is_file()
    skipped = run([*command, "--guard.max_skipped_steps=2", "--name=skipped"], tmp_path, processes)
    assert skipped.status == 0, skipped.errors
    folder = tmp_path / "runs" / "skipped" / "0"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["events"]["non-finite step"] == 2 * processes
    listed = [name for path in folder.glob("nonfinite_*.json") for name in json.loads(path.read_text())["samples"]]
    assert len(listed) == 2 * 3 * processes
    assert sum(Path(name).name == "n02_3.jpg" for name in listed) == 2
    assert summary["last_metrics"]["val/top1"] > 0


# ---- processes that are spawned or forked


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_a_training_in_spawned_processes(strategy: str, tmp_path: Path) -> None:
    """The process that starts them trains nothing itself, and yet knows what came out."""
    data = write_images(tmp_path / "images")
    write_config(tmp_path / "tiny.yaml", data)
    command = ["fit", "--config=tiny.yaml", "--data.batch_size=3"]
    trained = run(command, tmp_path, processes=2, strategy=strategy)
    assert trained.status == 0, trained.errors
    folder = tmp_path / "runs" / "tiny" / "0"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["epochs"], summary["steps"]) == ("finished", 2, 6)
    best = f"val/loss {format_number(summary['best_metrics']['val/loss'])}"
    assert f"best        {best}" in trained.output
    assert trained.output.count("checkpoint  runs/tiny/0/checkpoints/best.ckpt") == 1  # one process prints
    assert (folder / "weights.safetensors").is_file() and (folder / "learning_curve.png").is_file()
    usual = run([*command, "--name=usual"], tmp_path, processes=2)
    assert usual.status == 0, usual.errors
    states = [
        torch.load(tmp_path / "runs" / name / "0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("tiny", "usual")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    resumed = run(["fit", "--resume=runs/tiny/0", "--trainer.max_epochs=3"], tmp_path, processes=2, strategy=strategy)
    assert resumed.status == 0, resumed.errors
    assert [row["epoch"] for row in read_table(folder / "metrics.csv") if row["val/loss"]] == ["0", "1", "2"]


@pytest.mark.slow
def test_evaluations_and_predictions_in_spawned_processes(poor: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "images", train=1, val=3)
    arguments = [f"--ckpt_path={poor}", f"--data.root={data}", "--data.batch_size=2"]
    for name, processes in (("one", 1), ("two", 2)):
        done = run(["validate", *arguments, f"--name={name}"], tmp_path, processes, strategy="ddp_spawn")
        assert done.status == 0, done.errors
        source = f"--data.source={data / 'val'}"
        done = run(["predict", *arguments, source, f"--output={name}"], tmp_path, processes, strategy="ddp_spawn")
        assert done.status == 0, done.errors
    one, two = (read_table(tmp_path / "runs" / name / "validate_0" / "metrics.csv") for name in ("one", "two"))
    assert one == two
    assert (tmp_path / "one/predictions.csv").read_bytes() == (tmp_path / "two/predictions.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_a_mistake_met_in_a_spawned_process_is_one_message(strategy: str, tmp_path: Path) -> None:
    """Before the first step the run leaves nothing behind, after it all that it has made."""
    data = write_images(tmp_path / "images", train=8)
    corrupt(data, "val/n01/n01_2.jpg")
    write_config(tmp_path / "tiny.yaml", data)
    arguments = ["fit", "--config=tiny.yaml", "--data.batch_size=3"]
    for settings, folders in ((), []), (("--trainer.num_sanity_val_steps=0", "--save.every_n_steps=1"), ["0"]):
        ended = run([*arguments, *settings], tmp_path, processes=2, strategy=strategy)
        assert ended.status == 1
        assert ended.errors.splitlines()[-1].startswith("swinv2-tasks: Cannot read the image")
        assert [path.name for path in tmp_path.glob("runs/tiny/*")] == folders
    assert (tmp_path / "runs/tiny/0/checkpoints/last.ckpt").is_file()


NOTEBOOK = """
import sys
sys.ps1 = ">>> "  # what makes a session interactive
from swinv2_tasks.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_devices_in_a_notebook(tmp_path: Path) -> None:
    write_config(tmp_path / "tiny.yaml", write_images(tmp_path / "images"))
    arguments = ["fit", "--config=tiny.yaml", "--trainer.devices=2", "--data.batch_size=3"]
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": python_path(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs/tiny/0/summary.json").read_text())
    assert f"val/loss {summary['best_metrics']['val/loss']:.4f}" in done.stdout
    assert json.loads((tmp_path / "runs/tiny/0/run.json").read_text())["starts"][0]["processes"] == 2


FROM_PYTHON = """
import sys
from pathlib import Path

from swinv2_tasks.training.run_checkpoint import RunCheckpoint
from swinv2_tasks.training.run_checkpoint import AtomicCheckpointIO
from tests.helpers.tiny import new_data, new_task, new_trainer

if __name__ == "__main__":
    images, strategy = sys.argv[1:]
    trainer = new_trainer(
        Path.cwd() / strategy,
        RunCheckpoint(),
        devices=2,
        strategy=strategy,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=True,
    )
    trainer.fit(new_task(), new_data(Path(images), batch_size=3))
    print("trained:", float(trainer.callback_metrics["val/loss"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_spawned_processes_from_python(strategy: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    (tmp_path / "program.py").write_text(FROM_PYTHON)
    done = subprocess.run(
        [sys.executable, "program.py", str(images), strategy],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": python_path(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert "trained: " in done.stdout
    assert torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)["global_step"] == 3
