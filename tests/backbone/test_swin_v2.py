"""The backbone as a whole: what it is built from, what it returns, and what its settings change."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_tasks.backbone import (
    BiasTable,
    LinearCPB,
    LogCPB,
    SwinTransformerV2,
    swinv2_base,
    swinv2_giant,
    swinv2_huge,
    swinv2_large,
    swinv2_small,
    swinv2_tiny,
)
from swinv2_tasks.backbone.swin_v2 import PatchMerging, SwinBlock
from tests.helpers.checkpoints import randomize

KINDS = pytest.mark.parametrize("position_bias", [LogCPB, LinearCPB, BiasTable])


def small_model(window_size: Any = 4, *, seed: int = 0, **kwargs: Any) -> SwinTransformerV2:
    """Two stages, random weights, float64, eval mode."""
    settings: dict[str, Any] = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "mlp_ratio": 2.0}
    model = SwinTransformerV2(window_size=window_size, **(settings | kwargs))
    return randomize(model, seed).double().eval()


def small_clip_model(window_size: Any = (8, 3, 3), **kwargs: Any) -> SwinTransformerV2:
    return small_model(window_size, patch_size=(2, 4, 4), **kwargs)


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_maps_equal(own: list[Tensor], other: list[Tensor]) -> None:
    torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-11)


def maps_and_gradients(model: SwinTransformerV2, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """Maps, and each parameter's gradient of a random sum over them; drop path draws the same numbers every time."""
    model.zero_grad()
    torch.manual_seed(11)
    maps = model(x)
    sum((y * pixels(*y.shape, seed=12)).sum() for y in maps).backward()
    return [y.detach() for y in maps], {name: p.grad for name, p in model.named_parameters()}


# ---- numbers


@pytest.mark.parametrize(
    ("factory", "parameters"),
    [
        (swinv2_tiny, 27_578_154),
        (swinv2_small, 48_959_418),
        (swinv2_base, 86_893_816),
        (swinv2_large, 195_202_932),
    ],
)
def test_variants_have_the_published_number_of_parameters(
    factory: Callable[..., SwinTransformerV2], parameters: int
) -> None:
    with torch.device("meta"):
        model = factory()
    # Published counts include the norm after the last map, which belongs to the heads here: a weight and a bias.
    assert sum(p.numel() for p in model.parameters()) + 2 * model.channels[-1] == parameters


@pytest.mark.parametrize(("factory", "millions"), [(swinv2_huge, 655), (swinv2_giant, 2998)])
def test_huge_and_giant_have_the_published_number_of_parameters(
    factory: Callable[..., SwinTransformerV2], millions: int
) -> None:
    with torch.device("meta"):
        model = factory()
    parameters = sum(p.numel() for p in model.parameters()) + 2 * model.channels[-1]  # with the norm after the last map
    assert round(parameters / 1e6) == millions


def test_variants_pass_keyword_arguments_on() -> None:
    for factory in (swinv2_tiny, swinv2_small, swinv2_base, swinv2_large, swinv2_huge, swinv2_giant):
        with torch.device("meta"):
            model = factory(window_size=16, patch_size=(2, 4, 4), in_channels=1)
        assert model.window_size == ((16, 16, 16),) * 4
        assert model.patch_embed.proj.weight.shape == (model.channels[0], 1, 2, 4, 4)
        with pytest.raises(TypeError, match="window"):
            factory(windows=16)


def test_parameter_names_and_shapes_are_those_of_the_official_code() -> None:
    model = SwinTransformerV2(8, (1, 1), (2, 4), 4)
    shapes = {
        "patch_embed.proj.weight": (8, 3, 4, 4),
        "patch_embed.proj.bias": (8,),
        "patch_embed.norm.weight": (8,),
        "patch_embed.norm.bias": (8,),
        "layers.0.downsample.reduction.weight": (16, 32),
        "layers.0.downsample.norm.weight": (16,),
        "layers.0.downsample.norm.bias": (16,),
    }
    for i, (dim, heads) in enumerate([(8, 2), (16, 4)]):
        block: dict[str, tuple[int, ...]] = {
            "norm1.weight": (dim,),
            "norm1.bias": (dim,),
            "norm2.weight": (dim,),
            "norm2.bias": (dim,),
            "attn.logit_scale": (heads, 1, 1),
            "attn.q_bias": (dim,),
            "attn.v_bias": (dim,),
            "attn.qkv.weight": (3 * dim, dim),
            "attn.proj.weight": (dim, dim),
            "attn.proj.bias": (dim,),
            "attn.cpb_mlp.0.weight": (512, 2),
            "attn.cpb_mlp.0.bias": (512,),
            "attn.cpb_mlp.2.weight": (heads, 512),
            "mlp.fc1.weight": (4 * dim, dim),
            "mlp.fc1.bias": (4 * dim,),
            "mlp.fc2.weight": (dim, 4 * dim),
            "mlp.fc2.bias": (dim,),
        }
        shapes |= {f"layers.{i}.blocks.0.{name}": shape for name, shape in block.items()}
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == shapes


