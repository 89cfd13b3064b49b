r"""Tables whose cells are shown, never interpreted: CSV files, and what terminals print.

A spreadsheet takes a cell that begins with =, +, - or @ for a formula, even in quotation marks. So the rule of all CSV
files: a cell that begins with an apostrophe is text, in which control characters and bytes that are no UTF-8 are
escapes (\n, \x1b, \u202e; \x80 to \xff for bytes) and \\ is a backslash; every other cell stands unchanged.
``read_table`` gives back exactly what was written.
"""

from __future__ import annotations

import csv
import functools
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from swinv2_tasks.text import escape, printable, unescape

_FORMULA = r"\s*[=+\-@＝＋－＠]"  # with the wide signs of East Asian keyboards
_STARTS_FORMULA = re.compile(rf"'|{_FORMULA}|.*?;{_FORMULA}", re.DOTALL)
"""Of a cell; a spreadsheet may take a semicolon for the end of one."""

_NUMBER = re.compile(r"-\d+(\.\d+)?")

_JOINERS = "\u200c\u200d"
"""Of no width, but part of ordinary words in some scripts."""


# ---- CSV files


def csv_cell(value: object) -> str:
    """What stands in a CSV file for a value, by the rule above."""
    if isinstance(value, int | float) and value >= 0:  # no text, and of files with millions of cells most of them
        return str(value)
    return "" if value is None else _text_cell(str(value))


@functools.lru_cache(maxsize=8192)  # classes stand in a file again and again
def _text_cell(text: str) -> str:
    is_plain = not _STARTS_FORMULA.match(text) or _NUMBER.fullmatch(text)
    if is_plain and (text.isprintable() or not any(map(_does_something, text))):
        return text
    escaped = "".join(map(_escape, text))
    return "'" + re.sub(f";(?={_FORMULA})", r"\\x3b", escaped)


def from_csv_cell(cell: str) -> str:
    """The text that ``csv_cell`` wrote."""
    return unescape(cell[1:]) if cell.startswith("'") else cell


def _escape(character: str) -> str:
    if character == "\\":
        return "\\\\"
    return escape(character) if _does_something(character) else character


def _does_something(character: str) -> bool:
    """Whether a character is no text: controls, directions of writing, line separators, bytes that are no UTF-8."""
    if character.isprintable() or character in _JOINERS:
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def csv_line(cells: Iterable[object]) -> str:
    """A line of a CSV file, with its end."""
    line = io.StringIO()
    csv.writer(line).writerow([csv_cell(cell) for cell in cells])
    return line.getvalue()


def write_table(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Writes a CSV file in UTF-8, of which the first row names the columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([csv_cell(cell) for cell in row] for row in rows)


def read_rows(lines: Iterable[str]) -> Iterator[list[str]]:
    """The rows of a CSV file, as they were given to ``csv_line``.

    Raises:
        csv.Error: it is no CSV file.
    """
    return ([*map(from_csv_cell, row)] for row in csv.reader(lines))


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by the names of the columns, as they were given to ``write_table``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no text in UTF-8.
        csv.Error: it is no CSV file.
    """
    with path.open(encoding="utf-8", newline="") as file:
        columns, *rows = [*read_rows(file)] or [[]]
    return [dict(zip(columns, row, strict=False)) for row in rows if row]


# ---- in terminals


class TerminalTable(Table):
    """A table of rich, in whose cells nothing is markup, an emoji's name or a control sequence."""

    def __init__(self, *headers: Any, title: str = "", **settings: Any) -> None:
        super().__init__(*headers, title=_cell(title, "table.title"), **settings)

    def add_column(self, header: Any = "", footer: Any = "", **settings: Any) -> None:
        """Adds a column; the arguments are rich's."""
        super().add_column(_cell(header), _cell(footer), **settings)

    def add_row(self, *cells: Any, **settings: Any) -> None:
        """Adds a row; the arguments are rich's."""
        super().add_row(*map(_cell, cells), **settings)

    def print(self) -> None:
        """Prints it on standard output."""
        Console().print(self)


def _cell(text: Any, style: str = "") -> Any:
    return Text(printable(text), style) if isinstance(text, str) else text
