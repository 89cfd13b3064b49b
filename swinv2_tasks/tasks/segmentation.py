"""Semantic segmentation, with UPerNet the paper's setting on ADE20K: https://arxiv.org/abs/2111.09883, section 4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.batches import SegmentationBatch, SegmentationPredictBatch
from swinv2_tasks.callbacks import ClassTable, SegmentationPredictions, SegmentedImages
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.segmentation import Confusion, pixels_of
from swinv2_tasks.heads.batch_norm import synchronize
from swinv2_tasks.heads.decoder import Decoder
from swinv2_tasks.heads.upernet import SegmentationHead, UPerNet, enlarge
from swinv2_tasks.inference.segmentation import Inference, Rescaled, segment, segment_probabilities
from swinv2_tasks.tasks.base import BaseTask
from swinv2_tasks.training.class_weights import ClassWeights
from swinv2_tasks.training.losses import PixelCrossEntropy
from swinv2_tasks.training.optim import LinearSchedule


class Evaluated(TypedDict):
    """What is predicted of the images of a batch."""

    labels: list[Tensor]
    """(H, W) class indices of each."""

    pixels: list[Tensor]
    """(3, classes) int64 of each: pixels that are labeled and predicted so, labeled, and predicted where anything is
    labeled."""


class SegmentationTask(BaseTask):
    """Assigns a class to each pixel; ``task(images)`` gives logits (B, num_classes, H, W).

    Args:
        backbone: turns images into feature maps.
        num_classes: number of classes, at least 2; the command line takes it from the data.
        decoder: what builds the decoder, UPerNet or one of your own.
        dropout: probability of dropping a channel before the classifiers, in training.
        auxiliary_weight: weight of the loss of the auxiliary head on the last map but one; 0 leaves the head out.
        auxiliary_channels: its channels.
        map_norms: whether each of the backbone's maps passes a LayerNorm of its own before the head; false for weights
            of transformers' UPerNet, which has none.
        class_weights: how much a pixel of each class counts in the loss: ``balanced``, by one over its number of pixels
            in the training label maps that are counted; ``effective_number``; or numbers, for some classes by name or
            id, or a list for all. None: all alike.
        ohem_threshold: only pixels whose own class gets a probability below this train; None: all do.
        ohem_min_pixels: of each image, at least this many of the hardest pixels do.
        inference: how images are segmented in evaluation and prediction.
        weights: checkpoint to start from (official, SimMIM, timm, Hugging Face, its UPerNet too, torchvision or this
            package's own).
        optimizer: builds the optimizer; its learning rate is the schedule's peak.
        schedule: learning rate over time and layers.
    """

    num_classes: int
    compare_class_names = True
    head_methods = ("with_auxiliary",)

    def __init__(
        self,
        backbone: SwinTransformerV2,
        num_classes: int,
        decoder: Decoder = UPerNet(),
        dropout: float = 0.1,
        auxiliary_weight: float = 0.4,
        auxiliary_channels: int = 256,
        map_norms: bool = True,
        class_weights: ClassWeights | None = None,
        ohem_threshold: float | None = None,
        ohem_min_pixels: int = 100_000,
        inference: Inference = Inference(),
        weights: str | None = None,
        optimizer: OptimizerCallable = AdamW,
        schedule: LinearSchedule = LinearSchedule(),
    ) -> None:
        if num_classes < 2:
            raise UserError(
                f"model.num_classes is {num_classes}; expected at least 2: with one class the loss is always 0. What "
                "surrounds it is a class as well"
            )
        if auxiliary_weight < 0:
            raise UserError(f"model.auxiliary_weight must not be negative, as {auxiliary_weight} is")
        loss = PixelCrossEntropy(None, ohem_threshold, ohem_min_pixels)
        auxiliary = auxiliary_channels if auxiliary_weight else 0
        head = SegmentationHead(backbone.channels, num_classes, decoder, dropout, auxiliary, map_norms)
        super().__init__(backbone, head, weights, optimizer, schedule)
        self.head: SegmentationHead
        stride = self.backbone.strides[0]
        if not isinstance(stride, int):
            raise UserError("segmentation works on images, this backbone on clips: give it a patch_size for images")
        self.stride = stride
        self.num_classes, self.inference = num_classes, inference
        self.loss, self.auxiliary_weight = loss, auxiliary_weight
        self.weigh_classes_in([loss], class_weights)
        self.val_confusion, self.test_confusion = Confusion(num_classes), Confusion(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images (B, 3, H, W) → logits (B, num_classes, H, W), whatever ``inference`` says."""
        return enlarge(self.small_logits(x), x.shape[2:])

    def small_logits(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) → logits (B, num_classes, h, w) at the stride of the largest map."""
        return self.head(self.backbone(x))

    def segment(
        self,
        image: Tensor,
        size: Sequence[int] | None = None,
        rescaled: Rescaled | None = None,
        dtype: torch.dtype = torch.int64,
    ) -> Tensor:
        """The highest-scoring class of each pixel, by ``inference``, without gradients.

        Args:
            image: (1, 3, H, W), normalized.
            size: height and width of the result; None: those of the image.
            rescaled: gives the image at other scales, as batches do; None: it is itself resized to them.
            dtype: of the result.

        Returns:
            Class indices of that size.
        """
        size = size or image.shape[2:]
        return segment(self.small_logits, image, size, self.inference, self.stride, rescaled, dtype)

    def probabilities(
        self, image: Tensor, size: Sequence[int] | None = None, rescaled: Rescaled | None = None
    ) -> Tensor:
        """The probability of each class at each pixel, (num_classes, H, W), on the CPU; otherwise as ``segment``."""
        size = size or image.shape[2:]
        return segment_probabilities(self.small_logits, image, size, self.inference, self.stride, rescaled)

    def setup(self, stage: str) -> None:
        """Takes over how much classes count; the head's batch norms then use the statistics of all processes."""
        super().setup(stage)
        if stage != "fit":
            return
        self.weigh_classes()
        if self.trainer.world_size > 1:
            synchronize(self.head, self.trainer.strategy.root_device)

    def compute_losses(self, batch: SegmentationBatch) -> dict[str, Tensor]:
        """Cross-entropy over pixels, plus the weighted one of the auxiliary head, where there is one."""
        logits, auxiliary_logits = self.head.with_auxiliary(self.backbone(batch["image"]))
        loss = self.loss(logits, batch["mask"])
        if auxiliary_logits is None:
            return {"loss": loss}
        auxiliary = self.loss(auxiliary_logits, batch["mask"])
        return {"loss": loss + self.auxiliary_weight * auxiliary, "auxiliary_loss": auxiliary}

    def validation_step(self, batch: SegmentationBatch, batch_idx: int, dataloader_idx: int = 0) -> Evaluated:
        """Adds the batch to the validation's confusion matrix, and returns what is predicted of it."""
        return self._evaluate(batch, self.of_loader(self.val_confusion, dataloader_idx))

    def test_step(self, batch: SegmentationBatch, batch_idx: int, dataloader_idx: int = 0) -> Evaluated:
        """Adds the batch to the test's confusion matrix, and returns what is predicted of it."""
        return self._evaluate(batch, self.of_loader(self.test_confusion, dataloader_idx))

    def _evaluate(self, batch: SegmentationBatch, confusion: Confusion) -> Evaluated:
        images = batch["image"].split(1)
        rescaled: Sequence[Rescaled | None] = batch.get("rescaled") or [None] * len(images)
        evaluated: Evaluated = {"labels": [], "pixels": []}
        for image, mask, at_scale in zip(images, batch["mask"], rescaled, strict=True):
            labels = self.segment(image, mask.shape, at_scale)
            confusion.update(labels, mask)
            evaluated["labels"].append(labels)
            evaluated["pixels"].append(pixels_of(confusion.latest))
        return evaluated

    def on_validation_epoch_end(self) -> None:
        """Logs mIoU and the pixel accuracies of the validation."""
        self.log_epoch_metrics(self.val_confusion, "val/")

    def on_test_epoch_end(self) -> None:
        """Logs mIoU and the pixel accuracies of the test."""
        self.log_epoch_metrics(self.test_confusion, "test/")

    def result_writers(self, run_folder: Path, output: str | None) -> list[Callback]:
        """What writes label maps and overlays, the table of classes and that of images."""
        return [SegmentationPredictions(output), ClassTable(run_folder), SegmentedImages(run_folder)]

    def predict_step(self, batch: SegmentationPredictBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """The class of each pixel of each image: {path: list or None, labels: list of (H, W) int32 on the CPU}."""
        images = batch["image"].split(1)
        rescaled: Sequence[Rescaled | None] = batch.get("rescaled") or [None] * len(images)
        labels = [
            self.segment(image, batch.get("size"), at_scale, torch.int32).cpu()
            for image, at_scale in zip(images, rescaled, strict=True)
        ]
        return {"path": batch.get("path"), "labels": labels}
