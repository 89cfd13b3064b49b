"""At every size, blocks and backbones equal a slow reference that knows no padding: real tokens meet real tokens only.

Padding is filled with zeros, but its keys get a position bias and its values ``v_bias``: were a padded token attended
to, or the map cut or cropped elsewhere, the differences below would be of the order of 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from swinv2_tasks.backbone import LogCPB, SwinTransformerV2
from swinv2_tasks.backbone.swin_v2 import SwinBlock
from tests.helpers import brute_force
from tests.helpers.brute_force import Settings, Sides, weights_of
from tests.helpers.checkpoints import randomize

IMAGES = [
    ((8, 8), (4, 4)),  # whole windows
    ((9, 8), (4, 4)),
    ((5, 11), (4, 4)),
    ((7, 5), (3, 3)),  # an odd window, whose shift is less than its half
    ((13, 6), (5, 4)),
    ((3, 2), (4, 4)),  # smaller than the window
    ((3, 9), (4, 4)),  # one side smaller
    ((9, 3), (4, 4)),
    ((4, 10), (4, 4)),  # one side just one window
    ((10, 1), (4, 4)),
    ((1, 1), (4, 4)),
    ((6, 7), (1, 1)),  # every token alone
    ((5, 9), (1, 4)),
    ((11, 7), (2, 6)),
]
CLIPS = [
    ((4, 4, 4), (2, 2, 2)),  # whole windows
    ((3, 5, 4), (2, 2, 3)),
    ((5, 3, 7), (2, 4, 3)),
    ((2, 5, 3), (8, 2, 2)),  # fewer frames than the window, as with short clips
    ((3, 2, 2), (2, 7, 7)),
    ((1, 7, 1), (8, 4, 7)),
    ((3, 3, 5), (1, 2, 2)),
]


def random_block(window: Sides, heads: int, shifted: bool) -> SwinBlock:
    block = SwinBlock(
        dim=6 * heads,
        num_heads=heads,
        window=window,
        shifted=shifted,
        mlp_ratio=2.0,
        drop_path=0.0,
        position_bias=LogCPB,
        extra_norm=False,
        attention_chunk_size=0,
    )
    return randomize(block, seed=sum(window)).double()


@pytest.mark.parametrize("shifted", [False, True], ids=["regular", "shifted"])
@pytest.mark.parametrize(("size", "window"), IMAGES + CLIPS, ids=str)
def test_attention_of_a_block_equals_brute_force(size: Sides, window: Sides, shifted: bool) -> None:
    block = random_block(window, heads=2, shifted=shifted)
    x = torch.randn(2, *size, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pretrained = tuple(m + 2 for m in window)
    with torch.no_grad():
        attended = block.attend(x, window, pretrained).numpy()
    weights = brute_force.inside(weights_of(block), "attn.")
    for image in range(2):
        expected = brute_force.window_attention(weights, x[image].numpy(), 2, window, pretrained, shifted=shifted)
        np.testing.assert_allclose(attended[image], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(12))
def test_block_equals_brute_force_at_a_random_size_and_window(seed: int) -> None:
    random = np.random.default_rng(seed)
    axes = 2 + seed % 2
    size = tuple(int(side) for side in random.integers(1, 12 if axes == 2 else 6, axes))
    window = tuple(int(side) for side in random.integers(1, 6 if axes == 2 else 4, axes))
    heads = int(random.integers(1, 4))
    block = random_block(window, heads, shifted=True)
    x = torch.randn(1, *size, 6 * heads, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    fitted = tuple(min(pair) for pair in zip(size, window, strict=True))
    expected = brute_force.block(weights_of(block), x[0].numpy(), heads, window, fitted, shifted=True)
    with torch.no_grad():
        np.testing.assert_allclose(
            block(x, window, fitted)[0], expected, rtol=0, atol=1e-10, err_msg=f"{size} {window}"
        )


def check_backbone(settings: Settings, pixels: Sides, **arguments: Any) -> None:
    model = SwinTransformerV2(
        8,
        settings.depths,
        settings.num_heads,
        settings.windows,
        pretrained_window_size=settings.pretrained,
        patch_size=settings.patch,
        in_channels=2,
        mlp_ratio=2.0,
        **arguments,
    )
    randomize(model.double().eval())
    x = torch.randn(1, 2, *pixels, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        maps = model(x)
    expected = brute_force.backbone(weights_of(model), x[0].numpy(), settings)
    for own, reference in zip(maps, expected, strict=True):
        np.testing.assert_allclose(own[0], reference, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pixels", [(32, 32), (37, 26), (21, 43), (9, 34), (4, 4), (13, 18)], ids=str)
def test_backbone_over_images_equals_brute_force(pixels: Sides) -> None:
    """Partial patches, odd maps to merge, maps that the windows do not divide and maps smaller than the window."""
    settings = Settings(
        depths=(2, 2, 1), num_heads=(2, 4, 2), windows=[(4, 4)] * 3, pretrained=[None] * 3, patch=(4, 4)
    )
    check_backbone(settings, pixels)


@pytest.mark.parametrize("pixels", [(35, 22), (18, 27)], ids=str)
def test_backbone_with_windows_of_its_own_per_stage_and_axis_equals_brute_force(pixels: Sides) -> None:
    settings = Settings(
        depths=(2, 3), num_heads=(1, 2), windows=[(3, 5), (2, 3)], pretrained=[(6, 4), None], patch=(4, 2)
    )
    check_backbone(settings, pixels)


def test_backbone_with_extra_norms_equals_brute_force() -> None:
    settings = Settings(depths=(3, 2), num_heads=(2, 2), windows=[(3, 3)] * 2, pretrained=[None] * 2, patch=(4, 4))
    check_backbone(settings, (27, 18), extra_norm_every=2)


def test_backbone_that_attends_a_few_windows_at_a_time_equals_brute_force() -> None:
    settings = Settings(depths=(2, 2), num_heads=(2, 2), windows=[(3, 3)] * 2, pretrained=[None] * 2, patch=(4, 4))
    check_backbone(settings, (29, 18), attention_chunk_size=(4, 1))


@pytest.mark.parametrize("pixels", [(4, 12, 20), (5, 22, 13), (2, 4, 19), (7, 9, 5)], ids=str)
def test_backbone_over_clips_equals_brute_force(pixels: Sides) -> None:
    """Frames are shifted as space is, and are never merged."""
    settings = Settings(
        depths=(2, 2),
        num_heads=(2, 2),
        windows=[(2, 3, 3), (8, 2, 2)],
        pretrained=[None, (4, 2, 3)],
        patch=(2, 4, 4),
    )
    check_backbone(settings, pixels)
