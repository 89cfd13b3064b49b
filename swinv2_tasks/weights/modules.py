"""The tensors of a backbone, or of a task around one, under the names of a task."""

from __future__ import annotations

from torch import nn

from swinv2_tasks.backbone.swin_v2 import SwinTransformerV2
from swinv2_tasks.torch_internals import uncompiled
from swinv2_tasks.weights.files import clean_name
from swinv2_tasks.weights.formats import State, to_official


def backbone_of(module: nn.Module) -> SwinTransformerV2:
    """The backbone of a task, or the backbone itself."""
    backbone = getattr(module, "backbone", module)
    backbone = uncompiled(backbone)
    if not isinstance(backbone, SwinTransformerV2):
        raise TypeError(f"expected a SwinTransformerV2 or a module with one as .backbone, not {type(module).__name__}")
    return backbone


def name_prefix(module: nn.Module) -> str:
    """What the names of a module's tensors lack of those of a task."""
    return "" if hasattr(module, "backbone") else "backbone."


def named_tensors(module: nn.Module) -> State:
    """The module's own tensors under the names of a task: backbone.…, head.…."""
    return {name_prefix(module) + clean_name(name): value for name, value in module.state_dict(keep_vars=True).items()}


def own_state(module: nn.Module) -> State:
    """A detached official state dict of a module."""
    return to_official({name: value.detach() for name, value in named_tensors(module).items()}, "lightning")
