"""Weights of transformers' UPerNet on Swin V2 in SegmentationTask: the same logits, or one clear refusal.

transformers fixes windows and shifts at the config's image_size, and attends to the padding that fills up windows.
So images here are of that size, or of sizes whose maps hold whole windows and are larger than one. Padding that fills
up patches is zeros in both.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from transformers import Swinv2Config, UperNetConfig, UperNetForSemanticSegmentation

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.errors import UserError
from swinv2_tasks.heads import UPerNet
from swinv2_tasks.tasks import SegmentationTask
from swinv2_tasks.weights import load_weights
from tests.helpers.checkpoints import randomize

CLASSES, CHANNELS, AUXILIARY = 7, 12, 10
BACKBONE: dict[str, Any] = {"embed_dim": 8, "depths": [2, 1, 2, 1], "num_heads": [1, 2, 2, 4]}


def theirs(window: int = 2, image: int = 128, pretrained: list[int] | None = None, **changes: Any) -> nn.Module:
    """The model of transformers with random weights, norms and statistics of batches."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    own = {"window_size": window, "image_size": image, "pretrained_window_sizes": pretrained or [0, 0, 0, 0]}
    backbone = Swinv2Config(**BACKBONE, **own, out_features=stages)
    heads = {"hidden_size": CHANNELS, "auxiliary_channels": AUXILIARY, "num_labels": CLASSES}
    model = randomize(UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, **{**heads, **changes})))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.fill_(3)
    return model.eval()


def ours(window: int = 2, classes: int = CLASSES, **arguments: Any) -> SegmentationTask:
    settings = {"decoder": UPerNet(CHANNELS), "auxiliary_channels": AUXILIARY, "map_norms": False, **arguments}
    return SegmentationTask(SwinTransformerV2(**BACKBONE, window_size=window), classes, **settings).eval()


