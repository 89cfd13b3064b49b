"""Runs of the command line within the tests' own process, and what they leave in their folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from swinv2_tasks.cli.main import main
from swinv2_tasks.tables import read_table


def fit(config: Path, folder: Path, *arguments: str) -> Path:
    """Trains by a config, with runs below a folder; the run's own folder."""
    assert main(["fit", f"--config={config}", f"--runs={folder}", *arguments]) == 0
    return newest_run(folder)


def evaluate(folder: Path, *arguments: str, command: str = "validate") -> Path:
    """Evaluates, with runs below a folder; the evaluation's own folder."""
    assert main([command, "--report=false", *arguments, f"--runs={folder}", "--name=evaluation"]) == 0
    return newest_run(folder, "evaluation", command)


def validate(run: Path, folder: Path, *arguments: str) -> dict[str, float]:
    """What a validation of a run's last checkpoint logs."""
    return read_scores(evaluate(folder, from_last(run), *arguments))


def predict(folder: Path, *arguments: str) -> Path:
    """Predicts into ``folder/predictions``, which is returned."""
    output = folder / "predictions"
    assert main(["predict", f"--runs={folder / 'runs'}", f"--output={output}", *arguments]) == 0
    return output


def newest_run(folder: Path, name: str = "*", command: str = "fit") -> Path:
    """The folder of the newest training, or of the newest evaluation by a command."""
    pattern = "[0-9]*" if command == "fit" else f"{command}_[0-9]*"
    return max(folder.glob(f"{name}/{pattern}"), key=lambda run: run.stat().st_ctime_ns)


def last_checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def from_last(run: Path) -> str:
    """The argument that takes a run's last checkpoint."""
    return f"--ckpt_path={last_checkpoint(run)}"


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv, without empty cells."""
    return [{name: float(cell) for name, cell in row.items() if cell} for row in read_table(run / "metrics.csv")]


def read_column(run: Path, name: str) -> list[float]:
    """The values of one metric, in the order in which they were logged."""
    return [row[name] for row in read_metrics(run) if name in row]


def read_scores(run: Path, stage: str = "val") -> dict[str, float]:
    """The latest metrics of an evaluation, or of a training's validations."""
    row = [row for row in read_metrics(run) if any(name.startswith(f"{stage}/") for name in row)][-1]
    return {name: value for name, value in row.items() if name.startswith(f"{stage}/")}


def user_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one message that a user's mistake ends with."""
    capsys.readouterr()
    assert main([*arguments]) == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert errors.count("swinv2-tasks: ") == 1
    return errors[errors.index("swinv2-tasks: ") :].strip()


def has_no_runs(runs: Path) -> bool:
    """Whether there is no run below a folder, no folder of a name, and no file."""
    return not any(runs.rglob("*"))
