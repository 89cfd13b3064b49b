"""The command line's arguments as options: how they are split, joined and selected, and which config they go over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swinv2_tasks.cli.arguments import (
    find_configs,
    find_resumed_run,
    is_list,
    join_options,
    merge_values,
    name_model_and_data,
    select_own,
    split_options,
    values_of,
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
    with pytest.raises(UserError, match="nothing is not of a run"):
        find_resumed_run(split_options(["--resume"]))
    (run / "run.json").write_text(json.dumps({"starts": [{"arguments": ["validate"]}]}))
    with pytest.raises(UserError, match="was made by validate"):
        find_resumed_run(split_options(["--resume", str(run)]))