# ---- maps


def test_maps_of_images_have_the_size_over_the_stride_rounded_up() -> None:
    model = SwinTransformerV2(8, (1, 2, 1, 1), (1, 2, 2, 4), 3, mlp_ratio=1.0).eval()
    assert model.channels == (8, 16, 32, 64)
    assert model.strides == (4, 8, 16, 32)
    draw = random.Random(0)
    sizes = [(draw.randint(4, 130), draw.randint(4, 130)) for _ in range(25)]
    for size in [(4, 4), (5, 4), (4, 133), (32, 32), (33, 31), *sizes]:
        with torch.no_grad():
            maps = model(torch.zeros(2, 3, *size))
        for y, channels, stride in zip(maps, model.channels, model.strides, strict=True):
            assert y.shape == (2, channels, math.ceil(size[0] / stride), math.ceil(size[1] / stride)), size


def test_maps_of_clips_keep_their_frames_after_the_patch_embedding() -> None:
    model = SwinTransformerV2(8, (1, 2, 1), (1, 2, 2), [(4, 2, 2)] * 3, patch_size=(2, 4, 4), mlp_ratio=1.0).eval()
    assert model.strides == ((2, 4, 4), (2, 8, 8), (2, 16, 16))
    draw = random.Random(1)
    sizes = [(draw.randint(2, 12), draw.randint(4, 50), draw.randint(4, 50)) for _ in range(10)]
    for size in [(2, 4, 4), (3, 5, 4), (16, 32, 32), *sizes]:
        with torch.no_grad():
            maps = model(torch.zeros(1, 3, *size))
        for y, channels, stride in zip(maps, model.channels, model.strides, strict=True):
            sides = tuple(math.ceil(side / s) for side, s in zip(size, stride, strict=True))
            assert y.shape == (1, channels, *sides), size


def test_patches_may_differ_per_axis() -> None:
    model = small_model(patch_size=(2, 5))
    assert model.strides == ((2, 5), (4, 10))
    assert [tuple(y.shape[2:]) for y in model(pixels(1, 3, 9, 16))] == [(5, 4), (3, 2)]


def test_images_of_a_batch_do_not_meet() -> None:
    model, x = small_model(), pixels(3, 3, 27, 22)
    together, apart = model(x), [model(x[i : i + 1]) for i in range(3)]
    assert_maps_equal(together, [torch.cat(maps) for maps in zip(*apart, strict=True)])


def test_an_empty_batch_gives_empty_maps() -> None:
    assert [tuple(y.shape) for y in small_model()(pixels(0, 3, 20, 24))] == [(0, 8, 5, 6), (0, 16, 3, 3)]


def test_maps_are_what_the_last_block_of_each_stage_returns() -> None:
    model, x = small_model(), pixels(1, 3, 32, 32)
    maps: list[Tensor] = []
    for stage in model.layers:
        stage.blocks[-1].register_forward_hook(lambda _, __, out: maps.append(out.movedim(-1, 1)))
    assert_maps_equal(model(x), maps)


def test_patch_merging_takes_neighbors_in_the_official_order() -> None:
    merge = PatchMerging(1).double()
    merge.norm = nn.Identity()
    nn.init.zeros_(merge.reduction.weight)
    merge.reduction.weight.data[:2, :2] = torch.eye(2)  # the first two of (0,0), (1,0), (0,1), (1,1)
    x = torch.arange(12.0, dtype=torch.float64).view(1, 3, 4, 1)  # rows 0-3, 4-7, 8-11, and one of zeros
    assert merge(x)[0].tolist() == [[[0, 4], [2, 6]], [[8, 0], [10, 0]]]


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_of_a_whole_backbone_pass_gradcheck(padded: bool) -> None:
    model = small_model(2, embed_dim=2, num_heads=(1, 2), patch_size=2)
    x = pixels(1, 3, *((7, 9) if padded else (8, 8))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: tuple(model(x)), (x, *model.parameters()), fast_mode=True)


