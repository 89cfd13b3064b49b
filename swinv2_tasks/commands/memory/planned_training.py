"""A training as a config describes it, with a model that has no memory for its weights: what can be asked of it without
doing it."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from swinv2_tasks.cli.parser import TasksArgumentParser
from swinv2_tasks.cli.tasks_cli import ReadingCLI, run_as
from swinv2_tasks.datamodules import (
    ADE20KDataModule,
    CocoDataModule,
    ImageNetDataModule,
    KineticsDataModule,
    SimMIMDataModule,
)
from swinv2_tasks.errors import UserError
from swinv2_tasks.inference.segmentation import pair
from swinv2_tasks.tasks.base import BaseTask

CLASSES: dict[type, int] = {
    ImageNetDataModule: 1000,
    CocoDataModule: 80,
    ADE20KDataModule: 150,
    KineticsDataModule: 400,
}
OBJECTS = 20
"""Annotated objects of each image of a detector's batch, with masks."""

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


def described(arguments: Sequence[str], num_classes: int | None = None, processes: int | None = None) -> Training:
    """The training that arguments of ``fit`` describe.

    Args:
        arguments: as on the command line, ``--config`` among them.
        num_classes: number of classes; None: that of the data, or the usual one where there is no dataset.
        processes: of the training; None: as the config says.
    """
    config = run_as(ReadingCLI, "fit", arguments).config["fit"]
    data = _instantiated("data", LightningDataModule, config["data"].as_dict())
    notes = []
    model = copy.deepcopy(config["model"].as_dict())
    if "num_classes" in inspect.signature(resolve_name(model["class_path"])).parameters:
        if num_classes is None:
            num_classes, note = classes_of(data)
            notes += [note] if note else []
        model.setdefault("init_args", {})["num_classes"] = num_classes
    model["init_args"]["weights"] = None  # whatever they are, they take no more
    with torch.device("meta"):
        task = _instantiated("model", LightningModule, model)
    if not isinstance(task, BaseTask):
        raise UserError(f"memory knows the tasks of this package, not {type(task).__name__}")
    trainer = config["trainer"]
    strategy = trainer["strategy"]
    name = strategy if isinstance(strategy, str) else strategy["class_path"]
    sharding: Sharding = "none"
    if re.search(r"Sharded|ModelParallel|fsdp", name, re.IGNORECASE):
        sharding = "full"
    elif "Zero" in name:
        sharding = "optimizer"
    if processes is None:
        devices = trainer["devices"]
        counted = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else 1
        processes = max(1, counted) * trainer["num_nodes"]
        if sharding != "none" and processes == 1:
            notes.append("on 1 process; --processes N tells of how many the shares are")
    averages = [one for one in trainer["callbacks"] or [] if _class_path(one).endswith("WeightAveraging")]
    averaged = any(str((_arguments(one)).get("device")) != "cpu" for one in averages)
    plan = Plan(
        _precision(trainer["precision"]), data.batch_size, trainer["accumulate_grad_batches"], sharding=sharding
    )
    if isinstance(data, CocoDataModule):
        notes.append(f"images of the greatest size that a batch may have, {OBJECTS} objects each")
    return Training(task, data, plan, processes, averaged, tuple(notes))


def _instantiated(name: str, base: type, part: dict[str, Any]) -> Any:
    parser = TasksArgumentParser()
    parser.add_lightning_class_args(base, name, subclass_mode=True)
    return parser.instantiate_classes(parser.parse_object({name: part}))[name]


def _class_path(part: Any) -> str:
    return str(part["class_path"]) if "class_path" in part else type(part).__name__


def _arguments(part: Any) -> dict[str, Any]:
    arguments = part.get("init_args") if "class_path" in part else None
    return {} if arguments is None else dict(arguments.as_dict() if hasattr(arguments, "as_dict") else arguments)


def _precision(stated: Any) -> str:
    """Lightning's full name of a precision."""
    return {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "None": "32-true"}.get(
        str(stated), str(stated)
    )


def classes_of(data: Any) -> tuple[int, str]:
    """Number of classes of a dataset, and what to say where it was assumed."""
    try:
        return data.num_classes, ""
    except UserError:
        number = 21_841 if "22k" in str(data.root) else CLASSES.get(type(data), 1000)
        return number, f"{number} classes assumed: no dataset in {data.root}; --num_classes says another number"


def example_batch(training: Training, batch_size: int) -> Callable[[], dict[str, Any]]:
    """What builds a batch of a training's data, of arbitrary values.

    Raises:
        UserError: for data of others than this package's datamodules.
    """
    data = training.data
    settings = data.init_args
    whole = torch.int64

    def images(size: Any) -> torch.Tensor:
        return torch.empty(batch_size, 3, *pair(size))

    def objects(size: tuple[int, int]) -> dict[str, Any]:
        target: dict[str, Any] = {"boxes": torch.empty(OBJECTS, 4), "labels": torch.empty(OBJECTS, dtype=whole)}
        if data.masks:
            target["masks"] = torch.empty(OBJECTS, *size, dtype=torch.uint8)
        if data.train_stuff is not None:
            target["stuff"] = torch.empty(size, dtype=torch.uint8)
        return target

    def make() -> dict[str, Any]:
        if isinstance(data, ImageNetDataModule):
            classes = cast(int, training.task.num_classes)
            shape = (batch_size, classes) if any(data.mix[:2]) else (batch_size,)
            label = torch.empty(shape, dtype=torch.get_default_dtype() if len(shape) == 2 else whole)
            return {"image": images(data.image_size), "label": label}
        if isinstance(data, SimMIMDataModule):
            size = pair(settings["image_size"])
            patches = [side // data.mask_patch_size for side in size]
            return {"image": images(size), "mask": torch.empty(batch_size, *patches, dtype=torch.bool)}
        if isinstance(data, ADE20KDataModule):
            size = pair(settings["crop_size"])
            return {"image": images(size), "mask": torch.empty(batch_size, *size, dtype=whole)}
        if isinstance(data, KineticsDataModule):
            clip = torch.empty(batch_size, 1, 3, data.sampling.frames, *pair(settings["image_size"]))
            return {"clip": clip, "label": torch.empty(batch_size, dtype=whole)}
        size = largest_size(data)
        return {
            "images": [torch.empty(3, *size) for _ in range(batch_size)],
            "targets": [objects(size) for _ in range(batch_size)],
        }

    known = (ImageNetDataModule, SimMIMDataModule, ADE20KDataModule, KineticsDataModule, CocoDataModule)
    if not isinstance(data, known):
        raise UserError(f"memory knows the batches of this package's datamodules, not those of {type(data).__name__}")
    return make


def largest_size(data: CocoDataModule) -> tuple[int, int]:
    """Height and width of the largest images that training batches are padded to."""
    settings = data.init_args
    if settings["jitter"] is not None:
        return pair(settings["jitter_size"])
    least, greatest = settings["short_sides"]
    short = min(max(range(least, greatest + 1, settings["short_step"])), settings["max_side"])
    return (short if settings["group_shapes"] else settings["max_side"]), settings["max_side"]
