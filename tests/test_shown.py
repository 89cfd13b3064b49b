"""What files say is shown, never interpreted: the package goes one way, commands are given names that do something."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import swinv2_tasks

# ---- one way

ELSEWHERE = {
    "print": ("text.py", "callbacks/console.py"),  # the latter hands on what LightningModule.print is given
    "csv.writer": ("tables.py", "cli/configs.py", "sample_data/writer.py"),  # lists in formats that others read
    "csv.DictWriter": ("training/run_folder.py",),  # metrics.csv, which is Lightning's
    "rich.console": ("tables.py",),
    "rich.table": ("tables.py",),
    "rich.text": ("tables.py",),
    ".savefig": ("callbacks/figures.py",),
}
"""What writes without asking what it writes, and the only files that use it."""


def uses(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What a module names that ``ELSEWHERE`` might list, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield f".{node.attr}", node.lineno
            if isinstance(node.value, ast.Name):
                yield f"{node.value.id}.{node.attr}", node.lineno
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((name, node.lineno) for name in names)


def find_other_ways(path: str, text: str) -> list[str]:
    return [
        f"{path}:{line} uses {name}"
        for name, line in uses(ast.parse(text))
        if name in ELSEWHERE and path not in ELSEWHERE[name]
    ]


def test_all_of_the_package_prints_and_writes_tables_the_same_way() -> None:
    root = Path(str(swinv2_tasks.__file__)).parent
    files = {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in root.rglob("*.py")}
    assert [fault for path, text in sorted(files.items()) for fault in find_other_ways(path, text)] == []


@pytest.mark.parametrize(
    "line",
    ["print(name)", "rank_zero_only(print)(name)", "import csv; csv.writer(file)", "figure.savefig(path)",
     "from rich.table import Table", "import rich.console"],
)  # fmt: skip
def test_another_way_is_found(line: str) -> None:
    assert len(find_other_ways("commands/score.py", f"import os\n{line}")) == 1
