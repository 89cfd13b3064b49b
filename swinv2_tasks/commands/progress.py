"""The progress of long work: a bar in a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS = 30.0
"""Time between two lines."""


class WorkProgress:
    """Shows on standard error how much is done, how much of it is faulty, and how long the rest will take.

    To be used in a ``with``.

    Args:
        title: what is done, as in "Decoding".
        total: number of files.
        seconds: time between two lines, where standard error is no terminal.
    """

    def __init__(self, title: str, total: int, seconds: float = SECONDS) -> None:
        self.title = title
        self.total = total
        self.number = 0
        self.faulty = 0
        self._seconds = seconds
        self._start = self._last_line = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[faulty]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self._task = self._bar.add_task(title, total=total, faulty="")

    def __enter__(self) -> WorkProgress:
        self._bar.start()
        return self

    def __exit__(
        self, error_class: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, number: int = 1, faulty: int = 0) -> None:
        """Counts files that are done, and how many of them are faulty."""
        self.number += number
        self.faulty += faulty
        self._bar.update(self._task, advance=number, faulty=f"{self.faulty} faulty" if self.faulty else "")
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= self._seconds and self.number < self.total:
            self._last_line = now
            print(self.line(now - self._start), file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """The progress after a time, in a line."""
        remaining = seconds / max(1, self.number) * (self.total - self.number)
        faulty = f", {self.faulty} faulty" if self.faulty else ""
        return f"{self.title}: {self.number:,} of {self.total:,}{faulty}, about {in_words(remaining)} left"


def in_words(seconds: float) -> str:
    """A length of time, rounded: 40 s, 12 min, 3 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
