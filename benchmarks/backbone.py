"""Speed and memory of this backbone beside timm's, torchvision's and transformers' Swin V2-T, in one run.

    python -m benchmarks.backbone [--device auto] [--batch-size 8] [--rounds 5] [--modes inference training] …

All four classify the same batch at 256×256 with window 8 and 1,000 classes, without drop path. Timed calls alternate
between them, so that a machine whose speed drifts is fair to all; printed are the median and the ratio to the
fastest peer, round by round. Training is forward, cross-entropy and backward. bfloat16 is autocast for all.
Memory is taken in a new process per model: on CUDA the allocator's peak, on a CPU the highest resident set
while stepping less what was resident before the model was built.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measuring import parse_settings, read_resident_bytes

PACKAGE = "swinv2_tasks"
SIZE, WINDOW, CLASSES = 256, 8, 1000


def build_swinv2_tasks() -> nn.Module:
    from swinv2_tasks.backbone import swinv2_tiny
    from swinv2_tasks.heads.classification import ClassificationHead

    backbone = swinv2_tiny(window_size=WINDOW)
    return nn.Sequential(backbone, ClassificationHead(backbone.channels[-1], CLASSES))


def build_timm() -> nn.Module:
    import timm

    return timm.create_model("swinv2_tiny_window8_256", drop_path_rate=0.0)


def build_torchvision() -> nn.Module:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    return SwinTransformer(
        patch_size=[4, 4],
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=[WINDOW, WINDOW],
        stochastic_depth_prob=0.0,
        num_classes=CLASSES,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )


def build_transformers() -> nn.Module:
    from transformers import Swinv2Config, Swinv2ForImageClassification

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = Swinv2Config(image_size=SIZE, window_size=WINDOW, num_labels=CLASSES, drop_path_rate=0.0)
            self.model = Swinv2ForImageClassification(config)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x).logits

    return Logits()


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    PACKAGE: build_swinv2_tasks,
    "timm": build_timm,
    "torchvision": build_torchvision,
    "transformers": build_transformers,
}


def make_step(name: str, mode: str, dtype: torch.dtype, compiled: bool, batch_size: int, device: torch.device):
    """A call that runs one inference or one forward and backward pass, to its end on the device."""
    torch.manual_seed(0)
    model = BUILDERS[name]().to(device).train(mode == "training")
    images = torch.randn(batch_size, 3, SIZE, SIZE, device=device)
    labels = torch.randint(CLASSES, (batch_size,), device=device)
    run = torch.compile(model) if compiled else model
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)

    def step() -> None:
        if mode == "training":
            model.zero_grad(set_to_none=True)
            with autocast:
                loss = F.cross_entropy(run(images), labels)
            loss.backward()
        else:
            with torch.inference_mode(), autocast:
                run(images)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def time_setting(names: list[str], rounds: int, **setting) -> dict[str, list[float]]:
    """Seconds per call of each model, one call each in turn, after two calls that do not count."""
    steps = {}
    for name in names:
        steps[name] = make_step(name, **setting)
        steps[name]()
        steps[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _report_peak(name: str, threads: int, setting: dict, queue) -> None:
    torch.set_num_threads(threads)
    device = setting["device"]
    if device.type == "cuda":
        step = make_step(name, **setting)
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        queue.put(torch.cuda.max_memory_allocated())
        return
    # Everything that is not the model is brought in first: libraries, thread pools, oneDNN.
    BUILDERS[name]()
    gc.collect()
    before = read_resident_bytes("VmRSS")
    step = make_step(name, **setting)
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # starts a new peak
    for _ in range(3):
        step()
    queue.put(read_resident_bytes("VmHWM") - before)


def measure_peak(name: str, **setting) -> int:
    """Bytes at the peak of a step, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_report_peak, args=(name, torch.get_num_threads(), setting, queue))
    process.start()
    result = queue.get()
    process.join()
    return result


Mode = Literal["inference", "training"]
Execution = Literal["eager", "compiled"]


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Args:
        device: cpu, cuda or auto.
        batch_size: images of a batch.
        rounds: timed calls of each model.
        modes: what a call does.
        dtypes: of the operations.
        compile: eagerly or by torch.compile.
        models: which take part.
        no_memory: leave the memory figures out.
        json: file to write the figures to as well.
    """

    device: str = "auto"
    batch_size: int = 8
    rounds: int = 5
    modes: list[Mode] = field(default_factory=lambda: ["inference", "training"])
    dtypes: list[Literal["float32", "bfloat16"]] = field(default_factory=lambda: ["float32", "bfloat16"])
    compile: list[Execution] = field(default_factory=lambda: ["eager", "compiled"])
    models: list[Literal["swinv2_tasks", "timm", "torchvision", "transformers"]] = field(
        default_factory=lambda: ["swinv2_tasks", "timm", "torchvision", "transformers"]
    )
    no_memory: bool = False
    json: str | None = None


def main(settings: Settings) -> None:
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if settings.device == "auto" else settings.device
    )
    print(f"SwinV2-T/{SIZE}/w{WINDOW}, batch {settings.batch_size}, {device}, {torch.get_num_threads()} threads,")
    print(f"torch {torch.__version__}; median of {settings.rounds} alternating rounds; ratios are to the best peer\n")
    print(
        f"{'mode':10} {'dtype':9} {'execution':9} {'model':13} {'img/s':>8} {'ratio':>6} {'peak MiB':>9} {'ratio':>6}"
    )
    records = []
    for execution in settings.compile:
        for mode in settings.modes:
            for dtype in settings.dtypes:
                setting = {
                    "mode": mode,
                    "dtype": getattr(torch, dtype),
                    "compiled": execution == "compiled",
                    "batch_size": settings.batch_size,
                    "device": device,
                }
                seconds = time_setting(settings.models, settings.rounds, **setting)
                # Compiling again in a new process would take minutes per model; the eager figures tell them apart.
                measures_memory = not settings.no_memory and execution == "eager"
                memory = {name: measure_peak(name, **setting) if measures_memory else None for name in settings.models}
                peers = [name for name in settings.models if name != PACKAGE] or settings.models
                fastest = min(peers, key=lambda name: statistics.median(seconds[name]))
                for name in settings.models:
                    median = statistics.median(seconds[name])
                    ratio = statistics.median(f / s for f, s in zip(seconds[fastest], seconds[name], strict=True))
                    peak = memory[name]
                    leanest = min(memory[p] for p in peers) if peak else None
                    record = {
                        "mode": mode,
                        "dtype": dtype,
                        "execution": execution,
                        "model": name,
                        "fastest_peer": fastest,
                    }
                    record |= {"images_per_second": settings.batch_size / median, "ratio": ratio, "peak_bytes": peak}
                    records.append(record)
                    memory_cells = f"{peak / 2**20:9.0f} {peak / leanest:6.2f}" if peak else f"{'–':>9} {'–':>6}"
                    speed = settings.batch_size / median
                    print(
                        f"{mode:10} {dtype:9} {execution:9} {name:13} {speed:8.2f} {ratio:6.2f} {memory_cells}",
                        flush=True,
                    )
                print()
    if settings.json:
        with open(settings.json, "w") as file:
            json.dump(records, file, indent=1)


if __name__ == "__main__":
    main(parse_settings(Settings, __doc__))
