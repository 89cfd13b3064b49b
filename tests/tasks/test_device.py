"""Steps on an accelerator, without one: shapes and devices are followed, no number is ever computed.

A step that asks for a number (``item``, ``nonzero``, ``tolist``) would wait for the device; so would one that mixes in
a tensor which stayed on the CPU, were it not an error. ``tests/test_gpu.py`` asks a real device.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.optim import AdamW

from swinv2_tasks.backbone import BiasTable, LinearCPB, LogCPB, SwinTransformerV2
from swinv2_tasks.tasks import ClassificationTask, SimMIMTask, VideoClassificationTask
from swinv2_tasks.training.optim import CosineSchedule, build_optimizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are trying to `self.log"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]


@pytest.fixture(autouse=True)
def imagined() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def batch(several_labels: bool) -> Any:
    """Images whose maps are padded, shifted and masked: of 11×9 and 6×5 tokens."""
    labels = torch.rand(6, 7, device="cuda") if several_labels else torch.zeros(6, dtype=torch.int64, device="cuda")
    return {"image": torch.randn(6, 3, 44, 33, device="cuda"), "label": labels, "path": ["a"] * 6}


def task_on_device(position_bias: type[nn.Module] = LogCPB) -> ClassificationTask:
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        backbone = SwinTransformerV2(8, (2, 2), (1, 2), 4, drop_path_rate=0.2, position_bias=position_bias)
        task = ClassificationTask(backbone, 7, dropout=0.1)
    move_parameters(task)
    for metrics in (task.val_metrics, task.val_real_metrics, task.test_metrics, task.test_real_metrics):
        metrics.to("cuda")
    return task


def move_parameters(task: nn.Module) -> None:
    for module in task.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, device="cuda"))


def test_asking_for_a_number_or_mixing_devices_is_an_error() -> None:
    """Were it not, the tests below would pass whatever the steps do."""
    x = torch.ones(2, device="cuda")
    with pytest.raises(DataDependentOutputException):
        x.sum().item()
    with pytest.raises(RuntimeError, match="device"):
        x + torch.ones(2)


@pytest.mark.parametrize("position_bias", [LogCPB, LinearCPB, BiasTable])
@pytest.mark.parametrize("several_labels", [False, True])
def test_training_steps_compute_on_the_device_alone(several_labels: bool, position_bias: type[nn.Module]) -> None:
    task = task_on_device(position_bias).train()
    loss = task.training_step(batch(several_labels), 0)
    assert loss.shape == ()
    assert loss.device.type == "cuda"


def test_the_optimizer_steps_on_the_device_alone() -> None:
    task = task_on_device()
    optimizer, scheduler = build_optimizer(
        partial(AdamW, lr=1e-3), task.named_parameters(), task.backbone.depths, CosineSchedule(), 6, 3, 6
    )
    for _ in range(2):
        for parameter in task.parameters():
            parameter.grad = torch.empty_like(parameter)
        nn.utils.clip_grad_norm_(task.parameters(), 5.0)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("several_labels", [False, True])
def test_evaluation_steps_compute_on_the_device_alone(several_labels: bool) -> None:
    task = task_on_device().eval()
    with torch.no_grad():
        for _ in range(2):
            task.validation_step(batch(several_labels), 0)
            task.test_step(batch(several_labels), 0)
    metrics = task.val_real_metrics if several_labels else task.val_metrics
    assert all(value.device.type == "cuda" for value in metrics.compute().values())


def test_predictions_stay_on_the_device() -> None:
    task = task_on_device().eval()
    with torch.no_grad():
        predictions = task.predict_step(batch(False), 0)
    tensors: list[Tensor] = [predictions["scores"], predictions["classes"]]
    assert all(tensor.shape == (6, 5) and tensor.device.type == "cuda" for tensor in tensors)


def test_steps_over_clips_compute_on_the_device_alone() -> None:
    """Two views each of three videos, whose maps are padded, shifted and masked: of 3×11×9 and 3×6×5 tokens."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        backbone = SwinTransformerV2(
            8, (2, 2), (1, 2), [(2, 4, 4)] * 2, patch_size=(2, 4, 4), drop_path_rate=0.2, checkpoint_stages=(1,)
        )
        task = VideoClassificationTask(backbone, 7)
    move_parameters(task)
    labels = torch.zeros(3, dtype=torch.int64, device="cuda")
    clips: Any = {"clip": torch.randn(3, 2, 3, 6, 44, 33, device="cuda"), "label": labels, "video_id": labels}
    assert task.train().training_step(clips, 0).device.type == "cuda"
    task.eval()
    with torch.no_grad():
        for step in range(3):
            task.validation_step(clips, step)
            task.test_step(clips, step)


@pytest.mark.parametrize("norm_target_patch_size", [0, 9])
def test_steps_over_masked_images_compute_on_the_device_alone(norm_target_patch_size: int) -> None:
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        task = SimMIMTask(SwinTransformerV2(8, (2, 2), (1, 2), 4, drop_path_rate=0.2), norm_target_patch_size)
    move_parameters(task)
    samples: Any = {
        "image": torch.randn(6, 3, 48, 32, device="cuda"),
        "mask": torch.zeros(6, 6, 4, dtype=torch.bool, device="cuda"),
        "path": ["a"] * 6,
    }
    assert task.train().training_step(samples, 0).device.type == "cuda"
    task.eval()
    for metric in (task.val_loss, task.test_loss):
        metric.to("cuda")
    with torch.no_grad():
        task.validation_step(samples, 0)
        task.test_step(samples, 0)
        assert task.predict_step(samples, 0)["reconstruction"].device.type == "cuda"
