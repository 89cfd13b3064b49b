"""Windows: cutting and putting back at any size, and who may attend to whom."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from swinv2_tasks.backbone.window import WindowGrid, attention_mask, effective_window, partition, reverse

CPU = torch.device("cpu")


def random_grids(axes: int, number: int) -> list[WindowGrid]:
    """Maps of any size, any window that fits, and any shift of an axis that has more than one window."""
    draw = random.Random(axes)
    grids = []
    for _ in range(number):
        size = tuple(draw.randint(1, 14 if axes == 2 else 7) for _ in range(axes))
        window = tuple(draw.randint(1, side) for side in size)
        shift = tuple(draw.randrange(m) if m < side else 0 for side, m in zip(size, window, strict=True))
        grids.append(WindowGrid(size, window, shift))
    return grids


GRIDS = [
    WindowGrid((8, 8), (4, 4), (0, 0)),
    WindowGrid((8, 8), (4, 4), (2, 2)),
    WindowGrid((1, 1), (1, 1), (0, 0)),
    WindowGrid((5, 5), (4, 4), (2, 2)),  # the second window holds one row, its shifted part none
    WindowGrid((4, 4, 4), (2, 2, 2), (1, 1, 1)),
    *random_grids(2, 60),
    *random_grids(3, 40),
]
each_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.size}-{g.window}-{g.shift}".replace(" ", ""))


def number_tokens(grid: WindowGrid) -> Tensor:
    """A map (1, S…, 1) of one that holds each token's place in reading order, counted from 1."""
    return torch.arange(1, math.prod(grid.size) + 1).view(1, *grid.size, 1)


@each_grid
def test_reverse_undoes_partition(grid: WindowGrid) -> None:
    x = torch.randn(2, *grid.size, 3)
    assert torch.equal(reverse(partition(x, grid), grid), x)


@each_grid
def test_partition_puts_each_token_where_the_shift_and_the_window_say(grid: WindowGrid) -> None:
    windows = partition(number_tokens(grid), grid)[0, :, :, 0].tolist()
    x = number_tokens(grid)[0, ..., 0]
    corners = product(*(range(0, padded, m) for padded, m in zip(grid.padded, grid.window, strict=True)))
    for tokens, corner in zip(windows, corners, strict=True):
        for value, inner in zip(tokens, product(*map(range, grid.window)), strict=True):
            position = [c + i + s for c, i, s in zip(corner, inner, grid.shift, strict=True)]
            position = [p % padded for p, padded in zip(position, grid.padded, strict=True)]
            padding = any(p >= side for p, side in zip(position, grid.size, strict=True))
            assert value == (0 if padding else x[tuple(position)].item())


@each_grid
def test_padding_is_less_than_a_window(grid: WindowGrid) -> None:
    for side, padded, m, count in zip(grid.size, grid.padded, grid.window, grid.counts, strict=True):
        assert padded == count * m
        assert 0 <= padded - side < m


@each_grid
def test_mask_lets_real_tokens_meet_exactly_when_no_window_edge_lies_between(grid: WindowGrid) -> None:
    """The shifted windows' edges lie ``shift`` tokens after 0, M, 2M, …: a token p is in window ⌊(p − shift) / M⌋."""

    def home(token: int) -> tuple[int, ...]:
        position, rest = [], token - 1
        for side in reversed(grid.size):
            rest, inner = divmod(rest, side)
            position.insert(0, inner)
        return tuple((p - s) // m for p, s, m in zip(position, grid.shift, grid.window, strict=True))

    windows = partition(number_tokens(grid), grid)[0, :, :, 0].tolist()
    mask = attention_mask(grid, CPU).tolist()
    for tokens, allowed in zip(windows, mask, strict=True):
        for i, token in enumerate(tokens):
            for j, other in enumerate(tokens):
                if token and other:
                    assert allowed[i][j] == (home(token) == home(other))
                else:  # padding meets padding alone
                    assert allowed[i][j] == (token == other == 0)


@each_grid
def test_every_token_may_attend_to_itself(grid: WindowGrid) -> None:
    assert attention_mask(grid, CPU).diagonal(dim1=1, dim2=2).all()


@each_grid
def test_no_mask_is_needed_exactly_when_it_forbids_nothing(grid: WindowGrid) -> None:
    assert grid.needs_mask != attention_mask(grid, CPU).all().item()


@pytest.mark.parametrize(
    ("size", "window", "expected", "shift"),
    [
        ((16, 16), (8, 8), (8, 8), (4, 4)),
        ((8, 8), (8, 8), (8, 8), (0, 0)),
        ((5, 9), (8, 8), (5, 8), (0, 4)),
        ((9, 5), (7, 7), (7, 5), (3, 0)),
        ((20, 20), (1, 1), (1, 1), (0, 0)),
        ((4, 14, 6), (8, 7, 7), (4, 7, 6), (0, 3, 0)),
        ((16, 7, 8), (8, 7, 7), (8, 7, 7), (4, 0, 3)),
    ],
    ids=str,
)
def test_an_axis_no_longer_than_the_window_is_one_window_without_shift(
    size: tuple[int, ...], window: tuple[int, ...], expected: tuple[int, ...], shift: tuple[int, ...]
) -> None:
    assert effective_window(size, window) == expected
    assert WindowGrid.fit(size, window, shifted=True) == WindowGrid(size, expected, shift)
    assert WindowGrid.fit(size, window, shifted=False) == WindowGrid(size, expected, (0,) * len(size))


def test_gradients_reach_every_token_once_and_padding_not_at_all() -> None:
    grid = WindowGrid((5, 7), (4, 3), (2, 1))
    x = torch.randn(1, 5, 7, 2, requires_grad=True)
    windows = partition(x, grid)
    reverse(windows, grid).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_mask_of_a_geometry_is_made_once() -> None:
    grid = WindowGrid((11, 10), (4, 4), (2, 2))
    assert attention_mask(grid, CPU) is attention_mask(WindowGrid((11, 10), (4, 4), (2, 2)), CPU)


def test_mask_made_in_inference_mode_serves_training() -> None:
    grid = WindowGrid((11, 9), (4, 4), (2, 2))
    with torch.inference_mode():
        attention_mask(grid, CPU)
    logits = torch.zeros(9, 16, 16, requires_grad=True)
    torch.where(attention_mask(grid, CPU), logits, -1).sum().backward()
    assert torch.equal(logits.grad, attention_mask(grid, CPU).float())


def test_fake_masks_are_not_remembered() -> None:
    """Export and shape inference run the model on tensors without data; real runs come after."""
    grid = WindowGrid((11, 8), (4, 4), (2, 2))
    with FakeTensorMode():
        assert isinstance(attention_mask(grid, CPU), FakeTensor)
    assert type(attention_mask(grid, CPU)) is Tensor


def test_masks_are_remembered_per_device() -> None:
    grid = WindowGrid((11, 7), (4, 4), (2, 2))
    meta = torch.device("meta")
    assert attention_mask(grid, CPU).device == CPU
    assert attention_mask(grid, meta).device == meta
