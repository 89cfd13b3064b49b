"""RGB weights in backbones of other input channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.errors import UserError
from swinv2_tasks.tasks import SimMIMTask
from swinv2_tasks.weights import load_weights
from tests.helpers.tiny import BACKBONE


def backbone(channels: int) -> SwinTransformerV2:
    return SwinTransformerV2(**BACKBONE, in_channels=channels).eval()


@torch.no_grad()
def test_one_channel_gives_what_gray_gives_as_rgb() -> None:
    torch.manual_seed(0)
    rgb, gray = backbone(3), backbone(1)
    report = load_weights(gray, rgb.state_dict())
    x = torch.randn(2, 1, 32, 32)
    for ours, theirs in zip(gray(x), rgb(x.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert "sum of the kernels" in str(report)


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_kernels_of_n_channels(channels: int) -> None:
    torch.manual_seed(0)
    rgb, other = backbone(3), backbone(channels)
    report = load_weights(other, rgb.state_dict())
    before, after = (model.patch_embed.proj.weight for model in (rgb, other))
    scale = 3 / channels
    for channel in range(channels):
        kernel = before[:, channel] if channel < 3 else before.mean(1)
        torch.testing.assert_close(after[:, channel], kernel * scale)
    assert f"scaled by 3/{channels}" in report.channels and report.loaded == len(rgb.state_dict())


def test_other_numbers_fit_their_own_alone() -> None:
    four = backbone(4)
    assert load_weights(backbone(4), four.state_dict()).channels == ""
    with pytest.raises(UserError, match="4 input channels"):
        load_weights(backbone(3), four.state_dict())
    with pytest.raises(UserError, match="4 input channels"):
        load_weights(backbone(5), four.state_dict())


def test_simmim_keeps_its_encoder_and_draws_a_new_decoder(tmp_path: Path) -> None:
    five = SimMIMTask(backbone(5))
    report = load_weights(five, SimMIMTask(backbone(3)).state_dict())
    assert report.randomly_initialized == ["head.decoder.0.weight", "head.decoder.0.bias"]
    assert five(torch.randn(1, 5, 32, 32)).shape == (1, 5, 32, 32)
