"""Cosine attention: its CPU path against automatic differentiation, half types, and what a mask must hold back."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from swinv2_tasks.backbone import LogCPB
from swinv2_tasks.backbone.attention import WindowAttention, cosine_attention
from swinv2_tasks.backbone.cpu_attention import CHUNK_LOGITS, chunks
from swinv2_tasks.backbone.window import WindowGrid, attention_mask
from tests.helpers.checkpoints import randomize

Attention = Callable[..., Tensor]


def plain_attention(qkv: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The operation written out, for autograd to differentiate."""
    q, k, v = qkv.unflatten(-1, (3, len(scale), -1)).permute(3, 0, 1, 4, 2, 5)
    cosine = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).mT
    return ((cosine * scale + bias).softmax(-1) @ v).transpose(2, 3).flatten(3)


def run_traced(*inputs: Tensor) -> Tensor:
    """The path that other devices, compile and export take: scaled_dot_product_attention and its own gradients."""
    torch.compiler.reset()
    return torch.compile(cosine_attention, backend="eager", fullgraph=True, dynamic=False)(*inputs)


each_path = pytest.mark.parametrize("attention", [cosine_attention, run_traced])


def random_inputs(
    images: int,
    windows: int,
    tokens: int,
    heads: int,
    width: int,
    *,
    biases: int,
    forbidden: float = 0.0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """qkv, scale and bias that need gradients; a share of the bias, never its diagonal, is −inf."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    bias = 3 * draw(biases, heads, tokens, tokens)
    closed = torch.rand(biases, 1, tokens, tokens, generator=generator) < forbidden
    bias = bias.masked_fill(closed & ~torch.eye(tokens, dtype=torch.bool), -math.inf)
    inputs = (draw(images, windows, tokens, 3 * heads * width), 5 * draw(heads, 1, 1).exp(), bias)
    qkv, scale, bias = (t.to(dtype).requires_grad_() for t in inputs)
    return qkv, scale, bias


def outputs_and_gradients(attention: Attention, inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    out = attention(*inputs)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]


@pytest.mark.parametrize("biases", [1, 2], ids=["one bias", "bias per window"])
@pytest.mark.parametrize("forbidden", [0.0, 0.4])
def test_gradients_of_the_cpu_function_pass_gradcheck(biases: int, forbidden: float) -> None:
    inputs = random_inputs(2, 2, 3, 2, 2, biases=biases, forbidden=forbidden)
    assert torch.autograd.gradcheck(cosine_attention, inputs)


@pytest.mark.parametrize("biases", [1, 2], ids=["one bias", "bias per window"])
@pytest.mark.parametrize("forbidden", [0.0, 0.4])
@pytest.mark.parametrize(("heads", "tokens"), [(1, 5), (3, 6), (4, 1)])
@each_path
def test_both_paths_equal_the_operation_written_out(
    attention: Attention, heads: int, tokens: int, forbidden: float, biases: int
) -> None:
    inputs = random_inputs(3, 2, tokens, heads, 4, biases=biases, forbidden=forbidden)
    own, plain = outputs_and_gradients(attention, inputs), outputs_and_gradients(plain_attention, inputs)
    torch.testing.assert_close(own, plain, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@each_path
def test_biases_of_queries_and_values_are_those_added_to_them(attention: Attention, dtype: torch.dtype) -> None:
    qkv, scale, bias = random_inputs(3, 2, 6, 3, 4, biases=2, forbidden=0.3, dtype=torch.float32)
    q_bias, v_bias = torch.randn(2, 12, generator=torch.Generator().manual_seed(4)).unbind()
    inputs = [t.detach().to(dtype).requires_grad_() for t in (qkv, scale, bias, q_bias, v_bias)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    wide = torch.promote_types(dtype, torch.float32)
    inputs[1:3] = [t.detach().to(wide).requires_grad_() for t in inputs[1:3]]
    weight = torch.randn(3, 2, 6, 12, generator=torch.Generator().manual_seed(9))

    out = attention(*inputs)
    grads = torch.autograd.grad((out.to(wide) * weight).sum(), inputs)
    added = torch.cat((exact[3], torch.zeros_like(exact[3]), exact[4]))
    expected = plain_attention(exact[0] + added, exact[1], exact[2])
    expected_grads = torch.autograd.grad((expected * weight).sum(), exact)

    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05}[dtype]
    for own, other in zip((out, *grads), (expected, *expected_grads), strict=True):
        assert (own.double() - other).norm() < tolerance * other.norm()


def test_gradients_of_the_biases_pass_gradcheck() -> None:
    qkv, scale, bias = random_inputs(2, 2, 3, 2, 2, biases=2, forbidden=0.4)
    biases = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).unbind()
    assert torch.autograd.gradcheck(
        cosine_attention, (qkv, scale, bias, *(parameter.requires_grad_() for parameter in biases))
    )


HEADS = 2
TOKENS = math.isqrt(CHUNK_LOGITS // (HEADS * 16))
FITTING = CHUNK_LOGITS // (HEADS * TOKENS**2)
"""Windows of so many heads and tokens that the CPU computes at once: 16, or hardly more."""

LARGE = math.isqrt(CHUNK_LOGITS // HEADS) + 1
"""Tokens of a window that has more logits than the CPU is to compute at once."""

FEW = FITTING // 4
"""Windows of an image of which four fit, and five do not."""

# Images, windows, tokens, and the chunks (images, windows) that the CPU is to compute one after the other.
CHUNKED = [
    pytest.param(1, FITTING, TOKENS, [(1, FITTING)], id="all at once"),
    pytest.param(1, FITTING + 3, TOKENS, [(1, FITTING), (1, 3)], id="windows left over"),
    pytest.param(2, FITTING + 3, TOKENS, [(1, FITTING), (1, 3)] * 2, id="images of more windows than fit"),
    pytest.param(2, FITTING - 1, TOKENS, [(1, FITTING - 1)] * 2, id="an image at a time"),
    pytest.param(11, FEW, TOKENS, [(4, FEW), (4, FEW), (3, FEW)], id="several images at a time, images left over"),
    pytest.param(2, 2, LARGE, [(1, 1)] * 4, id="a window that exceeds a chunk"),
]


@pytest.mark.parametrize("shared_bias", [True, False], ids=["one bias", "bias per window"])
@pytest.mark.parametrize(("images", "windows", "tokens", "expected"), CHUNKED)
def test_attention_in_several_chunks_equals_attention_at_once(
    images: int, windows: int, tokens: int, expected: list[tuple[int, int]], shared_bias: bool
) -> None:
    inputs = random_inputs(images, windows, tokens, HEADS, 4, biases=1 if shared_bias else windows, forbidden=0.2)
    qkv, _, bias = inputs
    assert [tuple(qkv[part].shape[:2]) for part, _ in chunks(qkv, bias)] == expected
    own, traced = outputs_and_gradients(cosine_attention, inputs), outputs_and_gradients(run_traced, inputs)
    torch.testing.assert_close(own, traced, rtol=1e-9, atol=1e-9)


@each_path
@pytest.mark.parametrize(("heads", "tokens"), [(1, 1), (2, 1), (1, 6), (2, 4)])
def test_a_backward_pass_leaves_its_inputs_as_they_were(attention: Attention, heads: int, tokens: int) -> None:
    """A single window may be laid out in memory just as the computation wants it, and be overwritten."""
    inputs = random_inputs(1, 1, tokens, heads, 4, biases=1)
    before = [t.detach().clone() for t in inputs]
    out = attention(*inputs)
    first = torch.autograd.grad(out.square().sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(out.square().sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("frozen", range(3), ids=["qkv", "scale", "bias"])
def test_gradients_of_the_rest_are_the_same_when_one_input_is_frozen(frozen: int) -> None:
    inputs = random_inputs(2, 2, 5, 2, 4, biases=2, forbidden=0.3)
    _, *expected = outputs_and_gradients(cosine_attention, inputs)
    inputs[frozen].requires_grad_(False)
    cosine_attention(*inputs).mul(torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(9))).sum().backward()
    assert inputs[frozen].grad is None
    for index in {0, 1, 2} - {frozen}:
        torch.testing.assert_close(inputs[index].grad, expected[index])


@each_path
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_types_stay_close_to_float32(attention: Attention, dtype: torch.dtype, tolerance: float) -> None:
    """``tolerance`` is the rounding of a number near 1; traced, queries and bias are rounded to it as well."""
    qkv, scale, bias = random_inputs(2, 3, 16, 2, 8, biases=3, forbidden=0.2, dtype=torch.float32)
    scale = scale.detach().clamp(max=20).requires_grad_()
    qkv = qkv.detach().to(dtype).requires_grad_()
    narrow = outputs_and_gradients(attention, (qkv, scale, bias))
    wide = outputs_and_gradients(plain_attention, (qkv.detach().float().requires_grad_(), scale, bias))
    assert [t.dtype for t in narrow] == [dtype, dtype, torch.float32, torch.float32]
    for own, reference in zip(narrow, wide, strict=True):
        error = (own.float() - reference).abs().max() / reference.abs().max()
        assert error < tolerance * (2 if attention is cosine_attention else 8)


@each_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_queries_and_keys_of_length_zero_have_cosine_zero(attention: Attention, dtype: torch.dtype) -> None:
    qkv = torch.randn(1, 2, 4, 3 * 8, generator=torch.Generator().manual_seed(3))
    qkv[:, :, :, :16] = 0  # all queries and keys
    out = attention(qkv.to(dtype), torch.full((2, 1, 1), 100.0), torch.zeros(1, 2, 4, 4))
    mean = qkv.to(dtype)[..., 16:].float().mean(2, keepdim=True).expand(1, 2, 4, 8)
    torch.testing.assert_close(out.float(), mean, rtol=0, atol=0.02)


@each_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_zero_padding_gives_no_nan_in_either_direction(attention: Attention, dtype: torch.dtype) -> None:
    """Padded tokens are zeros that meet each other alone and whose outputs nobody reads."""
    real = torch.arange(16) < 6
    bias = torch.zeros(2, 2, 16, 16).masked_fill(real[:, None] != real, -math.inf).requires_grad_()
    data = torch.randn(1, 2, 16, 3 * 8, generator=torch.Generator().manual_seed(3)) * real[:, None]
    qkv, scale = data.to(dtype).requires_grad_(), torch.full((2, 1, 1), 100.0, requires_grad=True)
    out = attention(qkv, scale, bias)
    out[:, :, real].float().square().sum().backward()
    assert out.isfinite().all()
    assert all(t.grad.isfinite().all() for t in (qkv, scale, bias))
    assert not qkv.grad[:, :, ~real].any()


@each_path
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_highest_logits_do_not_leak_through_the_mask(attention: Attention, dtype: torch.dtype) -> None:
    """Forbidden keys point along the query and get the largest bias, the allowed one points away: 116 against −100.

    Less 100, as published code masks, the forbidden logits would win by 116.
    """
    query = torch.tensor([1.0, 0.0, 0.0, 0.0])
    keys = query.repeat(5, 1)
    keys[0] = -query
    values = torch.full((5, 4), 1000.0)
    values[0] = torch.tensor([1.0, -2.0, 3.0, -4.0])
    qkv = torch.cat((query.repeat(5, 1), keys, values), 1)[None, None].to(dtype)
    bias = torch.full((1, 1, 5, 5), 16.0)
    bias[..., 0] = 0
    bias[..., 1:] = -math.inf
    wide = torch.promote_types(dtype, torch.float32)
    out = attention(qkv, torch.full((1, 1, 1), 100.0, dtype=wide), bias.to(wide))
    assert torch.equal(out[0, 0], values[:1].expand(5, 4).to(dtype))


@each_path
def test_forbidden_tokens_get_no_gradient(attention: Attention) -> None:
    qkv, scale, bias = random_inputs(1, 1, 6, 2, 4, biases=1)
    with torch.no_grad():
        bias[..., :4, 4:] = -math.inf  # the first four never see the last two
    out = attention(qkv, scale, bias)[:, :, :4]
    grad_qkv, grad_bias = torch.autograd.grad(out.square().sum(), (qkv, bias))
    assert not grad_qkv[:, :, 4:].any()
    assert not grad_bias[..., 4:].any()
    assert grad_qkv[:, :, :4].any()


def random_attention(dtype: torch.dtype = torch.float64) -> WindowAttention:
    return randomize(WindowAttention(8, 2, (3, 3), LogCPB)).to(dtype)


def test_output_does_not_depend_on_the_length_of_queries_and_keys() -> None:
    attention = random_attention()
    x, bias = torch.randn(2, 3, 9, 8, dtype=torch.float64), torch.zeros(1, 2, 9, 9, dtype=torch.float64)
    before = attention(x, bias)
    with torch.no_grad():
        attention.qkv.weight[:8] *= 5
        attention.q_bias *= 5
        attention.qkv.weight[8:16] *= 0.2
    torch.testing.assert_close(attention(x, bias), before)


def test_temperature_never_exceeds_100() -> None:
    attention = random_attention()
    x, bias = torch.randn(2, 3, 9, 8, dtype=torch.float64), torch.zeros(1, 2, 9, 9, dtype=torch.float64)
    results = []
    for value in (math.log(99), math.log(100), 7.0):
        torch.nn.init.constant_(attention.logit_scale, value)
        results.append(attention(x, bias).detach())
    torch.testing.assert_close(results[1], results[2])
    assert not torch.allclose(results[0], results[1])


def test_queries_and_values_have_a_bias_and_keys_have_none() -> None:
    attention = random_attention()
    assert {name: tuple(p.shape) for name, p in attention.named_parameters()} == {
        "logit_scale": (2, 1, 1),
        "q_bias": (8,),
        "v_bias": (8,),
        "cpb_mlp.0.weight": (512, 2),
        "cpb_mlp.0.bias": (512,),
        "cpb_mlp.2.weight": (2, 512),
        "qkv.weight": (24, 8),
        "proj.weight": (8, 8),
        "proj.bias": (8,),
    }
    bias = torch.zeros(1, 2, 9, 9, dtype=torch.float64)
    attention(torch.randn(1, 1, 9, 8, dtype=torch.float64), bias).square().sum().backward()
    assert attention.q_bias.grad.any()
    assert attention.v_bias.grad.any()


@pytest.mark.parametrize("shifted", [False, True], ids=["regular", "shifted"])
@pytest.mark.parametrize("size", [(6, 6), (5, 7), (2, 3)], ids=str)
def test_bias_is_minus_infinity_exactly_where_the_mask_forbids(size: tuple[int, int], shifted: bool) -> None:
    attention = random_attention()
    grid = WindowGrid.fit(size, (3, 3), shifted=shifted)
    bias = attention.bias(grid, (3, 3))
    position = attention.cpb_mlp(grid.window, (3, 3))
    allowed = attention_mask(grid, torch.device("cpu"))
    assert len(bias) == (len(allowed) if grid.needs_mask else 1)
    for window, mask in zip(bias.expand(len(allowed), -1, -1, -1), allowed, strict=True):
        assert torch.equal(window[:, mask], position[:, mask])
        assert (window[:, ~mask] == -math.inf).all()


def test_autocast_does_not_narrow_the_cpu_function() -> None:
    """Half types come in narrow and are computed in float32, so that a product in bfloat16 would only lose digits."""
    inputs = random_inputs(2, 3, 16, 2, 8, biases=3, forbidden=0.2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = cosine_attention(*inputs)
    assert torch.equal(out, cosine_attention(*inputs))


@pytest.mark.parametrize("backward_inside", [False, True], ids=["backward outside", "backward inside"])
def test_autocast_trains_in_bfloat16_with_gradients_close_to_float32(backward_inside: bool) -> None:
    attention = random_attention(torch.float32)
    with torch.no_grad():
        attention.logit_scale.clamp_(max=math.log(10))
    grid = WindowGrid.fit((5, 7), (3, 3), shifted=True)
    x = torch.randn(2, 6, 9, 8, generator=torch.Generator().manual_seed(5))

    def gradients(narrow: bool) -> dict[str, Tensor]:
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            out = attention(x, attention.bias(grid, (3, 3)))
            assert out.dtype == (torch.bfloat16 if narrow else torch.float32)
            loss = out.float().square().mean()
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
        return {name: p.grad.clone() for name, p in attention.named_parameters()}

    narrow, wide = gradients(True), gradients(False)
    for name, reference in wide.items():
        error = (narrow[name] - reference).norm() / reference.norm()
        assert error < 0.05, f"{name}: {error:.3f}"
