"""A training as a config describes it, with a model that has no memory for its weights: what can be asked of it without
doing it."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from swinv2_tasks.batches import TaskData
from swinv2_tasks.cli.parser import TasksArgumentParser
from swinv2_tasks.cli.tasks_cli import ParseOnlyCLI, run_as
from swinv2_tasks.errors import UserError
from swinv2_tasks.tasks.base import BaseTask

Sharding = Literal["none", "optimizer", "full"]


@dataclass(frozen=True)
class Plan:
    """The settings of a training that its memory depends on and that can be changed without changing the model."""

    precision: str
    batch_size: int
    accumulated: int
    """Batches per optimizer step."""
    checkpointed: bool | None = None
    """Whether all blocks are computed again in the backward pass; None: as the config says."""
    chunk: int | None = None
    """Windows attended to at once; None: as the config says."""
    sharding: Sharding = "none"
    eight_bit: bool = False
    """Whether the optimizer's states are in 8 bits where they are not in the config."""


@dataclass(frozen=True)
class Training:
    """A training as a config describes it."""

    task: BaseTask
    """Without memory for its weights."""
    data: Any
    plan: Plan
    processes: int
    averaged: bool
    """Whether an average of the weights is kept beside them."""
    notes: tuple[str, ...]
    """What was assumed."""

    def example_batch(self, batch_size: int) -> dict[str, Any]:
        """A batch of the training's data, of arbitrary values."""
        return self.data.example_batch(batch_size, getattr(self.task, "num_classes", 0))


def read_training(arguments: Sequence[str], num_classes: int | None = None, processes: int | None = None) -> Training:
    """The training that arguments of ``fit`` describe.

    Args:
        arguments: as on the command line, ``--config`` among them.
        num_classes: number of classes; None: that of the data, or the usual one where there is no dataset.
        processes: of the training; None: as the config says.

    Raises:
        UserError: for a mistake in the arguments, or data or a task that cannot be asked.
    """
    config = run_as(ParseOnlyCLI, "fit", arguments).config["fit"]
    trainer = config["trainer"]
    notes: list[str] = []

    data = _instantiate("data", LightningDataModule, config["data"].as_dict())
    if not isinstance(data, TaskData) or data.batch_size is None:
        raise UserError(
            f"memory needs a training batch to go by, which {type(data).__name__} does not give: derive it from "
            "swinv2_tasks.TaskData, and give it batch_size and a method example_batch"
        )

    model = copy.deepcopy(config["model"].as_dict())
    init_args = model.setdefault("init_args", {})
    init_args["weights"] = None  # whatever they are, they take no more
    if "num_classes" in inspect.signature(resolve_name(model["class_path"])).parameters:
        if num_classes is None:
            num_classes, note = count_classes(data)
            notes += [note] if note else []
        init_args["num_classes"] = num_classes
    with torch.device("meta"):
        task = _instantiate("model", LightningModule, model)
    if not isinstance(task, BaseTask):
        raise UserError(f"memory knows the tasks of this package, not {type(task).__name__}")

    sharding = _sharding_of(trainer["strategy"])
    if processes is None:
        processes = _count_processes(trainer)
        if sharding != "none" and processes == 1:
            notes.append("on 1 process; --processes N tells over how many it is sharded")
    if data.example_note is not None:
        notes.append(data.example_note)

    precision, accumulated = _full_name(trainer["precision"]), trainer["accumulate_grad_batches"]
    plan = Plan(precision, data.batch_size, accumulated, sharding=sharding)
    return Training(task, data, plan, processes, _averages_weights(trainer["callbacks"] or []), tuple(notes))


def _sharding_of(strategy: Any) -> Sharding:
    name = strategy if isinstance(strategy, str) else strategy["class_path"]
    if re.search(r"Sharded|ModelParallel|fsdp", name, re.IGNORECASE):
        return "full"
    return "optimizer" if "Zero" in name else "none"


def _count_processes(trainer: Any) -> int:
    devices = trainer["devices"]
    number = 1  # auto: nobody knows of which machine
    if isinstance(devices, list):
        number = len(devices)
    elif str(devices).isdecimal():
        number = int(devices)
    return max(1, number) * trainer["num_nodes"]


def _averages_weights(callbacks: Sequence[Any]) -> bool:
    """Whether callbacks keep an average of the weights on the device."""
    averages = [callback for callback in callbacks if _class_path(callback).endswith("WeightAveraging")]
    return any(str(_arguments(callback).get("device")) != "cpu" for callback in averages)


def _instantiate(name: str, base: type, part: dict[str, Any]) -> Any:
    parser = TasksArgumentParser()
    parser.add_lightning_class_args(base, name, subclass_mode=True)
    return parser.instantiate_classes(parser.parse_object({name: part}))[name]


def _class_path(part: Any) -> str:
    return str(part["class_path"]) if "class_path" in part else type(part).__name__


def _arguments(part: Any) -> dict[str, Any]:
    arguments = part.get("init_args") if "class_path" in part else None
    return {} if arguments is None else dict(arguments.as_dict() if hasattr(arguments, "as_dict") else arguments)


def _full_name(precision: Any) -> str:
    """Lightning's full name of a precision."""
    return {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "None": "32-true"}.get(
        str(precision), str(precision)
    )


def count_classes(data: Any) -> tuple[int, str]:
    """Number of classes of a dataset, and what to say where it was assumed."""
    try:
        return data.num_classes, ""
    except UserError:
        number = 21_841 if "22k" in str(data.root) else data.published_classes
        return number, f"{number} classes assumed: no dataset in {data.root}; --num_classes says another number"
