"""Video classification, the paper's setting on Kinetics: https://arxiv.org/abs/2111.09883, section 4."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.batches import VideoBatch, VideoPredictBatch
from swinv2_tasks.callbacks import VideoPredictions
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.video import VideoScores
from swinv2_tasks.heads.class_losses import ClassLoss, CrossEntropy
from swinv2_tasks.heads.classification import ClassificationHead
from swinv2_tasks.tasks.base import BaseTask
from swinv2_tasks.training.class_weights import ClassWeights
from swinv2_tasks.training.optim import EpochCosineSchedule


class VideoClassificationTask(BaseTask):
    """Classifies clips; ``task(clips)`` gives logits (B, num_classes) for clips (B, 3, T, H, W).

    Args:
        backbone: turns clips into feature maps.
        num_classes: number of classes; the command line takes it from the data.
        dropout: probability of dropping a pooled feature in training.
        label_smoothing: share of the target spread over all classes.
        weights: checkpoint to start from, of clips or of images (official, SimMIM, timm, Hugging Face, torchvision or
            this package's own).
        optimizer: builds the optimizer; its learning rate is the schedule's peak.
        schedule: learning rate over time and layers.
        loss: what is minimized, ``CrossEntropy`` or ``FocalLoss``.
        class_weights: how much each class counts in training: ``balanced``, by one over its number of training videos;
            ``effective_number``; or numbers, for some classes by name or id, or a list for all. None: all alike.
    """

    num_classes: int

    def __init__(
        self,
        backbone: SwinTransformerV2,
        num_classes: int,
        dropout: float = 0.5,
        label_smoothing: float = 0.0,
        weights: str | None = None,
        optimizer: OptimizerCallable = AdamW,
        schedule: EpochCosineSchedule = EpochCosineSchedule(),
        loss: ClassLoss = CrossEntropy(),
        class_weights: ClassWeights | None = None,
    ) -> None:
        if backbone.axes != 3:
            raise UserError(
                "video classification works on clips, this backbone on images: give it three patch sides and windows, "
                "as in patch_size [2, 4, 4] and window_size [8, 7, 7]"
            )
        head = ClassificationHead(backbone.channels[-1], num_classes, dropout)
        super().__init__(backbone, head, weights, optimizer, schedule)
        self.num_classes = num_classes
        if not 0 <= label_smoothing < 1:
            raise UserError(f"model.label_smoothing is {label_smoothing}; expected a share, from 0 to below 1")
        self.loss = copy.deepcopy(loss)  # or tasks would share the default's
        self.loss.label_smoothing = label_smoothing
        self.weigh_classes_in([self.loss], class_weights)
        self.val_scores, self.test_scores = VideoScores(num_classes), VideoScores(num_classes)

    def setup(self, stage: str) -> None:
        """Takes over from the data how much each class counts."""
        super().setup(stage)
        if stage == "fit":
            self.weigh_classes()

    def input_size_of(self, batch: Any) -> tuple[int, ...]:
        """Frames, height and width of the batch's views."""
        return tuple(batch["clip"].shape[3:])

    def compute_losses(self, batch: VideoBatch) -> dict[str, Tensor]:
        """The loss of all views, each with its clip's label."""
        logits, views = self._logits(batch)
        return {"loss": self.loss(logits, batch["label"].repeat_interleave(views))}

    def validation_step(self, batch: VideoBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds the views to the scores of the validation's videos."""
        self._evaluate(batch, self.of_loader(self.val_scores, dataloader_idx))

    def test_step(self, batch: VideoBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds the views to the scores of the test's videos."""
        self._evaluate(batch, self.of_loader(self.test_scores, dataloader_idx))

    def _logits(self, batch: Any) -> tuple[Tensor, int]:
        """Logits (B · views, classes), the views of a video one after the other, and their number."""
        clips = batch["clip"]
        return self(clips.flatten(0, 1)), clips.shape[1]

    def _evaluate(self, batch: VideoBatch, scores: VideoScores) -> None:
        logits, views = self._logits(batch)
        scores.update(logits, batch["label"].repeat_interleave(views), batch["video_id"].repeat_interleave(views))

    def on_validation_epoch_end(self) -> None:
        """Logs top-1, top-5 and loss of the validation's videos."""
        self.log_epoch_metrics(self.val_scores, "val/")

    def on_test_epoch_end(self) -> None:
        """Logs top-1, top-5 and loss of the test's videos."""
        self.log_epoch_metrics(self.test_scores, "test/")

    def result_writers(self, run_folder: Path, output: str | None) -> list[Callback]:
        """What writes predictions.csv, predictions.json and a contact sheet."""
        return [VideoPredictions(output)]

    def predict_step(self, batch: VideoPredictBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Sums over the views in the batch.

        Returns:
            {path: list or None, video_id (B,), probabilities (B, classes) float64, views: their number}.
        """
        logits, views = self._logits(batch)
        probabilities = logits.float().softmax(1).double().unflatten(0, (-1, views)).sum(1)
        return {
            "path": batch.get("path"),
            "video_id": batch["video_id"],
            "probabilities": probabilities,
            "views": views,
        }
