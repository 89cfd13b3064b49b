"""Position biases: the paper's formula, the same function at another window, and resized tables."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_tasks.backbone import BiasTable, LinearCPB, LogCPB
from swinv2_tasks.backbone.position_bias import (
    linear_coordinates,
    log_coordinates,
    relative_offsets,
    relative_position_index,
    resize_bias_table,
)
from tests.helpers import brute_force
from tests.helpers.brute_force import Sides, weights_of
from tests.helpers.checkpoints import randomize

CPU = torch.device("cpu")
WINDOWS: list[Sides] = [(1, 1), (1, 4), (3, 3), (4, 2), (5, 3), (2, 3, 2), (1, 1, 1), (3, 1, 2)]
each_window = pytest.mark.parametrize("window", WINDOWS, ids=str)


def by_offset(bias: Tensor, window: Sides) -> dict[Sides, Tensor]:
    """Values per head (heads,) at each offset i − j of a bias (heads, N, N), once it is sure that only this counts."""
    values: dict[Sides, Tensor] = {}
    tokens = list(product(*map(range, window)))
    for i, token in enumerate(tokens):
        for j, other in enumerate(tokens):
            offset = tuple(a - b for a, b in zip(token, other, strict=True))
            assert torch.equal(values.setdefault(offset, bias[:, i, j]), bias[:, i, j])
    return values


@each_window
def test_index_finds_the_offset_of_each_pair_of_tokens(window: Sides) -> None:
    offsets = relative_offsets(window, CPU)
    rows = iter(offsets[relative_position_index(window, CPU)].tolist())
    for token, other in product(product(*map(range, window)), repeat=2):
        assert next(rows) == [a - b for a, b in zip(token, other, strict=True)]


@each_window
def test_each_offset_is_listed_once(window: Sides) -> None:
    offsets = {tuple(offset) for offset in relative_offsets(window, CPU).tolist()}
    assert offsets == set(product(*(range(1 - m, m) for m in window)))
    assert len(relative_offsets(window, CPU)) == len(offsets)


@each_window
@pytest.mark.parametrize("larger", [0, 3])
def test_log_bias_equals_the_formula_of_the_paper(window: Sides, larger: int) -> None:
    pretrained = tuple(m + larger for m in window)
    bias = randomize(LogCPB(3, window).double())
    weights = {f"cpb_mlp.{name}": value for name, value in weights_of(bias).items()}
    for offset, value in by_offset(bias(window, pretrained).detach(), window).items():
        expected = brute_force.log_position_bias(weights, offset, pretrained)
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12)


@each_window
def test_linear_bias_is_the_same_network_over_shares_of_the_window(window: Sides) -> None:
    pretrained = tuple(m + 1 for m in window)
    bias = randomize(LinearCPB(3, window).double())
    weights = {f"cpb_mlp.{name}": value for name, value in weights_of(bias).items()}
    for offset, value in by_offset(bias(window, pretrained).detach(), window).items():
        shares = [distance / (m - 1) for distance, m in zip(offset, pretrained, strict=True)]
        np.testing.assert_allclose(value, brute_force.continuous_bias(weights, shares), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias_class", [LogCPB, LinearCPB])
@pytest.mark.parametrize("pretrained", [(1, 1), (1, 4)], ids=str)
@pytest.mark.parametrize("window", [(1, 1), (4, 1), (3, 4)], ids=str)
def test_windows_of_a_single_token_divide_by_nothing(
    bias_class: type[LogCPB], pretrained: Sides, window: Sides
) -> None:
    bias = randomize(bias_class(2, window))
    values = bias(window, pretrained)
    values.sum().backward()
    assert values.isfinite().all()
    assert all(p.grad.isfinite().all() for p in bias.parameters())


@pytest.mark.parametrize("bias_class", [LogCPB, LinearCPB])
@pytest.mark.parametrize(
    ("trained", "window"), [((4, 4), (7, 7)), ((4, 3), (5, 6)), ((5, 5), (3, 4)), ((2, 3, 3), (4, 4, 3))], ids=str
)
def test_a_transferred_window_keeps_the_bias_of_the_offsets_it_shares(
    bias_class: type[LogCPB], trained: Sides, window: Sides
) -> None:
    bias = randomize(bias_class(2, trained).double())
    before, after = (by_offset(bias(sides, trained).detach(), sides) for sides in (trained, window))
    shared = before.keys() & after.keys()
    assert len(shared) == math.prod(2 * min(pair) - 1 for pair in zip(trained, window, strict=True))
    for offset in shared:
        torch.testing.assert_close(before[offset], after[offset], rtol=0, atol=1e-12)


def test_without_its_trained_window_a_bias_is_stretched_instead() -> None:
    bias = randomize(LogCPB(2, (4, 4)).double())
    trained, stretched = bias((4, 4), (4, 4)), bias((7, 7), (7, 7))
    torch.testing.assert_close(trained[:, 0, -1], stretched[:, 0, -1])  # corner to corner in both
    assert not torch.allclose(trained[:, 0, 1], stretched[:, 0, 1])


def extension(coordinates: Tensor, trained: Tensor) -> float:
    """By how much of its trained length the range of coordinates grows."""
    return (coordinates.max() / trained.max()).item() - 1


def test_log_coordinates_from_window_8_to_16_extend_the_range_by_a_third() -> None:
    trained, larger = log_coordinates((8, 8), (8, 8), CPU), log_coordinates((16, 16), (8, 8), CPU)
    # The paper's 0.33 is that of unscaled offsets, log 16 / log 8; scaled to ±8 as published code does, 0.32.
    assert extension(larger, trained) == pytest.approx(0.33, abs=0.015)
    assert trained.abs().max().item() == pytest.approx(math.log2(9) / 3)


def test_linear_coordinates_from_window_8_to_16_extend_the_range_by_more_than_its_length() -> None:
    trained, larger = linear_coordinates((8, 8), (8, 8), CPU), linear_coordinates((16, 16), (8, 8), CPU)
    assert extension(larger, trained) == pytest.approx(1.14, abs=0.005)  # paper, section 3.3
    assert trained.abs().max().item() == 1


@pytest.mark.parametrize("coordinates", [log_coordinates, linear_coordinates])
def test_coordinates_are_odd_and_grow_along_each_axis(coordinates: type) -> None:
    table = coordinates((4, 3), (4, 5), CPU).unflatten(0, (7, 5))
    torch.testing.assert_close(table, -table.flip(0, 1), rtol=0, atol=0)
    assert (table[1:, :, 0] > table[:-1, :, 0]).all()
    assert (table[:, 1:, 1] > table[:, :-1, 1]).all()
    assert (table[:, :, 0] == table[:, :1, 0]).all()
    assert (table[:, :, 1] == table[:1, :, 1]).all()


@pytest.mark.parametrize("bias_class", [LogCPB, LinearCPB])
def test_continuous_bias_lies_between_0_and_16_and_teaches_every_parameter(bias_class: type[LogCPB]) -> None:
    bias = randomize(bias_class(2, (5, 5)))
    values = bias((5, 5), (5, 5))
    assert values.min() >= 0
    assert values.max() <= 16
    (values * torch.randn(values.shape, generator=torch.Generator().manual_seed(4))).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in bias.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias_class", [LogCPB, LinearCPB])
def test_continuous_bias_of_half_parameters_is_computed_in_float32(
    bias_class: type[LogCPB], dtype: torch.dtype
) -> None:
    bias = randomize(bias_class(2, (4, 4))).to(dtype)
    wide = bias_class(2, (4, 4))
    wide.load_state_dict(bias.state_dict())
    values = bias((4, 4), (4, 4))
    assert values.dtype == torch.float32
    assert torch.equal(values, wide((4, 4), (4, 4)))


@pytest.mark.parametrize("bias_class", [LogCPB, LinearCPB])
def test_autocast_does_not_narrow_a_continuous_bias(bias_class: type[LogCPB]) -> None:
    bias = randomize(bias_class(2, (4, 4)))
    with torch.autocast("cpu", torch.bfloat16):
        narrow = bias((4, 4), (4, 4))
    assert torch.equal(narrow, bias((4, 4), (4, 4)))


@each_window
def test_table_holds_a_number_per_offset_in_reading_order(window: Sides) -> None:
    bias = BiasTable(2, window)
    values = by_offset(bias(window, window).detach(), window)
    for row, offset in zip(bias.relative_position_bias_table, relative_offsets(window, CPU).tolist(), strict=True):
        assert torch.equal(values[tuple(int(distance) for distance in offset)], row)


@pytest.mark.parametrize(
    ("window", "smaller"), [((4, 4), (3, 2)), ((5, 3), (5, 1)), ((3, 4, 2), (1, 3, 2)), ((4, 4), (1, 1))], ids=str
)
def test_a_smaller_window_reads_the_middle_of_the_table(window: Sides, smaller: Sides) -> None:
    bias = BiasTable(2, window)
    full, part = by_offset(bias(window, window), window), by_offset(bias(smaller, window), smaller)
    assert len(part) == math.prod(2 * m - 1 for m in smaller)
    assert all(torch.equal(value, full[offset]) for offset, value in part.items())


@pytest.mark.parametrize("new", [(8, 8), (3, 3), (6, 2), (4, 5), (1, 1)], ids=str)
def test_a_table_is_resized_as_a_picture_of_offsets_per_head(new: Sides) -> None:
    table = torch.randn(7 * 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    resized = resize_bias_table(table, (4, 5), new)
    sides = (2 * new[0] - 1, 2 * new[1] - 1)
    for head in range(3):
        picture = table[:, head].reshape(1, 1, 7, 9)
        expected = F.interpolate(picture, size=sides, mode="bicubic", align_corners=False)
        torch.testing.assert_close(resized[:, head].reshape(sides), expected[0, 0])


def test_resizing_keeps_constants_and_the_axes_apart() -> None:
    rows = torch.arange(7.0).sub(3).repeat_interleave(5)[:, None]  # window (4, 3): the distance along rows
    resized = resize_bias_table(torch.cat((rows, torch.full_like(rows, 2.5)), 1), (4, 3), (6, 2)).unflatten(0, (11, 3))
    torch.testing.assert_close(resized[..., 0], resized[:, :1, 0].expand(11, 3))
    assert (resized[1:, 0, 0] > resized[:-1, 0, 0]).all()
    torch.testing.assert_close(resized[..., 1], torch.full((11, 3), 2.5))


def test_set_window_resizes_the_table_in_its_own_type_and_stays_frozen_or_not() -> None:
    for trainable in (True, False):
        bias = BiasTable(2, (4, 4)).to(torch.bfloat16).requires_grad_(trainable)
        expected = resize_bias_table(bias.relative_position_bias_table.detach(), (4, 4), (6, 5))
        bias.set_window((6, 5))
        assert torch.equal(bias.relative_position_bias_table, expected)
        assert bias.relative_position_bias_table.dtype == torch.bfloat16
        assert bias.relative_position_bias_table.requires_grad == trainable
        assert bias((6, 5), (4, 4)).shape == (2, 30, 30)


def test_set_window_to_the_window_it_has_keeps_the_parameter() -> None:
    bias = BiasTable(2, (4, 4, 4))
    table = bias.relative_position_bias_table
    bias.set_window((4, 4, 4))
    assert bias.relative_position_bias_table is table


def test_a_table_over_three_axes_is_resized_in_space_as_pictures_and_in_time_along_lines() -> None:
    table = torch.randn(3 * 7 * 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    resized = resize_bias_table(table, (2, 4, 3), (4, 5, 2)).unflatten(0, (7, 9, 3))
    pictures = torch.stack([resize_bias_table(part, (4, 3), (5, 2)) for part in table.split(7 * 5)])  # (3, 27, heads)
    line = torch.tensor([-3, -2, -1, 0, 1, 2, 3], dtype=torch.float64).add(3.5).mul(3 / 7).sub(0.5).clamp(0, 2)
    below = line.floor().long().clamp(max=1)
    share = (line - below)[:, None, None]
    expected = (1 - share) * pictures[below] + share * pictures[below + 1]
    torch.testing.assert_close(resized.flatten(1, 2), expected)


def test_coordinates_made_in_inference_mode_serve_training() -> None:
    bias = randomize(LogCPB(2, (7, 3)))
    with torch.inference_mode():
        expected = bias((7, 3), (9, 9)).clone()
    values = bias((7, 3), (9, 9))
    values.sum().backward()
    assert torch.equal(values, expected)
    assert all(p.grad is not None for p in bias.parameters())
