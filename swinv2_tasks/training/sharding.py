"""Full sharding: each process keeps its shard of every weight, gradient and optimizer state (ZeRO stage 3).

https://arxiv.org/abs/1910.02054, section 5.3, and https://arxiv.org/abs/2304.11277, by torch's ``fully_shard``. Each
Swin block is gathered as it is needed; what lies between blocks, and the head, make up two more units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.backbone.swin_v2 import SwinBlock
from swinv2_tasks.seeding import derive_seed


def shard(
    backbone: SwinTransformerV2,
    head: nn.Module,
    mesh: DeviceMesh,
    device: torch.device,
    seed: int,
    head_methods: Sequence[str] = (),
) -> None:
    """Shards a backbone and a head over all processes, block by block: no more than one block is ever gathered.

    The first process's weights count. Blocks on the meta device (``blocks_on_meta_device``) are initialized here, each
    from a seed of its own, so that they are the same on any number of processes.

    Args:
        backbone: unsharded or on the meta device; nothing happens when it is sharded already.
        head: unsharded.
        mesh: the processes, along one axis.
        device: this process's.
        seed: of the initial weights; the same in all processes.
        head_methods: what training calls of the head beside its ``forward``.
    """
    if isinstance(backbone, FSDPModule):
        return
    blocks = [module for module in backbone.modules() if isinstance(module, SwinBlock)]
    for index, block in enumerate(blocks):
        if any(parameter.is_meta for parameter in block.parameters()):
            initialize_block(block, derive_seed(seed, index))
        _shard_unit(block, mesh, device)
    _shard_unit(backbone, mesh, device)
    _shard_unit(head, mesh, device)
    for name in head_methods:
        register_fsdp_forward_method(head, name)


def initialize_block(block: SwinBlock, seed: int) -> None:
    """Moves a block from the meta device to the CPU and draws its initial weights, the same for any device."""
    block.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        block.reset_parameters()


def _shard_unit(module: nn.Module, mesh: DeviceMesh, device: torch.device) -> None:
    """Shards what no unit inside the module has sharded, with the first process's values."""
    for tensor in (*module.parameters(), *module.buffers()):
        if not isinstance(tensor, DTensor):
            copy = tensor.detach().to(device, copy=True)  # weights may lie in a file, which is not to be written to
            torch.distributed.broadcast(copy, 0)
            tensor.data = copy
    fully_shard(module, mesh=mesh)


def units(module: nn.Module) -> list[FSDPModule]:
    """The sharded units of a module, outer before inner ones; none where nothing is sharded."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def gather_units(module: nn.Module) -> None:
    """Gathers all weights until ``release_units``, so that processes need not wait for each other.

    An evaluation may call the model more often in one process than in another.
    """
    for unit in units(module):
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()


def release_units(module: nn.Module) -> None:
    """Leaves each process its shard again."""
    for unit in units(module):
        unit.set_reshard_after_forward(isinstance(unit, SwinBlock), recurse=False)
        unit.reshard()


def gather(tensor: Tensor) -> Tensor:
    """A tensor with the shards of all processes; to be called by all of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients as one vector, with one message between processes where these are sharded."""
    shards = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    norm = torch.nn.utils.get_total_norm(shards)
    meshes = {gradient.device_mesh for gradient in gradients if isinstance(gradient, DTensor)}
    for mesh in meshes:
        squared = norm.square()
        torch.distributed.all_reduce(squared, group=mesh.get_group())
        norm = squared.sqrt()
    return norm
