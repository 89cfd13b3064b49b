"""The blocks of the study of stability compute what they are named for, and its runs are counted right."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.stability import BLOCK_TYPES, COSINE, PRE_NORM, RES_POST_NORM, Run, build_model, change_blocks, train
from swinv2_tasks.backbone import SwinTransformerV2
from tests.helpers.checkpoints import randomize

WINDOW, HEADS, DIM = (3, 3), 2, 8


def random_block(block_type: str, seed: int = 0) -> nn.Module:
    backbone = change_blocks(SwinTransformerV2(DIM, (1,), (HEADS,), 3, mlp_ratio=2.0), block_type)
    return randomize(backbone, seed).double().layers[0].blocks[0]


def tokens_of_a_window() -> Tensor:
    return torch.randn(9, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def attention(weights: dict[str, Tensor], x: Tensor, bias: Tensor) -> Tensor:
    """softmax(q·k/√D + bias)·v head by head, (N, C) → (N, C)."""
    q, k, v = (x @ matrix.T for matrix in weights["attn.qkv.weight"].chunk(3))
    q, v = q + weights["attn.q_bias"], v + weights["attn.v_bias"]
    width, heads = DIM // HEADS, []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        logits = q[:, part] @ k[:, part].T / math.sqrt(width) + bias[head]
        shares = logits.exp() / logits.exp().sum(1, keepdim=True)
        heads.append(shares @ v[:, part])
    return torch.cat(heads, 1) @ weights["attn.proj.weight"].T + weights["attn.proj.bias"]


def mlp(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden = x @ weights["mlp.fc1.weight"].T + weights["mlp.fc1.bias"]
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return hidden @ weights["mlp.fc2.weight"].T + weights["mlp.fc2.bias"]


def norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centered = x - x.mean(1, keepdim=True)
    unit = centered / (centered.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return unit * weights[f"{name}.weight"] + weights[f"{name}.bias"]


@pytest.mark.parametrize("block_type", [PRE_NORM, RES_POST_NORM])
@torch.no_grad()
def test_blocks_with_dot_products_equal_the_formula_on_one_window(block_type: str) -> None:
    block, x = random_block(block_type), tokens_of_a_window()
    weights = {name.removeprefix("block."): value for name, value in block.state_dict().items()}
    bias = (block.block if block_type == PRE_NORM else block).attn.cpb_mlp(WINDOW, WINDOW)
    if block_type == PRE_NORM:
        expected = x + attention(weights, norm(weights, "norm1", x), bias)
        expected = expected + mlp(weights, norm(weights, "norm2", expected))
    else:
        expected = x + norm(weights, "norm1", attention(weights, x, bias))
        expected = expected + norm(weights, "norm2", mlp(weights, expected))
    torch.testing.assert_close(block(x.view(1, *WINDOW, DIM), WINDOW, WINDOW).view(9, DIM), expected)


@pytest.mark.parametrize("block_type", BLOCK_TYPES)
@torch.no_grad()
def test_a_token_reaches_its_own_shifted_window_alone(block_type: str) -> None:
    """A map of 5×4 in windows of 3: shifted by 1, token p of an axis lies in window ⌊(p − 1) / 3⌋."""
    block = random_block(block_type)
    (block.block if block_type == PRE_NORM else block).shifted = True
    x = torch.randn(1, 5, 4, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rows, columns = (torch.arange(side).sub(1).floor_divide(3) for side in (5, 4))
    for i, j in itertools.product(range(5), range(4)):
        changed = x.clone()
        changed[0, i, j] = changed[0, i, j].flip(0)
        reached = (block(changed, WINDOW, WINDOW) - block(x, WINDOW, WINDOW))[0].abs().amax(-1) > 1e-12
        assert torch.equal(reached, (rows == rows[i])[:, None] & (columns == columns[j]))


RUN = Run(COSINE, 16, (1, 2), 1e-2, seed=3, steps=40, batch_size=4, image_size=16, data="synthetic")


def test_block_types_start_from_the_same_linear_layers_and_from_norms_of_their_own() -> None:
    models = {block_type: build_model(dataclasses.replace(RUN, block_type=block_type), 2) for block_type in BLOCK_TYPES}
    states = {
        block_type: {name.replace(".block.", "."): value for name, value in model.state_dict().items()}
        for block_type, model in models.items()
    }
    temperatures = {name for name in states[COSINE] if name.endswith("logit_scale")}
    assert len(temperatures) == 3
    for block_type, state in states.items():
        assert state.keys() == states[COSINE].keys() - (set() if block_type == COSINE else temperatures)
        for name, value in state.items():
            if "blocks" in name and "norm" in name:
                assert (value == float(block_type == PRE_NORM and name.endswith("weight"))).all()
            else:
                assert torch.equal(value, states[COSINE][name])


def synthetic_images() -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 16, 16, generator=generator)
    images[:6] += 1
    return {"train": (images, (torch.arange(12) >= 6).long()), "val": (images, (torch.arange(12) >= 6).long())}


@pytest.mark.parametrize("block_type", BLOCK_TYPES)
def test_a_run_learns_and_measures_every_block(block_type: str) -> None:
    result = train(dataclasses.replace(RUN, block_type=block_type), synthetic_images())
    assert len(result["losses"]) == 40 and result["non_finite"] == 0
    assert result["final_loss"] == pytest.approx(sum(result["losses"][-20:]) / 20)
    assert result["losses"][0] > 0.6 > result["final_loss"] and result["top1"] == 1
    assert len(result["initial"]) == len(result["trained"]) == 3
    if block_type != PRE_NORM:  # the embedding's norm, passed on by blocks that begin as the identity
        assert result["initial"] == pytest.approx([1, 1, 1], abs=0.05)
    assert result["trained"] != result["initial"]


def test_a_loss_that_is_not_finite_ends_a_run_and_counts() -> None:
    result = train(dataclasses.replace(RUN, lr=1e30), synthetic_images())
    assert result["non_finite"] == 1
    assert len(result["losses"]) < 40 and not math.isfinite(result["losses"][-1])
