"""Flattening checkpoints and putting sharded tensors together."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor

from swinv2_tasks.weights.sharded import ShardedTensor, assemble, flatten, joined, unflatten


def test_rows_come_from_the_shards_that_hold_them() -> None:
    tensor = torch.arange(35).view(7, 5)
    sharded = ShardedTensor(tensor.shape, [(0, tensor[:3]), (3, tensor[3:5]), (5, tensor[5:])])
    for start in range(8):
        for stop in range(start, 8):
            assert torch.equal(sharded.rows(start, stop), tensor[start:stop])
    assert torch.equal(sharded.whole(), tensor)


def test_rows_that_are_in_no_shard_are_missed() -> None:
    sharded = ShardedTensor(torch.Size((6, 2)), [(0, torch.zeros(2, 2)), (4, torch.zeros(2, 2))])
    assert sharded.rows(4, 6).shape == (2, 2)
    for start, stop in ((0, 6), (1, 3), (2, 4)):
        with pytest.raises(ValueError, match="not all there"):
            sharded.rows(start, stop)


def test_unflatten_undoes_flatten() -> None:
    big = torch.ones(3)
    contents = {"a": OrderedDict(x=big, y=1), "b": [{"state": {7: {"m": 2 * big, "step": 4.0}}, "betas": (0.9, 0.999)}]}
    rest, leaves = flatten(contents, lambda leaf: isinstance(leaf, Tensor))
    assert rest == {"a": {"x": None, "y": 1}, "b": [{"state": {7: {"m": None, "step": 4.0}}, "betas": (0.9, 0.999)}]}
    assert leaves.keys() == {("a", "x"), ("b", 0, "state", 7, "m")}
    again = unflatten(rest, leaves)
    assert again["b"][0]["state"][7]["m"] is leaves["b", 0, "state", 7, "m"]
    assert flatten(again, lambda leaf: isinstance(leaf, Tensor))[0] == rest


def test_assembled_contents_are_whole() -> None:
    tensor = torch.arange(4.0)
    sharded = ShardedTensor(tensor.shape, [(0, tensor[:3]), (3, tensor[3:])])
    contents = assemble({"state_dict": {"w": sharded}, "step": 3})
    assert contents["step"] == 3 and torch.equal(contents["state_dict"]["w"], tensor)


ROWS = torch.arange(12.0).view(6, 2)


def test_shards_make_up_a_tensor_in_any_order() -> None:
    tensor = joined((6, 2), [(4, ROWS[4:]), (0, ROWS[:4]), (6, ROWS[6:])])
    assert torch.equal(tensor.whole(), ROWS)


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((6, 2), []),
        ((6, 2), [(0, ROWS[:4])]),
        ((6, 2), [(0, ROWS[:4]), (3, ROWS[3:])]),
        ((6, 2), [(0, ROWS[:4]), (4, ROWS[4:].double())]),
        ((6, 2), [(0, ROWS[:4]), (4, ROWS[4:, :1])]),
        ((6, 2), [(0, ROWS[:4]), (4j, ROWS[4:])]),
        ((6, 2), [(0, [1.0])]),
        ((6, "2"), [(0, ROWS)]),
        ("62", [(0, ROWS)]),
        ((), [(0, ROWS)]),
    ],
)
def test_shards_of_no_tensor_are_refused(shape: object, parts: list[tuple[object, object]]) -> None:
    with pytest.raises(ValueError, match="do not"):
        joined(shape, parts)
