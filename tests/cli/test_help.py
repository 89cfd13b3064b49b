"""Screens of help: short, at once, and of settings that there are."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swinv2_tasks.cli.config_files import TASK_CONFIGS, find_config, named_task, plain_settings, read_config
from swinv2_tasks.cli.help import TASK_SETTINGS, USAGES, shown_settings
from swinv2_tasks.cli.main import COMMANDS, CONFIG_COMMANDS, DATA_COMMANDS, TRAINER_COMMANDS, main
from swinv2_tasks.cli.trainer_settings import TYPES, settings_of

GROUPS = [command for command, (_, functions, _) in COMMANDS.items() if not isinstance(functions, str)]

TYPED = [
    "",
    *USAGES,
    *GROUPS,
    *TRAINER_COMMANDS,
    *(f"{command} --config {config}" for command in TRAINER_COMMANDS for config in TASK_CONFIGS),
    "fit --config coco.yaml --config overlays/small_coco.yaml",
    "fit imagenet",
]


def printed_by(typed: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*typed.split(), "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("typed", TYPED)
def test_each_screen_fits_a_terminal(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed_by(typed, capsys).splitlines()
    assert 1 < len(lines) <= 40
    assert [line for line in lines if len(line) > 80] == []
    assert lines[0].startswith("usage: swinv2-tasks " if typed else "swinv2-tasks: ")


@pytest.mark.parametrize("typed", ["", "fit", "fit --config coco.yaml", "predict", "memory", "score ade20k", "demo"])
def test_each_screen_is_there_at_once(typed: str) -> None:
    """Measured beside the start of Python alone, as a test's machine may be busy."""
    program = f"import sys; from swinv2_tasks.cli.main import main; main({[*typed.split(), '--help']})"
    program += "; sys.exit(str({'torch', 'lightning', 'jsonargparse', 'numpy', 'rich'} & {*sys.modules} or '') or 0)"
    seconds = {}
    for name, code in (("python", "pass"), ("help", program)):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
            times.append(time.perf_counter() - start)
        seconds[name] = min(times)
    assert seconds["help"] < max(0.5, 10 * seconds["python"]), seconds


@pytest.mark.parametrize("config", TASK_CONFIGS)
@pytest.mark.parametrize("command", TRAINER_COMMANDS)
def test_every_setting_on_a_screen_exists(command: str, config: str) -> None:
    stated = plain_settings(read_config(find_config(config)))
    settings = settings_of(stated, dict.fromkeys(TYPES))
    names = [setting.partition(" ")[0] for setting in shown_settings(command, named_task(stated))]
    assert [name for name in names if not settings.knows(name) and name != "resume"] == []
    assert ("data.source" in names) == (command == "predict")
    assert ("resume" in names) == (command == "fit")


def test_every_task_has_settings_of_its_own() -> None:
    assert {named_task(read_config(find_config(config))) for config in TASK_CONFIGS} == {*TASK_SETTINGS}


@pytest.mark.parametrize("typed", USAGES)
def test_a_screen_has_all_options_of_its_command(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, _, name = typed.partition(" ")
    module, function = (COMMANDS.get(command) or CONFIG_COMMANDS[command])[:2]  # type: ignore[assignment]
    signature = inspect.signature(getattr(importlib.import_module(f"swinv2_tasks.{module}"), name or str(function)))
    by_position = command in COMMANDS and COMMANDS[command][2]
    own = {
        parameter.name.removesuffix("_")  # class_, as Python keeps class for itself
        for parameter in signature.parameters.values()
        if parameter.name != "arguments" and not (by_position and parameter.default is parameter.empty)
    }
    if typed in DATA_COMMANDS:  # where settings stand for those of fit
        own = own - {"settings"} | {"config", "data"}
    if typed == "compare":  # whose runs have no option's name before them
        own -= {"runs"}
    screen = printed_by(typed, capsys).partition("\n")[2].partition("All other options")[0]
    shown = {name.partition(".")[0].replace("-", "_") for name in re.findall(r"^ +--([\w.-]+)", screen, re.M)}
    assert shown == own


def test_a_screen_shows_the_values_of_the_configs_at_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("data: {init_args: {batch_size: 3}}")
    screen = printed_by(f"fit --config coco.yaml --config {tmp_path}/mine.yaml", capsys)
    assert "their values in coco.yaml, mine.yaml" in screen
    assert re.search(r"--data.batch_size N .* \[3\]", screen)
    assert re.search(r"--model.detector NAME .* \[MaskRCNNConfig\]", screen)
    assert re.search(r"--data.resize \[LONG,SHORT\] .* \[1333,800\]", screen)


def test_all_settings_are_listed_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "coco.yaml", "--help-all"])
    assert end.value.code == 0
    listed = capsys.readouterr().out
    assert "--trainer.accumulate_grad_batches" in listed and len(listed.splitlines()) > 300


def test_help_of_a_missing_config_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "imagnet.yaml", "--help"]) == 1
    assert "Did you mean imagenet.yaml?" in capsys.readouterr().err
