"""Strategies of Lightning's trainer that deal a training out to processes: optimizer states alone, or everything.

https://arxiv.org/abs/1910.02054: ZeRO stages 1 and 3. Checkpoints are those of any other strategy, so that each can go
on where another left off: the whole weights and optimizer states in one file, or with ``save_distributed_checkpoint``
a folder to which each process writes its own.
"""

from __future__ import annotations

import functools
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from swinv2_tasks.errors import CollectiveError, UserError
from swinv2_tasks.training.run_checkpoint import AtomicCheckpointIO, move_checkpoint
from swinv2_tasks.training.sharding import whole
from swinv2_tasks.weights.files import write_pickle
from swinv2_tasks.weights.sharded import REST, ShardedTensor, put_back, shard_names, take_out


class OptimizerInShares(ZeroRedundancyOptimizer):
    """Lets each process's own optimizer read its part of a checkpoint: some write states in a way of their own."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = state_dict["state"]
        super().load_state_dict({**state_dict, "state": {}})
        numbers = {p: k for k, p in enumerate(p for group in self.param_groups for p in group["params"])}
        own = [numbers[p] for group in self.optim.param_groups for p in group["params"]]
        states = {k: state[number] for k, number in enumerate(own) if number in state}
        self.optim.load_state_dict({**self.optim.state_dict(), "state": states})


class ZeroStrategy(DDPStrategy):
    """DDP whose optimizer states are dealt out: each process updates some of the parameters and hands them round.

    Any optimizer that treats parameters one by one gives the same numbers so; its checkpoints are those of plain DDP.
    """

    def setup_optimizers(self, trainer: Any) -> None:
        task: Any = self.lightning_module
        plain = task.optimizer
        task.optimizer = functools.partial(OptimizerInShares, optimizer_class=plain)
        try:
            super().setup_optimizers(trainer)
        finally:
            task.optimizer = plain


class ShardedStrategy(ModelParallelStrategy):
    """Weights, gradients and optimizer states in shares over all processes; a task's ``configure_model`` shards.

    Args:
        save_distributed_checkpoint: whether a checkpoint is a folder to which each process writes its share, instead of
            one file, which the first process gathers.
        process_group_backend: how processes talk: nccl, gloo; None: as suits the device.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, process_group_backend: str | None = None) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # Lightning's "auto" is the number of nodes
        if not isinstance(self.checkpoint_io, AtomicCheckpointIO):  # the command line has set it
            self.checkpoint_io = AtomicCheckpointIO()
        super().setup_environment()

    # ---- saving

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self._to_save(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As any optimizer writes it: by the numbers of its parameters, not as Lightning's strategy by names."""
        return self._to_save(
            (optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()
        )

    def _to_save(self, state: Any) -> Any:
        """Tensors in shares as they are, or else whole in the first process and nowhere in the others."""
        if self._save_distributed_checkpoint:
            return state
        rest, shares = take_out(state, lambda leaf: isinstance(leaf, DTensor))
        gathered = {}
        for place, share in shares.items():
            tensor = whole(share)
            gathered[place] = tensor.cpu() if self.is_global_zero else None
        return put_back(rest, gathered)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if self._save_distributed_checkpoint:
            self._save_shards(checkpoint, Path(filepath))
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def _save_shards(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Writes each process's share into a folder that gets its name once it is whole.

        Raises:
            CollectiveError: in all processes, when any could not write its share; what was there before stays.
        """
        path, process, saved = self.broadcast((path, os.getpid(), uuid.uuid4().hex))
        unfinished = path.with_name(f".{path.name}.{process}")
        names = shard_names(self.world_size)
        rest, shares = take_out(checkpoint, lambda leaf: isinstance(leaf, DTensor))
        parts = {place: (_first_row(share), _own(share.to_local())) for place, share in shares.items()}
        parts = {place: part for place, part in parts.items() if len(part[1])}
        shard = {
            "saved": saved,
            "first_rows": {place: first for place, (first, _) in parts.items()},
            "tensors": {place: tensor for place, (_, tensor) in parts.items()},
        }
        shapes = {place: tuple(share.shape) for place, share in shares.items()}
        problem = None
        try:
            write_pickle(unfinished / names[self.global_rank], shard)
            if self.is_global_zero:
                rest["shards"] = {"number": len(names), "shapes": shapes, "saved": saved}
                write_pickle(unfinished / REST, rest)
        except UserError as error:
            problem = str(error)
        problems = self._of_all(problem)
        if self.is_global_zero:
            if not any(problems):
                move_checkpoint(unfinished, path)
            shutil.rmtree(unfinished, ignore_errors=True)
        for rank, problem in enumerate(problems):
            if problem is not None:
                message = f"process {rank} cannot write its part of {path}, of which nothing is kept. {problem}"
                raise CollectiveError(message)

    def _of_all(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    # ---- loading

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = True) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        assert isinstance(self.checkpoint_io, AtomicCheckpointIO)
        return self.checkpoint_io.open_checkpoint(path)  # every process reads its rows alone

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own, given = self.lightning_module.state_dict(), checkpoint["state_dict"]
        shares = {name: _share(value, own[name]) if name in own else value for name, value in given.items()}
        self.lightning_module.load_state_dict(shares, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            given = [number for group in state["param_groups"] for number in group["params"]]
            shares = state["state"]
            if len(own) == len(given):  # or else load_state_dict complains
                like = dict(zip(given, own, strict=True))
                shares = {
                    number: {name: _share(value, like[number]) for name, value in entries.items()}
                    for number, entries in shares.items()
                }
            optimizer.load_state_dict({**state, "state": shares})


def _first_row(share: DTensor) -> int:
    """Where a process's rows of a tensor begin: rows are dealt as by ``torch.chunk``."""
    rows = -(-share.shape[0] // share.device_mesh.size())
    return min(rows * share.device_mesh.get_local_rank(), share.shape[0])


def _own(tensor: Tensor) -> Tensor:
    """A tensor without the padding around it, which would be written with it."""
    tensor = tensor.detach()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _share(value: Any, like: Tensor) -> Any:
    """This process's share of a tensor from a checkpoint, where ``like`` is one of the same shape; else all of it."""
    if not isinstance(value, ShardedTensor | Tensor):
        return value
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value.whole() if isinstance(value, ShardedTensor) else value
    local = like.to_local()
    first, rows = _first_row(like), len(local)
    part = value.rows(first, first + rows) if isinstance(value, ShardedTensor) else value[first : first + rows]
    part = part.to(local.device, copy=True)  # not the file itself, where it is read as it lies
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
