"""Swin Transformer V2 backbones."""

from swinv2_tasks.backbone.attention import WindowAttention
from swinv2_tasks.backbone.position_bias import BiasTable, LinearCPB, LogCPB
from swinv2_tasks.backbone.swin_v2 import SwinTransformerV2
from swinv2_tasks.backbone.variants import (
    swinv2_base,
    swinv2_giant,
    swinv2_huge,
    swinv2_large,
    swinv2_small,
    swinv2_tiny,
)
from swinv2_tasks.backbone.window import WindowGrid

__all__ = [
    "BiasTable",
    "LinearCPB",
    "LogCPB",
    "SwinTransformerV2",
    "WindowAttention",
    "WindowGrid",
    "swinv2_base",
    "swinv2_giant",
    "swinv2_huge",
    "swinv2_large",
    "swinv2_small",
    "swinv2_tiny",
]
