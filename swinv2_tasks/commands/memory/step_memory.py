"""Memory of a training step, measured on tensors that have shapes and no data.

Forward pass, loss and backward pass run unchanged on fake tensors (``fake_training``); what is allocated and freed is
recorded (``allocations``), and the peak is read off. So activation checkpointing, attention in chunks, frozen stages
and precision count as they do in training, and nothing here has to follow changes of the model. Optimizer states are
those of the optimizer itself, after a step on two small parameters.

What it cannot see: buffers inside kernels and libraries, and what an allocator loses between blocks. Of a detector,
whose proposals depend on data, each sampler takes as many as it does at most, a quarter of them with objects, spread
evenly over the levels; decoding and matching of proposals are left out, its branches are not.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from swinv2_tasks.backbone.swin_v2 import SwinBlock
from swinv2_tasks.backbone.window import isolated_cache
from swinv2_tasks.commands.memory.allocations import EARLIER, AllocationLog
from swinv2_tasks.commands.memory.fake_training import (
    attend_as_on_gpu,
    convert,
    fix_proposals,
    replace_tensors,
    widen_norms,
)
from swinv2_tasks.errors import UserError
from swinv2_tasks.heads.mask_rcnn import DetectionHead
from swinv2_tasks.tasks.base import BaseTask
from swinv2_tasks.torch_internals import FakeTensorMode, tree_leaves

PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "64-true": (torch.float64, None),
    "32-true": (torch.float32, None),
    "bf16-true": (torch.bfloat16, None),
    "16-true": (torch.float16, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
}
"""Type of the parameters and, with mixed precision, that of the operations."""

Device = str
"""``cuda`` or ``cpu``."""


@dataclass
class Part:
    """What a part of a model takes, in bytes."""

    name: str
    weights: int = 0
    """Number of parameters."""
    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    """Kept from the forward pass for the backward pass."""

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations


@dataclass
class StepMemory:
    """What a training step takes, in bytes."""

    parts: list[Part]
    """From the input to the loss."""
    buffers: int
    """What is no parameter and stays: statistics of batch norms, say."""
    passes_peak: int
    """The most at any time of the forward and the backward pass."""
    optimizer_peak: int
    """The most during the optimizer's step alone."""
    largest_unit: int
    """Parameters of the largest block, or of the rest of the model: what full sharding brings together at once."""

    def sum(self, name: str) -> int:
        """Of one of ``Part``'s numbers, over all parts."""
        return sum(getattr(part, name) for part in self.parts)

    @property
    def peak(self) -> int:
        """The most at any time of a step."""
        return max(self.passes_peak, self.optimizer_peak)

    @property
    def temporary(self) -> int:
        """What the peak has beyond the parts: operands and results of the operations that run at that moment."""
        return self.peak - self.buffers - sum(part.total for part in self.parts)


