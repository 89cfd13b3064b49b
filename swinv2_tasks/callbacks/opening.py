"""What a run is, in a few lines before its first number."""

from __future__ import annotations

import re
from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.backbone.macs import count_macs
from swinv2_tasks.batches import task_data
from swinv2_tasks.callbacks.prediction_files import Predictions
from swinv2_tasks.errors import UserError
from swinv2_tasks.progress import count_words, format_number
from swinv2_tasks.text import printable
from swinv2_tasks.training.planning import PlannedTask
from swinv2_tasks.weights.formats import describe_variant

Rows = list[tuple[str, str]]
"""Labels, and what is said of each."""

SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
"""The splits that each of the trainer's functions reads."""

WHOLE = ("data", "run", "results", "best", "checkpoint", "report", "summary", "curve", "samples")
"""Labels of rows that are never cut: those with paths, so that they can be copied, and why nothing is the best."""

ROOM = 62
"""Columns for a row's text in a terminal of 80."""

SPLIT_WORDS = {"train": "training", "val": "validation", "test": "test", "predict": "to predict"}


def describe_run(trainer: Any, task: Any) -> Rows:
    """What runs on what: task, backbone, data, batches, optimizer, precision, folder.

    To be called once the trainer has its optimizers and loaders; what it does not know yet, or what a task or data of
    one's own does not say, is left out.
    """
    rows: list[tuple[str, str | None]] = [
        ("task", _describe_task(task)),
        ("backbone", _describe_backbone(task)),
        ("parameters", _describe_parameters(task) + _describe_macs(trainer, task)),
        ("data", _describe_data(trainer)),
    ]
    if trainer.state.fn == "fit":
        rows += [("batch", _describe_batches(trainer, task)), ("optimizer", _describe_optimizer(trainer))]
    rows.append(("precision", f"{trainer.precision} on {_describe_devices(trainer)}"))
    if trainer.state.fn == "fit" and trainer.global_step:
        rows.append(("resumed", f"in epoch {trainer.current_epoch + 1}, after step {trainer.global_step:,}"))
    folder = _results_folder(trainer, task)
    rows.append(("run" if trainer.state.fn == "fit" else "results", None if folder is None else short_path(folder)))
    return [(label, text) for label, text in rows if text]


def _results_folder(trainer: Any, task: Any) -> Path | None:
    """Where to look for what comes of it: the run's folder, or that of the predictions."""
    predictions = [callback for callback in trainer.callbacks if isinstance(callback, Predictions)]
    if trainer.state.fn == "predict" and predictions:
        return predictions[0].results_folder
    return getattr(task, "run_folder", None)


def short_path(path: str | Path) -> str:
    """A path as one would type it: from here where it lies below."""
    path = Path(path)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return printable(path)


def _describe_task(task: Any) -> str:
    parts = [_words(type(task).__name__.removesuffix("Task"))]
    for name in ("decoder", "detector"):
        if (part := (getattr(task, "init_args", {}) or {}).get(name)) is not None:
            parts.append(str(part["class"]).removesuffix("Config"))
    text = " with ".join(parts)

    number = getattr(task, "num_classes", None)
    if not isinstance(number, int):
        return text
    names = getattr(task, "class_names", None)
    text += f", {count_words(number, 'class', 'classes')}"
    return f"{text}: {_join(names, ROOM - len(text))}" if names else text


def _words(name: str) -> str:
    """A class's name in words: VideoClassification as video classification; SimMIM stays."""
    if re.search("[A-Z]{2}", name):
        return name
    return re.sub("(?<!^)(?=[A-Z])", " ", name).lower()


def _join(names: Any, room: int) -> str:
    """The first few names, as many as there is room for."""
    text = ""
    for name in map(printable, names):
        longer = f"{text}, {name}" if text else name
        if len(longer) + len(", …") > room and text:
            return f"{text}, …"
        text = longer
    return text


def _describe_backbone(task: Any) -> str | None:
    backbone = getattr(task, "backbone", None)
    if not isinstance(backbone, SwinTransformerV2):
        return None
    windows = [list(window) for window in backbone.window_size]
    if all(window == windows[0] for window in windows):
        windows = windows[:1]
    text = ", ".join(str(sides[0]) if len(set(sides)) == 1 else "×".join(map(str, sides)) for sides in windows)
    return f"{_describe_size(backbone)}, window {text}"


def _describe_size(backbone: SwinTransformerV2) -> str:
    try:
        name = describe_variant(backbone.state_dict()).name
    except UserError:  # of a kind that no checkpoint of others has
        name = "SwinV2"
    depths = "-".join(map(str, backbone.depths))
    return name if name != "SwinV2" else f"{name} of {backbone.embed_dim} channels, depths {depths}"


