"""Each memory-saving option, alone and with the others, gives the outputs and gradients of the plain run.

In training mode with paths dropped at a rate of 0.5: what is recomputed in the backward pass must drop the same ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.backbone.window import WindowGrid
from tests.helpers.checkpoints import randomize

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "checkpoint all": {"checkpoint_stages": True},
    "checkpoint the first stage": {"checkpoint_stages": (0,)},
    "checkpoint the last stage": {"checkpoint_stages": (1,)},
}
CHUNKS: dict[str, dict[str, Any]] = {
    "chunks": {"attention_chunk_size": 3},
    "chunks in the first stage": {"attention_chunk_size": (2, 0)},
}
COMBINED: dict[str, dict[str, Any]] = {
    "checkpoint all, chunks": CHECKPOINTS["checkpoint all"] | CHUNKS["chunks"],
    "both in the first stage": CHECKPOINTS["checkpoint the first stage"] | CHUNKS["chunks in the first stage"],
}

INPUTS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "images": ((3, 3, 27, 34), {"window_size": 3}),
    "clips": ((2, 3, 5, 22, 13), {"window_size": [(2, 3, 2)] * 2, "patch_size": (2, 4, 4)}),
}
"""Maps that are padded, shifted and masked."""

each_input = pytest.mark.parametrize("inputs", INPUTS)


def each(options: dict[str, dict[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("options", options.values(), ids=options.keys())


class Step(NamedTuple):
    """What a training step computes, and the random number drawn after it."""

    maps: list[Tensor]
    gradients: dict[str, Tensor]
    next_number: Tensor


def new_model(inputs: str, options: dict[str, Any]) -> SwinTransformerV2:
    settings = {"mlp_ratio": 2.0, "drop_path_rate": 0.5, **INPUTS[inputs][1]}
    return SwinTransformerV2(8, (2, 2), (2, 4), **settings, **options).train()


def step(model: SwinTransformerV2, inputs: str, *, autocast: bool = False, seed: int = 0) -> Step:
    """Maps, and gradients of a random sum over them, of all parameters and of the pixels; in the parameters' type."""
    dtype, generator = next(model.parameters()).dtype, torch.Generator().manual_seed(1)
    x = torch.randn(INPUTS[inputs][0], dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        maps = model(x)
    weights = [torch.randn(y.shape, dtype=torch.float64, generator=generator) for y in maps]
    sum((y * weight.to(y.dtype)).sum() for y, weight in zip(maps, weights, strict=True)).backward()
    gradients = {"pixels": x.grad, **{name: p.grad for name, p in model.named_parameters()}}
    return Step([y.detach() for y in maps], {name: g.detach() for name, g in gradients.items()}, torch.rand(1))


def random_step(
    inputs: str,
    options: dict[str, Any],
    dtype: torch.dtype = torch.float64,
    *,
    autocast: bool = False,
    seed: int = 0,
) -> Step:
    model = new_model(inputs, options)
    randomize(model).to(dtype)
    return step(model, inputs, autocast=autocast, seed=seed)


def assert_identical(own: Step, other: Step) -> None:
    for own_map, other_map in zip(own.maps, other.maps, strict=True):
        assert own_map.dtype == other_map.dtype and torch.equal(own_map, other_map)
    assert own.gradients.keys() == other.gradients.keys()
    for name, gradient in own.gradients.items():
        assert torch.equal(gradient, other.gradients[name]), name
    assert torch.equal(own.next_number, other.next_number)


@each_input
def test_another_seed_drops_other_paths(inputs: str) -> None:
    """Were none dropped, the tests below would not show that the same ones are."""
    own, other = random_step(inputs, {}), random_step(inputs, {}, seed=1)
    assert not torch.allclose(own.maps[0], other.maps[0]) and not torch.allclose(own.maps[1], other.maps[1])


@each_input
@each(CHECKPOINTS | CHUNKS | COMBINED)
def test_options_change_neither_maps_nor_gradients_in_float64(options: dict[str, Any], inputs: str) -> None:
    own, plain = random_step(inputs, options), random_step(inputs, {})
    torch.testing.assert_close(own.maps, plain.maps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(own.gradients, plain.gradients, rtol=1e-10, atol=1e-10)
    assert torch.equal(own.next_number, plain.next_number)


@each_input
@each(CHECKPOINTS | CHUNKS | COMBINED)
def test_options_change_neither_maps_nor_gradients_in_float32(options: dict[str, Any], inputs: str) -> None:
    own, plain = random_step(inputs, options, torch.float32), random_step(inputs, {}, torch.float32)
    torch.testing.assert_close(own.maps, plain.maps, rtol=1e-5, atol=1e-5)
    for name, gradient in plain.gradients.items():
        assert (own.gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


NARROW = pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, True), (torch.bfloat16, False)], ids=["autocast", "bfloat16 parameters"]
)


