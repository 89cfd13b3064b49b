"""The command line's arguments as options: how they are split, joined and selected, and which config they go over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swinv2_tasks.cli.arguments import (
    expand_home,
    find_configs,
    find_resumed_run,
    is_list,
    join_options,
    merge_values,
    name_model_and_data,
    name_positional,
    order_options,
    select_own,
    split_options,
    values_of,
    write_out,
)
from swinv2_tasks.cli.config_files import known_configs
from swinv2_tasks.errors import UserError

ARGUMENTS = ["coco", "-c", "a.yaml", "--data.x=1", "--sizes", "2", "-3", "--flag", "--empty=", "--config=b.yaml"]


def test_options_are_what_their_arguments_say() -> None:
    options = split_options(ARGUMENTS)
    assert [(option.name, option.values) for option in options] == [
        ("", ("coco",)),
        ("--config", ("a.yaml",)),
        ("--data.x", ("1",)),
        ("--sizes", ("2", "-3")),
        ("--flag", ()),
        ("--empty", ("",)),
        ("--config", ("b.yaml",)),
    ]
    assert values_of(options, "--config") == ["a.yaml", "b.yaml"]
    assert join_options(options) == ARGUMENTS


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["coco", "--iou-type", "bbox", "segm"], ["coco", "--iou_type=[bbox,segm]"]),
        (["--iou-type", "bbox"], ["--iou_type", "bbox"]),
        (["--sizes", "8"], ["--sizes=[8]"]),
        (["--sizes=8", "16"], ["--sizes=[8,16]"]),
        (["--sizes"], ["--sizes=[]"]),
        (["--sizes+", "8"], ["--sizes+=[8]"]),
        (["--sizes", "[8,16]"], ["--sizes", "[8,16]"]),
        (["-h"], ["-h"]),
    ],
)
def test_several_values_become_a_list(arguments: list[str], expected: list[str]) -> None:
    assert merge_values(split_options(arguments), lists=["sizes"]) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["coco", "data", "--flag"], ["coco", "data", "--flag=true"]),
        (["coco", "data", "--flag", "false", "--n", "3"], ["coco", "data", "--flag", "false", "--n", "3"]),
        (["coco", "data", "--flag=false"], ["coco", "data", "--flag=false"]),
        (["coco", "--flag", "data"], ["coco", "--flag=true", "data"]),
        (["--flag", "coco", "data"], ["--flag=true", "coco", "data"]),
        (["coco", "--flag", "true", "data"], ["coco", "--flag", "true", "data"]),
        (["coco", "data", "--flag", "maybe"], ["coco", "data", "--flag", "maybe"]),  # which is refused
        (["coco", "data", "--class", "dog"], ["coco", "data", "--class_", "dog"]),
        (["coco", "data", "--class=a=--class"], ["coco", "data", "--class_=a=--class"]),
        (["coco", "data", "--classes", "dog", "--flags"], ["coco", "data", "--classes", "dog", "--flags"]),
    ],
)
def test_switches_stand_alone_and_options_are_called_as_parameters(arguments: list[str], expected: list[str]) -> None:
    assert write_out(arguments, ["flag"], needed=2) == expected


def test_lists_are_distinguished_from_what_may_be_a_list() -> None:
    assert is_list(list[int]) and is_list(list[str] | None)
    assert not is_list(str | list[str] | None) and not is_list(int)


def test_own_options_are_separated_from_those_of_the_other_command() -> None:
    arguments = ["--gpu", "24GiB", "--config=a.yaml", "--num-classes=5", "--data.num_classes", "7", "--help"]
    own, others = select_own(split_options(arguments), ["gpu", "num_classes"])
    assert join_options(own) == ["--gpu", "24GiB", "--num-classes=5", "--help"]
    assert join_options(others) == ["--config=a.yaml", "--data.num_classes", "7"]


def test_configs_are_found_by_name() -> None:
    (config, other) = find_configs(split_options(["--config", "imagenet.yaml", "--name", "imagenet.yaml"]))
    assert Path(config.values[0]).is_file()
    assert other.values == ("imagenet.yaml",)
    with pytest.raises(UserError, match=r"no config 'imagnet.yaml'.*Did you mean imagenet.yaml"):
        find_configs(split_options(["--config=imagnet.yaml"]))


def test_a_home_folder_is_found_wherever_a_path_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    arguments = ["~/a.yaml", "--data.root=~/data", "~", "--name=x~/y", "a~", "~you/data"]
    expected = ["/home/me/a.yaml", "--data.root=/home/me/data", "/home/me", "--name=x~/y", "a~", "~you/data"]
    assert expand_home(arguments) == expected


def test_what_stands_before_options_is_a_config() -> None:
    options = name_positional("fit", split_options(["imagenet.yaml", "--name", "mine"]))
    assert join_options(options) == ["--config=imagenet.yaml", "--name", "mine"]
    assert join_options(name_positional("validate", split_options(["a.yaml"]))) == ["--config=a.yaml"]
    assert name_positional("fit", split_options(["--name=mine"])) == split_options(["--name=mine"])


# ---- the order of configs and values


def write_configs(folder: Path, **texts: str) -> list[str]:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return [f"--config={folder / name}.yaml" for name in texts]


BASE = "model: {class_path: A}\ndata: {class_path: B, init_args: {x: 1, y: 2}}\ntrainer: {z: 3}"


def test_values_go_over_configs_wherever_they_stand(tmp_path: Path) -> None:
    base, overlay = write_configs(tmp_path, base=BASE, overlay="data: {init_args: {x: 5}}")
    options, notes = order_options(split_options(["--data.x=7", base, "--trainer.z", "8", overlay]))
    assert join_options(options) == [base, overlay, "--data.x=7", "--trainer.z", "8"]
    assert notes == []


def test_an_overlay_that_its_config_would_undo_is_refused(tmp_path: Path) -> None:
    overlay, base = write_configs(tmp_path, overlay="data: {init_args: {x: 5, y: 2}}\ntrainer: {z: 4}", base=BASE)
    with pytest.raises(UserError, match=r"base\.yaml comes after the overlay .* would undo its data\.x, trainer\.z\."):
        order_options(split_options([overlay, base]))
    (same,) = write_configs(tmp_path, same="data: {init_args: {y: 2}}\ntrainer: {other: 4}")
    assert order_options(split_options([same, base]))[1] == []  # nothing is undone


def test_values_that_a_config_of_the_same_kind_overrides_are_named(tmp_path: Path) -> None:
    arguments = write_configs(tmp_path, base=BASE, one="trainer: {z: 4, w: 1}", two="trainer: {z: 5, w: 1}")
    _, notes = order_options(split_options(arguments))
    assert notes == [f"{tmp_path / 'two.yaml'}, the later config, goes over trainer.z of {tmp_path / 'one.yaml'}"]


def test_an_option_that_is_given_twice_is_named() -> None:
    _, notes = order_options(split_options(["--a=1", "--b=1", "--a", "2", "--b=1", "--c+=1", "--c+=2"]))
    assert notes == ["--a is given twice: 2 counts, not 1"]


# ---- overlays


@pytest.mark.parametrize("name", known_configs())
def test_shipped_overlays_name_no_classes_and_configs_do(name: str) -> None:
    options = find_configs(split_options([f"--config={name}"]))
    assert name_model_and_data(options) == (not name.startswith("overlays/"))


@pytest.mark.parametrize(
    ("texts", "arguments", "is_complete"),
    [
        (["model: {class_path: A}\ndata: {class_path: B}"], [], True),
        (["model: A\ndata: {class_path: B, init_args: {x: 1}}"], [], True),
        (["model: {class_path: A}", "data: {class_path: B}"], [], True),
        (["model: {class_path: A}"], ["--data=B"], True),
        (["model: {class_path: A}"], ["--data.class_path", "B"], True),
        ([], ["--model=A", "--data=B"], True),
        (["model: ["], [], True),  # which the parser is to say
        (["model: {class_path: A}"], ["--data.x=B"], False),
        (["model: {init_args: {x: 1}}\ndata: {x: 1}"], [], False),
        (["trainer: {devices: 1}"], [], False),
        ([""], [], False),
        (["- model"], [], False),
        ([], [], False),
    ],
)
def test_a_config_is_complete_by_what_it_holds_wherever_it_lies(
    texts: list[str], arguments: list[str], is_complete: bool, tmp_path: Path
) -> None:
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.yaml").write_text(text)
    configs = [f"--config={tmp_path / f'{number}.yaml'}" for number in range(len(texts))]
    assert name_model_and_data(split_options([*configs, *arguments])) == is_complete


# ---- a run to resume


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("name: run")
    (tmp_path / "run.json").write_text(json.dumps({"starts": [{"arguments": ["fit"]}]}))
    return tmp_path


def test_a_run_is_found_by_its_folder_or_its_config(run: Path) -> None:
    more = "--trainer.max_epochs=3"
    expected = [f"--config={run / 'config.yaml'}", more]
    for arguments in (["--resume", str(run), more], [more, f"--resume={run}"], [*expected, "--resume"]):
        options, folder = find_resumed_run(split_options(arguments))
        assert join_options(options) == expected
        assert folder == run
    options = split_options(expected)
    assert find_resumed_run(options) == (options, None)


def test_what_is_no_training_is_not_resumed(run: Path) -> None:
    with pytest.raises(UserError, match="takes the folder of one run, not a b"):
        find_resumed_run(split_options(["--resume", "a", "b"]))
    with pytest.raises(UserError, match="which run"):
        find_resumed_run(split_options(["--resume"]))
    (run / "run.json").write_text(json.dumps({"starts": [{"arguments": ["validate"]}]}))
    with pytest.raises(UserError, match="was made by validate"):
        find_resumed_run(split_options(["--resume", str(run)]))
