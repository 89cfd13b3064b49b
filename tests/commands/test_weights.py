"""``weights inspect`` and ``weights convert``: what they print, what they write, what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jsonargparse import auto_cli
from safetensors.torch import load_file

from swinv2_tasks.backbone import LinearCPB, swinv2_tiny
from swinv2_tasks.commands.weights import convert, inspect
from swinv2_tasks.errors import UserError
from swinv2_tasks.weights import save_weights
from swinv2_tasks.weights.files import read_checkpoint
from swinv2_tasks.weights.formats import from_official
from tests.helpers.checkpoints import official_state, simmim_state, tiny_backbone


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """As the authors' code writes a model fine-tuned from window 4 to window 8."""
    torch.save({"model": official_state((8, 8, 8, 8), (4, 4, 4, 4)), "epoch": 29}, tmp_path / "released.pth")
    return tmp_path / "released.pth"


def test_inspect_names_format_windows_and_head(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(str(released))
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if not line.startswith("  "))
    assert lines["format"] == "official"
    assert lines["variant"].startswith("SwinV2 (embed_dim 8, depths 2,1,1,1, heads 1,2,4,8)")
    assert lines["head"] == "5 classes"
    assert "coordinate tables" in lines["windows"]
    assert lines["do"] == "not fit  none"


def test_inspect_prints_the_windows_of_each_stage(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(str(released))
    assert capsys.readouterr().out.count("4×4 → 8×8") == 4


def test_inspect_counts_the_parameters_of_the_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Published for SwinV2-T: 27,578,154, of which 2·768 are the final norm's, which belongs to the head here."""
    save_weights(swinv2_tiny(), tmp_path / "tiny.pth")
    inspect(str(tmp_path / "tiny.pth"))
    out = capsys.readouterr().out
    assert "SwinV2-T" in out
    assert f"{27_578_154 - 2 * 768:,} in the backbone" in out


def test_inspect_lists_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = official_state()
    del state["layers.0.blocks.1.norm1.weight"]
    state["layers.0.blocks.0.mystery.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "odd.pth")
    inspect(str(tmp_path / "odd.pth"))
    out = capsys.readouterr().out
    assert "1 missing: backbone.layers.0.blocks.1.norm1.weight" in out
    assert "layers.0.blocks.0.mystery.weight" in out


def test_inspect_says_when_windows_are_not_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(from_official(official_state(), "timm"), tmp_path / "timm.pth")
    inspect(str(tmp_path / "timm.pth"))
    assert "window_size and image_size" in capsys.readouterr().out


def test_inspect_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html></html>")
    with pytest.raises(UserError, match=r"page\.pth.*HTML"):
        inspect(str(tmp_path / "page.pth"))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth.*not a Swin Transformer V2"):
        inspect(str(tmp_path / "other.pth"))


def test_convert_there_and_back_keeps_every_bit(released: Path, tmp_path: Path) -> None:
    convert(str(released), str(tmp_path / "timm.safetensors"), "timm")
    convert(str(tmp_path / "timm.safetensors"), str(tmp_path / "back.pth"), "official")
    start, back = read_checkpoint(released).state, read_checkpoint(tmp_path / "back.pth").state
    assert set(start) == set(back)
    assert all(torch.equal(start[name], back[name]) and start[name].dtype == back[name].dtype for name in start)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_convert_keeps_the_type(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save({name: v.to(dtype) for name, v in from_official(official_state(), "timm").items()}, tmp_path / "in.pth")
    convert(str(tmp_path / "in.pth"), str(tmp_path / "out"), "huggingface", window_size=4, image_size=128)
    assert {v.dtype for v in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}


def test_convert_says_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": simmim_state()}, tmp_path / "simmim.pth")
    convert(str(tmp_path / "simmim.pth"), str(tmp_path / "timm.pth"), "timm")
    out = capsys.readouterr().out
    assert "3 that timm does not support" in out
    assert "decoder.0.weight" in out and "mask_token" in out


def test_convert_replaces_a_target_only_when_told(released: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.pth"
    target.write_text("precious")
    with pytest.raises(UserError, match="overwrite"):
        convert(str(released), str(target), "timm")
    assert target.read_text() == "precious"
    convert(str(released), str(target), "timm", overwrite=True)
    assert "head.fc.weight" in read_checkpoint(target).state


def test_convert_in_place(released: Path) -> None:
    before = {name: v.clone() for name, v in read_checkpoint(released).state.items()}
    convert(str(released), str(released), "official", overwrite=True)
    after = read_checkpoint(released).state
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_convert_needs_windows_for_a_format_that_states_them(tmp_path: Path) -> None:
    torch.save(from_official(official_state(), "timm"), tmp_path / "timm.pth")
    with pytest.raises(UserError, match="window_size and image_size"):
        convert(str(tmp_path / "timm.pth"), str(tmp_path / "out"), "huggingface")
    assert not (tmp_path / "out").exists()


def test_convert_refuses_a_position_bias_that_the_target_cannot_name(tmp_path: Path) -> None:
    save_weights(tiny_backbone(position_bias=LinearCPB), tmp_path / "linear.ckpt", format="lightning")
    with pytest.raises(UserError, match="LinearCPB"):
        convert(str(tmp_path / "linear.ckpt"), str(tmp_path / "out.pth"), "official")


def test_command_line_takes_files_by_place_and_the_format_by_name(released: Path, tmp_path: Path) -> None:
    """As documented: weights convert IN OUT --format timm."""
    target = tmp_path / "timm.pth"
    auto_cli({"convert": convert, "inspect": inspect}, args=["convert", str(released), str(target), "--format", "timm"])
    assert "head.fc.weight" in read_checkpoint(target).state
