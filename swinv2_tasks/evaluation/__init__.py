"""Scores that torchmetrics lacks, or computes otherwise."""
