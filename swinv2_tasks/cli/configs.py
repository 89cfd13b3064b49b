"""Configs: those in ./configs and those that come with the package, by name, and the one that a checkpoint carries."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch

from swinv2_tasks import datamodules, tasks
from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.errors import UserError
from swinv2_tasks.hyperparameters import Recorded, recorded_arguments, task_record
from swinv2_tasks.training.run_folder import is_name
from swinv2_tasks.weights.files import read_contents

TASKS = [name for name in tasks.__all__ if name != "BaseTask"]
"""Names of the tasks that a checkpoint may ask for."""

DATAMODULES = [name for name in datamodules.__all__ if name != "BaseDataModule"]
"""Names of the datamodules that a checkpoint may ask for."""


def shipped_configs() -> Path:
    """The folder of configs that come with the package."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def known_configs() -> list[str]:
    """Names by which configs can be given: those in ./configs and those shipped."""
    folders = (Path("configs"), shipped_configs())
    return sorted({str(path.relative_to(folder)) for folder in folders for path in folder.rglob("*.yaml")})


def find_config(name: str) -> Path:
    """The config of a name: a path, else one in ./configs, else one that comes with the package.

    Raises:
        UserError: when there is none, with the nearest and all known names.
    """
    for candidate in (Path(name), Path("configs") / name, shipped_configs() / name):
        if candidate.is_file():
            return candidate
    near = difflib.get_close_matches(name, known_configs(), n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"no config {name!r}: not a file, nor in ./configs, nor shipped.{hint} Known: {', '.join(known_configs())}."
    )


def config_from_checkpoint(path: str, *, predict: bool = False) -> dict[str, Any]:
    """The config that a checkpoint carries: its own model and data, named by this package's classes only.

    Args:
        path: a checkpoint of a run.
        predict: classes are then stated by the checkpoint, so that the dataset need not be there.

    Raises:
        UserError: when the file is no checkpoint of a run, or names classes that are not this package's.
    """
    record = task_record(read_contents(Path(path)), path)
    task, data = record["task"], record["data"]
    if task["class"] not in TASKS or data is None or data["class"] not in DATAMODULES:
        raise UserError(
            f"{path} was made with {task['class']} and {data and data['class']}, which are not both this package's; "
            "give the run's config with --config."
        )
    with torch.device("meta"):
        SwinTransformerV2.from_config(record["backbone"])  # refuses any position bias but this package's
    backbone = {**record["backbone"], "position_bias": f"swinv2_tasks.backbone.{record['backbone']['position_bias']}"}
    backbone_config = {"class_path": "swinv2_tasks.backbone.SwinTransformerV2", "init_args": backbone}
    recorded_arguments(getattr(datamodules, data["class"]), data["init_args"], path)  # complains
    data_args = dict(data["init_args"])
    if predict:
        for name in ("faulty_samples", "faulty_budget"):  # what the training made of bad samples says nothing here
            data_args.pop(name, None)
    if predict and record["classes"]["ids"]:
        data_args["class_names"] = [str(class_id) for class_id in record["classes"]["ids"]]
    built = recorded_arguments(getattr(tasks, task["class"]), task["init_args"], path)  # complains
    task_args = {
        name: _as_config(built[name]) if isinstance(built[name], Recorded) else value
        for name, value in task["init_args"].items()
        if name not in ("num_classes", "weights")
    }
    name = Path(record["name"]).name  # a file does not choose folders outside --runs
    return {
        "name": name if is_name(name) else "run",
        "model": {
            "class_path": f"swinv2_tasks.tasks.{task['class']}",
            "init_args": {"backbone": backbone_config, **task_args},
        },
        "data": {"class_path": f"swinv2_tasks.datamodules.{data['class']}", "init_args": data_args},
    }


def _as_config(settings: Recorded) -> dict[str, Any]:
    """Recorded settings as a config names them."""
    cls = type(settings)
    return {"class_path": f"{cls.__module__}.{cls.__name__}", "init_args": settings.init_args}
