"""Trainings with everything that draws random numbers, and where two of them differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.whole_runs import compare_runs, find_differences
from tests.helpers.tiny import config, merge

FAULTS = "tests.helpers.faults"
EMA = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}}
RESUME = ("fit", "--config=runs/tiny/0/config.yaml", "--resume")


def write_run(folder: Path, data: Path, *callbacks: dict[str, Any], **changes: Any) -> Path:
    """A config with drop path, mixup and augmentation: with everything that draws random numbers."""
    folder.mkdir(exist_ok=True)
    settings = config(data, **changes)
    settings["trainer"]["callbacks"] = [
        {"class_path": f"{FAULTS}.Journal", "init_args": {"folder": "journal"}},
        {"class_path": f"{FAULTS}.SendSignal"},
        *callbacks,
    ]
    settings["model"]["init_args"]["backbone"]["init_args"]["drop_path_rate"] = 0.3
    settings["data"]["init_args"]["augmentation"]["init_args"] |= {
        "mixup": 0.8, "random_erasing": 0.5, "color_jitter": 0.3
    }  # fmt: skip
    settings = merge(settings, changes)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return folder


def newest(folder: Path) -> Path:
    """The folder of the newest training in a folder."""
    return max(folder.glob("runs/*/[0-9]*"), key=lambda run: int(run.name))


def differences(first: Any, second: Any) -> list[str]:
    """Where two nested structures are not bitwise identical."""
    return [*find_differences(first, second, "")]


def assert_same_training(straight: Path, resumed: Path, *, generators: bool = True) -> None:
    """All files of the runs, but the checkpoint before the last one; the order and pixels of samples; generators.

    A run that is stopped saves once more, so that its saves come at other steps.
    """
    lines = [*compare_runs(newest(straight), newest(resumed))]
    assert [line for line in lines if not line.startswith("checkpoints/previous.ckpt")] == []
    journals = sorted((straight / "journal").iterdir())
    assert journals
    for path in journals:
        again = resumed / "journal" / path.name
        if path.suffix == ".pt":
            assert not generators or differences(torch.load(path), torch.load(again)) == []
        else:  # the resumed run has seen some batches twice
            assert set(path.read_text().splitlines()) == set(again.read_text().splitlines())
