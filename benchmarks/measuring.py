"""Timing and memory of steps side by side, for the benchmarks."""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch


def autocast(settings: argparse.Namespace) -> torch.autocast:
    kind = torch.device(settings.device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=settings.precision == "bf16")


def compare(steps: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, Any]:
    """Seconds of each and the median of the rounds' ratios, after a call of each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name in steps if number % 2 else reversed(steps):
            start = time.perf_counter()
            steps[name]()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - start)
        print(f"  round {number} of {rounds}", file=sys.stderr, flush=True)
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": medians, "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def peak_bytes(step: Callable[[], None], device: str) -> int:
    """The most memory in use while a step runs."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # starts a new peak
    step()
    return resident("VmHWM")


def allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device.startswith("cuda") else resident("VmRSS")


def resident(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def memory(peak: Callable[..., None], names: Iterable[str], settings: argparse.Namespace) -> dict[str, int]:
    """Bytes that `peak` finds for each name, each in a process of its own."""
    context, found = multiprocessing.get_context("spawn"), {}
    for name in names:
        queue = context.Queue()
        process = context.Process(target=peak, args=(name, settings, torch.get_num_threads(), queue))
        process.start()
        found[name] = queue.get()
        process.join()
    return found
