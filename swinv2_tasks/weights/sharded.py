"""Sharded checkpoints: a folder with one file per process, which any number of processes can read again.

    last.ckpt/
      rest.pt            what a checkpoint in one file holds, with None in place of each sharded tensor
      shard_0_of_2.pt    the first process's rows of each of those tensors
      shard_1_of_2.pt

A tensor is cut along its first axis. Each file is written by ``torch.save`` and holds plain values and tensors: its
checksums show whether it is intact, and reading it runs nothing. The index of torch.distributed.checkpoint, by
contrast, is a pickle that runs as it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

REST = "rest.pt"
KeyPath = tuple[str | int, ...]
"""Where a tensor belongs in a checkpoint: the keys and indices that lead to it."""


@dataclass(frozen=True)
class ShardedTensor:
    """A tensor in shards, of which nothing is read from the disk before its rows are asked for.

    Attributes:
        shape: of the whole tensor.
        parts: the first row of each shard, and the shard.
    """

    shape: torch.Size
    parts: list[tuple[int, Tensor]]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows from ``start`` up to ``stop``.

        Raises:
            ValueError: some of them are in no shard.
        """
        pieces = [
            part[max(start - first, 0) : stop - first]
            for first, part in self.parts
            if first < stop and start < first + len(part)
        ]
        if sum(map(len, pieces)) != stop - start:
            raise ValueError(f"rows {start} to {stop} of {tuple(self.shape)} are not all there")
        if not pieces:
            return self.parts[0][1][:0]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def whole(self) -> Tensor:
        """The whole tensor, read from all shards."""
        return self.rows(0, self.shape[0])


def joined(shape: Any, parts: list[tuple[Any, Any]]) -> ShardedTensor:
    """A tensor of what shards hold of it.

    Args:
        shape: as the checkpoint states it.
        parts: the first row of each shard, and the shard, as files hold them.

    Raises:
        ValueError: they are not the rows of a tensor of this shape.
    """
    is_shape = isinstance(shape, tuple | list) and len(shape) > 0 and all(type(side) is int for side in shape)
    are_tensors = all(type(first) is int and isinstance(part, Tensor) and part.dim() for first, part in parts)
    if not is_shape or not are_tensors or not parts:
        raise ValueError("do not hold the tensors that it lists")
    parts = sorted(parts, key=lambda pair: pair[0])
    ends = [first + len(part) for first, part in parts]
    are_rows = [first for first, _ in parts] == [0, *ends[:-1]] and ends[-1] == shape[0]
    row_types = {(part.dtype, part.shape[1:]) for _, part in parts}
    if not are_rows or row_types != {(parts[0][1].dtype, torch.Size(shape[1:]))}:
        raise ValueError(f"do not make up a tensor of {'×'.join(map(str, shape))} numbers")
    return ShardedTensor(torch.Size(shape), parts)


def is_sharded(path: Path) -> bool:
    """Whether a path is a sharded checkpoint."""
    return (path / REST).is_file()


def shard_names(number: int) -> list[str]:
    """The files that so many processes write."""
    return [f"shard_{rank}_of_{number}.pt" for rank in range(number)]


def flatten(contents: Any, is_leaf: Callable[[Any], bool], key_path: KeyPath = ()) -> tuple[Any, dict[KeyPath, Any]]:
    """Takes leaves out of nested dicts and lists.

    Args:
        contents: nested dicts, lists and tuples.
        is_leaf: which of the values are taken out.
        key_path: what the leaves' key paths begin with.

    Returns:
        The contents with None in place of the leaves, and the leaves by key path; ``unflatten`` is the way back.
    """
    if is_leaf(contents):
        return None, {key_path: contents}
    if not isinstance(contents, dict | list | tuple):
        return contents, {}

    entries = contents.items() if isinstance(contents, dict) else enumerate(contents)
    rest: dict[Any, Any] = {}
    leaves: dict[KeyPath, Any] = {}
    for key, value in entries:
        rest[key], inner_leaves = flatten(value, is_leaf, (*key_path, key))
        leaves |= inner_leaves
    return (rest if isinstance(contents, dict) else type(contents)(rest.values())), leaves


def unflatten(rest: Any, leaves: Mapping[KeyPath, Any], key_path: KeyPath = ()) -> Any:
    """Undoes ``flatten``."""
    if key_path in leaves:
        return leaves[key_path]
    if isinstance(rest, dict):
        return {key: unflatten(value, leaves, (*key_path, key)) for key, value in rest.items()}
    if isinstance(rest, list | tuple):
        return type(rest)(unflatten(value, leaves, (*key_path, index)) for index, value in enumerate(rest))
    return rest


def assemble(contents: Any) -> Any:
    """Contents with their sharded tensors whole: in memory, as far as they lie in several shards."""
    rest, leaves = flatten(contents, lambda leaf: isinstance(leaf, ShardedTensor))
    return unflatten(rest, {key_path: leaf.whole() for key_path, leaf in leaves.items()})
