"""The classification head against its formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from swinv2_tasks.heads.classification import ClassificationHead
from tests.helpers.checkpoints import randomize


@pytest.mark.parametrize("sides", [(3, 5), (2, 3, 4)], ids=["image", "clip"])
def test_logits_are_a_linear_layer_over_the_mean_of_normalized_positions(sides: tuple[int, ...]) -> None:
    head: Any = randomize(ClassificationHead(8, 4)).double().eval()
    x = torch.randn(2, 8, *sides, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pooled = torch.zeros(2, 8, dtype=torch.float64)
    positions = x.flatten(2)
    for position in positions.unbind(2):  # each over its channels, biased variance, eps as in LayerNorm
        centered = position - position.mean(1, keepdim=True)
        normalized = centered / (centered.square().mean(1, keepdim=True) + 1e-5).sqrt()
        pooled += (normalized * head.norm.weight + head.norm.bias) / positions.shape[2]
    expected = pooled @ head.fc.weight.T + head.fc.bias
    torch.testing.assert_close(head([x]), expected)


def test_only_the_last_map_is_used() -> None:
    head = ClassificationHead(8, 4).eval()
    last = torch.randn(1, 8, 2, 2)
    torch.testing.assert_close(head([torch.randn(1, 4, 4, 4), last]), head([torch.zeros(1, 4, 4, 4), last]))


def test_starts_with_small_weights_and_no_bias() -> None:
    torch.manual_seed(0)
    head = ClassificationHead(512, 100)
    assert head.fc.bias.abs().max() == 0
    assert head.fc.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_dropout_drops_pooled_features_in_training_only() -> None:
    torch.manual_seed(0)
    head = ClassificationHead(64, 3, dropout=0.5)
    x = [torch.randn(2, 64, 3, 3)]
    head.train()
    assert not torch.equal(head(x), head(x))
    head.eval()
    torch.testing.assert_close(head(x), head(x), rtol=0, atol=0)
