"""Loading and saving in six formats, windows found in checkpoints, and files that must not load or not run."""

from __future__ import annotations

import argparse
import builtins
import json
import os
import random
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18, swin_t
from transformers import Swinv2ForImageClassification, Swinv2ForMaskedImageModeling

from swinv2_tasks.backbone import BiasTable, LinearCPB, SwinTransformerV2, swinv2_small, swinv2_tiny
from swinv2_tasks.backbone.position_bias import resize_bias_table
from swinv2_tasks.errors import UserError
from swinv2_tasks.weights import load_weights, save_weights
from swinv2_tasks.weights.files import read_checkpoint
from swinv2_tasks.weights.formats import FORMATS, detect_format, from_official, to_official
from swinv2_tasks.weights.saving import checkpoint_record
from tests.helpers.broken_files import cut_off
from tests.helpers.checkpoints import (
    CHANNELS,
    DEPTHS,
    HEADS,
    Classifier,
    official_state,
    randomize,
    simmim_state,
    tiny_backbone,
)
from tests.helpers.foreign_weights import (
    AT_128,
    foreign_state,
    huggingface_model,
    new_task,
    timm_model,
    torchvision_model,
)


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """The same names, types and bits."""
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def windows(*sides: int) -> tuple[tuple[int, int], ...]:
    return tuple((side, side) for side in sides)


# Formats


@pytest.mark.parametrize("format", FORMATS)
def test_format_is_told_by_names(format: str) -> None:
    assert detect_format(foreign_state(format)) == format


@pytest.mark.parametrize("format", FORMATS)
def test_round_trip_through_official_names(format: Any) -> None:
    state = foreign_state(format)
    assert_same(from_official(to_official(state, format), format), state)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_round_trip_through_a_module_and_a_file(format: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: v.to(dtype) if v.is_floating_point() else v for name, v in foreign_state(format).items()}
    task = new_task().to(dtype)
    load_weights(task, {"model": state}, **({} if "relative_coords_table" in str(list(state)) else AT_128))
    save_weights(task, tmp_path / "out", format=format)
    written = read_checkpoint(tmp_path / "out").state
    # The module computes coordinate tables afresh, in float32; it has no mask token and no decoder.
    expected = {name: foreign_state(format)[name] if "relative_" in name else v for name, v in state.items()}
    if format == "simmim":
        written = {name: tensor for name, tensor in written.items() if not name.startswith("head.")}
        expected = {name: v for name, v in expected.items() if "mask_token" not in name and "decoder" not in name}
    assert_same(written, expected)


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_every_format_into_every_other_and_back(source: Any, target: Any) -> None:
    start = foreign_state(source)
    official = to_official(start, source)
    there = from_official(official, target)
    assert detect_format(there) == target
    back = from_official(to_official(there, target), source)
    assert set(back) <= set(start)
    lost = set(start) - set(back)
    assert all(
        "relative_" in name or name.startswith(("head", "classifier", "encoder.mask", "decoder")) for name in lost
    )
    assert_same(back, {name: start[name] for name in back})


def test_official_state_of_the_tiny_model_names_every_parameter_of_the_backbone() -> None:
    learned = {name: v.shape for name, v in official_state().items() if "relative_" not in name}
    ours = {name: v.shape for name, v in tiny_backbone().state_dict().items()}
    assert {name: shape for name, shape in learned.items() if not name.startswith(("norm.", "head."))} == ours


@pytest.mark.parametrize("format", ["timm", "torchvision", "huggingface"])
def test_other_libraries_load_what_is_saved(format: Any, tmp_path: Path) -> None:
    task = randomize(new_task())
    path = tmp_path / "saved"
    save_weights(task, path, format=format, image_size=128)
    if format == "huggingface":
        model, info = Swinv2ForImageClassification.from_pretrained(path, output_loading_info=True)
        assert not any(info.values()), info
    else:
        model = timm_model() if format == "timm" else torchvision_model()
        model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        theirs = model.eval()(x)
        theirs = getattr(theirs, "logits", theirs)
        torch.testing.assert_close(task.eval()(x), theirs, rtol=1e-4, atol=1e-4)


