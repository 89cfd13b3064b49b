"""Memory of a training step, measured on tensors that have shapes and no data.

Forward pass, loss and backward pass run unchanged on fake tensors (``fake_training``), allocations are recorded
(``allocations``), and the peak follows from them. So activation checkpointing, attention in chunks, frozen stages and
precision count as they do in training, and nothing here has to follow changes of the model. Optimizer states are
those of the optimizer itself, after a step on two small parameters.

Not counted: buffers inside kernels and libraries, and what an allocator loses to fragmentation. A detector's proposals
depend on data; each sampler is assumed to take as many as it may at most, a quarter of them with objects, spread
evenly over the levels. Decoding and matching of proposals are left out, the detector's branches are not.
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
"""Dtype of the parameters and, in mixed precision, of the operations under autocast."""

Device = str
"""``cuda`` or ``cpu``."""


@dataclass
class Part:
    """Memory of a part of a model, in bytes."""

    name: str
    weights: int = 0
    """Number of parameters."""
    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    """States of the optimizer."""
    activations: int = 0
    """Saved by the forward pass for the backward pass."""

    @property
    def total(self) -> int:
        """Parameters, gradients, optimizer states and activations, in bytes."""
        return self.parameters + self.gradients + self.optimizer + self.activations


@dataclass
class StepMemory:
    """Memory of a training step on one device, in bytes."""

    parts: list[Part]
    """From the input to the loss."""
    buffers: int
    """The model's buffers, such as statistics of batch norms."""
    passes_peak: int
    """The most at any time of the forward and the backward pass."""
    optimizer_peak: int
    """The most at any time of the optimizer's step."""
    largest_unit: int
    """Parameters of the largest unit that full sharding gathers at once: a block, or all that is in no block."""

    def sum(self, name: str) -> int:
        """The sum of one of ``Part``'s attributes over all parts."""
        return sum(getattr(part, name) for part in self.parts)

    @property
    def peak(self) -> int:
        """The most at any time of a step, in bytes."""
        return max(self.passes_peak, self.optimizer_peak)

    @property
    def temporary(self) -> int:
        """Temporary buffers at the peak, in bytes: operands and results of the operations that run at that moment."""
        return self.peak - self.buffers - sum(part.total for part in self.parts)


def step_memory(
    task: BaseTask,
    batch: Callable[[], dict[str, Any]],
    *,
    device: Device = "cuda",
    precision: str = "32-true",
    accumulates: bool = False,
) -> StepMemory:
    """Estimates the memory of a training step of a task on one device.

    Args:
        task: on the meta device; left unchanged.
        batch: builds the batch of a step, of arbitrary values.
        device: ``cuda`` or ``cpu``, whose attention differs; no such device needs to be there.
        precision: one of Lightning's names, such as ``bf16-mixed``.
        accumulates: whether gradients are summed over several batches, so that a batch's gradients come on top of the
            sum.

    Raises:
        UserError: the precision is not one of ``PRECISIONS``.
    """
    if precision not in PRECISIONS:
        raise UserError(
            f"memory with precision {precision!r} cannot be estimated: choose one of {', '.join(PRECISIONS)}"
        )
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
    for name, size in log.saved_bytes().items():
        parts[name].activations += size

    persistent = sum(part.parameters + part.optimizer for part in parts.values()) + buffers
    gradients = sum(part.gradients for part in parts.values())

    # Lightning frees the gradients of the last step only when the forward pass is over. Those of this step are in the
    # backward pass's own peak, and with accumulation come on top of the sum.
    forward, backward = log.peaks()
    summed_gradients = gradients if accumulates else 0
    passes_peak = persistent + max(gradients + forward, summed_gradients + backward)

    largest = max((_bytes(parameter, dtype) for parameter in task.parameters()), default=0)
    scratch = round(optimizer.scratch * (gradients if optimizer.uses_foreach else largest))
    optimizer_peak = persistent + gradients + scratch

    return StepMemory([*parts.values()], buffers, passes_peak, optimizer_peak, _largest_unit(task, dtype))


def part_names(task: BaseTask) -> list[str]:
    """Names of a task's parts, from the input to the loss."""
    stages = [f"stage {k + 1}" for k in range(len(task.backbone.depths))]
    return ["batch", "patches", *stages, "head, loss"]


def part_of(name: str) -> str:
    """Name of the part that a parameter of this name belongs to; a downsample belongs to the stage before it."""
    if name.startswith("backbone.patch_embed."):
        return "patches"
    if name.startswith("backbone.layers."):
        return f"stage {int(name.split('.')[2]) + 1}"
    return "head, loss"


def _bytes(tensor: Tensor, dtype: torch.dtype) -> int:
    """Bytes of a parameter or buffer in a model whose floating-point tensors have a dtype."""
    width = dtype.itemsize if tensor.is_floating_point() else tensor.element_size()
    return tensor.numel() * width


