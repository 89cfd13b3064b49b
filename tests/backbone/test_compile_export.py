"""The backbone in one graph: compiled and exported, it equals itself."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from swinv2_tasks.backbone import BiasTable, LinearCPB, SwinTransformerV2
from tests.helpers.checkpoints import randomize

WHOLE, PADDED = (32, 32), (27, 34)  # maps of 8×8 and 4×4; 7×9 and 4×5


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def small_model(**kwargs: Any) -> SwinTransformerV2:
    """A regular and a shifted block, then a regular one, with random weights in float64 and in eval mode."""
    settings: dict[str, Any] = {"window_size": 3, "mlp_ratio": 2.0}
    return randomize(SwinTransformerV2(8, (2, 1), (2, 4), **(settings | kwargs))).double().eval()


def images(number: int, size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(number, 3, *size, generator=torch.Generator().manual_seed(number), dtype=dtype)


def loss_and_gradients(model: Callable[[Tensor], list[Tensor]], x: Tensor, module: nn.Module) -> list[Tensor]:
    module.zero_grad()
    loss = sum(y.square().mean() for y in model(x))
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


def assert_equal(own: list[Tensor], other: list[Tensor]) -> None:
    torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-10)


# ---- torch.compile


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        pytest.param(torch.no_grad, PADDED, marks=pytest.mark.slow),  # as of clips, below
        (torch.inference_mode, PADDED),
        (torch.enable_grad, WHOLE),
    ],
    ids=str,
)
def test_compiled_equals_eager_in_eval_mode(mode: type, size: tuple[int, int]) -> None:
    model, x = small_model(), images(2, size)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with mode():
        expected = model(x)
        assert_equal(compiled(x), expected)
        assert_equal(compiled(x), expected)
        assert_equal(model(x), expected)  # compiling leaves the model itself as it was


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        pytest.param(
            {"position_bias": LinearCPB, "pretrained_window_size": 5, "checkpoint_stages": True},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"position_bias": BiasTable, "attention_chunk_size": 4, "frozen_stages": 1, "extra_norm_every": 2},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_compiled_training_equals_eager(arguments: dict[str, Any]) -> None:
    model, x = small_model(**arguments).train(), images(2, PADDED)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    eager = loss_and_gradients(model, x, model)
    assert len(eager) == 1 + sum(p.requires_grad for p in model.parameters())
    assert_equal(loss_and_gradients(compiled, x, model), eager)


def test_compiled_training_drops_paths() -> None:
    model, x = small_model(drop_path_rate=0.9).train(), images(4, WHOLE)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    first = compiled(x)[-1].detach()
    assert not torch.allclose(first, compiled(x)[-1])


@pytest.mark.slow
def test_compiled_clips_equal_eager() -> None:
    model, x = small_model(patch_size=(2, 4, 4), window_size=((2, 3, 3), (8, 2, 2))), images(1, (9, 22, 17))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert_equal(compiled(x), model(x))


@pytest.mark.slow
def test_a_compiled_model_follows_its_weights_and_windows() -> None:
    model, x = small_model(), images(1, WHOLE)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        compiled(x)
        for p in model.parameters():
            p.mul_(1.5)
        assert_equal(compiled(x), model(x))
        model.set_window(5)
        assert_equal(compiled(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_compiled_by_inductor_equals_eager(training: bool) -> None:
    model, x = small_model().train(training), images(2, PADDED)
    compiled = torch.compile(model, fullgraph=True)
    if training:
        assert_equal(loss_and_gradients(compiled, x, model), loss_and_gradients(model, x, model))
    with torch.no_grad():
        assert_equal(compiled(x), model(x))


@pytest.mark.slow
def test_compiled_by_inductor_in_bfloat16_stays_close_to_float32() -> None:
    model, x = small_model().float(), images(2, PADDED, torch.float32)
    with torch.no_grad():
        for stage in model.layers:
            for block in stage.blocks:
                block.attn.logit_scale.clamp_(max=2.3)  # 10, as in randomly initialized models
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            maps = compiled(x)
    for own, other in zip(maps, expected, strict=True):
        assert (own - other).norm() < 0.05 * other.norm()


# ---- torch.export


def test_exported_equals_eager() -> None:
    model, x = small_model(), images(2, PADDED)
    expected = model(x)
    exported = export(model, (x,)).module()
    assert_equal(exported(x), expected)
    assert_equal(model(x), expected)


def export_with_dynamic_batch(model: nn.Module, x: Tensor, strict: bool = False) -> ExportedProgram:
    return export(model, (x,), dynamic_shapes=({0: Dim("batch", min=1, max=64)},), strict=strict)


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    """The small model, exported with a dynamic batch."""
    return export_with_dynamic_batch(small_model(), images(2, PADDED))


def assert_equals_at_any_batch(program: ExportedProgram, model: nn.Module, size: tuple[int, int]) -> None:
    exported = program.module()
    with torch.no_grad():
        for number in (1, 2, 3, 7, 16):
            x = images(number, size)
            assert_equal(exported(x), model(x))


@pytest.mark.slow
def test_exported_with_a_dynamic_batch_equals_eager_at_any_batch(program: ExportedProgram) -> None:
    assert_equals_at_any_batch(program, small_model(), PADDED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "arguments", "strict"),
    [
        (PADDED, {"position_bias": LinearCPB, "attention_chunk_size": 4}, False),
        (PADDED, {"position_bias": BiasTable, "window_size": 5, "extra_norm_every": 2}, False),
        (WHOLE, {}, False),
        (PADDED, {}, True),
    ],
    ids=str,
)
def test_other_settings_exported_with_a_dynamic_batch_equal_eager(
    size: tuple[int, int], arguments: dict[str, Any], strict: bool
) -> None:
    model = small_model(**arguments)
    assert_equals_at_any_batch(export_with_dynamic_batch(model, images(2, size), strict), model, size)


@pytest.mark.slow
def test_exported_clips_with_a_dynamic_batch_equal_eager() -> None:
    model = small_model(patch_size=(2, 4, 4), window_size=((2, 3, 3), (8, 2, 2)))
    size = (9, 22, 17)
    exported = export(model, (images(2, size),), dynamic_shapes=({0: Dim("batch")},)).module()
    with torch.no_grad():
        for number in (1, 2, 5):
            assert_equal(exported(images(number, size)), model(images(number, size)))


def test_a_model_can_be_exported_in_the_midst_of_its_life() -> None:
    """Nothing remembered from use ends up in the program, and nothing from tracing stays in the model."""
    model, x = small_model(), images(2, PADDED)
    expected_gradients = loss_and_gradients(model, x, model)
    with torch.no_grad():
        expected = model(x)
        exported = export(model, (x,)).module()
        assert_equal(model(x), expected)
        for p in model.parameters():
            p.mul_(1.5)
        assert_equal(exported(x), model(x))  # they share their parameters
        for p in model.parameters():
            p.div_(1.5)
    assert_equal(loss_and_gradients(model.train(), x, model), expected_gradients)


def test_an_exported_program_survives_a_file(program: ExportedProgram) -> None:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    with torch.no_grad():
        assert_equal(torch.export.load(file).module()(images(3, PADDED)), small_model()(images(3, PADDED)))


def test_an_exported_program_holds_the_parameters_under_their_own_names(program: ExportedProgram) -> None:
    assert list(program.state_dict) == list(small_model().state_dict())
