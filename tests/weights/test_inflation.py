"""Image weights over clips: a clip of one repeated image gives the image's features; clips move to other windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from swinv2_tasks.backbone import BiasTable, LinearCPB, LogCPB, SwinTransformerV2
from swinv2_tasks.errors import UserError
from swinv2_tasks.weights import load_weights, save_weights
from swinv2_tasks.weights.formats import FORMATS
from tests.helpers.checkpoints import Classifier, randomize, tiny_backbone
from tests.helpers.foreign_weights import AT_128, foreign_state

CASES = {
    "window covers the clip": (4, 2, 8),
    "window longer than the clip": (8, 2, 8),
    "window divides the clip, shifted": (2, 2, 8),
    "a padded last window": (3, 2, 10),
    "patches of one frame": (2, 1, 4),
    "patches of four frames": (4, 4, 32),
    "no attention in time": (1, 2, 6),
}
"""Window in tokens of time, frames of a patch, frames of the clip."""


def over_clips(time: int, patch: int = 2, space: int = 4, **settings: Any) -> SwinTransformerV2:
    return tiny_backbone((time, space, space), patch_size=(patch, 4, 4), **settings).eval()


def save_model(model: torch.nn.Module, path: Path) -> Path:
    save_weights(model, path, format="lightning")
    return path


def still(image: Tensor, frames: int) -> Tensor:
    """Images (B, 3, H, W) → clips that repeat them."""
    return image[:, :, None].expand(-1, -1, frames, -1, -1)


@torch.no_grad()
def assert_same_in_every_frame(
    image: SwinTransformerV2, clips: SwinTransformerV2, frames: int, tolerance: float = 1e-10
) -> None:
    """Relative to the largest feature of each map; in float64 unless the tolerance is float32's."""
    x = torch.randn(2, 3, 70, 45, generator=torch.Generator().manual_seed(1))
    if tolerance < 1e-6:
        x, image, clips = x.double(), image.double(), clips.double()
    for image_map, clip_map in zip(image(x), clips(still(x, frames)), strict=True):
        assert clip_map.shape[2] == frames // clips.patch_size[0]
        assert (clip_map - image_map[:, :, None]).abs().max() <= tolerance * image_map.abs().max()


@pytest.mark.parametrize("bias", [LogCPB, LinearCPB, BiasTable])
@pytest.mark.parametrize("case", CASES)
def test_a_repeated_image_gives_the_images_features(case: str, bias: Any, tmp_path: Path) -> None:
    time, patch, frames = CASES[case]
    image = randomize(tiny_backbone(4, position_bias=bias)).eval()
    image.set_pretrained_window(4)
    clips = over_clips(time, patch, position_bias=bias)
    load_weights(clips, save_model(image, tmp_path / "image.pth"))
    assert_same_in_every_frame(image, clips, frames, 1e-5)
    assert_same_in_every_frame(image, clips, frames)


@pytest.mark.parametrize("bias", [LogCPB, BiasTable])
def test_also_at_another_window_in_space(bias: Any, tmp_path: Path) -> None:
    image = randomize(tiny_backbone(4, position_bias=bias)).eval()
    image.set_pretrained_window(4)
    clips = over_clips(2, space=6, position_bias=bias)
    load_weights(clips, save_model(image, tmp_path / "image.pth"))
    image.set_window(6)
    assert_same_in_every_frame(image, clips, 8)


@pytest.mark.parametrize("format", FORMATS)
def test_from_every_format(format: Any) -> None:
    state = foreign_state(format)
    windows = {} if "relative_coords_table" in str(list(state)) else AT_128
    image, clips = tiny_backbone(4).eval(), over_clips(2)
    load_weights(image, state, **windows)
    load_weights(clips, state, **windows)
    assert_same_in_every_frame(image, clips, 4)
    assert clips.pretrained_window_size == tuple((2, *window) for window in image.pretrained_window_size)


def test_a_file_that_does_not_state_its_windows() -> None:
    image, clips = randomize(tiny_backbone(4)).eval(), over_clips(2)
    load_weights(clips, image.state_dict())
    assert clips.pretrained_window_size == (None,) * 4
    assert_same_in_every_frame(image, clips, 4)


def test_the_report_says_what_was_inflated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = Classifier(tiny_backbone(4), 5)
    report = load_weights(Classifier(over_clips(3), 7), save_model(image, tmp_path / "image.pth"))
    blocks = sum(image.backbone.depths)
    assert len(report.inflated) == 1 + blocks and "patch_embed.proj.weight" in report.inflated
    assert report.windows[0] == ((3, 4, 4), (3, 4, 4))
    assert f"inflated    {1 + blocks}: patch_embed.proj.weight" in str(report)
    assert "stage 1   3×4×4 → 3×4×4" in str(report)
    assert report.head == "randomly initialized, 7 classes: the checkpoint has 5"


def test_time_can_be_learned_after_inflation(tmp_path: Path) -> None:
    clips = over_clips(2)
    load_weights(clips, save_model(randomize(tiny_backbone(4)), tmp_path / "image.pth"))
    x = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(2))
    clips(x)[-1].square().sum().backward()
    gradient = clips.layers[0].blocks[0].attn.cpb_mlp[0].weight.grad
    assert gradient[:, 0].abs().max() > 0
    assert (clips.layers[0].blocks[0].attn.cpb_mlp[0].weight[:, 0] == 0).all()


@pytest.mark.parametrize("bias", [LogCPB, LinearCPB, BiasTable])
@pytest.mark.parametrize("window", [(4, 4, 4), (2, 6, 6), (5, 7, 3)])
def test_clips_move_to_another_window_and_length(window: tuple[int, int, int], bias: Any, tmp_path: Path) -> None:
    trained = randomize(over_clips(2, position_bias=bias))
    trained.set_pretrained_window((2, 4, 4))
    moved = tiny_backbone(window, patch_size=(2, 4, 4), position_bias=bias).eval()
    report = load_weights(moved, save_model(trained, tmp_path / "clips.pth"))
    assert report.inflated == []
    trained.set_window(window)
    x = torch.randn(1, 3, 16, 50, 40, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for own, expected in zip(moved(x), trained(x), strict=True):
            torch.testing.assert_close(own, expected)


def test_clips_do_not_become_images_and_other_variants_are_refused(tmp_path: Path) -> None:
    clips = save_model(randomize(over_clips(2)), tmp_path / "clips.pth")
    image = tiny_backbone(4)
    before = {name: value.clone() for name, value in image.state_dict().items()}
    with pytest.raises(UserError, match=r"for clips, the model for images.*patch_size \[2, 4, 4\]"):
        load_weights(image, clips)
    with pytest.raises(UserError, match="patch 4,4,4"):
        load_weights(over_clips(2, patch=4), clips)
    other = SwinTransformerV2(8, (1, 1), (1, 2), 4, patch_size=(2, 4, 4))
    with pytest.raises(UserError, match="depths"):
        load_weights(other, save_model(image, tmp_path / "image.pth"))
    assert all(torch.equal(value, before[name]) for name, value in image.state_dict().items())
