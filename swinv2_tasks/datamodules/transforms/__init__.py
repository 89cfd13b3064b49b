"""Augmentation and evaluation transforms, a file per task."""
