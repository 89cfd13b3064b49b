"""The sizes of Swin Transformer V2: numbers only.

https://arxiv.org/abs/2111.09883, section 4.1. Keyword arguments go through to ``SwinTransformerV2``.
"""

from __future__ import annotations

from typing import Any

from swinv2_tasks.backbone.swin_v2 import SwinTransformerV2


def swinv2_tiny(**kwargs: Any) -> SwinTransformerV2:
    """SwinV2-T: 27.6 M parameters."""
    return SwinTransformerV2(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), **kwargs)


def swinv2_small(**kwargs: Any) -> SwinTransformerV2:
    """SwinV2-S: 49.0 M parameters."""
    return SwinTransformerV2(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), **kwargs)


def swinv2_base(**kwargs: Any) -> SwinTransformerV2:
    """SwinV2-B: 86.9 M parameters."""
    return SwinTransformerV2(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), **kwargs)


def swinv2_large(**kwargs: Any) -> SwinTransformerV2:
    """SwinV2-L: 195 M parameters."""
    return SwinTransformerV2(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), **kwargs)


def swinv2_huge(**kwargs: Any) -> SwinTransformerV2:
    """SwinV2-H: about 655 M parameters; the paper does not state its heads."""
    return SwinTransformerV2(
        embed_dim=352, depths=(2, 2, 18, 2), num_heads=(8, 16, 32, 64), extra_norm_every=6, **kwargs
    )


def swinv2_giant(**kwargs: Any) -> SwinTransformerV2:
    """SwinV2-G: about 3.0 billion parameters; its last stage has 4 blocks."""
    return SwinTransformerV2(
        embed_dim=512, depths=(2, 2, 42, 4), num_heads=(16, 32, 64, 128), extra_norm_every=6, **kwargs
    )
