"""Estimates of the memory that plans of a training take of a device, and the cheapest plan that fits into it."""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any, cast

import torch

from swinv2_tasks.backbone.swin_v2 import SwinBlock, SwinStage
from swinv2_tasks.backbone.window import WindowGrid
from swinv2_tasks.commands.memory.planned_training import Plan, Sharding, Training
from swinv2_tasks.commands.memory.step_memory import PRECISIONS, StepMemory, step_memory
from swinv2_tasks.training.optim import optimizer_class

GIB = 2**30

CONTEXT_BYTES, LOST_SHARE = 3 * GIB // 4, 0.05
"""Of a GPU's memory: the bytes of CUDA and its libraries, and the share that an allocator loses to fragmentation. These
are allowances, not measurements."""

EIGHT_BIT_OPTIMIZER = "bitsandbytes.optim.AdamW8bit"


@dataclass(frozen=True)
class Estimate:
    """Memory that a plan takes of each device, in bytes."""

    plan: Plan
    total: int
    """Of the step at its peak, sharded as the plan says, with EMA copy and DDP buckets."""
    step: StepMemory
    """Of a process alone, without sharding."""
    ema_copy: int
    """The average of the weights."""
    ddp_buckets: int
    """The buffers in which processes exchange gradients."""


# ---- the memory of a plan


class Estimates:
    """Estimates of plans of a training, each computed once.

    Args:
        training: as a config describes it.
        device: ``cuda`` or ``cpu``.
    """

    def __init__(self, training: Training, device: str) -> None:
        self.training, self.device = training, device
        self._step = lru_cache(None)(self._new_step)

    def __getitem__(self, plan: Plan) -> Estimate:
        """The estimate of a plan.

        Raises:
            UserError: the plan's precision is not known.
        """
        step = self._step(replace(plan, sharding="none"))  # sharding is arithmetic on top of a step
        processes = self.training.processes

        ema_copy = _ema_copy(self.training, step, plan.sharding)
        ddp_buckets = step.sum("gradients") if processes > 1 and plan.sharding != "full" else 0
        total = total_bytes(step, plan.sharding, processes) + ema_copy + ddp_buckets
        return Estimate(plan, total, step, ema_copy, ddp_buckets)

    def _new_step(self, plan: Plan) -> StepMemory:
        """Memory of a step of the training with the plan's settings, without sharding."""
        training = self.training
        task = copy.deepcopy(training.task)

        if plan.eight_bit_states:
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # without a GPU it warns of missing kernels
            task.optimizer = cast(Any, resolve_name(EIGHT_BIT_OPTIMIZER))

        for stage in cast(list[SwinStage], list(task.backbone.layers)):
            if plan.checkpoint_stages is not None:
                stage.use_checkpoint = plan.checkpoint_stages
            if plan.attention_chunk_size is not None:
                for block in cast(list[SwinBlock], list(stage.blocks)):
                    block.attention_chunk_size = plan.attention_chunk_size

        return step_memory(
            task,
            lambda: training.example_batch(plan.batch_size),
            device=self.device,
            precision=plan.precision,
            accumulates=plan.accumulate_grad_batches > 1,
        )


def _ema_copy(training: Training, step: StepMemory, sharding: Sharding) -> int:
    """Bytes of the EMA copy on each device."""
    if not training.has_ema_copy:
        return 0
    whole = step.sum("parameters") + step.buffers
    return whole // training.processes if sharding == "full" else whole


def total_bytes(step: StepMemory, sharding: Sharding, processes: int) -> int:
    """Peak of a step on each of several processes, in bytes, without EMA copy and DDP buckets.

    Args:
        step: of one process, without sharding.
        sharding: what is sharded over the processes.
        processes: number of processes.
    """
    if sharding == "none" or processes == 1:
        return step.peak

    states = step.sum("optimizer")
    persistent = step.sum("parameters") + step.sum("gradients") + states
    scratch = step.optimizer_peak - persistent - step.buffers  # of the optimizer's step, sharded as its states are

    elsewhere = 1 - 1 / processes  # the share that the other processes hold
    if sharding == "optimizer":
        passes_peak = step.passes_peak - round(elsewhere * states)
        optimizer_peak = step.optimizer_peak - round(elsewhere * (states + scratch))
        return max(passes_peak, optimizer_peak)

    gathered = 3 * step.largest_unit  # parameters of two units, and gradients of one
    passes_peak = step.passes_peak - round(elsewhere * persistent) + gathered
    optimizer_peak = step.optimizer_peak - round(elsewhere * (persistent + scratch))
    return max(passes_peak, optimizer_peak)


# ---- plans


