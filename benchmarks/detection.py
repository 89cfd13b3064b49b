"""Speed of detection: loading, training and inference beside torchvision's Mask R-CNN, and COCO's evaluation.

    python -m benchmarks.detection [--root data/coco] [--rounds 5] [--batch-size 2] [--workers 2] [--parts …]

Parts:

* loader: images per second of the training loader alone, at configs/coco.yaml's sizes, from images and masks of the
  dataset given; the first batches, while the workers start, are not counted.
* training: forward, loss, backward and a step of AdamW of SwinV2-T with Mask R-CNN (window 8), on batches of that
  loader, beside torchvision's Mask R-CNN (ResNet-50, all layers trained) on the same ones. Both are printed in images
  per second beside the loader's, as is what the loader could feed. Both predict boxes and masks of 80 classes.
* inference: an image of the evaluation size to its detections, masks at full size.
* evaluation: COCO's numbers for boxes of 5,000 images with 36,000 objects and 100 detections each, synthetic, by both
  backends; target of faster_coco_eval: at most 10 s. Memory is what the process has grown by.

Timed calls alternate, so that a machine whose speed drifts is fair to both; printed are medians, and the median of the
rounds' ratios (torchvision to ours).
"""

from __future__ import annotations

import gc
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW
from torchvision.models.detection import maskrcnn_resnet50_fpn

from benchmarks.measuring import autocast, compare_steps, measure_peak, parse_settings, read_resident_bytes
from swinv2_tasks.backbone import swinv2_tiny
from swinv2_tasks.datamodules import CocoDataModule, MultiScaleAugmentation
from swinv2_tasks.evaluation.coco import Backend, CocoMetric
from swinv2_tasks.heads import MaskRCNNConfig
from swinv2_tasks.inference.detection import pad_images
from swinv2_tasks.tasks import DetectionTask

Part = Literal["loader", "training", "inference", "evaluation"]
IMAGES, OBJECTS, DETECTIONS, CATEGORIES = 5000, 36_000, 100, 80
TARGET_SECONDS = 10


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Args:
        root: dataset folder in COCO's layout.
        rounds: timed calls of each model.
        batch_size: images of a batch.
        workers: DataLoader workers.
        loader_batches: batches that the loader alone is timed over.
        device: cpu or cuda.
        precision: of the operations.
        parts: what is measured.
        json: file to write the figures to as well.
    """

    root: str = "data/sample/coco"
    rounds: int = 5
    batch_size: int = 2
    workers: int = 2
    loader_batches: int = 100
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    precision: Literal["32", "bf16"] = "32"
    parts: list[Part] = field(default_factory=lambda: [*get_args(Part)])
    json: str | None = None


def build_data(settings: Settings) -> CocoDataModule:
    augmentation = MultiScaleAugmentation(crop=0.5)
    data = CocoDataModule(
        settings.root, batch_size=settings.batch_size, num_workers=settings.workers, augmentation=augmentation
    )
    data.setup("fit")
    return data


def measure_loader(settings: Settings) -> float:
    """Images per second of the training loader, over several epochs where the dataset is small."""
    data = build_data(settings)
    loader = data.train_dataloader()
    timed_batches, batches, start = settings.loader_batches, 0, 0.0
    for epoch in itertools.count():
        loader.batch_sampler.set_epoch(epoch)
        for _ in loader:
            batches += 1
            if batches == 2 * settings.workers + 1:
                start = time.perf_counter()
            if batches == timed_batches + 2 * settings.workers + 1:
                return timed_batches * settings.batch_size / (time.perf_counter() - start)
    raise AssertionError


def build_task(classes: int) -> DetectionTask:
    return DetectionTask(swinv2_tiny(window_size=8, drop_path_rate=0.2), MaskRCNNConfig(), classes)


def build_torchvision(classes: int) -> nn.Module:
    """torchvision's, which takes the images unchanged: no resizing, nor the normalization that ours come with."""
    model = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=classes + 1, trainable_backbone_layers=5
    )
    model.transform.image_mean, model.transform.image_std = [0.0] * 3, [1.0] * 3
    model.transform.resize = lambda image, target: (image, target)
    return model


