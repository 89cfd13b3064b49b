"""Trainings with everything that draws random numbers, and where two of them differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

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


def last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "runs" / "tiny" / "0" / "checkpoints" / "last.ckpt", weights_only=True)


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Where two nested structures are not bitwise identical."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [path]
    if isinstance(first, dict) and isinstance(second, dict):
        paths = [f"{path}.{key}" for key in first.keys() ^ second.keys()]
        return paths + [
            line
            for key in first.keys() & second.keys()
            for line in differences(first[key], second[key], f"{path}.{key}")
        ]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        return [
            line for i, pair in enumerate(zip(first, second, strict=True)) for line in differences(*pair, f"{path}.{i}")
        ]
    return [] if first == second else [f"{path}: {first} and {second}"]


def assert_same_training(straight: Path, resumed: Path, *, generators: bool = True) -> None:
    """Weights, averages, optimizer, schedule, progress, order and pixels of all samples, generators, best score."""
    states = [last(folder) for folder in (straight, resumed)]
    for state in states:
        for name, callback in state["callbacks"].items():
            if name.startswith("ModelCheckpoint"):  # without paths, and what Lightning does not restore
                state["callbacks"][name] = callback["best_model_score"]
            if name.startswith("RunRecord"):
                state["callbacks"][name] = callback["batches"]
    assert differences(*states) == []
    assert states[0]["global_step"] > 0
    journals = sorted((straight / "journal").iterdir())
    assert journals
    for path in journals:
        again = resumed / "journal" / path.name
        if path.suffix == ".pt":
            assert not generators or differences(torch.load(path), torch.load(again)) == []
        else:  # the resumed run has seen some batches twice
            assert set(path.read_text().splitlines()) == set(again.read_text().splitlines())
