"""Multiply-accumulate operations are those that torch counts as the backbone runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from swinv2_tasks.backbone import BiasTable, SwinTransformerV2, swinv2_tiny
from swinv2_tasks.backbone.macs import count_macs


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({}, (64, 64)),
        ({"window_size": 7, "mlp_ratio": 3.0}, (65, 83)),  # windows and patches that are filled up
        ({"position_bias": BiasTable}, (32, 32)),
        ({"patch_size": (2, 4, 4), "window_size": (4, 4, 4)}, (9, 40, 64)),
    ],
)
def test_they_are_those_that_are_computed(arguments: dict[str, Any], size: tuple[int, ...]) -> None:
    backbone = SwinTransformerV2(16, (2, 1, 1), (1, 2, 4), **{"window_size": 4, **arguments})
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(torch.zeros(1, 3, *size))
    assert count_macs(backbone, size) == counter.get_total_flops() // 2


def test_the_published_number_of_swinv2_tiny() -> None:
    """5.9 G at window 8 and 256 pixels (table 2 of the paper); here without the head."""
    with torch.device("meta"):
        backbone = swinv2_tiny(window_size=8)
    assert count_macs(backbone, 256) == pytest.approx(5.9e9, rel=0.02)
