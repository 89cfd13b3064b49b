"""A log of the storages that operations allocate and free.

It sees torch's own operations, on fake tensors as well, and not the buffers inside kernels and libraries.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from swinv2_tasks.torch_internals import READ_SCALAR, TorchDispatchMode, storage_key, tree_leaves

MASK_DIVISOR = 4
"""A mask on fake tensors, which have no values, is assumed to select one entry in so many."""

EARLIER = -1
"""The number of every storage that existed before the log."""


class AllocationLog(TorchDispatchMode):
    """Records the storages that operations allocate, and when they are freed. Storages are numbered from 0.

    To be used in a ``with``, around the operations.

    Attributes:
        part: the part of the model that allocations are attributed to.
        stage: index of the stage whose blocks run; −1: none.
        sizes: bytes of each storage.
        parts: the part of each storage.
        stages: the stage of each storage.
        events: k + 1 where storage k was allocated, −k − 1 where it was freed.
        counts: how often a storage counts; those that are missing count once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part = "batch"
        self.stage = -1
        self.sizes: list[int] = []
        self.parts: list[str] = []
        self.stages: list[int] = []
        self.events: list[int] = []
        self.counts: dict[int, int] = {}

        self._live: dict[int, int] = {}
        """Numbers of the storages that are not freed yet, by their keys."""
        self._forward_events = 0
        """Number of events until the end of the forward pass."""
        self._saved: set[int] = set()
        """Numbers of the storages that were not freed by the end of the forward pass."""

    # ---- recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and records what it allocates.

        Operations whose result depends on values, which fake tensors do not have, get assumed ones.
        """
        if func is torch.ops.prim.device.default:
            return func(*args)

        is_fake = bool(args) and type(args[0]) is not Tensor
        if func is READ_SCALAR and is_fake:
            return _assume_scalar(args[0])
        if func is torch.ops.aten.nonzero.default and is_fake:
            out = torch.stack(_assume_selection(args[0]), dim=1)
        elif func is torch.ops.aten.index.Tensor and is_fake:
            out = func(args[0], _replace_masks(args[1]), *args[2:], **(kwargs or {}))
        else:
            out = func(*args, **(kwargs or {}))

        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._record(leaf)
        return out

    def ignore(self, tensor: Tensor) -> None:
        """Keeps a tensor that existed before the log out of its sums."""
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
        self._saved = {number for number in self._live.values() if number != EARLIER}

    # ---- blocks that stand for others

    def number_of(self, tensor: Tensor) -> int:
        """The number of a tensor's storage; ``EARLIER`` where it existed before the log."""
        return self._live.get(storage_key(tensor.untyped_storage()), EARLIER)

    def repeat(self, stage: int, times: int, outputs: list[int]) -> None:
        """Counts what a stage's blocks saved for the backward pass as often as the blocks repeat.

        Args:
            stage: index of the stage.
            times: how often the blocks that ran are in the stage.
            outputs: numbers of the storages of the outputs of the blocks that ran.
        """
        for number in self._saved:
            # The last output belongs to what follows the stage, whose input it is.
            if self.stages[number] == stage and number != outputs[-1]:
                self.counts[number] = times

        # Under activation checkpointing blocks save their inputs alone. The first output is the input of the second
        # block, and stands for the input of the first block of each repetition but the first as well.
        if outputs[0] in self._saved:
            self.counts[outputs[0]] = 2 * times - 1

    # ---- results

    def saved_bytes(self) -> dict[str, int]:
        """Bytes that were not freed by the end of the forward pass, by part."""
        sums: dict[str, int] = {}
        for number in self._saved:
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
        return self.sizes[number] * self.counts.get(number, 1)


# ---- values that fake tensors do not have


def _assume_scalar(tensor: Tensor) -> bool | int | float:
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.is_floating_point() else 1


def _assume_selection(mask: Tensor) -> list[Tensor]:
    """Indices of the entries that a mask is assumed to select: one int64 tensor per axis."""
    number = max(1, mask.numel() // MASK_DIVISOR)
    return [torch.empty(number, dtype=torch.int64) for _ in mask.shape]


def _replace_masks(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Indices of a tensor, with masks among them replaced by indices of the entries that they select."""
    integers: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            integers += _assume_selection(index)
        else:
            integers.append(index)
    return integers
