"""Predicting with weights and files alone: classes by the number that the head has, where no dataset states them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.batches import TaskData
from swinv2_tasks.cli.arguments import split_options
from swinv2_tasks.cli.config_files import init_args
from swinv2_tasks.cli.configs import state_class_names
from swinv2_tasks.cli.refusals import option_setting
from swinv2_tasks.datamodules import class_lists
from swinv2_tasks.datamodules.classes import in_root
from swinv2_tasks.datamodules.shards import is_url
from swinv2_tasks.tasks.base import BaseTask
from swinv2_tasks.text import say
from swinv2_tasks.weights.classes import HeadTask, count_classes


class ClassList(NamedTuple):
    """A published list of classes."""

    name: str
    """Of the dataset, for what is printed."""
    file: str | None
    """Among those shipped; None: the datamodule's own."""
    order: str = ""
    """What is to be said of its order."""


class PublishedClasses(NamedTuple):
    """The published classes of what a datamodule is for."""

    head: HeadTask
    """What the head does that has them."""
    first_number: int
    """What a class list that only numbers the classes begins with, as the task does that knows none."""
    lists: Mapping[int, ClassList]
    """Published ones, by their number of classes."""
    numbered: Mapping[str, Any] = MappingProxyType({})
    """Further settings of the data that classes need which are only numbered."""


IMAGENET_22K = ClassList(
    "ImageNet-22k",
    "imagenet_22k.csv",
    ", in the order of WordNet ids; the authors have not published theirs, so a neighbor's name may be meant",
)

PUBLISHED = {
    "ImageNetDataModule": PublishedClasses(
        "image classification", 0, {1000: ClassList("ImageNet-1k", "imagenet_1k.csv"), 21_841: IMAGENET_22K}
    ),
    "CocoDataModule": PublishedClasses("detection", 1, {80: ClassList("COCO", "coco.csv")}),
    "ADE20KDataModule": PublishedClasses("segmentation", 1, {150: ClassList("ADE20K", None)}, {"background": "ignore"}),
    "KineticsDataModule": PublishedClasses(
        "video classification", 0, {400: ClassList("Kinetics-400", "kinetics_400.txt")}
    ),
}
"""By the name of the datamodule."""

STATING = {"data.root", "data.class_names"}
"""Settings that say where the classes are from: stated on the command line, they count, mistyped or not."""


def state_classes(config: Any, arguments: Collection[str], folder: Path) -> None:
    """States the classes of a prediction that has weights and no dataset, and prints which.

    Args:
        config: the settings of predict, in which they are stated.
        arguments: the command line's, after the command.
        folder: for files that the settings name; it is needed until the prediction ends.

    Raises:
        UserError: the weights cannot be read, or have no head of the task.
    """
    weights = None if config["ckpt_path"] else init_args(config["model"]).get("weights")
    published = PUBLISHED.get(_class_name(config["data"]))
    given = {option_setting(option) for option in split_options([*arguments])}
    if weights is None or published is None or given & STATING or not _lacks_classes(config["data"]["init_args"]):
        return

    number = count_classes(weights, published.head)
    shipped = published.lists.get(number)
    if shipped is None:
        _state_numbers(config["data"], published, number, folder)
    else:
        config["data"]["init_args"]["class_names"] = _path(shipped)
    rank_zero_only(say)(_describe(published, number, shipped))


def _lacks_classes(data: Mapping[str, Any]) -> bool:
    """Whether neither a class list nor a dataset is there that classes could be read from."""
    names, root = data.get("class_names"), data.get("root")
    if isinstance(names, str):
        return not in_root(names, root).is_file()
    is_there = root is not None and (is_url(root) or Path(root).expanduser().is_dir())
    return names is None and not is_there


def _state_numbers(data: Any, published: PublishedClasses, number: int, folder: Path) -> None:
    """States classes of which only their number is known."""
    state_class_names(data, _numbers(published, number), folder)
    for name, value in published.numbered.items():
        if data["init_args"][name] is None:
            data["init_args"][name] = value


def _numbers(published: PublishedClasses, number: int) -> list[str]:
    """Names of classes of which only their number is known."""
    return [str(published.first_number + k) for k in range(number)]


def _path(shipped: ClassList) -> str | None:
    """The file of a shipped list."""
    return None if shipped.file is None else str(resources.files(class_lists).joinpath(shipped.file))


def _describe(published: PublishedClasses, number: int, shipped: ClassList | None) -> str:
    """Which classes were stated, in a line."""
    if shipped is None:
        numbers = _numbers(published, number)
        return (
            f"classes: the head has {number:,}, which no known list has, so they are called {numbers[0]} to "
            f"{numbers[-1]}; data.class_names names them"
        )
    return f"classes: {shipped.name}'s {number:,}, as the head has{shipped.order}; data.class_names names others"


def _class_name(part: Any) -> str:
    """The class of this package that a part of the config names, without its module; empty for others'."""
    module, _, name = str((part or {}).get("class_path")).rpartition(".")
    return name if module.partition(".")[0] == "swinv2_tasks" else ""


def name_classes(task: BaseTask, data: TaskData) -> None:
    """Lets a task take over the data's classes, so that predictions name them; a checkpoint would know them."""
    if task.num_classes is not None and data.class_ids is not None:
        ids = list(data.class_ids)
        task.set_classes(ids, list(data.class_names or map(str, ids)), "the data")
