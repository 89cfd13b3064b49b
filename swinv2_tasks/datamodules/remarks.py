"""What readers note about files that they can read, but not all of: counted, and said once in a line for each kind."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

SEVERAL_PICTURES = "hold several pictures (pages or frames), of which the first is read"
ROTATED = "are rotated as their EXIF orientation says"
FLOATS = "hold floating-point numbers, which stay unchanged; data.value_range scales them to [0, 1]"

_remarks: ContextVar[set[str] | None] = ContextVar("remarks", default=None)


def remark(text: str) -> None:
    """Note something about the file that is read: what follows "12 files". Without a collector it is dropped."""
    if (collected := _remarks.get()) is not None:
        collected.add(text)


@contextmanager
def collect_remarks() -> Iterator[set[str]]:
    """Within it, what is noted about files goes into a set."""
    collected: set[str] = set()
    token = _remarks.set(collected)
    try:
        yield collected
    finally:
        _remarks.reset(token)
