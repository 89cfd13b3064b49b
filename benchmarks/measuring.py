"""Timing and memory of steps side by side, for the benchmarks."""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar, get_type_hints

import jsonargparse
import torch

from swinv2_tasks.cli.arguments import is_list, merge_values, new_option, parameter_name, split_options

Settings = TypeVar("Settings")


class HelpFormatter(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
    """Leaves the lines of a benchmark's description unchanged."""


def parse_settings(cls: type[Settings], description: str | None, arguments: Sequence[str] | None = None) -> Settings:
    """A benchmark's settings, as the command line states them.

    Args:
        cls: dataclass of the settings, which its docstring describes.
        description: what --help says first.
        arguments: names may have hyphens, lists are written as ``--parts training inference``, and an option without a
            value is true; None: those of the process.
    """
    parser = jsonargparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    names = parser.add_class_arguments(cls, as_group=False)
    hints = get_type_hints(cls)
    options = [
        new_option(option.name, "true") if not option.values and hints.get(parameter_name(option)) is bool else option
        for option in split_options(sys.argv[1:] if arguments is None else arguments)
    ]
    lists = [name for name in names if is_list(hints[name])]
    return cls(**parser.parse_args(merge_values(options, lists)).as_dict())


class ComputeSettings(Protocol):
    """Settings of a benchmark that say where and how it computes."""

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...


def autocast(settings: ComputeSettings) -> torch.autocast:
    device_type = torch.device(settings.device).type
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=settings.precision == "bf16")


def compare_steps(steps: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, Any]:
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
    ratios = [peer / own for own, peer in zip(*seconds.values(), strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": medians, "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def measure_peak(step: Callable[[], None], device: str) -> int:
    """The most memory in use while a step runs."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # starts a new peak
    step()
    return read_resident_bytes("VmHWM")


def read_allocated_bytes(device: str) -> int:
    return torch.cuda.memory_allocated() if device.startswith("cuda") else read_resident_bytes("VmRSS")


def read_resident_bytes(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def measure_peaks(peak: Callable[..., None], names: Iterable[str], settings: Any) -> dict[str, int]:
    """Bytes that `peak` finds for each name, each in a process of its own."""
    context, peaks = multiprocessing.get_context("spawn"), {}
    for name in names:
        queue = context.Queue()
        process = context.Process(target=peak, args=(name, settings, torch.get_num_threads(), queue))
        process.start()
        peaks[name] = queue.get()
        process.join()
    return peaks
