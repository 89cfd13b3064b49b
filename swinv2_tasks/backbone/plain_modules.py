"""Whether modules compute what their weights say and nothing else, so that there is a shorter way to the same numbers.

Hooks, adapters (https://arxiv.org/abs/2106.09685), parametrizations and quantized layers all need the module to be
called. Where one of them is there, whatever goes past a module or remembers its results has to give way.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

_OWN_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOKS_OF_ALL = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


def is_plain(module: nn.Module) -> bool:
    """Whether a module and all inside are torch's own layers or this package's, without hooks.

    torch gives a parametrized layer a class of its own, as quantization and adapters do.
    """
    if any(getattr(torch_module, hooks) for hooks in _HOOKS_OF_ALL):
        return False
    return all(_is_plain(part) for part in module.modules())


def _is_plain(module: nn.Module) -> bool:
    is_own_class = type(module).__module__.startswith(("torch.nn.modules.", "swinv2_tasks."))
    has_hooks = any(getattr(module, hooks) for hooks in _OWN_HOOKS)
    is_wrapped = "forward" in vars(module)  # of this one alone, as some libraries wrap a layer
    return is_own_class and not has_hooks and not is_wrapped
