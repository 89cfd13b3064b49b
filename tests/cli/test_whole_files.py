"""No command opens a file by the name that it will have: what it writes is written atomically."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers import processes
from tests.helpers.broken_files import cut_off
from tests.helpers.films import write_film
from tests.helpers.tiny_tasks import TINY_TASKS
from tests.helpers.writes import WRITES, find_faults, read_writes

JOURNALS = (
    *("metrics.csv", "predictions.csv", "checked_videos.csv", "*.jsonl"),  # lines are appended; readers leave out half
    "events.out.tfevents.*",  # TensorBoard's
)


def is_journal(path: Path) -> bool:
    """Whether lines are appended to a file, or a process of a sweep writes it: a validation as any other."""
    return any("@" in part for part in path.parts) or any(path.match(pattern) for pattern in JOURNALS)


def check(folder: Path, arguments: Sequence[str], status: int = 0) -> None:
    """Runs a command in a folder, and finds what it could have left half there."""
    log = folder.parent / f"writes_{folder.name}"
    log.unlink(missing_ok=True)
    before = {path for path in folder.rglob("*") if path.is_file()}
    done = processes.start(arguments, folder, **{WRITES: str(log)}).wait(240)
    assert done.status == status, done.errors
    faults = find_faults(folder, read_writes(log), lambda path: path in before or is_journal(path))
    assert faults == []
    assert {path for path in folder.rglob("*") if path.is_file()} - before, "nothing was written"


@pytest.mark.slow
def test_a_training(tmp_path: Path) -> None:
    """Checkpoints, config, tables, the learning curve, and images of validations."""
    dataset, folder = write_task("simmim", tmp_path)
    check(folder, ["fit", f"--config={folder}/config.yaml", f"--data.root={dataset}", "--trainer.max_epochs=1"])


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY_TASKS)
def test_trainings_evaluations_and_predictions(name: str, tmp_path: Path) -> None:
    dataset, folder = write_task(name, tmp_path)
    check(folder, ["fit", "--config=config.yaml", "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"])
    (checkpoint,) = folder.rglob("last.ckpt")
    for command in ("validate", "test"):
        check(folder, [command, f"--ckpt_path={checkpoint}", f"--data.root={dataset}"])
    check(folder, ["predict", f"--ckpt_path={checkpoint}", f"--data.source={dataset / TINY_TASKS[name].validation}"])


def write_task(name: str, folder: Path) -> tuple[Path, Path]:
    """The dataset of a task, and a folder with a config."""
    dataset = TINY_TASKS[name].write_data(folder / "data", train=6, val=6)
    TINY_TASKS[name].config(folder / "work", dataset, trainer={"check_val_every_n_epoch": 1})
    return dataset, folder / "work"


@pytest.mark.slow
def test_the_other_commands(tmp_path: Path) -> None:
    dataset, folder = write_task("classification", tmp_path)
    check(folder, ["fit", "--config=config.yaml", "--trainer.max_epochs=1"])
    (checkpoint,) = folder.rglob("last.ckpt")
    sizes = ["--windows=4", "--sizes", "32", "64"]
    check(folder, ["sweep", f"--ckpt_path={checkpoint}", *sizes, "--output=swept", f"--data.root={dataset}"])
    check(folder, ["data", "optimize", "imagenet", str(dataset), "optimized", "--workers=1", "--shard_mb=0.01"])
    check(folder, ["memory", "--config=config.yaml", "--json=memory.json"])
    check(folder, ["sample-data", "samples"])
    for file_format in ("official", "timm", "lightning", "huggingface"):
        target = f"{file_format}{'' if file_format == 'huggingface' else '.safetensors'}"
        check(folder, ["weights", "convert", str(checkpoint), target, f"--format={file_format}"])

    for label in ("air drumming", "zumba"):
        write_film(tmp_path / "films" / "train" / label / "good.mp4")
        write_film(tmp_path / "films" / "val" / label / "good.mp4")
    cut_off(write_film(tmp_path / "films" / "train" / "zumba" / "cut.mp4"))
    check(folder, ["data", "check", "kinetics", str(tmp_path / "films"), "--output=checked"], status=1)
