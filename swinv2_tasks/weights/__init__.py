"""Swin V2 weights: read and written in six formats."""

from swinv2_tasks.weights.loading import LoadReport, load_weights
from swinv2_tasks.weights.saving import save_weights

__all__ = ["LoadReport", "load_weights", "save_weights"]
