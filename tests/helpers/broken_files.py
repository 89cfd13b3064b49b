"""Files broken as a download or a disk breaks them."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def cut_off(path: Path, share: float = 0.5) -> Path:
    """Leaves the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def scramble(path: Path, share: float = 0.5, number: int = 400) -> Path:
    """Overwrites bytes from a place in the file on."""
    content = bytearray(path.read_bytes())
    start = int(len(content) * share)
    content[start : start + number] = np.random.default_rng(0).integers(0, 256, number, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    return path
