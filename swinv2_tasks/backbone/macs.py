"""How much a backbone computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from swinv2_tasks.backbone.position_bias import LinearCPB, LogCPB
from swinv2_tasks.backbone.swin_v2 import SwinTransformerV2


def count_macs(backbone: SwinTransformerV2, image_size: int | Sequence[int]) -> int:
    """Multiply-accumulate operations of one image or clip, from the settings alone: nothing is computed.

    Those of convolutions, linear layers and attention, tokens that fill up windows included.

    Args:
        backbone: of any size.
        image_size: pixels, a number or one per axis.
    """
    pixels = (image_size,) * backbone.axes if isinstance(image_size, int) else tuple(image_size)
    size = [-(-side // patch) for side, patch in zip(pixels, backbone.patch_size, strict=True)]
    macs = math.prod(size) * math.prod(backbone.patch_size) * backbone.in_channels * backbone.embed_dim

    for stage, channels, window in zip(
        backbone.stages, backbone.channels, backbone.effective_windows(pixels), strict=True
    ):
        tokens = math.prod(size)
        padded = math.prod(-(-side // length) * length for side, length in zip(size, window, strict=True))
        for block in stage.blocks:
            part: Any = block
            qkv_and_projection = 4 * padded * channels**2
            attention = 2 * padded * math.prod(window) * channels
            mlp = 2 * tokens * channels * part.mlp.fc1.out_features
            macs += qkv_and_projection + attention + mlp
            if isinstance(part.attn.cpb_mlp, LogCPB | LinearCPB):
                offsets = math.prod(2 * length - 1 for length in window)
                macs += offsets * 512 * (len(window) + part.attn.num_heads)
        size[-2:] = [-(-side // 2) for side in size[-2:]]
        if stage.downsample is not None:
            macs += math.prod(size) * 4 * channels * 2 * channels
    return macs
