"""How many classes the head of a checkpoint has, of any format, read off the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Collection
from os import PathLike
from typing import Literal

from swinv2_tasks.errors import UserError
from swinv2_tasks.weights.files import Checkpoint, read_checkpoint
from swinv2_tasks.weights.formats import State, detect_format, from_official, to_official
from swinv2_tasks.weights.runs import checkpoint_of

HeadTask = Literal["image classification", "video classification", "segmentation", "detection"]

CLASSIFIERS: dict[str, tuple[HeadTask, int]] = {
    "head.fc.weight": ("image classification", 0),
    "head.decoder.classifier.1.weight": ("segmentation", 0),
    "head.box.classes.weight": ("detection", 1),
    "head.boxes.0.classes.weight": ("detection", 1),
}
"""Tensors with a row per class: what their head does, and how many rows are of no class."""


def count_classes(source: str | PathLike[str], head_task: HeadTask) -> int:
    """How many classes a checkpoint's head for a task has.

    Args:
        source: file or folder, in any format of ``load_weights``.
        head_task: what the head is to do.

    Raises:
        UserError: the file cannot be read or is of another architecture, has no such head, or is of a run, whose
            classes are known by more than their number.
    """
    checkpoint = read_checkpoint(checkpoint_of(source))
    recorded = checkpoint.record.get("classes") or {}
    if recorded.get("ids"):
        raise UserError(
            f"{source} is a checkpoint of a run, which knows its classes: give it as --ckpt_path {source}, in place of "
            "--config and --model.weights."
        )

    weights = _task_names(checkpoint)
    heads = _find_heads(weights)
    if head_task not in heads:
        raise UserError(_describe_missing(source, head_task, heads))
    return heads[head_task]


def _find_heads(weights: State) -> dict[HeadTask, int]:
    """What the heads that there are do, and how many classes each has."""
    heads: dict[HeadTask, int] = {}
    for name, (head_task, rows_of_no_class) in CLASSIFIERS.items():
        if name in weights:
            heads[head_task] = len(weights[name]) - rows_of_no_class
    if "image classification" in heads and weights["backbone.patch_embed.proj.weight"].dim() == 5:  # patches in time
        heads["video classification"] = heads.pop("image classification")
    return heads


def _task_names(checkpoint: Checkpoint) -> State:
    """A checkpoint's tensors by the names that they have in a task.

    Raises:
        UserError: naming the checkpoint: it is of another architecture.
    """
    try:
        return from_official(to_official(checkpoint.state, detect_format(checkpoint.state)), "lightning")
    except UserError as error:
        raise UserError(f"{checkpoint.source}: {error}") from error


def _describe_missing(source: str | PathLike[str], head_task: HeadTask, heads: Collection[str]) -> str:
    """What is wrong with a checkpoint that lacks a head, and what to do."""
    has = f"has a head of {', '.join(heads)}, but none of {head_task}" if heads else f"has no head of {head_task}"
    return (
        f"{source} {has}, so nothing can be predicted with it. Train one first, "
        f"swinv2-tasks fit --config CONFIG --model.weights {source}, and predict with that run's --ckpt_path."
    )
