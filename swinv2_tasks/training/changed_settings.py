"""Which settings a resumed training has that the one before it did not have, by what its checkpoint records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from swinv2_tasks.outside_files import shorten
from swinv2_tasks.text import printable

MOST_NAMED = 8

ELSEWHERE = frozenset(
    {
        *("model.weights", "model.num_classes"),
        *("data.root", "data.files", "data.source", "data.class_names", "data.stream"),
        *("data.batch_size", "data.num_workers", "data.faulty_samples", "data.faulty_budget"),
    }
)
"""Settings that say where things are, that change nothing learned, or that are compared by what they come to."""


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The line that names the settings of model and data that have changed; None where none has.

    Args:
        before: what a checkpoint records under ``task`` and ``data``: classes and their arguments.
        now: the same of the training that resumes.
    """
    changes = [
        f"{name} {_show(new)} (was {_show(old)})"
        for part, name in (("task", "model"), ("data", "data"))
        if before.get(part) is not None and now.get(part) is not None
        for name, old, new in _differences(before[part], now[part], name)
    ]
    if not changes:
        return None
    more = f", and {len(changes) - MOST_NAMED} more" if len(changes) > MOST_NAMED else ""
    return (
        f"resuming with other settings than the training had so far: {', '.join(changes[:MOST_NAMED])}{more}. "
        "They hold from here on"
    )


def _differences(before: Any, now: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Names and values of what differs in two recorded objects; what only one of them records is none of it."""
    if name in ELSEWHERE or before == now:
        return
    if _is_object(before) and _is_object(now):
        if before["class"] != now["class"]:
            yield name, before["class"], now["class"]
            return
        before, now = before["init_args"], now["init_args"]
    are_mappings = isinstance(before, Mapping) and isinstance(now, Mapping)
    # Another version of this package may have written other arguments.
    if not are_mappings or (before.keys() != now.keys() and name not in ("model", "data")):
        yield name, before, now
        return
    for key in sorted(before.keys() & now.keys()):
        yield from _differences(before[key], now[key], f"{name}.{key}")


def _is_object(value: Any) -> bool:
    """Whether a value is what ``Recorded`` settings are written as."""
    return isinstance(value, Mapping) and value.keys() == {"class", "init_args"}


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if _is_object(value):
        return str(value["class"])
    return printable(value)[:60] if isinstance(value, str) else printable(shorten(value))
