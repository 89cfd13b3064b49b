"""How far long work has come: a line at the bottom of a terminal, elsewhere a line of its own now and then."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from types import TracebackType
from typing import Any, TextIO

from swinv2_tasks.text import printable, say

SECONDS = 30.0
"""Time between two lines, where there is no terminal."""

REDRAW_SECONDS = 0.2
"""Time between two drawings of a status line."""

BAR_WIDTHS = (10, 30)
"""Columns of the narrowest and the widest bar."""


def in_words(seconds: float) -> str:
    """A length of time, rounded: 40 s, 12 min, 3 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def count_words(number: int, noun: str, plural: str = "") -> str:
    """A number of things: 1 epoch, 1,200 epochs; the plural is given where an s does not make it."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def format_number(value: float) -> str:
    """A measured value with four digits: 2.058, 0.0833, 0.001668, 3.417e-05; 52,310 in full."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size > 1:
        return f"{value:#.4g}"
    return f"{value:.4f}" if size >= 0.01 or not size else f"{value:.4g}"


def is_terminal(stream: Any) -> bool:
    """Whether a line that was written there can be written over: in a terminal or below a notebook's cell."""
    return bool(getattr(stream, "isatty", bool)()) or _is_notebook(stream)


def _is_notebook(stream: Any) -> bool:
    return type(stream).__module__.partition(".")[0] == "ipykernel"


class StatusLine:
    """The last line of a terminal, written over and over; what anyone prints in the meantime appears above it.

    It is on standard error, in notebooks on standard output. Where neither can show it, nothing is written.

    The cursor is never hidden and no thread draws: whatever ends the process leaves a terminal that works.
    """

    def __init__(self) -> None:
        self._stream: TextIO | None = None
        self._redirections: ExitStack | None = None
        self._text = ""
        self._is_shown = False
        self._drawn_at = -math.inf

    def start(self) -> bool:
        """Begins to show the line; returns whether there is a terminal to show it in."""
        if self._redirections is not None:
            return True
        self._stream = next((stream for stream in (sys.stderr, sys.stdout) if _is_line_stream(stream)), None)
        if self._stream is None:
            return False

        self._redirections = ExitStack()
        if is_terminal(sys.stdout):
            self._redirections.enter_context(redirect_stdout(_Above(sys.stdout, self)))
        if is_terminal(sys.stderr):
            self._redirections.enter_context(redirect_stderr(_Above(sys.stderr, self)))
        self._drawn_at = -math.inf
        return True

    def stop(self) -> None:
        """Removes the line; it can be started again."""
        if self._redirections is None:
            return
        self.hide()
        self._redirections.close()
        self._redirections = None
        self._text = ""

    @property
    def is_due(self) -> bool:
        """Whether the line is shown, and was drawn long enough ago to be drawn again."""
        return self._redirections is not None and time.monotonic() - self._drawn_at >= REDRAW_SECONDS

    def show(self, title: str, share: float | None, details: Sequence[str]) -> None:
        """Draws the line anew.

        Args:
            title: what is done.
            share: how much of it is done, in [0, 1], as a bar shows it; None: nobody knows, no bar.
            details: what stands to the right of the bar, the most important first; what has no room is left out.
        """
        if self._redirections is None:
            return
        self.hide()
        self._drawn_at = time.monotonic()
        title, details = printable(title), [*map(printable, details)]
        self._text = _layout(title, share, details, _width() - 1, self._colors(), self._is_ascii())
        self.draw()

    def hide(self) -> None:
        """Removes the line until it is drawn again."""
        if self._is_shown and self._stream is not None:
            blank = "\r" + " " * (_width() - 1) + "\r" if _is_notebook(self._stream) else "\r\x1b[K"
            self._stream.write(blank)
            self._stream.flush()
            self._is_shown = False

    def draw(self) -> None:
        """Draws the line as it was."""
        if self._text and self._stream is not None:
            self._stream.write(self._text)
            self._stream.flush()
            self._is_shown = True

    def _colors(self) -> bool:
        return "NO_COLOR" not in os.environ and os.environ.get("TERM", "dumb") != "dumb"

    def _is_ascii(self) -> bool:
        return "utf" not in (getattr(self._stream, "encoding", None) or "").lower()


