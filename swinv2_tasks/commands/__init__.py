"""The commands beside training and evaluation, a file or folder each: plain functions, usable from Python."""
