"""UPerNet and the FCN beside transformers', and the convolution that never sees enlarged maps."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from swinv2_tasks.errors import UserError
from swinv2_tasks.heads.fpn import MapNorms
from swinv2_tasks.heads.upernet import FCNHead, SegmentationHead, UPerNet, UPerNetHead, conv_over_enlarged

WIDTHS = (12, 20, 28, 36)
SIZES = {
    "halves": [(32, 32), (16, 16), (8, 8), (4, 4)],
    "odd": [(37, 50), (19, 25), (10, 13), (5, 7)],
    "smaller than the pools": [(9, 17), (5, 9), (3, 5), (2, 3)],
}


def theirs() -> tuple[nn.Module, nn.Module]:
    """The heads of transformers with random norms, scales and statistics."""
    torch.manual_seed(0)
    config = SimpleNamespace(
        pool_scales=[1, 2, 3, 6],
        hidden_size=24,
        num_labels=7,
        auxiliary_in_channels=None,
        auxiliary_channels=10,
        auxiliary_num_convs=1,
        auxiliary_concat_input=False,
    )
    heads = UperNetHead(config, list(WIDTHS)), UperNetFCNHead(config, list(WIDTHS))
    for head in heads:
        for module in head.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    nn.init.uniform_(tensor, 0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    nn.init.normal_(tensor)
    return heads


NAMES = (
    ("psp_modules.", "pools."),
    ("fpn_bottleneck.", "fuse."),
    ("bottleneck.", "pyramid."),
    ("lateral_convs.", "laterals."),
    ("fpn_convs.", "smooths."),
    ("convs.0.", "conv."),
    ("classifier.", "classifier.1."),
)


def our_name(name: str) -> str:
    start, replaced = next(pair for pair in NAMES if name.startswith(pair[0]))
    name = replaced + name.removeprefix(start)
    if name.startswith("pools."):
        name = name.replace(".1.", ".", 1)  # beside a pooling without weights
    return name.replace(".conv.", ".0.").replace("conv.conv.", "conv.0.").replace(".batch_norm.", ".1.")


def pairs() -> tuple[tuple[nn.Module, UPerNetHead], tuple[nn.Module, FCNHead]]:
    """Theirs and ours with the same weights."""
    upernet, fcn = theirs()
    ours = UPerNetHead(WIDTHS, 7, 24, dropout=0.0), FCNHead(WIDTHS[2], 7, 10, dropout=0.0)
    for head, source in zip(ours, (upernet, fcn), strict=True):
        head.load_state_dict({our_name(name): value for name, value in source.state_dict().items()})
    return (upernet, ours[0]), (fcn, ours[1])


def random_maps(sizes: Sequence[tuple[int, int]], number: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(number, width, *size, requires_grad=True) for width, size in zip(WIDTHS, sizes, strict=True)]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Within 1e-4 of the largest value."""
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_logits_and_gradients_are_those_of_transformers(sizes: list[tuple[int, int]], training: bool) -> None:
    (their_upernet, upernet), (their_fcn, fcn) = pairs()
    for module in (their_upernet, upernet, their_fcn, fcn):
        module.train(training)
    results = []
    for heads in ((their_upernet, their_fcn), (upernet, fcn)):
        maps = random_maps(sizes)
        logits = heads[0](maps), heads[1](maps) if heads[1] is their_fcn else heads[1](maps[2])
        weights = [torch.linspace(-1, 1, x.numel()).view_as(x) for x in logits]
        sum((x * weight).sum() for x, weight in zip(logits, weights, strict=True)).backward()
        results.append((logits, [x.grad for x in maps], heads))
    (their_logits, their_grads, their_heads), (logits, grads, our_heads) = results
    for own, their in zip((*logits, *grads), (*their_logits, *their_grads), strict=True):
        assert own.shape == their.shape
        assert_close(own, their)
    for our_head, their_head in zip(our_heads, their_heads, strict=True):
        ours = dict(our_head.named_parameters())
        for name, parameter in their_head.named_parameters():
            # A bias before a norm over the batch has no gradient but rounding.
            torch.testing.assert_close(ours[our_name(name)].grad, parameter.grad, rtol=1e-3, atol=2e-3)
        state = our_head.state_dict()
        for name, value in their_head.state_dict().items():  # running statistics too
            torch.testing.assert_close(state[our_name(name)], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("large", "small"),
    [((8, 8), (4, 4)), ((9, 7), (5, 4)), ((13, 6), (1, 1)), ((1, 5), (1, 2)), ((6, 6), (6, 6)), ((16, 4), (2, 3))],
)
def test_a_convolution_over_enlarged_maps_is_that_of_the_maps_enlarged(
    large: tuple[int, int], small: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, *large), torch.randn(2, 5, *small), torch.randn(2, 4, *small)]
    weight = torch.randn(6, 12, 3, 3)
    enlarged = [F.interpolate(x, size=large, mode="bilinear", align_corners=False) for x in maps]
    expected = F.conv2d(torch.cat(enlarged, 1), weight, padding=1)
    torch.testing.assert_close(conv_over_enlarged(maps, weight), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(conv_over_enlarged(maps[:1], weight[:, :3]), F.conv2d(maps[0], weight[:, :3], padding=1))


def test_a_hooked_convolution_sees_the_enlarged_maps_and_gives_the_same() -> None:
    maps = random_maps(SIZES["odd"])
    head = UPerNetHead(WIDTHS, 7, 24).eval()
    expected = head(maps)
    shapes = []
    for conv in (head.fuse[0], head.pyramid[0]):
        conv.register_forward_hook(lambda _, args, out: shapes.append((args[0].shape, out.shape)))
    assert_close(head(maps), expected)
    pooled = WIDTHS[3] + 4 * 24
    assert shapes == [((2, pooled, 5, 7), (2, 24, 5, 7)), ((2, 4 * 24, 37, 50), (2, 24, 37, 50))]


def test_each_map_has_a_norm_over_its_channels() -> None:
    torch.manual_seed(0)
    norms = MapNorms((3, 5))
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    maps = [torch.randn(2, 3, 4, 6), torch.randn(2, 5, 2, 3)]
    for x, normalized, norm in zip(maps, norms(maps), norms, strict=True):
        centered = x - x.mean(1, keepdim=True)
        expected = centered / (x.var(1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
        torch.testing.assert_close(normalized, expected)


def test_the_auxiliary_head_is_on_the_last_map_but_one_and_for_training_only() -> None:
    torch.manual_seed(0)
    maps = random_maps(SIZES["odd"])
    head = SegmentationHead(WIDTHS, 7, UPerNet(8), 0.0, 6).eval()
    logits, auxiliary = head.with_auxiliary(maps)
    assert torch.equal(head(maps), logits)
    assert logits.shape == (2, 7, 37, 50)
    assert auxiliary is not None and auxiliary.shape == (2, 7, 10, 13)
    assert SegmentationHead(WIDTHS, 7, UPerNet(8), 0.0, 0).with_auxiliary(maps)[1] is None


def test_one_map_makes_no_pyramid() -> None:
    with pytest.raises(UserError, match="two feature maps"):
        UPerNetHead((16,), 3)
