"""Tasks as ``torch.onnx.export(task, (x,))`` writes them compute what they do, by ONNX Runtime."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnxruntime
import pytest
import torch

from tests.tasks.every_task import new_input, new_task


@pytest.mark.parametrize("gradients", [True, False], ids=["gradients on", "gradients off"])
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
    with torch.set_grad_enabled(gradients), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about torch and onnxscript
        torch.onnx.export(task, (x,), tmp_path / "task.onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "task.onnx", providers=["CPUExecutionProvider"])
    [out] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = task(x)
    assert (torch.from_numpy(out) - expected).abs().max() <= 1e-4 * expected.abs().max()
