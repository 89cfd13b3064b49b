"""``swinv2-tasks memory --config CONFIG``: what a training takes of a GPU's memory, and what would make it fit.

The arguments are those of ``fit``. The model is built without memory for its weights, and nothing is read but class
lists. How a step's memory is found: ``swinv2_tasks.commands.memory.step_memory``. Sharded over N processes: of
optimizer states (ZeRO stage 1) and of everything but activations (full sharding), https://arxiv.org/abs/1910.02054,
each process holds one Nth; full sharding also holds two of the model's units (its blocks, or all the rest) as a
whole, and one's gradients.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table

from swinv2_tasks.backbone.swin_v2 import SwinBlock, SwinStage
from swinv2_tasks.backbone.window import WindowGrid
from swinv2_tasks.cli.configs import known_configs
from swinv2_tasks.commands.memory.planned_training import Plan, Sharding, Training, described, example_batch
from swinv2_tasks.commands.memory.step_memory import PRECISIONS, StepMemory, step_memory
from swinv2_tasks.errors import UserError
from swinv2_tasks.training.optim import optimizer_class
from swinv2_tasks.weights.files import replace_file

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


EIGHT_BIT = "bitsandbytes.optim.AdamW8bit"


@dataclass(frozen=True)
class Estimate:
    """What a plan takes of one device, in bytes."""

    plan: Plan
    total: int
    step: StepMemory
    copies: int
    """The average of the weights, and the buckets in which processes exchange gradients."""


def from_command_line(arguments: Sequence[str]) -> None:
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
        if plan.eight_bit:
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # without a GPU it tells of kernels it lacks
            task.optimizer = cast(Any, resolve_name(EIGHT_BIT))
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
    if takes_eight_bits(training):
        plans.append(replace(plan, eight_bit=True))
    if training.processes > 1:
        plans += [replace(plan, sharding=kind) for kind in ("optimizer", "full") if kind != plan.sharding]
    return plans


def takes_eight_bits(training: Training) -> bool:
    """Whether there is an optimizer that does as a training's own with states in 8 bits."""
    adamw = optimizer_class(training.task.optimizer) is torch.optim.AdamW
    return adamw and training.plan.sharding != "full" and find_spec("bitsandbytes") is not None


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
    return max(1, math.prod(counts) // 8)


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
    weights = base.step.sum("parameters") + base.step.sum("gradients")
    states = base.step.sum("optimizer") / (4 if plan.eight_bit else 1)
    shares = {"none": weights + states, "optimizer": weights + states / processes}
    return int(scale * shares.get(plan.sharding, (weights + states) / processes))


def candidates(training: Training) -> Iterator[Plan]:
    """Plans by what they cost: nothing; sharded optimizer states; batches down to 8; blocks computed again; smaller
    batches; attention in chunks; everything sharded; optimizer states in 8 bits; parameters in bfloat16."""
    plan = training.plan
    kinds: list[Sharding] = [plan.sharding]
    if training.processes > 1:
        order: list[Sharding] = ["none", "optimizer", "full"]
        kinds = order[order.index(plan.sharding) : 2 if training.averaged else 3]  # an average is kept whole
    batches = [plan.batch_size]
    while batches[-1] > 1:
        batches.append(batches[-1] // 2)
    chunk = chunk_size(training)
    states = (False, True) if takes_eight_bits(training) else (False,)
    precisions = dict.fromkeys((plan.precision, "bf16-true"))
    for precision, eight_bit, kind in itertools.product(precisions, states, kinds):
        if eight_bit and kind == "full":
            continue
        start = replace(plan, precision=precision, sharding=kind, eight_bit=eight_bit)
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
    if plan.eight_bit:
        found.append(("optimizer states in 8 bits", f"--model.optimizer {EIGHT_BIT}"))
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
