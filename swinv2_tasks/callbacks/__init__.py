"""What is written around the steps: predictions, score tables, figures. Never in the steps."""

from swinv2_tasks.callbacks.classification import ClassificationPredictions
from swinv2_tasks.callbacks.console import Console
from swinv2_tasks.callbacks.detection import DetectionPredictions, DetectionScores
from swinv2_tasks.callbacks.evaluated_classes import EvaluatedImages, EvaluatedVideos
from swinv2_tasks.callbacks.evaluated_samples import EvaluatedSamples
from swinv2_tasks.callbacks.figures import LearningCurve
from swinv2_tasks.callbacks.first_batch import FirstBatch
from swinv2_tasks.callbacks.last_validation import LastValidation
from swinv2_tasks.callbacks.logged_samples import LoggedSamples
from swinv2_tasks.callbacks.multi_label import MultiLabelPredictions, MultiLabelTable
from swinv2_tasks.callbacks.run_report import RunReport
from swinv2_tasks.callbacks.segmentation import ClassTable, SegmentationPredictions
from swinv2_tasks.callbacks.segmented_images import SegmentedImages
from swinv2_tasks.callbacks.simmim import SimMIMImages, SimMIMPredictions, SimMIMVisualizations
from swinv2_tasks.callbacks.throughput import Throughput
from swinv2_tasks.callbacks.video import MultiLabelVideoPredictions, VideoPredictions

__all__ = [
    "ClassTable",
    "ClassificationPredictions",
    "Console",
    "DetectionPredictions",
    "DetectionScores",
    "EvaluatedImages",
    "EvaluatedSamples",
    "EvaluatedVideos",
    "FirstBatch",
    "LastValidation",
    "LearningCurve",
    "LoggedSamples",
    "MultiLabelPredictions",
    "MultiLabelTable",
    "MultiLabelVideoPredictions",
    "RunReport",
    "SegmentationPredictions",
    "SegmentedImages",
    "SimMIMImages",
    "SimMIMPredictions",
    "SimMIMVisualizations",
    "Throughput",
    "VideoPredictions",
]
