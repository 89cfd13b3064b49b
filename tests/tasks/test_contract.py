"""What every task promises.

It learns, resumes exactly, scores alike on several processes, works from its checkpoint alone, and says what is wrong
with what it is given.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.cli.main import main
from swinv2_tasks.errors import UserError
from swinv2_tasks.inference.detection import DetectionInference
from swinv2_tasks.inference.segmentation import Inference
from swinv2_tasks.training.optim import CosineSchedule
from swinv2_tasks.weights import save_weights
from tests.helpers import objects, tiny
from tests.helpers.checkpoints import randomize
from tests.helpers.processes import run, run_together, send_at
from tests.helpers.resuming import FAULTS, RESUME, assert_same_training, differences
from tests.helpers.runs import (
    evaluate,
    fit,
    from_last,
    has_no_runs,
    last_checkpoint,
    read_column,
    read_metrics,
    read_scores,
    read_table,
    user_error,
)
from tests.helpers.tiny_tasks import EACH_TASK, ON_ONE_DETECTOR, TINY_TASKS, TWO_TASKS

Find = Callable[[str], Path]
"""Finds a task's dataset or run by the task's name."""

ONE_STEP: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}


# ---- learning


@pytest.mark.parametrize("name", EACH_TASK)
def test_the_loss_falls_and_the_scores_rise(name: str, trained_run: Find) -> None:
    task, folder = TINY_TASKS[name], trained_run(name)
    losses = read_column(folder, "train/loss")
    assert sum(losses[-3:]) < task.loss * sum(losses[:3])
    scores = read_scores(folder)
    assert all(scores[score] >= least for score, least in task.scores.items()), scores


@pytest.mark.parametrize("name", EACH_TASK)
def test_a_run_keeps_its_config_metrics_checkpoints_and_learning_curve(name: str, trained_run: Find) -> None:
    folder = trained_run(name)
    assert (folder / "config.yaml").is_file() and (folder / "weights.safetensors").is_file()
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert {metric for row in read_metrics(folder) for metric in row} >= {"step", "epoch", "lr", "train/loss"}
    with Image.open(folder / "learning_curve.png") as figure:
        assert figure.format == "PNG" and figure.width >= 500 and figure.height >= 300
    with Image.open(folder / "first_batch.png") as picture:
        assert picture.format == "PNG" and picture.width >= 100


@pytest.mark.parametrize("name", EACH_TASK)
def test_the_best_checkpoint_is_of_the_best_score_and_the_last_of_the_end(name: str, trained_run: Find) -> None:
    folder = trained_run(name)
    watched = yaml.safe_load((folder / "config.yaml").read_text())["checkpoint"]
    rows = [row for row in read_metrics(folder) if watched["monitor"] in row]
    best_row = {"min": min, "max": max}[watched["mode"]](rows, key=lambda row: row[watched["monitor"]])
    best, last = (torch.load(folder / "checkpoints" / f"{file}.ckpt", weights_only=True) for file in ("best", "last"))
    assert best["epoch"] == best_row["epoch"]
    assert last["epoch"] == TINY_TASKS[name].trainer["max_epochs"] - 1
    assert last["global_step"] == len(read_column(folder, "train/loss"))


# ---- resuming

DATA: dict[str, dict[str, Any]] = {
    "classification": {"augmentation": {"init_args": {"mixup": 0.8, "random_erasing": 0.5, "color_jitter": 0.3}}},
    "video": {"batch_size": 8, "sampling": {"mode": "segments"}},
    "simmim": {"batch_size": 8},
    **{name: {"batch_size": 3} for name in ("mask_rcnn", "cascade", "htc")},
}
"""Of the data, beside what draws random numbers without being asked. Three batches are an epoch of each task."""


@pytest.mark.parametrize(
    "name", [name if name == "classification" else pytest.param(name, marks=pytest.mark.slow) for name in TINY_TASKS]
)
def test_a_killed_training_resumes_exactly(name: str, dataset: Find, tmp_path: Path) -> None:
    """In the middle of the second epoch of three, at a step that was not saved."""
    callbacks = [
        {"class_path": f"{FAULTS}.Journal", "init_args": {"folder": "journal"}},
        {"class_path": f"{FAULTS}.SendSignal"},
    ]
    config = TINY_TASKS[name].config(
        tmp_path,
        dataset(name),
        name="tiny",
        trainer={"max_epochs": 3, "callbacks": callbacks},
        model={"init_args": {"backbone": {"init_args": {"drop_path_rate": 0.3}}}},
        data={"init_args": {"num_workers": 1, **DATA.get(name, {})}},
    )
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    command = ["fit", f"--config={config}", "--save.every_n_steps=1"]
    undisturbed = run(command, straight)
    assert undisturbed.status == 0, undisturbed.errors

    assert run(command, killed, **send_at(5)).status == -9
    resumed = run(RESUME, killed)
    assert resumed.status == 0, resumed.errors
    assert "resuming runs/tiny/0 at step 4" in resumed.output
    assert_same_training(straight, killed)
    assert len(read_column(killed / "runs" / "tiny" / "0", "train/loss")) == 9


# ---- several processes


@pytest.mark.parametrize(
    ("samples", "processes"),
    [
        pytest.param(None, 2, id="2 processes"),
        pytest.param(4, 3, id="3 processes", marks=pytest.mark.slow),
        pytest.param(1, 3, id="fewer samples than processes", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", TWO_TASKS)
def test_several_processes_score_as_one(
    name: str, samples: int | None, processes: int, dataset: Find, trained_run: Find, tmp_path: Path
) -> None:
    """To the last digit, in every file that the evaluation writes, though their shares are uneven."""
    task, checkpoint = TINY_TASKS[name], from_last(trained_run(name))
    data = dataset(name) if samples is None else task.write_data(tmp_path / "data", train=1, val=samples)
    batch_size = {"classification": 5, "video": 3, "simmim": 2}.get(name, 1)
    arguments = ["validate", checkpoint, f"--data.root={data}", f"--data.batch_size={batch_size}"]

    assert main([*arguments, "--name=one", f"--runs={tmp_path / 'runs'}"]) == 0
    for ended in run_together([*arguments, "--name=several"], tmp_path, processes):
        assert ended.status == 0, ended.errors
    single, several = (scores_in(tmp_path / "runs" / name / "validate_0") for name in ("one", "several"))
    assert single == several
    if samples != 1:  # of which a detector may find nothing, as in an image of nothing but a crowd
        assert read_scores(tmp_path / "runs" / "one" / "validate_0")[next(iter(task.scores))] > 0


def scores_in(folder: Path) -> dict[str, str]:
    """The texts of the files with an evaluation's results."""
    paths = [folder / "metrics.csv", *folder.glob("val_*.json")]
    return {path.name: path.read_text() for path in paths}


