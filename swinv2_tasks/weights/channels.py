"""RGB weights for a backbone of other input channels.

A backbone of one channel gets the sum of the three kernels, so that a gray image gives what it gives as RGB, each color
the same. With more channels the first three keep their kernels, the others get the mean of them; with two, two keep
theirs. All are scaled by 3 / channels, so that an image whose channels are all alike gives what it gives as RGB where
the kernels are alike, and the sums that follow keep their size.
"""

from __future__ import annotations

import torch

from swinv2_tasks.weights.formats import State

RGB = 3
_PATCHES = "patch_embed.proj.weight"


def adapt_channels(state: State, trained: int, channels: int) -> tuple[State, str]:
    """Official weights of RGB for so many input channels, and in words what became of the kernels.

    Args:
        state: of an image model.
        trained: its input channels. Those of other numbers than three stay unchanged.
        channels: of the model that is to take them.
    """
    if trained != RGB or channels == RGB:
        return state, ""
    kernels = state[_PATCHES]  # (embed_dim, 3, patch sides…)
    if channels == 1:
        return {**state, _PATCHES: kernels.sum(1, keepdim=True)}, "1: the sum of the kernels of RGB"
    others = kernels.mean(1, keepdim=True).expand(-1, max(0, channels - RGB), *kernels.shape[2:])
    adapted = torch.cat([kernels[:, :channels], others], dim=1) * (RGB / channels)
    kept = "the first 2 have the kernels of R and G" if channels == 2 else "the first 3 have the kernels of RGB"
    rest = ", the others their mean" if channels > RGB else ""
    return {**state, _PATCHES: adapted}, f"{channels}: {kept}{rest}, all scaled by {RGB}/{channels}"
