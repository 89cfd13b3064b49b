"""Image classification, as published: https://arxiv.org/abs/2111.09883, appendix A1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import AdamW
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.batches import ClassificationBatch, PredictBatch
from swinv2_tasks.callbacks import ClassificationPredictions
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.classification import AnyLabelAccuracy, CrossEntropy
from swinv2_tasks.heads.classification import ClassificationHead
from swinv2_tasks.tasks.base import BaseTask
from swinv2_tasks.training.optim import CosineSchedule


class ClassificationTask(BaseTask):
    """Classifies images; ``task(images)`` gives logits (B, num_classes).

    Args:
        backbone: turns images into feature maps.
        num_classes: number of classes; the command line takes it from the data.
        dropout: probability of dropping a pooled feature in training.
        label_smoothing: share of the target spread over all classes.
        weights: checkpoint to start from (official, SimMIM, timm, Hugging Face, torchvision or this package's own).
        optimizer: builds the optimizer; its learning rate is the schedule's peak.
        schedule: learning rate over time and layers.
    """

    num_classes: int

    def __init__(
        self,
        backbone: SwinTransformerV2,
        num_classes: int,
        dropout: float = 0.0,
        label_smoothing: float = 0.1,
        weights: str | None = None,
        optimizer: OptimizerCallable = AdamW,
        schedule: CosineSchedule = CosineSchedule(),
    ) -> None:
        head = ClassificationHead(backbone.channels[-1], num_classes, dropout)
        super().__init__(backbone, head, weights, optimizer, schedule)
        self.num_classes = num_classes
        if not 0 <= label_smoothing < 1:
            raise UserError(f"model.label_smoothing is {label_smoothing}; expected a share, from 0 to below 1")
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        ks = {"top1": 1, "top5": min(5, num_classes)}
        # Validating arguments would wait for the device at every batch.
        measures: dict[str, Metric] = {
            name: MulticlassAccuracy(num_classes, top_k=k, average="micro", validate_args=False)
            for name, k in ks.items()
        }
        measures["loss"] = CrossEntropy()
        # Compute groups would share one count among metrics that happen to agree on the first batch.
        self.val_metrics = MetricCollection(dict(measures), prefix="val/", compute_groups=False)
        self.test_metrics = self.val_metrics.clone(prefix="test/")
        real = {f"real_{name}": AnyLabelAccuracy(k) for name, k in ks.items()}
        self.val_real_metrics = MetricCollection(dict(real), prefix="val/", compute_groups=False)
        self.test_real_metrics = self.val_real_metrics.clone(prefix="test/")

    def compute_losses(self, batch: ClassificationBatch) -> dict[str, Tensor]:
        """Cross-entropy of the batch; labels are class indices (B,) or probabilities (B, classes)."""
        return {"loss": self.loss(self(batch["image"]), batch["label"])}

    def validation_step(self, batch: ClassificationBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Updates the validation's metrics."""
        # ReaL: several labels hold, or none.
        metrics = self.val_real_metrics if batch["label"].ndim == 2 else self.val_metrics
        self.of_loader(metrics, dataloader_idx).update(self(batch["image"]), batch["label"])

    def test_step(self, batch: ClassificationBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Updates the test's metrics."""
        metrics = self.test_real_metrics if batch["label"].ndim == 2 else self.test_metrics
        self.of_loader(metrics, dataloader_idx).update(self(batch["image"]), batch["label"])

    def on_validation_epoch_end(self) -> None:
        """Logs top-1 and top-5 accuracy and the loss; of ReaL labels their accuracy."""
        self.log_epoch_metrics(self.val_metrics)
        self.log_epoch_metrics(self.val_real_metrics)

    def on_test_epoch_end(self) -> None:
        """Logs the test's accuracies and loss."""
        self.log_epoch_metrics(self.test_metrics)
        self.log_epoch_metrics(self.test_real_metrics)

    def result_writers(self, run_folder: Path, output: str | None) -> list[Callback]:
        """What writes predictions.csv and a contact sheet."""
        return [ClassificationPredictions(output)]

    def predict_step(self, batch: PredictBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """The top 5 classes: {path: list or None, scores (B, ≤5) in [0, 1], classes (B, ≤5) indices}."""
        best = self(batch["image"]).float().softmax(1).topk(min(5, self.num_classes))
        return {"path": batch.get("path"), "scores": best.values, "classes": best.indices}
