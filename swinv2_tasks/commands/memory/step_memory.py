"""Memory of a training step, found by going through it with tensors that have shapes and no data.

Forward pass, loss and backward pass run as they are, on fake tensors: what is allocated and freed is written down, and
the peak is read off. So checkpointing, attention in chunks, frozen stages and precision count as they do in training,
and nothing here has to follow changes of the model. Optimizer states are those of the optimizer itself, after a step on
two small parameters.

What it cannot see: buffers inside kernels and libraries, and what an allocator loses between blocks. Of a detector,
whose regions depend on data, the regions are as many as it samples at most, a quarter of them objects, spread evenly
over the levels; its proposals' boxes are left out, its branches are not.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from swinv2_tasks.backbone.attention import WindowAttention, fused_cosine_attention
from swinv2_tasks.backbone.swin_v2 import SwinBlock, SwinStage
from swinv2_tasks.backbone.window import isolated_cache
from swinv2_tasks.errors import UserError
from swinv2_tasks.heads.mask_rcnn import DetectionHead, SampledProposals
from swinv2_tasks.heads.roi_align import pool_rois, to_roi_format
from swinv2_tasks.tasks.base import BaseTask
from swinv2_tasks.torch_internals import (
    READ_SCALAR,
    FakeTensorMode,
    TorchDispatchMode,
    efficient_attention,
    plain_attention,
    storage_key,
    tree_leaves,
)

PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "64-true": (torch.float64, None),
    "32-true": (torch.float32, None),
    "bf16-true": (torch.bfloat16, None),
    "16-true": (torch.float16, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
}
"""Type of the parameters and, with mixed precision, that of the operations."""

OBJECTS_SHARE = 4
"""Of a detector's sampled regions, one in so many shows an object."""

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
    def working(self) -> int:
        """What the peak has beyond the parts: operands and results of the operations under way."""
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
        task: on the meta device. It is left as it is.
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
    optimizer = optimizer_share(task, device, dtype)
    parts = {name: Part(name) for name in part_names(task)}
    for name, parameter in task.named_parameters():
        part, size = parts[part_of(name)], parameter.numel() * _width(parameter, dtype)
        part.weights += parameter.numel()
        part.parameters += size
        if parameter.requires_grad:
            part.gradients += size
            part.optimizer += round(size * optimizer.states)
    buffers = sum(buffer.numel() * _width(buffer, dtype) for buffer in task.buffers())
    held = sum(part.parameters + part.optimizer for part in parts.values()) + buffers
    gradients = sum(part.gradients for part in parts.values())

    log = _run(copy.deepcopy(task), batch, device, dtype, autocast)
    for name, size in log.kept().items():
        parts[name].activations += size
    # Lightning frees the gradients of the last step only when the forward pass is over.
    forward, backward = log.peaks()
    largest = max((p.numel() * _width(p, dtype) for p in task.parameters()), default=0)
    scratch = round(optimizer.scratch * (gradients if optimizer.at_once else largest))
    optimizer_peak = held + gradients + scratch
    passes_peak = held + max(gradients + forward, (gradients if accumulates else 0) + backward)
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


def _width(tensor: Tensor, dtype: torch.dtype) -> int:
    return dtype.itemsize if tensor.is_floating_point() else tensor.element_size()


def _largest_unit(task: BaseTask, dtype: torch.dtype) -> int:
    blocks = [module for module in task.modules() if isinstance(module, SwinBlock)]
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks]
    rest = sum(p.numel() for p in task.parameters()) - sum(sizes)
    return max([rest, *sizes]) * dtype.itemsize


# ---- the optimizer


@dataclass(frozen=True)
class OptimizerShare:
    """What an optimizer takes, in bytes per byte of the parameters it steps."""

    states: float
    scratch: float
    """During its step, of all parameters or of the largest one."""
    at_once: bool
    """Whether it steps all parameters at once, as it does on GPUs."""