def _is_line_stream(stream: Any) -> bool:
    """Whether the status line can be there; in notebooks standard output, since standard error looks like errors."""
    return is_terminal(stream) and not (_is_notebook(stream) and stream is sys.stderr)


def _width() -> int:
    return shutil.get_terminal_size().columns


def _layout(title: str, share: float | None, details: Sequence[str], width: int, colors: bool, is_ascii: bool) -> str:
    """Title, bar and as many details as there is room for in ``width`` columns."""
    gap = "  "
    if share is None:
        return gap.join([title, *details])[:width]
    bar_width = min(max(width - 60, BAR_WIDTHS[0]), BAR_WIDTHS[1])
    percent = f"{math.floor(100 * share):3d} %"
    line = gap.join([title, "·" * bar_width, percent])
    for detail in details:
        if len(line) + len(gap) + len(detail) > width:
            break
        line += gap + detail
    return line[:width].replace("·" * bar_width, _bar(share, bar_width, colors, is_ascii), 1)


def _bar(share: float, width: int, colors: bool, is_ascii: bool) -> str:
    full = round(min(1.0, max(0.0, share)) * width)
    done, left = ("#", "-") if is_ascii else ("━", "─")
    return (
        f"\x1b[36m{done * full}\x1b[2m{left * (width - full)}\x1b[0m" if colors else done * full + left * (width - full)
    )


class _Above:
    """A terminal's stream while a status line is shown: what is written appears above that line."""

    def __init__(self, stream: TextIO, line: StatusLine) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        self._line.hide()
        number = self._stream.write(text)
        if text.endswith("\n"):  # else the rest of the line follows
            self._stream.flush()
            self._line.draw()
        return number

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class WorkProgress:
    """Shows on standard error how much is done, how much of it is faulty, and how long the rest will take.

    To be used in a ``with``.

    Args:
        title: what is done, as in "Decoding".
        total: number of files; infinite where nobody knows.
        seconds: time between two lines, where standard error is no terminal.
        unit: what is counted, where it is no files.
        clock: gives the time in seconds.
    """

    def __init__(
        self,
        title: str,
        total: float,
        seconds: float = SECONDS,
        unit: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self.number = 0.0
        self.faulty = 0
        self._seconds = seconds
        self._clock = clock
        self._last_line = clock()
        self._first: tuple[float, float] | None = None
        """When the first files were done, and how many. Until then processes start and libraries are imported: what
        that takes says nothing about the rest."""
        self._line = StatusLine()
        self._has_line = False

    def __enter__(self) -> WorkProgress:
        self.start()
        return self

    def __exit__(
        self, error_class: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, bar: bool = True) -> None:
        """Shows the line, where there is a terminal and a ``bar`` is wanted."""
        self._has_line = bar and self._line.start()
        self._draw()

    def stop(self) -> None:
        """Removes the line."""
        self._line.stop()

    def advance(self, number: float = 1, faulty: int = 0) -> None:
        """Counts files that are done, and how many of them are faulty."""
        self.update(self.number + number, self.faulty + faulty)

    def update(self, number: float, faulty: int = 0) -> None:
        """Sets how many files are done, and how many of them are faulty."""
        self.number, self.faulty = number, faulty
        now = self._clock()
        if self._first is None and number > 0:
            self._first = now, number
        if self._line.is_due:
            self._draw()
        elif not self._has_line and now - self._last_line >= self._seconds and self.number < self.total:
            self._last_line = now
            say(self.line(), file=sys.stderr, flush=True)

    def _draw(self) -> None:
        share = self.number / self.total if 0 < self.total < math.inf else None
        self._line.show(self.title, share, self._details())

    def _details(self) -> list[str]:
        """Counts, faulty files and, once there is something to tell it by, the time left."""
        total = f" of {self.total:,}" if self.total < math.inf else ""
        details = [f"{math.floor(self.number):,}{total} {self.unit}".rstrip()]
        details += [f"{self.faulty} faulty"] if self.faulty else []
        since, before = self._first or (0.0, self.number)
        if self.number > before and self.total < math.inf:
            seconds = (self._clock() - since) / (self.number - before) * (self.total - self.number)
            details.append(f"about {in_words(seconds)} left")
        return details

    def line(self) -> str:
        """The progress, in a line."""
        return f"{self.title}: {', '.join(self._details())}"
