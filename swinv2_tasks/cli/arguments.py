"""The command line's arguments as options with their values, before any parser knows their types.

jsonargparse parses a command line whole, with a parser that knows every option, and refuses to parse part of one. But
some things must be known before there is such a parser. They are read here and nowhere else:

- which config all other arguments go over: the one named, found by its name; that of the run which ``--resume`` names;
  or the one that a checkpoint carries;
- which checkpoint a run's folder stands for;
- which arguments are a command's own, where a command takes those of ``fit`` or ``validate`` as well;
- that several values after an option are a list, as in ``--sizes 256 512``.
"""

from __future__ import annotations

import json
import keyword
import os
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin

from swinv2_tasks.errors import UserError
from swinv2_tasks.records import STARTS, read_json


class Option(NamedTuple):
    """An option of a command line.

    Attributes:
        name: with its dashes; empty for what stands before the first option.
        values: what follows it up to the next option.
        text: the arguments that it was given by.
    """

    name: str
    values: tuple[str, ...]
    text: tuple[str, ...]

    @property
    def is_help(self) -> bool:
        """Whether it asks for help, be it of the command or of a class, as ``--model.help`` does."""
        return self.name in ("-h", "--help") or self.name.endswith(".help")


def expand_home(arguments: Iterable[str]) -> list[str]:
    """Arguments with the home folder in the place of ``~`` where a path begins, after an option's equals sign, too."""
    home = os.path.expanduser("~")
    return [re.sub(r"(^|^--?[\w.-]+\+?=)~(?=/|$)", lambda match: match[1] + home, argument) for argument in arguments]


def split_options(arguments: Sequence[str]) -> list[Option]:
    """The options of a command line; ``-c`` has the name ``--config``."""
    options: list[Option] = []
    for argument in arguments:
        if argument.startswith("--") or argument.partition("=")[0] in ("-c", "-h"):
            name, equals, value = argument.partition("=")
            name = "--config" if name == "-c" else name
            options.append(Option(name, (value,) if equals else (), (argument,)))
        elif options:
            name, values, text = options.pop()
            options.append(Option(name, (*values, argument), (*text, argument)))
        else:
            options.append(Option("", (argument,), (argument,)))
    return options


def join_options(options: Iterable[Option]) -> list[str]:
    """The arguments that options were given by."""
    return [part for option in options for part in option.text]


def values_of(options: Iterable[Option], name: str) -> list[str]:
    """All values that an option is given, from the first time to the last."""
    return [value for option in options if option.name == name for value in option.values]


def new_option(name: str, value: object) -> Option:
    """An option with one value."""
    return Option(name, (str(value),), (f"{name}={value}",))


# ---- options of a command's own


def select_own(options: Iterable[Option], names: Collection[str]) -> tuple[list[Option], list[Option]]:
    """A command's own options, as the names of its parameters say and what asks for help, and all others."""
    own: list[Option] = []
    others: list[Option] = []
    for option in options:
        is_own = option.name in ("-h", "--help") or parameter_name(option) in names
        (own if is_own else others).append(option)
    return own, others


def gather_data_settings(arguments: Sequence[str]) -> list[str]:
    """Arguments with those of fit that describe the data in one option, ``--settings``, a list of them."""
    options = split_options(arguments)
    of_fit = [option for option in options if option.name == "--config" or option.name.startswith("--data.")]
    if not of_fit:
        return [*arguments]
    others = [option for option in options if option not in of_fit]
    return [*join_options(others), f"--settings={json.dumps(join_options(of_fit))}"]


def gather_values(arguments: Sequence[str], parameter: str) -> list[str]:
    """Arguments with the values that no option names in one option, a list of them.

    Args:
        arguments: of a command whose options take a value each.
        parameter: the name of the list.
    """
    values: list[str] = []
    options: list[str] = []
    for option in split_options(arguments):
        own = 1 if option.name else 0
        values += option.values[own:]
        options += join_options([new_option(option.name, value) for value in option.values[:own]])
        if option.name and not option.values:
            options.append(option.name)
    return [*([f"--{parameter}={json.dumps(values)}"] if values else []), *options]


def as_list(options: Iterable[Option], name: str) -> list[Option]:
    """Options in which the values of one, which is a list, are written as the parser reads lists."""
    return [
        new_option(name, f"[{','.join(option.values)}]")
        if option.name == name and not "".join(option.values).startswith("[")
        else option
        for option in options
    ]


