"""The settings that a command has, so that messages can name those that there are.

The parser says that a setting or a value is wrong in words of its own, and after the first it stops. What it knows of
settings is therefore asked once more of the classes themselves: their parameters, and those of the classes that the
configs and the options choose for them.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from swinv2_tasks.cli.allowed import PARTS, is_allowed
from swinv2_tasks.cli.arguments import Option, new_option

HOMES = (
    "swinv2_tasks.tasks",
    "swinv2_tasks.datamodules",
    "swinv2_tasks.backbone",
    "swinv2_tasks.heads",
    "swinv2_tasks.training",
    "torch.optim",
    "lightning.pytorch.callbacks",
)
"""Modules whose public classes and functions can be named without the module, this package's first."""


class Setting(NamedTuple):
    """A setting with a value of its own."""

    hint: Any
    """Its type."""
    value: Any
    """What it has been given, else its default."""


class Part(NamedTuple):
    """A setting whose value is an object, chosen by its class and made of settings of its own."""

    name: str
    """Of the class, or of the function that makes the object."""
    takes_any: bool
    """Whether it has settings that cannot be told beforehand."""


class Settings:
    """All settings of a command, each by its name on the command line, without the dashes.

    Args:
        roots: the functions and classes whose parameters they are, by the prefix of their names; empty for none.
        stated: what configs and options say, as ``plain_settings`` gives it.
        linked: names of settings that follow from others, so that nobody can set them.
    """

    def __init__(
        self, roots: Mapping[str, Callable[..., Any]], stated: Mapping[str, Any], linked: tuple[str, ...] = ()
    ) -> None:
        self.values: dict[str, Setting] = {}
        self.parts: dict[str, Part] = {}
        self.classes: dict[str, Any] = {}
        self.linked = linked
        for prefix, factory in roots.items():
            self._add_part(prefix, factory, stated.get(prefix) if prefix else stated)

    def add(self, name: str, hint: Any, value: Any = None) -> None:
        """Adds a setting that is no parameter."""
        self.values[name] = Setting(hint, value)

    def add_part(self, name: str, base: type, stated: Any) -> None:
        """Adds a setting whose object is of a subclass that configs and options name."""
        self.classes[name] = base
        stated = {"class_path": stated} if isinstance(stated, str) else stated or {}
        name_of_class = stated.get("class_path") if isinstance(stated, Mapping) else None
        factory = find_class(name_of_class) if isinstance(name_of_class, str) else None
        if factory is None:
            self.parts[name] = Part(name, True)
        else:
            self._add_part(name, factory, stated)

    def names(self) -> list[str]:
        """The names of all settings, those of objects among them."""
        return [name for name in (*self.values, *self.parts) if name]

    def owner_of(self, name: str) -> str:
        """The part that a setting, or what would be one, belongs to; empty for the command itself."""
        while name:
            name = name.rpartition(".")[0]
            if name in self.parts or name in self.values:
                break
        return name

    def knows(self, name: str) -> bool:
        """Whether there is a setting of this name, or it cannot be told."""
        if name in self.values or name in self.parts:
            return True
        owner = self.owner_of(name)
        if owner in self.parts:
            return bool(owner) and self.parts[owner].takes_any
        return owner in self.values and may_be_mapping(self.values[owner].hint)

    def siblings(self, owner: str) -> list[str]:
        """The settings of a part, by their whole names."""
        prefix = f"{owner}." if owner else ""
        return [name for name in self.names() if name.startswith(prefix) and "." not in name[len(prefix) :]]

    def _add_part(self, name: str, factory: Any, stated: Any) -> None:
        stated = stated if isinstance(stated, Mapping) else {}
        parameters, takes_any = parameters_of(factory)
        if name:
            self.parts[name] = Part(getattr(factory, "__name__", str(factory)), takes_any)
        prefix = f"{name}." if name else ""

        for parameter, (hint, default) in parameters.items():
            whole = prefix + parameter
            if whole in self.linked or parameter == "params":  # an optimizer's are those of the model
                continue
            child = stated.get(parameter, {})
            self.classes[whole] = hint
            is_value = child in choices_of(hint) if isinstance(child, str) else isinstance(child, list)
            chosen = None if is_value else factory_of(hint, default, child)
            if chosen is None:
                value = default if parameter not in stated else child
                self.values[whole] = Setting(hint, value)
            elif chosen is UNKNOWN:
                self.parts[whole] = Part(str(child.get("class_path")), True)
            else:
                self._add_part(whole, chosen, child)


UNKNOWN = object()
"""In place of a class that cannot be found."""


