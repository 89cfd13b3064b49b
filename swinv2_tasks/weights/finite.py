"""Which weights of a network are NaN or infinite: nothing can be predicted or learned with them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def find_nonfinite(modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the parameters and buffers of modules that hold NaN or infinite numbers.

    Of a sharded tensor this process's shard counts.

    Args:
        modules: under the names that theirs begin with.
    """
    names: list[str] = []
    flags: list[Tensor] = []
    for prefix, module in modules.items():
        for name, tensor in [*module.named_parameters(prefix), *module.named_buffers(prefix)]:
            if not tensor.is_floating_point():
                continue
            values = tensor.detach()
            values = values.to_local() if isinstance(values, DTensor) else values
            names.append(name)
            flags.append(values.isfinite().all())
    if not flags:
        return []

    finite = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()  # one message from the device
    return [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]


def describe_nonfinite(names: list[str], source: str | None = None) -> str:
    """What is to be said of weights that are not finite, by the names of the first few.

    Args:
        names: of the tensors, as far as this process knows.
        source: the checkpoint that they came from.
    """
    few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    of_source = f" of {source}" if source else ""
    return (
        f"the weights{of_source} are not finite: {few or 'those of another process'} with NaN or infinite numbers. "
        "Nothing can be predicted or learned with them: take an earlier checkpoint, or other weights"
    )
