"""Speed and memory of UPerNet on Swin V2-T beside transformers' UPerNet on the same backbone, in one run.

    python -m benchmarks.segmentation [--rounds 5] [--size 512] [--window 8] [--batch-size 2] [--parts …] [--json FILE]

Both have 512 channels, 150 classes, the auxiliary FCN and drop path 0.3, and see the same images and labels, of which
5 % are ignored. Ours has 2,880 parameters more, the norms of the four maps, which transformers leaves out. Parts:

* training: forward, both losses, backward and a step of AdamW, with batches of two images (UPerNet's batch norm needs
  them), and its peak memory in a process of its own: on CUDA the allocator's peak, on a CPU the highest resident set
  less what was resident before the model was built.
* inference: an image to its class per pixel at full size. Theirs always computes the auxiliary head as well.
* head: UPerNet alone on given maps, forward and backward, and in inference.
* metric: the share of a validation step at 683×512 pixels that goes to the confusion matrix. Target: at most 5 %.
* large: memory above that before of segmenting an image of 4096×4096 pixels, as a whole and by windows of 512 with a
  stride of 340, by a backbone of 16 channels in a process of its own.

Timed calls alternate, so that a machine whose speed drifts is fair to both; printed are medians, and the median of the
rounds' ratios (transformers to ours). Target: at least 1.1× in training and inference.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.measuring import (
    autocast,
    compare_steps,
    measure_peak,
    measure_peaks,
    parse_settings,
    read_allocated_bytes,
)
from swinv2_tasks.backbone import SwinTransformerV2, swinv2_tiny
from swinv2_tasks.batches import IGNORED
from swinv2_tasks.evaluation.segmentation import Confusion
from swinv2_tasks.heads import UPerNet
from swinv2_tasks.inference.segmentation import Inference
from swinv2_tasks.tasks import SegmentationTask

CLASSES, CHANNELS, DROP_PATH, AUXILIARY_WEIGHT = 150, 512, 0.3, 0.4
TARGET, METRIC_TARGET = 1.1, 0.05
Part = Literal["training", "inference", "head", "metric", "large"]
LARGE = 4096


def build_task(size: int, window: int) -> SegmentationTask:
    backbone = swinv2_tiny(window_size=window, drop_path_rate=DROP_PATH)
    return SegmentationTask(backbone, CLASSES, UPerNet(CHANNELS), auxiliary_weight=AUXILIARY_WEIGHT)


def build_transformers(size: int, window: int) -> nn.Module:
    from transformers import Swinv2Config, UperNetConfig, UperNetForSemanticSegmentation

    backbone = Swinv2Config(
        image_size=size,
        window_size=window,
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        drop_path_rate=DROP_PATH,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = UperNetConfig(
        backbone_config=backbone,
        hidden_size=CHANNELS,
        num_labels=CLASSES,
        use_auxiliary_head=True,
        auxiliary_loss_weight=AUXILIARY_WEIGHT,
        loss_ignore_index=IGNORED,
    )
    return UperNetForSemanticSegmentation(config)


def compute_task_loss(task: SegmentationTask, images: Tensor, labels: Tensor) -> Tensor:
    logits, auxiliary = task.head.with_auxiliary(task.backbone(images))
    assert auxiliary is not None
    return task.loss(logits, labels) + AUXILIARY_WEIGHT * task.loss(auxiliary, labels)


def compute_transformers_loss(model: Any, images: Tensor, labels: Tensor) -> Tensor:
    return model(pixel_values=images, labels=labels).loss


MODELS: dict[str, tuple[Callable[..., Any], Callable[..., Tensor]]] = {
    "ours": (build_task, compute_task_loss),
    "transformers": (build_transformers, compute_transformers_loss),
}


def build_batch(size: int, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(number, 3, size, size, generator=generator)
    labels = torch.randint(CLASSES, (number, size, size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.05] = IGNORED
    return images.to(device), labels.to(device)


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Args:
        rounds: timed calls of each model.
        size: sides of the images in pixels.
        window: in tokens.
        batch_size: images of a batch.
        device: cpu or cuda.
        precision: of the operations.
        parts: what is measured.
        json: file to write the figures to as well.
    """

    rounds: int = 5
    size: int = 512
    window: int = 8
    batch_size: int = 2
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    precision: Literal["32", "bf16"] = "32"
    parts: list[Part] = field(default_factory=lambda: [*get_args(Part)])
    json: str | None = None


