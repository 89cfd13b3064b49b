"""LightningDataModules, one per dataset layout."""

from swinv2_tasks.datamodules.ade20k import ADE20KDataModule
from swinv2_tasks.datamodules.base import BaseDataModule
from swinv2_tasks.datamodules.coco import CocoDataModule
from swinv2_tasks.datamodules.imagenet import ImageNetDataModule
from swinv2_tasks.datamodules.kinetics import KineticsDataModule
from swinv2_tasks.datamodules.simmim import SimMIMDataModule

__all__ = [
    "ADE20KDataModule",
    "BaseDataModule",
    "CocoDataModule",
    "ImageNetDataModule",
    "KineticsDataModule",
    "SimMIMDataModule",
]
