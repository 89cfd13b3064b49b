"""The programs in docs run as they stand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import swinv2_tasks
from swinv2_tasks.datamodules.readers.annotations import CocoObject

PACKAGE = Path(swinv2_tasks.__file__).parent

DOCS = Path(__file__).parents[1] / "docs"

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def programs(page: str) -> list[str]:
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


def test_the_reference_has_a_page_for_each_public_module() -> None:
    pages = {path.stem for path in (DOCS / "reference").glob("*.md")} - {"index"}
    modules = {path.parent.name for path in PACKAGE.glob("*/__init__.py") if "__all__" in path.read_text()}
    modules |= {path.stem for path in PACKAGE.glob("*.py") if "__all__" in path.read_text()} - {"__init__"}
    assert pages == modules
    index = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+)`", index)) == set(swinv2_tasks.__all__)


@pytest.mark.parametrize("number", range(8))
def test_programs_that_embed_tasks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = programs("embedding.md")
    assert len(found) == 8
    exec(compile(found[number], f"embedding.md, program {number}", "exec"), {"__name__": "program"})
    assert not list(tmp_path.iterdir())


AUGMENTED = np.full((80, 100, 3), 128, np.uint8)


def augment_mask(data: Any) -> None:
    image, mask = data.augmentation.build((64, 48), data.resize)(AUGMENTED, np.zeros((80, 100), np.uint8))
    assert image.shape == (64, 48, 3) and mask.shape == (64, 48)


def augment_objects(data: Any) -> None:
    objects = [CocoObject(1, 0, (40.0, 30.0, 20.0, 10.0), 200.0, False, None)]
    scene = data.augmentation.build(masks=False)(AUGMENTED, objects, None, "an image")
    assert scene["image"].shape == (800, 1000, 3) and scene["boxes"].shape == (1, 4)


@pytest.mark.parametrize(("page", "augment"), [("segmentation.md", augment_mask), ("detection.md", augment_objects)])
def test_programs_with_an_augmentation_of_ones_own(
    page: str, augment: Callable[[Any], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = (text for text in programs(page) if "RandomRotation" in text)
    names: dict[str, Any] = {"__name__": __name__}  # dataclasses look their module up
    exec(compile(program, page, "exec"), names)
    augment(names["data"])
