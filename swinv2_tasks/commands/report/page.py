"""The page of a report: one file with a small script of its own, without requests; all that files say is escaped."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from swinv2_tasks.commands.report.blocks import (
    Block,
    Chart,
    Column,
    Details,
    Example,
    Examples,
    Number,
    Numbers,
    Section,
    Table,
)
from swinv2_tasks.pages import write_page
from swinv2_tasks.progress import format_number
from swinv2_tasks.text import printable, printable_lines

NOTHING = "–"
"""What stands where there is no number."""


def write_sections(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Writes the page.

    Args:
        path: The file.
        title: Of the page.
        subtitle: The line below.
        sections: From top to bottom.

    Raises:
        UserError: It cannot be written.
    """
    values = {
        "title": printable(title),
        "subtitle": printable(subtitle),
        "sections": [
            {
                "title": printable(section.title),
                "anchor": f"{number}-{re.sub(r'[^a-z0-9]+', '-', section.title.lower()).strip('-')}",
                "note": printable(section.note),
                "blocks": [*_block_values(section.blocks)],
            }
            for number, section in enumerate(sections, start=1)
        ],
    }
    write_page(path, "commands/report/page.html", values, "commands/report/page.js")


def _block_values(blocks: Sequence[Block]) -> Iterator[dict[str, Any]]:
    """What the template names of each block; charts that follow one another share their room."""
    charts: list[Chart] = []
    for block in blocks:
        if isinstance(block, Chart):
            charts.append(block)
            continue
        if charts:
            yield {"type": "charts", "charts": charts}
            charts = []
        if isinstance(block, Details):
            yield {"type": "details", "title": printable(block.title), "text": printable_lines(block.text)}
        else:
            yield {"title": printable(block.title), "note": printable(block.note), **_values_of(block)}
    if charts:
        yield {"type": "charts", "charts": charts}


def _values_of(block: Numbers | Table | Examples) -> dict[str, Any]:
    if isinstance(block, Numbers):
        return {"type": "numbers", "numbers": [_number_values(number) for number in block.numbers]}
    if isinstance(block, Table):
        columns = [
            {"name": printable(column.name), "is_amount": _is_amount(column, [row[index] for row in block.rows])}
            for index, column in enumerate(block.columns)
        ]
        rows = [
            [_cell_values(cell, column) for cell, column in zip(row, block.columns, strict=True)] for row in block.rows
        ]
        return {"type": "table", "columns": columns, "rows": rows}
    return {"type": "examples", "examples": [_example_values(example) for example in block.examples]}


def _number_values(number: Number) -> Mapping[str, str]:
    value = number.value
    if isinstance(value, str):
        shown = {"text": printable(value), "exact": ""}
    elif value is None or math.isnan(value):
        shown = {"text": NOTHING, "exact": ""}
    else:
        shown = {"text": f"{value:,}" if isinstance(value, int) else format_number(value), "exact": repr(value)}
    return {"name": printable(number.name), "note": printable(number.note), **shown}


def _is_amount(column: Column, cells: Sequence[float | str | None]) -> bool:
    """Whether a column holds numbers, which stand at its right."""
    return column.digits is not None or column.is_percentage or any(isinstance(cell, int | float) for cell in cells)


def _cell_values(cell: float | str | None, column: Column) -> dict[str, str]:
    """What a cell shows, and the number in full."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return {"text": NOTHING, "exact": ""}
    if isinstance(cell, str):
        return {"text": printable(cell), "exact": ""}
    digits = column.digits if column.digits is not None else 1
    if column.is_percentage:
        text = f"{cell:.{digits}%}"
    elif isinstance(cell, int) or (column.digits is None and cell.is_integer()):
        text = f"{int(cell):,}"
    else:
        text = f"{cell:,.{column.digits if column.digits is not None else 4}f}"
    return {"text": text, "exact": repr(cell)}


def _example_values(example: Example) -> dict[str, Any]:
    return {
        "title": printable(example.title),
        "frame": example.frame,
        "lines": [printable(line) for line in example.lines],
        "pictures": [{"text": printable(picture.text), "url": picture.url} for picture in example.pictures],
    }