def test_huggingface_masked_model_keeps_mask_token_and_decoder() -> None:
    state = randomize(huggingface_model(Swinv2ForMaskedImageModeling)).state_dict()
    simmim = from_official(to_official(state, "huggingface"), "simmim")
    assert torch.equal(simmim["encoder.mask_token"], state["swinv2.embeddings.mask_token"])
    assert torch.equal(simmim["decoder.0.weight"], state["decoder.0.weight"])
    assert any(".rpe_mlp.0.weight" in name for name in simmim)
    assert_same(from_official(to_official(simmim, "simmim"), "huggingface"), state)


def test_huggingface_backbone_without_its_prefix() -> None:
    state = randomize(huggingface_model()).state_dict()
    bare = {name.removeprefix("swinv2."): v for name, v in state.items()}
    assert_same(to_official(bare, "huggingface"), to_official(state, "huggingface"))


def test_simmim_files_may_say_cpb_or_rpe() -> None:
    state = simmim_state()
    renamed = {name.replace("rpe_mlp", "cpb_mlp"): v for name, v in state.items()}
    for weights in (state, renamed):
        backbone = tiny_backbone()
        report = load_weights(backbone, weights)
        assert not report.randomly_initialized
        name = "layers.2.blocks.0.attn.cpb_mlp.0.weight"
        assert torch.equal(backbone.state_dict()[name], state[f"encoder.{name.replace('cpb_mlp', 'rpe_mlp')}"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model": s, "optimizer": {"state": {}}, "epoch": 3},
        lambda s: {"state_dict": s},
        lambda s: {"model": {f"module.{name}": v for name, v in s.items()}},
        lambda s: {f"_orig_mod.{name}": v for name, v in s.items()},
    ],
    ids=["model", "state_dict", "ddp", "compiled"],
)
def test_wrappers_and_prefixes_come_off(wrap: Callable[[dict], dict]) -> None:
    backbone = tiny_backbone()
    load_weights(backbone, wrap(official_state()))
    name = "layers.3.blocks.0.mlp.fc2.bias"
    assert torch.equal(backbone.state_dict()[name], official_state()[name])


def test_weights_beside_those_that_were_read_are_named() -> None:
    """The file's own, and what stands beside them: averaged weights would otherwise be missed without a word."""
    state = official_state()
    averaged = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    backbone = tiny_backbone()
    report = load_weights(backbone, {"model": state, "model_ema": averaged, "optimizer": {"state": {}}})
    name = "layers.3.blocks.0.mlp.fc2.bias"
    assert torch.equal(backbone.state_dict()[name], state[name])
    assert report.other_states == ["model_ema"]
    assert "model_ema" in str(report)
    assert not load_weights(backbone, {"model": state}).other_states


PREFIXES = ("", "module.", "_orig_mod.", "_orig_mod.module.", "model.", "net.", "module.model.", "student.encoder_q.")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_whatever_stands_before_all_names_comes_off(prefix: str, format: str) -> None:
    """Also beside what a module around the model has of its own."""
    state = foreign_state(format)
    wrapped = {f"{prefix}{name}": tensor for name, tensor in state.items()} | {"criterion.weight": torch.ones(3)}
    plain, task = new_task(), new_task()
    expected, report = load_weights(plain, state), load_weights(task, wrapped)
    assert_same(task.state_dict(), plain.state_dict())
    assert (report.format, report.loaded, report.windows) == (format, expected.loaded, expected.windows)
    assert report.prefix == prefix.replace("_orig_mod.", "")
    assert "criterion.weight" in report.unused
    assert not report.prefix or repr(report.prefix) in str(report)


@pytest.mark.parametrize("format", ["official", "timm", "torchvision", "huggingface"])
@pytest.mark.parametrize("prefix", ["backbone.", "encoder.", "model.backbone."])
def test_a_whole_model_may_be_called_backbone_or_encoder(prefix: str, format: str) -> None:
    state = foreign_state(format)
    plain, task = new_task(), new_task()
    load_weights(plain, state)
    report = load_weights(task, {f"{prefix}{name}": tensor for name, tensor in state.items()})
    assert report.format == format
    assert_same(task.state_dict(), plain.state_dict())


def test_one_of_several_models_is_not_guessed() -> None:
    state = official_state()
    both = {f"{prefix}{name}": tensor for prefix in ("student.", "teacher.") for name, tensor in state.items()}
    with pytest.raises(UserError, match=r"several models.*'student\.', 'teacher\.'"):
        load_weights(tiny_backbone(), both)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "model.backbone."])
