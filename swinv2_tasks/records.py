"""What checkpoints say about how to build their task again: plain values only, so that reading them runs no code."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from swinv2_tasks.errors import UserError


class Recorded:
    """Mixin: ``init_args`` holds the constructor's arguments that are plain values (numbers, text, lists of them).

    Everything else (modules, callables) is left out: what goes into a checkpoint must be readable without running code.
    """

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        self = super().__new__(cls)
        # bind_partial: copying and unpickling come here without arguments and restore init_args afterwards.
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        plain = {name: _plain(value) for name, value in list(bound.arguments.items())[1:]}
        object.__setattr__(self, "init_args", {name: value for name, value in plain.items() if value is not _OTHER})
        return self


_OTHER = object()


def _plain(value: Any) -> Any:
    """The value as plain dicts, lists, numbers, text or None; ``_OTHER`` when it is something else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return _OTHER if any(item is _OTHER for item in items) else items
    if isinstance(value, dict):
        entries = {key: _plain(item) for key, item in value.items()}
        return _OTHER if any(item is _OTHER for item in entries.values()) else entries
    return _OTHER


def task_record(contents: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What a checkpoint of this package says about its task.

    Raises:
        UserError: when it says nothing: it holds weights of another origin.
    """
    record = contents.get("swinv2_tasks") or {}
    if "task" not in record:
        raise UserError(
            f"{source} holds no run of this package: a ckpt_path goes on with, evaluates or predicts with such a run. "
            "Weights of other origin are given to a config as --model.weights."
        )
    return record
