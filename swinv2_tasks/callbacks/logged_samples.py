"""Samples of each validation with what is predicted of them, as images for TensorBoard and other loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from swinv2_tasks.callbacks.batch_pictures import SamplePicture, arrange, draw_samples
from swinv2_tasks.training.chosen_loggers import log_image

LEAST_SCORE = 0.3
"""From which on detections are drawn."""


class LoggedSamples(Callback):
    """Gives the first samples of a validation to all loggers that take images: labels, and after → what is predicted.

    Of masked image modeling the images, their masks and the reconstructions. Without a datamodule that states `mean`
    and `std`, and of batches that are none of `batches.py`, nothing is logged.

    Args:
        samples: how many, at most; 0: none.
    """

    def __init__(self, samples: int = 4) -> None:
        self.samples = samples

    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Logs the first batch's samples, in the first process of a training."""
        is_first = batch_idx == 0 and dataloader_idx == 0 and not trainer.sanity_checking
        if not (is_first and self.samples and trainer.is_global_zero and trainer.state.fn == "fit"):
            return
        mean, std = (getattr(trainer.datamodule, name, None) for name in ("mean", "std"))
        # Where weights are sharded, all processes would have to take part.
        is_sharded = trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy)
        if mean is None or std is None or not isinstance(batch, Mapping) or is_sharded:
            return
        names = [str(name) for name in getattr(pl_module, "class_names", None) or ()]
        pairs = predict_first(pl_module, batch, self.samples)
        drawn = [draw_samples(own, mean, std, names, self.samples) for own in pairs]
        if drawn and drawn[0]:
            image = arrange([_join(*sample) for sample in zip(*drawn, strict=True)])
            for logger in trainer.loggers:
                log_image(logger, "val/samples", image, trainer.global_step)


def _join(labeled: SamplePicture, predicted: SamplePicture) -> SamplePicture:
    """A sample's two pictures as one, in which what both show is there once."""
    known = [image.tobytes() for image in labeled.images]
    images = [*labeled.images, *(image for image in predicted.images if image.tobytes() not in known)]
    lines = [*labeled.lines, *(f"→ {line}" for line in predicted.lines)]
    return SamplePicture(images, lines, labeled.legend)


@torch.no_grad()
def predict_first(task: Any, batch: Mapping[str, Any], most: int) -> list[dict[str, Any]]:
    """The first samples of an evaluation batch twice: as annotated, and with what is predicted in the labels' place.

    Args:
        task: in eval mode; of another than this package's nothing is known.
        batch: of an evaluation, on the task's device.
        most: samples.
    """
    if not any(hasattr(task, method) for method in ("probabilities_of", "segment", "detect", "reconstruct")):
        return []
    if "images" in batch and "targets" in batch:
        return _detect_first(task, batch, most)
    if "clip" in batch:
        clips = batch["clip"][:most]
        probabilities = task.probabilities_of(task(clips.flatten(0, 1))).unflatten(0, clips.shape[:2]).mean(1)
        return [{"clip": clips, "label": label} for label in (batch["label"][:most], probabilities)]
    images = batch["image"][:most]
    mask = batch.get("mask")
    if mask is None:
        labels = batch["label"][:most]
        return [{"image": images, "label": label} for label in (labels, task.probabilities_of(task(images)))]
    if mask.dtype == torch.bool:
        reconstructed, _ = task.reconstruct(images, mask[:most])
        return [{"image": image, "mask": mask[:most]} for image in (images, reconstructed)]
    predicted = torch.stack([task.segment(image[None], mask.shape[1:]) for image in images])
    return [{"image": images, "mask": labels} for labels in (mask[:most], predicted)]


def _detect_first(task: Any, batch: Mapping[str, Any], most: int) -> list[dict[str, Any]]:
    """Boxes of both in pixels of the images, whatever their files have."""
    images: Sequence[Tensor] = batch["images"][:most]
    sizes = batch.get("sizes") or [tuple(image.shape[1:]) for image in images]
    targets, results = [], []
    for image, target, (height, width), detected in zip(
        images, batch["targets"], sizes, task.detect(images), strict=False
    ):
        scale = torch.tensor([image.shape[2] / width, image.shape[1] / height] * 2, device=target["boxes"].device)
        labels = {name: target[name] for name in ("labels", "iscrowd") if name in target}
        targets.append({"boxes": target["boxes"] * scale, **labels})
        chosen = detected.scores >= LEAST_SCORE
        results.append({"boxes": detected.boxes[chosen], "labels": detected.labels[chosen]})
    return [{"images": images, "targets": boxes} for boxes in (targets, results)]
