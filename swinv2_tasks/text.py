r"""What others wrote, shown and never interpreted: in terminals and in figures.

Names of files, classes, runs and settings may hold line breaks, control sequences, formulas and bytes that are no
UTF-8. Whatever prints them goes through ``say`` or ``printable``, whatever draws them through ``label``; tables are in
``tables``. No such name moves a cursor, renames a window or is set as a formula.
"""

from __future__ import annotations

import difflib
import logging
import re
import shlex
import sys
from collections.abc import Iterable
from typing import Any

BYTES = range(0xDC80, 0xDD00)
"""What stands for the bytes from 0x80 on in names that are no UTF-8: Python's ``surrogateescape``."""

LONGEST_LABEL = 60
"""Characters of a name that a figure has room for."""

_ESCAPE = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|[nrt\\])")


def printable(text: object) -> str:
    r"""Text that a terminal shows unchanged, in one line.

    Line breaks, control characters, those that turn the direction of writing or have no width become escapes, such as
    \n, \x1b, \u202e; bytes that are no UTF-8 are \x80 to \xff.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else escape(character) for character in text)


def printable_lines(text: object) -> str:
    """As ``printable``, for a message of several lines."""
    return "\n".join(map(printable, str(text).split("\n")))


def say(*parts: object, file: Any = None, flush: bool = False) -> None:
    """As ``print``, for messages with names in them: no character but a line break does anything.

    Args:
        parts: a name among them, or in them, whose line breaks are not to break the line goes through ``printable``
            first.
        file: where to; None: standard output.
        flush: write at once.
    """
    print(*map(printable_lines, parts), file=file, flush=flush)


def command_word(text: object) -> str:
    """A name as a shell takes it for one word, in a command to copy."""
    return shlex.quote(printable(text))


def label(text: object, length: int = LONGEST_LABEL) -> str:
    """A name as figures show it: in one line, not too long, and no formula, as matplotlib takes what is between two $.

    Args:
        text: the name.
        length: characters at most, of which the last ones are left out.
    """
    return shorten(text, length).replace("$", r"\$")


def shorten(text: object, length: int = LONGEST_LABEL) -> str:
    """As ``label``, for Pillow, which sets no formulas."""
    text = printable(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


# ---- escapes


def escape(character: str) -> str:
    r"""A character as an escape of ASCII: \n, \x1b, \u202e, \U000e0001; \x80 to \xff are bytes that are no UTF-8."""
    code = ord(character)
    if code in BYTES:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return character.encode("unicode_escape").decode()
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def unescape(text: str) -> str:
    r"""Text in which ``escape`` wrote some characters, and \\ every backslash."""
    return _ESCAPE.sub(lambda match: _unescape(match[0]), text)


def _unescape(sequence: str) -> str:
    if sequence[1] in "nrt\\":
        return {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}[sequence[1]]
    code = int(sequence[2:], 16)
    if sequence[1] == "x" and code >= 0x80:
        return chr(0xDC00 + code)
    return chr(code) if code <= sys.maxunicode else sequence


# ---- warnings


class _Warnings(logging.Handler):
    """Prints warnings to wherever standard error is at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), file=sys.stderr)


_warnings = _Warnings(logging.WARNING)


def show_warnings() -> None:
    """Prints the warnings of this package on standard error, each as ``say`` does."""
    logger = logging.getLogger("swinv2_tasks")
    if _warnings not in logger.handlers:
        logger.addHandler(_warnings)


def closest(word: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The name that comes nearest to a word, whatever the case of letters; none below the cutoff, of 1 for equal."""
    by_lower = {name.lower(): name for name in names}
    return [by_lower[name] for name in difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)]
