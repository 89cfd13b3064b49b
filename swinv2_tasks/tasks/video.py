"""Video classification, the paper's setting on Kinetics: https://arxiv.org/abs/2111.09883, section 4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.batches import VideoBatch, VideoPredictBatch
from swinv2_tasks.callbacks import EvaluatedVideos, MultiLabelTable, MultiLabelVideoPredictions, VideoPredictions
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.video import MultiLabelVideoScores, VideoScores
from swinv2_tasks.heads.class_losses import ClassLoss, CrossEntropy
from swinv2_tasks.tasks.classifier import ClassifierTask
from swinv2_tasks.training.class_weights import ClassWeights
from swinv2_tasks.training.multi_label_losses import BinaryCrossEntropy, MultiLabelLoss
from swinv2_tasks.training.optim import EpochCosineSchedule


class VideoClassificationTask(ClassifierTask):
    """Classifies clips; ``task(clips)`` gives logits (B, num_classes) for clips (B, 3, T, H, W).

    Args:
        backbone: turns clips into feature maps.
        num_classes: number of classes; the command line takes it from the data.
        dropout: probability of dropping a pooled feature in training.
        label_smoothing: share of the target spread over all classes; without effect on multi-label training.
        weights: checkpoint to start from, of clips or of images (official, SimMIM, timm, Hugging Face, torchvision or
            this package's own).
        optimizer: builds the optimizer; its learning rate is the schedule's peak.
        schedule: learning rate over time and layers.
        loss: what training of one label a video minimizes, ``CrossEntropy`` or ``FocalLoss``.
        class_weights: how much each class counts in training: ``balanced``, by one over its number of training videos;
            ``effective_number``; or numbers, for some classes by name or id, or a list for all. None: all alike.
        multi_label: whether several classes may hold for a video, or none, so that each has a probability of its own.
            None: what the data say; without a word of theirs one class holds.
        multi_label_loss: what multi-label training minimizes: ``BinaryCrossEntropy``, ``AsymmetricLoss`` or
            ``BinaryFocalLoss``.
        threshold: probability from which on a class is predicted of a multi-label video, and counts for F1; in [0, 1].
    """

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
        multi_label: bool | None = None,
        multi_label_loss: MultiLabelLoss = BinaryCrossEntropy(),
        threshold: float = 0.5,
    ) -> None:
        if backbone.axes != 3:
            raise UserError(
                "video classification works on clips, this backbone on images: give it three patch sides and windows, "
                "as in patch_size [2, 4, 4] and window_size [8, 7, 7]"
            )
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
        self.val_scores, self.test_scores = VideoScores(num_classes), VideoScores(num_classes)
        settings = num_classes, threshold, self.multi_label_loss
        self.val_multi_label, self.test_multi_label = MultiLabelVideoScores(*settings), MultiLabelVideoScores(*settings)

    def input_size_of(self, batch: Any) -> tuple[int, ...]:
        """Frames, height and width of the batch's views."""
        return tuple(batch["clip"].shape[3:])

    def compute_losses(self, batch: VideoBatch) -> dict[str, Tensor]:
        """The loss of all views, each with its clip's label."""
        logits, views = self._logits(batch)
        return {"loss": self.loss_of(logits, batch["label"].repeat_interleave(views, dim=0))}

    def validation_step(self, batch: VideoBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds the views to the scores of the validation's videos."""
        scores = self.val_multi_label if self.multi_label else self.val_scores
        self._evaluate(batch, self.of_loader(scores, dataloader_idx))

    def test_step(self, batch: VideoBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds the views to the scores of the test's videos."""
        scores = self.test_multi_label if self.multi_label else self.test_scores
        self._evaluate(batch, self.of_loader(scores, dataloader_idx))

    def _logits(self, batch: Any) -> tuple[Tensor, int]:
        """Logits (B · views, classes), the views of a video one after the other, and their number."""
        clips = batch["clip"]
        return self(clips.flatten(0, 1)), clips.shape[1]

    def _evaluate(self, batch: VideoBatch, scores: VideoScores | MultiLabelVideoScores) -> None:
        logits, views = self._logits(batch)
        labels = batch["label"]
        if self.multi_label:
            self.check_multi_hot(labels, (len(labels), self.num_classes))
        labels, video_ids = (values.repeat_interleave(views, dim=0) for values in (labels, batch["video_id"]))
        scores.update(logits, labels, video_ids)

    def on_validation_epoch_end(self) -> None:
        """Logs top-1, top-5 and loss of the validation's videos; multi-label: mAP, F1 and the loss."""
        self.log_epoch_metrics(self.val_scores, "val/")
        self.log_epoch_metrics(self.val_multi_label, "val/")

    def on_test_epoch_end(self) -> None:
        """Logs the test's scores."""
        self.log_epoch_metrics(self.test_scores, "test/")
        self.log_epoch_metrics(self.test_multi_label, "test/")

    def result_writers(self, run_folder: Path, output: str | None) -> list[Callback]:
        """What writes predictions and a contact sheet, and of evaluations their scores and predictions."""
        writer = MultiLabelVideoPredictions if self.multi_label else VideoPredictions
        return [writer(output), MultiLabelTable(run_folder, "videos"), EvaluatedVideos(run_folder)]

    def predict_step(self, batch: VideoPredictBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Sums over the views in the batch.

        Returns:
            {path: list or None, video_id (B,), probabilities (B, classes) float64, views: their number}.
        """
        logits, views = self._logits(batch)
        probabilities = self.probabilities_of(logits).double().unflatten(0, (-1, views)).sum(1)
        return {
            "path": batch.get("path"),
            "video_id": batch["video_id"],
            "probabilities": probabilities,
            "views": views,
        }
