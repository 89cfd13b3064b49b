"""``swinv2-tasks memory --config CONFIG``: the memory that a training takes of a GPU, and what would make it fit.

The arguments are those of ``fit``. The model is built on the meta device, and nothing is read but class lists. How a
step's memory is estimated: ``swinv2_tasks.commands.memory.step_memory``. Sharded over N processes, each holds one Nth:
of the optimizer states (ZeRO-1), or of everything but activations (full sharding), https://arxiv.org/abs/1910.02054.
Under full sharding it also holds the parameters of two of the model's units (a block, or all that is in no block) and
the gradients of one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from swinv2_tasks.cli.arguments import split_options, values_of
from swinv2_tasks.cli.config_files import WHICH_CONFIGS
from swinv2_tasks.commands.memory.estimate import (
    CONTEXT_BYTES,
    GIB,
    LOST_SHARE,
    Estimate,
    Estimates,
    available_bytes,
    candidates,
    find_cheapest,
    list_changes,
    memory_saving_plans,
)
from swinv2_tasks.commands.memory.planned_training import Training, read_training
from swinv2_tasks.errors import UserError
from swinv2_tasks.files import replace_file
from swinv2_tasks.progress import WorkProgress
from swinv2_tasks.tables import TerminalTable
from swinv2_tasks.text import say

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
"""Bytes of a GPU's memory that its driver leaves, rounded down to whole GiB."""


def memory(
    arguments: Sequence[str],
    gpu: str | None = None,
    device: Literal["cuda", "cpu"] = "cuda",
    processes: int | None = None,
    num_classes: int | None = None,
    json: str | None = None,
) -> None:
    """Prints the memory that a training takes of a GPU, and what would make it fit, without running it.

    The model is built on the meta device, and nothing is read but class lists. As in:
    swinv2-tasks memory --config imagenet.yaml --gpu 24GiB

    Args:
        arguments: those of ``fit`` that describe the training, such as ``["--config", "imagenet.yaml"]``.
        gpu: memory to fit into: 24GiB, 80GB, or a name such as H100.
        device: type of the device that trains.
        processes: processes of the training; default: as in the config, else 1.
        num_classes: number of classes, where there is no dataset to read it from.
        json: file to write the figures to as well, in bytes.

    Raises:
        UserError: there is a mistake in configs or settings.
    """
    for name, number in (("processes", processes), ("num_classes", num_classes)):
        if number is not None and number < 1:
            raise UserError(f"--{name} must be at least 1, not {number}")
    size = None if gpu is None else parse_gpu(gpu)
    limit = None if size is None else available_bytes(size)
    if limit is not None and limit <= 0:
        raise UserError(
            f"--gpu {gpu}: CUDA and its libraries alone take about {format_size(CONTEXT_BYTES)}, which leaves nothing "
            "for a training; expected more, such as 8GiB"
        )
    if not values_of(split_options(arguments), "--config"):
        raise UserError(f"memory needs --config CONFIG, as fit does. {WHICH_CONFIGS}")

    training = read_training(arguments, num_classes, processes)
    estimates = Estimates(training, device)
    plans = [training.plan, *memory_saving_plans(training)]
    alternatives = []
    with WorkProgress("Estimating plans", len(plans)) as progress:
        for plan in plans:
            alternatives.append(estimates[plan])
            progress.advance()

    base = alternatives[0]
    build_parts_table(base).print()
    say("\n".join([*training.notes, *list_plans(alternatives, training, limit)]))

    cheapest = None
    if size is not None and limit is not None:
        with WorkProgress("Looking for a plan that fits", len(list(candidates(training)))) as progress:
            cheapest = find_cheapest(estimates, training, limit, progress.advance)
        say(describe_fit(base, cheapest, training, size))
    if json is not None:
        write_json(Path(json), build_record(alternatives, cheapest, training, device, size))


# ---- sizes


def parse_gpu(text: str) -> int:
    """Bytes of memory that ``24GiB``, ``80GB`` or a GPU's name stands for.

    Raises:
        UserError: the text is none of these.
    """
    for name, size in GPUS.items():
        if text.lower().replace(" ", "") == name.lower():
            return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B)\s*", text)
    if match is None or float(match[1]) <= 0:
        raise UserError(f"--gpu {text}: expected a number and a unit, as 24GiB or 80GB, or one of {', '.join(GPUS)}")
    return int(float(match[1]) * UNITS[match[2]])


def format_size(size: float) -> str:
    """A number of bytes as text, in GiB or MiB."""
    return f"{size / GIB:,.2f} GiB" if abs(size) >= GIB else f"{size / 2**20:,.1f} MiB"


# ---- what is printed


