"""A training as a config describes it, with its model on the meta device: its memory can be estimated without it."""

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
from swinv2_tasks.cli.parser import instantiate
from swinv2_tasks.cli.tasks_cli import ParseOnlyCLI, run_as
from swinv2_tasks.errors import UserError
from swinv2_tasks.tasks.base import BaseTask
from swinv2_tasks.tasks.classifier import ClassifierTask
from swinv2_tasks.training.classes import check_channels

Sharding = Literal["none", "optimizer", "full"]


@dataclass(frozen=True)
class Plan:
    """The settings of a training that its memory depends on and that leave the model as the config describes it."""

    precision: str
    """Lightning's full name, such as ``bf16-mixed``."""
    batch_size: int
    """Samples per batch and process."""
    accumulate_grad_batches: int
    """Batches per optimizer step."""
    checkpoint_stages: bool | None = None
    """Whether all blocks are under activation checkpointing; None: as in the config."""
    attention_chunk_size: int | None = None
    """Windows attended to at once; None: as in the config."""
    sharding: Sharding = "none"
    eight_bit_states: bool = False
    """Whether 8-bit optimizer states take the place of those in the config."""


@dataclass(frozen=True)
class Training:
    """A training as a config describes it."""

    task: BaseTask
    """On the meta device."""
    data: Any
    """The datamodule, a ``TaskData``."""
    plan: Plan
    """The settings of the config."""
    processes: int
    has_ema_copy: bool
    """Whether an EMA copy of the weights is on the device."""
    notes: tuple[str, ...]
    """What was assumed, in sentences to print."""

    def example_batch(self, batch_size: int) -> dict[str, Any]:
        """A batch of the training's data, of arbitrary values; with the labels that a multi-label task takes."""
        num_classes = getattr(self.task, "num_classes", 0)
        batch = self.data.example_batch(batch_size, num_classes)
        if isinstance(self.task, ClassifierTask) and self.task.multi_label:
            batch["label"] = torch.empty(batch_size, num_classes)
        return batch


def read_training(arguments: Sequence[str], num_classes: int | None = None, processes: int | None = None) -> Training:
    """Reads the training that arguments of ``fit`` describe.

    Args:
        arguments: as on the command line, ``--config`` among them.
        num_classes: number of classes; None: that of the data, or the usual one where there is no dataset.
        processes: of the training; None: as in the config.

    Raises:
        UserError: there is a mistake in the arguments, the data has no example batch, or the task is of another
            package.
    """
    config = run_as(ParseOnlyCLI, "fit", arguments).config["fit"]
    trainer = config["trainer"]
    notes: list[str] = []

    data = instantiate("data", LightningDataModule, config["data"].as_dict())
    if not isinstance(data, TaskData) or data.batch_size is None:
        raise UserError(
            f"memory needs a training batch to go by, which {type(data).__name__} does not give: derive it from "
            "swinv2_tasks.TaskData, and give it batch_size and a method example_batch"
        )

    model = copy.deepcopy(config["model"].as_dict())
    init_args = model.setdefault("init_args", {})
    init_args["weights"] = None  # they are not read, and the memory does not depend on them
    if "num_classes" in inspect.signature(resolve_name(model["class_path"])).parameters:
        if num_classes is None:
            num_classes, note = count_classes(data)
            notes += [note] if note else []
        init_args["num_classes"] = num_classes

    with torch.device("meta"):
        task = instantiate("model", LightningModule, model)
    if not isinstance(task, BaseTask):
        raise UserError(
            f"memory estimates tasks of this package, and {type(task).__name__} is none: derive it from BaseTask"
        )
    check_channels(task, data)
    task.set_class_weights(None)  # which take no memory, and may follow from data that are not read
    if isinstance(task, ClassifierTask) and task.multi_label is None:
        task.multi_label = _is_multi_label(data)

    sharding = _sharding_of(trainer["strategy"])
    if processes is None:
        processes = _count_processes(trainer)
        if sharding != "none" and processes == 1:
            notes.append("on 1 process; set the number over which it is sharded by --processes N")
    if data.example_note is not None:
        notes.append(data.example_note)

    plan = Plan(
        precision=_full_precision_name(trainer["precision"]),
        batch_size=data.batch_size,
        accumulate_grad_batches=trainer["accumulate_grad_batches"],
        sharding=sharding,
    )
    has_ema_copy = _has_ema_copy(trainer["callbacks"] or [])
    return Training(task, data, plan, processes, has_ema_copy, tuple(notes))


def _sharding_of(strategy: Any) -> Sharding:
    """What is sharded under a strategy, which is a name or a class path with arguments."""
    name = strategy if isinstance(strategy, str) else strategy["class_path"]
    if re.search(r"Sharded|ModelParallel|fsdp", name, re.IGNORECASE):
        return "full"
    return "optimizer" if "Zero" in name else "none"


def _count_processes(trainer: Any) -> int:
    """Number of processes that the trainer's settings ask for."""
    devices = trainer["devices"]
    number = 1  # with auto, the number depends on a machine that is not known here
    if isinstance(devices, list):
        number = len(devices)
    elif str(devices).isdecimal():
        number = int(devices)
    return max(1, number) * trainer["num_nodes"]


def _has_ema_copy(callbacks: Sequence[Any]) -> bool:
    """Whether callbacks keep an average of the weights on the device."""
    averages = [callback for callback in callbacks if _class_path(callback).endswith("WeightAveraging")]
    return any(str(_init_args(callback).get("device")) != "cpu" for callback in averages)


def _class_path(part: Any) -> str:
    """Class path of a part of a config, which may be an instance already."""
    return str(part["class_path"]) if "class_path" in part else type(part).__name__


def _init_args(part: Any) -> dict[str, Any]:
    """Arguments of a part of a config; none of an instance."""
    arguments = part.get("init_args") if "class_path" in part else None
    if arguments is None:
        return {}
    return dict(arguments.as_dict() if hasattr(arguments, "as_dict") else arguments)


def _full_precision_name(precision: Any) -> str:
    """Lightning's full name of a precision, of which it takes short ones as well."""
    full_names = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "None": "32-true"}
    return full_names.get(str(precision), str(precision))


def _is_multi_label(data: TaskData) -> bool | None:
    """Whether a dataset's samples have several labels; None where there is no dataset, or it is not in order."""
    try:
        return data.multi_label
    except UserError:
        return None


def count_classes(data: Any) -> tuple[int, str]:
    """Counts the classes of a dataset, or assumes the usual number where there is no dataset.

    Returns:
        The number of classes, and a note where it was assumed, else an empty string.
    """
    try:
        return data.num_classes, ""
    except UserError:
        number = 21_841 if "22k" in str(data.root) else data.published_classes
        return number, f"{number} classes assumed: no dataset in {data.root}; others: --num_classes N"
