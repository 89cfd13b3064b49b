"""LightningDataModules, one per dataset layout."""

from swinv2_tasks.datamodules.imagenet import ImageNetDataModule

__all__ = ["ImageNetDataModule"]