def _describe_macs(trainer: Any, task: Any) -> str:
    """What the backbone computes at the size of the data; nothing where data or task do not say what that is."""
    backbone = getattr(task, "backbone", None)
    if not isinstance(backbone, SwinTransformerV2):
        return ""
    try:
        batch = task_data(trainer).example_batch(1, max(2, getattr(task, "num_classes", 2) or 2))
        size = task.input_size_of(batch)
        macs = count_macs(backbone, size)
    except (UserError, AttributeError, RuntimeError, ValueError):  # data or a task of one's own
        return ""
    unit, name = (1e9, "G") if macs >= 1e9 else (1e6, "M")
    return f"; {format_number(macs / unit)} {name} MACs in the backbone at {'×'.join(map(str, size))}"


def _describe_parameters(task: nn.Module) -> str:
    parameters = list(task.parameters())
    number = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return _count(number) + ("" if trained == number else f", of which {_count(trained)} are trained")


def _count(number: int) -> str:
    if number < 1_000_000:
        return f"{number:,}"
    return f"{number / 1e6:,.1f} M"


def _describe_data(trainer: Any) -> str | None:
    data = trainer.datamodule
    counts = []
    for split in SPLITS.get(trainer.state.fn, ()):
        dataset = getattr(data, f"{split}_dataset", None) or _dataset_of(trainer, split)
        if isinstance(dataset, Sized):
            parts = getattr(dataset, "parts", 1) if split in ("test", "predict") else 1
            counts.append(f"{len(dataset) // parts:,} {SPLIT_WORDS[split]}")
    text = ", ".join(counts)
    if data is None:
        return text or None
    arguments = (task_data(trainer).record or {}).get("init_args", {})
    source = (arguments.get("source") if trainer.state.fn == "predict" else None) or arguments.get("root")
    name = type(data).__name__.removesuffix("DataModule")
    return ": ".join(part for part in (f"{name} {printable(source)}" if source else name, text) if part)


def _dataset_of(trainer: Any, split: str) -> Any:
    """The dataset of a loader that the trainer was given."""
    loaders = trainer.train_dataloader if split == "train" else getattr(trainer, f"{split}_dataloaders", None)
    return getattr(loaders, "dataset", None)


def _describe_batches(trainer: Any, task: Any) -> str | None:
    batch_size = task_data(trainer).batch_size or getattr(trainer.train_dataloader, "batch_size", None)
    text = ""
    if batch_size:
        devices, accumulated = trainer.world_size, trainer.accumulate_grad_batches
        text = f"{batch_size}"
        text += f" × {devices} devices" if devices > 1 else ""
        text += f" × {accumulated} accumulated" if accumulated > 1 else ""
        text += f" = {batch_size * devices * accumulated:,}" if devices * accumulated > 1 else ""
        text += " samples per step; "
    length = []
    if trainer.max_epochs not in (None, -1):
        length.append(count_words(trainer.max_epochs, "epoch"))
    if trainer.max_steps != -1:
        length.append(count_words(trainer.max_steps, "step"))
    batches = task.epoch_batches() if isinstance(task, PlannedTask) else None
    if batches and trainer.max_epochs not in (None, -1):
        length[0] += f" of {count_words(batches, 'batch', 'batches')}"
    return (text + " or ".join(length)).removesuffix("; ") or None


def _describe_optimizer(trainer: Any) -> str | None:
    if not trainer.optimizers:
        return None
    optimizer = trainer.optimizers[0]
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    rates = [rate for scheduler in schedulers for rate in getattr(scheduler, "base_lrs", [])]
    rates = rates or [group["lr"] for group in optimizer.param_groups if "lr" in group]
    inner = getattr(optimizer, "optim", optimizer)  # of one whose states are sharded
    text = type(inner).__name__
    if rates:
        text += f", learning rate {format_number(float(max(rates)))}"
    decay = max((group.get("weight_decay") or 0 for group in optimizer.param_groups), default=0)
    return text + (f", weight decay {decay:g}" if decay else "")


def _describe_devices(trainer: Any) -> str:
    device, number = trainer.strategy.root_device, trainer.world_size
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        name = f"CPU, {count_words(torch.get_num_threads(), 'thread')}"
    else:
        name = device.type
    return f"{number} × {name}" if number > 1 else name


def layout_rows(rows: Rows, width: int) -> list[str]:
    """Lines of labels and texts, cut to a width where they need not be whole."""
    indent = 2 + max(len(label) for label, _ in rows) + 2
    lines = []
    for label, text in rows:
        line = f"  {label}".ljust(indent) + text
        lines.append(line if label in WHOLE or len(line) <= width else f"{line[: width - 1]}…")
    return lines


def wrap(parts: list[str], width: int) -> list[str]:
    """Parts side by side, in as many lines as they take; the further ones are indented."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(f"  {part}")
    return lines
