"""The config that a checkpoint carries."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swinv2_tasks import tasks
from swinv2_tasks.datamodules import ADE20KDataModule, CocoDataModule
from swinv2_tasks.datamodules.base import BaseDataModule
from swinv2_tasks.datamodules.scene_classes import MOST_CLASSES
from swinv2_tasks.datamodules.shards import is_url
from swinv2_tasks.datamodules.transforms.augmentation import Augmentation
from swinv2_tasks.errors import UserError
from swinv2_tasks.hyperparameters import Recorded, recorded_arguments, recorded_class, task_record
from swinv2_tasks.text import printable
from swinv2_tasks.training.resume import check_recorded_size
from swinv2_tasks.training.run_folder import is_name
from swinv2_tasks.weights.files import read_contents

TASKS = [name for name in tasks.__all__ if name != "BaseTask"]
"""Names of the tasks that a checkpoint may ask for."""

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true")
"""Precisions that a checkpoint may ask for."""


def config_from_checkpoint(path: str, *, predict: bool = False, root_is_stated: bool = False) -> dict[str, Any]:
    """The config that a checkpoint carries: its own model and data, named by this package's classes only.

    Args:
        path: a checkpoint of a run.
        predict: the dataset need not be there.
        root_is_stated: whether data.root is stated elsewhere.

    Raises:
        UserError: when the file is no checkpoint of a run, names classes that are not this package's, or a URL to read
            data from.
    """
    contents = read_contents(Path(path))
    record = task_record(contents, path)
    task, data = record["task"], record["data"]
    datamodule = None if data is None else recorded_class(BaseDataModule, data["class"])
    if task["class"] not in TASKS or datamodule in (None, BaseDataModule):
        raise UserError(
            f"{path} was made with {task['class']} and {data and data['class']}, which are not both this package's; "
            "give the run's config with --config."
        )
    check_recorded_size(contents, record, path, getattr(tasks, task["class"]))
    backbone = {**record["backbone"], "position_bias": f"swinv2_tasks.backbone.{record['backbone']['position_bias']}"}
    backbone_config = {"class_path": "swinv2_tasks.backbone.SwinTransformerV2", "init_args": backbone}
    data_args = _evaluation_arguments(data["init_args"])
    root = str(data_args.get("root"))
    if is_url(root) and not (predict or root_is_stated):
        raise UserError(
            f"{path} was trained on {printable(root)}, and a file chooses no host to read from: name it yourself, as "
            f"--data.root {printable(root)}, or a copy of the data."
        )
    if is_url(root):
        data_args["root"] = None
    data_args = _as_config(recorded_arguments(datamodule, data_args, path), data_args)
    if predict:
        # How the training handled bad samples does not matter for the files to predict.
        for name in ("faulty_samples", "faulty_budget"):
            data_args.pop(name, None)
    if datamodule is CocoDataModule and predict:  # its classes are stated as the mapping has left them
        data_args.pop("class_mapping", None)
    if data_args.get("class_mapping"):
        _check_mapped_classes(data_args.get("class_names"), datamodule, path)
    elif (classes := _stated_classes(record, datamodule, predict)) is not None:
        data_args["class_names"] = classes
    task_args = _as_config(
        recorded_arguments(getattr(tasks, task["class"]), task["init_args"], path), task["init_args"]
    )
    for name in ("num_classes", "weights", "class_weights"):  # scores are without weights of classes
        task_args.pop(name, None)
    if task_args.get("multi_label") and "labels" in data_args:  # which a split of few images may not show
        data_args["labels"] = "several"
    name = Path(record["name"]).name  # a file does not choose folders outside --runs
    precision = record.get("precision")
    return {
        "name": name if is_name(name) and name.isprintable() else "run",
        "trainer": {"precision": precision} if precision in PRECISIONS else {},
        "model": {
            "class_path": f"swinv2_tasks.tasks.{task['class']}",
            "init_args": {"backbone": backbone_config, **task_args},
        },
        "data": {"class_path": f"{datamodule.__module__}.{datamodule.__name__}", "init_args": data_args},
    }


def _check_mapped_classes(names: Any, datamodule: type, path: str) -> None:
    """Makes sure that a checkpoint states the classes that a mapping is of: datamodules record them with it.

    Raises:
        UserError: it names a file instead, which a checkpoint does not choose.
    """
    if not isinstance(names, list) and datamodule is not CocoDataModule:
        raise UserError(
            f"{path} is corrupt: its record of the run has data.class_mapping, but not the classes that it is of. Take "
            "another checkpoint, or copy it again."
        )


def _stated_classes(record: Mapping[str, Any], datamodule: type, predict: bool) -> list[str] | None:
    """The classes for data.class_names, so that no file of the training is needed; None where the data state them."""
    ids = record["classes"]["ids"]
    if not ids or (datamodule is CocoDataModule and not predict):  # whose annotations have them, with their ids
        return None
    return [*map(str, record["classes"]["names"] if datamodule is ADE20KDataModule else ids)]


LONGEST_LIST = MOST_CLASSES
"""Classes that a config states as a list, at most: the parser copies a list once for each of its entries, which takes
seconds for a thousand of them and minutes for ten thousand. Scenes have no more."""


def state_class_names(data: Any, names: Sequence[str], folder: Path) -> None:
    """States class names in the settings of a datamodule: as a list or, where they are many, as a file of them.

    Args:
        data: the class of the datamodule and its arguments.
        names: of the classes.
        folder: where the file goes.
    """
    data["init_args"]["class_names"] = [*names]
    if len(names) <= LONGEST_LIST:
        return

    # Of ImageNet's lists only CSV files take ids with spaces; the others' hold a name per line.
    is_csv = data["class_path"].endswith(".ImageNetDataModule")
    path = folder / ("class_names.csv" if is_csv else "class_names.txt")
    with path.open("w", newline="", encoding="utf-8") as file:
        if is_csv:
            csv.writer(file).writerows([["id"], *([name] for name in names)])
        else:
            file.writelines(f"{name}\n" for name in names)
    data["init_args"]["class_names"] = str(path)


def _evaluation_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A datamodule's recorded arguments without what a file does not choose.

    That is an augmentation whose class is not of this package, as evaluation augments nothing, and a folder to keep
    copies of shards in.
    """
    arguments = {name: value for name, value in arguments.items() if name != "stream"}
    augmentation = arguments.get("augmentation")
    if isinstance(augmentation, Mapping) and recorded_class(Augmentation, augmentation.get("class")) is None:
        del arguments["augmentation"]
    return arguments


def _as_config(built: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded arguments as a config states them: settings with their class and its arguments."""
    arguments = dict(recorded)
    for name, value in built.items():
        if isinstance(value, Recorded):
            cls = type(value)
            arguments[name] = {"class_path": f"{cls.__module__}.{cls.__name__}", "init_args": value.init_args}
    return arguments
