"""From feature maps to predictions: decoders and detectors, which a config chooses, and their networks."""

from swinv2_tasks.heads.cascade import CascadeMaskRCNN, CascadeMaskRCNNConfig
from swinv2_tasks.heads.class_losses import ClassLoss, CrossEntropy, FocalLoss
from swinv2_tasks.heads.classification import ClassificationHead
from swinv2_tasks.heads.decoder import Decoder
from swinv2_tasks.heads.fpn import FeaturePyramid, MapNorms
from swinv2_tasks.heads.htc import HTC, HTCConfig
from swinv2_tasks.heads.mask_rcnn import DetectionHead, DetectorConfig, MaskRCNN, MaskRCNNConfig
from swinv2_tasks.heads.simmim import SimMIMHead
from swinv2_tasks.heads.upernet import FCNHead, SegmentationHead, UPerNet, UPerNetHead

__all__ = [
    "HTC",
    "CascadeMaskRCNN",
    "CascadeMaskRCNNConfig",
    "ClassLoss",
    "ClassificationHead",
    "CrossEntropy",
    "Decoder",
    "DetectionHead",
    "DetectorConfig",
    "FCNHead",
    "FeaturePyramid",
    "FocalLoss",
    "HTCConfig",
    "MapNorms",
    "MaskRCNN",
    "MaskRCNNConfig",
    "SegmentationHead",
    "SimMIMHead",
    "UPerNet",
    "UPerNetHead",
]
