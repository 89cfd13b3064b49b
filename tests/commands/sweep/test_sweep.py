"""``sweep``: rows hold the metrics of ``validate``, failures cost their own row, and a sweep is resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from PIL import Image

from swinv2_tasks.backbone import BiasTable, swinv2_tiny
from swinv2_tasks.cli.main import main
from swinv2_tasks.commands.sweep.sweep import Setting, read_arguments, sweep
from swinv2_tasks.commands.sweep.validation_process import Measurement
from swinv2_tasks.errors import UserError
from swinv2_tasks.inference.segmentation import Inference
from swinv2_tasks.weights import save_weights
from tests.helpers import motions, objects, photos, processes, scenes, tiny
from tests.helpers.runs import read_scores, read_table

QUIETLY = [f"--trainer.{name}={value}" for name, value in tiny.QUIET.items()]


def table(folder: Path) -> list[dict[str, str]]:
    return read_table(folder / "sweep.csv")


def validated(folder: Path, *arguments: str) -> dict[str, float]:
    """The metrics that ``validate`` logs."""
    assert main(["validate", *arguments, *QUIETLY, f"--runs={folder}", "--name=plain"]) == 0
    return read_scores(folder / "plain" / "validate_0")


def check_row(row: dict[str, str], metrics: dict[str, float]) -> None:
    assert {name: float(cell) for name, cell in row.items() if name.startswith("val/")} == pytest.approx(metrics)
    assert float(row["samples_per_second"]) > 0
    assert 50 < float(row["memory_mib"]) < 10_000
    assert (row["device"], row["error"]) == ("cpu", "")


class KillItself(Callback):
    """Kills the process during an evaluation of images of a size, as a system does that is out of memory."""

    def __init__(self, size: int) -> None:
        self.size = size

    def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, *_: Any) -> None:
        if batch["image"].shape[2] == self.size:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def checkpoint(trained: Path) -> Path:
    return trained / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def swept(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of two windows and two sizes; not to be changed."""
    folder = tmp_path_factory.mktemp("swept")
    crossed = ["--windows", "4", "8", "--sizes", "32", "64"]
    assert main(["sweep", "--ckpt_path", str(checkpoint), *crossed, "--output", str(folder), *QUIETLY]) == 0
    return folder


# ---- rows


@pytest.mark.parametrize(("window", "size"), [(4, 32), (8, 64)])
def test_a_row_holds_the_metrics_of_validate(
    window: int, size: int, swept: Path, checkpoint: Path, tmp_path: Path
) -> None:
    settings = [f"--model.backbone.init_args.window_size={window}", f"--data.image_size={size}"]
    metrics = validated(tmp_path, f"--ckpt_path={checkpoint}", *settings)
    (row,) = [row for row in table(swept) if (row["window"], row["size"]) == (str(window), str(size))]
    assert set(metrics) == {"val/loss", "val/top1", "val/top5"}
    check_row(row, metrics)
    assert row["samples"] == "images"


def test_windows_and_sizes_are_crossed(swept: Path) -> None:
    assert [(row["window"], row["size"]) for row in table(swept)] == [
        ("4", "32"),
        ("4", "64"),
        ("8", "32"),
        ("8", "64"),
    ]
    assert len({row["val/loss"] for row in table(swept)}) == 4


def test_a_figure_is_drawn(swept: Path) -> None:
    with Image.open(swept / "sweep.png") as figure:
        assert figure.width > 2 * figure.height > 400
        assert len(figure.convert("RGB").getcolors(maxcolors=10**6)) > 10  # not an empty page


