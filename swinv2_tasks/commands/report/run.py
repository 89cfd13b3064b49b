"""What a run has written, as the report reads it: its config, its starts, its metrics, its evaluations."""

from __future__ import annotations

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
        return str(self.config.get("model", {}).get("class_path", "")).rpartition(".")[2]

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
