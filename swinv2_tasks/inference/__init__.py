"""From a network's outputs to predictions for whole images."""

from swinv2_tasks.inference.detection import DetectionInference, Detections, detect
from swinv2_tasks.inference.interop import to_supervision
from swinv2_tasks.inference.segmentation import Inference, segment

__all__ = ["DetectionInference", "Detections", "Inference", "detect", "segment", "to_supervision"]