def _largest_unit(task: BaseTask, dtype: torch.dtype) -> int:
    """Bytes of the parameters of the largest unit of full sharding."""
    blocks = [module for module in task.modules() if isinstance(module, SwinBlock)]
    block_weights = [_count_weights(block) for block in blocks]
    other_weights = _count_weights(task) - sum(block_weights)
    return max([other_weights, *block_weights]) * dtype.itemsize


def _count_weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- the optimizer


@dataclass(frozen=True)
class OptimizerMemory:
    """Memory of an optimizer."""

    states: float
    """Bytes per byte of the parameters."""
    scratch: float
    """Temporary bytes of a step, per byte of all parameters with ``uses_foreach``, else of the largest one."""
    uses_foreach: bool
    """Whether it steps all parameters at once (torch's ``foreach``), as it does on GPUs."""


def measure_optimizer(task: BaseTask, device: Device, dtype: torch.dtype) -> OptimizerMemory:
    """Measures the memory of a task's optimizer, by a step on two small parameters on the CPU.

    Args:
        task: whose optimizer is measured.
        device: ``cuda`` or ``cpu``: where the optimizer is to step.
        dtype: of the parameters.
    """
    parameters = [nn.Parameter(torch.zeros(256, 256, dtype=dtype, device="cpu")) for _ in range(2)]
    optimizer: Optimizer = task.optimizer(parameters)

    # By default, foreach=None, torch steps all parameters at once on a GPU and one by one on a CPU.
    is_fused = bool(optimizer.defaults.get("fused"))
    uses_foreach = device == "cuda" and not is_fused and optimizer.defaults.get("foreach", False) is not False
    for group in optimizer.param_groups:
        if "foreach" in group and not is_fused:
            group["foreach"] = uses_foreach

    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # the first step allocates the states

    log = AllocationLog()
    with log:
        optimizer.step()
    log.end_forward()
    scratch, _ = log.peaks()

    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    states = 0
    for value in tree_leaves([*optimizer.state.values()]):
        if isinstance(value, Tensor) and value.numel() > 1:  # scalars count steps
            states += value.numel() * value.element_size()

    scratch_of = size if uses_foreach else size / 2
    return OptimizerMemory(states / size, scratch / scratch_of, uses_foreach)


# ---- the step


def _record_step(
    task: BaseTask,
    batch: Callable[[], dict[str, Any]],
    device: Device,
    dtype: torch.dtype,
    autocast: torch.dtype | None,
) -> AllocationLog:
    """Records the allocations of a step's forward and backward pass; the task is of no other use then.

    Of blocks that repeat, the first ones run, and what they allocate counts as often as there are blocks like them.
    """
    repeats = _keep_first_blocks(task)
    log = AllocationLog()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with warnings.catch_warnings(), fake, _default_dtype(dtype), isolated_cache():
        warnings.simplefilter("ignore")  # a task that logs without a trainer warns

        replace_tensors(task, dtype)
        for tensor in (*task.parameters(), *task.buffers()):
            log.ignore(tensor)
        outputs = _track_parts(task, log)

        if device == "cuda":
            attend_as_on_gpu(task)
        if device == "cuda" and autocast is not None:
            widen_norms(task)
        if isinstance(task.head, DetectionHead):
            fix_proposals(task.head)
        task.train()

        with log:
            inputs = convert(batch(), dtype)
            log.part = "head, loss"
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                loss = task.training_step(cast(Any, inputs), 0)

            log.end_forward()
            for stage, times in repeats.items():
                log.repeat(stage, times, outputs[stage])

            log.part = "backward"
            _count_gradients(task, log, repeats)
            torch.autograd.backward(loss)
            del loss, inputs
    return log


def _keep_first_blocks(task: BaseTask) -> dict[int, int]:
    """Removes from each stage the blocks that repeat its first ones.

    Returns:
        How often the blocks that are left were in their stage, by the stage's index; nothing of stages that are whole.
    """
    # Every second block has shifted windows, and every so many an extra norm.
    extra_norm_every = task.backbone.extra_norm_every
    period = math.lcm(2, extra_norm_every) if extra_norm_every else 2

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


def _track_parts(task: BaseTask, log: AllocationLog) -> dict[int, list[int]]:
    """Lets a log attribute allocations to the part of the task that runs.

    Returns:
        Numbers of the storages of each block's output, by the stage's index; filled as the task runs.
    """
    outputs: dict[int, list[int]] = {}

    def enter(part: str, stage: int = -1) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if log.part != "backward":  # in which activation checkpointing recomputes blocks
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
    """Counts gradients of each stage's blocks as often as the blocks repeat."""

    def count(times: int) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            if parameter.grad is None:
                return
            number = log.number_of(parameter.grad)
            if number != EARLIER:
                log.counts[number] = times

        return hook

    for stage, times in repeats.items():
        for parameter in task.backbone.stages[stage].blocks.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(count(times))
