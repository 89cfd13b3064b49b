"""Datasets from one layout to another."""
