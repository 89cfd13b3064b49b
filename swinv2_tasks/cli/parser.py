"""The arguments of fit, validate, test and predict: what is read off them at first, and their parser."""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from swinv2_tasks.cli.configs import find_config
from swinv2_tasks.errors import UserError


def int_before_float(signature: inspect.Signature) -> inspect.Signature:
    """A signature that states int before float where a parameter takes both: 1 is one batch, 1.0 all of them.

    typing turns ``int | float`` around when anything imported before has asked for ``float | int``.
    """
    parameters = []
    for parameter in signature.parameters.values():
        types = get_args(parameter.annotation)
        if int in types and float in types:
            int_first = sorted(types, key=lambda one: one is not int)
            parameter = parameter.replace(annotation=functools.reduce(operator.or_, int_first))
        parameters.append(parameter)
    return signature.replace(parameters=parameters)


class ParsedTrainer(Trainer):
    # Without a docstring of its own, so that --help goes on saying what Lightning's trainer is.
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    functools.update_wrapper(__init__, Trainer.__init__)
    __init__.__signature__ = int_before_float(inspect.signature(Trainer.__init__))  # type: ignore[attr-defined]


class TasksArgumentParser(LightningArgumentParser):
    """Lets a backbone be given as one of the size factories, which are functions."""

    def print_usage(self, file: Any = None) -> None:
        """Prints nothing: 150 lines of options would bury the message of a mistake. --help shows them."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if "No module named 'bitsandbytes'" in message:
            message += "\nOptimizers with states in 8 bits: pip install 'swinv2-tasks[8bit]'"
        super().error(message, ex)

    def add_function_arguments(self, *args: Any, linked_targets: set[str] | None = None, **kwargs: Any) -> list[str]:
        # jsonargparse 4.53 passes linked_targets on to functions, whose method does not take it; ours have none.
        return super().add_function_arguments(*args, **kwargs)


def has_complete_config(arguments: Sequence[str]) -> bool:
    """Whether a config is given that is no overlay."""
    given = [
        argument.partition("=")[2] or following
        for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue="")
        if argument.partition("=")[0] in ("--config", "-c")
    ]
    return any(Path(config).parent.name != "overlays" for config in given)


def with_configs_found(arguments: Sequence[str]) -> list[str]:
    """Arguments with paths in the place of configs' names.

    Raises:
        UserError: when there is no config of a name.
    """
    found = [*arguments]
    for index, argument in enumerate(found):
        if argument in ("--config", "-c") and index + 1 < len(found):
            found[index + 1] = str(find_config(found[index + 1]))
        elif argument.startswith("--config="):
            found[index] = f"--config={find_config(argument.removeprefix('--config='))}"
    return found


def resumed_run(arguments: list[str]) -> tuple[list[str], Path | None]:
    """The arguments without --resume, and with the config of the run that it names; that run's folder.

    Raises:
        UserError: when the folder is not that of a run.
    """
    for index, argument in enumerate(arguments):
        if argument.partition("=")[0] != "--resume":
            continue
        following = [part for part in arguments[index + 1 : index + 2] if not part.startswith("-")]
        value = argument.partition("=")[2] or "".join(following)
        rest = arguments[:index] + arguments[index + 1 + (bool(following) and "=" not in argument) :]
        given = argument_value(arguments, "--config")
        config = Path(value) / "config.yaml" if value else Path(given or "nothing")
        if not (config.parent / "run.json").is_file() or not config.is_file():
            raise UserError(
                f"--resume: {value or given or 'nothing'} is not of a run. Name the run's folder, as in "
                "--resume runs/imagenet/3, or its config, as in --config runs/imagenet/3/config.yaml "
                "--resume; weights of other origin are given as --model.weights."
            )
        command = json.loads((config.parent / "run.json").read_text())["starts"][0]["arguments"][0]
        if command != "fit":
            raise UserError(
                f"--resume: {config.parent} was made by {command}, so there is no training to go on with. Name a "
                "folder that fit has made."
            )
        return ([f"--config={config}", *rest] if value else rest), config.parent
    return arguments, None


def argument_value(arguments: Sequence[str], option: str) -> str | None:
    """What an option is given; None when it is not."""
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None