def optimizer_share(task: BaseTask, device: Device, dtype: torch.dtype) -> OptimizerShare:
    """What the optimizer of a task takes for parameters of a type, by a step on two small ones."""
    parameters = [nn.Parameter(torch.zeros(256, 256, dtype=dtype, device="cpu")) for _ in range(2)]
    optimizer: Optimizer = task.optimizer(parameters)
    fused = bool(optimizer.defaults.get("fused"))
    at_once = device == "cuda" and not fused and optimizer.defaults.get("foreach", False) is not False
    for group in optimizer.param_groups:
        if "foreach" in group and not fused:
            group["foreach"] = at_once
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    log = _Log()
    with log:
        optimizer.step()
    log.end_forward()
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    values = [value for state in optimizer.state.values() for value in tree_leaves(state) if isinstance(value, Tensor)]
    values = [value for value in values if value.numel() > 1]  # the others count steps
    states = sum(value.numel() * value.element_size() for value in values)
    return OptimizerShare(states / size, log.peaks()[0] / (size if at_once else size / 2), at_once)


# ---- the step


class _Log(TorchDispatchMode):
    """Writes down what is allocated and freed.

    Attributes:
        part: what allocations are put down to.
        sizes, owners: bytes and part of each storage, in the order of their allocation.
        events: k + 1 where storage k was allocated, −k − 1 where it was freed.
        times: how often a storage is there, for parts of which only a few blocks are gone through.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part, self.stage = "batch", -1
        self.sizes: list[int] = []
        self.owners: list[str] = []
        self.stages: list[int] = []
        self.events: list[int] = []
        self.times: dict[int, int] = {}
        self._live: dict[int, int] = {}
        self._forward_events = 0
        self._kept: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return func(*args)
        if func is READ_SCALAR and type(args[0]) is not Tensor:
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        if func is torch.ops.aten.nonzero.default and type(args[0]) is not Tensor:
            out = torch.stack(_every_few(args[0]), dim=1)
        else:
            out = func(*_without_masks(func, args), **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return out

    def known(self, tensor: Tensor) -> None:
        """Leaves a tensor that was there before out of account."""
        self._live[storage_key(tensor.untyped_storage())] = -1

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage_key(storage)
        if key in self._live:
            return
        number = self._live[key] = len(self.sizes)
        self.sizes.append(storage.nbytes())
        self.owners.append(self.part)
        self.stages.append(self.stage)
        self.events.append(number + 1)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        number = self._live.pop(key)
        self.events.append(-number - 1)

    def number(self, tensor: Tensor) -> int:
        """The place of a tensor's storage in the lists; −1 where it was there before."""
        return self._live.get(storage_key(tensor.untyped_storage()), -1)

    def end_forward(self) -> None:
        self._forward_events = len(self.events)
        self._kept = {number for number in self._live.values() if number >= 0}

    def repeat(self, stage: int, times: int, outputs: list[int]) -> None:
        """Counts what was kept of a stage's blocks as often as there are blocks like them.

        The last output is not the blocks' own: where blocks keep their inputs, to be computed again, the first output
        stands for those of it that are the input of the next such blocks.
        """
        for number in self._kept:
            if self.stages[number] == stage and number != outputs[-1]:
                self.times[number] = times
        if outputs[0] in self._kept:
            self.times[outputs[0]] = 2 * times - 1

    def kept(self) -> dict[str, int]:
        """Bytes that were there when the forward pass ended, by part."""
        found: dict[str, int] = {}
        for number in self._kept:
            size = self.sizes[number] * self.times.get(number, 1)
            found[self.owners[number]] = found.get(self.owners[number], 0) + size
        return found

    def peaks(self) -> tuple[int, int]:
        """The most bytes at once in the forward pass, and in the backward pass."""
        now, peaks = 0, [0, 0]
        for place, event in enumerate(self.events):
            number = abs(event) - 1
            size = self.sizes[number] * self.times.get(number, 1)
            now += size if event > 0 else -size
            phase = place >= self._forward_events
            peaks[phase] = max(peaks[phase], now)
        return peaks[0], peaks[1]


