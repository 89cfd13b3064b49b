"""Synthetic datasets in the real ones' formats."""
