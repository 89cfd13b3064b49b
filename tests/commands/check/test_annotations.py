"""Annotation files are checked in little memory, whatever their lists' order."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swinv2_tasks.commands.check.annotations import check_annotation_file
from swinv2_tasks.commands.check.findings import Findings

IMAGES, OBJECTS = 400, 12_000


def write_annotations(path: Path, number: int = OBJECTS, is_reversed: bool = False) -> Path:
    """Objects with outlines of 60 corners, each within its box."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    objects = []
    for k in range(number):
        x, y = rng.uniform(100, 400, 2)
        outline = np.stack([x + 50 * np.cos(angles), y + 50 * np.sin(angles)], axis=1).round(5)
        box = [x - 50, y - 50, 100.0, 100.0]
        entry = {"id": k, "image_id": k % IMAGES, "category_id": 1 + k % 2, "bbox": box}
        objects.append(entry | {"segmentation": [outline.ravel().tolist()], "iscrowd": 0})
    content: dict[str, Any] = {
        "images": [{"id": k, "file_name": f"{k}.jpg", "width": 500, "height": 500} for k in range(IMAGES)],
        "annotations": objects,
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "pen"}],
    }
    names = reversed(content) if is_reversed else iter(content)
    path.write_text(json.dumps({name: content[name] for name in names}))
    return path


@pytest.mark.slow
def test_a_file_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = write_annotations(tmp_path / "instances.json")
    findings = Findings()
    tracemalloc.start()
    seen = check_annotation_file(findings, "train", path, tmp_path, [1, 2])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 12_000_000
    assert peak < path.stat().st_size / 2
    assert seen.counts == {0: OBJECTS // 2, 1: OBJECTS // 2} and len(seen.images) == IMAGES
    assert sum(seen.numbers) == len(seen.sides) == OBJECTS
    assert set(findings.counts) <= {"duplicate_box"}  # of so many at random, some are


def test_the_order_of_the_lists_changes_nothing(tmp_path: Path) -> None:
    both = []
    for is_reversed in (False, True):
        path = write_annotations(tmp_path / f"{is_reversed}.json", 900, is_reversed)
        seen = check_annotation_file(Findings(), "train", path, tmp_path, [])
        both.append((seen.images, seen.counts, seen.sides, seen.numbers))
    assert both[0] == both[1]
