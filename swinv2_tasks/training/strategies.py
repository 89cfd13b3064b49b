"""Strategies of Lightning's trainer that shard a training over processes: optimizer states alone, or everything.

https://arxiv.org/abs/1910.02054: ZeRO stages 1 and 3. Checkpoints are those of any other strategy, so that each can
resume what another began: the whole weights and optimizer states in one file, or with ``save_distributed_checkpoint`` a
folder to which each process writes its own shard.
"""

from __future__ import annotations

import functools
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
from swinv2_tasks.files import unfinished_name
from swinv2_tasks.training.lightning_internals import shard_over_all_processes
from swinv2_tasks.training.run_checkpoint import AtomicCheckpointIO, move_checkpoint
from swinv2_tasks.training.sharding import gather
from swinv2_tasks.weights.files import write_pickle
from swinv2_tasks.weights.sharded import REST, ShardedTensor, flatten, shard_names, unflatten


class ShardedOptimizer(ZeroRedundancyOptimizer):
    """Lets each process's own optimizer read its shard of a checkpoint: some write states in a way of their own."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads this process's states from those of all parameters."""
        state = state_dict["state"]
        super().load_state_dict({**state_dict, "state": {}})

        # States are numbered over all parameters in the file, over its own ones in a process's optimizer.
        all_parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        index_of = {parameter: index for index, parameter in enumerate(all_parameters)}
        own_indices = [index_of[parameter] for group in self.optim.param_groups for parameter in group["params"]]
        own_state = {k: state[index] for k, index in enumerate(own_indices) if index in state}
        self.optim.load_state_dict({**self.optim.state_dict(), "state": own_state})


class ZeroStrategy(DDPStrategy):
    """DDP whose optimizer states are sharded: each process updates some of the parameters and broadcasts them.

    Any optimizer that treats parameters one by one gives the same numbers so; its checkpoints are those of plain DDP.
    """

    def setup_optimizers(self, trainer: Any) -> None:
        """Builds the task's optimizers sharded."""
        task: Any = self.lightning_module
        plain = task.optimizer
        task.optimizer = functools.partial(ShardedOptimizer, optimizer_class=plain)
        try:
            super().setup_optimizers(trainer)
        finally:
            task.optimizer = plain


class ShardedStrategy(ModelParallelStrategy):
    """Weights, gradients and optimizer states sharded over all processes; a task's ``configure_model`` shards.

    Args:
        save_distributed_checkpoint: whether a checkpoint is a folder to which each process writes its shard, instead of
            one file, which the first process gathers.
        process_group_backend: how processes communicate: nccl, gloo; None: as suits the device.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, process_group_backend: str | None = None) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
        )
        self.save_distributed_checkpoint = save_distributed_checkpoint

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning restores the optimizers: yes, by ``load_optimizer_state_dict``."""
        return True

    def setup_environment(self) -> None:
        """Makes one mesh of all processes, and lets checkpoints be written atomically."""
        shard_over_all_processes(self)
        if not isinstance(self.checkpoint_io, AtomicCheckpointIO):  # the command line has set it
            self.checkpoint_io = AtomicCheckpointIO()
        super().setup_environment()

    # ---- saving

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights as shards, or gathered in the first process and None in the others."""
        assert self.lightning_module is not None
        return self._to_save(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As any optimizer writes it: by the numbers of its parameters, not as Lightning's strategy by names."""
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return self._to_save(plain.state_dict())

    def _to_save(self, state: Any) -> Any:
        """Sharded tensors unchanged, or else gathered in the first process and None in the others."""
        if self.save_distributed_checkpoint:
            return state
        rest, shards = flatten(state, lambda leaf: isinstance(leaf, DTensor))
        gathered = {}
        for key_path, shard in shards.items():
            tensor = gather(shard)  # by all processes
            gathered[key_path] = tensor.cpu() if self.is_global_zero else None
        return unflatten(rest, gathered)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Writes a folder of shards, or one file by the first process."""
        if self.save_distributed_checkpoint:
            self._save_shards(checkpoint, Path(filepath))
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def _save_shards(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Writes each process's shard into a folder that gets its name once it is complete.

        Raises:
            CollectiveError: in all processes, when any could not write its shard; what was there before stays.
        """
        path, unfinished, save_id = self.broadcast((path, unfinished_name(path), uuid.uuid4().hex))
        names = shard_names(self.world_size)

        rest, shards = flatten(checkpoint, lambda leaf: isinstance(leaf, DTensor))
        shapes = {key_path: tuple(shard.shape) for key_path, shard in shards.items()}
        rows = {key_path: _without_padding(shard.to_local()) for key_path, shard in shards.items()}
        rows = {key_path: tensor for key_path, tensor in rows.items() if len(tensor)}
        own_shard = {
            "saved": save_id,
            "first_rows": {key_path: _first_row(shards[key_path]) for key_path in rows},
            "tensors": rows,
        }

        problem = None
        try:
            write_pickle(unfinished / names[self.global_rank], own_shard)
            if self.is_global_zero:
                rest["shards"] = {"number": len(names), "shapes": shapes, "saved": save_id}
                write_pickle(unfinished / REST, rest)
        except UserError as error:
            problem = str(error)

        problems = self._gather_objects(problem)
        if self.is_global_zero:
            if not any(problems):
                move_checkpoint(unfinished, path)
            shutil.rmtree(unfinished, ignore_errors=True)
        for rank, problem in enumerate(problems):
            if problem is not None:
                message = f"process {rank} cannot write its shard of {path}, of which nothing is kept. {problem}"
                raise CollectiveError(message)

    def _gather_objects(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    # ---- loading

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = True) -> dict[str, Any]:
        """Opens a checkpoint; tensors are read later, by each process its own rows."""
        path = Path(self.broadcast(checkpoint_path))
        assert isinstance(self.checkpoint_io, AtomicCheckpointIO)
        return self.checkpoint_io.open_checkpoint(path)  # every process reads its rows alone

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Loads this process's rows of the weights."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        shards = {
            name: _shard_like(value, own[name]) if name in own else value
            for name, value in checkpoint["state_dict"].items()
        }
        self.lightning_module.load_state_dict(shards, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Loads this process's rows of the optimizer states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            indices = [index for group in state["param_groups"] for index in group["params"]]
            shards = state["state"]
            if len(parameters) == len(indices):  # or else load_state_dict raises
                parameter_at = dict(zip(indices, parameters, strict=True))
                shards = {
                    index: {name: _shard_like(value, parameter_at[index]) for name, value in entries.items()}
                    for index, entries in shards.items()
                }
            optimizer.load_state_dict({**state, "state": shards})


def _first_row(shard: DTensor) -> int:
    """Where a process's rows of a tensor begin: rows are distributed as by ``torch.chunk``."""
    rows = -(-shard.shape[0] // shard.device_mesh.size())
    return min(rows * shard.device_mesh.get_local_rank(), shard.shape[0])


def _without_padding(tensor: Tensor) -> Tensor:
    """A tensor without the padding around it, which would be written with it."""
    tensor = tensor.detach()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _shard_like(value: Any, like: Tensor) -> Any:
    """This process's shard of a tensor from a checkpoint, where ``like`` is one of the same shape; else all of it."""
    if not isinstance(value, ShardedTensor | Tensor):
        return value
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value.whole() if isinstance(value, ShardedTensor) else value

    local = like.to_local()
    first, last = _first_row(like), _first_row(like) + len(local)
    rows = value.rows(first, last) if isinstance(value, ShardedTensor) else value[first:last]
    rows = rows.to(local.device, copy=True)  # not the file itself, where it is memory-mapped
    return DTensor.from_local(
        rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