def test_timm_features_are_read(prefix: str) -> None:
    """Maps of a backbone with its weights are timm's."""
    theirs = randomize(
        timm.create_model(
            "swinv2_tiny_window8_256",
            features_only=True,
            img_size=128,
            window_size=4,
            embed_dim=CHANNELS,
            depths=DEPTHS,
            num_heads=HEADS,
        )
    ).eval()
    backbone = tiny_backbone().eval()
    state = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}
    report = load_weights(backbone, state, **AT_128)
    assert report.format == "timm"
    assert not report.randomly_initialized
    x = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for own, other in zip(backbone(x), theirs(x), strict=True):
            assert (own - other.permute(0, 3, 1, 2)).abs().max() <= 1e-3 * other.abs().max()


def test_weights_go_into_a_compiled_backbone() -> None:
    task = new_task()
    task.backbone = torch.compile(task.backbone, backend="eager")
    report = load_weights(task, official_state())
    assert not report.randomly_initialized
    assert torch.equal(task.head.fc.weight, official_state()["head.weight"])


# Windows


@pytest.mark.parametrize(
    ("effective", "pretrained"),
    [((16, 16, 16, 8), (16, 16, 16, 8)), ((16, 16, 16, 8), (8, 8, 8, 8)), ((24, 24, 24, 12), (12, 12, 12, 6))],
    ids=["w16@256", "w16@256 from w8", "w24@384 from w12@192"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_pretraining_window_comes_from_the_values_of_the_tables(
    effective: tuple[int, ...], pretrained: tuple[int, ...], dtype: torch.dtype
) -> None:
    """A model fine-tuned at a larger window keeps the window of its pre-training, which the shape does not tell."""
    state = official_state(effective, pretrained)
    state = {name: v.to(dtype) if "coords_table" in name else v for name, v in state.items()}
    backbone = tiny_backbone(window=8)
    report = load_weights(backbone, state)
    assert backbone.pretrained_window_size == windows(*pretrained)
    assert backbone.window_size == windows(8, 8, 8, 8)
    assert report.windows == list(zip(windows(*pretrained), windows(8, 8, 8, 8), strict=True))


def test_window_of_one_token_tells_one() -> None:
    state = official_state()
    state["layers.3.blocks.0.attn.relative_coords_table"] = torch.zeros(1, 1, 1, 2)
    backbone = tiny_backbone()
    load_weights(backbone, state)
    assert backbone.pretrained_window_size == windows(4, 4, 4, 1)


def test_corrupt_table_is_named() -> None:
    state = official_state()
    state["layers.1.blocks.0.attn.relative_coords_table"].fill_(float("nan"))
    with pytest.raises(UserError, match="relative_coords_table"):
        load_weights(tiny_backbone(), state)


def test_transferred_model_evaluates_the_trained_function() -> None:
    """The bias of window 4 is the middle of the bias at window 8, once the pre-training window is known."""
    trained, transferred = tiny_backbone(4), tiny_backbone(8)
    load_weights(trained, official_state())
    load_weights(transferred, official_state())
    small = trained.layers[0].blocks[0].attn.cpb_mlp((4, 4), trained.pretrained_window_size[0])  # (heads, 16, 16)
    large = transferred.layers[0].blocks[0].attn.cpb_mlp((8, 8), transferred.pretrained_window_size[0])
    corner = [row * 8 + column for row in range(4) for column in range(4)]
    torch.testing.assert_close(large[:, corner][:, :, corner], small)


def test_windows_from_the_huggingface_config(tmp_path: Path) -> None:
    huggingface_model(window_size=16, image_size=256, pretrained_window_sizes=[12, 12, 12, 6]).save_pretrained(tmp_path)
    backbone = tiny_backbone()
    assert "config.json" in load_weights(backbone, tmp_path).windows_source
    assert backbone.pretrained_window_size == windows(12, 12, 12, 6)
    huggingface_model(window_size=16, image_size=256).save_pretrained(tmp_path)
    load_weights(backbone, tmp_path / "model.safetensors")
    assert backbone.pretrained_window_size == windows(16, 16, 16, 8)


def test_huggingface_shards(tmp_path: Path) -> None:
    model = randomize(huggingface_model())
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert not (tmp_path / "model.safetensors").exists()
    task = new_task()
    assert not load_weights(task, tmp_path).randomly_initialized
    assert torch.equal(task.head.fc.weight, model.state_dict()["classifier.weight"])


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("swinv2_tiny_window8_256", (8, 8, 8, 8)),
        ("swinv2_tiny_window16_256", (16, 16, 16, 8)),
        ("swinv2_base_window12_192", (12, 12, 12, 6)),
        ("swinv2_base_window12to16_192to256", (12, 12, 12, 6)),
        ("swinv2_large_window12to24_192to384.ms_in22k_ft_in1k", (12, 12, 12, 6)),
    ],
)
def test_windows_from_the_timm_name(architecture: str, expected: tuple[int, ...], tmp_path: Path) -> None:
    save_file(foreign_state("timm"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture, "num_classes": 5}))
    backbone = tiny_backbone()
    load_weights(backbone, tmp_path)
    assert backbone.pretrained_window_size == windows(*expected)