def build_training_step(name: str, settings: Settings) -> Callable[[], None]:
    build, compute_loss = MODELS[name]
    torch.manual_seed(0)
    device = torch.device(settings.device)
    model = build(settings.size, settings.window).to(device).train()
    optimizer = AdamW(model.parameters(), lr=6e-5, weight_decay=0.01)
    images, labels = build_batch(settings.size, settings.batch_size, device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(settings):
            loss = compute_loss(model, images, labels)
        loss.backward()
        optimizer.step()

    return step


def build_inference_step(name: str, settings: Settings) -> Callable[[], None]:
    device = torch.device(settings.device)
    model = MODELS[name][0](settings.size, settings.window).to(device).eval()
    image = build_batch(settings.size, 1, device)[0]

    @torch.inference_mode()
    def step() -> None:
        with autocast(settings):
            _ = model.segment(image) if name == "ours" else model(pixel_values=image).logits.argmax(1)

    return step


def build_head_step(name: str, settings: Settings, training: bool) -> Callable[[], None]:
    device = torch.device(settings.device)
    model = MODELS[name][0](settings.size, settings.window).to(device).train(training)
    head = model.head.decoder if name == "ours" else model.decode_head
    number = settings.batch_size if training else 1
    sides = [settings.size // stride for stride in (4, 8, 16, 32)]
    maps = [
        torch.randn(number, 96 * 2**k, side, side, device=device, requires_grad=training)
        for k, side in enumerate(sides)
    ]

    def step() -> None:
        with torch.set_grad_enabled(training), autocast(settings):
            logits = head(maps)
        if training:
            logits.float().square().mean().backward()

    return step


def measure_metric(settings: Settings) -> dict[str, float]:
    device = torch.device(settings.device)
    task = build_task(settings.size, settings.window).to(device).eval()
    confusion = Confusion(CLASSES).to(device)
    image, mask = torch.randn(1, 3, 512, 683, device=device), torch.randint(CLASSES, (512, 683), device=device)
    seconds: dict[str, list[float]] = {"segment": [], "update": []}
    for _ in range(settings.rounds + 1):
        with torch.inference_mode(), autocast(settings):
            start = time.perf_counter()
            prediction = task.segment(image, mask.shape)
            if device.type == "cuda":
                torch.cuda.synchronize()
            middle = time.perf_counter()
            confusion.update(prediction, mask)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds["segment"].append(middle - start)
            seconds["update"].append(time.perf_counter() - middle)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {**medians, "share": medians["update"] / sum(medians.values())}


def build_large_step(mode: Any, settings: Settings) -> Callable[[], None]:
    """Segments a large image; its memory is the image's already."""
    backbone = SwinTransformerV2(16, (2, 2, 2, 2), (1, 2, 4, 8), settings.window)
    inference = Inference(mode, crop_size=512, stride=340)
    task = SegmentationTask(backbone, CLASSES, UPerNet(16), inference=inference).to(settings.device).eval()
    image = torch.zeros(1, 3, LARGE, LARGE, device=settings.device)

    @torch.inference_mode()
    def step() -> None:
        with autocast(settings):
            task.segment(image)

    return step


def report_training_peak(name: str, settings: Settings, threads: int, queue: Any) -> None:
    torch.set_num_threads(threads)
    MODELS[name][0](64, settings.window)  # brings in the libraries
    gc.collect()
    before = read_allocated_bytes(settings.device)
    step = build_training_step(name, settings)
    step()
    queue.put(measure_peak(step, settings.device) - before)


def report_large_peak(mode: str, settings: Settings, threads: int, queue: Any) -> None:
    torch.set_num_threads(threads)
    step = build_large_step(mode, settings)
    gc.collect()
    before = read_allocated_bytes(settings.device)
    queue.put(measure_peak(step, settings.device) - before)


def main(settings: Settings) -> None:

    hardware = (
        torch.cuda.get_device_name() if settings.device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    )
    sizes = {
        name: sum(p.numel() for p in build(settings.size, settings.window).parameters())
        for name, (build, _) in MODELS.items()
    }
    size = f"{settings.size}×{settings.size}"
    print(f"torch {torch.__version__}, {hardware}, {size}, window {settings.window}, precision {settings.precision}")
    print(f"parameters: {sizes}")
    results: dict[str, Any] = {"parameters": sizes}
    comparisons: dict[str, Callable[[str], Callable[[], None]]] = {}
    if "training" in settings.parts:
        comparisons["training step"] = lambda name: build_training_step(name, settings)
    if "inference" in settings.parts:
        comparisons["inference"] = lambda name: build_inference_step(name, settings)
    if "head" in settings.parts:
        comparisons["head, training"] = lambda name: build_head_step(name, settings, True)
        comparisons["head, inference"] = lambda name: build_head_step(name, settings, False)
    for title, build_step in comparisons.items():
        figures = results[title] = compare_steps(
            {name: build_step(name) for name in MODELS}, settings.rounds, settings.device
        )
        own, peer = figures["seconds"].values()
        print(
            f"{title:16} ours {own:7.3f} s  transformers {peer:7.3f} s  ratio {figures['ratio']:.2f} "
            f"({figures['lowest']:.2f} to {figures['highest']:.2f})"
            + ("" if "head" in title else f", target {TARGET}"),
            flush=True,
        )
        gc.collect()
    if "training" in settings.parts:
        results["memory"] = measure_peaks(report_training_peak, MODELS, settings)
        own, peer = (value / 2**20 for value in results["memory"].values())
        print(f"{'training memory':16} ours {own:.0f} MiB  transformers {peer:.0f} MiB  ratio {own / peer:.2f}")
    if "metric" in settings.parts:
        shares = results["metric"] = measure_metric(settings)
        print(
            f"{'metric':16} segment {shares['segment']:.3f} s  confusion matrix "
            f"{1000 * shares['update']:.1f} ms  share {shares['share']:.2%}, target {METRIC_TARGET:.0%}"
        )
    if "large" in settings.parts:
        results["large"] = measure_peaks(report_large_peak, ("whole", "slide"), settings)
        whole, slide = (value / 2**20 for value in results["large"].values())
        print(f"{f'{LARGE}×{LARGE}':16} whole {whole:.0f} MiB  slide {slide:.0f} MiB")
    if settings.json:
        with open(settings.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main(parse_settings(Settings, __doc__))