def step_memory(
    task: BaseTask,
    batch: Callable[[], dict[str, Any]],
    *,
    device: Device = "cuda",
    precision: str = "32-true",
    accumulates: bool = False,
) -> StepMemory:
    """What a step of a task takes on one device.

    Args:
        task: on the meta device; left unchanged.
        batch: builds the batch of a step, of any values.
        device: ``cuda`` or ``cpu``, whose attention differs; nothing needs to be there.
        precision: as the trainer's, ``bf16-mixed`` say.
        accumulates: gradients are summed over several batches, so that a batch's come on top of the sum.

    Raises:
        UserError: for a precision that is not known.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r} cannot be estimated; known: {', '.join(PRECISIONS)}")
    dtype, autocast = PRECISIONS[precision]

    optimizer = measure_optimizer(task, device, dtype)
    parts = {name: Part(name) for name in part_names(task)}
    for name, parameter in task.named_parameters():
        part = parts[part_of(name)]
        size = _bytes(parameter, dtype)
        part.weights += parameter.numel()
        part.parameters += size
        if parameter.requires_grad:
            part.gradients += size
            part.optimizer += round(size * optimizer.states)
    buffers = sum(_bytes(buffer, dtype) for buffer in task.buffers())

    log = _record_step(copy.deepcopy(task), batch, device, dtype, autocast)
    for name, size in log.kept().items():
        parts[name].activations += size
    forward, backward = log.peaks()

    held = sum(part.parameters + part.optimizer for part in parts.values()) + buffers
    gradients = sum(part.gradients for part in parts.values())
    # Lightning frees the gradients of the last step only when the forward pass is over.
    passes_peak = held + max(gradients + forward, (gradients if accumulates else 0) + backward)

    largest = max((_bytes(parameter, dtype) for parameter in task.parameters()), default=0)
    scratch = round(optimizer.scratch * (gradients if optimizer.at_once else largest))
    optimizer_peak = held + gradients + scratch
    return StepMemory([*parts.values()], buffers, passes_peak, optimizer_peak, _largest_unit(task, dtype))


def part_names(task: BaseTask) -> list[str]:
    """The parts of a task, from the input to the loss."""
    stages = [f"stage {k + 1}" for k in range(len(task.backbone.depths))]
    return ["batch", "patches", *stages, "head, loss"]


def part_of(name: str) -> str:
    """The part that a parameter belongs to, by its name; a downsample belongs to the stage before it."""
    if name.startswith("backbone.patch_embed."):
        return "patches"
    if name.startswith("backbone.layers."):
        return f"stage {int(name.split('.')[2]) + 1}"
    return "head, loss"


def _bytes(tensor: Tensor, dtype: torch.dtype) -> int:
    """Of a parameter or buffer in a model of a type."""
    width = dtype.itemsize if tensor.is_floating_point() else tensor.element_size()
    return tensor.numel() * width


def _largest_unit(task: BaseTask, dtype: torch.dtype) -> int:
    blocks = [module for module in task.modules() if isinstance(module, SwinBlock)]
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks]
    rest = sum(p.numel() for p in task.parameters()) - sum(sizes)
    return max([rest, *sizes]) * dtype.itemsize


# ---- the optimizer


@dataclass(frozen=True)
class OptimizerMemory:
    """What an optimizer takes, in bytes per byte of the parameters it steps."""

    states: float
    scratch: float
    """During its step, of all parameters or of the largest one."""
    at_once: bool
    """Whether it steps all parameters at once, as it does on GPUs."""


def measure_optimizer(task: BaseTask, device: Device, dtype: torch.dtype) -> OptimizerMemory:
    """What the optimizer of a task takes for parameters of a type, by a step on two small ones."""
    parameters = [nn.Parameter(torch.zeros(256, 256, dtype=dtype, device="cpu")) for _ in range(2)]
    optimizer: Optimizer = task.optimizer(parameters)
    is_fused = bool(optimizer.defaults.get("fused"))
    at_once = device == "cuda" and not is_fused and optimizer.defaults.get("foreach", False) is not False
    for group in optimizer.param_groups:
        if "foreach" in group and not is_fused:
            group["foreach"] = at_once

    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # which makes the states
    log = AllocationLog()
    with log:
        optimizer.step()
    log.end_forward()
    scratch, _ = log.peaks()

    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    values = [value for state in optimizer.state.values() for value in tree_leaves(state) if isinstance(value, Tensor)]
    values = [value for value in values if value.numel() > 1]  # the others count steps
    states = sum(value.numel() * value.element_size() for value in values)
    return OptimizerMemory(states / size, scratch / (size if at_once else size / 2), at_once)


# ---- the step


def _record_step(
    task: BaseTask,
    batch: Callable[[], dict[str, Any]],
    device: Device,
    dtype: torch.dtype,
    autocast: torch.dtype | None,
) -> AllocationLog:
    """What is allocated in the forward and the backward pass of a step; the task is of no other use then.

    Of blocks that repeat, the first ones are gone through, and counted as often as there are blocks like them.
    """
    repeats = _keep_first_blocks(task)
    log = AllocationLog()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with warnings.catch_warnings(), fake, _default_dtype(dtype), isolated_cache():
        warnings.simplefilter("ignore")  # a task without a trainer that logs
        replace_tensors(task, dtype)
        for tensor in (*task.parameters(), *task.buffers()):
            log.ignore(tensor)
        outputs = _follow_parts(task, log)
        if device == "cuda":
            attend_as_on_gpu(task)
        if device == "cuda" and autocast is not None:
            widen_norms(task)
        if isinstance(task.head, DetectionHead):
            fix_proposals(task.head)
        task.train()

        with log:
            taken = convert(batch(), dtype)
            log.part = "head, loss"
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                loss = task.training_step(cast(Any, taken), 0)
            log.end_forward()
            for stage, times in repeats.items():
                log.repeat(stage, times, outputs[stage])

            log.part = "backward"
            _count_gradients(task, log, repeats)
            torch.autograd.backward(loss)
            del loss, taken
    return log


def _keep_first_blocks(task: BaseTask) -> dict[int, int]:
    """Leaves of each stage the first blocks that the others repeat; how often, for the stages where some do."""
    extra_norm_every = task.backbone.extra_norm_every
    period = math.lcm(2, extra_norm_every) if extra_norm_every else 2  # every second block is shifted
    repeats = {}
    for index, stage in enumerate(task.backbone.stages):
        depth = len(stage.blocks)
        if depth > period and depth % period == 0:
            stage.blocks = nn.ModuleList(list(stage.blocks)[:period])
            repeats[index] = depth // period
    return repeats


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _follow_parts(task: BaseTask, log: AllocationLog) -> dict[int, list[int]]:
    """Puts what is allocated down to the part that runs; returns the storages of each stage's blocks' outputs."""
    outputs: dict[int, list[int]] = {}

    def enter(part: str, stage: int = -1) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if log.part != "backward":  # where activation checkpointing runs blocks again
                log.part, log.stage = part, stage

        return hook

    def leave_block(stage: int) -> Callable[..., None]:
        def hook(_: Any, __: Any, out: Tensor) -> None:
            if log.part != "backward":
                outputs.setdefault(stage, []).append(log.number_of(out))
                log.stage = -1

        return hook

    task.backbone.patch_embed.register_forward_pre_hook(enter("patches"))
    for index, stage in enumerate(task.backbone.stages):
        for block in stage.blocks:
            block.register_forward_pre_hook(enter(f"stage {index + 1}", index))
            block.register_forward_hook(leave_block(index))
    task.backbone.register_forward_hook(enter("head, loss"))
    return outputs


def _count_gradients(task: BaseTask, log: AllocationLog, repeats: dict[int, int]) -> None:
    """Counts gradients of blocks as often as there are blocks like theirs."""

    def count(times: int) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            if parameter.grad is None:
                return
            number = log.number_of(parameter.grad)
            if number != EARLIER:
                log.times[number] = times

        return hook

    for stage, times in repeats.items():
        for parameter in task.backbone.stages[stage].blocks.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(count(times))