def test_windows_from_arguments_and_without() -> None:
    backbone = tiny_backbone(pretrained_window_size=(7, 7, 7, 7))
    report = load_weights(backbone, foreign_state("timm"))
    assert backbone.pretrained_window_size == windows(7, 7, 7, 7)
    assert "window_size=" in report.windows_source
    report = load_weights(backbone, foreign_state("timm"), window_size=16, image_size=256)
    assert backbone.pretrained_window_size == windows(16, 16, 16, 8)
    assert "arguments" in report.windows_source


def test_arguments_that_contradict_the_file_are_refused() -> None:
    with pytest.raises(UserError, match=r"trained at windows 4×4, .*say 8×8"):
        load_weights(tiny_backbone(), official_state(), window_size=8, image_size=256)
    load_weights(tiny_backbone(), official_state(), window_size=4, image_size=128)


@pytest.mark.parametrize(
    "arguments",
    [
        {"window_size": 8},
        {"image_size": 256},
        {"window_size": 0, "image_size": 256},
        {"window_size": [8, 8, 8], "image_size": 256},
    ],
)
def test_half_or_impossible_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="window_size"):
        load_weights(tiny_backbone(), foreign_state("timm"), **arguments)


@pytest.mark.parametrize("format", ["official", "simmim", "huggingface", "lightning"])
@pytest.mark.parametrize("pretrained", [None, 8])
def test_saved_windows_are_read_back(format: Any, pretrained: int | None, tmp_path: Path) -> None:
    backbone = tiny_backbone(16, pretrained_window_size=pretrained)
    save_weights(backbone, tmp_path / "out", format=format, image_size=256)
    loaded = tiny_backbone(4)
    load_weights(loaded, tmp_path / "out", window_size=16, image_size=256)
    assert loaded.pretrained_window_size == (windows(8, 8, 8, 8) if pretrained else windows(16, 16, 16, 8))


def test_timm_safetensors_carry_the_windows_in_their_metadata(tmp_path: Path) -> None:
    save_weights(tiny_backbone(16), tmp_path / "timm.safetensors", format="timm", image_size=256)
    loaded = tiny_backbone(4)
    load_weights(loaded, tmp_path / "timm.safetensors")
    assert loaded.pretrained_window_size == windows(16, 16, 16, 8)


def test_uneven_windows_have_no_place_in_torchvision_and_huggingface(tmp_path: Path) -> None:
    for format, window in (
        ("torchvision", (8, 8, 8, 4)),
        ("huggingface", (8, 4, 8, 8)),
        ("huggingface", ((4, 8),) * 4),
    ):
        with pytest.raises(UserError, match=format):
            save_weights(tiny_backbone(window), tmp_path / "out", format=format)
    assert not list(tmp_path.iterdir())


