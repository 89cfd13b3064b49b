"""Scores that torchmetrics lacks, or computes otherwise."""

from swinv2_tasks.evaluation.classification import AnyLabelAccuracy, CrossEntropy
from swinv2_tasks.evaluation.coco import CocoMetric, CocoScores, coco_scores
from swinv2_tasks.evaluation.mean_loss import MeanLoss
from swinv2_tasks.evaluation.multi_label import MultiLabelMetric, MultiLabelScores, multi_label_scores
from swinv2_tasks.evaluation.segmentation import Confusion, SegmentationScores
from swinv2_tasks.evaluation.video import MultiLabelVideoScores, VideoScores

__all__ = [
    "AnyLabelAccuracy",
    "CocoMetric",
    "CocoScores",
    "Confusion",
    "CrossEntropy",
    "MeanLoss",
    "MultiLabelMetric",
    "MultiLabelScores",
    "MultiLabelVideoScores",
    "SegmentationScores",
    "VideoScores",
    "coco_scores",
    "multi_label_scores",
]