@torch.no_grad()
def assert_same_logits(task: nn.Module, model: nn.Module, *size: int) -> None:
    """Within 1e-5 of the largest logit."""
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    logits, expected = task(images), model(pixel_values=images).logits
    assert logits.shape == expected.shape == (2, CLASSES, *size)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def folder(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    return path


def moved_file(model: Any, path: Path) -> Path:
    """The weights without the config.json beside them."""
    return Path(shutil.copy(folder(model, path) / "model.safetensors", path / "moved.safetensors"))


def state_dict(model: Any, path: Path) -> dict[str, Tensor]:
    return model.state_dict()


def wrapped_state_dict(model: Any, path: Path) -> dict[str, Tensor]:
    """As a module around the model saves it."""
    return {f"net.model.{name}": tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("source", [folder, moved_file, state_dict, wrapped_state_dict])
def test_logits_are_those_of_transformers(source: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    model, task = theirs(), ours()
    report = load_weights(task, source(model, tmp_path))
    assert_same_logits(task, model, 128, 128)
    assert_same_logits(task, model, 128, 192)
    assert_same_logits(task, model, 126, 189)  # no whole patches
    heads = sum(name.startswith("head.") for name in task.state_dict())
    assert report.head == f"{heads} of {heads} tensors loaded"
    assert report.loaded == len(task.state_dict())
    assert report.randomly_initialized == report.unused == []


def test_the_auxiliary_head_is_that_of_transformers() -> None:
    model, task = theirs(), ours()
    load_weights(task, model.state_dict())
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = model.backbone(images).feature_maps
        _, auxiliary = task.head.with_auxiliary(task.backbone(images))
        expected = model.auxiliary_head(maps)
    assert auxiliary is not None
    assert (auxiliary - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_windows_come_from_the_backbone_within_the_config(tmp_path: Path) -> None:
    """Also where the last maps are smaller than the window, and where pre-training had other windows."""
    model, task = theirs(window=4, image=64, pretrained=[6, 6, 6, 3]), ours(window=4)
    report = load_weights(task, folder(model, tmp_path))
    assert report.windows_source == "config.json"
    assert task.backbone.pretrained_window_size == ((6, 6), (6, 6), (6, 6), (3, 3))
    assert_same_logits(task, model, 64, 64)


def test_transferred_to_another_window_it_is_measured_in_that_of_training(tmp_path: Path) -> None:
    trained, larger = theirs(window=2, image=128), theirs(window=4, image=256, pretrained=[2, 2, 2, 2])
    larger.load_state_dict(trained.state_dict())
    task = ours(window=4)
    load_weights(task, folder(trained, tmp_path))
    assert_same_logits(task, larger, 256, 256)


def test_a_checkpoint_of_the_task_gives_the_same_logits(tmp_path: Path) -> None:
    model, path = theirs(), tmp_path / "task.ckpt"
    task = ours(weights=str(folder(model, tmp_path / "theirs")))
    assert_same_logits(task, model, 128, 128)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)
    again = SegmentationTask.load_from_checkpoint(path)
    assert again.init_args["map_norms"] is False
    assert again.head.norms is None
    assert_same_logits(again, model, 128, 128)
    started = ours()
    load_weights(started, path)
    assert_same_logits(started, model, 128, 128)


def test_norms_of_maps_are_loaded_where_a_file_has_them() -> None:
    """In transformers they have these names for Swin V1; its Swin V2 has none."""
    model, task = theirs(), ours(map_norms=True)
    norms = {f"hidden_states_norms.stage{k + 1}": norm for k, norm in enumerate(task.head.norms)}
    random = {
        f"backbone.{prefix}.{name}": torch.randn(value.shape)
        for prefix, norm in norms.items()
        for name, value in norm.state_dict().items()
    }
    report = load_weights(task, {**model.state_dict(), **random})
    assert report.randomly_initialized == report.unused == []
    for prefix, norm in norms.items():
        assert torch.equal(norm.weight, random[f"backbone.{prefix}.weight"])
        assert torch.equal(norm.bias, random[f"backbone.{prefix}.bias"])


def test_classifiers_of_other_classes_stay_randomly_initialized() -> None:
    model, task = theirs(), ours(classes=4)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    report = load_weights(task, model.state_dict())
    classifiers = [
        f"head.{part}.classifier.1.{leaf}" for part in ("decoder", "auxiliary") for leaf in ("weight", "bias")
    ]
    assert report.randomly_initialized == classifiers
    assert "4 classes: the checkpoint has 7" in report.head
    assert all(torch.equal(task.state_dict()[name], before[name]) for name in classifiers)
    assert torch.equal(task.head.decoder.fuse[0].weight, model.decode_head.fpn_bottleneck.conv.weight)


def test_the_auxiliary_head_may_be_missing_on_either_side() -> None:
    model, task = theirs(use_auxiliary_head=False), ours()
    report = load_weights(task, model.state_dict())
    assert report.randomly_initialized and all(
        name.startswith("head.auxiliary.") for name in report.randomly_initialized
    )
    assert_same_logits(task, model, 128, 128)

    model, task = theirs(), ours(auxiliary_weight=0)
    report = load_weights(task, model.state_dict())
    assert report.unused and all(name.startswith("head.auxiliary.") for name in report.unused)
    assert_same_logits(task, model, 128, 128)


@pytest.mark.parametrize(
    ("changes", "arguments", "words"),
    [
        ({}, {"map_norms": True}, r"without norms .*--model\.map_norms false"),
        ({}, {"decoder": UPerNet(16)}, r"channels 12, .* with 16\. .*--model\.decoder\.channels 12"),
        ({}, {"auxiliary_channels": 8}, r"auxiliary_channels 10, .* with 8\. .*--model\.auxiliary_channels 10"),
        ({"pool_scales": [1, 2, 4, 8]}, {}, r"pool_scales \[1, 2, 4, 8\], .* with \[1, 2, 3, 6\]"),
        ({"pool_scales": [1, 2]}, {}, r"pool_scales \[1, 2\], .* with \[1, 2, 3, 6\]"),
        (
            {"auxiliary_num_convs": 2},
            {},
            r"unexpected: head\.auxiliary\.convs\.1\..*--model\.auxiliary_weight 0",
        ),
        ({"auxiliary_num_convs": 0, "auxiliary_channels": 32}, {}, r"missing: head\.auxiliary\.conv\.0\.weight"),
        (
            {"auxiliary_concat_input": True},
            {},
            r"unexpected: head\.auxiliary\.conv_cat\..*--model\.auxiliary_weight 0",
        ),
    ],
)
def test_a_head_that_is_built_otherwise_is_refused(
    changes: dict[str, Any], arguments: dict[str, Any], words: str, tmp_path: Path
) -> None:
    task = ours(**arguments)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    with pytest.raises(UserError, match=words):
        load_weights(task, folder(theirs(**changes), tmp_path))
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


def test_heads_that_differ_without_a_config_are_told_by_their_tensors() -> None:
    with pytest.raises(UserError, match=r"10 missing: head\.decoder\.pools\.2"):
        load_weights(ours(), theirs(pool_scales=[1, 2]).state_dict())
    incomplete = {name: value for name, value in theirs().state_dict().items() if "fpn_bottleneck" not in name}
    with pytest.raises(UserError, match=r"missing: head\.decoder\.fuse\.0\.weight"):
        load_weights(ours(), incomplete)


def test_a_decoder_of_other_pool_scales_takes_them(tmp_path: Path) -> None:
    model, task = theirs(pool_scales=[1, 4]), ours(decoder=UPerNet(CHANNELS, (1, 4)))
    load_weights(task, folder(model, tmp_path))
    assert_same_logits(task, model, 128, 128)


def test_a_task_without_norms_refuses_weights_of_one_with_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"with norms .*--model\.map_norms true"):
        load_weights(ours(), ours(map_norms=True).state_dict())


def test_a_backbone_alone_takes_what_is_its_own() -> None:
    model, task = theirs(), ours(map_norms=True)
    report = load_weights(task.backbone, model.state_dict())
    assert report.randomly_initialized == []
    load_weights(task, {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()})
