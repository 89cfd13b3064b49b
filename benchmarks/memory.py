"""Estimated memory of training steps beside measured memory.

    python -m benchmarks.memory [--models tiny base] [--batch-size 4] [--image-size 256] [--device cpu]

Classification by SwinV2-T and SwinV2-B with AdamW in float32, with and without activation checkpointing. The estimate
is that of ``swinv2-tasks memory`` for the device. Measured is the peak of a process's memory during its third step,
less what it had before the model was built, each in a process of its own; on a CPU, of resident memory. There the C
library is set to map each larger tensor by itself (M_MMAP_THRESHOLD, M_ARENA_MAX), or the peak would include freed
memory that it retains for reuse; and a step of a very small model comes first, for libraries to load what they need.
Target: estimates within 15 %.
"""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.measuring import measure_peak, measure_peaks, parse_settings, read_allocated_bytes
from swinv2_tasks.backbone import SwinTransformerV2, swinv2_base, swinv2_small, swinv2_tiny
from swinv2_tasks.commands.memory.step_memory import step_memory
from swinv2_tasks.tasks import ClassificationTask

MODELS = {"tiny": swinv2_tiny, "small": swinv2_small, "base": swinv2_base}
CLASSES = 1000
TARGET = 0.15
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Args:
        models: sizes of Swin V2.
        batch_size: images of a batch.
        image_size: sides of the images in pixels.
        device: cpu or cuda.
    """

    models: list[Literal["tiny", "small", "base"]] = field(default_factory=lambda: ["tiny", "base"])
    batch_size: int = 4
    image_size: int = 256
    device: str = "cpu"


def build_task(name: str) -> ClassificationTask:
    """The task of a name such as ``tiny`` or ``tiny, activation checkpointing``."""
    model, _, checkpointed = name.partition(", ")
    return ClassificationTask(MODELS[model](window_size=8, checkpoint_stages=bool(checkpointed)), CLASSES)


def build_batch(size: int, side: int, device: str = "cpu") -> dict[str, Tensor]:
    return {
        "image": torch.zeros(size, 3, side, side, device=device),
        "label": torch.zeros(size, dtype=torch.int64, device=device),
    }


def train_step(task: Any, optimizer: Any, batch: Any) -> None:
    """A training step as Lightning's: the last step's gradients are freed after the forward pass."""
    loss = task.loss(task(batch["image"]), batch["label"])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def report_peak(name: str, settings: Settings, threads: int, queue: Any) -> None:
    torch.set_num_threads(threads)
    for option, value in ((M_MMAP_THRESHOLD, 65536), (M_TRIM_THRESHOLD, 65536), (M_ARENA_MAX, 1)):
        ctypes.CDLL(None).mallopt(option, value)
    small = ClassificationTask(SwinTransformerV2(32, (2, 2), (1, 2), 8), 10).to(settings.device).train()
    train_step(small, torch.optim.AdamW(small.parameters()), build_batch(1, 64, settings.device))
    del small
    before = read_allocated_bytes(settings.device)
    task = build_task(name).to(settings.device).train()
    optimizer = torch.optim.AdamW(task.parameters())

    def run() -> None:
        train_step(task, optimizer, build_batch(settings.batch_size, settings.image_size, settings.device))

    run()
    run()
    queue.put(measure_peak(run, settings.device) - before)


def estimate_peak(name: str, settings: Settings) -> int:
    with torch.device("meta"):
        task = build_task(name)
    device = torch.device(settings.device).type
    return step_memory(task, lambda: build_batch(settings.batch_size, settings.image_size), device=device).peak


def main(settings: Settings) -> None:
    names = [f"{model}{suffix}" for model in settings.models for suffix in ("", ", activation checkpointing")]
    measured = measure_peaks(report_peak, names, settings)
    for name in names:
        estimated = estimate_peak(name, settings)
        figures = {"estimated": estimated, "measured": measured[name], "ratio": round(estimated / measured[name], 3)}
        print(json.dumps({"model": name, **figures, "target_met": abs(figures["ratio"] - 1) <= TARGET}), flush=True)


if __name__ == "__main__":
    main(parse_settings(Settings, __doc__))