# ---- windows


@pytest.mark.parametrize(
    ("window_size", "expected"),
    [
        (7, ((7, 7), (7, 7), (7, 7))),
        ((8, 4, 2), ((8, 8), (4, 4), (2, 2))),
        (((8, 4), (4, 2), (2, 1)), ((8, 4), (4, 2), (2, 1))),
        ([8, (4, 2), 2], ((8, 8), (4, 2), (2, 2))),
    ],
    ids=str,
)
def test_windows_of_images_may_be_given_per_stage_and_axis(window_size: Any, expected: Any) -> None:
    model = SwinTransformerV2(8, (1, 1, 1), (1, 1, 1), window_size)
    assert model.window_size == expected
    assert model.pretrained_window_size == (None, None, None)
    model.set_window(3)
    model.set_window(window_size)
    assert model.window_size == expected
    model.set_pretrained_window(window_size)
    assert model.pretrained_window_size == expected
    built = SwinTransformerV2(8, (1, 1, 1), (1, 1, 1), 5, pretrained_window_size=window_size)
    assert built.pretrained_window_size == expected


@pytest.mark.parametrize(
    ("window_size", "expected"),
    [
        (4, ((4, 4, 4), (4, 4, 4))),
        ((8, 7, 7), ((8, 7, 7), (8, 7, 7))),
        ((8, 7), ((8, 8, 8), (7, 7, 7))),
        (((8, 7, 7), (4, 3, 2)), ((8, 7, 7), (4, 3, 2))),
    ],
    ids=str,
)
def test_windows_of_clips_may_be_given_per_axis(window_size: Any, expected: Any) -> None:
    model = SwinTransformerV2(8, (1, 1), (1, 1), window_size, patch_size=(2, 4, 4))
    assert model.window_size == expected
    model.set_pretrained_window(window_size)
    assert model.pretrained_window_size == expected


def test_a_stage_may_be_without_a_pretraining_window() -> None:
    model = SwinTransformerV2(8, (1, 1, 1), (1, 1, 1), 4, pretrained_window_size=(8, 0, None))
    assert model.pretrained_window_size == ((8, 8), None, None)
    model.set_pretrained_window(0)
    assert model.pretrained_window_size == (None, None, None)
    model.set_pretrained_window([None, (4, 2), 2])
    assert model.pretrained_window_size == (None, (4, 2), (2, 2))


def test_effective_windows_shrink_to_the_map() -> None:
    model = SwinTransformerV2(8, (1, 1, 1, 1), (1, 1, 1, 1), 16)
    assert model.effective_windows(256) == ((16, 16), (16, 16), (16, 16), (8, 8))  # published for w16 at 256
    assert model.effective_windows((512, 200)) == ((16, 16), (16, 16), (16, 13), (16, 7))
    model.set_window(24)
    assert model.effective_windows(384) == ((24, 24), (24, 24), (24, 24), (12, 12))
    clips = SwinTransformerV2(8, (1, 1, 1, 1), (1, 1, 1, 1), (8, 7, 7), patch_size=(2, 4, 4))
    assert clips.effective_windows((8, 224, 64)) == ((4, 7, 7), (4, 7, 7), (4, 7, 4), (4, 7, 2))


@pytest.mark.parametrize("size", [(32, 32), (36, 22), (12, 50)], ids=str)
def test_without_pretraining_windows_those_in_effect_count(size: tuple[int, int]) -> None:
    model = small_model(5)
    expected = small_model(5, pretrained_window_size=model.effective_windows(size))
    assert_maps_equal(model(pixels(1, 3, *size)), expected(pixels(1, 3, *size)))


@pytest.mark.parametrize("window_size", [3, 8, (5, 2), ((3, 5), (2, 6))], ids=str)
@pytest.mark.parametrize("size", [(32, 32), (36, 22), (9, 50)], ids=str)
@pytest.mark.parametrize("position_bias", [LogCPB, LinearCPB])
@pytest.mark.parametrize("pretrained", [None, 6, ((4, 3), (2, 5))], ids=str)
def test_set_window_on_a_live_model_equals_building_it_so(
    pretrained: Any, position_bias: type[nn.Module], size: tuple[int, int], window_size: Any
) -> None:
    if window_size == (5, 2):
        window_size = ((5, 5), (2, 2))  # with two stages and two axes a pair of numbers could be either
    model, x = small_model(position_bias=position_bias), pixels(1, 3, *size)
    built = small_model(window_size, position_bias=position_bias, pretrained_window_size=pretrained)
    model(x)
    model.set_window(window_size)
    model.set_pretrained_window(pretrained)
    assert_maps_equal(model(x), built(x))