# ---- the checkpoint alone


@pytest.mark.parametrize("name", EACH_TASK)
def test_evaluations_need_the_checkpoint_alone(name: str, trained_run: Find, tmp_path: Path) -> None:
    """They score as the training's validation did, to the last digit; test takes the same samples."""
    run_folder = trained_run(name)
    best = evaluate(tmp_path, f"--ckpt_path={run_folder / 'checkpoints' / 'best.ckpt'}")
    assert read_scores(best) == scores_of_best(run_folder)
    checkpoint = from_last(run_folder)
    validated = read_scores(evaluate(tmp_path, checkpoint))
    assert validated == read_scores(run_folder)
    assert validated.keys() >= TINY_TASKS[name].scores.keys()

    if name == "video":  # whose test takes more views
        return
    tested = read_scores(evaluate(tmp_path, checkpoint, command="test"), "test")
    assert {score.replace("test/", "val/"): value for score, value in tested.items()} == validated


def scores_of_best(run_folder: Path) -> dict[str, float]:
    """What was logged when the monitored score was best."""
    metrics = json.loads((run_folder / "summary.json").read_text())["best_metrics"]
    return {score: value for score, value in metrics.items() if score.startswith("val/")}


@pytest.mark.slow
def test_scores_are_repeated_where_training_shrinks_the_windows(dataset: Find, tmp_path: Path) -> None:
    """Maps are smaller than the window, in training more so than in evaluation, whose images are longer than crops."""
    training = {
        "trainer": {"max_epochs": 3},
        "model": {
            "init_args": {"backbone": {"init_args": {"window_size": 12}}, "optimizer": {"init_args": {"lr": 0.03}}}
        },
    }
    config = TINY_TASKS["segmentation"].config(tmp_path, dataset("segmentation"), **training)
    run_folder = fit(config, tmp_path / "runs")
    record = torch.load(last_checkpoint(run_folder), weights_only=True)["swinv2_tasks"]
    assert record["windows"]["effective"] == record["windows"]["pretrained"] == [[8, 8], [4, 4]]
    assert record["backbone"]["pretrained_window_size"] == [0, 0]

    checkpoint = f"--ckpt_path={run_folder / 'checkpoints' / 'best.ckpt'}"
    assert read_scores(evaluate(tmp_path, checkpoint)) == scores_of_best(run_folder)


