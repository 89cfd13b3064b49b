"""What a checkpoint says of the state of a training, before any of it is taken over: progress, callbacks, optimizers.

Lightning and torch take over whatever they find. A count that is text, or a rate that is not a number, would otherwise
show only in the middle of the resumed training, or never.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from swinv2_tasks.errors import UserError
from swinv2_tasks.records import (
    Check,
    Fault,
    describe,
    each,
    either,
    flag,
    like,
    mapping,
    number,
    optional,
    plain,
    require,
    score,
    text,
    values,
    whole,
)
from swinv2_tasks.text import printable

MODEL_CHECKPOINT = mapping(
    {},
    {
        "monitor": optional(text),
        "best_model_path": text,
        "best_model_score": optional(score),
        "current_score": optional(score),
        "dirpath": optional(text),
        "best_k_models": values(score),
        "kth_best_model_path": text,
        "kth_value": score,
        "last_model_path": text,
    },
)
"""What Lightning's ModelCheckpoint keeps; more than a new one can tell, whose scores are null."""

_SETTING = optional(either(number(), flag, text, score, each(number())))
"""Of an optimizer: what is done by a rate, a flag, a pair of numbers."""

GROUP = mapping(
    {"params": each(plain)},
    {"lr": score, "initial_lr": score, "weight_decay": number(0), "eps": score, "betas": each(number(0, 1), 2)},
)

OPTIMIZER = mapping({"state": values(plain), "param_groups": each(GROUP)})
"""The state of one of torch's optimizers; its tensors are checked as they are loaded."""

_RATES = each(either(number(0), score))

SCHEDULER = mapping(
    {"last_epoch": whole(-1)},
    {
        "_step_count": whole(),
        "_is_initial": flag,
        "_get_lr_called_within_step": flag,
        "base_lrs": _RATES,
        "_last_lr": _RATES,
        "lr_lambdas": each(optional(values(plain))),
    },
)
"""The state of one of torch's schedulers."""


ELEMENTWISE = (
    *(torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, torch.optim.SGD),
    *(torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.ASGD, torch.optim.Rprop),
)
"""Optimizers whose state of a parameter is of its shape, with the same entries for all."""


def check_state(checkpoint: Mapping[str, Any], trainer: Trainer, source: str) -> None:
    """Refuses a checkpoint whose state of the training is not what Lightning, torch and this package write.

    Args:
        checkpoint: its contents.
        trainer: that is about to take it over, to resume a training or to evaluate.
        source: the file, for the message.

    Raises:
        UserError: naming the entry, what it is and what was expected.
    """
    _require(checkpoint, mapping({"epoch": whole(), "global_step": whole()}), source)
    loops = {
        TrainerFn.FITTING: ("fit_loop", trainer.fit_loop),
        TrainerFn.VALIDATING: ("validate_loop", trainer.validate_loop),
        TrainerFn.TESTING: ("test_loop", trainer.test_loop),
        TrainerFn.PREDICTING: ("predict_loop", trainer.predict_loop),
    }
    if trainer.state.fn in loops and "loops" in checkpoint:
        name, loop = loops[trainer.state.fn]
        _require(checkpoint["loops"], mapping({name: like(loop.state_dict())}), source, "loops")
    if "callbacks" in checkpoint:
        _check_callbacks(checkpoint["callbacks"], trainer, source)
    if trainer.state.fn != TrainerFn.FITTING:
        return

    parts = {"loops": values(plain), "optimizer_states": each(OPTIMIZER), "lr_schedulers": each(SCHEDULER)}
    needed = {**parts, "callbacks": values(plain)}
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    recorded = checkpoint["swinv2_tasks"]["data"]
    if recorded is not None and recorded["class"] == type(datamodule).__name__:
        needed[type(datamodule).__qualname__] = values(plain)  # it has a state, without which other batches came
    _require(checkpoint, mapping(needed), source)
    for index, optimizer in enumerate(checkpoint["optimizer_states"]):
        for number_of_group, group in enumerate(optimizer["param_groups"]):
            settings = {str(key): value for key, value in group.items() if key != "params"}
            _require(settings, _each_setting, source, f"optimizer_states.{index}.param_groups.{number_of_group}")


