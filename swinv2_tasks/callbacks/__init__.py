"""What happens around the steps: saving and stopping, the record of a run, its pictures. Never in the steps."""

from swinv2_tasks.callbacks.classification import ClassificationPredictions
from swinv2_tasks.callbacks.detection import DetectionPredictions, DetectionScores
from swinv2_tasks.callbacks.evaluated_samples import EvaluatedSamples
from swinv2_tasks.callbacks.last_validation import LastValidation
from swinv2_tasks.callbacks.pictures import LearningCurve
from swinv2_tasks.callbacks.run_checkpoint import RunCheckpoint
from swinv2_tasks.callbacks.run_record import RunRecord
from swinv2_tasks.callbacks.segmentation import ClassTable, SegmentationPredictions
from swinv2_tasks.callbacks.simmim import SimMIMPictures, SimMIMPredictions
from swinv2_tasks.callbacks.throughput import Throughput
from swinv2_tasks.callbacks.video import VideoPredictions

__all__ = [
    "ClassTable",
    "ClassificationPredictions",
    "DetectionPredictions",
    "DetectionScores",
    "EvaluatedSamples",
    "LastValidation",
    "LearningCurve",
    "RunCheckpoint",
    "RunRecord",
    "SegmentationPredictions",
    "SimMIMPictures",
    "SimMIMPredictions",
    "Throughput",
    "VideoPredictions",
]
