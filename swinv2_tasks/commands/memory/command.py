"""``swinv2-tasks memory --config CONFIG``: what a training takes of a GPU's memory, and what would make it fit.

The arguments are those of ``fit``. The model is built on the meta device, and nothing is read but class
lists. How a step's memory is found: ``swinv2_tasks.commands.memory.step_memory``. Sharded over N processes: of
optimizer states (ZeRO stage 1) and of everything but activations (full sharding), https://arxiv.org/abs/1910.02054,
each process holds one Nth; full sharding also holds two of the model's units (its blocks, or all the rest) as a
whole, and one's gradients.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from swinv2_tasks.cli.arguments import split_options, values_of
from swinv2_tasks.cli.configs import known_configs
from swinv2_tasks.commands.memory.estimate import (
    CONTEXT_BYTES,
    GIB,
    LOST_SHARE,
    Estimate,
    Estimates,
    available,
    changes,
    cheapest,
    memory_saving_plans,
)
from swinv2_tasks.commands.memory.planned_training import Training, read_training
from swinv2_tasks.errors import UserError
from swinv2_tasks.files import replace_file

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


def memory(
    arguments: Sequence[str],
    gpu: str | None = None,
    device: Literal["cuda", "cpu"] = "cuda",
    processes: int | None = None,
    num_classes: int | None = None,
    json: str | None = None,
) -> None:
    """Prints what a training takes of a GPU's memory, and what would make it fit, without doing it.

    The model is built on the meta device, and nothing is read but class lists. As in:
    swinv2-tasks memory --config imagenet.yaml --gpu 24GiB

    Args:
        arguments: what says the training, as ``fit`` takes it: ``["--config", "imagenet.yaml"]``, say.
        gpu: memory to fit into: 24GiB, 80GB, or a name such as H100.
        device: kind of device that trains.
        processes: processes of the training; default: as the config says, else 1.
        num_classes: number of classes, where there is no dataset to tell.
        json: file to write the figures to as well.

    Raises:
        UserError: for a mistake in configs or settings.
    """
    for name, number in (("processes", processes), ("num_classes", num_classes)):
        if number is not None and number < 1:
            raise UserError(f"--{name} must be at least 1, not {number}")
    size = None if gpu is None else gpu_bytes(gpu)
    if not values_of(split_options(arguments), "--config"):
        raise UserError(f"memory needs --config CONFIG, as fit does. Configs: {', '.join(known_configs())}.")

    training = read_training(arguments, num_classes, processes)
    estimates = Estimates(training, device)
    base = estimates[training.plan]
    console = Console()
    console.print(parts_table(base))
    for note in training.notes:
        console.print(f"[dim]{note}[/dim]", highlight=False)

    alternatives = [base, *(estimates[plan] for plan in memory_saving_plans(training))]
    console.print(plans_table(alternatives, training, None if size is None else available(size)))

    found = None
    if size is not None:
        found = cheapest(estimates, training, available(size))
        console.print(verdict(base, found, training, size), highlight=False)
    if json is not None:
        write_json(Path(json), record(alternatives, found, training, device, size))


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
    row("temporary buffers", None, step.temporary)
    if estimate.ema_copy:
        row("EMA copy", None, estimate.ema_copy)
    if estimate.ddp_buckets:
        row("DDP buckets", None, estimate.ddp_buckets)
    row("peak", None, step.peak + estimate.ema_copy + estimate.ddp_buckets, style="bold")
    return table


def plans_table(estimates: Sequence[Estimate], training: Training, room: int | None) -> Table:
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
    estimates: Sequence[Estimate], found: Estimate | None, training: Training, device: str, gpu: int | None
) -> dict[str, Any]:
    """The figures as plain values; ``gpu`` is in bytes."""
    base = estimates[0]

    def plain(estimate: Estimate) -> dict[str, Any]:
        arguments = [arguments for _, arguments in changes(estimate.plan, training)]
        return {"plan": asdict(estimate.plan), "bytes": estimate.total, "arguments": arguments}

    return {
        "device": device,
        "processes": training.processes,
        "notes": [*training.notes],
        "parts": [{**asdict(part), "total": part.total} for part in base.step.parts],
        "buffers": base.step.buffers,
        "temporary": base.step.temporary,
        "ema_copy": base.ema_copy,
        "ddp_buckets": base.ddp_buckets,
        "peak": base.step.peak + base.ema_copy + base.ddp_buckets,
        "plans": [plain(estimate) for estimate in estimates],
        "gpu": None if gpu is None else {"bytes": gpu, "available": available(gpu)},
        "fits": None if gpu is None else base.total <= available(gpu),
        "cheapest": None if found is None else plain(found),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    replace_file(path, lambda file: file.write_text(text))
