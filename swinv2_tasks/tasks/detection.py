"""Objects and their pixels, the paper's setting on COCO: https://arxiv.org/abs/2111.09883, section 4."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.batches import DetectionBatch, DetectionEvalBatch, DetectionPredictBatch, task_data
from swinv2_tasks.callbacks import DetectionPredictions, DetectionScores
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.coco import CocoMetric, as_annotations, as_results
from swinv2_tasks.heads.batch_norm import synchronize
from swinv2_tasks.heads.class_losses import ClassLoss, CrossEntropy
from swinv2_tasks.heads.mask_rcnn import DetectionHead, DetectorConfig
from swinv2_tasks.inference.detection import DetectionInference, Detections, detect, pad_images, paste_masks
from swinv2_tasks.inference.segmentation import Rescaled
from swinv2_tasks.tasks.base import BaseTask
from swinv2_tasks.training.class_weights import ClassWeights
from swinv2_tasks.training.lightning_internals import attached_trainer
from swinv2_tasks.training.optim import StepSchedule
from swinv2_tasks.weights.finite import describe_nonfinite, find_nonfinite


class DetectionTask(BaseTask):
    """Detects objects; ``task(images)`` gives torchvision's list of dicts: boxes, labels, scores, masks.

    Args:
        backbone: turns images into feature maps.
        detector: settings of the head: ``MaskRCNNConfig``, ``CascadeMaskRCNNConfig`` or ``HTCConfig``.
        num_classes: number of classes; the command line takes it from the data.
        inference: how objects are detected in evaluation and prediction.
        backend: what computes COCO's numbers; faster_coco_eval needs the extra ``fast``.
        weights: checkpoint to start from (official, SimMIM, timm, Hugging Face, torchvision or this package's own).
        optimizer: builds the optimizer; its learning rate is the schedule's peak.
        schedule: learning rate over time and layers.
        class_loss: what the box branches learn classes by, ``CrossEntropy`` or ``FocalLoss``.
        class_weights: how much each class counts in it: ``balanced``, by one over its number of training objects;
            ``effective_number``; or numbers, for some classes by name or id, or a list for all. None: all alike. The
            background has 1.
    """

    num_classes: int
    compare_class_names = True
    ids_are_the_datasets = True
    has_background = True
    head_methods = ("losses",)

    def __init__(
        self,
        backbone: SwinTransformerV2,
        detector: DetectorConfig,
        num_classes: int,
        inference: DetectionInference = DetectionInference(),
        backend: Literal["pycocotools", "faster_coco_eval"] = "pycocotools",
        weights: str | None = None,
        optimizer: OptimizerCallable = AdamW,
        schedule: StepSchedule = StepSchedule(),
        class_loss: ClassLoss = CrossEntropy(),
        class_weights: ClassWeights | None = None,
    ) -> None:
        strides = [stride for stride in backbone.strides if isinstance(stride, int)]
        if len(strides) < len(backbone.strides):
            raise UserError("detection works on images, this backbone on clips: give it a patch_size for images")
        head = detector.build(backbone.channels, strides, num_classes)
        super().__init__(backbone, head, weights, optimizer, schedule)
        self.head: DetectionHead
        self.num_classes, self.inference = num_classes, inference
        self.head.class_loss = copy.deepcopy(class_loss)  # or tasks would share the default's
        self.weigh_classes_in([self.head.class_loss], class_weights)
        self.multiple = max(32, strides[-1])
        self.val_scores, self.test_scores = (CocoMetric(detector.masks, backend) for _ in range(2))

    def forward(self, x: Tensor | Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Normalized images (B, 3, H, W), or (3, H, W) each → what is in them, highest-scoring first, by ``inference``.

        Returns:
            For each image {boxes (n, 4) left, top, right, bottom in pixels; labels (n,) int64 class indices from 0;
            scores (n,) in [0, 1]; masks (n, 1, H, W) float32 in [0, 1], with a mask branch}.
        """
        results = []
        for image, detections in zip(x, self.detect(list(x)), strict=True):
            result = {"boxes": detections.boxes, "labels": detections.labels, "scores": detections.scores}
            if detections.masks is not None:
                size = (int(image.shape[1]), int(image.shape[2]))
                result["masks"] = paste_masks(detections.masks, detections.boxes, size)[:, None]
            results.append(result)
        return results

    def detect(
        self,
        images: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]] | None = None,
        rescaled: Sequence[Rescaled] | None = None,
    ) -> list[Detections]:
        """What is in each normalized image (3, H, W), without gradients, with masks that fill their boxes.

        Args:
            images: of any sizes.
            sizes: height and width that the boxes are due at, for which they come in float64 and on the CPU; None:
                those of the images.
            rescaled: what gives each image at other scales, as batches do; None: it is itself resized to them.

        Raises:
            UserError: the weights are not finite, or what comes of them is not.
        """
        is_checked = attached_trainer(self) is not None or torch.compiler.is_exporting()  # by a trainer's hooks
        if not is_checked and (names := find_nonfinite({"backbone": self.backbone, "head": self.head})):
            raise UserError(describe_nonfinite(names))

        was_training = self.training
        self.eval()
        try:
            results = detect(self.backbone, self.head, images, self.inference, self.multiple, rescaled)
        finally:
            self.train(was_training)
        if sizes is None:
            return results

        image_sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        return [
            detections.at(size, image_size)
            for detections, size, image_size in zip(results, sizes, image_sizes, strict=True)
        ]

    def input_size_of(self, batch: Any) -> tuple[int, ...]:
        """Height and width of the padded batch."""
        return tuple(pad_images(batch["images"], self.multiple).tensors.shape[2:])

    def setup(self, stage: str) -> None:
        """Refuses targets that do not match the detector; its batch norms then use the statistics of all processes."""
        super().setup(stage)
        if stage != "fit":
            return
        self.weigh_classes()
        data = task_data(self.trainer)
        if self.head.has_masks and data.has_masks is False:
            raise UserError(
                "the data has no masks, or data.masks=false leaves them out: train boxes alone with "
                "--model.detector.masks=false, in Python MaskRCNNConfig(masks=False)"
            )
        if data.has_masks and not self.head.has_masks:
            raise UserError(
                "the data has masks, which this detector does not learn: leave them out with "
                "CocoDataModule(masks=False), as the command line does by itself"
            )
        if data.stuff_labels is not None and data.stuff_labels != self.head.stuff_classes:
            raise UserError(
                f"the detector's semantic branch has stuff_classes={self.head.stuff_classes}, the data has maps of "
                f"{data.stuff_labels} such classes: name a folder of maps with data.files.train_stuff, and set the "
                "detector's stuff_classes to their number, or to 0 to do without; in Python, the datamodule's, too"
            )
        if self.trainer.world_size > 1:
            synchronize(self.head, self.trainer.strategy.root_device)

    def compute_losses(self, batch: DetectionBatch) -> dict[str, Tensor]:
        """The sum of the detector's losses, and each as ``…_loss``."""
        images = pad_images(batch["images"], self.multiple)
        losses = self.head.losses(self.backbone(images.tensors), images, batch["targets"])
        parts = {f"{name}_loss": loss for name, loss in losses.items()}
        return {**parts, "loss": torch.stack([*losses.values()]).sum()}

    def validation_step(self, batch: DetectionEvalBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds the batch's detections and ground truth to the validation's."""
        self._evaluate(batch, self.of_loader(self.val_scores, dataloader_idx))

    def test_step(self, batch: DetectionEvalBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds the batch's detections and ground truth to the test's."""
        self._evaluate(batch, self.of_loader(self.test_scores, dataloader_idx))

    def _evaluate(self, batch: DetectionEvalBatch, metric: CocoMetric) -> None:
        nothing = [None] * len(batch["images"])
        targets: Sequence[Any] = batch.get("targets", nothing)
        files: Sequence[str | None] = batch.get("paths", nothing)
        sizes, image_ids = sizes_of(batch), self._image_ids(batch, metric)
        detections = self.detect(batch["images"], sizes, batch.get("rescaled"))
        for in_image, target, file, size, image_id in zip(detections, targets, files, sizes, image_ids, strict=True):
            results = as_results(in_image, image_id, size, self.ids, self.inference.mask_threshold)
            truth = None if target is None else as_annotations(target, size, self.ids, file)
            metric.update(image_id, results, truth)

    def _image_ids(self, batch: DetectionEvalBatch, metric: CocoMetric) -> list[int]:
        """The ids of a batch's images: stated, or those of their targets, or else counted from 1."""
        if "image_ids" in batch:
            return batch["image_ids"]
        if "targets" in batch:
            return [target["image_id"] for target in batch["targets"]]
        first, step = self.trainer.global_rank + 1, self.trainer.world_size
        return [first + step * (metric.images + k) for k in range(len(batch["images"]))]

    @property
    def ids(self) -> list[int]:
        """The category of each class index; counted from 1 where the task knows no classes."""
        return self.class_ids or list(range(1, self.num_classes + 1))

    def on_validation_epoch_end(self) -> None:
        """Logs COCO's scores of the validation."""
        self._log_scores(self.val_scores, "val/")

    def on_test_epoch_end(self) -> None:
        """Logs COCO's scores of the test."""
        self._log_scores(self.test_scores, "test/")

    def _log_scores(self, metric: CocoMetric, name: str) -> None:
        names = self.class_names or [str(number) for number in self.ids]
        for loader_metric in self.of_loaders(metric):
            loader_metric.max_detections = self.inference.max_detections
            loader_metric.classes = (self.ids, names)
        self.log_epoch_metrics(metric, name, in_progress_bar=("_ap", "_ap50"))

    def result_writers(self, run_folder: Path, output: str | None) -> list[Callback]:
        """What writes detections.json and visualizations, and the table of scores."""
        return [DetectionPredictions(output), DetectionScores(run_folder)]

    def predict_step(self, batch: DetectionPredictBatch, batch_idx: int, dataloader_idx: int = 0) -> list[Detections]:
        """What is in each of the batch's images, in pixels of their files, on the CPU."""
        return self.detect(batch["images"], sizes_of(batch), batch.get("rescaled"))


def sizes_of(batch: DetectionPredictBatch) -> list[tuple[int, int]]:
    """Height and width that the boxes of each image are due at: those of its file, or else its own."""
    return batch.get("sizes") or [(int(image.shape[1]), int(image.shape[2])) for image in batch["images"]]
