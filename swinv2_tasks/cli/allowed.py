"""Which modules a config or an option may name classes and functions of: a file chooses no other code.

Whoever writes a config chooses among the parts of this package and those of torch and Lightning that a training is
made of. Code of one's own is named by the option ``--allow MODULE``, which no file can give. The parser imports nothing
else, also not to print a config.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from swinv2_tasks.cli.arguments import Option, values_of
from swinv2_tasks.cli.config_files import read_config
from swinv2_tasks.errors import ArgumentsError
from swinv2_tasks.text import printable

ALLOWED = (
    *(f"swinv2_tasks.{package}" for package in ("backbone", "callbacks", "datamodules", "evaluation", "heads")),
    *(f"swinv2_tasks.{package}" for package in ("inference", "tasks", "training")),
    "torch.optim",
    *(f"lightning.pytorch.{package}" for package in ("callbacks", "loggers", "strategies", "profilers", "plugins")),
    "bitsandbytes.optim",  # of this package's extra `8bit`
    # Where Lightning keeps some of these: the parser looks at the module that a class is defined in as well.
    *("lightning.fabric.plugins", "lightning.fabric.strategies", "lightning.pytorch.accelerators"),
)
"""Modules of which everything may be named, and of all modules in them."""

PARTS = (
    *("model", "data", "backbone", "position_bias", "decoder", "detector", "loss", "class_loss"),
    *("multi_label_loss", "augmentation", "optimizer"),
)
"""Settings that name a class of this package or one of torch's optimizers."""


def take_allowed(options: Iterable[Option]) -> tuple[list[Option], list[str]]:
    """The options without ``--allow``, and the modules that these name.

    Raises:
        ArgumentsError: one of them names none.
    """
    options = [*options]
    modules = values_of(options, "--allow")
    for option in options:
        if option.name == "--allow" and not all(_is_module(value) for value in option.values or ("",)):
            raise ArgumentsError(
                f"--allow {' '.join(option.values)}: which module? It takes the module of a class that a config names, "
                "as in --allow my_package"
            )
    return [option for option in options if option.name != "--allow"], modules


def _is_module(name: str) -> bool:
    return bool(name) and all(part.isidentifier() for part in name.split("."))


LONGEST_NAME = 500
"""Characters of the name of a class with its modules, each of which Python would import within the one before."""

_granted: set[str] = set()
"""Modules that earlier commands of this process were allowed."""


def restrict_imports(modules: Sequence[str]) -> None:
    """Lets the parser import what is allowed, and these modules, and nothing else that a value names."""
    from jsonargparse import set_parsing_settings  # not above: a screen of help does without it

    set_parsing_settings(import_path_denylist=["*", *_granted], import_path_allowlist=[*ALLOWED, *modules])
    _granted.update(modules)


def check_names(options: Sequence[Option], modules: Sequence[str]) -> None:
    """Refuses options and configs that name classes of other modules, before anything is imported.

    Args:
        options: with paths of configs.
        modules: that the user allows.

    Raises:
        ArgumentsError: there is such a name.
    """
    for path in map(Path, values_of(options, "--config")):
        for setting, name in _named_in(read_config(path) or {}):
            _check(f"{setting} in {printable(path)}", name, modules)
    for option in options:
        setting = option.name.removeprefix("--").removesuffix(".class_path")
        if setting.rpartition(".")[2] in PARTS and len(option.values) == 1:
            _check(setting, option.values[0], modules)


def _named_in(settings: Any, setting: str = "") -> Iterator[tuple[str, str]]:
    """The names of classes in a config, each with its setting."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            inner = setting if key in ("class_path", "init_args") else f"{setting}.{key}".lstrip(".")
            if isinstance(value, str) and (key == "class_path" or key in PARTS):
                yield inner, value
            else:
                yield from _named_in(value, inner)
    elif isinstance(settings, Sequence) and not isinstance(settings, str):
        for value in settings:
            yield from _named_in(value, setting)


def _check(setting: str, name: str, modules: Sequence[str]) -> None:
    """Refuses the name of a class that is not allowed; one without a module is looked up among what is."""
    if len(name) > LONGEST_NAME:
        raise ArgumentsError(
            f"{setting}: {printable(name[:60])}… has {len(name):,} characters, which no class has. Mend that line."
        )
    module = name.rpartition(".")[0]
    if not _is_module(name) or not module or is_allowed(name, modules):
        return
    raise ArgumentsError(f"{setting}: {explain_denied(name)}")


def explain_denied(name: str) -> str:
    """Why a dotted name is not imported, and what to do if it should be."""
    package = name.partition(".")[0]
    remedy = f"If it is yours and you trust it, add --allow {package}."
    if package in sys.stdlib_module_names:
        remedy = "Do not use the file that says so."
    return (
        f"{printable(name)} is not imported, as configs choose no code but that of this package, torch's optimizers "
        f"and Lightning. {remedy}"
    )


def is_allowed(name: str, modules: Iterable[str] = ()) -> bool:
    """Whether a dotted name is of one of the modules that are allowed."""
    return any(name == module or name.startswith(f"{module}.") for module in (*ALLOWED, *modules))
