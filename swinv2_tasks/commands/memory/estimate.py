"""What plans of a training take of a device's memory, and the cheapest that fits into it."""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections.abc import Iterator
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
"""Of a GPU's memory: what CUDA and its libraries take, and the share that an allocator loses between blocks. These are
allowances, not measurements."""


EIGHT_BIT = "bitsandbytes.optim.AdamW8bit"


@dataclass(frozen=True)
class Estimate:
    """What a plan takes of one device, in bytes."""

    plan: Plan
    total: int
    step: StepMemory
    ema_copy: int
    """The average of the weights."""
    ddp_buckets: int
    """In which processes exchange gradients."""


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
        ema_copy = _ema_copy(self.training, step, plan.sharding)
        ddp_buckets = step.sum("gradients") if processes > 1 and plan.sharding != "full" else 0
        total = total_bytes(step, plan.sharding, processes) + ema_copy + ddp_buckets
        return Estimate(plan, total, step, ema_copy, ddp_buckets)

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
            lambda: training.example_batch(plan.batch_size),
            device=self.device,
            precision=plan.precision,
            accumulates=plan.accumulated > 1,
        )


def _ema_copy(training: Training, step: StepMemory, sharding: Sharding) -> int:
    if not training.averaged:
        return 0
    return (step.sum("parameters") + step.buffers) // (training.processes if sharding == "full" else 1)


def total_bytes(step: StepMemory, sharding: Sharding, processes: int) -> int:
    """The most that a step takes on each of several processes, without EMA copy and DDP buckets."""
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


def memory_saving_plans(training: Training) -> list[Plan]:
    """Plans that each change one memory-saving option of a training."""
    plan, plans = training.plan, []
    if not all(stage.use_checkpoint for stage in training.task.backbone.stages):
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
    """Whether there is an optimizer that does as a training's own with 8-bit states."""
    adamw = optimizer_class(training.task.optimizer) is torch.optim.AdamW
    return adamw and training.plan.sharding != "full" and find_spec("bitsandbytes") is not None


def chunk_size(training: Training) -> int:
    """Windows attended to at once so that the first stage takes eight turns."""
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
    """Plans by what they cost, the cheapest first.

    Nothing; sharded optimizer states; batches down to 8; activation checkpointing; smaller batches; attention in
    chunks; everything sharded; 8-bit optimizer states; parameters in bfloat16.
    """
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
        found.append(("activation checkpointing", "--model.backbone.init_args.checkpoint_stages true"))
    if plan.chunk is not None:
        argument = f"--model.backbone.init_args.attention_chunk_size {plan.chunk}"
        found.append((f"attention in chunks of {plan.chunk} windows", argument))
    if plan.eight_bit:
        found.append(("8-bit optimizer states", f"--model.optimizer {EIGHT_BIT}"))
    if plan.precision != base.precision:
        found.append((f"parameters in {plan.precision}", f"--trainer.precision {plan.precision}"))
    return found
