"""The command line: help, suggestions, error messages, and checkpoints that must not be trusted."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from safetensors.torch import save_file
from torchvision.models import resnet18

from swinv2_tasks.cli.config_files import find_config, known_configs
from swinv2_tasks.cli.main import main
from swinv2_tasks.cli.parser import ParsedTrainer, int_before_float
from swinv2_tasks.errors import UserError
from tests.helpers.broken_files import cut_off
from tests.helpers.runs import has_no_runs, user_error
from tests.helpers.tiny import QUIET, new_task, write_config, write_images

QUIETLY = [f"--trainer.{name}={value}" for name, value in QUIET.items()]


# ---- help and entry points


def test_top_level_help_imports_nothing_heavy() -> None:
    """In a process of its own: this one has long imported everything."""
    program = (
        "import sys; from swinv2_tasks.cli.main import main; main(['--help']);"
        "heavy = {'torch', 'torchvision', 'lightning', 'jsonargparse', 'numpy', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for command in (
        "fit",
        "validate",
        "test",
        "predict",
        "sweep",
        "weights inspect",
        "weights convert",
        "sample-data",
        "demo",
    ):
        assert f"\n  {command} " in done.stdout


def test_the_module_is_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "swinv2_tasks", "predikt"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert done.stderr.startswith("swinv2-tasks: no command 'predikt'; did you mean 'predict'?")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=str)
def test_without_a_command_there_is_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert "--ckpt_path" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from swinv2_tasks import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_help_of_a_config_shows_the_tasks_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--model.help=swinv2_tasks.tasks.ClassificationTask"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "--model.label_smoothing" in out
    assert "share of the target spread over all classes" in out


# ---- configs


def test_unknown_config_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    message = user_error(capsys, "fit", "--config", "imagnet.yaml")
    assert "no config 'imagnet.yaml'" in message
    assert "Did you mean imagenet.yaml?" in message
    assert "coco.yaml" in message and "swinv2-tasks configs" in message
    assert (
        user_error(capsys, "fit", "--config=imagnet.yaml") == user_error(capsys, "fit", "-c", "imagnet.yaml") == message
    )


def test_configs_are_found_as_paths_then_here_then_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = find_config("imagenet.yaml")
    assert shipped.is_absolute()
    assert yaml.safe_load(shipped.read_text())["name"] == "imagenet"
    (tmp_path / "configs" / "mine").mkdir(parents=True)
    (tmp_path / "configs" / "imagenet.yaml").write_text("name: here\n")
    (tmp_path / "configs" / "mine" / "first.yaml").write_text("name: mine\n")
    assert find_config("imagenet.yaml").read_text() == "name: here\n"
    assert find_config("mine/first.yaml").read_text() == "name: mine\n"
    assert "mine/first.yaml" in known_configs()
    (tmp_path / "imagenet.yaml").write_text("name: path\n")
    assert find_config("imagenet.yaml").read_text() == "name: path\n"
    with pytest.raises(UserError, match=r"Did you mean mine/first\.yaml\?"):
        find_config("mine/frist.yaml")


def test_every_value_can_be_overridden_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["--model.backbone.window_size=12", "--data.image_size=192", "--model.optimizer.lr=0.01"]
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config=imagenet.yaml", *overrides, "--trainer.max_epochs=7", "--print_config"])
    assert end.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    model = printed["model"]["init_args"]
    assert model["backbone"]["class_path"] == "swinv2_tasks.backbone.swinv2_tiny"
    assert model["backbone"]["init_args"]["window_size"] == 12
    assert model["backbone"]["init_args"]["drop_path_rate"] == 0.2  # as in the file
    assert model["optimizer"]["init_args"]["lr"] == 0.01
    assert model["optimizer"]["init_args"]["weight_decay"] == 0.05
    assert printed["data"]["init_args"]["image_size"] == 192
    assert printed["trainer"]["max_epochs"] == 7


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_command_without_config_says_what_it_needs(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = user_error(capsys, command)
    assert f"{command} needs --config" in message
    assert ("--ckpt_path" in message) == (command != "fit")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--data.imagesize=64", "imagesize"),
        ("--model.nope=1", "nope"),
        ("--model.backbone.window=8", "window"),
        ("--trainer.epochs=1", "trainer.epochs"),
        ("--nope=1", "nope"),
        ("--data.image_size=big", "image_size"),
        ("--trainer.max_epochs=many", "trainer.max_epochs"),
        ("--trainer.precision=17", "trainer.precision"),
        ("--model.backbone.depths=2", "depths"),
        ("--model=Nothing", "Nothing"),
    ],
)
def test_unknown_keys_and_values_are_named(
    argument: str, words: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "config.yaml", images)
    assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}", argument]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_unknown_key_in_a_config_is_named(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "config.yaml", images, data={"init_args": {"imagesize": 64}})
    assert main(["fit", f"--config={config}"]) == 2
    assert "data.imagesize" in capsys.readouterr().err


def test_a_config_that_is_no_yaml_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.yaml").write_text("model: [1\ndata: }")
    assert main(["fit", f"--config={tmp_path / 'broken.yaml'}"]) == 2
    assert str(tmp_path / "broken.yaml") in capsys.readouterr().err


# ---- errors of the user: one message, exit status 1, nothing left behind


class Start:
    """Starts trainings and evaluations of the tiny model that end by an error of the user."""

    def __init__(self, folder: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.config, self.runs, self.capsys = write_config(folder / "config.yaml", root), folder / "runs", capsys

    def fails(self, *arguments: str, command: str = "fit") -> str:
        message = user_error(self.capsys, command, f"--config={self.config}", f"--runs={self.runs}", *arguments)
        assert has_no_runs(self.runs)
        return message


@pytest.fixture
def start(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Start:
    return Start(tmp_path, images, capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data.val_dir=valid"], ["valid", "val_dir"]),
        (["--model.backbone.window_size=[[4, 4], [4, 0]]"], ["window_size", "at least 1"]),
        (["--model.backbone.num_heads=[3, 3]"], ["num_heads", "8 channels", "3 heads"]),
        (["--data.image_size=3"], ["(3, 3) pixels", "patch", "(4, 4)"]),
        (["--data.image_size=0"], ["data.image_size"]),
        (["--data.batch_size=0"], ["data.batch_size is 0"]),
        (["--data.augmentation.horizontal_flip=3"], ["data.augmentation.horizontal_flip is 3"]),
        (["--data.class_names=missing.txt"], ["missing.txt", "data.class_names"]),
        (["--data.real_labels=missing.json"], ["missing.json", "data.real_labels"]),
        (["--model.schedule.layer_decay=2"], ["layer_decay"]),
        (["--trainer.accelerator=gpus"], ["accelerator", "gpus"]),
        (["--trainer.devices=many"], ["trainer", "devices"]),
        (["--trainer.enable_checkpointing=false"], ["enable_checkpointing"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_errors_in_settings_are_reported(arguments: list[str], words: list[str], start: Start) -> None:
    message = start.fails(*arguments)
    assert [word for word in words if word not in message] == []


def test_a_metric_to_watch_that_nobody_logs_is_reported(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known only at the end of the first epoch, whose metrics stay."""
    config = write_config(tmp_path / "config.yaml", images)
    message = user_error(capsys, "fit", f"--config={config}", f"--runs={tmp_path}", "--checkpoint.monitor=val/acc")
    assert "val/acc" in message
    assert "val/top1" in message


