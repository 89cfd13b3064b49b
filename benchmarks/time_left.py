"""The time left that a training shows, beside the time that it then took.

    python -m benchmarks.time_left [--data data/sample] [--tasks imagenet simmim …] [--epochs 5] [--json FILE]

Runs the demo's trainings from their configs, each in this process, and notes what Console's estimate was whenever a
batch was done. Printed is, for each training, the estimate of the whole length (what was done by then and what was
left) divided by the true length, less one, once 5, 10, 25, 50 and 75 % of the time had passed: 0 % is exact. The length
counts from the first training step to the end of the last validation, as the estimate does. Estimates take the past for
the future: other work on the machine makes them wrong.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from benchmarks.measuring import parse_settings
from swinv2_tasks.callbacks import Console
from swinv2_tasks.cli.tasks_cli import TasksCLI, run_as
from swinv2_tasks.commands.sample_data import sample_data

TASKS = ("imagenet", "simmim", "coco", "ade20k", "kinetics")
FRACTIONS = (0.05, 0.10, 0.25, 0.50, 0.75)
TARGET = 0.10
"""Of an estimate once 5 % of the run have passed."""

ROOTS = {"simmim": "imagenet/train"}
"""Folders of the sample data, where a task has no dataset of its own name."""


@dataclass
class Settings:
    """Settings of the command.

    Args:
        data: folder of the sample data; written when it is missing.
        tasks: which of the demo's trainings.
        epochs: of each training; None: those of its config.
        json: file for the measurements.
    """

    data: str = "data/sample"
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    epochs: int | None = None
    json: Path | None = None


class Estimates(Callback):
    """Notes the estimate of the time left after each training and validation batch."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rows: list[tuple[float, float]] = []
        """When, and how many seconds were left."""
        self.start = self.end = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = time.monotonic()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._note()

    def on_validation_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if not trainer.sanity_checking:
            self._note()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.end = time.monotonic()

    def _note(self) -> None:
        if (left := self.console.time_left.seconds()) is not None:
            self.rows.append((time.monotonic(), left))

    def errors(self) -> dict[float, float]:
        """The relative error of the estimated length, at each share of the true one."""
        length = self.end - self.start
        errors = {}
        for share in FRACTIONS:
            moment, left = next(row for row in self.rows if row[0] - self.start >= share * length)
            errors[share] = (moment - self.start + left) / length - 1
        return errors


def measure(task: str, data: Path, runs: str, changes: list[str]) -> tuple[float, dict[float, float]]:
    """Runs one of the demo's trainings; its seconds, and the errors of the time left."""
    folder = data / ROOTS.get(task, task)
    estimates: list[Estimates] = []

    class WatchedCLI(TasksCLI):
        """The command line, with what notes the estimates."""

        def instantiate_trainer(self, **kwargs: Any) -> Any:
            trainer: Any = super().instantiate_trainer(**kwargs)
            console = next(callback for callback in trainer.callbacks if isinstance(callback, Console))
            estimates.append(Estimates(console))
            trainer.callbacks.append(estimates[0])
            return trainer

    arguments = [f"--config=demo_{task}.yaml", f"--data.root={folder}", f"--runs={runs}", *changes]
    run_as(WatchedCLI, "fit", arguments)
    return estimates[0].end - estimates[0].start, estimates[0].errors()


def main(settings: Settings) -> None:
    """Measures and prints."""
    sample_data(settings.data)
    changes = [] if settings.epochs is None else [f"--trainer.max_epochs={settings.epochs}"]
    measured = {}
    with tempfile.TemporaryDirectory() as runs:
        for task in settings.tasks:
            measured[task] = measure(task, Path(settings.data), runs, changes)

    print(f"\n{'training':>10} {'seconds':>8} " + " ".join(f"at {share:4.0%}" for share in FRACTIONS))
    for task, (seconds, errors) in measured.items():
        print(f"{task:>10} {seconds:8.0f} " + " ".join(f"{error:+7.1%}" for error in errors.values()))
    worst = max(abs(error) for _, errors in measured.values() for error in errors.values())
    print(f"largest error {worst:.1%}, target {TARGET:.0%}")

    if settings.json is not None:
        content = {
            task: {"seconds": seconds, "errors": {str(share): error for share, error in errors.items()}}
            for task, (seconds, errors) in measured.items()
        }
        settings.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main(parse_settings(Settings, __doc__))
