"""``swinv2-tasks memory --config CONFIG``: what a training takes of a GPU's memory, and what would make it fit.

The arguments are those of ``fit``. The model is built without memory for its weights, and nothing is read but class
lists. How a step's memory is found: ``swinv2_tasks.step_memory``. Sharded over N processes: of optimizer states (ZeRO
stage 1) and of everything but activations (full sharding), https://arxiv.org/abs/1910.02054, each process holds one
Nth; full sharding also holds two of the model's units (its blocks, or all the rest) as a whole, and one's gradients.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from rich.console import Console
from rich.table import Table

from swinv2_tasks.backbone.checkpoint_files import replace_file
from swinv2_tasks.backbone.swin_v2 import SwinBlock, SwinStage
from swinv2_tasks.backbone.window import WindowGrid
from swinv2_tasks.cli import TasksArgumentParser, TasksCLI, known_configs, quieten, with_configs_found
from swinv2_tasks.datamodules import (
    ADE20KDataModule,
    CocoDataModule,
    ImageNetDataModule,
    KineticsDataModule,
    SimMIMDataModule,
)
from swinv2_tasks.errors import UserError
from swinv2_tasks.step_memory import PRECISIONS, StepMemory, step_memory
from swinv2_tasks.tasks.base import BaseTask

GIB = 2**30
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": GIB, "TiB": 2**40}
GPUS = {
    "H200": 139 * GIB,
    "H100": 79 * GIB,
    "A100-80GB": 79 * GIB,
    "A100-40GB": 39 * GIB,
    "L40S": 44 * GIB,
    "RTX4090": 23 * GIB,
    "RTX3090": 23 * GIB,
    "T4": 14 * GIB,
}
"""What a driver leaves of a GPU's memory, rounded down."""

CONTEXT_BYTES, LOST_SHARE = 3 * GIB // 4, 0.05
"""Of a GPU's memory: what CUDA and its libraries take, and the share that an allocator loses between blocks. These are
allowances, not measurements."""

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


@dataclass(frozen=True)
class Estimate:
    """What a plan takes of one device, in bytes."""

    plan: Plan
    total: int
    step: StepMemory
    copies: int
    """The average of the weights, and the buckets in which processes exchange gradients."""


class _Parsed(TasksCLI):
    """Takes the arguments of ``fit``, and does nothing with them."""

    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def after_instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def run(arguments: Sequence[str]) -> None:
    """Prints what a training takes; the arguments are those of ``fit`` and a few of its own.

    Raises:
        UserError: for a mistake in configs or settings.
    """
    parser = argparse.ArgumentParser("swinv2-tasks memory", description=__doc__, allow_abbrev=False, add_help=True)
    parser.add_argument("--gpu", help="memory to fit into: 24GiB, 80GB, or a name such as H100")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="kind of device that trains")
    parser.add_argument("--processes", type=int, help="processes of the training; default: as the config says, else 1")
    parser.add_argument("--num_classes", type=int, help="number of classes, where there is no dataset to tell")
    parser.add_argument("--json", metavar="FILE", type=Path, help="writes the figures to a file as well")
    own, rest = parser.parse_known_args([*arguments])
    for name in ("processes", "num_classes"):
        if getattr(own, name) is not None and getattr(own, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(own, name)}")
    own.gpu = None if own.gpu is None else gpu_bytes(own.gpu)
    if not any(argument.partition("=")[0] in ("--config", "-c") for argument in rest):
        raise UserError(f"memory needs --config CONFIG, as fit does. Configs: {', '.join(known_configs())}.")
    training = described(rest, own.num_classes, own.processes)
    estimates = Estimates(training, own.device)
    base = estimates[training.plan]
    console = Console()
    console.print(parts_table(base))
    for note in training.notes:
        console.print(f"[dim]{note}[/dim]", highlight=False)
    changes = [base, *(estimates[plan] for plan in levers(training))]
    room = None if own.gpu is None else available(own.gpu)
    console.print(levers_table(changes, training, room))
    found = None
    if own.gpu is not None:
        found = cheapest(estimates, training, available(own.gpu))
        console.print(verdict(base, found, training, own.gpu), highlight=False)
    if own.json is not None:
        text = json.dumps(record(changes, found, training, own), indent=2) + "\n"
        replace_file(own.json, lambda file: file.write_text(text))


# ---- the config


