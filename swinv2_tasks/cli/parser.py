"""The parser of the arguments of fit, validate, test and predict."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, get_args

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from swinv2_tasks.cli.refusals import RefusingParser
from swinv2_tasks.text import printable_lines


def int_before_float(signature: inspect.Signature) -> inspect.Signature:
    """A signature that states int before float where a parameter takes both: 1 is one batch, 1.0 all of them.

    Python's typing caches unions: once anything has asked for ``float | int``, ``int | float`` gives that one.
    """
    parameters = []
    for parameter in signature.parameters.values():
        types = get_args(parameter.annotation)
        if int in types and float in types:
            int_first = sorted(types, key=lambda number_type: number_type is not int)
            parameter = parameter.replace(annotation=functools.reduce(operator.or_, int_first))
        parameters.append(parameter)
    return signature.replace(parameters=parameters)


class ParsedTrainer(Trainer):  # noqa: D101, it inherits Lightning's docstring, which --help shows
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    functools.update_wrapper(__init__, Trainer.__init__)
    __init__.__signature__ = int_before_float(inspect.signature(Trainer.__init__))  # type: ignore[attr-defined]


class TasksArgumentParser(RefusingParser, LightningArgumentParser):
    """Lets a backbone be given as one of the size factories, which are functions; prints configs as text alone.

    Args:
        *args: of Lightning's parser.
        **kwargs: likewise.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.builders: dict[type, Callable[..., Any]] = {}
        """What makes objects of a class and its subclasses: of (class, its arguments)."""

    def instantiate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> Namespace:
        """Makes the objects that a config names, by ``builders`` where there are some for their class."""
        if self.builders:
            kwargs["instantiators"] = [(build, cls, True) for cls, build in self.builders.items()]
        return super().instantiate(namespace, *args, **kwargs)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """A config as YAML; where a character in it would do something, what is not ASCII are escapes."""
        text = str(super().dump(*args, **kwargs))
        if printable_lines(text) == text:
            return text
        return yaml.safe_dump(yaml.safe_load(text), sort_keys=False)

    def add_function_arguments(self, *args: Any, linked_targets: set[str] | None = None, **kwargs: Any) -> list[str]:
        """Adds a function's parameters as options, without ``linked_targets``."""
        # jsonargparse 4.53 passes linked_targets on to functions, whose method does not take it; ours have none.
        return super().add_function_arguments(*args, **kwargs)


def instantiate(name: str, base: type, part: dict[str, Any]) -> Any:
    """Instantiates the class that a part of a parsed config describes.

    Args:
        name: of the part, as ``data``.
        base: what the class is a subclass of.
        part: its class_path and init_args.
    """
    parser = TasksArgumentParser()
    parser.add_lightning_class_args(base, name, subclass_mode=True)
    return parser.instantiate_classes(parser.parse_object({name: part}))[name]
