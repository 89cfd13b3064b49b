"""The same weights give the same maps and logits in this backbone as in timm, transformers and torchvision.

Weights travel through ``load_weights``. Peers are compared where they compute Swin V2 without further tricks:
torchvision and transformers attend to padding and timm pads after the shift, so maps are cut into whole windows here;
torchvision does not shrink a window to a smaller map, so the last map is left out where it would have to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2 as TimmSwin
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from transformers import Swinv2Config, Swinv2ForImageClassification

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.weights import load_weights
from tests.helpers.checkpoints import Classifier, coordinate_table, randomize

CLASSES = 7
Windows = tuple[int, ...]
Image = tuple[int, int]


@dataclass(frozen=True)
class Size:
    """The numbers of a variant."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]


NARROW = Size(24, (2, 2, 2, 2), (1, 2, 3, 6))
TINY = Size(96, (2, 2, 6, 2), (3, 6, 12, 24))
SMALL = Size(96, (2, 2, 18, 2), (3, 6, 12, 24))


def build_timm(size: Size, window: int, image: Image, pretrained: Windows) -> nn.Module:
    return TimmSwin(
        img_size=image,
        window_size=window,
        pretrained_window_sizes=pretrained,
        num_classes=CLASSES,
        embed_dim=size.embed_dim,
        depths=size.depths,
        num_heads=size.num_heads,
    )


def build_transformers(size: Size, window: int, image: Image, pretrained: Windows) -> nn.Module:
    config = Swinv2Config(
        image_size=list(image),
        window_size=window,
        pretrained_window_sizes=pretrained,
        num_labels=CLASSES,
        embed_dim=size.embed_dim,
        depths=size.depths,
        num_heads=size.num_heads,
    )
    return Swinv2ForImageClassification(config)


def build_torchvision(size: Size, window: int, image: Image, pretrained: Windows) -> nn.Module:
    model = SwinTransformer(
        [4, 4],
        size.embed_dim,
        list(size.depths),
        list(size.num_heads),
        [window, window],
        num_classes=CLASSES,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )
    if any(pretrained):  # it has no such argument, but the tables are all that depends on it
        set_tables(PEERS["torchvision"], model, pretrained, torch.float32)
    return model


@dataclass(frozen=True)
class Peer:
    """How to build another library's model and where its maps come out."""

    build: Callable[[Size, int, Image, Windows], nn.Module]
    stages: Callable[[Any], list[nn.Module]]
    to_map: Callable[[Any], Tensor]


PEERS = {
    "timm": Peer(build_timm, lambda m: list(m.layers), lambda out: out.permute(0, 3, 1, 2)),
    "transformers": Peer(
        build_transformers,
        lambda m: list(m.swinv2.encoder.layers),
        lambda out: out[1].mT.unflatten(2, out[2][:2]),  # (…, tokens before the downsample, (H, W, …))
    ),
    "torchvision": Peer(build_torchvision, lambda m: list(m.features[1::2]), lambda out: out.permute(0, 3, 1, 2)),
}


