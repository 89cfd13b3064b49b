"""Tasks as ``torch.onnx.export(task, (x,))`` writes them compute what they do, by ONNX Runtime."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

from tests.helpers.every_task import SIDE, new_input, new_task


def export_session(task: torch.nn.Module, x: Tensor, gradients: bool, path: Path) -> onnxruntime.InferenceSession:
    with torch.set_grad_enabled(gradients), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about torch, torchvision and onnxscript
        torch.onnx.export(task, (x,), path, verbose=False)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def outputs(session: onnxruntime.InferenceSession, x: Tensor) -> list[Tensor]:
    return [torch.from_numpy(out) for out in session.run(None, {session.get_inputs()[0].name: x.numpy()})]


@pytest.mark.parametrize(
    "gradients",
    [pytest.param(True, id="gradients on"), pytest.param(False, id="gradients off", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "name",
    [
        "classification",
        pytest.param("segmentation", marks=pytest.mark.slow),
        pytest.param("video", marks=pytest.mark.slow),
        pytest.param("simmim", marks=pytest.mark.slow),
    ],
)
def test_an_exported_task_computes_what_the_task_does(name: str, gradients: bool, tmp_path: Path) -> None:
    task, x = new_task(name).eval(), new_input(name)
    [out] = outputs(export_session(task, x, gradients, tmp_path / "task.onnx"), x)
    with torch.no_grad():
        expected = task(x)
    assert (out - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gradients"),
    [pytest.param("mask_rcnn", True, id="gradients on"), pytest.param("htc", False, id="gradients off")],
)
def test_an_exported_detector_finds_what_the_task_does(name: str, gradients: bool, tmp_path: Path) -> None:
    """As many objects, of the same classes, in each of several images, one of which shows none."""
    task: Any = new_task(name).eval()
    images = [torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]
    best = sorted(task(x)[0]["scores"][0].item() for x in images)
    task.inference = dataclasses.replace(task.inference, score_threshold=(best[0] + best[1]) / 2)

    session = export_session(task, images[0], gradients, tmp_path / "task.onnx")
    numbers = []
    for x in images:
        [expected] = task(x)
        numbers.append(len(expected["boxes"]))
        for out, (key, value) in zip(outputs(session, x), expected.items(), strict=True):
            assert out.shape == value.shape and out.dtype == value.dtype, key
            tolerance = 1e-5 * SIDE if key == "boxes" else 1e-3
            torch.testing.assert_close(out, value, atol=tolerance, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
    assert min(numbers) == 0 and max(numbers) > 1
