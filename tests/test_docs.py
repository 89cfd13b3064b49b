"""The programs in docs run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def programs(page: str) -> list[str]:
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


def test_the_program_with_a_decoder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = (text for text in programs("segmentation.md") if "SumDecoder" in text)
    names: dict[str, Any] = {"__name__": "program"}
    exec(compile(program, "segmentation.md", "exec"), names)
    assert names["logits"].shape == (1, 4, 64, 96)


@pytest.mark.parametrize("number", range(8))
def test_programs_that_embed_tasks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = programs("embedding.md")
    assert len(found) == 8
    exec(compile(found[number], f"embedding.md, program {number}", "exec"), {"__name__": "program"})
    assert not list(tmp_path.iterdir())


def test_the_program_with_an_augmentation_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = (text for text in programs("classification.md") if "RandomRotation" in text)
    names: dict[str, Any] = {"__name__": __name__}  # dataclasses look their module up
    exec(compile(program, "classification.md", "exec"), names)
    data = names["data"]
    transform = data.augmentation.build((64, 48), data.mean, data.std)
    pixels = transform(Image.new("RGB", (100, 80), "gray"))
    assert pixels.shape == (3, 64, 48) and pixels.dtype == torch.float32