def parameters_of(factory: Any) -> tuple[dict[str, tuple[Any, Any]], bool]:
    """Types and defaults of a function's or class's parameters, and whether it takes others that it does not name."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return {}, True
    try:
        hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except Exception:  # a class of the user's may name types that are not there
        hints = {}

    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    named = {
        name: (hints.get(name, Any), None if parameter.default is parameter.empty else parameter.default)
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    return named, takes_any


def factory_of(hint: Any, default: Any, stated: Any) -> Any:
    """What makes the object of a setting; None for one with a plain value, ``UNKNOWN`` where it cannot be found."""
    if isinstance(stated, Mapping) and isinstance(stated.get("class_path"), str):
        return find_class(stated["class_path"]) or UNKNOWN

    for member in members_of(hint):
        if get_origin(member) is Callable:
            return default if callable(default) else None
        if inspect.isclass(member) and is_made_of_settings(member):
            return type(default) if isinstance(default, member) else member
    return None


def is_made_of_settings(cls: type) -> bool:
    """Whether a class is one of the package's whose objects a config describes."""
    return dataclasses.is_dataclass(cls) or cls.__module__.partition(".")[0] == "swinv2_tasks"


def members_of(hint: Any) -> Iterator[Any]:
    """The types that a type allows, each on its own."""
    if get_origin(hint) in (Union, UnionType):
        for member in get_args(hint):
            yield from members_of(member)
    else:
        yield hint


def may_be_mapping(hint: Any) -> bool:
    """Whether a type allows mappings, whose keys are anyone's."""
    members = [*members_of(hint)]
    return any(member is Any or (get_origin(member) or member) in (dict, Mapping) for member in members) or any(
        inspect.isclass(member) and member not in (int, float, str, bool, NoneType) for member in members
    )


def find_class(name: str) -> Any:
    """The class or function of a name, with its module or, of what is public here, without; None if there is none.

    A checkpoint may name modules, too: other packages' are not imported, but known where the parser has done so.
    """
    module_name, _, last = name.rpartition(".")
    for home in [module_name] if module_name else HOMES:
        if not is_allowed(home) and home not in sys.modules:
            return None
        try:
            member = getattr(importlib.import_module(home), last, None)
        except ImportError:  # which the parser says
            member = None
        if member is not None and not inspect.ismodule(member):
            return member
    return None


def full_class_names(options: Iterable[Option]) -> list[Option]:
    """Options in which a class or function of this package, or an optimizer of torch, is named with its module.

    The parser finds none of the former, and of two optimizers of a name, as where bitsandbytes is loaded, neither.
    """
    return [_with_full_class_name(option) for option in options]


def _with_full_class_name(option: Option) -> Option:
    part = option.name.removesuffix(".class_path").rpartition(".")[2].lstrip("-")
    if part not in PARTS or len(option.values) != 1 or not option.values[0].isidentifier():
        return option
    for home in HOMES[:6]:
        if option.values[0] in importlib.import_module(home).__all__:
            return new_option(option.name, f"{home}.{option.values[0]}")
    return option


# ---- types in words


def describe_type(hint: Any) -> str:
    """A type in words: ``a whole number or null``."""
    words: list[str] = []
    choices: list[str] = []
    for member in members_of(hint):
        if get_origin(member) is Literal:
            choices += [str(value) for value in get_args(member)]
        else:
            words.append(_describe_member(member))
    if choices:
        words.insert(0, f"one of {', '.join(dict.fromkeys(choices))}")

    words = [word for word in dict.fromkeys(words) if word]
    if "null" in words:  # last
        words = [word for word in words if word != "null"] + ["null"]
    return " or ".join(words) or "a value of another kind"


def choices_of(hint: Any) -> list[str]:
    """The values that a type lists."""
    return [str(value) for member in members_of(hint) if get_origin(member) is Literal for value in get_args(member)]


NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
PLURALS = {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts"}


def _describe_member(member: Any) -> str:
    if member in NAMES:
        return NAMES[member]

    origin, arguments = get_origin(member), get_args(member)
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} {_describe_several(arguments[0])}"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return "a mapping"
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return f"a list of {_describe_several(arguments[0])}" if arguments else "a list"
    if origin is type:
        return "the name of a class"
    if member is Any:
        return "anything"
    if inspect.isclass(member) and member.__name__ == "timedelta":
        return "a time as DAYS:HOURS:MINUTES:SECONDS"
    return ""


def _describe_several(hint: Any) -> str:
    members = [*members_of(hint)]
    if all(member in PLURALS for member in members):
        return " or ".join(PLURALS[member] for member in members)
    return "lists" if all(get_origin(member) is not None for member in members) else "values"


def show_value(value: Any) -> str:
    """A value as one types it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(show_value, value))}]"
    return str(value)
