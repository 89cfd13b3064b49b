"""Whether two runs left the same: every file of their folders, records as well as tensors, compared for its content.

Not compared is what measures or names the run itself: seconds, speed and memory; the names of the runs' folders, and of
the folders that they were started in; the events of TensorBoard, whose files say when they were begun. Of run.json the
last start is compared, but for its time, its arguments and the checkpoint that it was resumed from. A learning curve
that shows the speed is only decoded.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

MEASURED = ("wall_seconds", "train_seconds", "samples_per_second", "peak_memory_mib", "img/s")
"""Keys of records, and columns of tables, that measure the run."""

OF_A_START = ("time", "arguments", "resumed_from", "resumed_step")
"""Keys of a start in run.json that differ from start to start."""

NOT_COMPARED = ("events.out.tfevents", ".lock")
"""What names of files that are not compared begin with."""


def compare_runs(first: Path, second: Path) -> Iterator[str]:
    """A line for each thing in which two runs' folders differ."""
    names = [list_files(folder) for folder in (first, second)]
    for name in sorted(names[0] ^ names[1]):
        yield f"{name}: only in {(first if name in names[0] else second)}"
    for name in sorted(names[0] & names[1]):
        yield from find_differences(read(first / name, first), read(second / name, second), name)


def list_files(folder: Path) -> set[str]:
    """The files below a folder that are compared, as seen from it; what a killed writer left is among them."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()]
    return {str(path) for path in files if not path.name.startswith(NOT_COMPARED)}


def read(path: Path, run: Path) -> Any:
    """What a file of a run holds, as plain values and tensors, without what is not compared."""
    if path.suffix == ".ckpt":
        return anonymous(torch.load(path, weights_only=True), run)
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return {"metadata": file.metadata(), "tensors": tensors}
    if path.name == "metrics.csv":
        return list(read_rows(path))
    if path.name == "run.json":
        last = json.loads(path.read_text())["starts"][-1]
        return {name: value for name, value in last.items() if name not in OF_A_START}
    if path.suffix == ".json":
        return anonymous(json.loads(path.read_text()), run)
    if path.name == "learning_curve.png" and any("img/s" in row for row in read_rows(path.with_name("metrics.csv"))):
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            return image.size
    return anonymous(path.read_bytes(), run)


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a table, line by line, with their columns in order."""
    with path.open(newline="") as file:
        yield from csv.DictReader(file)


def anonymous(value: Any, run: Path) -> Any:
    """The same without the names of the run's folder and of the one that the run was started in."""
    if isinstance(value, dict):
        return {anonymous(key, run): anonymous(entry, run) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [anonymous(entry, run) for entry in value]
    for folder in (str(run), "/".join(run.parts[-3:])):
        if isinstance(value, str):
            value = value.replace(folder, "RUN")
        elif isinstance(value, bytes):
            value = value.replace(folder.encode(), b"RUN")
    return value


def find_differences(first: Any, second: Any, key_path: str) -> Iterator[str]:
    """Where two nested values are not equal, byte by byte."""
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            yield f"{key_path}: keys {sorted(map(str, first.keys() ^ second.keys()))}"
        for key in first.keys() & second.keys() - {*MEASURED}:
            yield from find_differences(first[key], second[key], f"{key_path}.{key}")
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple):
        if len(first) != len(second):
            yield f"{key_path}: {len(first)} and {len(second)} entries"
        for index, pair in enumerate(zip(first, second, strict=False)):
            yield from find_differences(*pair, f"{key_path}[{index}]")
    elif isinstance(first, Tensor) and isinstance(second, Tensor):
        alike = (first.dtype, first.shape) == (second.dtype, second.shape)
        if not alike or not torch.equal(as_bytes(first), as_bytes(second)):
            yield f"{key_path}: tensors {list(first.shape)} and {list(second.shape)}"
    elif isinstance(first, bytes) and isinstance(second, bytes):
        if first != second:
            yield f"{key_path}: {len(first)} and {len(second)} bytes that differ"
    elif repr(first) != repr(second):
        yield f"{key_path}: {first!r} and {second!r}"


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: NaN is equal to itself there, and 0 not to −0."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def count_tensors(value: Any) -> int:
    """Tensors in nested values."""
    if isinstance(value, dict):
        return sum(map(count_tensors, value.values()))
    return sum(map(count_tensors, value)) if isinstance(value, list | tuple) else isinstance(value, Tensor)
