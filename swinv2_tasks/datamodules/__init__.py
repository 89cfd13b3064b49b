"""LightningDataModules, one per dataset layout."""

from swinv2_tasks.datamodules.ade20k import ADE20KDataModule
from swinv2_tasks.datamodules.imagenet import ImageNetDataModule

__all__ = ["ADE20KDataModule", "ImageNetDataModule"]