def described(arguments: Sequence[str], num_classes: int | None = None, processes: int | None = None) -> Training:
    """The training that arguments of ``fit`` describe.

    Args:
        arguments: as on the command line, ``--config`` among them.
        num_classes: number of classes; None: that of the data, or the usual one where there is no dataset.
        processes: of the training; None: as the config says.
    """
    quieten()
    config = _Parsed(["fit", *with_configs_found(arguments)]).config["fit"]
    data = _instantiated("data", LightningDataModule, config["data"].as_dict())
    notes = []
    model = copy.deepcopy(config["model"].as_dict())
    if "num_classes" in inspect.signature(_class_of(model)).parameters:
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


def _class_of(part: dict[str, Any]) -> type:
    module, _, name = part["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)


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
        return torch.empty(batch_size, 3, *_sides(size))

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
            size = _sides(settings["image_size"])
            patches = [side // data.mask_patch_size for side in size]
            return {"image": images(size), "mask": torch.empty(batch_size, *patches, dtype=torch.bool)}
        if isinstance(data, ADE20KDataModule):
            size = _sides(settings["crop_size"])
            return {"image": images(size), "mask": torch.empty(batch_size, *size, dtype=whole)}
        if isinstance(data, KineticsDataModule):
            clip = torch.empty(batch_size, 1, 3, data.sampling.frames, *_sides(settings["image_size"]))
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


def _sides(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def largest_size(data: CocoDataModule) -> tuple[int, int]:
    """Height and width of the largest images that training batches are padded to."""
    settings = data.init_args
    if settings["jitter"] is not None:
        return _sides(settings["jitter_size"])
    least, greatest = settings["short_sides"]
    short = min(max(range(least, greatest + 1, settings["short_step"])), settings["max_side"])
    return (short if settings["group_shapes"] else settings["max_side"]), settings["max_side"]


# ---- what plans take


class Estimates:
    """Estimates of plans of a training, each made once.

    Args:
        training: as a config describes it.
        device: ``cuda`` or ``cpu``.
    """

    def __init__(self, training: Training, device: str) -> None:
        self.training, self.device = training, device
        self._step = lru_cache(None)(self._new_step)

    def __getitem__(self, plan: Plan) -> Estimate:
        step = self._step(replace(plan, sharding="none"))
        processes = self.training.processes
        total = total_bytes(step, plan.sharding, processes)
        copies = _average(self.training, step, plan.sharding) + (
            step.sum("gradients") if processes > 1 and plan.sharding != "full" else 0
        )
        return Estimate(plan, total + copies, step, copies)

    def _new_step(self, plan: Plan) -> StepMemory:
        training = self.training
        task = copy.deepcopy(training.task)
        for stage in cast(list[SwinStage], list(task.backbone.layers)):
            if plan.checkpointed is not None:
                stage.use_checkpoint = plan.checkpointed
            for block in cast(list[SwinBlock], list(stage.blocks)):
                if plan.chunk is not None:
                    block.attention_chunk_size = plan.chunk
        return step_memory(
            task,
            example_batch(training, plan.batch_size),
            device=self.device,
            precision=plan.precision,
            accumulates=plan.accumulated > 1,
        )


def _average(training: Training, step: StepMemory, sharding: Sharding) -> int:
    if not training.averaged:
        return 0
    return (step.sum("parameters") + step.buffers) // (training.processes if sharding == "full" else 1)


def total_bytes(step: StepMemory, sharding: Sharding, processes: int) -> int:
    """The most that a step takes on each of several processes, without copies."""
    left = 1 - 1 / processes
    if sharding == "none" or processes == 1:
        return step.peak
    states = step.sum("optimizer")
    held = step.sum("parameters") + step.sum("gradients") + states
    scratch = step.optimizer_peak - held - step.buffers
    if sharding == "optimizer":
        return max(step.passes_peak - round(left * states), step.optimizer_peak - round(left * (states + scratch)))
    whole = 3 * step.largest_unit
    return max(step.passes_peak - round(left * held) + whole, step.optimizer_peak - round(left * (held + scratch)))


def levers(training: Training) -> list[Plan]:
    """Plans that each change one thing about a training."""
    plan, plans = training.plan, []
    if not all(stage.use_checkpoint for stage in training.task.backbone._stages):
        plans.append(replace(plan, checkpointed=True))
    plans.append(replace(plan, chunk=chunk_size(training)))
    if plan.batch_size > 1:
        plans.append(_smaller(plan, plan.batch_size // 2))
    if plan.precision != "bf16-true":
        plans.append(replace(plan, precision="bf16-true"))
    if training.processes > 1:
        plans += [replace(plan, sharding=kind) for kind in ("optimizer", "full") if kind != plan.sharding]
    return plans


def chunk_size(training: Training) -> int:
    """Windows attended to at once so that the first stage takes eight turns."""
    make = example_batch(training, 1)
    with torch.device("meta"):
        batch = make()
    if "images" in batch:
        multiple = training.task.multiple
        size = tuple(-(-side // multiple) * multiple for side in batch["images"][0].shape[1:])
    else:
        size = training.task.input_size_of(batch)
        if "clip" in batch:
            size = tuple(batch["clip"].shape[3:])
    backbone = training.task.backbone
    tokens = tuple(-(-side // patch) for side, patch in zip(size, backbone.patch_size, strict=True))
    counts = WindowGrid.fit(tokens, backbone.window_size[0], shifted=False).counts
    windows = 1
    for count in counts:
        windows *= count
    return max(1, windows // 8)


def _smaller(plan: Plan, batch_size: int) -> Plan:
    """As many samples per step in smaller batches, where the number can be divided so."""
    samples = plan.batch_size * plan.accumulated
    return replace(plan, batch_size=batch_size, accumulated=-(-samples // batch_size))


def available(gpu: int) -> int:
    """What a training can use of a GPU's memory."""
    return int((gpu - CONTEXT_BYTES) * (1 - LOST_SHARE))


def cheapest(estimates: Estimates, training: Training, room: int) -> Estimate | None:
    """The first plan that fits, from the one that costs least to the one that costs most; None when none does."""
    base = estimates[training.plan]
    for plan in candidates(training):
        if least_bytes(base, plan, training.processes) > room:
            continue  # whatever is done about activations
        estimate = estimates[plan]
        if estimate.total <= room:
            return estimate
    return None


def least_bytes(base: Estimate, plan: Plan, processes: int) -> int:
    """What another plan takes in parameters, gradients and optimizer states alone."""
    scale = PRECISIONS[plan.precision][0].itemsize / PRECISIONS[base.plan.precision][0].itemsize
    weights, states = base.step.sum("parameters") + base.step.sum("gradients"), base.step.sum("optimizer")
    shares = {"none": weights + states, "optimizer": weights + states / processes}
    return int(scale * shares.get(plan.sharding, (weights + states) / processes))


def candidates(training: Training) -> Iterator[Plan]:
    """Plans by what they cost: nothing; sharded optimizer states; batches down to 8; blocks computed again; smaller
    batches; attention in chunks; everything sharded; parameters in bfloat16."""
    plan = training.plan
    kinds: list[Sharding] = [plan.sharding]
    if training.processes > 1:
        order: list[Sharding] = ["none", "optimizer", "full"]
        kinds = order[order.index(plan.sharding) : 2 if training.averaged else 3]  # an average is kept whole
    batches = [plan.batch_size]
    while batches[-1] > 1:
        batches.append(batches[-1] // 2)
    chunk = chunk_size(training)
    for precision in dict.fromkeys((plan.precision, "bf16-true")):
        for kind in kinds:
            start = replace(plan, precision=precision, sharding=kind)
            plans = [_smaller(start, size) for size in batches]
            yield from (one for one in plans if one.batch_size == plan.batch_size or one.batch_size >= 8)
            yield from (replace(one, checkpointed=True) for one in plans)
            yield replace(plans[-1], checkpointed=True, chunk=chunk)


def changes(plan: Plan, training: Training) -> list[tuple[str, str]]:
    """What a plan changes, in words, and the arguments that do so."""
    base, found = training.plan, []
    if plan.sharding != base.sharding:
        name, overlay = {
            "optimizer": ("optimizer states sharded (ZeRO-1)", "--config overlays/zero1.yaml"),
            "full": ("everything sharded (FSDP)", "--config overlays/fsdp.yaml"),
        }[plan.sharding]
        found.append((f"{name} over {training.processes}", overlay))
    if plan.batch_size != base.batch_size:
        arguments = f"--data.batch_size {plan.batch_size} --trainer.accumulate_grad_batches {plan.accumulated}"
        found.append((f"batch {plan.batch_size}, {plan.accumulated} accumulated", arguments))
    if plan.checkpointed:
        found.append(("blocks computed again", "--model.backbone.init_args.checkpoint_stages true"))
    if plan.chunk is not None:
        argument = f"--model.backbone.init_args.attention_chunk_size {plan.chunk}"
        found.append((f"attention to {plan.chunk} windows at once", argument))
    if plan.precision != base.precision:
        found.append((f"parameters in {plan.precision}", f"--trainer.precision {plan.precision}"))
    return found


# ---- what is shown


def gpu_bytes(text: str) -> int:
    """Bytes of ``24GiB``, ``80GB`` or a GPU's name.

    Raises:
        UserError: when it is neither.
    """
    for name, size in GPUS.items():
        if text.lower().replace(" ", "") == name.lower():
            return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B)\s*", text)
    if match is None or float(match[1]) <= 0:
        raise UserError(f"--gpu {text}: expected a number and a unit, as 24GiB or 80GB, or one of {', '.join(GPUS)}")
    return int(float(match[1]) * UNITS[match[2]])


def shown(size: float) -> str:
    """A size in GiB or MiB."""
    return f"{size / GIB:,.2f} GiB" if abs(size) >= GIB else f"{size / 2**20:,.1f} MiB"


def parts_table(estimate: Estimate) -> Table:
    step, plan = estimate.step, estimate.plan
    table = Table(
        title=f"a training step, batch {plan.batch_size}, {plan.precision}: MiB on one device",
        box=None,
        pad_edge=False,
    )
    for column in ("", "weights", "parameters", "gradients", "optimizer", "activations", "total"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)

    def row(name: str, weights: int | None, *sizes: int, style: str = "") -> None:
        cells = [""] * (5 - len(sizes)) + [f"{size / 2**20:,.1f}" for size in sizes]
        table.add_row(name, "" if weights is None else f"{weights / 1e6:,.2f} M", *cells, style=style)

    kinds = ("parameters", "gradients", "optimizer", "activations", "total")
    for part in step.parts:
        row(part.name, part.weights, *(getattr(part, kind) for kind in kinds))
    table.add_row()
    row("all", step.sum("weights"), *(step.sum(kind) for kind in kinds))
    if step.buffers:
        row("buffers", None, step.buffers)
    row("under way", None, step.working)
    if estimate.copies:
        row("copies", None, estimate.copies)
    row("peak", None, step.peak + estimate.copies, style="bold")
    return table


def levers_table(estimates: Sequence[Estimate], training: Training, room: int | None) -> Table:
    table = Table(
        title=f"on each of {training.processes} processes" if training.processes > 1 else "what would change it"
    )
    for column in ("", "peak", *(["fits"] if room is not None else []), "arguments"):
        table.add_column(column, justify="right" if column == "peak" else "left", overflow="fold")
    for estimate in estimates:
        found = changes(estimate.plan, training)
        name, arguments = found[0] if found else ("as configured", "")
        fits = [] if room is None else ["yes" if estimate.total <= room else "no"]
        table.add_row(name, shown(estimate.total), *fits, arguments)
    return table


def verdict(base: Estimate, found: Estimate | None, training: Training, gpu: int) -> str:
    """Whether a training fits, and the cheapest way to make it fit."""
    room = f"{shown(available(gpu))} of {shown(gpu)} (the rest for CUDA, {shown(CONTEXT_BYTES)}, and {LOST_SHARE:.0%})"
    if found is not None and found.plan == base.plan:
        return f"fits: {shown(base.total)} into {room}"
    lines = [f"does not fit: {shown(base.total)} into {room}"]
    if found is None:
        more = (
            f"more than {training.processes} processes"
            if training.processes > 1
            else "several processes, --processes N"
        )
        lines.append(f"nor does anything that is known here: it takes {more}, smaller images or another model")
    else:
        lines += [f"cheapest that fits: {shown(found.total)}, with"]
        lines += [f"  {arguments}" for _, arguments in changes(found.plan, training)]
    return "\n".join(lines)


def record(
    estimates: Sequence[Estimate], found: Estimate | None, training: Training, own: argparse.Namespace
) -> dict[str, Any]:
    """The figures as plain values."""
    base = estimates[0]

    def plain(estimate: Estimate) -> dict[str, Any]:
        arguments = [arguments for _, arguments in changes(estimate.plan, training)]
        return {"plan": asdict(estimate.plan), "bytes": estimate.total, "arguments": arguments}

    return {
        "device": own.device,
        "processes": training.processes,
        "notes": [*training.notes],
        "parts": [{**asdict(part), "total": part.total} for part in base.step.parts],
        "buffers": base.step.buffers,
        "working": base.step.working,
        "copies": base.copies,
        "peak": base.step.peak + base.copies,
        "levers": [plain(estimate) for estimate in estimates],
        "gpu": None if own.gpu is None else {"bytes": own.gpu, "available": available(own.gpu)},
        "fits": None if own.gpu is None else base.total <= available(own.gpu),
        "cheapest": None if found is None else plain(found),
    }
