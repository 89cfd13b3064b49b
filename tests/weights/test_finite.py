"""Weights that are NaN or infinite are found by name, and no task works with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from swinv2_tasks.datamodules import CocoDataModule
from swinv2_tasks.errors import UserError
from swinv2_tasks.inference.detection import DetectionInference
from swinv2_tasks.tasks import DetectionTask
from swinv2_tasks.weights.finite import describe_nonfinite, find_nonfinite
from tests.helpers.every_task import TASKS, new_batch, new_images, new_task
from tests.helpers.objects import DATA, new_detector, write_objects
from tests.helpers.tiny import new_trainer

DETECTORS = ("mask_rcnn", "cascade", "htc")


def test_tensors_are_found_by_name() -> None:
    norm = nn.BatchNorm2d(3)
    linear = nn.Linear(2, 2)
    modules = {"norm": norm, "linear": linear}
    assert find_nonfinite(modules) == []
    norm.running_var[1] = math.inf  # type: ignore[index]
    linear.weight.data[0, 1] = math.nan
    assert find_nonfinite(modules) == ["norm.running_var", "linear.weight"]
    assert find_nonfinite({}) == []


def test_messages_name_the_first_few() -> None:
    assert "a, b, c and 2 more with NaN" in describe_nonfinite(["a", "b", "c", "d", "e"])
    assert "those of another process" in describe_nonfinite([])
    assert describe_nonfinite(["a"], "runs/last.ckpt").startswith(
        "the weights of runs/last.ckpt are not finite: a with"
    )


def with_nonfinite(name: str, tensor: str | None = None) -> tuple[Any, str]:
    """A task with one number of a tensor of its head, or of another tensor, that is NaN; and that tensor's name."""
    task = new_task(name)
    del task.log, task.log_dict
    parameters = {key: value for key, value in task.named_parameters() if key.startswith("head.")}
    tensor = tensor or [*parameters][-1]
    task.get_parameter(tensor).data.flatten()[-1] = math.nan
    return task, tensor


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_no_task_is_evaluated_with_weights_that_are_not_finite(name: str, command: str, tmp_path: Path) -> None:
    task, tensor = with_nonfinite(name)
    with pytest.raises(UserError, match=f"not finite: {tensor.replace('.', r'[.]')} with NaN"):
        getattr(new_trainer(tmp_path), command)(task, DataLoader([new_batch(name)], batch_size=None))  # type: ignore[arg-type]


def test_no_training_starts_from_weights_that_are_not_finite(tmp_path: Path) -> None:
    data = CocoDataModule(str(write_objects(tmp_path / "objects")), **DATA)
    task = new_detector()
    task.backbone.layers[0].blocks[0].mlp.fc1.weight.data[0, 0] = math.nan
    with pytest.raises(UserError, match=r"not finite: backbone[.]layers[.]0[.]blocks[.]0[.]mlp[.]fc1[.]weight"):
        new_trainer(tmp_path, limit_val_batches=0).fit(task, data)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("tensor", ["backbone.patch_embed.proj.weight", "head.rpn.head.cls_logits.bias"])
def test_a_detector_does_not_take_nan_for_an_image_without_objects(name: str, tensor: str) -> None:
    task, _ = with_nonfinite(name, tensor)
    with pytest.raises(UserError, match=f"not finite: {tensor.replace('.', r'[.]')}"):
        task([*new_images()])


@pytest.mark.parametrize("name", DETECTORS)
def test_nor_activations_that_are_not_finite(name: str) -> None:
    """The weights are finite, an image is not."""
    task: Any = new_task(name)
    images = [*new_images()]
    images[1][0, 3, 3] = math.nan
    with pytest.raises(UserError, match="gives NaN or infinite numbers"):
        task(images)
    assert task.training  # as it was before


def test_nor_masks_that_are_not_finite() -> None:
    task = new_task("mask_rcnn")
    assert isinstance(task, DetectionTask)
    task.inference = DetectionInference(score_threshold=0.0)
    mask: Any = task.head.mask

    def overflow(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * math.nan

    mask.register_forward_hook(overflow)
    with pytest.raises(UserError, match="gives NaN or infinite numbers"), torch.no_grad():
        task([*new_images()])
