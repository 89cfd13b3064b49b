"""What is allocated and freed while operations run, written down tensor by tensor.

It sees torch's own operations, on fake tensors as well, and not the buffers inside kernels and libraries.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from swinv2_tasks.torch_internals import READ_SCALAR, TorchDispatchMode, storage_key, tree_leaves

SELECTED_SHARE = 4
"""Of entries that a mask selects on fake tensors, whose values nobody knows, one in so many is taken."""

EARLIER = -1
"""The number of storages that were there before."""


class AllocationLog(TorchDispatchMode):
    """Records the storages that operations allocate, and when these are freed. They have numbers from 0 on.

    Attributes:
        part: the part of the model that allocations are put down to.
        stage: the stage whose blocks run; −1: none.
        sizes: bytes of each storage.
        parts: the part of each storage.
        stages: the stage of each storage.
        events: k + 1 where storage k was allocated, −k − 1 where it was freed.
        times: how often a storage counts; those that are missing count once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part, self.stage = "batch", -1
        self.sizes: list[int] = []
        self.parts: list[str] = []
        self.stages: list[int] = []
        self.events: list[int] = []
        self.times: dict[int, int] = {}
        self._live: dict[int, int] = {}
        """Numbers of the storages that are there, by their keys."""
        self._forward_events = 0
        self._kept: set[int] = set()
        """Numbers of the storages that were there as the forward pass ended."""

    # ---- recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return func(*args)

        is_fake = bool(args) and type(args[0]) is not Tensor
        if func is READ_SCALAR and is_fake:
            return _any_scalar(args[0])
        if func is torch.ops.aten.nonzero.default and is_fake:
            out = torch.stack(_select(args[0]), dim=1)
        elif func is torch.ops.aten.index.Tensor and is_fake:
            out = func(args[0], _without_masks(args[1]), *args[2:], **(kwargs or {}))
        else:
            out = func(*args, **(kwargs or {}))

        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._record(leaf)
        return out

    def ignore(self, tensor: Tensor) -> None:
        """Leaves a tensor that was there before out of account."""
        self._live[storage_key(tensor.untyped_storage())] = EARLIER

    def _record(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage_key(storage)
        if key in self._live:
            return
        number = len(self.sizes)
        self._live[key] = number
        self.sizes.append(storage.nbytes())
        self.parts.append(self.part)
        self.stages.append(self.stage)
        self.events.append(number + 1)
        weakref.finalize(storage, self._record_freed, key)

    def _record_freed(self, key: int) -> None:
        number = self._live.pop(key)
        self.events.append(-number - 1)

    def end_forward(self) -> None:
        """Marks the end of the forward pass."""
        self._forward_events = len(self.events)
        self._kept = {number for number in self._live.values() if number != EARLIER}

    # ---- blocks that stand for others

    def number_of(self, tensor: Tensor) -> int:
        """The number of a tensor's storage; ``EARLIER`` where it was there before."""
        return self._live.get(storage_key(tensor.untyped_storage()), EARLIER)

    def repeat(self, stage: int, times: int, outputs: list[int]) -> None:
        """Counts what was kept of a stage's blocks as often as there are blocks like them.

        Args:
            stage: index of the stage.
            times: how often its blocks are there.
            outputs: numbers of the blocks' outputs. The last one is not the blocks' own, but the input of what follows.
                Where blocks keep their inputs alone, under activation checkpointing, the first one is the input of the
                next block, and stands for that of the first of the next such blocks as well.
        """
        for number in self._kept:
            if self.stages[number] == stage and number != outputs[-1]:
                self.times[number] = times
        if outputs[0] in self._kept:
            self.times[outputs[0]] = 2 * times - 1

    # ---- what came of it

    def kept(self) -> dict[str, int]:
        """Bytes that were there as the forward pass ended, by part."""
        sums: dict[str, int] = {}
        for number in self._kept:
            part = self.parts[number]
            sums[part] = sums.get(part, 0) + self._size(number)
        return sums

    def peaks(self) -> tuple[int, int]:
        """The most bytes at once in the forward pass, and in the backward pass."""
        now, forward, backward = 0, 0, 0
        for index, event in enumerate(self.events):
            size = self._size(abs(event) - 1)
            now += size if event > 0 else -size
            if index < self._forward_events:
                forward = max(forward, now)
            else:
                backward = max(backward, now)
        return forward, backward

    def _size(self, number: int) -> int:
        return self.sizes[number] * self.times.get(number, 1)


# ---- values that fake tensors do not have


def _any_scalar(tensor: Tensor) -> bool | int | float:
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.is_floating_point() else 1


def _select(mask: Tensor) -> list[Tensor]:
    """Indices of the entries that a mask selects, one tensor per axis."""
    number = max(1, mask.numel() // SELECTED_SHARE)
    return [torch.empty(number, dtype=torch.int64) for _ in mask.shape]


def _without_masks(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Indices of a tensor with those that a mask selects in its place."""
    plain: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            plain += _select(index)
        else:
            plain.append(index)
    return plain
