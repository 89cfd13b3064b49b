"""A step of SimMIM on Swin V2 beside transformers' Swinv2ForMaskedImageModeling of the same numbers, in one run.

    python -m benchmarks.simmim [--rounds 5] [--size 192] [--window 12] [--variant tiny|base] [--batch-size 8]

* training: forward, loss, backward and a step of AdamW, on the same images and masks. Both predict plain pixels, since
  transformers knows no normalized targets.
* parts: what share of such a step goes to drawing the batch's masks and to normalizing its targets. Target: 3 %.

Timed calls alternate, so that a machine whose speed drifts is fair to both; printed are medians, and the median of the
rounds' ratios (transformers to ours). Target: at least 1.1×.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.measuring import autocast, compare_steps, parse_settings
from swinv2_tasks.backbone import swinv2_base, swinv2_tiny
from swinv2_tasks.datamodules.datasets.simmim import random_mask
from swinv2_tasks.tasks import SimMIMTask
from swinv2_tasks.training.losses import masked_l1

MASK_PATCH, RATIO, WINDOW = 32, 0.6, 47
TARGET, PARTS_TARGET = 1.1, 0.03
FACTORIES = {"tiny": swinv2_tiny, "base": swinv2_base}


def build_transformers(task: SimMIMTask, size: int, window: int) -> nn.Module:
    from transformers import Swinv2Config, Swinv2ForMaskedImageModeling

    backbone = task.backbone
    config = Swinv2Config(
        image_size=size,
        window_size=window,
        embed_dim=backbone.embed_dim,
        depths=list(backbone.depths),
        num_heads=list(backbone.num_heads),
        drop_path_rate=backbone.drop_path_rate,
        encoder_stride=task.stride,
    )
    return Swinv2ForMaskedImageModeling(config)


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Args:
        rounds: timed steps of each model.
        size: sides of the images in pixels.
        window: in tokens.
        variant: size of Swin V2.
        batch_size: images of a batch.
        precision: of the operations.
        device: cpu or cuda.
        json: file to write the figures to as well.
    """

    rounds: int = 5
    size: int = 192
    window: int = 12
    variant: Literal["tiny", "base"] = "tiny"
    batch_size: int = 8
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    json: str | None = None


def build_training_step(model: nn.Module, loss: Callable[[], Tensor], settings: Settings) -> Callable[[], None]:
    optimizer = AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with autocast(settings):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_training(settings: Settings) -> dict[str, Any]:
    task = SimMIMTask(
        FACTORIES[settings.variant](window_size=settings.window, drop_path_rate=0.1), norm_target_patch_size=0
    )
    peer = build_transformers(task, settings.size, settings.window).to(settings.device).train()
    task.to(settings.device).train()
    images, masks = build_batch(settings)
    side = task.backbone.patch_size[0]
    tokens = masks.repeat_interleave(MASK_PATCH // side, 1).repeat_interleave(MASK_PATCH // side, 2).flatten(1)
    steps = {
        "ours": build_training_step(task, lambda: masked_l1(task(images, masks), images, masks), settings),
        "transformers": build_training_step(peer, lambda: peer(images, bool_masked_pos=tokens).loss, settings),
    }
    return compare_steps(steps, settings.rounds, settings.device)


def build_batch(settings: Settings) -> tuple[Tensor, Tensor]:
    images = torch.randn(settings.batch_size, 3, settings.size, settings.size, device=settings.device)
    return images, draw_masks(settings).to(settings.device)


def draw_masks(settings: Settings) -> Tensor:
    patches = (settings.size // MASK_PATCH,) * 2
    return torch.stack([random_mask(patches, RATIO) for _ in range(settings.batch_size)])


def measure_parts(settings: Settings) -> dict[str, float]:
    """Median seconds of drawing a batch's masks, and of normalizing its targets."""
    task = SimMIMTask(FACTORIES[settings.variant](window_size=settings.window), norm_target_patch_size=WINDOW)
    images, _ = build_batch(settings)
    return {
        "masks": median_seconds(lambda: draw_masks(settings), settings),
        "targets": median_seconds(lambda: task.targets(images), settings),
    }


def median_seconds(call: Callable[[], Any], settings: Settings) -> float:
    seconds = []
    for number in range(21):
        start = time.perf_counter()
        call()
        if settings.device.startswith("cuda"):
            torch.cuda.synchronize()
        if number:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main(settings: Settings) -> None:
    torch.manual_seed(0)
    figures = measure_training(settings)
    step = figures["seconds"]["ours"]
    print(f"training step: {step:.3f} s, transformers {figures['seconds']['transformers']:.3f} s; ratio "
          f"{figures['ratio']:.2f} ({figures['lowest']:.2f} to {figures['highest']:.2f}), target {TARGET}")  # fmt: skip
    figures["parts"] = measure_parts(settings)
    for name, seconds in figures["parts"].items():
        print(f"{name}: {1000 * seconds:.1f} ms, {seconds / step:.2%} of a step, target for both {PARTS_TARGET:.0%}")
    if settings.json:
        with open(settings.json, "w") as file:
            json.dump({**figures, "settings": asdict(settings), "torch": torch.__version__}, file, indent=2)


if __name__ == "__main__":
    main(parse_settings(Settings, __doc__))
