"""What is wrong with arguments that the parser refuses, in a line: which one, and what to type instead.

A parser raises ``Refused`` with its own message. What a user reads is found anew, from the arguments and the files that
they name: a setting that there is not, a value of another type, a class that there is not.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, NoReturn, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, get_loader, set_loader

from swinv2_tasks.cli.allowed import explain_denied
from swinv2_tasks.cli.arguments import Option, parameter_name, split_options
from swinv2_tasks.cli.config_files import (
    TASK_CONFIGS,
    find_config,
    flat_settings,
    named_task,
    plain_settings,
    read_config,
)
from swinv2_tasks.cli.help import USAGES
from swinv2_tasks.cli.settings import (
    HOMES,
    Settings,
    choices_of,
    describe_type,
    find_class,
    members_of,
    show_value,
)
from swinv2_tasks.errors import Refused
from swinv2_tasks.outside_files import check_yaml
from swinv2_tasks.text import closest

_parse_yaml = get_loader("yaml")


def _load_yaml(text: str) -> Any:
    """What the parser takes a value or a file for; a file that a config names has not been looked at before."""
    check_yaml(text)
    return _parse_yaml(text)


set_loader("yaml", _load_yaml, (yaml.YAMLError,))


class RefusingParser(ArgumentParser):
    """Raises what it refuses, in place of printing it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises Refused; in a parser that another uses, what that one expects."""
        if self.exit_on_error:
            raise Refused(message) from ex
        super().error(message, ex)


class Given(NamedTuple):
    """A value that a setting is given."""

    name: str
    """Of the setting, without dashes."""
    value: Any
    """None where the option has no value."""
    source: str
    """How a message calls where it is: ``data.rot``, ``data.rot in my.yaml``."""
    config: Path | None
    """The file that it is in."""
    number: int = 1
    """How many values the option has."""


OTHER_NAMES = {
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "iterations": "trainer.max_steps",
    "lr": "model.optimizer.lr",
    "learning_rate": "model.optimizer.lr",
    "wd": "model.optimizer.weight_decay",
    "bs": "data.batch_size",
    "batch": "data.batch_size",
    "workers": "data.num_workers",
    "dataset": "data.root",
    "data_dir": "data.root",
    "data_path": "data.root",
    "img_size": "data.image_size",
    "input_size": "data.image_size",
    "input": "data.source",
    "images": "data.source",
    "pretrained": "model.weights",
    "checkpoint": "ckpt_path",
    "ckpt": "ckpt_path",
    "gpus": "trainer.devices",
    "gpu": "trainer.accelerator",
    "device": "trainer.accelerator",
    "amp": "trainer.precision",
    "fp16": "trainer.precision",
    "random_seed": "seed_everything",
    "output_dir": "runs",
    "log_dir": "runs",
    "out": "output",
    "window": "model.backbone.window_size",
    "drop_path": "model.backbone.drop_path_rate",
    "grad_clip": "trainer.gradient_clip_val",
    "clip_grad": "trainer.gradient_clip_val",
}
"""What other programs call some settings."""


def explain_overlay(configs: Mapping[Path, Any]) -> str | None:
    """The line for an overlay that goes over the config of another task; None where there is none.

    Args:
        configs: contents of the configs, by their files, in their order.
    """
    tasks = [task for content in configs.values() if (task := named_task(content)) is not None]
    for path in configs:
        comment = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        under = re.match(r"# Over (\S+\.yaml)", comment)
        if under is None or not tasks or under[1] not in TASK_CONFIGS:
            continue

        wanted = named_task(read_config(find_config(under[1])))
        if wanted not in (None, tasks[0]):
            return f"{path} goes over {under[1]}, not over a {tasks[0]}; leave it out, or name your task's own overlay."
    return None


def given_values(options: Sequence[Option], configs: Mapping[Path, Any]) -> list[Given]:
    """All values that options and configs give, those of options first.

    Args:
        options: of the command line.
        configs: contents of the configs, by their files.
    """
    given = []
    for option in options:
        if not option.name.startswith("--") or option.name == "--config" or option.is_help:
            continue
        name = option_setting(option)
        value = " ".join(option.values) if option.values else None
        given.append(Given(name, value, name, None, len(option.values)))
    for path, content in configs.items():
        given += [
            Given(name, value, f"{name} in {path}", path)
            for name, value in flat_settings(plain_settings(content)).items()
            if name
        ]
    return given


def option_setting(option: Option) -> str:
    """The setting that an option names: ``data.root`` for ``--data.root`` and ``--data.init_args.root``."""
    parts = option.name.removeprefix("--").removesuffix("+").split(".")
    return ".".join(part for part in parts if part not in ("init_args", "dict_kwargs", "class_path"))


def explain(settings: Settings, given: Sequence[Given], command: str, message: str) -> str:
    """The line for arguments that were refused.

    Args:
        settings: all that the command has.
        given: all that it was given.
        command: its name, for messages on options that it does not have.
        message: the parser's own, which decides where nothing else is found.
    """
    options = [value for value in given if value.config is None]
    configs = [value for value in given if value.config is not None]
    for values in (options, configs):
        classes = [value for value in values if value.name in settings.parts]
        unknown = [value for value in values if not settings.knows(value.name)]
        faults = [fault for value in classes if (fault := explain_class(settings, value)) is not None]
        faults += [explain_unknown(settings, value, command) for value in unknown]
        faults += [fault for value in values if (fault := explain_value(settings, value)) is not None]
        if faults:
            return faults[0]
    return condense(message, command)


def explain_function(
    command: str, function: Callable[..., Any], arguments: Sequence[str], by_position: bool, message: str
) -> str:
    """The line for arguments that a command's function does not take.

    Args:
        command: its name.
        function: whose parameters are the options.
        arguments: what follows the command's name.
        by_position: whether the parameters without defaults are given by their position.
        message: the parser's own.
    """
    options = [option._replace(name=f"--{parameter_name(option)}") for option in split_options(arguments)]
    positional = [value for option in options if option.name == "--" for value in option.values]
    given = given_values([option for option in options if option.name != "--"], {})

    parameters = inspect.signature(function).parameters
    needed = [parameter.name for parameter in parameters.values() if parameter.default is parameter.empty]
    needed = [name for name in needed if name != "arguments"]  # which are those of another command
    given += [Given(name, text, name.upper(), None) for name, text in zip(needed, positional, strict=False)]

    settings = Settings({"": function}, {})
    for value in given:
        if not settings.knows(value.name):
            return explain_unknown(settings, value, command)
        if (fault := explain_value(settings, value)) is not None:
            return fault

    shown = [name.upper() if by_position else f"--{name}" for name in needed]
    if set(needed) - {value.name for value in given}:
        return f"{command} needs {' and '.join(shown)}: {USAGES[command]}"
    if len(positional) > len(needed):
        taken = " and ".join(shown) or "options only"
        return f"{command} takes {taken}, not also {positional[-1]!r}: {USAGES[command]}"
    return condense(message, command)


# ---- settings that there are not


def explain_unknown(settings: Settings, given: Given, command: str) -> str:
    """The line for a setting that there is not: which one was meant."""
    owner = settings.owner_of(given.name)
    # The first component that is not there: of data.sampling.frames it may be the second.
    wrong = given.name[: given.name.find(".", len(owner) + 1)] if "." in given.name[len(owner) + 1 :] else given.name
    if owner in settings.parts and owner:
        problem = f"{given.source}: {settings.parts[owner].name} has no such setting"
    elif owner:
        problem = f"{given.source}: {owner} has no settings of its own"
    elif given.config:
        problem = f"{given.source}: {command} has no such setting"
    else:
        problem = f"{command} has no option --{given.name}"

    nearest = nearest_settings(settings, wrong if owner else given.name)
    dashes = "" if given.config or owner else "--"
    if nearest:
        return f"{problem}; did you mean {' or '.join(dashes + name.removesuffix('_') for name in nearest)}?"
    if owner in settings.values:
        return f"{problem}; expected {describe_type(settings.values[owner].hint)}."
    siblings = [name.rpartition(".")[2] for name in settings.siblings(owner)]
    if owner and len(siblings) <= 16:
        return f"{problem}; it has {', '.join(siblings)}."
    return f"{problem}; swinv2-tasks {command} --help-all lists all."


def nearest_settings(settings: Settings, name: str) -> list[str]:
    """Up to three settings that may have been meant by a name."""
    owner, _, last = name.rpartition(".")
    known = settings.names()
    # Where the prefix is wrong, too, no other setting is in the place of this one.
    siblings = settings.siblings(owner) if settings.owner_of(name) == owner else []
    # A name without dots has most likely lost its prefix, one with dots is most likely misspelled.
    same = [other for other in known if other.rpartition(".")[2] == last]
    usual = [OTHER_NAMES[last]] if OTHER_NAMES.get(last) in known else []
    alike = nearest_names(last, siblings)
    if not owner:
        return first_of(same[:3], usual, alike, nearest_names(last, known))
    if usual and usual[0].rpartition(".")[0] == owner:
        return usual
    whole = closest(name, known, cutoff=0.8)
    return first_of(alike, whole, same[:3], usual)


def first_of(*candidates: list[str]) -> list[str]:
    """The first list that holds anything; an empty one if none does."""
    return next((names for names in candidates if names), [])


def nearest_names(word: str, names: Sequence[str]) -> list[str]:
    """The names whose last component comes nearest to a word: misspelled, or with a part left out."""
    lasts = {name.rpartition(".")[2]: name for name in reversed(names)}
    matches = closest(word, lasts, cutoff=0.85)
    if not matches and len(word) > 3:
        matches = [last for last in reversed(lasts) if set(word.split("_")) <= set(last.split("_"))][:3]
    if not matches:
        matches = closest(word, lasts)
    return [lasts[last] for last in matches]


# ---- values


def explain_value(settings: Settings, given: Given) -> str | None:
    """The line for a value that a setting cannot have; None where it can."""
    if given.name in settings.parts:
        return explain_class(settings, given)
    if given.name not in settings.values:
        return None
    hint, current = settings.values[given.name]
    is_option = given.config is None
    if is_option and given.value is None and hint is not bool and given.name != "print_config":  # which needs none
        return f"--{given.name} needs a value: {describe_type(hint)}{example(given, hint, current)}"
    if is_option and given.number > 1 and not fits(hint, given.value, is_text=False):
        listed = f"[{str(given.value).replace(' ', ',')}]"
        if fits(hint, listed, is_text=True):
            return f"--{given.name} takes a list as one value: --{given.name} {listed}"
        expected = f"{describe_type(hint)}{example(given, hint, current)}"
        return f"--{given.name} takes one value, not {given.number}: {expected}"
    if fits(hint, given.value, is_option):
        return None

    shown = f"{show_value(given.value)!r} is"
    if given.value == "":
        problem = f"{given.source}: it is given no value; expected {describe_type(hint)}"
    else:
        problem = f"{given.source}: {shown} not {describe_type(hint)}"
    choices = choices_of(hint)
    nearest = closest(str(given.value), choices)
    if nearest:
        return f"{problem}; did you mean {nearest[0]}?"
    return problem + ("." if choices else example(given, hint, current))


def example(given: Given, hint: Any, current: Any) -> str:
    """An example of a value, as the end of a sentence; the value that the setting has now, where that is one."""
    if current == given.value or current is None or not fits(hint, current, is_text=False):
        current = example_of(hint)
    if current is None:
        return "."
    setting = f"{given.name.rpartition('.')[2]}: {show_value(current)}"
    return f", as in {setting if given.config else f'--{given.name} {show_value(current)}'}"


def example_of(hint: Any) -> Any:
    """Some value of a type; None where none comes to mind."""
    for member in members_of(hint):
        for cls, value in ((bool, True), (int, 8), (float, 0.1)):
            if member is cls:
                return value
    return None


def fits(hint: Any, value: Any, is_text: bool) -> bool:
    """Whether the parser takes a value for a type.

    Args:
        hint: the type.
        value: text as it is typed, or what a config holds.
        is_text: whether it is the former.
    """
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
    except (TypeError, ValueError):  # a type that the parser leaves alone
        return True
    try:
        if is_text:
            parser.parse_args([f"--value={value}"])
        else:
            parser.parse_object({"value": value})
    except (ArgumentError, TypeError, ValueError, KeyError, AttributeError):  # the last, of a name in no module
        return False
    except SystemExit:
        return False
    return True


def explain_class(settings: Settings, given: Given) -> str | None:
    """The line for a class that there is not, or is of another kind than the setting takes; None where it fits."""
    if not isinstance(given.value, str) or (given.value[:1] in "{[" and given.value):
        return None
    names = choices_of(settings.classes.get(given.name))  # which stand for objects, as presets do
    if given.value in names:
        return None
    choices = [*names, *class_choices(settings, given.name)]
    module, _, short = given.value.rpartition(".")
    package = module.partition(".")[0]
    chosen = find_class(given.value)
    if chosen is None and package and package not in sys.modules:
        if find_spec(package) is not None:  # not read: another mistake came first
            return None
        return (
            f"{given.source}: there is no module {package} for {given.value}; install it, or put its folder into "
            f"PYTHONPATH, as in PYTHONPATH=. swinv2-tasks …"
        )
    if not given.value:
        problem = f"{given.source}: it is given no value"
    elif chosen is None:
        problem = f"{given.source}: there is no {short!r}"
    elif choices and short not in choices and chosen.__module__.startswith("swinv2_tasks"):
        problem = f"{given.source}: {short} cannot be used here"
    else:
        return None

    nearest = closest(short, choices)
    if nearest:
        return f"{problem}; did you mean {nearest[0]}?"
    if choices:
        return f"{problem}; there are {', '.join(choices)}."
    return f"{problem}; name a class with its module, as in my_package.MyClass."


def class_choices(settings: Settings, name: str) -> list[str]:
    """Names of the public classes and functions that a setting may have its object made by."""
    if name == "model":
        return [task for task in import_module(HOMES[0]).__all__ if task != "BaseTask"]
    wanted = tuple(wanted_classes(settings.classes.get(name)))
    made = {
        public: cls
        for home in HOMES
        for public in import_module(home).__all__
        if (cls := made_class(getattr(import_module(home), public))) is not None and issubclass(cls, wanted)
    }
    if not made:
        return [cls.__name__ for cls in wanted]
    # Those that others derive from are mere bases, but for data classes, which hold settings of their own.
    bases = {base for cls in made.values() for base in cls.__mro__[1:] if not dataclasses.is_dataclass(base)}
    return [public for public, cls in made.items() if cls not in bases and not inspect.isabstract(cls)]


def wanted_classes(hint: Any) -> Iterator[type]:
    """The classes that objects of a setting are of, also where the setting is what makes them."""
    for member in members_of(hint):
        made = get_args(member)[-1] if get_origin(member) is Callable else member
        if inspect.isclass(made) and made is not NoneType:
            yield made


def made_class(public: Any) -> type | None:
    """The class itself, or the one whose objects a function returns; None for anything else."""
    if inspect.isclass(public):
        return public
    made = inspect.signature(public).return_annotation if inspect.isfunction(public) else None
    made = find_class(made) if isinstance(made, str) else made
    return made if inspect.isclass(made) else None


# ---- anything else


NOISE = re.compile(r"^\s*-?\s*(Given value|Subtypes|Errors:|Does not validate|Expected a <class 'NoneType'>|tip:)")


def condense(message: str, command: str) -> str:
    """The parser's message without its types: the first setting that it names, and the last thing that it says."""
    if "No module named 'bitsandbytes'" in message:
        return "model.optimizer: 8-bit optimizers need bitsandbytes: pip install 'swinv2-tasks[8bit]'"
    if denied := re.search(r"Importing '([\w.]+)' is not allowed", message):
        return explain_denied(denied[1])
    required = re.search(r"the following arguments are required: ([\w., ]+)", message)
    keys = re.findall(r'Parser key "([\w.]+)"', message)
    lines = [line.strip(" -") for line in message.splitlines() if line.strip() and not NOISE.match(line)]
    words = lines[-1] if lines else message
    words = re.sub(r'^Parser key "[\w.]+":\s*', "", words)
    words = re.sub(r"<class '([\w.]+)'>", lambda match: match[1].rpartition(".")[2], words)
    words = re.sub(r"\b(?:\w+\.){2,}(\w+)", r"\1", words)
    where = ".".join(key.removeprefix("init_args.") for key in keys)
    if required:
        where = required[1].replace("init_args.", "")
        return f"{where} is required; swinv2-tasks {command} --help says what it is."
    where = f"{where}: " if where else ""
    return f"{where}{words[:200].rstrip('.')}; swinv2-tasks {command} --help shows what is taken."
