"""What checkpoints say about how to build their task again: plain values only, so that reading them runs no code."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from swinv2_tasks.errors import UserError
from swinv2_tasks.records import (
    LARGEST,
    Check,
    each,
    either,
    flag,
    mapping,
    null,
    number,
    one_of,
    optional,
    plain,
    require,
    sequence,
    text,
    values,
    whole,
)


class _ConstructorSignature:
    """The arguments of ``__init__``, for help texts, editors and documentation: else they show those of ``__new__``."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("an instance's signature is that of its __call__")
        signature = inspect.signature(owner.__init__)  # type: ignore[misc]
        parameters = list(signature.parameters.values())[1:]
        return signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)


class Recorded:
    """Mixin: ``init_args`` holds the constructor's arguments that are plain values (numbers, text, lists of them).

    Everything else (modules, callables) is left out: what goes into a checkpoint must be readable without running code.
    """

    init_args: dict[str, Any]

    __signature__ = _ConstructorSignature()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Makes the object and records its arguments, before its ``__init__`` runs."""
        self = super().__new__(cls)
        # bind_partial: copying and unpickling come here without arguments and restore init_args afterwards.
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        plain = {name: _plain(value) for name, value in list(bound.arguments.items())[1:]}
        for name, value in plain.items():
            _check_finite(value, f"{cls.__name__}: {name}")
        object.__setattr__(self, "init_args", {name: value for name, value in plain.items() if value is not _OTHER})
        return self


def _check_finite(value: Any, name: str) -> None:
    """Refuses numbers that compare with no bound: what is made of a NaN is no error anywhere, only wrong.

    Raises:
        UserError: there is one.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} is {value}; expected a finite number.")
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        _check_finite(entry, f"{name}.{key}")


_OTHER = object()


def _plain(value: Any) -> Any:
    """The value as plain dicts, lists, numbers, text or None; ``_OTHER`` when it is something else.

    Settings that are ``Recorded`` themselves become their class's name and their own arguments.
    """
    if isinstance(value, Recorded):
        return {"class": type(value).__name__, "init_args": value.init_args}
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


_SIDE = whole(1, 100_000)
"""Of windows, patches and inputs."""

_WINDOWS = each(each(_SIDE))

_PRETRAINED = each(either(each(_SIDE), whole(0, 0)))
"""Windows of pre-training: 0 where there were none."""

BACKBONE = mapping(
    {
        "embed_dim": whole(1, 100_000),
        "depths": each(whole(1, 1000)),
        "num_heads": each(whole(1, 10_000)),
        "window_size": _WINDOWS,
        "position_bias": text,
    },
    {
        "pretrained_window_size": _PRETRAINED,
        "patch_size": each(_SIDE),
        "in_channels": whole(1, 10_000),
        "mlp_ratio": number(0, 1000),
        "drop_path_rate": number(0, 1),
        "extra_norm_every": whole(0, 1000),
    },
)
"""What ``SwinTransformerV2.config`` gives, within what a machine can build."""

_BUILT = mapping({"class": text, "init_args": values(plain)})

TRAINING = mapping(
    {
        "samples": optional(whole()),
        "batch_size": optional(whole(1)),
        "processes": whole(1),
        "accumulated_batches": whole(1),
        "epoch_batches": optional(whole(1)),
        "total_steps": optional(number(-1)),
        "skipped_steps": whole(),
        "mid_accumulation": flag,
    },
    {"optimizer": text, "class_weights": optional(each(number(0)))},
)
"""What steps are made of."""

_RUN: dict[str, Check] = {
    "name": text,
    "task": _BUILT,
    "backbone": BACKBONE,
    "classes": mapping({"ids": optional(each(either(text, whole(-LARGEST)))), "names": optional(each(text))}),
    "data": optional(_BUILT),
    "windows": mapping({"effective": _WINDOWS, "pretrained": _WINDOWS}),
}
_FURTHER: dict[str, Check] = {
    "position_bias": text,
    "input_size": optional(each(_SIDE)),
    "precision": optional(text),
    "training": optional(TRAINING),
}

RUN = mapping(_RUN, _FURTHER)
"""What a checkpoint of a run keeps under ``swinv2_tasks``."""

WEIGHTS = mapping({}, {**_RUN, **_FURTHER})
"""What files of weights keep there, of which some only say how their windows and position bias are."""


