"""Cells that hold one label or several: which mark stands between labels, told from all cells of a column together.

`|` and `;` always stand between labels, and so do commas and spaces between numbers. A comma or a space may as well be
part of a name (`tench, Tinca tinca`, `polar bear`): they stand between labels where the parts come back in other cells,
and are part of names where no part does; where neither is plain, a setting has to say it.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Literal

from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable

Labels = Literal["one", "several"]
"""How many labels a sample has: exactly one, or any number of them."""

LIST = "[,]"
"""Stands for cells that are written as lists are in Python or JSON: `['cat', 'dog']`."""

_MARKS = {"|": "|", ";": ";", ",": "commas", " ": "spaces", LIST: "commas in brackets"}


def find_separator(
    cells: Collection[str], stated: Labels | None, where: str, names_have_spaces: bool = False
) -> str | None:
    """What stands between labels; None where each cell is one label.

    Args:
        cells: The different cells of a column, without spaces around them.
        stated: What `data.labels` states; None: what the cells show.
        where: The file and the column, for messages.
        names_have_spaces: Whether names usually have them, as those of actions do.

    Raises:
        UserError: They can be read both ways.
    """
    if stated == "one":
        return None
    filled = [cell for cell in cells if cell]
    if any(re.fullmatch(r"\[.*\]", cell) for cell in filled):
        return LIST
    marks = [mark for mark in "|;" if any(mark in cell for cell in filled)]
    if len(marks) > 1:
        raise UserError(
            f"{where} has both | and ; in its labels, as in {_example(filled, ';')}: write one of them between labels, "
            "or set data.labels to one, where they are part of names."
        )
    if marks:
        return marks[0]
    mark = next((mark for mark in ", " if any(mark in cell for cell in filled)), None)
    if mark is None or stated == "several":
        return mark
    if all(part.isdecimal() for cell in filled for part in split_labels(cell, mark)):
        return mark
    if mark == " " and names_have_spaces:
        if _are_all_made_of_others(filled):
            raise _ambiguous(filled, mark, where)
        return None
    return _comma_or_space(filled, mark, where)


def _are_all_made_of_others(cells: list[str]) -> bool:
    """Whether each word of those cells that have spaces is a cell of its own: `cat dog`, `cat` and `dog`."""
    return all(part in cells for cell in cells if " " in cell for part in cell.split())


def _comma_or_space(cells: list[str], mark: str, where: str) -> str | None:
    """Whether a comma or a space stands between labels or is part of names."""
    number_of = Counter(part for cell in cells for part in set(split_labels(cell, mark)))
    returning = [part for part, number in number_of.items() if number > 1]
    if not returning:
        return None
    stands_alone = any(mark not in cell and number_of[cell] > 1 for cell in cells)
    if len(number_of) <= len(cells) and (mark == "," or stands_alone):
        return mark
    raise _ambiguous(cells, mark, where)


def _ambiguous(cells: Iterable[str], mark: str, where: str) -> UserError:
    return UserError(
        f"{where} can be read in two ways: {_example(cells, mark)} is the name of one class, or {_MARKS[mark]} "
        "stand between the labels of several. State which with --data.labels one or --data.labels several."
    )


def _example(cells: Iterable[str], mark: str) -> str:
    return printable(repr(min(cell for cell in cells if mark in cell)[:80]))


def split_labels(cell: str, separator: str | None) -> list[str]:
    """The labels in a cell, in its order, each once; none in an empty one."""
    if separator is None:
        parts = [cell]
    elif separator == LIST:
        parts = [part.strip().strip("'\"") for part in cell.strip("[]").split(",")]
    elif separator == " ":
        parts = cell.split()
    else:
        parts = cell.split(separator)
    return list(dict.fromkeys(filter(None, (part.strip() for part in parts))))


def describe_separator(separator: str) -> str:
    """What stands between labels, in words."""
    return f"with {_MARKS[separator]} between"
