"""The settings of fit, validate, test and predict: which there are, and whether this machine can do what they ask."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from swinv2_tasks.cli.arguments import Option, values_of
from swinv2_tasks.cli.config_files import merge_settings, nested_setting, plain_settings, read_config
from swinv2_tasks.cli.refusals import explain, explain_overlay, given_values, option_setting
from swinv2_tasks.cli.settings import Settings, find_class
from swinv2_tasks.errors import ArgumentsError, UserError
from swinv2_tasks.training.run_checkpoint import RunCheckpoint

LINKED = ("model.num_classes",)
"""Settings that nobody sets, as they follow from the data."""

TYPES: dict[str, Any] = {
    "name": str,
    "runs": str,
    "output": str | None,
    "max_pixels": int | None,
    "timeout": float | None,
    "ckpt_path": str | None,
    "config": str,
    "seed_everything": bool | int,
    "guard.max_skipped_steps": int,
}
"""Types of the settings that are of no class."""


def check_linked(options: Sequence[Option]) -> None:
    """Refuses options that would be overruled by what they follow from.

    Raises:
        ArgumentsError: there is one.
    """
    for option in options:
        if option_setting(option) in LINKED:
            raise ArgumentsError(f"{option.name}: it follows from the data, whose classes are counted; leave it out.")


def explain_refusal(command: str, options: Sequence[Option], defaults: Any, message: str) -> str:
    """What is wrong with arguments that the parser refuses.

    Args:
        command: fit, validate, test or predict.
        options: its options, with paths of configs.
        defaults: values of the settings that are no parts of the model or the data.
        message: the parser's own.
    """
    configs: dict[Path, Any] = {}
    for path in map(Path, values_of(options, "--config")):
        configs[path] = read_config(path) or {}

    stated: Any = {}
    for content in configs.values():
        stated = merge_settings(stated, plain_settings(content))
    if (fault := explain_overlay(configs)) is not None:
        return fault

    for option, value in ((option, " ".join(option.values)) for option in options if option.values):
        if find_class(value) is not None:
            stated = merge_settings(stated, nested_setting(option_setting(option), {"class_path": value}))

    settings = settings_of(stated, vars(defaults))
    return explain(settings, given_values(options, configs), command, message)


def settings_of(stated: Mapping[str, Any], defaults: Mapping[str, Any]) -> Settings:
    """All settings of fit, validate, test and predict.

    Args:
        stated: what configs and options say, as ``plain_settings`` gives it.
        defaults: values of the settings that are no parts of the model or the data.
    """
    roots: dict[str, Any] = {"trainer": Trainer, "checkpoint": ModelCheckpoint, "save": RunCheckpoint}
    settings = Settings(roots, stated, LINKED)
    for name, base in (("model", LightningModule), ("data", LightningDataModule)):
        settings.add_part(name, base, stated.get(name))
    for name, value in defaults.items():
        if not settings.knows(name):
            settings.add(name, TYPES.get(name, Any), value)
    settings.add("print_config", Any)
    settings.add("allow", Any)
    return settings


def check_folders(trainer: Mapping[str, Any]) -> None:
    """Refuses the trainer's own setting of where files go, which runs have nothing in.

    Raises:
        UserError: it is set.
    """
    if trainer["default_root_dir"] is not None:
        raise UserError(
            f"trainer.default_root_dir: runs go to --runs; take --runs {trainer['default_root_dir']}, and --name for "
            "the folder in it."
        )


BOUNDS: dict[str, tuple[float, float]] = {
    "seed_everything": (0, 2**32 - 1),
    "trainer.gradient_clip_val": (0, math.inf),
    "trainer.accumulate_grad_batches": (1, math.inf),
    "trainer.log_every_n_steps": (0, math.inf),
    "trainer.check_val_every_n_epoch": (1, math.inf),
    "guard.max_skipped_steps": (0, math.inf),
    "save.every_n_minutes": (0, math.inf),
}
"""What numbers may be that nothing else looks at before the training."""


def check_numbers(settings: Mapping[str, Any]) -> None:
    """Refuses numbers out of their range.

    Args:
        settings: of fit, validate, test or predict.

    Raises:
        UserError: there is one.
    """
    for name, (least, most) in BOUNDS.items():
        part, _, last = name.rpartition(".")
        value = (settings.get(part) or {}).get(last) if part else settings.get(last)
        if isinstance(value, int | float) and not (least <= value <= most and math.isfinite(value)):
            up_to = f" to {most:.0f}" if most < math.inf else " up"
            raise UserError(f"{name} is {value}; expected a number from {least:g}{up_to}.")


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Refuses an accelerator that is not there, and more devices than there are.

    Raises:
        UserError: it is so.
    """
    accelerator, devices = trainer["accelerator"], trainer["devices"]
    gpus = torch.cuda.device_count()
    has_gpu = gpus > 0 or torch.backends.mps.is_available()
    if accelerator in ("gpu", "cuda") and not has_gpu:
        raise UserError(
            f"trainer.accelerator is {accelerator}, but torch finds no GPU here; leave it out, or set "
            "--trainer.accelerator cpu. With a GPU in the machine, install its driver and a torch built for it."
        )

    number = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else 1
    if accelerator == "auto" and not has_gpu and number > 1:
        raise UserError(
            f"trainer.devices is {devices}, but torch finds no GPU here; leave it out, or set "
            f"--trainer.accelerator cpu for {number} processes on the CPU."
        )
    if accelerator in ("auto", "gpu", "cuda") and 0 < gpus < number:
        raise UserError(
            f"trainer.devices is {devices}, but there {'is 1 GPU' if gpus == 1 else f'are {gpus} GPUs'} here; set "
            f"--trainer.devices {gpus}, or auto for all."
        )