def task_record(contents: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What a checkpoint of this package says about its task.

    Raises:
        UserError: when it says nothing, as it holds weights of another origin, or when something is missing or is not
            what a run records.
    """
    record = contents.get("swinv2_tasks")
    if not isinstance(record, Mapping) or "task" not in record:
        raise UserError(
            f"{source} holds no run of this package: a ckpt_path resumes, evaluates or predicts with such a run. "
            "Weights of other origin are given to a config as --model.weights."
        )
    require(record, RUN, f"{source} is corrupt: in its record of the run,")
    _check_lengths(record, source)
    return dict(record)


def _check_lengths(record: Mapping[str, Any], source: str) -> None:
    """Refuses lists of a run's record that do not belong together.

    Raises:
        UserError: one is shorter or longer than the others.
    """
    backbone, windows = record["backbone"], record["windows"]
    stages, axes = len(backbone["depths"]), len(backbone["window_size"][0]) if backbone["window_size"] else 0
    classes = record["classes"]
    lists = [
        ("classes.names", classes["names"] or (), len(classes["ids"] or ())),
        ("backbone.num_heads", backbone["num_heads"], stages),
        ("backbone.window_size", backbone["window_size"], stages),
        ("backbone.pretrained_window_size", backbone.get("pretrained_window_size", [0] * stages), stages),
        ("backbone.patch_size", backbone.get("patch_size", [4] * axes), axes),
        ("windows.effective", windows["effective"], stages),
        ("windows.pretrained", windows["pretrained"], stages),
        ("input_size", record.get("input_size") or [1] * axes, axes),
    ]
    lists += [(name, window, axes) for name, entries, _ in lists for window in entries if isinstance(window, list)]
    for name, entries, length in lists:
        if len(entries) != length:
            raise UserError(
                f"{source} is corrupt: in its record of the run, {name} has {len(entries)} entries where {length} "
                "belong. Take another checkpoint, or copy it again."
            )
    if not stages or axes not in (2, 3):
        raise UserError(
            f"{source} is corrupt: its record of the run has {stages} stages over {axes} axes. Take another "
            "checkpoint, or copy it again."
        )


def recorded_arguments(cls: type, arguments: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Arguments that ``Recorded`` wrote for a constructor, ready to call it.

    Mappings become the dataclasses and the recorded settings that they were.

    Raises:
        UserError: when ``Recorded`` cannot have written them: names of classes to build, say, which would be code of
            the file's choice.
    """
    # Another __init__ of a subclass is what is meant here.
    types, checked, name = get_type_hints(cls.__init__), {}, ""  # type: ignore[misc]
    try:
        for name, value in arguments.items():
            if not _is_plain(types[name]):
                raise TypeError("it is no plain value")
            if (fault := _check_of(types[name])(value)) is not None:
                raise TypeError(str(fault))
            checked[name] = _rebuild(types[name], value, source)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{source} was not written by this package: a {cls.__name__} does not record its {name!r} so ({error}). "
            "Do not use the file."
        ) from error
    return checked


def _rebuild(type_hint: Any, value: Any, source: str) -> Any:
    """A dataclass or recorded settings from what was written of them; other values unchanged."""
    if isinstance(value, Mapping) and get_origin(type_hint) in (Union, UnionType):
        type_hint = next((member for member in get_args(type_hint) if _is_recorded(member)), type_hint)
    if not _is_recorded(type_hint):
        # A class, as is_dataclass of a type hint says.
        return type_hint(**value) if dataclasses.is_dataclass(type_hint) else value  # type: ignore[operator]
    cls = recorded_class(type_hint, value["class"])
    if cls is None and str(value["class"]).isidentifier():  # as Recorded writes it, without a module
        raise UserError(
            f"{source} was made with a {type_hint.__name__} called {value['class']}, which is not one of this package, "
            "and a file chooses no other classes: give it to load_from_checkpoint, or the run's config with --config."
        )
    if cls is None:
        raise KeyError(value["class"])
    return cls(**recorded_arguments(cls, value["init_args"], source))


def recorded_class(base: type, name: Any) -> type | None:
    """The class of this package of which ``Recorded`` wrote the name, ``base`` itself or one that derives from it.

    Nothing is imported. None where no such class is of this package.
    """
    return next((cls for cls in _subclasses(base) if cls.__name__ == name), None)


def _is_recorded(type_hint: Any) -> bool:
    return isinstance(type_hint, type) and issubclass(type_hint, Recorded)


def _subclasses(cls: type) -> list[type]:
    """A class and all that derive from it within this package."""
    children: list[type] = cls.__subclasses__()
    classes = [cls, *(descendant for child in children for descendant in _subclasses(child))]
    return [own for own in classes if own.__module__.startswith("swinv2_tasks.")]


def _check_of(type_hint: Any) -> Check:
    """What a recorded value of a type has to be."""
    if _is_recorded(type_hint):
        return _BUILT
    if dataclasses.is_dataclass(type_hint):
        return mapping({}, {name: _check_of(hint) for name, hint in get_type_hints(type_hint).items()})
    simple: dict[Any, Check] = {
        bool: flag,
        int: whole(-LARGEST),
        float: number(),
        str: text,
        type(None): null,
    }
    if type_hint in simple:
        return simple[type_hint]
    if type_hint is Any:  # in a mapping, as `_is_plain` allows it
        return plain

    inner = get_args(type_hint)
    origin = get_origin(type_hint)
    if origin is Literal:
        return one_of(*inner)
    if origin in (Union, UnionType):
        return either(*map(_check_of, inner))
    if origin is dict:
        return values(_check_of(inner[1]))
    if origin is list or inner[1:] == (...,):
        return each(_check_of(inner[0]))
    return sequence(*map(_check_of, inner))


def _is_plain(type_hint: Any) -> bool:
    """Whether a parameter of this type takes plain values alone: numbers, text, settings, lists, mappings."""
    if _is_recorded(type_hint):
        return True
    if type_hint in (bool, int, float, str, type(None), ...) or dataclasses.is_dataclass(type_hint):
        return True
    if get_origin(type_hint) is Literal:
        return True
    if get_origin(type_hint) is dict and get_args(type_hint)[1] is Any:  # arguments of what a setting names itself
        return get_args(type_hint)[0] is str
    return get_origin(type_hint) in (list, tuple, dict, Union, UnionType) and all(map(_is_plain, get_args(type_hint)))
