"""The sizes of Swin Transformer V2: numbers only.

https://arxiv.org/abs/2111.09883, section 4.1. The other arguments are those of ``SwinTransformerV2``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from swinv2_tasks.backbone.position_bias import LogCPB
from swinv2_tasks.backbone.swin_v2 import SwinTransformerV2


def swinv2_tiny(
    window_size: int | Sequence[int] | Sequence[Sequence[int]] = 8,
    *,
    pretrained_window_size: int | Sequence[int] | Sequence[Sequence[int]] | None = None,
    patch_size: int | Sequence[int] = 4,
    in_channels: int = 3,
    mlp_ratio: float = 4.0,
    drop_path_rate: float = 0.0,
    position_bias: type[nn.Module] = LogCPB,
    extra_norm_every: int = 0,
    checkpoint_stages: bool | Sequence[int] = False,
    attention_chunk_size: int | Sequence[int] = 0,
    frozen_stages: int = 0,
) -> SwinTransformerV2:
    """SwinV2-T: 27.6 M parameters."""
    return SwinTransformerV2(
        embed_dim=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window_size=window_size,
        pretrained_window_size=pretrained_window_size,
        patch_size=patch_size,
        in_channels=in_channels,
        mlp_ratio=mlp_ratio,
        drop_path_rate=drop_path_rate,
        position_bias=position_bias,
        extra_norm_every=extra_norm_every,
        checkpoint_stages=checkpoint_stages,
        attention_chunk_size=attention_chunk_size,
        frozen_stages=frozen_stages,
    )


def swinv2_small(
    window_size: int | Sequence[int] | Sequence[Sequence[int]] = 8,
    *,
    pretrained_window_size: int | Sequence[int] | Sequence[Sequence[int]] | None = None,
    patch_size: int | Sequence[int] = 4,
    in_channels: int = 3,
    mlp_ratio: float = 4.0,
    drop_path_rate: float = 0.0,
    position_bias: type[nn.Module] = LogCPB,
    extra_norm_every: int = 0,
    checkpoint_stages: bool | Sequence[int] = False,
    attention_chunk_size: int | Sequence[int] = 0,
    frozen_stages: int = 0,
) -> SwinTransformerV2:
    """SwinV2-S: 49.0 M parameters."""
    return SwinTransformerV2(
        embed_dim=96,
        depths=(2, 2, 18, 2),
        num_heads=(3, 6, 12, 24),
        window_size=window_size,
        pretrained_window_size=pretrained_window_size,
        patch_size=patch_size,
        in_channels=in_channels,
        mlp_ratio=mlp_ratio,
        drop_path_rate=drop_path_rate,
        position_bias=position_bias,
        extra_norm_every=extra_norm_every,
        checkpoint_stages=checkpoint_stages,
        attention_chunk_size=attention_chunk_size,
        frozen_stages=frozen_stages,
    )


def swinv2_base(
    window_size: int | Sequence[int] | Sequence[Sequence[int]] = 8,
    *,
    pretrained_window_size: int | Sequence[int] | Sequence[Sequence[int]] | None = None,
    patch_size: int | Sequence[int] = 4,
    in_channels: int = 3,
    mlp_ratio: float = 4.0,
    drop_path_rate: float = 0.0,
    position_bias: type[nn.Module] = LogCPB,
    extra_norm_every: int = 0,
    checkpoint_stages: bool | Sequence[int] = False,
    attention_chunk_size: int | Sequence[int] = 0,
    frozen_stages: int = 0,
) -> SwinTransformerV2:
    """SwinV2-B: 86.9 M parameters."""
    return SwinTransformerV2(
        embed_dim=128,
        depths=(2, 2, 18, 2),
        num_heads=(4, 8, 16, 32),
        window_size=window_size,
        pretrained_window_size=pretrained_window_size,
        patch_size=patch_size,
        in_channels=in_channels,
        mlp_ratio=mlp_ratio,
        drop_path_rate=drop_path_rate,
        position_bias=position_bias,
        extra_norm_every=extra_norm_every,
        checkpoint_stages=checkpoint_stages,
        attention_chunk_size=attention_chunk_size,
        frozen_stages=frozen_stages,
    )


def swinv2_large(
    window_size: int | Sequence[int] | Sequence[Sequence[int]] = 8,
    *,
    pretrained_window_size: int | Sequence[int] | Sequence[Sequence[int]] | None = None,
    patch_size: int | Sequence[int] = 4,
    in_channels: int = 3,
    mlp_ratio: float = 4.0,
    drop_path_rate: float = 0.0,
    position_bias: type[nn.Module] = LogCPB,
    extra_norm_every: int = 0,
    checkpoint_stages: bool | Sequence[int] = False,
    attention_chunk_size: int | Sequence[int] = 0,
    frozen_stages: int = 0,
) -> SwinTransformerV2:
    """SwinV2-L: 195 M parameters."""
    return SwinTransformerV2(
        embed_dim=192,
        depths=(2, 2, 18, 2),
        num_heads=(6, 12, 24, 48),
        window_size=window_size,
        pretrained_window_size=pretrained_window_size,
        patch_size=patch_size,
        in_channels=in_channels,
        mlp_ratio=mlp_ratio,
        drop_path_rate=drop_path_rate,
        position_bias=position_bias,
        extra_norm_every=extra_norm_every,
        checkpoint_stages=checkpoint_stages,
        attention_chunk_size=attention_chunk_size,
        frozen_stages=frozen_stages,
    )


def swinv2_huge(
    window_size: int | Sequence[int] | Sequence[Sequence[int]] = 8,
    *,
    pretrained_window_size: int | Sequence[int] | Sequence[Sequence[int]] | None = None,
    patch_size: int | Sequence[int] = 4,
    in_channels: int = 3,
    mlp_ratio: float = 4.0,
    drop_path_rate: float = 0.0,
    position_bias: type[nn.Module] = LogCPB,
    extra_norm_every: int = 6,
    checkpoint_stages: bool | Sequence[int] = False,
    attention_chunk_size: int | Sequence[int] = 0,
    frozen_stages: int = 0,
) -> SwinTransformerV2:
    """SwinV2-H: about 655 M parameters; the paper does not state its heads."""
    return SwinTransformerV2(
        embed_dim=352,
        depths=(2, 2, 18, 2),
        num_heads=(8, 16, 32, 64),
        window_size=window_size,
        pretrained_window_size=pretrained_window_size,
        patch_size=patch_size,
        in_channels=in_channels,
        mlp_ratio=mlp_ratio,
        drop_path_rate=drop_path_rate,
        position_bias=position_bias,
        extra_norm_every=extra_norm_every,
        checkpoint_stages=checkpoint_stages,
        attention_chunk_size=attention_chunk_size,
        frozen_stages=frozen_stages,
    )


def swinv2_giant(
    window_size: int | Sequence[int] | Sequence[Sequence[int]] = 8,
    *,
    pretrained_window_size: int | Sequence[int] | Sequence[Sequence[int]] | None = None,
    patch_size: int | Sequence[int] = 4,
    in_channels: int = 3,
    mlp_ratio: float = 4.0,
    drop_path_rate: float = 0.0,
    position_bias: type[nn.Module] = LogCPB,
    extra_norm_every: int = 6,
    checkpoint_stages: bool | Sequence[int] = False,
    attention_chunk_size: int | Sequence[int] = 0,
    frozen_stages: int = 0,
) -> SwinTransformerV2:
    """SwinV2-G: about 3.0 billion parameters; its last stage has 4 blocks."""
    return SwinTransformerV2(
        embed_dim=512,
        depths=(2, 2, 42, 4),
        num_heads=(16, 32, 64, 128),
        window_size=window_size,
        pretrained_window_size=pretrained_window_size,
        patch_size=patch_size,
        in_channels=in_channels,
        mlp_ratio=mlp_ratio,
        drop_path_rate=drop_path_rate,
        position_bias=position_bias,
        extra_norm_every=extra_norm_every,
        checkpoint_stages=checkpoint_stages,
        attention_chunk_size=attention_chunk_size,
        frozen_stages=frozen_stages,
    )
