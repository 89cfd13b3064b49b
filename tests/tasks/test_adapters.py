"""Whatever hooks into a layer or takes its place has its effect, in all tasks: hooks, LoRA, quantized layers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from swinv2_tasks.tasks.base import BaseTask
from tests.helpers.every_task import EACH_TASK, new_input, new_task, training_loss

every_task = pytest.mark.parametrize("name", EACH_TASK)


@contextmanager
def calls(module: nn.Module) -> Iterator[set[str]]:
    """The names of the modules with parameters of their own that are called meanwhile."""
    called: set[str] = set()

    def note(name: str) -> Any:
        return lambda *_: called.add(name)

    handles = [part.register_forward_hook(note(name)) for name, part in with_parameters(module).items()]
    yield called
    for handle in handles:
        handle.remove()


def with_parameters(module: nn.Module) -> dict[str, nn.Module]:
    """Its modules that have parameters of their own; attention's biases and the like belong to what holds layers."""
    return {name: part for name, part in module.named_modules() if list(part.parameters(recurse=False))}


def evaluate(task: Any, name: str) -> Tensor:
    """What the task makes of its input in eval mode, as one tensor."""
    task.eval()
    with torch.no_grad():
        out = task(new_input(name))
    if isinstance(out, Tensor):
        return out
    return torch.cat([value.flatten().float() for detections in out for value in detections.values()])


@every_task
def test_hooks_of_every_layer_fire_in_training(name: str) -> None:
    task = new_task(name)
    with calls(task) as called:
        training_loss(task.train(), name)
    assert called == set(with_parameters(task))


@every_task
def test_hooks_of_every_layer_fire_in_each_evaluation(name: str) -> None:
    task = new_task(name)
    expected = {part for part in with_parameters(task) if not part.startswith("head.auxiliary")}  # for training only
    evaluate(task, name)  # after which the position bias is remembered
    for _ in range(2):
        with calls(task) as called:
            evaluate(task, name)
        assert called == expected


@every_task
def test_a_hook_that_changes_what_a_layer_gives_changes_the_loss(name: str) -> None:
    """Each layer in turn: one that was called for show would change nothing."""
    task = new_task(name).train()
    frozen = copy.deepcopy(task.state_dict())  # running statistics are the same in each call
    before = training_loss(task, name)
    for layer, part in with_parameters(task).items():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.Conv3d):
            handle = part.register_forward_hook(lambda _, __, out: 1.5 * out * torch.linspace(0.5, 1.5, out.shape[-1]))
            task.load_state_dict(frozen)
            assert training_loss(task, name) != before, layer
            handle.remove()


def with_adapters(task: BaseTask) -> dict[str, nn.Parameter]:
    """Low-rank adapters on every linear layer and convolution; their parameters, which alone are trained."""
    layer_types = nn.Linear | nn.Conv2d | nn.Conv3d
    layers = [name for name, part in task.named_modules() if isinstance(part, layer_types)]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=layers, init_lora_weights=False), task)
    adapters = {name: p for name, p in task.named_parameters() if "lora_" in name}
    assert len(adapters) == 2 * len(layers)
    for parameter in task.parameters():
        parameter.requires_grad_(False)
    for parameter in adapters.values():
        parameter.requires_grad_(True)
    return adapters


@every_task
def test_adapters_of_every_layer_are_trained(name: str) -> None:
    task = new_task(name).train()
    adapters = with_adapters(task)
    before = training_loss(task, name)
    before.backward()
    without = [part for part, p in adapters.items() if p.grad is None or not p.grad.any()]
    assert not without
    torch.optim.SGD(adapters.values(), lr=1e-3 / float(before.detach())).step()
    assert training_loss(task, name) != before


@every_task
def test_adapters_change_what_is_predicted(name: str) -> None:
    task = new_task(name)
    plain = evaluate(task, name)
    adapters = with_adapters(task)
    adapted = evaluate(task, name)
    assert adapted.shape != plain.shape or not torch.allclose(adapted, plain)
    for part in task.modules():
        if hasattr(part, "enable_adapters"):
            part.enable_adapters(False)
    assert torch.allclose(evaluate(task, name), plain, rtol=1e-4, atol=1e-4)
    assert adapters


def test_adapters_of_the_position_bias_are_not_remembered() -> None:
    """Switched off, they leave every weight as it was."""
    task = new_task("classification")
    plain = evaluate(task, "classification")
    names = [name for name, part in task.named_modules() if isinstance(part, nn.Linear) and "cpb_mlp" in name]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=names, init_lora_weights=False), task)
    adapted = evaluate(task, "classification")
    assert not torch.allclose(adapted, plain)
    for part in task.modules():
        if hasattr(part, "enable_adapters"):
            part.enable_adapters(False)
    assert torch.allclose(evaluate(task, "classification"), plain)


class Doubled(nn.Module):
    """Some layer in the place of a linear one."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x)


@pytest.mark.parametrize("layer", ["attn.qkv", "attn.proj", "attn.cpb_mlp.0", "attn.cpb_mlp.2", "mlp.fc1", "mlp.fc2"])
def test_a_layer_of_another_kind_takes_the_place_of_a_linear_one(layer: str) -> None:
    """It computes what the linear layer with twice the weights does."""
    task, doubled = new_task("classification"), new_task("classification")
    name = f"backbone.layers.0.blocks.1.{layer}"
    task.set_submodule(name, Doubled(task.get_submodule(name)))
    with torch.no_grad():
        for parameter in doubled.get_submodule(name).parameters():
            parameter *= 2
    plain = evaluate(new_task("classification"), "classification")
    expected = evaluate(doubled, "classification")
    torch.testing.assert_close(evaluate(task, "classification"), expected)
    assert not torch.allclose(expected, plain)


def test_quantized_layers_stay_close_to_those_they_replace() -> None:
    backbone = new_task("classification").backbone.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch recommends its successor
        quantized = torch.ao.quantization.quantize_dynamic(backbone, {nn.Linear}, dtype=torch.qint8)
    assert not any(isinstance(part, nn.Linear) for part in quantized.modules() if type(part) is nn.Linear)
    with torch.no_grad():
        maps, expected = quantized(new_input("classification")), backbone(new_input("classification"))
    for own, other in zip(maps, expected, strict=True):
        assert (own - other).norm() < 0.1 * other.norm()
        assert not torch.equal(own, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_position_bias_is_computed_in_float32_at_least_through_its_layers(dtype: torch.dtype) -> None:
    """Also where the layers' own type is narrower: they are called with their parameters in float32."""
    bias = new_task("classification").backbone.layers[0].blocks[0].attn.cpb_mlp
    narrow = copy.deepcopy(bias).to(dtype)
    wide = copy.deepcopy(narrow).to(torch.promote_types(dtype, torch.float32))
    with calls(narrow) as called:
        out = narrow((4, 4), (4, 4))
    assert called == {"0", "2"}
    assert torch.equal(out, wide((4, 4), (4, 4)))
    assert {parameter.dtype for parameter in narrow.parameters()} == {dtype}