def move_batch(device: str, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    targets = [{k: v.to(device) if hasattr(v, "to") else v for k, v in t.items()} for t in batch["targets"]]
    return {"images": [image.to(device) for image in batch["images"]], "targets": targets}


def build_training_steps(settings: Settings) -> dict[str, Callable[[], None]]:
    data = build_data(settings)
    first_batches = itertools.islice(iter(data.train_dataloader()), settings.rounds + 1)
    batches = [move_batch(settings.device, batch) for batch in first_batches]
    task, peer = (build(data.num_classes).to(settings.device).train() for build in (build_task, build_torchvision))

    def compute_task_losses(batch: Any) -> Any:
        images = pad_images(batch["images"], 32)
        return task.head.losses(task.backbone(images.tensors), images, batch["targets"])

    def compute_peer_losses(batch: Any) -> Any:
        targets = [{**target, "labels": target["labels"] + 1} for target in batch["targets"]]
        return peer(batch["images"], targets)

    def build_step(model: nn.Module, compute_losses: Callable[[Any], Any]) -> Callable[[], None]:
        optimizer, batch_cycle = AdamW(model.parameters(), lr=1e-5, weight_decay=0.05), itertools.cycle(batches)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast(settings):
                losses = compute_losses(next(batch_cycle))
            torch.stack([*losses.values()]).sum().backward()
            optimizer.step()

        return step

    return {"ours": build_step(task, compute_task_losses), "torchvision": build_step(peer, compute_peer_losses)}


def build_inference_steps(settings: Settings) -> dict[str, Callable[[], None]]:
    data = build_data(settings)
    image = next(iter(data.val_dataloader()))["images"][0].to(settings.device)
    task, peer = (build(data.num_classes).to(settings.device).eval() for build in (build_task, build_torchvision))

    def build_step(model: nn.Module) -> Callable[[], None]:
        @torch.inference_mode()
        def step() -> None:
            with autocast(settings):
                model([image])

        return step

    return {"ours": build_step(task), "torchvision": build_step(peer)}


def build_synthetic_metric(seed: int = 0) -> CocoMetric:
    """A metric that has taken in synthetic annotations and detections, of which some lie near objects."""
    rng = np.random.default_rng(seed)
    metric = CocoMetric(masks=False)
    metric.classes = (list(range(1, CATEGORIES + 1)), [str(k) for k in range(1, CATEGORIES + 1)])
    object_counts = rng.multinomial(OBJECTS, [1 / IMAGES] * IMAGES)
    for image_id, object_count in enumerate(object_counts, start=1):
        boxes = rng.random((object_count, 4)) * [500, 350, 130, 120] + [0, 0, 10, 10]
        labels = rng.integers(1, CATEGORIES + 1, object_count)
        annotations = [
            {"image_id": image_id, "category_id": int(label), "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for box, label in zip(boxes.tolist(), labels, strict=True)
        ]
        nearby_objects = rng.integers(0, max(1, object_count), DETECTIONS)
        predicted_boxes = rng.random((DETECTIONS, 4)) * [500, 350, 130, 120] + [0, 0, 10, 10]
        predicted_labels = rng.integers(1, CATEGORIES + 1, DETECTIONS)
        if object_count:
            predicted_boxes[::3] = boxes[nearby_objects[::3]] + rng.normal(0, 8, predicted_boxes[::3].shape)
            predicted_labels[::3] = labels[nearby_objects[::3]]
        scores = np.sort(rng.random(DETECTIONS))[::-1]
        results = [
            {"image_id": image_id, "category_id": int(label), "bbox": box, "score": score}
            for box, label, score in zip(
                np.maximum(predicted_boxes, 1).tolist(), predicted_labels, scores.tolist(), strict=True
            )
        ]
        metric.update(
            image_id, results, {"image": {"id": image_id, "height": 480, "width": 640}, "annotations": annotations}
        )
    return metric


def measure_evaluation(backend: Backend) -> dict[str, float]:
    metric = build_synthetic_metric()
    metric.backend = backend
    gc.collect()
    figures: dict[str, float] = {}

    def compute() -> None:
        start = time.perf_counter()
        values = metric.compute()
        figures.update(seconds=time.perf_counter() - start, box_ap=float(values["box_ap"]))

    resident_before = read_resident_bytes("VmRSS")
    growth = measure_peak(compute, "cpu") - resident_before
    return {**figures, "MiB": growth / 2**20}


def main(settings: Settings) -> None:
    torch.manual_seed(0)

    hardware = (
        torch.cuda.get_device_name() if settings.device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    )
    print(f"torch {torch.__version__}, {hardware}, precision {settings.precision}, {settings.root}")
    results: dict[str, Any] = {}
    if "loader" in settings.parts:
        results["loader"] = measure_loader(settings)
        print(f"loader alone       {results['loader']:8.2f} images/s with {settings.workers} workers", flush=True)
    for part, build_steps in (("training", build_training_steps), ("inference", build_inference_steps)):
        if part not in settings.parts:
            continue
        figures = results[part] = compare_steps(build_steps(settings), settings.rounds, settings.device)
        images = settings.batch_size if part == "training" else 1
        speed, peer_speed = (images / seconds for seconds in figures["seconds"].values())
        print(
            f"{part:18} {speed:8.2f} images/s  torchvision (ResNet-50) {peer_speed:8.2f}  ratio {figures['ratio']:.2f} "
            f"({figures['lowest']:.2f} to {figures['highest']:.2f})",
            flush=True,
        )
        if part == "training" and "loader" in results:
            print(f"{'loader / training':18} {results['loader'] / speed:8.1f}")
        gc.collect()
    if "evaluation" in settings.parts:
        backends: tuple[Backend, ...] = ("faster_coco_eval", "pycocotools")
        for backend in backends:
            figures = results[backend] = measure_evaluation(backend)
            target = f", target {TARGET_SECONDS} s" if backend == "faster_coco_eval" else ""
            print(
                f"{backend:18} {figures['seconds']:8.1f} s for {IMAGES * DETECTIONS:,} boxes in {IMAGES:,} images, "
                f"{figures['MiB']:.0f} MiB, AP {figures['box_ap']:.4f}{target}",
                flush=True,
            )
    if settings.json:
        with open(settings.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main(parse_settings(Settings, __doc__))