@pytest.mark.parametrize("window", [(7, 7), (3, 3), (3, 6)], ids=str)
def test_set_window_of_bias_tables_equals_building_it_with_resized_tables(window: tuple[int, int]) -> None:
    model, x = small_model(position_bias=BiasTable), pixels(1, 3, 36, 22)
    built = small_model((window, window), position_bias=BiasTable)
    sides = [2 * m - 1 for m in window]
    state = model.state_dict()
    for name, table in state.items():
        if "cpb_mlp" in name:
            picture = table.T.reshape(1, -1, 7, 7)
            resized = F.interpolate(picture, size=sides, mode="bicubic", align_corners=False)
            state[name] = resized.flatten(2)[0].T
    built.load_state_dict(state)
    model(x)
    model.set_window((window, window))
    assert_maps_equal(model(x), built(x))


def test_a_transferred_model_equals_the_trained_one_where_windows_stay_the_same() -> None:
    """A window that is larger than needed, at the size of training, changes nothing."""
    model, x = small_model(4), pixels(1, 3, 16, 16)  # a map of 4×4, then 2×2
    before = model(x)
    model.set_pretrained_window(model.effective_windows(16))
    model.set_window(16)
    assert_maps_equal(model(x), before)


@pytest.mark.parametrize("position_bias", [LogCPB, BiasTable])
def test_a_window_that_cannot_be_set_changes_nothing(position_bias: type[nn.Module]) -> None:
    model = small_model(position_bias=position_bias)
    for wrong in (0, -4, (4, 4, 4), ((4, 4), (4, 0)), ((4, 4), (4, 4, 4))):
        with pytest.raises(ValueError, match="window_size"):
            model.set_window(wrong)
    assert model.window_size == ((4, 4), (4, 4))


def test_tables_over_clips_are_resized_for_another_window_and_nothing_is_changed_for_an_impossible_one() -> None:
    model, x = small_clip_model((2, 3, 3), position_bias=BiasTable), pixels(1, 3, 6, 20, 20)
    before = model(x)
    with pytest.raises(ValueError, match="window_size"):
        model.set_window((4, 0, 3))
    assert_maps_equal(model(x), before)
    model.set_window((4, 3, 2))
    assert model.window_size == ((4, 3, 2), (4, 3, 2))
    assert model.layers[0].blocks[0].attn.cpb_mlp.relative_position_bias_table.shape[0] == 7 * 5 * 3
    assert [level.shape for level in model(x)] == [level.shape for level in before]


# ---- wrong arguments


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"window_size": 0}, "window_size"),
        ({"window_size": -8}, "window_size"),
        ({"window_size": (8, 8, 8)}, "window_size"),
        ({"window_size": (8, 8, 0, 8)}, "window_size"),
        ({"window_size": ((8, 8), (8, 8), (8, 8))}, "window_size"),
        ({"window_size": ((8, 8), (8, 8), (8, 8), (8,))}, "window_size"),
        ({"window_size": ((8, 8), (8, 8), (8, 8), (8, 8, 8))}, "window_size"),
        ({"window_size": ((8, 8), (8, 8), (8, 8), (8, -1))}, "window_size"),
        ({"window_size": ()}, "window_size"),
        ({"patch_size": (2, 4, 4), "window_size": (8, 7)}, "window_size"),
        ({"patch_size": (2, 4, 4), "window_size": (8, 0, 7)}, "window_size"),
        ({"pretrained_window_size": -1}, "pretrained_window_size"),
        ({"pretrained_window_size": (8, 8, 8)}, "pretrained_window_size"),
        ({"pretrained_window_size": (8, 8, 8, -8)}, "pretrained_window_size"),
        ({"num_heads": (3, 6, 12)}, "num_heads"),
        ({"num_heads": (3, 6, 12, 24, 48)}, "num_heads"),
        ({"num_heads": (5, 6, 12, 24)}, "num_heads"),
        ({"num_heads": (0, 6, 12, 24)}, "num_heads"),
        ({"num_heads": (-3, 6, 12, 24)}, "num_heads"),
        ({"patch_size": 0}, "patch_size"),
        ({"patch_size": (4,)}, "patch_size"),
        ({"patch_size": (4, -4)}, "patch_size"),
        ({"patch_size": (1, 2, 4, 4)}, "patch_size"),
        ({"drop_path_rate": -0.1}, "drop_path_rate"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"frozen_stages": -1}, "frozen_stages"),
        ({"frozen_stages": 5}, "frozen_stages"),
        ({"checkpoint_stages": (4,)}, "checkpoint_stages"),
        ({"checkpoint_stages": (-1,)}, "checkpoint_stages"),
        ({"attention_chunk_size": -1}, "attention_chunk_size"),
        ({"attention_chunk_size": (8, 8)}, "attention_chunk_size"),
        ({"attention_chunk_size": (0, 0, 0, -1)}, "attention_chunk_size"),
    ],
    ids=str,
)
def test_an_argument_that_cannot_be_built_is_named(arguments: dict[str, Any], named: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=rf"\b{named}\b"):
        SwinTransformerV2(**arguments)


