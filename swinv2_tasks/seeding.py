"""Random numbers as a function of the training's progress, not of what was drawn before.

A run that is resumed in the middle of an epoch draws the numbers that it would have drawn, whatever the number of
DataLoader workers, and no generator's state has to be saved.
"""

from __future__ import annotations

import random

import numpy as np
import torch


def derive_seed(*keys: int) -> int:
    """A seed in [0, 2³²) made of several numbers ≥ 0, such as a run's seed, a process, an epoch and a batch."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0])


def seed_generators(seed: int, gpus: bool = True) -> None:
    """Sets the global generators of torch, NumPy and Python.

    Args:
        seed: in [0, 2³²), which is all that NumPy takes and that torch uses on a CPU.
        gpus: also those of the GPUs in use.
    """
    torch.default_generator.manual_seed(seed)
    if gpus and torch.cuda.is_initialized():  # which it is not in a forked process
        torch.cuda.manual_seed_all(seed)  # not torch.manual_seed, which queues a traceback while CUDA is not in use
    np.random.seed(seed)
    random.seed(seed)