def test_official_tables_and_masks_are_those_of_the_published_code(tmp_path: Path) -> None:
    """Tables bitwise identical; masks 0 and −100 for the shifted block wherever the map is larger than its window."""
    save_weights(tiny_backbone(16), tmp_path / "out", image_size=256)
    state = torch.load(tmp_path / "out", weights_only=True)["model"]
    expected = official_state((16, 16, 16, 8))
    tables = {name: v for name, v in expected.items() if "relative_" in name}
    assert_same({name: state[name] for name in tables}, tables)
    masks = {name: tuple(v.shape) for name, v in state.items() if name.endswith("attn_mask")}
    assert masks == {"layers.0.blocks.1.attn_mask": (16, 256, 256)}  # only stage 1 has a second block
    theirs = timm_model(16, 256).layers[0].blocks[1].attn_mask
    assert torch.equal(state["layers.0.blocks.1.attn_mask"], theirs)


# V1-style tables


def table_task(window: Any) -> Classifier:
    return new_task(window, position_bias=BiasTable)


@pytest.mark.parametrize("format", ["official", "lightning"])
def test_bias_tables_are_resized_and_listed(format: Any, tmp_path: Path) -> None:
    trained, larger = randomize(table_task(4)), table_task(7)
    save_weights(trained, tmp_path / "out", format=format)
    name = "layers.2.blocks.0.attn.cpb_mlp.relative_position_bias_table"
    report = load_weights(larger, tmp_path / "out")
    assert len(report.resized) == sum(DEPTHS)
    before = trained.backbone.state_dict()[name]
    assert torch.equal(larger.backbone.state_dict()[name], resize_bias_table(before, (4, 4), (7, 7)))
    same = table_task(4)
    assert not load_weights(same, tmp_path / "out").resized
    assert torch.equal(same.backbone.state_dict()[name], before)


def test_official_files_keep_the_table_where_v1_does(tmp_path: Path) -> None:
    save_weights(table_task(4), tmp_path / "out")
    state = torch.load(tmp_path / "out", weights_only=True)["model"]
    assert state["layers.0.blocks.1.attn.relative_position_bias_table"].shape == (49, 1)


def test_uneven_tables_are_read_by_the_record_of_their_windows(tmp_path: Path) -> None:
    trained = randomize(table_task(((2, 6),) * 4))  # 3·11 rows
    save_weights(trained, tmp_path / "out", format="lightning")
    larger = table_task(4)
    load_weights(larger, tmp_path / "out")
    name = "layers.0.blocks.0.attn.cpb_mlp.relative_position_bias_table"
    expected = resize_bias_table(trained.backbone.state_dict()[name], (2, 6), (4, 4))
    assert torch.equal(larger.backbone.state_dict()[name], expected)


def test_kinds_of_position_bias_do_not_mix(tmp_path: Path) -> None:
    for saved in (new_task(), table_task(4), new_task(position_bias=LinearCPB)):
        save_weights(saved, tmp_path / "out", format="lightning")
        for model in (new_task(), table_task(4), new_task(position_bias=LinearCPB)):
            if model.backbone.position_bias is saved.backbone.position_bias:
                load_weights(model, tmp_path / "out")
            else:
                with pytest.raises(UserError, match=saved.backbone.position_bias.__name__):
                    load_weights(model, tmp_path / "out")


@pytest.mark.parametrize("format", ["timm", "torchvision", "huggingface"])
def test_formats_without_a_place_for_what_the_model_computes_refuse_it(format: Any, tmp_path: Path) -> None:
    for task in (table_task(4), new_task(position_bias=LinearCPB), new_task(extra_norm_every=2)):
        with pytest.raises(UserError, match=format):
            save_weights(task, tmp_path / "out", format=format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["official", "simmim", "lightning"])
def test_extra_norms_travel(format: Any, tmp_path: Path) -> None:
    task, other = randomize(new_task(extra_norm_every=2)), new_task(extra_norm_every=2)
    save_weights(task, tmp_path / "out", format=format)
    load_weights(other, tmp_path / "out")
    assert_same(other.backbone.state_dict(), task.backbone.state_dict())
    with pytest.raises(UserError, match="extra norm every 2"):
        load_weights(new_task(), tmp_path / "out")


# Heads


def test_head_of_other_classes_stays_randomly_initialized_and_its_norm_is_loaded() -> None:
    task = new_task(classes=9)
    before = task.head.fc.weight.clone()
    report = load_weights(task, official_state())
    assert torch.equal(task.head.fc.weight, before)
    assert torch.equal(task.head.norm.weight, official_state()["norm.weight"])
    assert report.randomly_initialized == ["head.fc.weight", "head.fc.bias"]
    assert "randomly initialized" in report.head and "9" in report.head and "5" in report.head
    assert report.unused == ["head.weight", "head.bias"]