def test_numbers_that_could_mean_stages_or_axes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"window_size .* stages or axes"):
        SwinTransformerV2(8, (1, 1), (1, 1), (8, 4))
    assert SwinTransformerV2(8, (1, 1), (1, 1), (4, 4)).window_size == ((4, 4), (4, 4))  # the same either way


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 32, 32), r"expected 4 axes.*\(3, 32, 32\)"),
        ((1, 3, 8, 32, 32), r"expected 4 axes.*\(1, 3, 8, 32, 32\)"),
        ((1, 3, 3, 32), r"\(3, 32\).*smaller than one patch.*\(4, 4\)"),
        ((1, 3, 32, 0), r"\(32, 0\).*smaller than one patch.*\(4, 4\)"),
    ],
    ids=str,
)
def test_an_image_that_cannot_be_read_is_described(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model()(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 3, 32, 32), r"expected 5 axes.*\(1, 3, 32, 32\)"), ((1, 3, 1, 32, 32), "smaller than one patch")],
    ids=str,
)
def test_a_clip_that_cannot_be_read_is_described(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_clip_model()(torch.zeros(shape, dtype=torch.float64))


# ---- memory


@pytest.mark.parametrize("size", [(32, 32), (37, 21)], ids=str)
@pytest.mark.parametrize("chunks", [1, 2, 3, 100, (0, 1), (4, 0)], ids=str)
def test_attention_in_chunks_changes_neither_maps_nor_gradients(chunks: Any, size: tuple[int, int]) -> None:
    model, chunked = small_model(3), small_model(3, attention_chunk_size=chunks)
    maps, gradients = maps_and_gradients(model, pixels(2, 3, *size))
    chunked_maps, chunked_gradients = maps_and_gradients(chunked, pixels(2, 3, *size))
    assert_maps_equal(chunked_maps, maps)
    torch.testing.assert_close(chunked_gradients, gradients, rtol=1e-9, atol=1e-9)


def test_attention_in_chunks_of_clips_changes_nothing() -> None:
    x = pixels(1, 3, 10, 23, 17)
    maps, gradients = maps_and_gradients(small_clip_model((2, 3, 2)), x)
    chunked_maps, chunked_gradients = maps_and_gradients(small_clip_model((2, 3, 2), attention_chunk_size=5), x)
    assert_maps_equal(chunked_maps, maps)
    torch.testing.assert_close(chunked_gradients, gradients, rtol=1e-9, atol=1e-9)


def test_no_more_windows_than_a_chunk_are_attended_to_at_once() -> None:
    model = small_model(3, attention_chunk_size=(4, 0))
    chunk_sizes: list[list[int]] = [[], []]
    for stage, numbers in zip(model.layers, chunk_sizes, strict=True):
        for block in stage.blocks:
            block.attn.register_forward_hook(lambda _, inputs, __, to=numbers: to.append(inputs[0].shape[1]))
    model(pixels(1, 3, 36, 36))  # 9×9 tokens: 9 windows, then 5×5: 4 windows
    assert chunk_sizes == [[4, 4, 1] * 2, [4, 4]]


@pytest.mark.parametrize("stages", [True, (0,), (1,), (0, 1)], ids=str)
def test_checkpointed_stages_change_neither_maps_nor_gradients(stages: Any) -> None:
    x = pixels(3, 3, 27, 34)
    plain, checkpointed = (
        small_model(3, drop_path_rate=0.5, checkpoint_stages=which).train() for which in (False, stages)
    )
    maps, gradients = maps_and_gradients(plain, x)
    checkpointed_maps, checkpointed_gradients = maps_and_gradients(checkpointed, x)
    assert_maps_equal(checkpointed_maps, maps)
    torch.testing.assert_close(checkpointed_gradients, gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("stages", "computed"), [(False, [1, 1]), ((), [1, 1]), ((0,), [2, 1]), ((1,), [1, 2]), (True, [2, 2])], ids=str
)
def test_blocks_of_checkpointed_stages_and_no_others_are_recomputed(stages: Any, computed: list[int]) -> None:
    model = small_model(checkpoint_stages=stages).train()
    calls: Counter[int] = Counter()
    for i, stage in enumerate(model.layers):
        stage.blocks[0].attn.register_forward_hook(lambda _, __, ___, i=i: calls.update([i]))
    maps_and_gradients(model, pixels(1, 3, 32, 32))
    assert [calls[0], calls[1]] == computed
    calls.clear()
    with torch.no_grad():
        model.eval()(pixels(1, 3, 32, 32))
    assert [calls[0], calls[1]] == [1, 1]


# ---- training


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_stages_get_no_gradients_and_the_rest_does(frozen: int) -> None:
    model = small_model(frozen_stages=frozen).train()
    names = [name for name, _ in model.named_parameters()]
    still = ("patch_embed.", *(f"layers.{i}." for i in range(frozen))) if frozen else ()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name in names if not name.startswith(still)
    }
    if frozen == 2:  # nothing left to learn
        assert not any(y.requires_grad for y in model(pixels(1, 3, 32, 32)))
        return
    _, gradients = maps_and_gradients(model, pixels(2, 3, 27, 34))
    for name, gradient in gradients.items():
        assert (gradient is None) == name.startswith(still) if still else gradient is not None, name