def memory_saving_plans(training: Training) -> list[Plan]:
    """Plans that each change one memory-saving option of a training."""
    plan = training.plan
    plans = []
    if not all(stage.use_checkpoint for stage in training.task.backbone.stages):
        plans.append(replace(plan, checkpoint_stages=True))
    plans.append(replace(plan, attention_chunk_size=chunk_size(training)))
    if plan.batch_size > 1:
        plans.append(_accumulate(plan, plan.batch_size // 2))
    if plan.precision != "bf16-true":
        plans.append(replace(plan, precision="bf16-true"))
    if supports_eight_bit_states(training):
        plans.append(replace(plan, eight_bit_states=True))
    if training.processes > 1:
        plans += [replace(plan, sharding=sharding) for sharding in ("optimizer", "full") if sharding != plan.sharding]
    return plans


def supports_eight_bit_states(training: Training) -> bool:
    """Whether an installed optimizer with 8-bit states computes what the training's own does."""
    is_adamw = optimizer_class(training.task.optimizer) is torch.optim.AdamW
    return is_adamw and training.plan.sharding != "full" and find_spec("bitsandbytes") is not None


def chunk_size(training: Training) -> int:
    """An attention chunk size, in windows, with which the first stage attends to an image in eight chunks."""
    with torch.device("meta"):
        batch = training.example_batch(1)
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


def _accumulate(plan: Plan, batch_size: int) -> Plan:
    """The plan with smaller batches, of which as many are accumulated as keep the samples per step, or a few more."""
    samples = plan.batch_size * plan.accumulate_grad_batches
    return replace(plan, batch_size=batch_size, accumulate_grad_batches=-(-samples // batch_size))


def candidates(training: Training) -> Iterator[Plan]:
    """Yields plans from the one that costs least, in time and precision, to the one that costs most.

    In this order: the training's own; sharded optimizer states; batches down to 8; activation checkpointing; smaller
    batches; attention in chunks; full sharding; 8-bit optimizer states; parameters in bfloat16.
    """
    plan = training.plan

    shardings: list[Sharding] = [plan.sharding]
    if training.processes > 1:
        order: list[Sharding] = ["none", "optimizer", "full"]
        end = 2 if training.has_ema_copy else 3  # full sharding and an EMA copy do not go together
        shardings = order[order.index(plan.sharding) : end]

    batch_sizes = [plan.batch_size]
    while batch_sizes[-1] > 1:
        batch_sizes.append(batch_sizes[-1] // 2)

    attention_chunk_size = chunk_size(training)
    states = (False, True) if supports_eight_bit_states(training) else (False,)
    precisions = dict.fromkeys((plan.precision, "bf16-true"))
    for precision, eight_bit_states, sharding in itertools.product(precisions, states, shardings):
        if eight_bit_states and sharding == "full":
            continue  # bitsandbytes cannot step sharded weights

        base = replace(plan, precision=precision, sharding=sharding, eight_bit_states=eight_bit_states)
        plans = [_accumulate(base, batch_size) for batch_size in batch_sizes]
        for smaller in plans:
            if smaller.batch_size == plan.batch_size or smaller.batch_size >= 8:
                yield smaller
        for smaller in plans:
            yield replace(smaller, checkpoint_stages=True)
        yield replace(plans[-1], checkpoint_stages=True, attention_chunk_size=attention_chunk_size)


def list_changes(plan: Plan, training: Training) -> list[tuple[str, str]]:
    """Lists what a plan changes of a training: for each change its name, and the arguments of ``fit`` that make it."""
    base = training.plan
    changes = []
    if plan.sharding != base.sharding:
        name, overlay = {
            "optimizer": ("sharded optimizer states (ZeRO-1)", "--config overlays/zero1.yaml"),
            "full": ("full sharding (FSDP)", "--config overlays/fsdp.yaml"),
        }[plan.sharding]
        changes.append((f"{name} over {training.processes}", overlay))
    if plan.batch_size != base.batch_size:
        batches = plan.accumulate_grad_batches
        arguments = f"--data.batch_size {plan.batch_size} --trainer.accumulate_grad_batches {batches}"
        changes.append((f"batch {plan.batch_size}, {batches} accumulated", arguments))
    if plan.checkpoint_stages:
        changes.append(("activation checkpointing", "--model.backbone.init_args.checkpoint_stages true"))
    if plan.attention_chunk_size is not None:
        windows = plan.attention_chunk_size
        argument = f"--model.backbone.init_args.attention_chunk_size {windows}"
        changes.append((f"attention in chunks of {windows} windows", argument))
    if plan.eight_bit_states:
        changes.append(("8-bit optimizer states", f"--model.optimizer {EIGHT_BIT_OPTIMIZER}"))
    if plan.precision != base.precision:
        changes.append((f"parameters in {plan.precision}", f"--trainer.precision {plan.precision}"))
    return changes


# ---- what fits


def available_bytes(gpu: int) -> int:
    """Bytes that a training can use of a GPU with ``gpu`` bytes of memory."""
    return int((gpu - CONTEXT_BYTES) * (1 - LOST_SHARE))


def find_cheapest(
    estimates: Estimates, training: Training, limit: int, report: Callable[[], None] = lambda: None
) -> Estimate | None:
    """Finds the first of a training's ``candidates`` that takes at most ``limit`` bytes; None when none does.

    Args:
        estimates: of the training.
        training: as a config describes it.
        limit: bytes to fit into.
        report: called as each candidate is looked at.
    """
    base = estimates[training.plan]
    for plan in candidates(training):
        report()
        if least_bytes(base, plan, training.processes) > limit:
            continue  # it would not fit without activations either, and needs no estimate

        estimate = estimates[plan]
        if estimate.total <= limit:
            return estimate
    return None


def least_bytes(base: Estimate, plan: Plan, processes: int) -> int:
    """Bytes of another plan's parameters, gradients and optimizer states alone, on each process.

    Args:
        base: estimate of the training's own plan.
        plan: the other plan.
        processes: number of processes.
    """
    weights = base.step.sum("parameters") + base.step.sum("gradients")
    states = base.step.sum("optimizer") / (4 if plan.eight_bit_states else 1)
    if plan.sharding == "none":
        total = weights + states
    elif plan.sharding == "optimizer":
        total = weights + states / processes
    else:
        total = (weights + states) / processes

    scale = PRECISIONS[plan.precision][0].itemsize / PRECISIONS[base.plan.precision][0].itemsize
    return int(scale * total)