@pytest.mark.slow
def test_foreign_weights_are_swept(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a config instead of a checkpoint; a single setting, whose line and table name the config's metric."""
    save_weights(tiny.new_task(), tmp_path / "official.pth", image_size=32)
    config = tiny.write_config(tmp_path / "tiny.yaml", images)
    given = [f"--config={config}", f"--model.weights={tmp_path / 'official.pth'}"]
    assert main(["sweep", *given, "--settings", "8@64", f"--runs={tmp_path}"]) == 0
    metrics = validated(tmp_path, *given, "--model.backbone.init_args.window_size=8", "--data.image_size=64")
    capsys.readouterr()
    (row,) = table(tmp_path / "tiny" / "sweep")
    check_row(row, metrics)


@pytest.mark.slow
def test_samples_left_out_are_named_in_each_row(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(images, tmp_path / "images"))
    bad = next((data / "val").rglob("*_1.jpg"))
    bad.write_bytes(bad.read_bytes()[:300])
    given = [f"--ckpt_path={checkpoint}", f"--data.root={data}", *QUIETLY]
    command = ["sweep", *given, "--settings", "4@32", f"--output={tmp_path / 'out'}"]
    for _ in range(2):  # the second time it is read from the table
        assert main(command) == 1
        (row,) = table(tmp_path / "out")
        assert row["error"] == "" and row["val/loss"]
        ((name, reason),) = json.loads(row["left_out"]).items()
        assert name == str(bad) and "runcated" in reason
        printed, errors = capsys.readouterr()
        assert f"left out: {bad}: {reason}" in printed and "1 samples could not be read" in errors


@pytest.mark.slow
def test_bias_tables_are_resized(images: Path, tmp_path: Path) -> None:
    """A checkpoint whose tables are of its own window, at another one."""
    bias = {"backbone": {"init_args": {"position_bias": "swinv2_tasks.backbone.BiasTable"}}}
    config = tiny.write_config(tmp_path / "tiny.yaml", images, model={"init_args": bias})
    assert main(["fit", f"--config={config}", f"--runs={tmp_path}"]) == 0
    checkpoint = tmp_path / "tiny" / "0" / "checkpoints" / "best.ckpt"
    outcomes = sweep([f"--ckpt_path={checkpoint}", *QUIETLY], [(6, 48)])
    task = tiny.ClassificationTask.load_from_checkpoint(checkpoint)
    assert task.backbone.position_bias is BiasTable
    task.backbone.set_window(6)
    (measurement,) = outcomes.values()
    assert isinstance(measurement, Measurement)
    trainer = tiny.new_trainer(tmp_path)
    (expected,) = trainer.validate(task, tiny.new_data(images, image_size=48), verbose=False)
    assert measurement.metrics == pytest.approx(expected)


# ---- resuming


@pytest.mark.slow
def test_settings_with_a_row_are_not_evaluated_again(
    swept: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second evaluation would write another speed; a new setting adds its row."""
    folder = Path(shutil.copytree(swept, tmp_path / "sweep"))
    before = (folder / "sweep.csv").read_text()
    command = ["sweep", "--ckpt_path", str(checkpoint), "--output", str(folder), *QUIETLY]
    assert main([*command, "--settings", "4@32", "8@64"]) == 0
    assert (folder / "sweep.csv").read_text() == before
    assert "2 of 2 settings are in" in capsys.readouterr().out
    assert main([*command, "--settings", "4@32", "6@48"]) == 0
    after = (folder / "sweep.csv").read_text()
    assert after.startswith(before)
    assert after.removeprefix(before).startswith("6,48,")


def test_other_arguments_or_another_checkpoint_are_refused(
    swept: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / "sweep"))
    before = (folder / "sweep.csv").read_text()
    command = ["sweep", f"--output={folder}", "--settings", "6@48", *QUIETLY]
    assert main([*command, f"--ckpt_path={checkpoint}", "--data.batch_size=3"]) == 1
    assert "data.init_args.batch_size was 6, is 3" in capsys.readouterr().err
    assert main([*command, f"--ckpt_path={checkpoint.with_name('last.ckpt')}"]) == 1
    assert f"the checkpoint was {checkpoint}" in capsys.readouterr().err
    (folder / "sweep.json").unlink()
    assert main([*command, f"--ckpt_path={checkpoint}"]) == 1
    assert "name another --output" in capsys.readouterr().err
    assert (folder / "sweep.csv").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)], ids=str
)
def test_a_killed_sweep_keeps_whole_rows_and_is_resumed(
    number: int, status: int, checkpoint: Path, tmp_path: Path
) -> None:
    sizes = ["--windows", "4", "--sizes", "32", "36", "40", "44"]
    command = ["sweep", f"--ckpt_path={checkpoint}", "--output=out", *sizes, *QUIETLY]
    running = processes.start(command, tmp_path)
    processes.wait_for(lambda: (tmp_path / "out" / "sweep.csv").is_file(), 300)
    group = os.getpgid(running.process.pid or 0)
    running.signal(number)
    result = running.wait()
    assert result.status == status, result.errors
    assert "Traceback" not in result.errors
    processes.wait_for(lambda: not processes.is_alive(group), 20)  # the evaluation in its child process is ended too
    before = table(tmp_path / "out")
    assert 1 <= len(before) < 4
    assert all(row["val/loss"] for row in before)
    if number != signal.SIGKILL:
        assert (tmp_path / "out" / "sweep.png").is_file()
        assert f"{len(before)} of 4 settings are in" in result.errors
    assert main([*command[:2], f"--output={tmp_path / 'out'}", *command[3:]]) == 0
    after = table(tmp_path / "out")
    assert after[: len(before)] == before
    assert [row["size"] for row in after] == ["32", "36", "40", "44"]


# ---- settings that fail


@pytest.mark.slow
def test_a_setting_that_fails_costs_its_row(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No image has sides of a billion pixels; a process that is killed cannot report its end itself."""
    killer = ["--trainer.callbacks+=tests.commands.sweep.test_sweep.KillItself", "--trainer.callbacks.size=40"]
    killer += ["--allow=tests"]
    settings = ["--settings", "4@1000000000", "4@40", "4@32"]
    command = ["sweep", f"--ckpt_path={checkpoint}", f"--output={tmp_path / 'out'}", *settings, *killer, *QUIETLY]
    assert main(command) == 1
    printed, errors = capsys.readouterr()
    assert "2 of 3 settings could not be evaluated" in errors
    assert printed.count("failed: ") == 4  # at once, and in a list at the end
    huge, killed, sound = table(tmp_path / "out")
    assert "data.image_size" in huge["error"]
    assert huge["val/top1"] == ""
    assert killed["error"] == "its process was ended by SIGKILL: most likely the system ran out of memory"
    assert sound["val/loss"] != ""
    assert f"\n4@40       failed: {killed['error']}  (2 of 3, about " in printed
    assert f"\nfailed: 4@40: {killed['error']}\n" in printed


@pytest.mark.slow
def test_failed_settings_are_tried_again(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """When all fail, the command does; its message is the first one's."""
    root = tiny.write_images(tmp_path / "images")
    broken = root / "val" / "n01" / "n01_0.jpg"
    content = broken.read_bytes()
    broken.write_text("not a picture")
    command = ["sweep", f"--ckpt_path={trained / 'weights.safetensors'}", f"--data.root={root}", *QUIETLY]
    command += ["--data.faulty_samples=error"]
    command += [f"--output={tmp_path / 'out'}", "--settings", "4@32"]
    assert main(command) == 1
    message = capsys.readouterr().err
    assert "none of 1 settings" in message
    assert str(broken) in message
    assert str(broken) in table(tmp_path / "out")[0]["error"]
    broken.write_bytes(content)
    assert main(command) == 0
    (row,) = table(tmp_path / "out")
    assert (row["error"], row["val/loss"] != "") == ("", True)


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--settings", "0@32"], ["0@32", "at least 1"]),
        (["--settings", "4@0"], ["4@0", "at least 1"]),
        (["--settings", "4x32"], ["'4x32'", "WINDOW@SIZE"]),
        (["--settings"], ["no setting"]),
        (["--windows", "--sizes", "32"], ["--windows 8 12 16"]),
        (["--windows", "4"], ["--sizes 256 384 512"]),
        ([], ["--settings 8@256"]),
        (["--settings", "4@32", "--windows", "4", "--sizes", "32"], ["either"]),
        (["--settings", "4@3"], ["3 pixels", "patch", "4"]),
        (["--settings", "4@32", "--data.image_size=null"], ["data.image_size"]),
        (["--settings", "4@32", "--ckpt_path=missing.ckpt"], ["missing.ckpt", "no such file"]),
    ],
    ids=str,
)
def test_mistakes_end_before_anything_is_written(
    arguments: list[str], words: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status: Any
    try:
        status = main(["sweep", f"--ckpt_path={checkpoint}", f"--output={tmp_path / 'out'}", *arguments])
    except SystemExit as end:  # of jsonargparse, for values of a wrong type
        status = end.code
    message = capsys.readouterr().err
    assert status in (1, 2)
    assert [word for word in words if word not in message] == []
    assert not (tmp_path / "out").exists()


def test_an_untrained_model_is_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny.write_config(tmp_path / "tiny.yaml", images)
    assert main(["sweep", f"--config={config}", "--settings", "4@32"]) == 1
    assert "--ckpt_path CHECKPOINT" in capsys.readouterr().err
    assert main(["sweep", f"--config={config}", "--model.weights=gone.pth", "--settings", "4@32"]) == 1
    assert "gone.pth does not exist" in capsys.readouterr().err


# ---- the arguments of a setting, for each dataset


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    save_weights(swinv2_tiny(), path)
    return f"--model.weights={path}"


WINDOW = "--model.init_args.backbone.init_args.window_size"


@pytest.mark.parametrize(
    ("config", "arguments", "setting", "expected"),
    [
        ("imagenet.yaml", [], (12, 384), [f"{WINDOW}=12", "--data.init_args.image_size=384"]),
        ("imagenet.yaml", ["--data.image_size=[256,320]"], (8, 128), ["--data.init_args.image_size=[128, 160]"]),
        ("ade20k.yaml", [], (20, 640), [f"{WINDOW}=20", "--data.init_args.resize=[2560, 640]"]),
        (
            "ade20k.yaml",
            ["--model.inference.mode=slide"],
            (20, 640),
            ["--model.init_args.inference.crop_size=[640, 640]", "--model.init_args.inference.stride=[425, 425]"],
        ),
        ("coco.yaml", [], (8, 400), ["--data.init_args.resize=[667, 400]"]),
        (
            "kinetics.yaml",
            [],
            (14, 448),
            [f"{WINDOW}=[[8, 14, 14], [8, 14, 14], [8, 14, 14], [8, 14, 14]]", "--data.init_args.image_size=448"],
        ),
        ("demo_kinetics.yaml", [], (4, 64), [f"{WINDOW}=[[8, 4, 4], [8, 4, 4], [8, 4, 4]]"]),
    ],
    ids=str,
)
def test_a_setting_as_arguments(
    config: str, arguments: list[str], setting: tuple[int, int], expected: list[str], weights: str
) -> None:
    overrides = read_arguments([f"--config={config}", weights, *arguments]).arguments_at(Setting(*setting))
    assert [argument for argument in expected if argument not in overrides] == []
    is_rescaled = any("inference" in argument for argument in overrides)
    assert is_rescaled == ("--model.inference.mode=slide" in arguments)


def test_images_at_their_own_sizes_have_no_size_to_sweep(weights: str) -> None:
    model = read_arguments(["--config=ade20k.yaml", weights, "--data.resize=null"])
    with pytest.raises(UserError, match=r"data\.resize is null.*\[2048,512\]"):
        model.arguments_at(Setting(8, 512))


@pytest.mark.parametrize(
    ("given", "devices"), [([], "1"), (["--trainer.devices=8"], "1"), (["--trainer.devices=[3]"], "[3]")]
)
def test_one_device_evaluates(given: list[str], devices: str, weights: str) -> None:
    overrides = read_arguments(["--config=imagenet.yaml", weights, *given]).arguments_at(Setting(8, 256))
    assert f"--trainer.devices={devices}" in overrides


@pytest.mark.slow
def test_the_metric_is_the_one_that_the_training_watched(checkpoint: Path, trained: Path, weights: str) -> None:
    assert read_arguments([f"--ckpt_path={checkpoint}"]).metric == "val/loss"
    assert read_arguments([f"--ckpt_path={trained / 'weights.safetensors'}"]).metric is None
    assert read_arguments(["--config=coco.yaml", weights]).metric == "val/box_ap"


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_sliding_windows_are_rescaled_with_the_images(mode: Any) -> None:
    inference = Inference(mode, crop_size=(64, 32), stride=(48, 16))
    assert inference.rescale(1.0, 4) == inference
    rescaled = inference.rescale(1.4, 4)
    assert (rescaled.crop_size, rescaled.stride) == (((64, 32), (48, 16)) if mode == "whole" else ((88, 44), (66, 22)))


# ---- every task


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write_data", "write_config", "setting", "arguments", "samples"),
    [
        (
            scenes.write_scenes,
            scenes.write_config,
            "6@48",
            ["--model.backbone.init_args.window_size=6", "--data.resize=[96,48]"],
            "images",
        ),
        (
            objects.write_objects,
            objects.write_config,
            "6@96",
            ["--model.backbone.init_args.window_size=6", "--data.resize=[144,96]"],
            "images",
        ),
        (
            motions.write_motions,
            motions.write_config,
            "6@48",
            ["--model.backbone.init_args.window_size=[[4,6,6],[4,6,6]]", "--data.image_size=48"],
            "views",
        ),
        (
            photos.write_photos,
            photos.write_config,
            "6@48",
            ["--model.backbone.init_args.window_size=6", "--data.image_size=48"],
            "images",
        ),
    ],
    ids=["segmentation", "detection", "video", "simmim"],
)
def test_every_task_is_swept(
    write_data: Callable[[Path], Path],
    write_config: Callable[[Path, Path], Path],
    setting: str,
    arguments: list[str],
    samples: str,
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path / "config.yaml", write_data(tmp_path / "data"))
    assert main(["fit", f"--config={config}", f"--runs={tmp_path}", "--name=it"]) == 0
    checkpoint = f"--ckpt_path={tmp_path / 'it' / '0' / 'checkpoints' / 'best.ckpt'}"
    assert main(["sweep", checkpoint, "--settings", setting, *QUIETLY]) == 0
    (row,) = table(tmp_path / "it" / "0" / "sweep")
    check_row(row, validated(tmp_path, checkpoint, *arguments))
    assert row["samples"] == samples


@pytest.mark.slow
def test_a_sliding_window_is_swept(tmp_path: Path) -> None:
    config = scenes.write_config(tmp_path / "config.yaml", scenes.write_scenes(tmp_path / "data"))
    assert main(["fit", f"--config={config}", f"--runs={tmp_path}", "--name=it"]) == 0
    checkpoint = f"--ckpt_path={tmp_path / 'it' / '0' / 'checkpoints' / 'best.ckpt'}"
    sliding = ["--model.inference.mode=slide", "--model.inference.crop_size=32", "--model.inference.stride=20"]
    assert main(["sweep", checkpoint, "--settings", "4@32", "6@48", *sliding, *QUIETLY]) == 0
    original, rescaled = table(tmp_path / "it" / "0" / "sweep")
    check_row(original, validated(tmp_path, checkpoint, *sliding))
    larger = ["--model.inference.mode=slide", "--model.inference.crop_size=48", "--model.inference.stride=30"]
    settings = ["--model.backbone.init_args.window_size=6", "--data.resize=[96,48]", *larger]
    check_row(rescaled, validated(tmp_path / "rescaled", checkpoint, *settings))
