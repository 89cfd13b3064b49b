"""Tables, in whose cells nothing is interpreted: by spreadsheets, by terminals, by rich."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from swinv2_tasks.tables import TerminalTable, csv_cell, csv_line, from_csv_cell, read_rows, read_table, write_table
from swinv2_tasks.text import printable
from tests.helpers.names import FORMULA_SIGNS, NAMES, any_text, effects, is_valid

Rows = list[list[str]]


@given(any_text())
@settings(deadline=None, max_examples=500)
def test_a_cell_is_read_back_and_is_no_formula(text: str) -> None:
    cell = csv_cell(text)
    assert from_csv_cell(cell) == text
    assert all(map(is_valid, cell)) and "\n" not in cell and "\r" not in cell
    for part in cell.split(";"):  # which some spreadsheets take for the end of a cell
        start = part.strip()[:1]
        assert not start or start not in FORMULA_SIGNS or re.fullmatch(r"-\d+(\.\d+)?", cell)


@given(st.lists(st.lists(any_text(), min_size=1, max_size=4), max_size=5))
@settings(deadline=None)
def test_lines_are_read_back(rows: Rows) -> None:
    lines = [csv_line(row) for row in rows]
    assert all(line.endswith("\r\n") and line.count("\n") == 1 for line in lines)
    assert list(read_rows("".join(lines).encode().decode().splitlines(keepends=True))) == rows


@given(st.lists(any_text(), min_size=1, max_size=6, unique=True), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_table_is_read_back_by_its_columns(tmp_path: Path, columns: list[str], data: st.DataObject) -> None:
    row = st.lists(any_text(), min_size=len(columns), max_size=len(columns))
    rows = data.draw(st.lists(row, max_size=4))
    write_table(tmp_path / "table.csv", [columns, *rows])
    expected = [dict(zip(columns, row, strict=True)) for row in rows]
    assert read_table(tmp_path / "table.csv") == expected


@pytest.mark.parametrize(
    "name",
    ["photo 1.jpg", "café/日本語.png", "a, b.mp4", 'she said "no"', "C:\\photos\\x.jpg", "a-b=c", "-12", "-1.5",
     "می‌خواهم", "$x$", "[1]", "a; b", ""],
)  # fmt: skip
def test_ordinary_names_stand_unchanged(name: str) -> None:
    assert next(csv.reader([csv_line([name, 1.5])])) == [name, "1.5"]


def test_numbers_stay_numbers_and_nothing_is_empty() -> None:
    assert csv_line([-1.5, 3, None, float("nan")]) == "-1.5,3,,nan\r\n"


@pytest.mark.parametrize("style", ["plain", "terminal"])
@given(st.lists(any_text(), min_size=3, max_size=3))
@settings(deadline=None)
def test_a_terminal_shows_cells_as_they_are(style: str, texts: list[str]) -> None:
    title, name, footer = texts
    table = TerminalTable(title=title, show_footer=True)
    table.add_column(name, footer, overflow="fold")
    table.add_row(name)
    stream = io.StringIO()
    terminal = style == "terminal"
    Console(file=stream, width=2000, force_terminal=terminal, color_system="truecolor" if terminal else None).print(
        table
    )
    output = stream.getvalue()
    assert effects(output) == []
    text = re.sub(r"\x1b\[[0-9;]*m", "", output)
    assert printable(name).strip() in text and printable(footer).strip() in text
    assert "".join(printable(title).split()) in "".join(text.split())  # which is folded at the table's width


@pytest.mark.parametrize("name", NAMES)
def test_narrow_terminals_fold_what_nothing_interprets(name: str) -> None:
    table = TerminalTable(title="classes")
    table.add_column("class", overflow="fold")
    table.add_row(name)
    stream = io.StringIO()
    Console(file=stream, width=14).print(table)
    rows = [line[2:-2] for line in stream.getvalue().splitlines() if line.startswith("│")]
    assert effects(stream.getvalue()) == []
    assert "".join(rows).replace(" ", "") == printable(name).replace(" ", "")