def _without_masks(func: Any, args: Any) -> Any:
    """Selections by a mask of values that nobody knows, as those of every so many-th entry."""
    if func is torch.ops.aten.index.Tensor and type(args[0]) is not Tensor:
        indices = [
            _every_few(index) if index is not None and index.dtype in (torch.bool, torch.uint8) else [index]
            for index in args[1]
        ]
        return (args[0], [index for group in indices for index in group], *args[2:])
    return args


def _every_few(mask: Tensor) -> list[Tensor]:
    number = max(1, mask.numel() // OBJECTS_SHARE)
    return [torch.empty(number, dtype=torch.int64) for _ in mask.shape]


def _run(
    task: BaseTask,
    batch: Callable[[], dict[str, Any]],
    device: Device,
    dtype: torch.dtype,
    autocast: torch.dtype | None,
) -> _Log:
    """Goes through the forward and the backward pass of a step; the task is changed beyond use."""
    repeats = _shorten(task)
    log = _Log()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with warnings.catch_warnings(), fake, _default_type(dtype), isolated_cache():
        warnings.simplefilter("ignore")  # a task without a trainer that logs
        _without_data(task, dtype)
        for tensor in (*task.parameters(), *task.buffers()):
            log.known(tensor)
        outputs = _follow(task, log)
        if device == "cuda":
            _attend_as_on_cuda(task)
        if device == "cuda" and autocast is not None:
            _wide_norms(task)
        if isinstance(task.head, DetectionHead):
            _fix_regions(task.head)
        task.train()
        with log:
            made = _of_type(batch(), dtype)
            log.part = "head, loss"
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                loss = task.training_step(cast(Any, made), 0)
            log.end_forward()
            for stage, times in repeats.items():
                log.repeat(stage, times, outputs[stage])
            log.part = "backward"
            _count_gradients(task, log, repeats)
            torch.autograd.backward(loss)
            del loss, made
    return log


def _shorten(task: BaseTask) -> dict[int, int]:
    """Leaves of each stage the first blocks that the others repeat; how often, for the stages where some do."""
    every = task.backbone.extra_norm_every
    period = math.lcm(2, every) if every else 2
    repeats = {}
    for k, stage in enumerate(cast(list[SwinStage], list(task.backbone.layers))):
        depth = len(stage.blocks)
        if depth > period and depth % period == 0:
            stage.blocks = nn.ModuleList(list(stage.blocks)[:period])
            repeats[k] = depth // period
    return repeats


def _without_data(task: nn.Module, dtype: torch.dtype) -> None:
    """Gives the task parameters and buffers that are fake tensors instead of those on the device ``meta``."""

    def like(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype)

    for module in task.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(module, name, nn.Parameter(like(parameter), parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(module, name, like(buffer))


def _of_type(value: Any, dtype: torch.dtype) -> Any:
    """A batch as a trainer with parameters of that type gives it to the task."""
    if isinstance(value, dict):
        return {key: _of_type(item, dtype) for key, item in value.items()}
    if isinstance(value, list):
        return [_of_type(item, dtype) for item in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


@contextlib.contextmanager
def _default_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _follow(task: BaseTask, log: _Log) -> dict[int, list[int]]:
    """Puts what is allocated down to the part that runs; returns the storages of each stage's blocks' outputs."""
    outputs: dict[int, list[int]] = {}

    def enter(part: str, stage: int = -1) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if log.part != "backward":  # where blocks are computed again
                log.part, log.stage = part, stage

        return hook

    def leave_block(stage: int) -> Callable[..., None]:
        def hook(_: Any, __: Any, out: Tensor) -> None:
            if log.part != "backward":
                outputs.setdefault(stage, []).append(log.number(out))
                log.stage = -1

        return hook

    task.backbone.patch_embed.register_forward_pre_hook(enter("patches"))
    for k, stage in enumerate(cast(list[SwinStage], list(task.backbone.layers))):
        for block in stage.blocks:
            block.register_forward_pre_hook(enter(f"stage {k + 1}", k))
            block.register_forward_hook(leave_block(k))
    task.backbone.register_forward_hook(enter("head, loss"))
    return outputs


def _count_gradients(task: BaseTask, log: _Log, repeats: dict[int, int]) -> None:
    """Counts gradients of blocks as often as there are blocks like theirs."""
    for stage, times in repeats.items():
        for parameter in task.backbone.layers[stage].get_submodule("blocks").parameters():
            if parameter.requires_grad:

                def hook(one: Tensor, times: int = times) -> None:
                    if one.grad is not None and (number := log.number(one.grad)) >= 0:
                        log.times[number] = times

                parameter.register_post_accumulate_grad_hook(hook)


# ---- what differs on a GPU


def _attend_as_on_cuda(task: nn.Module) -> None:
    """Lets windows attend as on a GPU: fake tensors of one cannot be made where there is none."""
    for module in task.modules():
        if isinstance(module, WindowAttention):
            module.attend = functools.partial(fused_cosine_attention, attend=_efficient_attention)


def _efficient_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, scale: float) -> Tensor:
    """What ``scaled_dot_product_attention`` does on a GPU with a mask that has a gradient: its memory-efficient kernel,
    for which the mask is filled up to rows of a multiple of 16; without a kernel for such heads, plain products."""
    if q.shape[-1] % (8 if q.element_size() == 2 else 4) or q.dtype == torch.float64:
        return plain_attention(q, k, v, attn_mask, scale)
    tokens = k.shape[2]
    if tokens % 16:
        attn_mask = F.pad(attn_mask, (0, -tokens % 16))[..., :tokens]
    mask = attn_mask.expand(*q.shape[:3], tokens)
    return efficient_attention(q, k, v, mask, scale)


def _wide_norms(task: nn.Module) -> None:
    """Lets layer norms take and give float32, as autocast does on a GPU but not on a CPU."""
    for module in task.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, args: (args[0].float(), *args[1:]))


# ---- the regions of a detector


def _fix_regions(head: DetectionHead) -> None:
    """Puts fixed numbers of regions in the place of what depends on data."""
    head.rpn = cast(Any, _Proposals(cast(nn.Module, head.rpn.head)))
    parts: Any = head
    for name in ("box_pool", "mask_pool"):
        pool = getattr(parts, name)
        setattr(parts, name, _EvenPooling(pool.strides, pool.side))
    if hasattr(parts, "sample"):
        parts.sample = _FixedSampler(parts.sample.balance.batch_size_per_image)
    if hasattr(parts, "samplers"):
        parts.samplers = [_FixedSampler(one.balance.batch_size_per_image) for one in parts.samplers]


class _Proposals(nn.Module):
    """Objectness and offsets of all anchors, and their losses; a box of each image for all its proposals."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, images: Any, levels: Any, targets: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
        logits, deltas = self.head(list(levels.values()))
        losses = [torch.cat([x.flatten() for x in one]).square().mean() for one in (logits, deltas)]
        proposals = [torch.empty(1, 4) for _ in images.image_sizes]
        return proposals, {"loss_objectness": losses[0], "loss_rpn_box_reg": losses[1]}


class _FixedSampler:
    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, proposals: list[Tensor], targets: list[Any]) -> SampledProposals:
        def each(*shape: int, dtype: torch.dtype) -> list[Tensor]:
            return [torch.empty(self.number, *shape, dtype=dtype) for _ in targets]

        whole = torch.int64
        flags = each(dtype=torch.bool)
        return SampledProposals(each(4, dtype=torch.float32), each(dtype=whole), each(dtype=whole), flags)


class _EvenPooling(nn.Module):
    """RoIAlign of as many regions on each level."""

    def __init__(self, strides: Sequence[int], side: int) -> None:
        super().__init__()
        self.strides, self.side = strides, side

    def forward(self, levels: Any, boxes: list[Tensor]) -> Tensor:
        shares = to_roi_format(boxes).tensor_split(len(self.strides))
        maps = [levels[str(index)] for index in range(len(self.strides))]
        pooled = [
            pool_rois(x, share, self.side, 1 / stride)
            for x, share, stride in zip(maps, shares, self.strides, strict=True)
        ]
        return torch.cat(pooled)