@NARROW
@each_input
@each(CHECKPOINTS | COMBINED)
def test_checkpoints_in_bfloat16_change_no_bit(
    options: dict[str, Any], inputs: str, dtype: torch.dtype, autocast: bool
) -> None:
    without = {name: value for name, value in options.items() if name != "checkpoint_stages"}
    own, other = (random_step(inputs, which, dtype, autocast=autocast) for which in (options, without))
    assert_identical(own, other)


def mild_step(inputs: str, options: dict[str, Any], dtype: torch.dtype, *, autocast: bool = False) -> Step:
    """Of a model with flat attention, which does not multiply roundings."""
    model = new_model(inputs, options)
    randomize(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("logit_scale", "cpb_mlp.2.weight")):
                parameter.mul_(0.1)
    return step(model.to(dtype), inputs, autocast=autocast)


def error(own: Step, exact: Step) -> tuple[float, float]:
    """Relative error of the maps and of the gradients, the mean over all of them."""

    def mean(pairs: Any) -> float:
        return (
            torch.stack([(value.double() - exact_value).norm() / exact_value.norm() for value, exact_value in pairs])
            .mean()
            .item()
        )

    gradients = [(gradient, exact.gradients[name]) for name, gradient in own.gradients.items()]
    return mean(zip(own.maps, exact.maps, strict=True)), mean(gradients)


@NARROW
@each_input
@each(CHUNKS)
def test_chunks_in_bfloat16_are_as_exact_as_the_plain_run(
    options: dict[str, Any], inputs: str, dtype: torch.dtype, autocast: bool
) -> None:
    """Their gradients are sums over the chunks, each of them rounded: no more than other roundings."""
    exact = mild_step(inputs, {}, torch.float64)
    chunked, plain = (error(mild_step(inputs, which, dtype, autocast=autocast), exact) for which in (options, {}))
    for own, other in zip(chunked, plain, strict=True):
        assert 1e-4 < other < 0.05 and own < 2 * other


@NARROW
@each_input
@each({"plain": {}, "checkpoint all, chunks": COMBINED["checkpoint all, chunks"]})
def test_position_bias_and_attention_stay_finite_in_bfloat16(
    options: dict[str, Any], inputs: str, dtype: torch.dtype, autocast: bool
) -> None:
    """At the highest temperature, with biases that reach both ends of their range."""
    model = new_model(inputs, options)
    randomize(model).to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("logit_scale"):
            torch.nn.init.constant_(parameter, 7.0)
        elif name.endswith("cpb_mlp.2.weight"):
            with torch.no_grad():
                parameter.mul_(1000)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for stage in model.layers:
            window = stage.window_size
            bias = stage.blocks[1].attn.bias(WindowGrid.fit(window, window, shifted=True), window)
            assert bias.dtype == torch.float32
            assert bias.min() < 0.1 and bias.max() > 15.9 and bias.isfinite().all()
    result = step(model, inputs, autocast=autocast)
    assert all(tensor.isfinite().all() for tensor in (*result.maps, *result.gradients.values()))