def _each_setting(settings: Mapping[str, Any]) -> Fault | None:
    """What is wrong with an optimizer's settings, such as a rate that is negative or no number."""
    if (fault := values(_SETTING)(settings)) is not None:
        return fault
    for name, value in settings.items():
        is_number = isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
        least = 0.0 if name in ("lr", "initial_lr", "eps") else -math.inf
        if is_number and not (math.isfinite(float(value)) and float(value) >= least):
            return Fault("", describe(value), "a number from 0 up").inside(name)
    return None


def check_restored(trainer: Trainer, source: str) -> None:
    """Refuses optimizers and schedulers that cannot step with the state that they have taken over from a checkpoint.

    Args:
        trainer: in which they are.
        source: the checkpoint, for the message.

    Raises:
        UserError: naming the entry, what it is and what was expected.
    """
    for index, optimizer in enumerate(trainer.optimizers):
        where = f"optimizer_states.{index}"
        settings = mapping({name: _setting_like(value) for name, value in optimizer.defaults.items()})
        _require(optimizer.param_groups, each(settings), source, f"{where}.param_groups")
        if isinstance(optimizer, ELEMENTWISE):
            _require(optimizer.state, _alike, source, f"{where}.state")
    for index, config in enumerate(trainer.lr_scheduler_configs):
        groups = len(config.scheduler.optimizer.param_groups)
        rates = {name: each(plain, groups) for name in ("base_lrs", "_last_lr")}
        _require(config.scheduler.state_dict(), mapping({}, rates), source, f"lr_schedulers.{index}")


def _setting_like(default: Any) -> Check:
    """What a setting of an optimizer may be, by its default."""
    if default is None or isinstance(default, bool):
        return optional(flag)
    if isinstance(default, Tensor | float | int):
        return either(number(), score)
    return like(default)


def _alike(states: Mapping[Tensor, Mapping[str, Any]]) -> Fault | None:
    """What is wrong with the states of an optimizer's parameters: one has other entries, or belongs to none."""
    for parameter in states:
        if not isinstance(parameter, Tensor):  # a number that the optimizer could not give to one
            return Fault(printable(parameter)[:60], "the state of no parameter", "")
    compositions = [
        {name: _kind(parameter, value) for name, value in state.items()}
        for parameter, state in states.items()
        if state and parameter.dim()
    ]
    if not compositions:
        return None
    usual = max(compositions, key=compositions.count)
    for index, entries in enumerate(compositions):
        for name, composition in usual.items():
            if entries.get(name) != composition:
                return Fault(f"{index}.{name}", entries.get(name, "missing"), f"{composition}, as in others")
    return None


def _kind(parameter: Tensor, value: Any) -> str:
    """What an entry of a parameter's state is, apart from its numbers."""
    if isinstance(value, Tensor) and value.dim():
        shape = "of the parameter's shape" if value.shape == parameter.shape else "of another shape"
        return f"a tensor {shape}"
    return "a number" if isinstance(value, int | float | Tensor) else describe(value)


def _check_callbacks(states: Any, trainer: Trainer, source: str) -> None:
    """Compares what callbacks have saved with what they would save now."""
    _require(states, values(plain), source, "callbacks")
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if callback.state_key not in states:
            continue
        check: Check = values(plain)
        with suppress(Exception):  # some have no state before the training has begun
            check = like(callback.state_dict())
        where = f"callbacks.{type(callback).__name__}"
        _require(states[callback.state_key], check, source, where)
        if isinstance(callback, ModelCheckpoint):
            _require(states[callback.state_key], MODEL_CHECKPOINT, source, where)


def _require(value: Any, check: Check, source: str, where: str = "") -> None:
    def check_inside(inner: Any) -> Fault | None:
        fault = check(inner)
        return fault.inside(where) if fault is not None and where else fault

    require(value, check_inside, f"{source} is corrupt: in its state of the training,")


def unrestorable(source: str, error: BaseException) -> UserError:
    """What to say where Lightning, torch or a callback cannot take over what a checkpoint holds."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if isinstance(error, KeyError):
        reason = f"{reason} is missing"
    if "loaded state dict" in reason:  # as torch's optimizers say
        return UserError(
            f"the optimizer's state does not fit ({error}): resume with the optimizer, frozen_stages and layer_decay "
            "of the run's own config"
        )
    return UserError(
        f"{source}: its state of the training cannot be taken over ({reason}). Take another checkpoint of the run, or "
        "start a new one from the trained weights with --model.weights CHECKPOINT."
    )
