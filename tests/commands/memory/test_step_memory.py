"""Memory of training steps: parts are those of the model, and a step without data allocates what one with data does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from swinv2_tasks.backbone import (
    SwinTransformerV2,
    swinv2_base,
    swinv2_giant,
    swinv2_huge,
    swinv2_large,
    swinv2_small,
    swinv2_tiny,
)
from swinv2_tasks.commands.memory import step_memory as module
from swinv2_tasks.commands.memory.allocations import AllocationLog
from swinv2_tasks.commands.memory.step_memory import StepMemory, measure_optimizer, step_memory
from swinv2_tasks.errors import UserError
from swinv2_tasks.tasks import ClassificationTask

CLASSES = 10


def batch(size: int, side: int) -> dict[str, Any]:
    return {"image": torch.zeros(size, 3, side, side), "label": torch.zeros(size, dtype=torch.int64)}


def small(**settings: Any) -> SwinTransformerV2:
    return SwinTransformerV2(32, (2, 6), (1, 2), **{"window_size": 8, **settings})


def estimate(
    build: Callable[..., SwinTransformerV2] = small,
    *,
    size: int = 2,
    side: int = 64,
    optimizer: Any = torch.optim.AdamW,
    device: str = "cpu",
    precision: str = "32-true",
    accumulates: bool = False,
    **settings: Any,
) -> StepMemory:
    with torch.device("meta"):
        task = ClassificationTask(build(**settings), CLASSES, optimizer=optimizer)
    return step_memory(task, lambda: batch(size, side), device=device, precision=precision, accumulates=accumulates)


@pytest.mark.parametrize(
    ("build", "published", "within"),
    [
        (swinv2_tiny, 27_578_154, 0),
        pytest.param(swinv2_small, 48_959_418, 0, marks=pytest.mark.slow),
        pytest.param(swinv2_base, 86_893_816, 0, marks=pytest.mark.slow),
        pytest.param(swinv2_large, 195_202_932, 0, marks=pytest.mark.slow),
        pytest.param(swinv2_huge, 655e6, 0.5e6, marks=pytest.mark.slow),
        pytest.param(swinv2_giant, 2.998e9, 0.5e6, marks=pytest.mark.slow),
    ],
)
def test_weights_are_those_published(build: Any, published: float, within: float) -> None:
    """They count the last norm, which the head has here, and no classifier."""
    step = estimate(build, size=1)
    with torch.device("meta"):
        classifier = CLASSES * (build().channels[-1] + 1)
    assert abs(step.sum("weights") - classifier - published) <= within
    assert step.sum("parameters") == 4 * step.sum("weights")


def test_parts_are_those_of_the_model() -> None:
    step = estimate()
    assert [part.name for part in step.parts] == ["batch", "patches", "stage 1", "stage 2", "head, loss"]
    model = small()
    by_name = {part.name: part for part in step.parts}
    assert by_name["patches"].weights == sum(p.numel() for p in model.patch_embed.parameters())
    assert by_name["stage 1"].weights == sum(p.numel() for p in model.layers[0].parameters())
    assert by_name["batch"].activations == 2 * 3 * 64 * 64 * 4 + 2 * 8
    assert all(part.activations > 0 for part in step.parts[1:])


@pytest.mark.parametrize(
    ("optimizer", "states"),
    [
        (torch.optim.AdamW, 2),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), 1),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.1), 0),
        (lambda parameters: torch.optim.Adam(parameters, amsgrad=True), 3),
    ],
)
def test_optimizer_states_are_those_of_the_optimizer(optimizer: Any, states: int) -> None:
    step = estimate(optimizer=optimizer)
    assert step.sum("gradients") == step.sum("parameters")
    assert step.sum("optimizer") == states * step.sum("parameters")


def test_adamw_on_a_gpu_makes_a_copy_of_all_weights_in_its_step() -> None:
    """The roots of all second moments at once; on a CPU it steps one parameter after the other."""
    with torch.device("meta"):
        task = ClassificationTask(small(), CLASSES)
    assert measure_optimizer(task, "cuda", torch.float32).uses_foreach
    assert measure_optimizer(task, "cuda", torch.float32).scratch == pytest.approx(1, abs=0.1)
    assert not measure_optimizer(task, "cpu", torch.float32).uses_foreach


def test_frozen_stages_have_no_gradients() -> None:
    frozen = estimate(frozen_stages=1)
    by_name = {part.name: part for part in frozen.parts}
    assert by_name["stage 1"].parameters > 0
    assert by_name["stage 1"].gradients == by_name["stage 1"].optimizer == 0
    assert by_name["stage 1"].activations < estimate().parts[2].activations / 4


def real_step(size: int, side: int, **settings: Any) -> tuple[int, int]:
    """Bytes saved at the end of the forward pass of a step with data, and the peak of its passes, without weights."""
    task = ClassificationTask(small(**settings), CLASSES).train()
    with module.isolated_cache():  # as in a process that has computed no constants yet
        log = AllocationLog()
        for tensor in task.parameters():
            log.ignore(tensor)
        with log:
            inputs = batch(size, side)
            loss = task.loss(task(inputs["image"]), inputs["label"])
            log.end_forward()
            torch.autograd.backward(loss)
            del loss, inputs
    saved = sum(log.saved_bytes().values())
    forward, backward = log.peaks()
    gradients = 4 * sum(p.numel() for p in task.parameters())
    return saved, max(gradients + forward, backward)


@pytest.mark.parametrize(
    ("drop_path_rate", "checkpointed"),
    [
        (0.2, False),
        (0.0, True),
        pytest.param(0.0, False, marks=pytest.mark.slow),
        pytest.param(0.2, True, marks=pytest.mark.slow),
    ],
)
def test_a_step_without_data_allocates_what_one_with_data_does(drop_path_rate: float, checkpointed: bool) -> None:
    settings = {"checkpoint_stages": checkpointed, "drop_path_rate": drop_path_rate}
    saved, peak = real_step(4, 128, **settings)
    step = estimate(size=4, side=128, **settings)
    persistent = step.sum("parameters") + step.sum("optimizer")
    assert step.sum("activations") == pytest.approx(saved, rel=0.01)
    # Fake tensors decompose some operations differently.
    assert step.passes_peak - persistent == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow),  # as with further norms
        {"checkpoint_stages": True},
        {"extra_norm_every": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.slow)])
def test_blocks_that_repeat_count_as_often_as_they_are_there(
    monkeypatch: pytest.MonkeyPatch, device: str, settings: dict[str, Any]
) -> None:
    def deep(**given: Any) -> SwinTransformerV2:
        return SwinTransformerV2(32, (2, 12), (1, 2), 8, **given)

    short = estimate(deep, size=8, device=device, **settings)
    monkeypatch.setattr(module, "_keep_first_blocks", lambda task: {})
    long = estimate(deep, size=8, device=device, **settings)
    assert short.sum("activations") == pytest.approx(long.sum("activations"), rel=0.005)
    assert short.peak == pytest.approx(long.peak, rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_saving_options_save_memory(device: str) -> None:
    settings: dict[str, Any] = {"size": 8, "side": 256, "device": device}
    plain = estimate(**settings)
    checkpointed = estimate(**settings, checkpoint_stages=True)
    assert checkpointed.sum("activations") < plain.sum("activations") / 4
    assert checkpointed.peak < plain.peak / 2
    if device == "cuda":  # where the whole batch's logits have a gradient at once
        whole, chunks = (
            estimate(**settings, checkpoint_stages=True, window_size=32, attention_chunk_size=size) for size in (0, 1)
        )
        assert chunks.peak < 0.9 * whole.peak
    assert estimate(**{**settings, "size": 4}).sum("activations") == pytest.approx(
        plain.sum("activations") / 2, rel=0.02
    )
    half = estimate(**settings, precision="bf16-true")
    for name in ("parameters", "gradients", "optimizer"):
        assert half.sum(name) == plain.sum(name) / 2
    assert half.sum("activations") < 0.7 * plain.sum("activations")
    mixed = estimate(**settings, precision="bf16-mixed")
    assert mixed.sum("parameters") == plain.sum("parameters")
    assert half.sum("activations") < mixed.sum("activations") < plain.sum("activations")


def test_gradients_of_accumulated_batches_stay_beside_new_ones() -> None:
    plain, summed = estimate(size=1, side=32), estimate(size=1, side=32, accumulates=True)
    assert summed.passes_peak > plain.passes_peak
    assert summed.passes_peak <= plain.passes_peak + plain.sum("gradients")


def test_an_estimate_leaves_the_task_unchanged() -> None:
    with torch.device("meta"):
        task = ClassificationTask(small(), CLASSES)
    names = [name for name, _ in task.named_parameters()]
    first, second = (step_memory(task, lambda: batch(2, 64)) for _ in range(2))
    assert first == second
    assert [name for name, _ in task.named_parameters()] == names
    assert all(parameter.is_meta for parameter in task.parameters())


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UserError, match=r"transformer-engine.*bf16-mixed"):
        estimate(precision="transformer-engine")
