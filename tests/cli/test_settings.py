"""The settings that a command has, their types in words, and classes by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from torch import nn
from torch.optim import SGD, AdamW

from swinv2_tasks.cli.arguments import split_options
from swinv2_tasks.cli.config_files import find_config, flat_settings, merge_settings, plain_settings
from swinv2_tasks.cli.main import main
from swinv2_tasks.cli.refusals import class_choices, condense, fits, nearest_settings
from swinv2_tasks.cli.settings import Settings, describe_type, find_class, full_class_names, show_value
from swinv2_tasks.datamodules import ImageNetDataModule
from swinv2_tasks.tasks import DetectionTask


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (int | None, "a whole number or null"),
        (None | float | str, "a number or text or null"),
        (bool | int, "true or false or a whole number"),
        (int | tuple[int, int], "a whole number or a list of 2 whole numbers"),
        (Sequence[Sequence[int]], "a list of lists"),
        (list[int | float], "a list of whole numbers or numbers"),
        (Literal["a", "b"] | None, "one of a, b or null"),
        (Literal[16] | Literal["16", "bf16"], "one of 16, bf16"),
        (dict[int, str], "a mapping"),
        (type[nn.Module], "the name of a class"),
        (timedelta | None, "a time as DAYS:HOURS:MINUTES:SECONDS or null"),
        (Callable[[int], str], "a value of another kind"),
    ],
    ids=str,
)
def test_types_are_said_in_words(hint: Any, words: str) -> None:
    assert describe_type(hint) == words


def test_values_are_shown_as_they_are_typed() -> None:
    assert show_value([1, 2.5, (None, True, "a")]) == "[1,2.5,[null,true,a]]"


@pytest.mark.parametrize(
    ("hint", "value", "is_text", "expected"),
    [
        (int, "3", True, True),
        (int, "3.5", True, False),
        (int, "x", False, False),
        (tuple[int, int], "[3,4]", True, True),
        (tuple[int, int], "[3]", True, False),
        (tuple[int, int], [3, 4], False, True),
        (str | None, None, False, True),
        (Literal["a"], "b", True, False),
    ],
)
def test_values_fit_as_the_parser_takes_them(hint: Any, value: Any, is_text: bool, expected: bool) -> None:
    assert fits(hint, value, is_text) == expected


@pytest.fixture(scope="module")
def settings() -> Settings:
    stated = plain_settings(yaml.safe_load(find_config("coco.yaml").read_text()))
    settings = Settings({}, stated)
    settings.add_part("model", nn.Module, stated["model"])
    settings.add_part("data", nn.Module, stated["data"])
    return settings


def test_settings_are_those_of_the_classes_that_are_chosen(settings: Settings) -> None:
    for name in ("model.detector.masks", "model.backbone.window_size", "model.optimizer.lr", "data.augmentation.crop"):
        assert settings.knows(name)
    for name in ("model.detector.mask", "model.backbone.depths", "model.optimizer.momentum", "data.augmentation.mixup"):
        assert not settings.knows(name)
    assert settings.values["data.batch_size"] == (int, 16)
    assert settings.values["model.schedule.gamma"].value == 0.1
    assert settings.parts["model.detector"].name == "MaskRCNNConfig"
    assert settings.owner_of("data.augmentation.cropp") == "data.augmentation"


def test_classes_of_another_package_may_take_anything() -> None:
    settings = Settings({}, {})
    settings.add_part("model", nn.Module, {"class_path": "my.Model"})
    assert settings.knows("model.anything") and settings.knows("model.any.thing")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("batch_size", ["data.batch_size"]),
        ("lr", ["model.optimizer.lr"]),
        ("data.rot", ["data.root"]),
        ("data.lr", ["model.optimizer.lr"]),
        (
            "model.schedule.warmup",
            ["model.schedule.warmup_epochs", "model.schedule.warmup_lr", "model.schedule.warmup_steps"],
        ),
        ("zzz", []),
        ("data.zzz", []),
    ],
)
def test_the_nearest_setting_is_found(name: str, nearest: list[str], settings: Settings) -> None:
    assert sorted(nearest_settings(settings, name)) == sorted(nearest)


def test_classes_are_found_by_their_names() -> None:
    assert find_class("SGD") is SGD and find_class("torch.optim.AdamW") is AdamW
    assert find_class("DetectionTask") is DetectionTask
    assert find_class("swinv2_tasks.datamodules.ImageNetDataModule") is ImageNetDataModule
    assert find_class("Nothing") is find_class("no.such.Thing") is None


def test_the_classes_that_a_setting_takes_are_known(settings: Settings) -> None:
    assert "swinv2_giant" in class_choices(settings, "model.backbone")
    assert set(class_choices(settings, "model.detector")) == {"MaskRCNNConfig", "CascadeMaskRCNNConfig", "HTCConfig"}
    assert "SGD" in class_choices(settings, "model.optimizer")
    assert "DetectionTask" in class_choices(settings, "model")


SHORT = {
    "coco": [
        "--model.detector=HTCConfig",
        "--model.backbone=swinv2_base",
        "--data.augmentation=ScaleJitterAugmentation",
    ],
    "ade20k": ["--model.decoder=UPerNet", "--model.backbone.position_bias=BiasTable"],
    "imagenet": ["--model.optimizer=SGD", "--model.backbone.class_path=swinv2_small"],
}


@pytest.mark.parametrize("config", SHORT)
def test_classes_need_no_module_on_the_command_line(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", config, *SHORT[config], "--print_config"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for argument in SHORT[config]:
        assert f".{argument.partition('=')[2]}\n" in printed


def test_torchs_optimizers_are_told_from_others_of_the_same_name() -> None:
    (option,) = full_class_names(split_options(["--model.optimizer=SGD"]))
    assert option.values == ("torch.optim.SGD",)


def test_other_names_stay_as_they_are() -> None:
    options = split_options(["--data.decoder=auto", "--trainer.logger=CSVLogger", "--name=swinv2_tiny"])
    assert full_class_names(options) == options


def test_settings_of_configs_are_flat() -> None:
    config = {"data": {"class_path": "B", "init_args": {"x": 1}}, "trainer": {"z": [1]}}
    assert flat_settings(plain_settings(config)) == {"data": "B", "data.x": 1, "trainer.z": [1]}
    over = plain_settings({"data": {"init_args": {"x": 2, "y": 3}}})
    assert merge_settings(plain_settings(config), over)["data"] == {"class_path": "B", "x": 2, "y": 3}


def test_other_messages_of_the_parser_lose_its_types() -> None:
    message = (
        'Parser key "data":\n  Does not validate against any of the Union subtypes\n'
        "  Errors:\n    - Problem with given class_path 'a.b.C': something about a.b.c.Thing\n"
        "    - Expected a <class 'NoneType'>\n  Given value type: <class 'str'>\n  Given value: x"
    )
    assert condense(message, "fit").startswith("data: Problem with given class_path 'C': something about Thing;")
    missing = "the following arguments are required: model.init_args.detector"
    assert condense(missing, "fit") == "model.detector is required; swinv2-tasks fit --help says what it is."


def test_home_folders_in_configs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from swinv2_tasks.cli.tasks_cli import ParseOnlyCLI, run_as

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "over.yaml").write_text("data: {init_args: {root: ~/images}}\nruns: ~/runs")
    cli = run_as(ParseOnlyCLI, "fit", ["imagenet.yaml", "--config", str(tmp_path / "over.yaml")])
    assert cli.config["fit"]["data"]["init_args"]["root"] == str(tmp_path / "images")
    assert cli.config["fit"]["runs"] == str(tmp_path / "runs")