def test_frozen_stages_do_not_drop_paths_in_training() -> None:
    model, x = small_model(frozen_stages=1, drop_path_rate=0.9), pixels(4, 3, 32, 32)
    expected = model(x)
    model.train()
    for seed in range(3):
        torch.manual_seed(seed)
        first, second = model(x)
        assert_maps_equal([first], expected[:1])
        assert not torch.allclose(second, expected[1])
    assert not model.patch_embed.training
    assert not model.layers[0].training
    assert model.layers[1].training


def test_frozen_tables_stay_frozen_at_another_window() -> None:
    model = small_model(position_bias=BiasTable, frozen_stages=1)
    model.set_window(6)
    trainable = [block.attn.cpb_mlp.relative_position_bias_table.requires_grad for block in blocks_of(model)]
    assert trainable == [False, False, True, True]


def blocks_of(model: SwinTransformerV2) -> list[SwinBlock]:
    return [block for stage in model.layers for block in stage.blocks]


def test_drop_path_grows_linearly_from_zero_to_its_rate() -> None:
    model = SwinTransformerV2(8, (2, 1, 3), (1, 1, 1), drop_path_rate=0.4)
    rates = [block.drop_path.p for block in blocks_of(model)]
    assert rates == pytest.approx([0, 0.08, 0.16, 0.24, 0.32, 0.4])
    assert [block.drop_path.p for block in blocks_of(SwinTransformerV2(8, (1,), (1,), drop_path_rate=0.4))] == [0]


def test_drop_path_drops_each_branch_of_each_image_at_its_rate() -> None:
    """Of a batch of one image, each comes out in one of four ways; both branches are scaled up where they are kept."""
    rate, images = 0.3, 4000
    model = small_model(depths=(2,), num_heads=(2,), drop_path_rate=rate)
    block = blocks_of(model)[1].train()
    x = pixels(1, 2, 2, 8)
    with torch.no_grad():
        torch.manual_seed(0)
        out = block(x.expand(images, -1, -1, -1), (4, 4), (4, 4))
        outcomes = {}
        for attended in (False, True):
            branch = block.norm1(block.attend(x, (4, 4), (4, 4))) / (1 - rate)
            between = x + attended * branch
            for processed in (False, True):
                outcomes[attended, processed] = between + processed * block.norm2(block.mlp(between)) / (1 - rate)
    total = 0
    for (attended, processed), outcome in outcomes.items():
        count = int(torch.isclose(out, outcome, rtol=1e-9).flatten(1).all(1).sum())
        p = (1 - rate if attended else rate) * (1 - rate if processed else rate)
        assert abs(count - images * p) < 4 * math.sqrt(images * p * (1 - p))
        total += count
    assert total == images


