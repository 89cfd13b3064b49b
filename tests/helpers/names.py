r"""Names that do something wherever they are interpreted: control sequences, markup, formulas, bytes that are no UTF-8.

Names of files hold no slash and no zero, and no more than 255 bytes.
"""

from __future__ import annotations

import os
import re
import unicodedata

from hypothesis import strategies as st

NAMES = (
    "\x1b]0;owned\x07title",  # renames the window
    "\x1b[38;5;201mcolored",
    "\x9b38;5;201mcolored",  # the same in one character
    "\x1b[2Jcleared",
    "[red]markup[/red]",
    "[/nothing opened",
    "dog :dog: $x_1$ $\\frac{",
    "=cmd|calc!A1",
    "+1+2",
    "-1+2",
    "@SUM(1)",
    "a;=cmd",
    "\tindented",
    "\rover",
    "line\nbreak",
    "txt\u202egpj",
    "'quoted'",
    "back\\slash \\x1b",
    os.fsdecode(b"caf\xe9"),
)

FORMULA_SIGNS = "=+-@\t\r\n＝＋－＠"

_STYLES = re.compile(r"\x1b\[(?:(?:0|1|2|3|36)m|K)")
"""What this package and its tables write of their own: bold, dim, italic, cyan, the end of each, an empty line."""


def any_text() -> st.SearchStrategy[str]:
    """Text of which many a character does something."""
    special = st.sampled_from([*NAMES, *FORMULA_SIGNS, "\\", "'", '"', ";", ",", " ", "$", "_", "[", "]", ":", "\0"])
    character = st.characters(exclude_categories=())  # with surrogates
    return st.lists(st.one_of(special, character, st.sampled_from("abc é")), max_size=12).map("".join)


def effects(output: str) -> list[str]:
    """What in an output does something beyond ending lines, and is no style of this package's own."""
    output = _STYLES.sub("", output.replace("\r\n", "\n").replace("\r\x1b[K", "\x1b[K"))
    return [line for line in output.split("\n") if not line.isprintable()]


def is_valid(character: str) -> bool:
    """Whether a character may stand in a file of UTF-8 that people read."""
    return character in "\r\n" or unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
