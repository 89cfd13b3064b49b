"""The position bias in eval mode: computed once, and again as soon as anything that it depends on changes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swinv2_tasks.backbone import BiasTable, LinearCPB, LogCPB, SwinTransformerV2
from tests.helpers.checkpoints import randomize

KINDS = pytest.mark.parametrize("position_bias", [LogCPB, LinearCPB, BiasTable])


def small_model(position_bias: type[nn.Module] = LogCPB, seed: int = 0) -> SwinTransformerV2:
    model = SwinTransformerV2(8, (2, 1), (2, 2), 4, mlp_ratio=2.0, position_bias=position_bias)
    return randomize(model, seed).eval()


def image(side: int = 25) -> Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """A list that grows by each position bias that is computed; not by hooks, with which it is computed each time."""
    computed: list[nn.Module] = []
    own = LogCPB.forward

    def counted(self: LogCPB, *arguments: Any) -> Tensor:
        computed.append(self)
        return own(self, *arguments)

    monkeypatch.setattr(LogCPB, "forward", counted)
    return computed


def assert_maps_equal(own: list[Tensor], other: list[Tensor]) -> None:
    torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


def run_without_cache(model: SwinTransformerV2, x: Tensor) -> list[Tensor]:
    """Maps of a model that is built afresh around the same weights and settings."""
    fresh = SwinTransformerV2(
        8,
        model.depths,
        model.num_heads,
        model.window_size,
        pretrained_window_size=model.pretrained_window_size,
        mlp_ratio=2.0,
        position_bias=model.position_bias,
    )
    fresh.to(next(model.parameters()).dtype).load_state_dict(model.state_dict())
    with torch.no_grad():
        return fresh.eval()(x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_bias_is_computed_once_while_nothing_changes(mode: type, computed: list[nn.Module]) -> None:
    model, x = small_model(), image()
    with mode():
        first, second = model(x), model(x)
    assert len(computed) == 3  # once per block
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_bias_is_computed_once_in_every_forward_with_gradients(training: bool, computed: list[nn.Module]) -> None:
    model = small_model().train(training)
    for _ in range(2):
        model(image())
    assert len(computed) == 2 * 3


def test_attention_in_chunks_computes_the_bias_once_too(computed: list[nn.Module]) -> None:
    model = SwinTransformerV2(8, (2,), (2,), 4, attention_chunk_size=1)
    model(image())
    assert len(computed) == 2


def take_an_optimizer_step(model: SwinTransformerV2) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with torch.enable_grad():  # in eval mode throughout, as with frozen statistics
        sum(y.square().mean() for y in model(image())).backward()
    optimizer.step()


def take_a_step_on_gradients_at_hand(model: SwinTransformerV2) -> None:
    """No forward pass with gradients comes between the evaluations."""
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.AdamW(model.parameters(), lr=0.1).step()


def load_other_weights(model: SwinTransformerV2) -> None:
    model.load_state_dict(small_model(model.position_bias, seed=1).state_dict())


def assign_other_weights(model: SwinTransformerV2) -> None:
    model.load_state_dict(small_model(model.position_bias, seed=1).state_dict(), assign=True)


def scale_in_place(model: SwinTransformerV2) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)


def copy_averaged_weights(model: SwinTransformerV2) -> None:
    """As Lightning's weight averaging does around validation and after training: through ``.data``."""
    for p in model.parameters():
        p.data.copy_(p.data * 1.5)
    model.train()
    model.eval()


def replace_data(model: SwinTransformerV2) -> None:
    for p in model.parameters():
        p.data = p.data * 1.5


def change_window(model: SwinTransformerV2) -> None:
    model.set_window(3)


def change_pretrained_window(model: SwinTransformerV2) -> None:
    model.set_pretrained_window(7)


CHANGES = [
    take_an_optimizer_step,
    take_a_step_on_gradients_at_hand,
    load_other_weights,
    assign_other_weights,
    scale_in_place,
    copy_averaged_weights,
    replace_data,
    change_window,
    change_pretrained_window,
]