def test_drop_path_is_off_in_eval_mode() -> None:
    x = pixels(2, 3, 32, 32)
    assert_maps_equal(small_model(drop_path_rate=0.9)(x), small_model()(x))


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (0, set()),
        (6, {(0, 5), (1, 5), (1, 11)}),
        (3, {(0, 2), (0, 5), (1, 2), (1, 5), (1, 8), (1, 11)}),
    ],
)
def test_extra_norms_follow_every_so_many_blocks_of_each_stage(every: int, expected: set[tuple[int, int]]) -> None:
    with torch.device("meta"):
        model = SwinTransformerV2(8, (7, 12), (1, 1), extra_norm_every=every)
    positions = {
        (i, j)
        for i, stage in enumerate(model.layers)
        for j, block in enumerate(stage.blocks)
        if any(name.startswith("norm3") for name, _ in block.named_parameters())
    }
    assert positions == expected


def test_an_extra_norm_normalizes_the_main_branch() -> None:
    model = small_model(extra_norm_every=2)
    first, second = model.layers[0].blocks
    assert first.norm3 is None
    nn.init.ones_(second.norm3.weight)
    nn.init.zeros_(second.norm3.bias)
    out = model(pixels(1, 3, 32, 32))[0]
    torch.testing.assert_close(out.mean(1), torch.zeros(1, 8, 8, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(out.var(1, unbiased=False), torch.ones(1, 8, 8, dtype=torch.float64), rtol=0, atol=1e-3)


# ---- start


def test_linear_layers_start_truncated_normal_with_deviation_0_02() -> None:
    torch.manual_seed(0)
    model = SwinTransformerV2(32, (2, 2), (2, 4), 4)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 4 * (2 + 4) + 1
    for module in linears:
        error = 0.02 / math.sqrt(2 * module.weight.numel())  # of an estimated deviation
        assert abs(module.weight.std().item() - 0.02) < 5 * error
        assert abs(module.weight.mean().item()) < 5 * 0.02 / math.sqrt(module.weight.numel())
        assert module.bias is None or not module.bias.any()


def test_tables_start_truncated_normal_with_deviation_0_02() -> None:
    torch.manual_seed(0)
    table = BiasTable(16, (8, 8)).relative_position_bias_table
    assert table.std().item() == pytest.approx(0.02, rel=0.1)


def test_norms_temperatures_and_biases_start_as_published() -> None:
    for block in blocks_of(SwinTransformerV2(8, (2, 2), (2, 4), 4, extra_norm_every=2)):
        for norm in (block.norm1, block.norm2):
            assert not norm.weight.any()
            assert not norm.bias.any()
        if block.norm3 is not None:  # on the main branch, which must not start at zero
            assert (block.norm3.weight == 1).all()
            assert not block.norm3.bias.any()
        torch.testing.assert_close(block.attn.logit_scale.exp(), torch.full_like(block.attn.logit_scale, 10.0))
        assert not block.attn.q_bias.any()
        assert not block.attn.v_bias.any()


@KINDS
def test_a_randomly_initialized_block_is_the_identity(position_bias: type[nn.Module]) -> None:
    model = SwinTransformerV2(8, (2, 2), (2, 4), 4, position_bias=position_bias, drop_path_rate=0.5)
    x = torch.randn(2, 7, 5, 8)
    for block in model.layers[0].blocks:
        assert torch.equal(block(x, (4, 4), (4, 4)), x)
    assert torch.equal(model(torch.ones(1, 3, 20, 28))[0], model.patch_embed(torch.ones(1, 3, 20, 28)).movedim(-1, 1))


def test_a_randomly_initialized_model_learns_in_every_parameter_once_its_norms_have_moved() -> None:
    """At the very start only the norms on the branches learn; after one step, everything does."""
    model = SwinTransformerV2(8, (2, 2), (2, 4), 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        _, gradients = maps_and_gradients(model, torch.randn(2, 3, 27, 34))
        optimizer.step()
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []
