"""What does a training step cost on two processes, beside one process's step with the same batch per process?

    python -m benchmarks.processes [--size tiny] [--batch-size 4] [--image-size 256] [--rounds 7]

A step is forward, backward, the gradients' norm, clipping and AdamW, in float32 on a CPU, with one thread per process.
Two processes that talk by gloo hold the same three trainings and take turns: one process alone (the other waits), both
in DDP, and both with full sharding. Printed are the medians of the rounds' ratios to the step alone; 1 would be
twice the images in the same time, 2 nothing gained. Then the memory that each process needs at most to build the model
and its optimizer, unsharded and sharded, measured in new processes.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from benchmarks.measuring import compare_steps, parse_settings, read_resident_bytes
from swinv2_tasks import backbone as backbones
from swinv2_tasks.backbone.swin_v2 import blocks_on_meta_device
from swinv2_tasks.heads.classification import ClassificationHead
from swinv2_tasks.training.sharding import shard, total_norm

TARGET = 1.9
CLASSES = 1000


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Args:
        size: tiny to giant.
        batch_size: images per process.
        image_size: sides of the images in pixels.
        rounds: timed steps of each layout.
    """

    size: str = "tiny"
    batch_size: int = 4
    image_size: int = 256
    rounds: int = 7


class Classifier(nn.Module):
    """A backbone and a head."""

    def __init__(self, size: str) -> None:
        super().__init__()
        self.backbone = getattr(backbones, f"swinv2_{size}")(window_size=8)
        self.head = ClassificationHead(self.backbone.channels[-1], CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


def build_sharded(size: str) -> Classifier:
    with blocks_on_meta_device():
        model = Classifier(size)
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    shard(model.backbone, model.head, mesh, torch.device("cpu"), seed=0)
    return model


def build_training_step(model: nn.Module, settings: Settings) -> Callable[[], None]:
    images = torch.randn(settings.batch_size, 3, settings.image_size, settings.image_size)
    labels = torch.randint(CLASSES, (settings.batch_size,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        nn.functional.cross_entropy(model(images), labels).backward()
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        norm = total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(parameters, 5.0, norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def join_group(rank: int, folder: str) -> None:
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # nothing writes into maps
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(Path(folder) / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)


def time_steps(rank: int, folder: str, settings: Settings) -> None:
    join_group(rank, folder)
    single_step = build_training_step(Classifier(settings.size), settings) if rank == 0 else None

    def step_alone() -> None:
        if single_step is not None:
            single_step()
        torch.distributed.barrier()

    both: dict[str, Callable[[], nn.Module]] = {
        "DDP": lambda: DistributedDataParallel(Classifier(settings.size)),
        "sharded": lambda: build_sharded(settings.size),
    }
    for name, build in both.items():
        comparison = compare_steps(
            {"one process": step_alone, name: build_training_step(build(), settings)}, settings.rounds, "cpu"
        )
        if rank == 0:
            seconds = "   ".join(f"{key} {value:.2f} s" for key, value in comparison["seconds"].items())
            spread = f"{comparison['lowest']:.2f} to {comparison['highest']:.2f}"
            print(
                f"{name}: {comparison['ratio']:.2f}× one process's step ({spread}, target {TARGET})   {seconds}",
                flush=True,
            )


def measure_memory(rank: int, folder: str, size: str, layout: str, peaks: Any) -> None:
    join_group(rank, folder)
    before = read_resident_bytes("VmRSS")
    model = build_sharded(size) if layout == "sharded" else Classifier(size)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    peaks[rank] = read_resident_bytes("VmHWM") - before


def main(settings: Settings) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(time_steps, (folder, settings), nprocs=2)
    for layout in ("unsharded", "sharded"):
        with tempfile.TemporaryDirectory() as folder, torch.multiprocessing.Manager() as manager:
            peaks = manager.dict()
            torch.multiprocessing.spawn(measure_memory, (folder, settings.size, layout, peaks), nprocs=2)
            print(f"memory, {layout}: {statistics.mean(peaks.values()) / 2**20:.0f} MiB per process")


if __name__ == "__main__":
    main(parse_settings(Settings, __doc__))