def build_parts_table(estimate: Estimate) -> TerminalTable:
    """Builds the table of a step's memory by the parts of the model, in MiB."""
    step, plan = estimate.step, estimate.plan
    table = TerminalTable(
        title=f"a training step, batch {plan.batch_size}, {plan.precision}: MiB on one device",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in ("", "weights", "parameters", "gradients", "optimizer", "activations", "total"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)

    def row(name: str, weights: int | None, *sizes: int, style: str = "") -> None:
        cells = [""] * (5 - len(sizes)) + [f"{size / 2**20:,.1f}" for size in sizes]
        table.add_row(name, "" if weights is None else f"{weights / 1e6:,.2f} M", *cells, style=style)

    names = ("parameters", "gradients", "optimizer", "activations", "total")
    for part in step.parts:
        row(part.name, part.weights, *(getattr(part, name) for name in names))
    table.add_row()
    row("all", step.sum("weights"), *(step.sum(name) for name in names))

    if step.buffers:
        row("buffers", None, step.buffers)
    row("temporary buffers", None, step.temporary)
    if estimate.ema_copy:
        row("EMA copy", None, estimate.ema_copy)
    if estimate.ddp_buckets:
        row("DDP buckets", None, estimate.ddp_buckets)
    row("peak", None, step.peak + estimate.ema_copy + estimate.ddp_buckets, style="bold")
    return table


def list_plans(estimates: Sequence[Estimate], training: Training, limit: int | None) -> list[str]:
    """Lists the peaks that single memory-saving options give, each with its arguments in a line to copy.

    Args:
        estimates: of the training's own plan, then of plans that each change one option.
        training: what the plans change.
        limit: bytes to fit into; None: there is no column for it.
    """
    title = "peak with each memory-saving option"
    if training.processes > 1:
        title += f", on each of {training.processes} processes"
    lines = ["", title]
    for estimate in estimates:
        changes = list_changes(estimate.plan, training)
        name, arguments = changes[0] if changes else ("as configured", "")
        fits = "" if limit is None else "  fits" if estimate.total <= limit else "  does not fit"
        lines.append(f"{name:<44} {format_size(estimate.total):>12}{fits}")
        if arguments:
            lines.append(f"    {arguments}")
    return [*lines, ""]


def describe_fit(base: Estimate, cheapest: Estimate | None, training: Training, gpu: int) -> str:
    """Describes whether a training fits a GPU, and the cheapest way to make it fit.

    Args:
        base: of the training's own plan.
        cheapest: of the cheapest plan that fits; None when none does.
        training: what the plans change.
        gpu: the GPU's memory in bytes.
    """
    room = f"{format_size(available_bytes(gpu))} of {format_size(gpu)}"
    allowance = f"    left out: {format_size(CONTEXT_BYTES)} for CUDA, and {LOST_SHARE:.0%}"
    if cheapest is not None and cheapest.plan == base.plan:
        return f"fits: {format_size(base.total)} into {room}\n{allowance}"

    lines = [f"does not fit: {format_size(base.total)} into {room}", allowance]
    if cheapest is not None:
        # An option a line, which a shell takes as one: no terminal breaks them where they could not be copied.
        arguments = " \\\n    ".join(arguments for _, arguments in list_changes(cheapest.plan, training))
        lines += [f"cheapest that fits: {format_size(cheapest.total)}, with", f"    {arguments}"]
        return "\n".join(lines)

    processes = "several processes (--processes N)"
    if training.processes > 1:
        processes = f"more than {training.processes} processes"
    lines += [
        "no combination of memory-saving options fits:",
        f"    use {processes}, smaller images or another model",
    ]
    return "\n".join(lines)


def build_record(
    estimates: Sequence[Estimate], cheapest: Estimate | None, training: Training, device: str, gpu: int | None
) -> dict[str, Any]:
    """Collects the figures as plain values, in bytes.

    Args:
        estimates: of the training's own plan, then of plans that each change one option.
        cheapest: of the cheapest plan that fits; None when none does or there is no GPU to fit.
        training: what the plans change.
        device: type of the device that trains.
        gpu: the memory to fit into; None: nothing is said of fitting.
    """
    base = estimates[0]

    def plain(estimate: Estimate) -> dict[str, Any]:
        arguments = [arguments for _, arguments in list_changes(estimate.plan, training)]
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
        "gpu": None if gpu is None else {"bytes": gpu, "available": available_bytes(gpu)},
        "fits": None if gpu is None else base.total <= available_bytes(gpu),
        "cheapest": None if cheapest is None else plain(cheapest),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes plain values to a JSON file.

    Raises:
        UserError: it cannot be written.
    """
    text = json.dumps(content, indent=2) + "\n"
    replace_file(path, lambda file: file.write_text(text))
