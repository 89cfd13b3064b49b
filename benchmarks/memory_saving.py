"""What memory-saving options cost and save: a training step of SwinV2-T with each of them beside the plain one.

    python -m benchmarks.memory_saving [--rounds 5] [--size 256] [--window 8] [--batch-size 8] [--json FILE]

A step is forward, cross-entropy over 1,000 classes, backward and AdamW, with drop path 0.2. Steps alternate in one run,
so that a machine whose speed drifts is fair to all; printed are medians, and the median, lowest and highest of the
rounds' ratios to the plain step; of processor time as well, which drifts less where others work beside. Target:
activation checkpointing at most 1.35× the plain step.

Peak memory is taken in a process of its own each: on CUDA the allocator's peak, on a CPU the highest resident set while
stepping less what was resident before the model was built. Part of it is the same for all: weights, gradients and
AdamW's two moments, 432 MiB.

--attention-chunk-size is the number of windows that the option "chunks" attends to at once, in the first two stages.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import AdamW

from benchmarks.measuring import measure_peak, measure_peaks, parse_settings, read_allocated_bytes
from swinv2_tasks.backbone import swinv2_tiny
from swinv2_tasks.heads.classification import ClassificationHead

CLASSES, DROP_PATH, TARGET = 1000, 0.2, 1.35
PLAIN = "plain"


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Args:
        rounds: timed steps of each option.
        size: sides of the images in pixels.
        window: in tokens.
        batch_size: images of a batch.
        attention_chunk_size: windows that are attended to at once, where attention is in chunks.
        device: cpu or cuda.
        json: file to write the figures to as well.
    """

    rounds: int = 5
    size: int = 256
    window: int = 8
    batch_size: int = 8
    attention_chunk_size: int = 16
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    json: str | None = None


def list_memory_options(settings: Settings) -> dict[str, dict[str, Any]]:
    """Arguments of the backbone for each memory-saving option, and whether it computes under autocast to bfloat16."""
    chunks = (settings.attention_chunk_size,) * 2 + (0, 0)
    return {
        PLAIN: {},
        "checkpoint all": {"checkpoint_stages": True},
        "checkpoint stages 0 and 1": {"checkpoint_stages": (0, 1)},
        "chunks in stages 0 and 1": {"attention_chunk_size": chunks},
        "autocast": {"autocast": True},
        "autocast, checkpoint all": {"autocast": True, "checkpoint_stages": True},
        "checkpoint all, chunks": {"checkpoint_stages": True, "attention_chunk_size": chunks},
    }


def build_training_step(name: str, settings: Settings) -> Callable[[], None]:
    arguments = list_memory_options(settings)[name]
    uses_autocast = arguments.pop("autocast", False)
    torch.manual_seed(0)
    device = torch.device(settings.device)
    backbone = swinv2_tiny(window_size=settings.window, drop_path_rate=DROP_PATH, **arguments)
    model = nn.Sequential(backbone, ClassificationHead(backbone.channels[-1], CLASSES)).to(device).train()
    optimizer = AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(settings.batch_size, 3, settings.size, settings.size, device=device)
    labels = torch.randint(CLASSES, (settings.batch_size,), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_autocast):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def time_steps(settings: Settings) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and processor seconds per step of each, one step each in turn, after one that does not count."""
    steps = {name: build_training_step(name, settings) for name in list_memory_options(settings)}
    wall: dict[str, list[float]] = {name: [] for name in steps}
    processor: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(settings.rounds + 1):
        for name in steps if number % 2 else reversed(steps):
            start = time.perf_counter(), time.process_time()
            steps[name]()
            if number:
                wall[name].append(time.perf_counter() - start[0])
                processor[name].append(time.process_time() - start[1])
        print(f"  round {number} of {settings.rounds}", file=sys.stderr, flush=True)
    return wall, processor


def compute_ratios(times: dict[str, list[float]], name: str) -> list[float]:
    """To the plain step, round by round."""
    return [own / plain for own, plain in zip(times[name], times[PLAIN], strict=True)]


def report_peak(name: str, settings: Settings, threads: int, queue: Any) -> None:
    torch.set_num_threads(threads)
    swinv2_tiny()  # brings in the libraries
    gc.collect()
    before = read_allocated_bytes(settings.device)
    step = build_training_step(name, settings)
    step()
    queue.put(measure_peak(step, settings.device) - before)


def main(settings: Settings) -> None:

    hardware = (
        torch.cuda.get_device_name() if settings.device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    )
    print(
        f"SwinV2-T/{settings.size}/w{settings.window}, batch {settings.batch_size}, "
        f"torch {torch.__version__}, {hardware}"
    )
    peaks = measure_peaks(report_peak, list_memory_options(settings), settings)
    wall, processor = time_steps(settings)
    print(f"\n| option | step | ratio, median of {settings.rounds} rounds | of processor time | peak memory | ratio |")
    print("|---" * 6 + "|")
    results = {}
    for name, times in wall.items():
        to_plain = (compute_ratios(wall, name), compute_ratios(processor, name))
        results[name] = {"wall": times, "processor": processor[name], "peak_bytes": peaks[name]}
        cells = [f"{statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in to_plain]
        print(
            f"| {name} | {statistics.median(times):.2f} s | {' | '.join(cells)} | {peaks[name] / 2**20:,.0f} MiB "
            f"| {peaks[name] / peaks[PLAIN]:.2f} |"
        )
    print(f"\ntarget: checkpointing all blocks at most {TARGET} times the plain step")
    if settings.json:
        with open(settings.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main(parse_settings(Settings, __doc__))
