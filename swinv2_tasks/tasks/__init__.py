"""LightningModules, one per task."""

from swinv2_tasks.tasks.base import BaseTask
from swinv2_tasks.tasks.classification import ClassificationTask
from swinv2_tasks.tasks.detection import DetectionTask
from swinv2_tasks.tasks.segmentation import SegmentationTask
from swinv2_tasks.tasks.simmim import SimMIMTask
from swinv2_tasks.tasks.video import VideoClassificationTask

__all__ = [
    "BaseTask",
    "ClassificationTask",
    "DetectionTask",
    "SegmentationTask",
    "SimMIMTask",
    "VideoClassificationTask",
]
