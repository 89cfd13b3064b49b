"""Parts from outside the package: the programs and configs of docs/extending.md, in Python and by the command line."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from swinv2_tasks import SegmentationTask, SwinTransformerV2, UserError
from swinv2_tasks.cli.main import main
from swinv2_tasks.training.run_record import last_metrics, read_metrics
from tests.helpers import scenes, tiny

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")

PROGRAM = re.compile(r"In a file\s+`(\w+)\.py`:\n\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

CONFIG = re.compile(r"`(\w+)\.yaml`, for\s[^:]*:\n\n```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)

PROGRAMS: dict[str, str] = dict(PROGRAM.findall(PAGE))

CONFIGS: dict[str, str] = dict(CONFIG.findall(PAGE))


def test_the_page_has_a_program_and_a_config_for_each_part() -> None:
    assert [*PROGRAMS] == [*CONFIGS] == ["rotation", "table", "pyramid", "tilt", "calibration"]
    assert PAGE.count("```python") == len(PROGRAMS)
    assert PAGE.count("```yaml") == len(CONFIGS)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """The working folder is empty but for the page's files that a test asks for; imports the program of a name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str) -> Any:
        Path(f"{name}.py").write_text(PROGRAMS[name])
        Path(f"{name}.yaml").write_text(CONFIGS[name])
        return importlib.import_module(name)

    yield write
    for name in PROGRAMS:
        sys.modules.pop(name, None)


ALLOW = [f"--allow={module}" for module in ("rotation", "table", "pyramid", "tilt", "calibration")]
"""Lets configs name what is in the page's modules."""


def fit(*arguments: str) -> Path:
    """Trains for an epoch of two steps; the folder of the run."""
    settings = ["--name=outside", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2", *ALLOW]
    assert main(["fit", *arguments, *settings]) == 0
    return Path("runs") / "outside" / "0"


def read_refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said of a checkpoint that does not do alone."""
    assert main([*arguments]) == 1
    return capsys.readouterr().err


def validate(folder: Path, *arguments: str) -> dict[str, float]:
    assert main(["validate", f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}", *arguments, *ALLOW]) == 0
    newest = max(folder.parent.glob("validate_*"), key=lambda path: int(path.name.removeprefix("validate_")))
    return metrics(newest)


def metrics(folder: Path) -> dict[str, float]:
    """What the run of a folder logged last."""
    return last_metrics(read_metrics(folder / "metrics.csv"))


def small_backbone() -> SwinTransformerV2:
    return SwinTransformerV2(**tiny.BACKBONE)


@pytest.mark.slow
def test_a_task(outside: Callable[[str], Any], images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rotation = outside("rotation")
    task = rotation.RotationTask(small_backbone())
    assert task.compute_losses({"image": torch.randn(2, 3, 32, 32)})["loss"].isfinite()

    small = ["--data.image_size=32", "--data.batch_size=6", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    folder = fit("--config=rotation.yaml", f"--data.root={images}", *small)
    assert 0 <= metrics(folder)["val/top1"] <= 1

    checkpoint = folder / "checkpoints" / "last.ckpt"
    assert "RotationTask" in read_refusal(capsys, "validate", f"--ckpt_path={checkpoint}")
    assert validate(folder, f"--config={folder / 'config.yaml'}").keys() >= {"val/top1"}
    again = rotation.RotationTask.load_from_checkpoint(checkpoint)
    assert again.backbone.config["embed_dim"] == 48


def test_a_dataset(outside: Callable[[str], Any], images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = outside("table")
    folder = Path("data") / "table"
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        files = sorted((images / split).glob("n0[12]/*.jpg"))
        rows = [f"{file},{'cat' if file.parent.name == 'n01' else 'dog'}\n" for file in files]
        (folder / f"{split}.csv").write_text("".join(rows))
    data = table.TableDataModule(str(folder), ["cat", "dog"], image_size=32, batch_size=4, num_workers=0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 32, 32)
    assert set(batch["label"].tolist()) <= {0, 1}
    with pytest.raises(UserError, match="expected a CSV file"):
        table.TableDataModule("nowhere", ["cat"]).setup("fit")

    tiny.write_config(Path("tiny.yaml"), images)
    small = ["--data.image_size=32", "--data.batch_size=4", "--data.num_workers=0"]
    run = fit("--config=tiny.yaml", "--config=table.yaml", *small)
    record = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["swinv2_tasks"]
    assert record["classes"]["ids"] == ["cat", "dog"]
    assert record["data"]["class"] == "TableDataModule"

    assert "TableDataModule" in read_refusal(capsys, "validate", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}")
    assert validate(run, f"--config={run / 'config.yaml'}").keys() >= {"val/top1"}


@pytest.mark.slow
def test_a_decoder(outside: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pyramid = outside("pyramid")
    task = SegmentationTask(small_backbone(), num_classes=4, decoder=pyramid.SumDecoder())
    assert task(torch.randn(1, 3, 64, 96)).shape == (1, 4, 64, 96)

    scenes.write_config(Path("scenes.yaml"), scenes.write_scenes(tmp_path / "scenes"))
    folder = fit("--config=scenes.yaml", "--config=pyramid.yaml")
    checkpoint = folder / "checkpoints" / "last.ckpt"
    assert "SumDecoder" in read_refusal(capsys, "validate", f"--ckpt_path={checkpoint}")
    assert validate(folder, f"--config={folder / 'config.yaml'}").keys() >= {"val/miou"}
    again = SegmentationTask.load_from_checkpoint(checkpoint, decoder=pyramid.SumDecoder(channels=64))
    assert isinstance(again.head.decoder, pyramid.SumOfMaps)


@pytest.mark.slow
def test_an_augmentation(outside: Callable[[str], Any], images: Path) -> None:
    tilt = outside("tilt")
    data = tiny.new_data(images, augmentation=tilt.RandomTilt(degrees=30.0))
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["image"].shape == (6, 3, 32, 32)

    tiny.write_config(Path("tiny.yaml"), images)
    folder = fit("--config=tiny.yaml", "--config=tilt.yaml")
    used = yaml.safe_load((folder / "config.yaml").read_text())["data"]["init_args"]["augmentation"]
    assert used == {"class_path": "tilt.RandomTilt", "init_args": {"degrees": 30.0}}

    Path("tilt.py").unlink()
    sys.modules.pop("tilt")
    assert validate(folder).keys() >= {"val/top1"}  # which augments nothing, and needs no file but the checkpoint
    source = f"--data.source={images / 'val' / 'n01'}"
    assert main(["predict", f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}", source]) == 0


@pytest.mark.slow
def test_a_metric(outside: Callable[[str], Any], images: Path) -> None:
    calibration = outside("calibration")
    task = tiny.new_task()
    trainer = tiny.new_trainer(Path("trainer"), calibration.CalibrationError())
    (scores,) = trainer.validate(task, datamodule=tiny.new_data(images), verbose=False)
    assert 0 <= scores["val/ece"] <= 1

    tiny.write_config(Path("tiny.yaml"), images)
    folder = fit("--config=tiny.yaml", "--config=calibration.yaml")
    assert 0 <= metrics(folder)["val/ece"] <= 1
    bins = ["--trainer.callbacks=calibration.CalibrationError", "--trainer.callbacks.init_args.bins=10"]
    assert validate(folder, *bins)["val/ece"] == metrics(folder)["val/ece"]
    assert "val/ece" not in validate(folder)  # the checkpoint alone: the task as it comes
