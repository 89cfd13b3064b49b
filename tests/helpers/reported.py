"""Blocks of a report's sections, found by their titles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swinv2_tasks.commands.report.blocks import Example, Examples, Section, Table


def block(sections: Sequence[Section], title: str) -> Any:
    """The block of a title."""
    (wanted,) = [each for section in sections for each in section.blocks if each.title == title]
    return wanted


def rows(table: Table) -> list[dict[str, Any]]:
    """The rows of a table, by the names of its columns."""
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


def examples(sections: Sequence[Section]) -> list[Example]:
    """All examples of some sections."""
    groups = [each for section in sections for each in section.blocks if isinstance(each, Examples)]
    return [example for group in groups for example in group.examples]


def picture_bytes(sections: Sequence[Section]) -> int:
    """What the pictures of some sections take on a page."""
    return sum(len(picture.url) for example in examples(sections) for picture in example.pictures)