def test_absent_head_stays_randomly_initialized() -> None:
    task = new_task()
    report = load_weights(task, simmim_state())
    assert report.randomly_initialized == ["head.fc.weight", "head.fc.bias"]
    assert set(report.unused) == {"mask_token", "decoder.0.weight", "decoder.0.bias"}


def large_head(format: Any) -> dict[str, Tensor]:
    """21,841 classes, each row of the head filled with its own number."""
    state = {name: v for name, v in official_state().items() if not name.startswith("head.")}
    numbers = torch.arange(21_841, dtype=torch.float32)
    state |= {"head.weight": numbers[:, None].expand(-1, CHANNELS * 8), "head.bias": numbers}
    return from_official(state, format)


LISTED_ROWS = {0: 359, 1: 368, 2: 460, 999: 21817}
"""A few of the published rows: the first three and the last of the table."""


def test_official_22k_head_goes_into_1000_classes_by_the_published_rows() -> None:
    task = new_task(classes=1000)
    report = load_weights(task, large_head("official"))
    for label, row in LISTED_ROWS.items():
        assert task.head.fc.bias[label] == row
        assert (task.head.fc.weight[label] == row).all()
    assert not report.randomly_initialized
    assert "21841" in report.head


def test_22k_heads_of_other_libraries_need_their_rows(tmp_path: Path) -> None:
    """They order the classes differently."""
    task = new_task(classes=1000)
    report = load_weights(task, large_head("timm"), **AT_128)
    assert report.randomly_initialized == ["head.fc.weight", "head.fc.bias"]
    rows = list(range(20_000, 21_000))
    (tmp_path / "rows.txt").write_text("\n".join(map(str, rows)))
    for head_rows in (rows, tmp_path / "rows.txt"):
        task = new_task(classes=1000)
        load_weights(task, large_head("timm"), **AT_128, head_rows=head_rows)
        assert task.head.fc.bias.tolist() == rows


@pytest.mark.parametrize("rows", [[0, 1], [0, 1, 5], [0, 1, -1], ["a", 1, 2], "no_such_file.txt"])
def test_bad_head_rows_are_refused(rows: Any) -> None:
    with pytest.raises(UserError, match="head_rows"):
        load_weights(new_task(classes=3), official_state(), head_rows=rows)


# What does not fit


