"""LightningModules, one per task."""

from swinv2_tasks.tasks.classification import ClassificationTask

__all__ = ["ClassificationTask"]
