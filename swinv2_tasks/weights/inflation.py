"""Image weights for a backbone over clips, so that a clip of one repeated image gives that image's features.

https://arxiv.org/abs/2106.13230, section 3.3, with the continuous position bias of https://arxiv.org/abs/2111.09883 in
place of the table. A patch's convolution is repeated over its frames and divided by their number; the position network
takes time with a weight of zero, so that the bias at every offset in time is the image's. Every token then attends to
as many copies of each position as its window has frames, and the mean over copies is what it was. That holds at any
window, also shifted and padded ones, because padding is never attended to; a clip has to fill its last patch.
"""

from __future__ import annotations

import dataclasses

import torch

from swinv2_tasks.backbone.position_bias import resize_bias_table
from swinv2_tasks.backbone.window import Size
from swinv2_tasks.weights.formats import State, Variant, is_buffer
from swinv2_tasks.weights.windows import Windows, square_table_window

_PATCHES = "patch_embed.proj.weight"
_NETWORK = ".attn.cpb_mlp.0.weight"
_TABLE = ".attn.relative_position_bias_table"


def inflate_variant(variant: Variant, frames: int) -> Variant:
    """An image variant over clips, with patches of so many frames."""
    return dataclasses.replace(variant, patch_size=(frames, *variant.patch_size))


def inflate_windows(windows: Windows, time: list[int]) -> Windows:
    """Image windows with a side in time for each stage: the model's own, which its position bias will be trained at."""

    def with_time(sizes: tuple[Size, ...]) -> tuple[Size, ...]:
        return tuple((side, *size) for side, size in zip(time, sizes, strict=True))

    return Windows(with_time(windows.effective), with_time(windows.pretrained))


def inflate(state: State, frames: int, windows: tuple[Size, ...], old: Windows | None) -> tuple[State, list[str]]:
    """Official image weights as official weights over clips, without buffers, and the names of those that changed.

    Args:
        state: of an image model.
        frames: of a patch.
        windows: of the model over clips, per stage (T, H, W). Bias tables are made for them.
        old: the image model's; where they are not known, those of bias tables count as square.
    """
    inflated: State = {}
    changed = []
    for name, tensor in state.items():
        if is_buffer(name):
            continue
        if name == _PATCHES:
            tensor = tensor[:, :, None].repeat(1, 1, frames, 1, 1) / frames
        elif name.endswith(_NETWORK):
            tensor = torch.cat([torch.zeros_like(tensor[:, :1]), tensor], dim=1)
        elif name.endswith(_TABLE):
            stage = int(name.split(".")[1])
            time, *space = windows[stage]
            before = old.effective[stage] if old else square_table_window(len(tensor))
            tensor = resize_bias_table(tensor, before, tuple(space)).repeat(2 * time - 1, 1)
        if tensor is not state[name]:
            changed.append(name)
        inflated[name] = tensor
    return inflated, changed
