"""How far long work has come: a bar in a terminal, elsewhere a line now and then."""

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
        self.done = 0
        self.faulty = 0
        self._seconds = seconds
        self._start = self._told = time.monotonic()
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
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, done: int = 1, faulty: int = 0) -> None:
        """Counts files that are done, and how many of them are faulty."""
        self.done += done
        self.faulty += faulty
        self._bar.update(self._task, advance=done, faulty=f"{self.faulty} faulty" if self.faulty else "")
        now = time.monotonic()
        if self._bar.disable and now - self._told >= self._seconds and self.done < self.total:
            self._told = now
            print(self.line(now - self._start), file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """How things stand after a time, in a line."""
        left = seconds / max(1, self.done) * (self.total - self.done)
        faulty = f", {self.faulty} faulty" if self.faulty else ""
        return f"{self.title}: {self.done:,} of {self.total:,}{faulty}, about {in_words(left)} left"


def in_words(seconds: float) -> str:
    """A length of time, rounded: 40 s, 12 min, 3 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