def parameter_name(option: Option) -> str:
    """The parameter of a function that an option stands for: ``iou_type`` for ``--iou-type`` and ``--iou_type+``.

    One that Python keeps for itself has an underscore at its end: ``class_`` for ``--class``.
    """
    name = option.name.removeprefix("--").removesuffix("+").replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def write_out(arguments: Sequence[str], switches: Collection[str], needed: int) -> list[str]:
    """Arguments in which options are called as their parameters, and a switch that stands alone has the value true.

    Args:
        arguments: of a command that takes what it needs by position.
        switches: names of the parameters that are true or false.
        needed: how many values it takes by position: one that is still missing may follow a switch.
    """
    options = split_options(arguments)
    missing = needed - sum(len(option.values) for option in options if not option.name)
    written: list[str] = []
    for option in options:
        name = parameter_name(option)
        has_value = bool(option.values) and (missing <= 0 or option.values[0].lower() in ("true", "false"))
        if name in switches and not has_value:
            written += [f"--{name}=true", *option.values]
            missing -= len(option.values)
        elif name == f"{option.name.removeprefix('--')}_":
            first, *others = option.text
            written += [first.replace(option.name, f"--{name}", 1), *others]
        else:
            written += option.text
    return written


def merge_values(options: Iterable[Option], lists: Collection[str] = ()) -> list[str]:
    """Arguments in which several values of an option are one list: ``--sizes 256 512`` becomes ``--sizes=[256,512]``.

    Args:
        options: whose names may have hyphens in the place of underscores.
        lists: names of parameters that take a list and nothing else, for which one value is a list as well.
    """
    arguments: list[str] = []
    for option in options:
        is_list = len(option.values) > 1 or parameter_name(option) in lists
        is_written_out = len(option.values) == 1 and option.values[0].startswith("[")
        name = "--" + option.name.removeprefix("--").replace("-", "_")
        if not option.name.startswith("--"):
            arguments += option.text
        elif is_list and not is_written_out:
            arguments.append(f"{name}=[{','.join(option.values)}]")
        else:
            arguments += [name, *option.values]
    return arguments


def is_list(hint: Any) -> bool:
    """Whether a type is a list, or None beside it, and nothing else."""
    types = set(get_args(hint)) - {NoneType} if isinstance(hint, UnionType) else {hint}
    return all(get_origin(member) is list for member in types)


# ---- the config that all other arguments go over


def find_configs(options: Iterable[Option]) -> list[Option]:
    """Options with paths in the place of configs' names.

    Raises:
        UserError: when there is no config of a name.
    """
    from swinv2_tasks.cli.config_files import find_config

    named: list[Option] = []
    for option in options:
        if option.name == "--config" and option.values:
            named += [new_option("--config", find_config(name)) for name in option.values]
        else:
            named.append(option)
    return named


def name_positional(command: str, options: Sequence[Option]) -> list[Option]:
    """Options with ``--config`` for what stands before them, as in ``fit imagenet.yaml``.

    Raises:
        UserError: that is no config.
    """
    if not options or options[0].name:
        return [*options]

    configs = []
    for value in options[0].values:
        if value.endswith((".ckpt", ".pth", ".safetensors")) or (command != "fit" and _is_run(value)):
            raise UserError(f"{command}: how to use {value}? A run's checkpoint is given as --ckpt_path {value}.")
        if command == "fit" or value.endswith((".yaml", ".yml")):
            configs.append(new_option("--config", value))
        else:
            example = f"--data.source {value}" if command == "predict" else f"--config {value}"
            raise UserError(f"{command}: what is {value!r}? Name its option, as in {command} {example}.")
    return [*configs, *options[1:]]


def order_options(options: Sequence[Option]) -> tuple[list[Option], list[str]]:
    """Options with all configs before them, so that a value goes over configs wherever it stands.

    Args:
        options: with paths of configs.

    Returns:
        The options, and notes on values that others go over.

    Raises:
        UserError: an overlay comes before the config that it goes over.
    """
    configs = [option for option in options if option.name == "--config"]
    others = [option for option in options if option.name != "--config"]
    notes = compare_configs([Path(value) for option in configs for value in option.values])

    last: dict[str, Option] = {}
    for option in others:
        before = last.get(option.name)
        if before is not None and before.values != option.values and not option.name.endswith("+"):
            notes.append(
                f"{option.name} is given twice: {' '.join(option.values)} counts, not {' '.join(before.values)}"
            )
        last[option.name] = option
    return [*configs, *others], notes


