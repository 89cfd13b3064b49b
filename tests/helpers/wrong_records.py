"""Checkpoints of which one entry is not what this package writes: each key, with each wrong kind of value."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch

Key = tuple[Any, ...]
"""Where an entry is: the keys and indices that lead to it."""

MISSING = object()
"""In place of a value: the entry is not there."""

WRONG: dict[str, Any] = {
    "missing": MISSING,
    "null": None,
    "list": ["a", {"b": 1}],
    "empty list": [],
    "mapping": {"a": {"b": []}},
    "text": "something else",
    "number": 7.5,
    "negative": -3,
    "nan": math.nan,
    "infinite": math.inf,
    "huge": 10**30,
    "truth": True,
    "tensor": torch.ones(2, 3),
}
"""Values by what is wrong with them; of some entries one or the other is right."""

LONGEST = 4
"""Entries of a mapping or list that are walked, where there are many alike: parameters, their optimizer's states."""


def entries(contents: Any, key: Key = ()) -> Iterator[Key]:
    """The keys of all entries, those of mappings and lists within each other too."""
    if isinstance(contents, dict):
        inner = [*contents.items()]
        inner = inner[:2] if len(inner) > 30 else inner
    elif isinstance(contents, list | tuple):
        inner = [*enumerate(contents)][:2]
    else:
        return
    for name, value in inner:
        yield (*key, name)
        yield from entries(value, (*key, name))


def replaced(contents: Any, key: Key, value: Any) -> Any:
    """A copy in which the entry of a key has another value, or is missing; what else it holds is shared."""
    first, *rest = key
    changed = copy.copy(contents) if isinstance(contents, dict) else [*contents]
    if rest:
        changed[first] = replaced(contents[first], tuple(rest), value)
    elif value is MISSING:
        del changed[first]
    else:
        changed[first] = value
    return tuple(changed) if isinstance(contents, tuple) else changed


def show(key: Key) -> str:
    """A key in a line."""
    return ".".join(str(part).partition("{")[0] for part in key)
