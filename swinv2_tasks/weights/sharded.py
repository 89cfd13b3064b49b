"""Checkpoints in parts: a folder with one file per process, which any number of processes reads again.

    last.ckpt/
      rest.pt            what a checkpoint in one file holds, with None where a tensor lies in parts
      shard_0_of_2.pt    the first process's rows of each of those tensors
      shard_1_of_2.pt

A tensor is cut along its first axis. Each file is written by ``torch.save`` and holds plain values and tensors: its
checksums tell whether it is whole, and reading it runs nothing. The index of torch.distributed.checkpoint, by contrast,
is a pickle that runs as it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

REST = "rest.pt"
Place = tuple[str | int, ...]
"""Where a tensor belongs in a checkpoint: the keys and numbers that lead to it."""


@dataclass(frozen=True)
class ShardedTensor:
    """A tensor in parts, of which nothing is read from the disk before its rows are asked for.

    Attributes:
        shape: of the whole tensor.
        parts: the first row of each part, and the part.
    """

    shape: torch.Size
    parts: list[tuple[int, Tensor]]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows from ``start`` up to ``stop``.

        Raises:
            ValueError: some of them are in no part.
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
        return self.rows(0, self.shape[0])


def is_sharded(path: Path) -> bool:
    """Whether a path is a checkpoint in parts."""
    return (path / REST).is_file()


def shard_names(number: int) -> list[str]:
    """The files of the parts that so many processes write."""
    return [f"shard_{rank}_of_{number}.pt" for rank in range(number)]


def take_out(contents: Any, wanted: Callable[[Any], bool], place: Place = ()) -> tuple[Any, dict[Place, Any]]:
    """Puts None in place of the ``wanted`` leaves of nested dicts and lists; what is left, and the leaves by place."""
    if wanted(contents):
        return None, {place: contents}
    if not isinstance(contents, dict | list | tuple):
        return contents, {}
    entries = contents.items() if isinstance(contents, dict) else enumerate(contents)
    taken = {key: take_out(value, wanted, (*place, key)) for key, value in entries}
    leaves = {where: leaf for _, found in taken.values() for where, leaf in found.items()}
    rest = {key: left for key, (left, _) in taken.items()}
    return (rest if isinstance(contents, dict) else type(contents)(rest.values())), leaves


def put_back(rest: Any, leaves: Mapping[Place, Any], place: Place = ()) -> Any:
    """Undoes ``take_out``."""
    if place in leaves:
        return leaves[place]
    if isinstance(rest, dict):
        return {key: put_back(value, leaves, (*place, key)) for key, value in rest.items()}
    if isinstance(rest, list | tuple):
        return type(rest)(put_back(value, leaves, (*place, number)) for number, value in enumerate(rest))
    return rest


def assemble(contents: Any) -> Any:
    """Contents with their sharded tensors whole: in memory as far as they lie in several parts."""
    rest, leaves = take_out(contents, lambda leaf: isinstance(leaf, ShardedTensor))
    return put_back(rest, {place: leaf.whole() for place, leaf in leaves.items()})
