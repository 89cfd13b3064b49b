"""Swin Transformer V2 backbones, their weights and their windows."""

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
from swinv2_tasks.backbone.weights import LoadReport, load_weights, save_weights

__all__ = [
    "BiasTable",
    "LinearCPB",
    "LoadReport",
    "LogCPB",
    "SwinTransformerV2",
    "load_weights",
    "save_weights",
    "swinv2_base",
    "swinv2_giant",
    "swinv2_huge",
    "swinv2_large",
    "swinv2_small",
    "swinv2_tiny",
]
