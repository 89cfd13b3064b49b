"""What is recorded of constructors' arguments, and what a checkpoint's record must hold."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from torch import nn

from swinv2_tasks.errors import UserError
from swinv2_tasks.heads import DetectorConfig, HTCConfig, MaskRCNNConfig
from swinv2_tasks.hyperparameters import Recorded, recorded_arguments, task_record


@dataclass
class Settings:
    rate: float = 0.5
    steps: tuple[int, ...] = (1, 2)


class Thing(Recorded):
    def __init__(self, size: Any, *, names: Any = None, settings: Any = Settings(), other: Any = None) -> None:  # noqa: B008
        self.size = size


def test_arguments_are_recorded_however_they_are_given() -> None:
    expected = {"size": 3, "names": None, "settings": {"rate": 0.5, "steps": [1, 2]}, "other": None}
    assert Thing(3).init_args == Thing(size=3).init_args == expected


def test_tuples_become_lists_and_dataclasses_dicts() -> None:
    thing = Thing((1, (2, 3)), names=["a"], settings=Settings(steps=()), other={"k": (True, 0.1, None)})
    assert thing.init_args == {
        "size": [1, [2, 3]],
        "names": ["a"],
        "settings": {"rate": 0.5, "steps": []},
        "other": {"k": [True, 0.1, None]},
    }


@pytest.mark.parametrize(
    "value",
    [nn.Linear(1, 1), nn.Linear, len, Settings, object(), [len], {"k": [nn.ReLU()]}, ({"k": len},)],
    ids=["module", "class", "function", "dataclass", "object", "list", "nested", "tuple"],
)
def test_what_is_not_plain_is_left_out_whole(value: Any) -> None:
    assert set(Thing(1, other=value).init_args) == {"size", "names", "settings"}


def test_the_record_is_a_copy() -> None:
    names = ["a"]
    thing = Thing(1, names=names)
    names.append("b")
    assert thing.init_args["names"] == ["a"]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_copies_keep_the_record(duplicate: Callable[[Thing], Thing]) -> None:
    assert duplicate(Thing(7, names=("a",))).init_args == Thing(7, names=("a",)).init_args


def test_wrong_arguments_are_reported_as_ever() -> None:
    with pytest.raises(TypeError, match="sizes"):
        Thing(sizes=3)  # type: ignore[call-arg]


# ---- records of checkpoints


def whole_record() -> dict[str, Any]:
    task = {"class": "ClassificationTask", "init_args": {"dropout": 0.0}}
    backbone = {"embed_dim": 8, "depths": [1], "num_heads": [1], "window_size": [[4, 4]], "position_bias": "LogCPB"}
    windows = {"effective": [[4, 4]], "pretrained": [[4, 4]]}
    classes = {"ids": ["a"], "names": ["apple"]}
    return {
        "name": "run", "task": task, "backbone": backbone, "classes": classes, "data": None, "windows": windows,
    }  # fmt: skip


def test_a_whole_record_is_returned() -> None:
    assert task_record({"swinv2_tasks": whole_record()}, "a.ckpt") == whole_record()


@pytest.mark.parametrize(
    "contents",
    [
        {},
        {"swinv2_tasks": None},
        {"swinv2_tasks": {"windows": {}}},
        {"swinv2_tasks": ["task"]},
        {"swinv2_tasks": "task"},
    ],
    ids=str,
)
def test_files_of_another_origin_are_pointed_to_model_weights(contents: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"a\.ckpt holds no run of this package.*--model\.weights"):
        task_record(contents, "a.ckpt")


@pytest.mark.parametrize("entry", ["name", "backbone", "classes", "data", "windows"])
def test_an_incomplete_record_is_refused(entry: str) -> None:
    record = whole_record()
    del record[entry]
    with pytest.raises(UserError, match=rf"a\.ckpt is corrupt.* {entry} is missing"):
        task_record({"swinv2_tasks": record}, "a.ckpt")


@pytest.mark.parametrize("task", [1, "ClassificationTask", {"class": "ClassificationTask"}, {"init_args": {}}], ids=str)
def test_a_task_that_is_no_record_is_refused(task: Any) -> None:
    with pytest.raises(UserError, match=r"a\.ckpt is corrupt.* task(\.\w+)? is "):
        task_record({"swinv2_tasks": whole_record() | {"task": task}}, "a.ckpt")


# ---- recorded arguments


class Model(Recorded):
    def __init__(
        self,
        part: nn.Module,
        size: int | tuple[int, int] = 1,
        names: list[str] | None = None,
        limits: tuple[float, ...] = (),
        table: dict[str, list[int]] | None = None,
        settings: Settings = Settings(),  # noqa: B008
        make: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        self.values = (size, names, limits, table, settings)


def test_recorded_arguments_build_the_same_again() -> None:
    model = Model(nn.ReLU(), (3, 4), names=["a"], limits=(0.5, 1), table={"k": [1]}, settings=Settings(0.1, (2,)))
    arguments = recorded_arguments(Model, model.init_args, "a.ckpt")
    assert set(arguments) == {"size", "names", "limits", "table", "settings"}
    assert isinstance(arguments["settings"], Settings)
    assert Model(nn.ReLU(), **arguments).init_args == model.init_args


@pytest.mark.parametrize(
    "arguments",
    [
        {"part": {"class_path": "os.system", "init_args": {"command": "true"}}},
        {"part": "os.system"},
        {"make": "os.system"},
        {"settings": "os.system"},
        {"settings": {"class_path": "os.system"}},
        {"settings": ["os.system"]},
        {"unknown": 1},
        {"self": 1},
    ],
    ids=str,
)
def test_arguments_that_no_run_records_are_refused(arguments: dict[str, Any]) -> None:
    """Parts and functions are no plain values: a file that names them wants code of its choice to be imported."""
    (name,) = arguments
    with pytest.raises(UserError, match=rf"a\.ckpt was not written by this package: a Model .* '{name}'"):
        recorded_arguments(Model, {"size": 1, **arguments}, "a.ckpt")


def test_arguments_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(UserError, match=r"a\.ckpt was not written by this package"):
        recorded_arguments(Model, ["size"], "a.ckpt")  # type: ignore[arg-type]


# ---- settings that are recorded themselves


class Owner(Recorded):
    def __init__(self, detector: DetectorConfig, size: int = 1) -> None:
        self.detector = detector


def test_recorded_settings_are_written_by_name_and_built_again() -> None:
    owner = Owner(HTCConfig(channels=32, stuff_classes=4))
    written = owner.init_args["detector"]
    assert written["class"] == "HTCConfig" and written["init_args"]["stuff_classes"] == 4
    built = recorded_arguments(Owner, owner.init_args, "x.ckpt")["detector"]
    assert type(built) is HTCConfig and built.init_args == owner.detector.init_args


class Foreign(MaskRCNNConfig):
    """Not of this package: a file cannot ask for it."""


@pytest.mark.parametrize(
    "value",
    [
        {"class": "Foreign", "init_args": {}},
        {"class": "Recorded", "init_args": {}},
        {"class": "swinv2_tasks.heads.HTCConfig", "init_args": {}},
        {"class": "HTCConfig", "init_args": {"other": 1}},
        {"class": "HTCConfig"},
        "HTCConfig",
        None,
    ],
)
def test_other_settings_are_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"does not record its '(detector|other)' so|not one of this package"):
        recorded_arguments(Owner, {"detector": value}, "x.ckpt")
