"""What a run has written, as the report reads it: its config, its starts, its metrics, its evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import MOST_CONFIG_BYTES, load_yaml, read_text
from swinv2_tasks.records import STARTS, SUMMARY, Check, mapping, read_json, require
from swinv2_tasks.text import printable
from swinv2_tasks.training.run_record import read_metrics

Split = Literal["val", "test"]

_REMEDY = "Copy the run's folder again."


@dataclass(frozen=True)
class Run:
    """A folder of fit, validate or test."""

    folder: Path
    config: Mapping[str, Any]
    """What config.yaml holds."""
    starts: Sequence[Mapping[str, Any]]
    """Those in run.json, the first one first."""
    summary: Mapping[str, Any]
    """What summary.json holds; empty where there is none, as of evaluations."""
    metrics: Sequence[Mapping[str, float]]
    """The rows of metrics.csv, without empty cells."""

    @property
    def task(self) -> str:
        """The class of the task, without its module."""
        model = self.config.get("model")
        return str(model.get("class_path", "") if isinstance(model, Mapping) else "").rpartition(".")[2]

    @property
    def split(self) -> Split | None:
        """What an evaluation evaluated; None of a training."""
        command = str(self.starts[0]["arguments"][0]) if self.starts else ""
        splits: dict[str, Split] = {"validate": "val", "test": "test"}
        return splits.get(command)

    @property
    def splits(self) -> list[Split]:
        """The splits that it has evaluated."""
        if self.split is not None:
            return [self.split]
        return ["val"]

    @property
    def monitor(self) -> str | None:
        """The metric that decides which checkpoint is best."""
        checkpoint = self.config.get("checkpoint")
        name = checkpoint.get("monitor") if isinstance(checkpoint, Mapping) else None
        return name if isinstance(name, str) else None

    @property
    def best_step(self) -> float | None:
        """The step after which that was best."""
        best = self.summary.get("best_metrics") or {}
        return best.get("step") if self.monitor in best else None

    @property
    def metric_names(self) -> list[str]:
        """What was logged, without step and epoch, in the order of first appearance."""
        names = dict.fromkeys(name for row in self.metrics for name in row)
        return [name for name in names if name not in ("step", "epoch")]

    def points(self, name: str) -> list[tuple[float, float]]:
        """The steps in which a metric was logged, and its finite values."""
        return [
            (row["step"], row[name]) for row in self.metrics if "step" in row and math.isfinite(row.get(name, math.nan))
        ]

    def has(self, name: str) -> bool:
        """Whether the run has written a file of a name."""
        return (self.folder / name).is_file()


def read_run(folder: Path) -> Run:
    """Reads what a run has written.

    Raises:
        UserError: the folder is none of a run, or what it holds cannot be read.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{printable(folder)} is not the folder of a run, as it has no config.yaml: name one that fit, validate "
            "or test has written, as runs/imagenet/0"
        )
    try:
        config = load_yaml(read_text(path, MOST_CONFIG_BYTES))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{printable(path)} cannot be read: {str(error)[:200]}. {_REMEDY}") from error
    require(config, mapping({}), f"{printable(path)}:", _REMEDY)
    starts = _read_optional(folder / "run.json", STARTS).get("starts", [])
    return Run(
        folder, config, starts, _read_optional(folder / "summary.json", SUMMARY), read_metrics(folder / "metrics.csv")
    )


def _read_optional(path: Path, check: Check) -> dict[str, Any]:
    """What a JSON file of the run says; nothing where there is none."""
    return read_json(path, check, _REMEDY) if path.is_file() else {}


def split_title(split: Split) -> str:
    """The word for a split in a heading."""
    return {"val": "validation", "test": "test"}[split]
