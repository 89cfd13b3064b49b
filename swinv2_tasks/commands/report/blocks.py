"""What a report is made of: sections of numbers, tables, charts, examples and texts, as plain data.

A file of a task makes its sections of what a run has written; ``page`` writes them as HTML, where all texts are
escaped. Texts are as files have them: the page makes them printable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Number:
    """A figure that stands out, as a score."""

    name: str
    value: float | str | None
    """A number in full precision, or a text; None is shown as –."""
    note: str = ""
    """What it means, in a few words."""


@dataclass(frozen=True)
class Numbers:
    """Figures side by side."""

    title: str
    numbers: Sequence[Number]
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    digits: int | None = None
    """Decimals that are shown of its numbers; None: a column of texts, or of whole numbers."""
    is_percentage: bool = False
    """Shares in [0, 1], shown in percent."""


@dataclass(frozen=True)
class Table:
    """A table whose rows are sorted by a click on a column's name.

    A cell is a text, a number in full precision, or None, which is shown as –. The page keeps a number's full
    precision beside what it shows.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[float | str | None]]
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawing, as of ``charts.as_svg``."""

    title: str
    svg: str
    text: str
    """What it shows, for whoever does not see it."""
    note: str = ""
    is_wide: bool = False
    """Whether it takes a row of its own."""


@dataclass(frozen=True)
class Picture:
    """A picture, enlarged by a click."""

    url: str
    """As of ``pages.embed``."""
    text: str
    """What it shows, for whoever does not see it."""


@dataclass(frozen=True)
class Example:
    """A sample: its pictures side by side, with lines below."""

    pictures: Sequence[Picture]
    title: str
    """As its file's name."""
    lines: Sequence[str] = ()
    frame: Literal["", "right", "wrong"] = ""
    """The color around it."""


@dataclass(frozen=True)
class Examples:
    """Samples, and which they are."""

    title: str
    examples: Sequence[Example]
    note: str = ""


@dataclass(frozen=True)
class Details:
    """Lines of text that are folded up at first, as a config."""

    title: str
    text: str


Block = Numbers | Table | Chart | Examples | Details


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own."""

    title: str
    blocks: Sequence[Block] = field(default_factory=list)
    note: str = ""
