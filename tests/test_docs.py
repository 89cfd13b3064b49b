"""The programs in docs run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def programs(page: str) -> list[str]:
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("number", range(8))
def test_programs_that_embed_tasks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = programs("embedding.md")
    assert len(found) == 8
    exec(compile(found[number], f"embedding.md, program {number}", "exec"), {"__name__": "program"})
    assert not list(tmp_path.iterdir())
