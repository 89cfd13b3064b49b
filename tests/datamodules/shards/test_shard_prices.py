"""An index and an order of shards cost what their bytes account for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swinv2_tasks.datamodules.shards import Streaming, open_shards
from swinv2_tasks.datamodules.shards.reader import CONFIG
from tests.helpers.prices import refusal


def write_shards(folder: Path, **changes: Any) -> None:
    """Two samples in a shard of ten bytes, whose content nothing reads."""
    chunk = {"filename": "chunk-0-0.bin", "chunk_bytes": 10, "chunk_size": 2, "dim": None, **changes}
    index = {"config": CONFIG, "chunks": [chunk], "classes": {"ids": ["a", "b"], "names": ["a", "b"]}}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "chunk-0-0.bin").write_bytes(bytes(10))
    np.save(folder / "order.npy", np.array([1, 0]))


def open_them(folder: Path) -> int:
    return len(open_shards(str(folder), Streaming()) or ())


def write_order(folder: Path, header: str, rest: bytes = b"") -> None:
    length = len(header) + 1
    content = b"\x93NUMPY\x02\x00" + length.to_bytes(4, "little") + header.encode() + b"\n" + rest
    (folder / "order.npy").write_bytes(content)


HEADER = "{'descr': '<i8', 'fortran_order': False, 'shape': (%s,), }"


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def archive(path: Path) -> None:
    np.savez_compressed(path.with_suffix(".npz"), order=np.zeros(10**7, dtype=np.int64))
    path.with_suffix(".npz").rename(path)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "samples": (lambda folder: write_shards(folder, chunk_size=10**12), "more than 50,000,000 samples"),
    "sizes": (lambda folder: write_shards(folder, chunk_size=10**30), "a shard's size"),
    "digits": (lambda folder: write_shards(folder, chunk_bytes=10**400), "digits"),
    "deep": (lambda folder: (folder / "index.json").write_text("[" * 100_000), "deep"),
    "long": (lambda folder: (folder / "index.json").write_bytes(bytes(2**26 + 1)), "67,108,865 bytes"),
    "shape": (lambda folder: write_order(folder, HEADER % 10**12), "no order"),
    "more": (lambda folder: write_order(folder, HEADER % 2, bytes(24)), "no order"),
    "header": (lambda folder: write_order(folder, HEADER % ("1" + " " * 20_000)), "order.npy"),
    "large": (lambda folder: (folder / "order.npy").write_bytes(bytes(10**6)), "1,000,000 bytes"),
    "archive": (lambda folder: archive(folder / "order.npy"), "order.npy"),
    "pipe": (lambda folder: replace_by_pipe(folder / "order.npy"), "is a pipe"),
    "index a pipe": (lambda folder: replace_by_pipe(folder / "index.json"), "is a pipe"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_shards_that_state_more_than_they_hold_are_refused(name: str, tmp_path: Path) -> None:
    write_shards(tmp_path)
    change, words = BROKEN[name]
    change(tmp_path)
    assert words in refusal(open_them, tmp_path)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint64])
def test_an_order_is_read_in_any_type_of_whole_numbers(kind: Any, tmp_path: Path) -> None:
    write_shards(tmp_path)
    np.save(tmp_path / "order.npy", np.array([1, 0], dtype=kind))
    shards = open_shards(str(tmp_path), Streaming())
    assert shards is not None
    assert shards.order.tolist() == [1, 0]