@pytest.mark.slow
def test_evaluations_and_predictions_have_the_precision_of_the_run(
    dataset: Find, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, precision = dataset("classification"), {"precision": "bf16-mixed"}
    run_folder = fit(TINY_TASKS["classification"].config(tmp_path, data, trainer=precision), tmp_path / "runs")
    checkpoint = from_last(run_folder)
    capsys.readouterr()

    assert read_scores(evaluate(tmp_path, checkpoint)) == read_scores(run_folder)
    assert "precision: bf16-mixed, as the checkpoint was trained" in capsys.readouterr().out
    for command in ("validate", "predict"):
        arguments = [checkpoint, f"--data.source={data / 'val'}"]
        assert precision_of(evaluate(tmp_path, *arguments, command=command)) == "bf16-mixed"
        other = [*arguments, "--trainer.precision=32-true"]
        assert precision_of(evaluate(tmp_path, *other, command=command)) == "32-true"


def precision_of(folder: Path) -> str:
    """The precision by which an evaluation has computed."""
    return yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["precision"]


@pytest.mark.parametrize("name", EACH_TASK)
def test_predictions_need_the_checkpoint_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dataset and the run are gone, the checkpoint has moved, and so has the user."""
    task = TINY_TASKS[name]
    data = task.write_data(tmp_path / "data", val=2)
    run_folder = fit(task.config(tmp_path, data, name="tiny", trainer=ONE_STEP), tmp_path / "runs")
    shutil.move(last_checkpoint(run_folder), tmp_path / "mine.ckpt")
    shutil.move(data / task.validation, tmp_path / "files")
    shutil.rmtree(data)
    shutil.rmtree(tmp_path / "runs")

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["predict", "--ckpt_path=../mine.ckpt", "--data.source=../files"]) == 0
    rows = read_table(Path("runs/tiny/predict_0/predictions/predictions.csv"))
    assert {Path(row["path"]).name for row in rows} == {path.name for path in Path("../files").rglob("*.*")}
    assert not any(row["error"] for row in rows)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "classification": {"dropout": 0.25, "schedule": CosineSchedule(warmup_epochs=1)},
    "segmentation": {"dropout": 0.25, "inference": Inference(flip=True)},
    "video": {"dropout": 0.25},
    "simmim": {"norm_target_patch_size": 9},
}
"""Other than the defaults."""

DETECTION: dict[str, Any] = {
    "inference": DetectionInference(score_threshold=0.02, nms="soft_linear", scales=(1.0, 1.5), flip=True)
}


def new_input(name: str, side: int) -> torch.Tensor:
    shape = (2, 3, 8, side, side) if name == "video" else (2, 3, side, side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
@pytest.mark.parametrize("name", EACH_TASK)
def test_a_task_is_built_again_from_its_checkpoint(name: str, dataset: Find, tmp_path: Path) -> None:
    """Trained from Python, without the command line. It then computes the same, to the last bit."""
    tiny_task = TINY_TASKS[name]
    task, data = tiny_task.new_task(**ARGUMENTS.get(name, DETECTION)), tiny_task.new_data(dataset(name))
    before = {key: value.clone() for key, value in task.state_dict().items()}
    trainer = tiny.new_trainer(tmp_path, **ONE_STEP)
    trainer.fit(task, data)
    assert any(not torch.equal(value, before[key]) for key, value in task.state_dict().items())
    assert task.input_size is not None

    randomize(task)  # norms start at 0, which hides the blocks
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    built = tiny_task.task.load_from_checkpoint(tmp_path / "task.ckpt")
    assert not built.training
    assert built.class_names == task.class_names == tiny_task.names
    assert (built.class_ids, built.init_args) == (task.class_ids, task.init_args)
    assert differences(asdict(built.schedule), asdict(task.schedule)) == []
    assert repr(built) == repr(task)
    for side in (32, 64 if name == "simmim" else 47):
        x = new_input(name, side)
        assert differences(built(x), task.eval()(x)) == []


# ---- mistakes: one message, exit status 1, nothing left behind


MISTAKES: dict[str, list[str]] = {
    "--data.batch_size=100": ["data.batch_size is 100", "training samples"],
    "--model.backbone.window_size=0": ["window_size 0"],
    "--model.optimizer.lr=0": ["lr", "above 0"],
    "--model.weights=missing.pth": ["missing.pth", "no such file"],
    "--ckpt_path=missing.ckpt": ["missing.ckpt", "no such file"],
    "--trainer.max_epochs=-1": ["trainer.max_epochs"],
}


@pytest.mark.parametrize("argument", MISTAKES)
@pytest.mark.parametrize("name", ON_ONE_DETECTOR)
def test_mistakes_in_settings_are_reported(
    name: str, argument: str, dataset: Find, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TINY_TASKS[name].config(tmp_path, dataset(name))
    message = user_error(capsys, "fit", f"--config={config}", f"--runs={tmp_path / 'runs'}", argument)
    assert all(word in message for word in MISTAKES[argument]), message
    assert has_no_runs(tmp_path / "runs")


LAYOUT: dict[str, str] = {
    "classification": "train/CLASS",
    "segmentation": "images/training",
    "video": "train.csv",
    "simmim": "image",
    "mask_rcnn": "instances_train2017.json",
}
"""What is expected in the folder of a dataset."""


@pytest.mark.parametrize("name", ON_ONE_DETECTOR)
def test_a_dataset_that_is_missing_or_empty_is_reported(
    name: str, dataset: Find, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    config = TINY_TASKS[name].config(tmp_path, dataset(name))
    for root in (tmp_path / "nowhere", tmp_path / "empty"):
        arguments = [f"--config={config}", f"--runs={tmp_path / 'runs'}", f"--data.root={root}"]
        message = user_error(capsys, "fit", *arguments)
        assert str(root) in message and LAYOUT[name] in message
        assert has_no_runs(tmp_path / "runs")


@pytest.mark.parametrize("name", ON_ONE_DETECTOR)
def test_weights_of_another_size_are_reported(
    name: str, dataset: Find, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = TINY_TASKS[name].backbone
    wider = SwinTransformerV2(**{**backbone, "embed_dim": 2 * backbone["embed_dim"]})
    save_weights(wider, tmp_path / "wider.pth", format="lightning")
    config = TINY_TASKS[name].config(tmp_path, dataset(name))
    arguments = [f"--config={config}", f"--runs={tmp_path / 'runs'}", f"--model.weights={tmp_path / 'wider.pth'}"]
    message = user_error(capsys, "fit", *arguments)
    assert "wider.pth" in message and "Choose the model that the file holds" in message
    assert all(f"embed_dim {factor * backbone['embed_dim']}" in message for factor in (1, 2))
    assert has_no_runs(tmp_path / "runs")


@pytest.mark.parametrize("name", ON_ONE_DETECTOR)
def test_a_checkpoint_of_another_task_is_reported(
    name: str, dataset: Find, trained_run: Find, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "classification" if name != "classification" else "simmim"
    config = TINY_TASKS[name].config(tmp_path, dataset(name))
    checkpoint = from_last(trained_run(other))
    message = user_error(capsys, "validate", f"--config={config}", f"--runs={tmp_path / 'runs'}", checkpoint)
    assert TINY_TASKS[other].task.__name__ in message and TINY_TASKS[name].task.__name__ in message
    assert has_no_runs(tmp_path / "runs")


@pytest.mark.parametrize("name", ["segmentation", "video", "simmim", "mask_rcnn"])
def test_a_backbone_of_other_axes_is_refused(name: str) -> None:
    """Of clips where the task works on images, and the other way round."""
    clips = {"window_size": (2, 4, 4), "patch_size": (2, 4, 4)} if name != "video" else {}
    backbone = SwinTransformerV2(8, (1, 1), (1, 2), **clips)
    messages = {"video": r"on clips, this backbone on images.*patch_size", "simmim": r"works on images.*inflation"}
    with pytest.raises(UserError, match=messages.get(name, "clips")):
        TINY_TASKS[name].build(backbone)


@pytest.mark.parametrize("name", ON_ONE_DETECTOR)
def test_files_to_predict_that_are_not_there_are_reported(
    name: str, trained_run: Find, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", from_last(trained_run(name)), f"--runs={tmp_path / 'runs'}"]
    assert "data.source" in user_error(capsys, *arguments)
    assert "nowhere does not exist" in user_error(capsys, *arguments, "--data.source=nowhere")
    assert has_no_runs(tmp_path / "runs")


# ---- other classes


def rename_folder(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "n02").rename(root / split / "n09")
    replace_text(root / "classes.csv", "n02,green leaf", "n09,yellow leaf")


def remove_folder(root: Path) -> None:
    for split in ("train", "val"):
        shutil.rmtree(root / split / "n02")
    replace_text(root / "classes.csv", "n02,green leaf\n", "")


def rename_category(root: Path) -> None:
    for split in ("train", "val"):
        objects.change(root, split, lambda content: content["categories"][1].update(name="yellow disc"))


def renumber_category(root: Path) -> None:
    for split in ("train", "val"):
        file = root / "annotations" / f"instances_{split}2017.json"
        replace_text(file, '"id": 90, "name"', '"id": 91, "name"')
        replace_text(file, '"category_id": 90', '"category_id": 91')


def rename_label(root: Path) -> None:
    for split in ("train", "val"):
        replace_text(root / f"{split}.csv", "goes up", "goes left")


def replace_text(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


OTHER_CLASSES: dict[str, tuple[str, Callable[[Path], None], list[str]]] = {
    "classification, another class": ("classification", rename_folder, ["n01, n02, n03", "n01, n09, n03"]),
    "classification, fewer": ("classification", remove_folder, ["3 classes (n01, n02, n03)", "2 (n01, n03)"]),
    "segmentation, another name": (
        "segmentation",
        lambda root: replace_text(root / "names.txt", "green moss", "sand"),
        ["green moss", "sand"],
    ),
    "detection, another name": ("mask_rcnn", rename_category, ["5 is", "green disc", "yellow disc"]),
    "video, another label": ("video", rename_label, ["goes down, goes up", "goes down, goes left"]),
}


@pytest.mark.parametrize(("name", "change", "words"), OTHER_CLASSES.values(), ids=OTHER_CLASSES)
def test_other_classes_than_the_checkpoints_are_reported_with_both_lists(
    name: str,
    change: Callable[[Path], None],
    words: list[str],
    dataset: Find,
    trained_run: Find,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """To evaluate them, and to train on them what the checkpoint holds."""
    data = Path(shutil.copytree(dataset(name), tmp_path / "data"))
    change(data)
    config = TINY_TASKS[name].config(tmp_path, data)
    arguments = [f"--config={config}", from_last(trained_run(name)), f"--runs={tmp_path / 'runs'}"]
    for command in ("validate", "fit"):
        message = user_error(capsys, command, *arguments)
        assert all(word in message for word in words), message
        assert has_no_runs(tmp_path / "runs")


def test_categories_of_the_same_names_may_have_other_ids(
    dataset: Find, trained_run: Find, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids are numbers that each dataset gives: scores are the same, and detections have those of the data."""
    data = Path(shutil.copytree(dataset("mask_rcnn"), tmp_path / "data"))
    renumber_category(data)
    checkpoint = from_last(trained_run("mask_rcnn"))
    expected = read_scores(evaluate(tmp_path / "same", checkpoint))
    capsys.readouterr()
    evaluation = evaluate(tmp_path / "other", checkpoint, f"--data.root={data}")
    assert read_scores(evaluation) == expected
    said = capsys.readouterr().out
    assert "has the classes of the data by their names" in said and "3, 5, 91" in said and "3, 5, 90" in said
    detected = {entry["category_id"] for entry in json.loads((evaluation / "val_detections.json").read_text())}
    assert 91 in detected and 90 not in detected


@pytest.mark.parametrize("name", [task for task in ON_ONE_DETECTOR if task != "simmim"])
def test_a_head_of_another_size_than_the_data_is_refused(name: str, dataset: Find, tmp_path: Path) -> None:
    tiny_task = TINY_TASKS[name]
    number = len(tiny_task.names)
    with pytest.raises(UserError, match=rf"{number} classes, model\.num_classes is 5"):
        tiny.new_trainer(tmp_path).validate(tiny_task.new_task(num_classes=5), tiny_task.new_data(dataset(name)))
