"""LightningDataModules, one per dataset layout, and their augmentations."""

from swinv2_tasks.datamodules.ade20k import ADE20KDataModule
from swinv2_tasks.datamodules.base import BaseDataModule
from swinv2_tasks.datamodules.coco import CocoDataModule, CocoFiles
from swinv2_tasks.datamodules.imagenet import ImageNetDataModule
from swinv2_tasks.datamodules.kinetics import KineticsDataModule, VideoFiles, ViewCounts
from swinv2_tasks.datamodules.simmim import SimMIMDataModule
from swinv2_tasks.datamodules.transforms.augmentation import Augmentation
from swinv2_tasks.datamodules.transforms.classification import ClassificationAugmentation, ImageNetAugmentation
from swinv2_tasks.datamodules.transforms.detection import (
    DetectionAugmentation,
    MultiScaleAugmentation,
    ScaleJitterAugmentation,
)
from swinv2_tasks.datamodules.transforms.listed import (
    ClassificationTransformList,
    DetectionTransformList,
    SegmentationTransformList,
    SimMIMTransformList,
    VideoTransformList,
)
from swinv2_tasks.datamodules.transforms.segmentation import ADE20KAugmentation, SegmentationAugmentation
from swinv2_tasks.datamodules.transforms.simmim import CropFlipAugmentation, SimMIMAugmentation
from swinv2_tasks.datamodules.transforms.video import FrameSampling, KineticsAugmentation, VideoAugmentation

__all__ = [
    "ADE20KAugmentation",
    "ADE20KDataModule",
    "Augmentation",
    "BaseDataModule",
    "ClassificationAugmentation",
    "ClassificationTransformList",
    "CocoDataModule",
    "CocoFiles",
    "CropFlipAugmentation",
    "DetectionAugmentation",
    "DetectionTransformList",
    "FrameSampling",
    "ImageNetAugmentation",
    "ImageNetDataModule",
    "KineticsAugmentation",
    "KineticsDataModule",
    "MultiScaleAugmentation",
    "ScaleJitterAugmentation",
    "SegmentationAugmentation",
    "SegmentationTransformList",
    "SimMIMAugmentation",
    "SimMIMDataModule",
    "SimMIMTransformList",
    "VideoAugmentation",
    "VideoFiles",
    "VideoTransformList",
    "ViewCounts",
]