def compare_configs(paths: Sequence[Path]) -> list[str]:
    """Notes on values of a config that a later one of its kind, task's config or overlay, goes over.

    Raises:
        UserError: an overlay comes before the config that it goes over.
    """
    from swinv2_tasks.cli.config_files import flat_settings, named_classes, plain_settings, read_config

    notes = []
    are_bases = [bool(named_classes(path)) for path in paths]
    values = [flat_settings(plain_settings(read_config(path) or {})) for path in paths]
    for (before, is_base, settings), (after, is_later_base, over) in combinations(
        zip(paths, are_bases, values, strict=True), 2
    ):
        changed = [name for name in settings if name in over and settings[name] != over[name]]
        names = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        if changed and is_later_base and not is_base:
            raise UserError(
                f"{after} comes after the overlay {before} and would undo its {names}. Overlays come last: "
                f"--config {after} --config {before}"
            )
        if changed and is_base == is_later_base:
            notes.append(f"{after}, the later config, goes over {names} of {before}")
    return notes


def name_model_and_data(options: Iterable[Option]) -> bool:
    """Whether configs or other options name the classes of a model and of its data, as overlays do not."""
    from swinv2_tasks.cli.config_files import named_classes

    named: set[str] = set()
    for option in options:
        if option.name == "--config":
            named = named.union(*(named_classes(Path(path)) for path in option.values))
        elif option.values:
            named.add(option.name.removeprefix("--").removesuffix(".class_path"))
    return {"model", "data"} <= named


def find_resumed_run(options: Sequence[Option]) -> tuple[list[Option], Path | None]:
    """The options without --resume, and with the config of the run that it names; that run's folder.

    Raises:
        UserError: when the folder is not that of a run.
    """
    resume = next((option for option in options if option.name == "--resume"), None)
    if resume is None:
        return [*options], None

    if len(resume.values) > 1:
        raise UserError(f"--resume takes the folder of one run, not {' '.join(resume.values)}")

    rest = [option for option in options if option is not resume]
    folder = resume.values[0] if resume.values else ""
    configs = values_of(rest, "--config")
    if folder:
        config = Path(folder) / "config.yaml"
        rest = [new_option("--config", config), *rest]
    else:
        config = Path(configs[0] if configs else "nothing")

    record = config.parent / "run.json"
    if not record.is_file() or not config.is_file():
        given = folder or (configs[0] if configs else None)
        problem = f"{given} is not of a run." if given else "which run?"
        raise UserError(
            f"--resume: {problem} Name the run's folder, as in --resume runs/imagenet/3, or its config, "
            "as in --config runs/imagenet/3/config.yaml --resume; weights of other origin are given as --model.weights."
        )
    command = read_json(record, STARTS, "Copy the run again, or start a new one.")["starts"][0]["arguments"][0]
    if command != "fit":
        raise UserError(
            f"--resume: {config.parent} was made by {command}, so there is no training to resume. Name a folder that "
            "fit has made."
        )
    return rest, config.parent


# ---- the checkpoint that a run's folder stands for


def find_checkpoints(command: str, options: Iterable[Option]) -> tuple[list[Option], list[str]]:
    """Options with checkpoints in the place of runs' folders, and a line on each that was taken.

    Raises:
        UserError: there is no such run, it has no checkpoint, or the command takes none of a folder.
    """
    resolved: list[Option] = []
    messages = []
    for option in options:
        path, message = None, ""
        if len(option.values) == 1 and option.name == "--ckpt_path":
            path, message = find_ckpt_path(command, option.values[0])
        elif len(option.values) == 1 and option.name in ("--model.weights", "--model.init_args.weights"):
            path, message = _find_weights(option.values[0])
        resolved.append(new_option(option.name, path) if message else option)
        messages += [message] if message else []
    return resolved, messages


def find_ckpt_path(command: str, value: str) -> tuple[str, str]:
    """A value of ``ckpt_path`` with the checkpoint in the place of a run's folder, and a line on it; else no line.

    Raises:
        UserError: there is no such run, it has no checkpoint, or the command takes none of a folder.
    """
    from swinv2_tasks.weights.runs import find_checkpoint, find_training, is_checkpoint, is_run

    folder = Path(value)
    if value in ("", "null") or is_checkpoint(folder):
        return value, ""

    if command != "fit":
        path, message = find_checkpoint(folder)
        return str(path), message

    if is_run(folder):  # resumed, its last checkpoint counts, and branched off, whichever is meant
        run = find_training(folder)
        raise UserError(
            f"fit --ckpt_path takes a checkpoint, as in {run}/checkpoints/last.ckpt, and not the folder {folder}. "
            f"To resume the run: --resume {run}"
        )
    return value, ""


def _find_weights(value: str) -> tuple[str, str]:
    """As ``find_ckpt_path``, for weights to start from: what is no run's folder may be a folder of others."""
    from swinv2_tasks.weights.runs import find_checkpoint

    if not _is_run(value):
        return value, ""
    path, message = find_checkpoint(Path(value))
    return str(path), message


def _is_run(value: str) -> bool:
    from swinv2_tasks.weights.runs import is_run

    return value != "" and is_run(Path(value))
