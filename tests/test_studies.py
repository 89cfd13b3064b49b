"""The studies under benchmarks/: that they run from end to end, and that their tables are computed as they say."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import benchmarks
from benchmarks import data_efficiency, stability, transfer
from benchmarks.measuring import parse_settings
from swinv2_tasks.backbone import BiasTable, SwinTransformerV2
from swinv2_tasks.tasks import ClassificationTask
from tests.helpers.tiny import BACKBONE, new_data, new_trainer, write_images

# ---- window transfer

RUNS = [
    transfer.Run("signs", bias, seed, window, size, value, deviation=seed)
    for bias, values in {"LogCPB": (0.7, 0.8, 0.9), "BiasTable": (0.5, 0.5, 0.8)}.items()
    for window, size in ((4, 64), (6, 96))
    for seed, value in enumerate(values)
]


def test_transfer_means_and_deviations_are_over_the_seeds() -> None:
    """Of 0.7, 0.8, 0.9 the mean is 0.8 and the sample's deviation 0.1; of 0.5, 0.5, 0.8 they are 0.6 and √0.03."""
    lines = transfer.format_table(RUNS).splitlines()
    assert lines[0] == "| signs, top1 (%) | 4@64 | 6@96 | bias |"
    assert lines[2] == "| log CPB | 80.0 ± 10.0 | 80.0 ± 10.0 | 1.00 ± 1.00 |"
    assert lines[3] == "| table, bicubic | 60.0 ± 17.3 | 60.0 ± 17.3 | 1.00 ± 1.00 |"


def test_transfer_settings_keep_the_share_of_the_image_that_a_window_sees() -> None:
    for study in transfer.STUDIES.values():
        own, *grown = study.settings[:3]
        assert [setting.window * own.size == setting.size * own.window for setting in grown] == [True, True]
        assert {setting.window for setting in study.settings[3:]} == {own.window}


def test_transfer_deviation_of_a_bias(images: Path, tmp_path: Path) -> None:
    """A table whose rows are an offset's number is spread over the pairs of a window, those at no offset most often."""
    task = ClassificationTask(SwinTransformerV2(**{**BACKBONE, "window_size": 2, "position_bias": BiasTable}), 3)
    with torch.no_grad():
        for block in (block for stage in task.backbone.layers for block in stage.blocks):
            table = block.attn.cpb_mlp.relative_position_bias_table  # (9 offsets, heads)
            table.copy_(torch.tensor([0.0] * 4 + [1.0] + [0.0] * 4)[:, None].expand_as(table))
    trainer = new_trainer(tmp_path, limit_train_batches=0, limit_val_batches=1)
    trainer.validate(task, new_data(images), verbose=False)
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    eye = torch.eye(4)
    assert transfer.measure_bias_deviation(tmp_path / "task.ckpt") == pytest.approx(float(eye.std()))


@pytest.mark.slow
def test_transfer_at_small_scale(tmp_path: Path) -> None:
    settings = transfer.Settings(reduced=True, output=str(tmp_path))
    transfer.main(settings)
    with (tmp_path / "runs.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    expected = {(task, bias) for task in transfer.STUDIES for bias in transfer.BIASES}
    assert {(run["task"], run["bias"]) for run in runs} == expected
    assert len(runs) == 2 * len(expected)
    assert all(0 <= float(run["value"]) <= 1 for run in runs)
    assert (tmp_path / "table.md").read_text().count("±") == len(runs) + len(expected)
    assert all(float(run["deviation"]) > 0 for run in runs)
    with Image.open(tmp_path / "transfer.png") as figure:
        assert figure.width > figure.height
    before = (tmp_path / "runs.csv").read_bytes()
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("trained/*/0/weights.safetensors")}
    transfer.main(settings)
    assert (tmp_path / "runs.csv").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("trained/*/0/weights.safetensors")} == trained
    assert len(trained) == len(expected)


# ---- stability


@pytest.mark.slow
def test_stability_at_small_scale_is_written_and_finished_runs_are_not_made_again(tmp_path: Path) -> None:
    stability.main(stability.Settings(reduced=True, output=tmp_path))
    with (tmp_path / "runs.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    with (tmp_path / "amplitudes.csv").open(newline="") as file:
        amplitudes = list(csv.DictReader(file))
    assert len(runs) == 18 and {run["block_type"] for run in runs} == set(stability.BLOCK_TYPES)
    assert len(amplitudes) == sum(sum(map(int, run["depths"].split("-"))) for run in runs)
    assert all(float(row["initial"]) > 0 and float(row["trained"]) > 0 for row in amplitudes)
    table = (tmp_path / "table.md").read_text().splitlines()
    assert len([line for line in table if line.startswith("| C ")]) == 3 + 6
    assert table[-1].startswith("| res-post-norm + cosine | 6 | ")
    assert Image.open(tmp_path / "stability.png").size[0] > 500

    files = sorted((tmp_path / "runs").iterdir())
    deleted, *others = files
    before = {file: file.stat().st_mtime_ns for file in others}
    expected = json.loads(deleted.read_text())
    deleted.unlink()
    stability.main(stability.Settings(reduced=True, output=tmp_path))
    assert {file: file.stat().st_mtime_ns for file in others} == before
    assert {**json.loads(deleted.read_text()), "seconds": 0} == {**expected, "seconds": 0}


# ---- data efficiency


@pytest.mark.slow
def test_data_efficiency_at_small_scale_is_written_and_finished_runs_are_not_made_again(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", train=8, val=2)
    (tmp_path / "data" / "classes.csv").unlink()
    settings = data_efficiency.Settings(data, tmp_path / "out", shares=[0.5, 1.0], reduced=True)
    data_efficiency.main(settings)
    with (tmp_path / "out" / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["start"], row["share"], row["images"]) for row in rows} == {
        (start, share, images) for start in data_efficiency.STARTS for share, images in (("0.5", "12"), ("1.0", "24"))
    }
    assert all(0 <= float(row["top1"]) <= 1 for row in rows)
    assert (tmp_path / "out" / "data_efficiency.md").read_text().count("±") == 4
    assert Image.open(tmp_path / "out" / "data_efficiency.png").size[0] > 400
    runs = sorted((tmp_path / "out" / "runs").glob("*/*"))
    data_efficiency.main(settings)
    assert sorted((tmp_path / "out" / "runs").glob("*/*")) == runs


# ---- settings


HELPERS = {"measuring", "whole_runs"}
"""Modules beside the benchmarks that several of them use."""

BENCHMARKS = sorted({path.stem for path in Path(benchmarks.__path__[0]).glob("[a-z]*.py")} - HELPERS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_says_what_can_be_set(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit) as end:
        parse_settings(module.Settings, module.__doc__, ["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert module.__doc__.splitlines()[2] in printed
    assert all(f"--{setting.name}" in printed for setting in dataclasses.fields(module.Settings))


def test_settings_are_what_the_arguments_say() -> None:
    arguments = ["--batch-size", "4", "--rates", "1e-3", "0.03", "--reduced", "--output=here"]
    settings = parse_settings(stability.Settings, None, arguments)
    assert settings == stability.Settings(batch_size=4, rates=[1e-3, 0.03], reduced=True, output=Path("here"))
    assert parse_settings(stability.Settings, None, []) == stability.Settings()


@pytest.mark.parametrize("arguments", [["--batchsize=4"], ["--rates", "fast"], ["--output"]])
def test_wrong_settings_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_settings(stability.Settings, None, arguments)
    assert end.value.code == 2
    assert arguments[0].partition("=")[0].removeprefix("--") in capsys.readouterr().err
