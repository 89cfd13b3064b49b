"""Image classification, as published: https://arxiv.org/abs/2111.09883, appendix A1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.batches import ClassificationBatch, PredictBatch
from swinv2_tasks.callbacks import (
    ClassificationPredictions,
    EvaluatedImages,
    MultiLabelPredictions,
    MultiLabelTable,
)
from swinv2_tasks.evaluation.classification import AnyLabelAccuracy
from swinv2_tasks.evaluation.classification import CrossEntropy as MeanCrossEntropy
from swinv2_tasks.evaluation.mean_loss import MeanLoss
from swinv2_tasks.evaluation.multi_label import MultiLabelMetric
from swinv2_tasks.heads.class_losses import ClassLoss, CrossEntropy
from swinv2_tasks.tasks.classifier import ClassifierTask
from swinv2_tasks.training.class_weights import ClassWeights
from swinv2_tasks.training.multi_label_losses import BinaryCrossEntropy, MultiLabelLoss
from swinv2_tasks.training.optim import CosineSchedule


class ClassificationTask(ClassifierTask):
    """Classifies images; ``task(images)`` gives logits (B, num_classes).

    Args:
        backbone: turns images into feature maps.
        num_classes: number of classes; the command line takes it from the data.
        dropout: probability of dropping a pooled feature in training.
        label_smoothing: share of the target spread over all classes; without effect on multi-label training.
        weights: checkpoint to start from (official, SimMIM, timm, Hugging Face, torchvision or this package's own).
        optimizer: builds the optimizer; its learning rate is the schedule's peak.
        schedule: learning rate over time and layers.
        multi_label: whether several classes may hold for an image, or none, so that each has a probability of its own.
            None: what the data say; without a word of theirs one class holds.
        multi_label_loss: what multi-label training minimizes: ``BinaryCrossEntropy``, ``AsymmetricLoss`` or
            ``BinaryFocalLoss``.
        threshold: probability from which on a class is predicted of a multi-label image, and counts for F1; in [0, 1].
        loss: what training of one label an image minimizes, ``CrossEntropy`` or ``FocalLoss``.
        class_weights: how much each class counts in training: ``balanced``, by one over its number of training images;
            ``effective_number``; or numbers, for some classes by name or id, or a list for all. None: all alike.
    """

    def __init__(
        self,
        backbone: SwinTransformerV2,
        num_classes: int,
        dropout: float = 0.0,
        label_smoothing: float = 0.1,
        weights: str | None = None,
        optimizer: OptimizerCallable = AdamW,
        schedule: CosineSchedule = CosineSchedule(),
        multi_label: bool | None = None,
        multi_label_loss: MultiLabelLoss = BinaryCrossEntropy(),
        threshold: float = 0.5,
        loss: ClassLoss = CrossEntropy(),
        class_weights: ClassWeights | None = None,
    ) -> None:
        super().__init__(
            backbone,
            num_classes,
            dropout,
            label_smoothing,
            loss,
            class_weights,
            multi_label,
            multi_label_loss,
            threshold,
            weights,
            optimizer,
            schedule,
        )
        ks = {"top1": 1, "top5": min(5, num_classes)}
        # Validating arguments would wait for the device at every batch.
        measures: dict[str, Metric] = {
            name: MulticlassAccuracy(num_classes, top_k=k, average="micro", validate_args=False)
            for name, k in ks.items()
        }
        measures["loss"] = MeanCrossEntropy()
        # Compute groups would share one count among metrics that happen to agree on the first batch.
        self.val_metrics = MetricCollection(dict(measures), prefix="val/", compute_groups=False)
        self.test_metrics = self.val_metrics.clone(prefix="test/")
        real = {f"real_{name}": AnyLabelAccuracy(k) for name, k in ks.items()}
        self.val_real_metrics = MetricCollection(dict(real), prefix="val/", compute_groups=False)
        self.test_real_metrics = self.val_real_metrics.clone(prefix="test/")
        self.val_multi_label, self.test_multi_label = MultiLabelMetric(self.threshold), MultiLabelMetric(self.threshold)
        self.val_multi_label_loss, self.test_multi_label_loss = MeanLoss(), MeanLoss()

    def compute_losses(self, batch: ClassificationBatch) -> dict[str, Tensor]:
        """The loss of the batch; labels are class indices (B,), probabilities (B, classes), or multi-hot."""
        return {"loss": self.loss_of(self(batch["image"]), batch["label"])}

    def validation_step(self, batch: ClassificationBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Updates the validation's metrics.

        Returns:
            {logits (B, classes)}; multi-label: {logits, losses (B,)}.
        """
        if self.multi_label:
            return self._evaluate(batch, self.val_multi_label, self.val_multi_label_loss, dataloader_idx)
        # ReaL: several labels hold, or none.
        metrics = self.val_real_metrics if batch["label"].ndim == 2 else self.val_metrics
        return self._classify(batch, self.of_loader(metrics, dataloader_idx))

    def test_step(self, batch: ClassificationBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Updates the test's metrics.

        Returns:
            As ``validation_step``.
        """
        if self.multi_label:
            return self._evaluate(batch, self.test_multi_label, self.test_multi_label_loss, dataloader_idx)
        metrics = self.test_real_metrics if batch["label"].ndim == 2 else self.test_metrics
        return self._classify(batch, self.of_loader(metrics, dataloader_idx))

    def _classify(self, batch: ClassificationBatch, metrics: MetricCollection) -> dict[str, Tensor]:
        """Updates the metrics of images of one label, or of ReaL labels."""
        logits = self(batch["image"])
        metrics.update(logits, batch["label"])
        return {"logits": logits}

    def _evaluate(
        self, batch: ClassificationBatch, metric: MultiLabelMetric, loss: MeanLoss, dataloader_idx: int
    ) -> dict[str, Tensor]:
        """Updates the metrics of multi-label images."""
        logits = self(batch["image"])
        losses = self.multi_label_losses(logits, batch["label"]).mean(1)
        self.of_loader(metric, dataloader_idx).update(logits, batch["label"])
        self.of_loader(loss, dataloader_idx).update(losses)
        return {"logits": logits, "losses": losses}

    def on_validation_epoch_end(self) -> None:
        """Logs top-1, top-5 and the loss; of ReaL labels their accuracy; multi-label: mAP, F1 and the loss."""
        self.log_epoch_metrics(self.val_metrics)
        self.log_epoch_metrics(self.val_real_metrics)
        self.log_epoch_metrics(self.val_multi_label, "val/")
        self.log_epoch_metrics(self.val_multi_label_loss, "val/loss")

    def on_test_epoch_end(self) -> None:
        """Logs the test's scores."""
        self.log_epoch_metrics(self.test_metrics)
        self.log_epoch_metrics(self.test_real_metrics)
        self.log_epoch_metrics(self.test_multi_label, "test/")
        self.log_epoch_metrics(self.test_multi_label_loss, "test/loss")

    def result_writers(self, run_folder: Path, output: str | None) -> list[Callback]:
        """What writes predictions.csv and a contact sheet, and of evaluations their scores and predictions."""
        writer = MultiLabelPredictions if self.multi_label else ClassificationPredictions
        return [writer(output), MultiLabelTable(run_folder), EvaluatedImages(run_folder)]

    def predict_step(self, batch: PredictBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """What the images show.

        Returns:
            {path: list or None, scores (B, ≤5) in [0, 1], classes (B, ≤5) indices} of the top 5 classes; multi-label:
            {path, probabilities (B, classes) in [0, 1]}.
        """
        if self.multi_label:
            return {"path": batch.get("path"), "probabilities": self.probabilities_of(self(batch["image"]))}
        best = self(batch["image"]).float().softmax(1).topk(min(5, self.num_classes))
        return {"path": batch.get("path"), "scores": best.values, "classes": best.indices}