def test_a_file_in_place_of_the_runs_folder_is_reported(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "config.yaml", images)
    (tmp_path / "file").write_text("mine")
    message = user_error(capsys, "fit", f"--config={config}", f"--runs={tmp_path / 'file'}")
    assert str(tmp_path / "file") in message
    assert "--runs" in message


def test_an_empty_class_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_images(tmp_path / "images")
    shutil.rmtree(root / "train" / "n02")
    (root / "train" / "n02").mkdir()
    message = Start(tmp_path, root, capsys).fails("--data.class_names=null")
    assert f"{root / 'train'}: n02" in message


@pytest.mark.parametrize(
    ("corrupt", "reason", "workers"),
    [
        (cut_off, "runcated", 0),
        (cut_off, "runcated", 2),
        (lambda path: path.write_bytes(b""), "0 bytes", 0),
        (lambda path: path.write_text("not an image file"), "not an image", 0),
    ],
    ids=["truncated", "truncated, read by a worker", "empty", "text"],
)
def test_an_unreadable_image_is_named(
    corrupt: Callable[[Path], Any], reason: str, workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a DataLoader worker read it: its traceback is of no use to anyone."""
    root = write_images(tmp_path / "images")
    corrupt(root / "val" / "n01" / "n01_2.jpg")
    message = Start(tmp_path, root, capsys).fails(f"--data.num_workers={workers}")
    assert message.startswith(f"swinv2-tasks: Cannot read the image {root / 'val' / 'n01' / 'n01_2.jpg'}:")
    assert reason in message
    assert len(message.splitlines()) == 1


def test_an_unreadable_training_image_ends_the_run_without_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_images(tmp_path / "images")
    cut_off(root / "train" / "n03" / "n03_5.jpg")
    config = write_config(tmp_path / "config.yaml", root)
    message = user_error(capsys, "fit", f"--config={config}", f"--runs={tmp_path / 'runs'}")
    assert "n03_5.jpg" in message
    assert not list((tmp_path / "runs").rglob("*.ckpt"))


def html(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><body>404</body></html>")


def half_safetensors(path: Path) -> None:
    save_file({name: value.clone() for name, value in new_task().state_dict().items()}, path)
    cut_off(path)


def half_pickle(path: Path) -> None:
    torch.save(new_task().state_dict(), path)
    cut_off(path)


WRONG_FILES: list[tuple[str, Callable[[Path], Any], list[str]]] = [
    ("page.pth", html, ["HTML"]),
    ("half.safetensors", half_safetensors, ["incomplete"]),
    ("half.pth", half_pickle, ["incomplete"]),
    ("empty.pth", lambda path: path.write_bytes(b""), ["empty"]),
    ("resnet.pth", lambda path: torch.save(resnet18().state_dict(), path), ["not a Swin Transformer V2", "ResNet"]),
]


@pytest.mark.parametrize(("name", "write", "words"), WRONG_FILES, ids=[file[0] for file in WRONG_FILES])
def test_wrong_weights_are_reported(
    name: str, write: Callable[[Path], Any], words: list[str], start: Start, tmp_path: Path
) -> None:
    write(tmp_path / name)
    message = start.fails(f"--model.weights={tmp_path / name}")
    assert [word for word in [str(tmp_path / name), *words] if word not in message] == []


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize(("name", "write", "words"), WRONG_FILES[:5:2], ids=[file[0] for file in WRONG_FILES[:5:2]])
def test_files_that_are_no_run_are_no_ckpt_path(
    name: str, write: Callable[[Path], Any], words: list[str], with_config: bool, start: Start, tmp_path: Path
) -> None:
    write(tmp_path / name)
    argument = f"--ckpt_path={tmp_path / name}"
    if with_config:
        message = start.fails(argument, command="validate")
    else:
        message = user_error(start.capsys, "validate", argument, f"--runs={start.runs}")
        assert not start.runs.exists()
    assert str(tmp_path / name) in message
    assert ("--model.weights" if name == "resnet.pth" else words[0]) in message


def test_a_checkpoint_of_another_variant_is_reported(trained: Path, start: Start) -> None:
    message = start.fails(
        f"--ckpt_path={trained / 'checkpoints' / 'best.ckpt'}", "--model.backbone.embed_dim=16", command="validate"
    )
    assert "backbone.patch_embed.proj.weight ((8, 3, 4, 4) instead of (16, 3, 4, 4))" in message


def test_a_failed_start_leaves_the_folders_of_other_runs(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs" / "tiny"
    (runs / "4").mkdir(parents=True)
    (runs / "4" / "mine.txt").write_text("mine")
    config = write_config(tmp_path / "config.yaml", images)
    user_error(capsys, "fit", f"--config={config}", f"--runs={tmp_path / 'runs'}", "--trainer.max_epochs=-1")
    assert [path.relative_to(runs) for path in sorted(runs.rglob("*"))] == [Path("4"), Path("4/mine.txt")]


# ---- checkpoints that must not be trusted

PLUGIN = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
import torch
from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.datamodules import ImageNetDataModule
from swinv2_tasks.tasks import ClassificationTask
class Task(ClassificationTask): ...
class Data(ImageNetDataModule): ...
class Backbone(SwinTransformerV2): ...
class Optimizer(torch.optim.SGD): ...
"""


def of(record: str, *keys: str, **entries: Any) -> Callable[[dict[str, Any]], None]:
    """Changes entries of a checkpoint's record, in the mapping at ``keys``."""

    def change(contents: dict[str, Any]) -> None:
        mapping = contents.setdefault(record, {})
        for key in keys:
            mapping = mapping[key]
        mapping.update(entries)

    return change


IGNORED = {
    "hyperparameters": of("hyper_parameters", _class_path="plugin.Task"),
    "hyperparameters of a part": of("hyper_parameters", backbone={"class_path": "plugin.Backbone"}),
}
"""What Lightning would read from a checkpoint."""

REFUSED = {
    "class of the task": of("swinv2_tasks", "task", **{"class": "plugin.Task"}),
    "class of the data": of("swinv2_tasks", "data", **{"class": "plugin.Data"}),
    "backbone": of("swinv2_tasks", "task", "init_args", backbone={"class_path": "plugin.Backbone"}),
    "optimizer": of("swinv2_tasks", "task", "init_args", optimizer={"class_path": "plugin.Optimizer"}),
    "optimizer by name": of("swinv2_tasks", "task", "init_args", optimizer="plugin.Optimizer"),
    "schedule": of("swinv2_tasks", "task", "init_args", schedule={"class_path": "plugin.Optimizer"}),
    "schedule by name": of("swinv2_tasks", "task", "init_args", schedule="plugin.Optimizer"),
    "position bias": of("swinv2_tasks", "backbone", position_bias="swin_v2.torch.nn.Linear"),
    "another part as position bias": of("swinv2_tasks", "backbone", position_bias="swin_v2.PatchMerging"),
    "position bias as a path": of("swinv2_tasks", "backbone", position_bias="swin_v2.torch.os.system"),
    "argument of the data": of("swinv2_tasks", "data", "init_args", root={"class_path": "plugin.Data"}),
    "unknown argument": of("swinv2_tasks", "data", "init_args", plugin="plugin.Data"),
}
"""What this package would read from it."""


@pytest.mark.parametrize("name", [*IGNORED, *REFUSED])
def test_nothing_that_a_checkpoint_names_is_imported(
    name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A module in the current folder, as if it had come with the checkpoint, is within Python's reach."""
    (tmp_path / "plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    contents = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    (IGNORED | REFUSED)[name](contents)
    torch.save(contents, tmp_path / "hostile.ckpt")
    try:
        status = main(["validate", f"--ckpt_path={tmp_path / 'hostile.ckpt'}", f"--runs={tmp_path / 'runs'}", *QUIETLY])
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.modules.pop("plugin", None)
    assert not (tmp_path / "imported").exists()
    assert (status == 0) == (name in IGNORED)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_does_not_choose_a_host(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    url = "http://127.0.0.1:1/data"
    contents["swinv2_tasks"]["data"]["init_args"]["root"] = url
    torch.save(contents, tmp_path / "hostile.ckpt")
    arguments = [f"--ckpt_path={tmp_path / 'hostile.ckpt'}", f"--runs={tmp_path / 'runs'}", *QUIETLY]
    assert f"--data.root {url}" in user_error(capsys, "validate", *arguments)

    assert main(["validate", *arguments, f"--data.root={images}"]) == 0
    source = next((images / "val").rglob("*.jpg"))
    assert main(["predict", *arguments, f"--data.source={source}"]) == 0  # which needs no data
    assert "cannot be read" in user_error(capsys, "validate", *arguments, f"--data.root={url}")  # asked for, now


def test_a_checkpoint_does_not_choose_where_runs_go(trained: Path, tmp_path: Path) -> None:
    contents = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    for name in ("../../outside", str(tmp_path / "outside")):
        contents["swinv2_tasks"]["name"] = name
        torch.save(contents, tmp_path / "hostile.ckpt")
        arguments = [f"--ckpt_path={tmp_path / 'hostile.ckpt'}", f"--runs={tmp_path / 'a' / 'runs'}"]
        assert main(["validate", *arguments, *QUIETLY]) == 0
    assert not (tmp_path / "outside").exists()
    assert {path.name for path in (tmp_path / "a" / "runs" / "outside").iterdir()} == {"validate_0", "validate_1"}


def test_one_batch_is_one_batch_whatever_was_imported_before() -> None:
    """Python's typing keeps the first of `float | int` and `int | float` that anyone has asked for, for both."""

    def share(
        reversed_union: float | int | None, long: str | float | dict[str, int] | int, name: str | None, share: float
    ) -> None: ...

    parameters = int_before_float(inspect.signature(share, eval_str=True)).parameters
    assert get_args(parameters["reversed_union"].annotation)[0] is int
    assert set(get_args(parameters["reversed_union"].annotation)) == {int, float, type(None)}
    assert get_args(parameters["long"].annotation) == (int, str, float, dict[str, int])
    assert parameters["name"].annotation == str | None
    assert parameters["share"].annotation is float

    options = inspect.signature(ParsedTrainer).parameters
    for stage in ("train", "val", "test", "predict"):
        assert get_args(options[f"limit_{stage}_batches"].annotation)[0] is int
    assert options.keys() == inspect.signature(Trainer).parameters.keys()


# ---- what a training keeps and prints, whatever is watched and logged


@pytest.mark.parametrize(
    ("arguments", "printed", "best"),
    [
        (["--checkpoint.monitor=null"], "weights are those of the last checkpoint", None),
        (["--checkpoint.save_top_k=0"], "best        val/loss ", None),
        (["--checkpoint.save_top_k=-1", "--checkpoint.filename=at-{epoch}"], "best        val/loss ", "at-1.ckpt"),
        (["--checkpoint.monitor=val/top1", "--checkpoint.mode=max"], "val/top1 1.0000", "best.ckpt"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_watched_for_the_best_checkpoint(
    arguments: list[str],
    printed: str,
    best: str | None,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path / "tiny.yaml", images)
    assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}", *arguments]) == 0
    assert printed in capsys.readouterr().out
    folder = tmp_path / "runs" / "tiny" / "0"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best_checkpoint"] == (str(folder / "checkpoints" / best) if best else None)
    assert (folder / "weights.safetensors").is_file() and (folder / "checkpoints" / "last.ckpt").is_file()


ANOTHER = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"name": "mine"}}


@pytest.mark.parametrize("command", ["fit", "validate"])
@pytest.mark.parametrize("form", ["name", "mapping", "list"])
def test_another_logger_joins_those_of_the_run(
    form: str, command: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = {**ANOTHER, "init_args": {**ANOTHER["init_args"], "save_dir": str(tmp_path / "elsewhere")}}
    config = write_config(
        tmp_path / "tiny.yaml",
        images,
        trainer={} if form == "name" else {"logger": elsewhere if form == "mapping" else [elsewhere]},
    )
    arguments = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=elsewhere", "--trainer.logger.name=mine"]
    assert main([command, f"--config={config}", f"--runs={tmp_path / 'runs'}", *arguments[: 3 * (form == "name")]]) == 0
    folder = tmp_path / "runs" / "tiny" / ("0" if command == "fit" else "validate_0")
    metrics = (folder / "metrics.csv").read_text()
    assert metrics.count("\n") > 1 and list(folder.glob("events.out.tfevents.*"))
    assert next((tmp_path / "elsewhere" / "mine").rglob("metrics.csv")).read_text() == metrics
    if command == "fit":
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["best_metrics"]["val/top1"] and summary["last_metrics"]["train/loss"]
        assert (folder / "learning_curve.png").is_file()


def test_without_a_logger_the_summary_still_knows_the_best(images: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml", images)
    assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}", "--trainer.logger=false"]) == 0
    folder = tmp_path / "runs" / "tiny" / "0"
    summary = json.loads((folder / "summary.json").read_text())
    assert not (folder / "metrics.csv").exists()
    assert set(summary["best_metrics"]) == {"val/loss"} and summary["last_metrics"]["val/top1"] == 1
