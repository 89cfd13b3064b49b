"""A task on several processes: sharded where the strategy says so, gathered for evaluation, stopped together."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.errors import CollectiveError
from swinv2_tasks.training.sharding import gather_units, release_units, shard, units
from swinv2_tasks.weights.finite import describe_nonfinite, find_nonfinite


class ParallelTask(LightningModule):
    """Evaluates without waiting for other processes, which may have more batches or fewer."""

    backbone: SwinTransformerV2
    head: nn.Module

    head_methods: tuple[str, ...] = ()
    """What training calls of the head beside its ``forward``."""

    def configure_model(self) -> None:
        """Shards backbone and head, where the strategy says so."""
        mesh = self.device_mesh
        if mesh is not None:  # of a strategy that shards
            strategy: Any = self.trainer.strategy
            seed = strategy.broadcast(torch.initial_seed() % 2**32)
            shard(self.backbone, self.head, mesh["data_parallel"], strategy.root_device, seed, self.head_methods)

    def on_train_start(self) -> None:
        """Refuses to train weights that are NaN or infinite."""
        self._refuse_nonfinite()
        super().on_train_start()

    def on_validation_start(self) -> None:
        """Lets all processes evaluate one model without waiting for each other."""
        super().on_validation_start()
        model = self.trainer.strategy.model
        if isinstance(model, DistributedDataParallel):
            # All processes evaluate the model that checkpoints hold, the first one's, and none waits within a batch.
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, 0)
            model.require_forward_param_sync = False
        self._gather()

    def on_test_start(self) -> None:
        """Gathers a sharded model, and refuses weights that are NaN or infinite."""
        super().on_test_start()
        self._gather()

    def on_predict_start(self) -> None:
        """Gathers a sharded model, and refuses weights that are NaN or infinite."""
        self._gather()

    def on_validation_end(self) -> None:
        """Shards the model again, and lets DDP synchronize it as before."""
        super().on_validation_end()
        release_units(self)
        model = self.trainer.strategy.model
        if isinstance(model, DistributedDataParallel):
            model.require_forward_param_sync = True

    def _gather(self) -> None:
        """Gathers a sharded model for an evaluation: processes may have unequal numbers of batches."""
        if units(self):
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, 0)
            gather_units(self)
        self._refuse_nonfinite()

    def _refuse_nonfinite(self) -> None:
        """Stops all processes where the weights of any are NaN or infinite.

        Raises:
            CollectiveError: naming them.
        """
        names = find_nonfinite({"backbone": self.backbone, "head": self.head})
        number = torch.tensor(float(len(names)), device=self.device)
        if self.trainer.world_size > 1:
            number = self.trainer.strategy.reduce(number, reduce_op="sum")
        if number > 0:
            source = self.trainer.ckpt_path
            raise CollectiveError(describe_nonfinite(names, None if source is None else str(source)))
