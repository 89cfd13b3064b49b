"""Configs by name: those in ./configs and those that come with the package. Nothing slow is imported for them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import MOST_CONFIG_BYTES, load_yaml, read_text

TASK_CONFIGS = ("imagenet.yaml", "coco.yaml", "ade20k.yaml", "kinetics.yaml", "simmim.yaml")
"""The tasks' configs; all others go over one of them or change its numbers."""

WHICH_CONFIGS = f"The tasks' are {', '.join(TASK_CONFIGS)}; `swinv2-tasks configs` lists all."
"""What a message says where a config is missing."""


def shipped_configs() -> Path:
    """The folder of configs that come with the package."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def known_configs() -> list[str]:
    """Names by which configs can be given: those in ./configs and those shipped."""
    folders = (Path("configs"), shipped_configs())
    return sorted({str(path.relative_to(folder)) for folder in folders for path in folder.rglob("*.yaml")})


def find_config(name: str) -> Path:
    """The config of a name: a path, else one in ./configs, else one that comes with the package.

    Args:
        name: with or without its ending, ``.yaml``.

    Raises:
        UserError: when there is none, with the nearest name and the tasks' configs.
    """
    names = [name] if Path(name).suffix else [name, f"{name}.yaml"]
    for known in names:
        for candidate in (Path(known), Path("configs") / known, shipped_configs() / known):
            if candidate.is_file():
                return candidate

    nearest = nearest_config(name)
    hint = f" Did you mean {nearest}?" if nearest else ""
    raise UserError(f"no config {name!r}: not a file, nor in ./configs, nor shipped.{hint} {WHICH_CONFIGS}")


def nearest_config(name: str) -> str | None:
    """The known config that a name comes nearest to, with its folder or without."""
    known = known_configs()
    by_file = {Path(config).name: config for config in reversed(known)}
    file = name if Path(name).suffix else f"{name}.yaml"
    if Path(file).name in by_file:
        return by_file[Path(file).name]

    nearest = difflib.get_close_matches(file, known, n=1, cutoff=0.4)
    return nearest[0] if nearest else None


def load_config(config: Path) -> Any:
    """What a config says; it is read once as long as it stays unchanged, and not to be changed.

    Raises:
        OSError: it cannot be read, or is larger than a config may be.
        UnicodeDecodeError: it is no text.
        yaml.YAMLError: it is no YAML of plain values, or stands for more than it may.
    """
    status = os.stat(config)
    return _load_config(config.absolute(), status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _load_config(config: Path, *_: int) -> Any:
    return load_yaml(read_text(config, MOST_CONFIG_BYTES))


def _looks_like_text(content: bytes) -> bool:
    """Whether bytes that are no UTF-8 are text in an encoding of a byte per character, most of which are ASCII."""
    has_controls = any(byte < 32 and byte not in b"\t\r\n" for byte in content)
    return not has_controls and sum(byte > 127 for byte in content) < 0.3 * len(content)


EXAMPLES = {
    "trainer": "{max_epochs: 3}",
    "checkpoint": "{monitor: val/loss}",
    "save": "{every_n_minutes: 15}",
    "guard": "{max_skipped_steps: 0}",
    "model": "ClassificationTask",
    "data": "ImageNetDataModule",
}
"""Parts of a config that hold settings, each with one of them, or with a class that has them."""


def explain_file(config: Path) -> str | None:
    """What is wrong with a config as a file; None when it holds settings."""
    try:
        content = load_config(config)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        return f"{config}{where}: no valid YAML ({problem}); mend that line, or see how a shipped config does it."
    except UnicodeDecodeError as error:
        if error.object.startswith((b"\xff\xfe", b"\xfe\xff")):
            return f"{config} is text in UTF-16: save it as UTF-8."
        if _looks_like_text(error.object):
            line = error.object.count(b"\n", 0, error.start) + 1
            return f"{config}, line {line}: a character that is not UTF-8; save the file as UTF-8."
        return f"{config} is no text: --config names a YAML file; a checkpoint is given as --ckpt_path {config}."
    except OSError as error:
        return f"{config} cannot be read ({error.strerror}); make it readable, or name another --config."
    if content is not None and not isinstance(content, dict):
        return f"{config} holds no settings; a config is lines such as `trainer: {{max_epochs: 3}}`."
    settings: dict[str, Any] = content or {}
    for name in EXAMPLES.keys() & settings.keys():
        is_class = name in ("model", "data") and isinstance(settings[name], str)
        if not isinstance(settings[name], Mapping) and not is_class:
            return f"{config}: {name} holds no settings of its own, as in `{name}: {EXAMPLES[name]}`; mend that line."
    return None


def read_config(config: Path) -> dict[str, Any] | None:
    """What a config holds; None where it is no mapping that can be read, which the parser is to say."""
    try:
        settings = load_config(config)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return {} if settings is None else settings if isinstance(settings, dict) else None


def named_classes(config: Path) -> set[str]:
    """Which of ``model`` and ``data`` a config names the class of; an overlay names neither, and goes over a config.

    A file that cannot be read counts as naming both: the parser, which reads it next, says what is wrong with it.
    """
    try:
        settings = load_config(config)
    except (OSError, ValueError, yaml.YAMLError):
        return {"model", "data"}
    if not isinstance(settings, dict):
        return set()
    parts = {name: settings.get(name) for name in ("model", "data")}
    return {
        name
        for name, part in parts.items()
        if isinstance(part, str) or (isinstance(part, dict) and "class_path" in part)
    }


# ---- what configs hold


def plain_settings(config: Any) -> Any:
    """A config without the levels that only classes need: ``init_args`` are the settings, beside ``class_path``."""
    if not isinstance(config, Mapping):
        return config
    plain: dict[str, Any] = {}
    for name, value in config.items():
        if name in ("init_args", "dict_kwargs") and isinstance(value, Mapping):
            plain |= {inner: plain_settings(setting) for inner, setting in value.items()}
        else:
            plain[str(name)] = plain_settings(value)
    return plain


def init_args(part: Any) -> Any:
    """The arguments of the class that a part of a config states; none where it states no class."""
    return (part or {}).get("init_args") or {}


def merge_settings(under: Any, over: Any) -> Any:
    """Settings over others, name by name."""
    if not isinstance(under, Mapping) or not isinstance(over, Mapping):
        if isinstance(over, str) and isinstance(under, Mapping) and "class_path" in under:
            return {**under, "class_path": over}
        return over
    merged = dict(under)
    for name, value in over.items():
        merged[name] = merge_settings(merged[name], value) if name in merged else value
    return merged


def nested_setting(name: str, value: Any) -> dict[str, Any]:
    """Settings that hold one value: ``{"data": {"root": value}}`` for ``data.root``."""
    first, dot, rest = name.partition(".")
    return {first: nested_setting(rest, value) if dot else value}


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Plain settings by their whole names; of an object, its class by the object's own name."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        whole = f"{prefix}{name}"
        if name == "class_path":
            flat[prefix.removesuffix(".")] = value
        elif isinstance(value, Mapping):
            flat |= flat_settings(value, f"{whole}.")
        else:
            flat[whole] = value
    return flat


def named_task(config: Any) -> str | None:
    """The task that a config names, without its module; None where it names none."""
    model = plain_settings(config or {}).get("model")
    name = model.get("class_path") if isinstance(model, Mapping) else model
    return name.rpartition(".")[2] if isinstance(name, str) else None
