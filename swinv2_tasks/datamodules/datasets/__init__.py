"""Samples by index, a file per task."""
