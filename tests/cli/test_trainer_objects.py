"""Objects of the trainer that a config names by their classes: each is built, or refused before the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import callbacks
from lightning.pytorch.plugins import MixedPrecision, Precision

from swinv2_tasks.cli.main import main
from swinv2_tasks.cli.tasks_cli import run
from swinv2_tasks.training.run_folder import RUN_DIR
from tests.helpers.tiny import write_config

CALLBACKS: dict[str, dict[str, Any]] = {
    "EarlyStopping": {"monitor": "val/loss"},
    "GradientAccumulationScheduler": {"scheduling": {0: 1}},
    "ModelPruning": {"pruning_fn": "l1_unstructured"},
    "OnExceptionCheckpoint": {"dirpath": "elsewhere"},
    "StochasticWeightAveraging": {"swa_lrs": 0.01},
    "Timer": {"duration": "00:01:00:00", "interval": "step"},
}
"""What callbacks need beside their class."""

NO_CLASSES = {"ThroughputMonitor"}
"""Callbacks that need a function, which no config can state."""


@pytest.fixture
def write(dataset: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a config of a short training with settings of the trainer, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN_DIR, raising=False)

    def write_trainer(**settings: Any) -> Path:
        trainer = {"max_epochs": 1, "enable_progress_bar": True, "enable_model_summary": True, **settings}
        return write_config(tmp_path / "tiny.yaml", dataset("classification"), trainer=trainer)

    return write_trainer


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*callbacks.__all__} - NO_CLASSES))
def test_a_callback_of_lightning_works_or_is_refused(
    name: str, write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": CALLBACKS.get(name, {})}
    status = main(["fit", "--config", str(write(callbacks=[callback]))])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("swinv2-tasks:")]
    assert status in (0, 1)
    assert len(errors) == status
    assert (tmp_path / "runs" / "tiny" / "0" / "weights.safetensors").is_file() == (status == 0)


def test_plugins_of_a_config_are_built(write: Callable[..., Path]) -> None:
    plugin = {
        "class_path": "lightning.pytorch.plugins.MixedPrecision",
        "init_args": {"precision": "bf16-mixed", "device": "cpu"},
    }
    cli = run("fit", ["--config", str(write(plugins=[plugin], precision=None))])
    assert isinstance(cli.trainer.precision_plugin, MixedPrecision)


def test_a_plugin_alone_is_built(write: Callable[..., Path]) -> None:
    plugin = {"class_path": "lightning.pytorch.plugins.Precision"}
    cli = run("fit", ["--config", str(write(plugins=plugin, precision=None))])
    assert type(cli.trainer.precision_plugin) is Precision


@pytest.mark.slow
def test_profilers_strategies_and_loggers_of_a_config_are_built(write: Callable[..., Path], tmp_path: Path) -> None:
    config = write(
        profiler={"class_path": "lightning.pytorch.profilers.SimpleProfiler"},
        strategy={"class_path": "lightning.pytorch.strategies.SingleDeviceStrategy", "init_args": {"device": "cpu"}},
        logger={"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}},
    )
    trainer = run("fit", ["--config", str(config)]).trainer
    assert type(trainer.profiler).__name__ == "SimpleProfiler"
    assert type(trainer.strategy).__name__ == "SingleDeviceStrategy"
    assert [*(tmp_path / "logs").rglob("metrics.csv")]
