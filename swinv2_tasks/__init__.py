"""Swin Transformer V2: one backbone, every downstream task of the paper, one command line.

https://arxiv.org/abs/2111.09883
"""

__version__ = "0.1.0"
