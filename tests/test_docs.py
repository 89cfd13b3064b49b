"""The programs in docs run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import swinv2_tasks

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