def set_tables(peer: Peer, model: nn.Module, pretrained: Windows, dtype: torch.dtype) -> None:
    """Gives a peer coordinate tables for these pre-training windows (0: the window itself) in another precision."""
    for stage, trained in zip(peer.stages(model), pretrained, strict=True):
        for module in stage.modules():
            if hasattr(module, "relative_coords_table"):
                _, rows, columns, _ = module.relative_coords_table.shape
                window = ((rows + 1) // 2, (columns + 1) // 2)
                module.relative_coords_table = coordinate_table(
                    window, (trained, trained) if trained else window, dtype
                )


@torch.no_grad()
def outputs_of_peer(peer: Peer, model: nn.Module, x: Tensor) -> list[Tensor]:
    """The four maps and the logits."""
    maps: list[Tensor] = []
    hooks = [s.register_forward_hook(lambda _, __, out: maps.append(peer.to_map(out))) for s in peer.stages(model)]
    out = model.eval()(x)
    for hook in hooks:
        hook.remove()
    return [*maps, out if isinstance(out, Tensor) else out.logits]


@torch.no_grad()
def outputs_of_ours(model: Classifier, x: Tensor) -> list[Tensor]:
    model.eval()
    return [*model.backbone(x), model(x)]


@dataclass(frozen=True)
class Case:
    """A model trained at one window and image, used at another.

    ``trained_windows`` are those in effect in training, per stage; None for ``image``: no transfer.
    """

    size: Size
    trained_at: tuple[int, int]
    trained_windows: Windows
    window: int | None = None
    image: Image | None = None


def check(name: str, case: Case, dtype: torch.dtype, tolerance: float, comparable: int = 5) -> None:
    """Carries random weights over and compares the first ``comparable`` of four maps and the logits."""
    peer = PEERS[name]
    window, pixels = case.trained_at
    none = (0, 0, 0, 0)
    trained = randomize(peer.build(case.size, window, (pixels, pixels), none))
    if case.image is None:
        image, pretrained, used = (pixels, pixels), none, trained
    else:
        assert case.window is not None
        window, image, pretrained = case.window, case.image, case.trained_windows
        used = peer.build(case.size, window, image, pretrained)
        used.load_state_dict(dict(trained.named_parameters()), strict=False)

    backbone = SwinTransformerV2(case.size.embed_dim, case.size.depths, case.size.num_heads, window)
    ours = Classifier(backbone, CLASSES)
    says_windows = name == "torchvision"
    at = {} if says_windows else {"window_size": case.trained_at[0], "image_size": case.trained_at[1]}
    report = load_weights(ours, trained.state_dict(), **at)
    assert not report.randomly_initialized and not report.unused
    if comparable == 5:
        assert backbone.pretrained_window_size == tuple((w, w) for w in case.trained_windows)

    ours, used = ours.to(dtype), used.to(dtype)
    if dtype == torch.float64:
        set_tables(peer, used, pretrained, dtype)
    x = torch.randn(1, 3, *image, dtype=dtype, generator=torch.Generator().manual_seed(3))
    results = list(zip(outputs_of_ours(ours, x), outputs_of_peer(peer, used, x), strict=True))
    for index, (own, other) in enumerate(results[:comparable]):
        assert own.shape == other.shape
        error = ((own - other).abs().max() / other.abs().max()).item()
        assert error < tolerance, f"output {index}: relative difference {error:.1e}"


DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-6)], ids=["float32", "float64"]
)
SIZES = pytest.mark.parametrize(
    "size", [NARROW, *(pytest.param(size, marks=pytest.mark.slow) for size in (TINY, SMALL))], ids=["narrow", "T", "S"]
)
W8 = ((8, 256), (8, 8, 8, 8))
W16 = ((16, 256), (16, 16, 16, 8))


@DTYPES
@SIZES
@pytest.mark.parametrize("name", PEERS)
def test_window_8_at_256(name: str, size: Size, dtype: torch.dtype, tolerance: float) -> None:
    check(name, Case(size, *W8), dtype, tolerance)


@DTYPES
@SIZES
@pytest.mark.parametrize("name", PEERS)
def test_window_16_at_256(name: str, size: Size, dtype: torch.dtype, tolerance: float) -> None:
    # torchvision's last map is 8×8, which it pads to its window of 16
    check(name, Case(size, *W16), dtype, tolerance, comparable=3 if name == "torchvision" else 5)


@DTYPES
@SIZES
@pytest.mark.parametrize("name", PEERS)
def test_window_8_at_256_to_window_12_at_384(name: str, size: Size, dtype: torch.dtype, tolerance: float) -> None:
    check(name, Case(size, *W8, window=12, image=(384, 384)), dtype, tolerance)


@DTYPES
@SIZES
@pytest.mark.parametrize("name", PEERS)
def test_window_16_at_256_to_window_24_at_384(name: str, size: Size, dtype: torch.dtype, tolerance: float) -> None:
    case = Case(size, *W16, window=24, image=(384, 384))
    check(name, case, dtype, tolerance, comparable=3 if name == "torchvision" else 5)


@DTYPES
@SIZES
@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_non_square_input(name: str, size: Size, dtype: torch.dtype, tolerance: float) -> None:
    """The last map, 8×16, is one window along one axis and two, shifted, along the other."""
    check(name, Case(size, *W8, window=8, image=(256, 512)), dtype, tolerance)


@DTYPES
@SIZES
def test_non_square_input_of_transformers(size: Size, dtype: torch.dtype, tolerance: float) -> None:
    """It shifts both axes or none, so that both sides of the last map, 8×12, are longer than the window."""
    check("transformers", Case(size, (4, 128), (4, 4, 4, 4), window=4, image=(256, 384)), dtype, tolerance)


@DTYPES
@pytest.mark.parametrize("size", [NARROW, pytest.param(TINY, marks=pytest.mark.slow)], ids=["narrow", "T"])
def test_non_square_input_and_another_window(size: Size, dtype: torch.dtype, tolerance: float) -> None:
    check("timm", Case(size, *W16, window=24, image=(384, 768)), dtype, tolerance)