def test_missing_and_misshapen_keys_are_named_and_nothing_is_loaded() -> None:
    state = official_state()
    del state["layers.1.blocks.0.mlp.fc2.weight"]
    state["layers.2.blocks.0.norm1.bias"] = torch.zeros(3)
    state["layers.2.blocks.0.mystery"] = torch.zeros(3)
    task = new_task()
    before = {name: v.clone() for name, v in task.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(task, state)
    message = str(caught.value)
    assert "layers.1.blocks.0.mlp.fc2.weight" in message
    assert "layers.2.blocks.0.norm1.bias (3,) instead of (32,)" in message.replace("((", "(").replace("))", ")")
    assert_same(task.state_dict(), before)
    assert task.backbone.pretrained_window_size == (None,) * 4


def test_another_variant_is_named() -> None:
    with pytest.raises(
        UserError, match=r"SwinV2-S \(embed_dim 96, depths 2,2,18,2.*SwinV2-T \(embed_dim 96, depths 2,2,6,2"
    ):
        load_weights(swinv2_tiny(), swinv2_small().state_dict())


@pytest.mark.parametrize(
    ("model", "words"),
    [(resnet18, "ResNet"), (swin_t, "Swin Transformer V1"), (lambda: nn.Linear(2, 2), "2 tensors.*weight, bias")],
    ids=["resnet", "swin v1", "linear"],
)
def test_another_architecture_is_named(model: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_weights(tiny_backbone(), model().state_dict())


def test_absolute_positions_are_not_dropped_silently() -> None:
    positions = torch.zeros(1, 1024, CHANNELS)
    official = official_state() | {"absolute_pos_embed": positions}
    huggingface = from_official(official_state(), "huggingface") | {"swinv2.embeddings.position_embeddings": positions}
    bare = {name.removeprefix("swinv2."): tensor for name, tensor in huggingface.items()}
    for state in (official, huggingface, bare):
        with pytest.raises(
            UserError, match=r"1 unexpected: .*absolute_pos_embed\. It was trained with absolute position"
        ):
            load_weights(tiny_backbone(), state)


def test_clip_weights_travel_in_this_packages_own_format(tmp_path: Path) -> None:
    def clips(window: Any) -> SwinTransformerV2:
        return SwinTransformerV2(CHANNELS, DEPTHS, HEADS, window, patch_size=(2, 4, 4))

    saved, loaded = randomize(clips((8, 7, 7))), clips((4, 4, 4))
    save_weights(saved, tmp_path / "out", format="lightning", image_size=(8, 128, 128))
    load_weights(loaded, tmp_path / "out")
    assert_same(loaded.state_dict(), saved.state_dict())
    assert loaded.pretrained_window_size == ((4, 7, 7), (4, 7, 7), (4, 7, 7), (4, 4, 4))


# The report


def test_report_says_what_was_done() -> None:
    task = new_task(8, classes=9)
    text = str(load_weights(task, {"model": simmim_state()}))
    assert "simmim" in text
    assert "embed_dim 8, depths 2,1,1,1, heads 1,2,4,8" in text
    assert text.count("4×4 → 8×8") == 4
    assert "decoder.0.weight" in text and "mask_token" in text
    assert "head.fc.weight" in text


# Files that cannot be read


def write_official(path: Path, **kwargs: Any) -> Path:
    torch.save({"model": official_state()}, path, **kwargs)
    return path


def truncate_zip(path: Path) -> None:
    cut_off(write_official(path), 0.6)


def truncate_legacy(path: Path) -> None:
    cut_off(write_official(path, _use_new_zipfile_serialization=False), 0.6)


def half_safetensors(path: Path) -> None:
    save_file(official_state(), path)
    cut_off(path, 0.6)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda p: p.write_text("<!DOCTYPE html>\n<html><body>403</body></html>"), "HTML page"),
        (lambda p: p.write_text("\n  <html>"), "HTML page"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n"), "git lfs pull"),
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_bytes(bytes(4096)), "zeros"),
        (lambda p: p.write_text("not found"), "text"),
        (lambda p: p.write_bytes(random.Random(0).randbytes(2048)), "not a checkpoint|corrupt"),
        (truncate_zip, "corrupt or incomplete"),
        (truncate_legacy, "corrupt or incomplete"),
        (half_safetensors, "corrupt or incomplete"),
        (lambda p: torch.save([1, 2], p), "holds a list"),
        (lambda p: torch.save({"epoch": 3}, p), "no tensors"),
    ],
    ids=["html", "html2", "lfs", "empty", "zeros", "text", "noise", "zip", "legacy", "safetensors", "list", "nothing"],
)
def test_what_is_not_a_checkpoint_ends_in_one_message(write: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(UserError, match=words) as caught:
        load_weights(tiny_backbone(), path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_empty_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            load_weights(tiny_backbone(), path)


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save_weights(tiny_backbone(), path)
    before = path.read_bytes()
    broken = tiny_backbone()
    broken.patch_embed.proj.bias = nn.Parameter(torch.zeros(CHANNELS, device="meta"))  # cannot be stored
    with pytest.raises(NotImplementedError):
        save_weights(broken, tmp_path / "weights.safetensors", format="timm")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]


# Files that must not run


RAN: list[str] = []
"""Filled when code of a pickle runs in this process."""


def run(what: str) -> str:
    RAN.append(what)
    return what


class RunsWhenMade:
    """Pickled with NEWOBJ: torch's own reader would call __new__ if this class were allowed."""

    def __new__(cls, *_: Any) -> RunsWhenMade:
        RAN.append("new")
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple:
        return ("argument",)


class RunsWhenFilled:
    """Pickled with BUILD."""

    def __getstate__(self) -> dict[str, int]:
        return {"a": 1}

    def __setstate__(self, _: object) -> None:
        RAN.append("setstate")


class RunsInReduce:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce_ex__(self, _: Any) -> Any:
        return self.call


class FilledLikeADict(dict):
    """Pickled with NEWOBJ and SETITEMS, of a class that the reader does not know for a dict."""

    def __setitem__(self, key: Any, value: Any) -> None:
        RAN.append("setitem")


def payloads(marker: Path) -> dict[str, Any]:
    touch = f"{sys.executable} -c \"open({str(marker)!r}, 'w')\""
    filled = FilledLikeADict()
    dict.__setitem__(filled, "a", 1)
    return {
        "function": RunsInReduce(run, "reduce"),
        "os.system": RunsInReduce(os.system, touch),
        "subprocess": RunsInReduce(subprocess.check_call, [sys.executable, "-c", f"open({str(marker)!r}, 'w')"]),
        "eval": RunsInReduce(builtins.eval, f"open({str(marker)!r}, 'w').close()"),
        "exec": RunsInReduce(builtins.exec, f"open({str(marker)!r}, 'w').close()"),
        "torch": RunsInReduce(torch.save, 1, str(marker)),
        "mkdir": RunsInReduce(os.mkdir, str(marker)),
        "nested": [{"deep": (RunsInReduce(run, "nested"),)}],
        "new": RunsWhenMade(),
        "build": RunsWhenFilled(),
        "items": filled,
    }


PAYLOADS = list(payloads(Path()))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", PAYLOADS)
def test_pickled_code_never_runs(name: str, legacy: bool, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    contents = {"model": official_state(), "config": payloads(marker)[name]}
    torch.save(contents, path, _use_new_zipfile_serialization=not legacy)
    RAN.clear()
    try:
        load_weights(tiny_backbone(), path)
    except UserError as error:
        assert str(path) in str(error)  # refusing is as good as reading the tensors alone
    assert not RAN
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the payload is live: any reader that trusts the file runs it
    assert RAN or marker.exists()


def test_a_placeholder_is_not_called_for_another_name(tmp_path: Path) -> None:
    """A dict and a payload side by side: the harmless part is read, the other stays inert."""
    path = tmp_path / "mixed.pth"
    torch.save({"model": official_state(), "args": argparse.Namespace(lr=1.0), "x": RunsInReduce(run, "x")}, path)
    RAN.clear()
    report = load_weights(tiny_backbone(), path)
    assert report.loaded == len(tiny_backbone().state_dict())
    assert not RAN


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_yacs_config_and_argparse_namespace_are_read_without_their_modules(legacy: bool, tmp_path: Path) -> None:
    """As released files have them: a CfgNode is a dict with attributes; here it also tells the windows."""

    class CfgNode(dict):
        def __init__(self, content: dict[str, Any]) -> None:
            super().__init__(content)
            self.__dict__["__immutable__"] = False

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    sys.modules["yacs"], sys.modules["yacs.config"] = types.ModuleType("yacs"), module
    try:
        swin = CfgNode({"WINDOW_SIZE": 16, "PRETRAINED_WINDOW_SIZES": [12, 12, 12, 6]})
        config = CfgNode({"DATA": CfgNode({"IMG_SIZE": 256}), "MODEL": CfgNode({"SWINV2": swin})})
        state = {name: v for name, v in official_state().items() if "relative_" not in name}
        contents = {"model": state, "config": config, "args": argparse.Namespace(batch=8), "epoch": 299}
        path = tmp_path / "released.pth"
        torch.save(contents, path, _use_new_zipfile_serialization=not legacy)
    finally:
        del sys.modules["yacs"], sys.modules["yacs.config"]
    backbone = tiny_backbone()
    report = load_weights(backbone, path)
    assert backbone.pretrained_window_size == windows(12, 12, 12, 6)
    assert "config" in report.windows_source


def test_checkpoint_record_of_a_task_is_read_back(tmp_path: Path) -> None:
    """As a task stores it in the checkpoints that Lightning writes."""
    task = randomize(new_task(16))
    record = checkpoint_record(task.backbone, 256)
    torch.save({"state_dict": task.state_dict(), "swinv2_tasks": record, "optimizer_states": [{}]}, tmp_path / "a.ckpt")
    loaded = new_task(8)
    load_weights(loaded, tmp_path / "a.ckpt")
    assert loaded.backbone.pretrained_window_size == windows(16, 16, 16, 8)
    assert_same(loaded.state_dict(), task.state_dict())
