"""Configs of strangers choose no code: nothing that they name is imported or called, whatever command reads them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from swinv2_tasks.cli.main import main
from tests.helpers import tiny

CANARY = Path("canary")
"""A file in the working folder that each exploit would make."""

PLUGIN = """
from pathlib import Path

from lightning.pytorch import Callback

Path("canary").touch()

class Harmless(Callback):
    pass
"""
"""A module within Python's reach, as one in the working folder of `python -m swinv2_tasks` is."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A working folder with a dataset, a config and the module ``plugin``."""
    tiny.write_config(tmp_path / "tiny.yaml", tiny.write_images(tmp_path / "images", train=2, val=1))
    (tmp_path / "plugin.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("plugin", None)


def stated(*keys: str) -> Callable[[Any], dict[str, Any]]:
    """A config in which a setting has a value."""

    def nested(value: Any) -> Any:
        for key in reversed(keys):
            value = {key: value}
        return value

    return nested


OPTIMIZER = stated("model", "init_args", "optimizer")
CALLBACKS = stated("trainer", "callbacks")

EXPLOITS: dict[str, dict[str, Any]] = {
    "a shell command as optimizer": OPTIMIZER({"class_path": "os.system", "init_args": {"command": "touch canary"}}),
    "a shell command as optimizer, by name": OPTIMIZER("os.system"),
    "a shell command by its other name": OPTIMIZER({"class_path": "posix.system"}),
    "a shell command through a module that is allowed": OPTIMIZER("swinv2_tasks.training.run_folder.os.system"),
    "a module as optimizer": OPTIMIZER({"class_path": "plugin.Harmless"}),
    "a module as optimizer, by name": OPTIMIZER("plugin.Harmless"),
    "a module as task": stated("model")({"class_path": "plugin.Harmless"}),
    "a module as data, by name": stated("data")("plugin.Harmless"),
    "a module as callback": CALLBACKS([{"class_path": "plugin.Harmless"}]),
    "a module as callback, by name": CALLBACKS(["plugin.Harmless"]),
    "a module as the only callback": CALLBACKS("plugin.Harmless"),
    "a callback that calls": CALLBACKS(
        [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "plugin.Harmless"}}]
    ),
    "a module as logger": stated("trainer", "logger")({"class_path": "plugin.Harmless"}),
    "a module as profiler": stated("trainer", "profiler")({"class_path": "plugin.Harmless"}),
    "a module as strategy": stated("trainer", "strategy")({"class_path": "plugin.Harmless"}),
    "a module as plugin": stated("trainer", "plugins")([{"class_path": "plugin.Harmless"}]),
    "a module as backbone": stated("model", "init_args", "backbone")({"class_path": "plugin.Harmless"}),
    "a module as augmentation": stated("data", "init_args", "augmentation")({"class_path": "plugin.Harmless"}),
    "a module as schedule": stated("model", "init_args", "schedule")({"class_path": "plugin.Harmless"}),
    "an option in a file": {"allow": "plugin", **CALLBACKS([{"class_path": "plugin.Harmless"}])},
    "an option in a file, and nothing else": {"allow": ["plugin"]},
}

COMMANDS = {
    "fit": ("fit",),
    "validate": ("validate",),
    "predict": ("predict", "--data.source=images"),
    "memory": ("memory",),
    "print_config": ("fit", "--print_config"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("exploit", EXPLOITS)
def test_a_config_chooses_no_code(exploit: str, command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "stranger.yaml").write_text(yaml.safe_dump(EXPLOITS[exploit]))
    first, *rest = COMMANDS[command]
    assert main([first, "--config=tiny.yaml", "--config=stranger.yaml", *rest]) in (1, 2)

    assert not CANARY.exists()
    assert "plugin" not in sys.modules
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    said = [line for line in printed.err.splitlines() if not line.startswith(("note: ", "Estimating"))]
    assert 1 <= len(said) <= 3


def test_a_name_without_end_is_refused_before_it_is_imported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "swinv2_tasks.backbone.SwinTransformerV2" * 500
    (folder / "long.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"backbone": {"class_path": name}}}}))
    assert main(["fit", "--config=tiny.yaml", "--config=long.yaml"]) == 2
    message = capsys.readouterr().err
    assert "19,500 characters" in message and len(message) < 400
    assert main(["fit", "--config=tiny.yaml", f"--model.backbone={name}"]) == 2
    assert len(capsys.readouterr().err) < 400


@pytest.mark.parametrize(
    "option",
    [
        "--model.optimizer=plugin.Harmless",
        "--model.optimizer.class_path=os.system",
        "--data=plugin.Harmless",
    ],
)
def test_no_more_does_an_option(option: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config=tiny.yaml", option]) == 2
    assert not CANARY.exists()
    assert "is not imported" in capsys.readouterr().err


def test_a_module_that_the_user_allows_is_imported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "own.yaml").write_text(yaml.safe_dump(CALLBACKS([{"class_path": "plugin.Harmless"}])))
    assert main(["fit", "--config=tiny.yaml", "--config=own.yaml"]) == 2
    assert "add --allow plugin" in capsys.readouterr().err
    assert not CANARY.exists()

    assert main(["fit", "--config=tiny.yaml", "--config=own.yaml", "--allow", "plugin", "--trainer.max_epochs=1"]) == 0
    assert CANARY.exists()


def test_what_was_allowed_once_is_not_allowed_in_the_next_command(folder: Path) -> None:
    (folder / "own.yaml").write_text(yaml.safe_dump(CALLBACKS([{"class_path": "plugin.Harmless"}])))
    arguments = ["fit", "--config=tiny.yaml", "--config=own.yaml", "--trainer.max_epochs=1"]
    assert main([*arguments, "--allow=plugin"]) == 0
    assert main(arguments) == 2


@pytest.mark.parametrize("words", [["--allow"], ["--allow="], ["--allow", "my module"], ["--allow=./plugin.py"]])
def test_what_is_no_module_cannot_be_allowed(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config=tiny.yaml", *words]) == 2
    assert "--allow my_package" in capsys.readouterr().err


def test_the_parts_of_torch_and_lightning_need_no_permission(folder: Path) -> None:
    settings = {
        "trainer": {
            "callbacks": [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}],
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}},
            "profiler": {"class_path": "lightning.pytorch.profilers.SimpleProfiler"},
            "max_epochs": 1,
        },
        "model": {"init_args": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}}},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config=tiny.yaml", "--config=own.yaml"]) == 0
