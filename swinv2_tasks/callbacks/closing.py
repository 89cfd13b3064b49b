"""What a training says in the end: its best checkpoint, its files, and the commands that come next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from swinv2_tasks.callbacks.first_batch import FIRST_BATCH
from swinv2_tasks.callbacks.opening import Rows, short_path
from swinv2_tasks.callbacks.run_report import REPORT
from swinv2_tasks.datamodules.loader import sample_id
from swinv2_tasks.outside_files import read_json
from swinv2_tasks.progress import format_number
from swinv2_tasks.text import command_word

FILES = (
    ("report", REPORT),
    ("summary", "summary.json"),
    ("curve", "learning_curve.png"),
    ("samples", FIRST_BATCH),
)
"""Files of a run's folder that are named, and what they are called."""


def describe_results(trainer: Any, task: Any) -> Rows:
    """The best score, and where its checkpoint, the report and the figures are."""
    folder = getattr(task, "run_folder", None)
    callback = _model_checkpoint(trainer)
    rows: Rows = []
    if callback is not None and callback.monitor is None:
        rows.append(("best", "unknown, as checkpoint.monitor is null: the weights are those of the last checkpoint"))
    elif callback is not None and trainer.limit_val_batches == 0:
        why = f"not validated (trainer.limit_val_batches is 0), so no checkpoint is the best by {callback.monitor}: "
        rows.append(("best", f"{why}the weights are those of the last one"))
    elif (score := _best_score(callback, folder)) is not None:
        rows.append(("best", score))

    checkpoint = find_checkpoint(trainer, task)
    if checkpoint is not None:
        rows.append(("checkpoint", short_path(checkpoint)))
    for label, name in FILES:
        if folder is not None and (folder / name).is_file():
            rows.append((label, short_path(folder / name)))
    return rows


def next_commands(trainer: Any, task: Any) -> list[str]:
    """The commands that evaluate and use what was trained; none outside of the command line."""
    checkpoint, folder = find_checkpoint(trainer, task), getattr(task, "run_folder", None)
    if checkpoint is None or folder is None:
        return []
    is_within = checkpoint.resolve().is_relative_to(folder.resolve())
    option = f"--ckpt_path {command_word(short_path(folder if is_within else checkpoint))}"  # of which it is the best
    source = _example_source(trainer.datamodule)
    return [f"swinv2-tasks validate {option}", f"swinv2-tasks predict {option} --data.source {source}"]


def find_checkpoint(trainer: Any, task: Any) -> Path | None:
    """The best checkpoint of a training, or the last one where none is best."""
    callback, folder = _model_checkpoint(trainer), getattr(task, "run_folder", None)
    if callback is not None and callback.best_model_path and callback.monitor is not None:
        return Path(callback.best_model_path)
    if folder is not None and (last := folder / "checkpoints" / "last.ckpt").exists():
        return last
    return Path(callback.best_model_path) if callback is not None and callback.best_model_path else None


def _model_checkpoint(trainer: Any) -> ModelCheckpoint | None:
    return next((callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)), None)


def _best_score(callback: ModelCheckpoint | None, folder: Path | None) -> str | None:
    """The watched metric, and the epoch in which it was best."""
    if callback is None or callback.monitor is None:
        return None
    best: dict[str, Any] = {}
    if folder is not None and (summary := folder / "summary.json").is_file():
        best = read_json(summary)["best_metrics"]
    score = best.get(callback.monitor)
    if score is None and callback.best_model_score is not None:
        score = float(callback.best_model_score)
    if score is None:
        return f"{callback.monitor} was never finite" if best else None
    epoch = "" if best.get("epoch") is None else f" in epoch {int(best['epoch']) + 1}"
    return f"{callback.monitor} {format_number(score)}{epoch}"


def _example_source(data: Any) -> str:
    """A validation sample, where it is a file; else a word in its place."""
    dataset = getattr(data, "val_dataset", None)
    if dataset is not None and (path := Path(sample_id(dataset, 0))).is_file():
        return command_word(short_path(path))
    return "FILE_OR_FOLDER"