@KINDS
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", CHANGES)
def test_bias_follows_every_change(
    change: Callable[[SwinTransformerV2], None], mode: type, position_bias: type[nn.Module]
) -> None:
    model, x = small_model(position_bias), image()
    with mode():
        before = model(x)
    change(model)
    with mode():
        after = model(x)
    if not (position_bias is BiasTable and change is change_pretrained_window):  # tables know of no such window
        assert not torch.allclose(before[0], after[0], rtol=1e-3)
    assert_maps_equal(after, run_without_cache(model, x))


def test_bias_follows_the_input_size() -> None:
    model = small_model()
    with torch.no_grad():
        for side in (25, 32, 9, 25, 16):  # padded and shifted, shifted, one small window, …
            assert_maps_equal(model(image(side)), run_without_cache(model, image(side)))


@KINDS
def test_bias_follows_the_precision_of_the_weights(position_bias: type[nn.Module]) -> None:
    model, x = small_model(position_bias), image()
    with torch.no_grad():
        model(x)
        wide = model.double()(x.double())
        torch.testing.assert_close(wide, run_without_cache(model, x.double()), rtol=0, atol=1e-12)
        assert model.float()(x)[0].dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bias_follows_to_the_gpu_and_back() -> None:
    model, x = small_model().double(), image().double()
    with torch.no_grad():
        expected = model(x)
        for device in ("cuda", "cpu", "cuda"):
            maps = model.to(device)(x.to(device))
            torch.testing.assert_close([y.cpu() for y in maps], expected, rtol=0, atol=1e-10)


@KINDS
def test_a_model_used_in_inference_mode_can_be_trained_afterwards(position_bias: type[nn.Module]) -> None:
    model, untouched = small_model(position_bias), small_model(position_bias)
    with torch.inference_mode():
        model(image())
    for m in (model, untouched):
        m.train()
        sum(y.square().mean() for y in m(image())).backward()
    for p, expected in zip(model.parameters(), untouched.parameters(), strict=True):
        assert (p.grad is None) == (expected.grad is None)
        assert p.grad is None or torch.equal(p.grad, expected.grad)


def test_gradients_in_eval_mode_reach_the_bias_after_a_forward_without() -> None:
    model = small_model()
    with torch.no_grad():
        model(image())
    model(image())[0].square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.layers[0].blocks[0].attn.cpb_mlp.parameters())


def test_a_bias_from_inference_mode_serves_other_evaluations() -> None:
    model = small_model()
    with torch.inference_mode():
        expected = [y.clone() for y in model(image())]
    with torch.no_grad():
        maps = model(image())
    assert not any(y.is_inference() for y in maps)
    assert_maps_equal(maps, expected)


def test_weights_born_in_inference_mode_may_change() -> None:
    with torch.inference_mode():
        model = small_model()
        before = model(image())
        scale_in_place(model)
        after = model(image())
    assert not torch.allclose(before[0], after[0], rtol=1e-3)
    assert_maps_equal(after, run_without_cache(model, image()))


def by_pickle(model: SwinTransformerV2) -> SwinTransformerV2:
    return pickle.loads(pickle.dumps(model))


def by_torch_save(model: SwinTransformerV2) -> SwinTransformerV2:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@KINDS
@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle, by_torch_save])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_copies_of_a_used_model_go_their_own_way(
    mode: type, copied: Callable[[SwinTransformerV2], SwinTransformerV2], position_bias: type[nn.Module]
) -> None:
    model, x = small_model(position_bias), image()
    with mode():
        expected = [y.clone() for y in model(x)]
    other = copied(model)
    with torch.no_grad():
        assert_maps_equal(other(x), expected)
        scale_in_place(other)
        assert_maps_equal(other(x), run_without_cache(other, x))
        assert_maps_equal(model(x), expected)
    sum(y.square().mean() for y in other.train()(x)).backward()


def test_pickles_do_not_grow_with_use() -> None:
    model = small_model()
    before = len(pickle.dumps(model))
    with torch.no_grad():
        model(image(200))
    assert len(pickle.dumps(model)) == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_state_dict_holds_parameters_alone_and_survives_a_file(mode: type) -> None:
    model = small_model()
    with mode():
        model(image())
    state = model.state_dict()
    assert list(state) == [name for name, _ in model.named_parameters()]
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
