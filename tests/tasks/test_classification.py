"""Classification through the command line, as a person uses it: train, evaluate, transfer, fine-tune, predict."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from swinv2_tasks.cli.main import main
from swinv2_tasks.tasks import ClassificationTask
from swinv2_tasks.weights import save_weights
from tests.helpers import runs
from tests.helpers.checkpoints import randomize
from tests.helpers.runs import evaluate, from_last, predict, read_column, read_metrics, read_scores, read_table
from tests.helpers.tiny import COLORS, NAMES, QUIET, new_data, new_task, write_config, write_images

QUIETLY = [f"--trainer.{name}={value}" for name, value in QUIET.items()]


def fit(folder: Path, root: Path, *arguments: str, **changes: Any) -> Path:
    """Trains by the command line; returns the run's folder."""
    return runs.fit(write_config(folder / "config.yaml", root, **changes), folder / "runs", *arguments)


def validate(folder: Path, *arguments: str) -> dict[str, float]:
    """What a validation logs."""
    return read_scores(evaluate(folder, *QUIETLY, *arguments))


@pytest.fixture(scope="module")
def random_checkpoint(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained run's checkpoint with random weights: trained for a moment, position biases are all but flat."""
    contents = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    contents["state_dict"] = randomize(new_task()).state_dict()
    path = tmp_path_factory.mktemp("random") / "random.ckpt"
    torch.save(contents, path)
    return path


# ---- training


def test_tensorboard_holds_what_the_csv_does(trained: Path) -> None:
    events = EventAccumulator(str(trained)).Reload()
    for name in ("train/loss", "val/top1", "val/loss", "lr"):
        logged = [event.value for event in events.Scalars(name)]
        assert logged == pytest.approx(read_column(trained, name))


def test_the_progress_bar_shows_loss_learning_rate_and_speed(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also learning rates that three decimals would show as 0."""
    arguments = ["--data.batch_size=1", "--model.optimizer.lr=3e-5"]
    arguments += ["--model.schedule={warmup_epochs: 0, base_batch_size: 0, min_lr: 3e-5}"]
    fit(tmp_path, images, *arguments, trainer={"max_epochs": 1})
    output = capsys.readouterr().out
    values = {name: re.findall(rf"  {name} ([\d.,e+-]+)", output) for name in ("loss", "lr", "img/s")}
    assert all(values.values()), output
    assert float(values["lr"][-1]) == pytest.approx(3e-5)
    assert float(values["img/s"][-1]) > 0


def test_the_published_augmentation_runs(images: Path, tmp_path: Path) -> None:
    """RandAugment, erasing, mixup and cutmix: labels are then shares of all classes."""
    published = {"init_args": {"rand_augment_ops": 2, "random_erasing": 0.25, "mixup": 0.8, "cutmix": 1.0}}
    data = {"init_args": {"augmentation": published, "num_workers": 1}}
    run = fit(tmp_path, images, trainer={"max_epochs": 1}, data=data)
    losses = read_column(run, "train/loss")
    assert len(losses) == 3
    assert all(0 < loss < 5 for loss in losses)


def test_classes_of_the_data_size_the_head(tmp_path: Path) -> None:
    write_images(tmp_path / "two", ("n01", "n02"))
    run = fit(tmp_path, tmp_path / "two", trainer={"max_epochs": 1})
    contents = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert contents["state_dict"]["head.fc.weight"].shape == (2, 16)
    assert contents["swinv2_tasks"]["classes"] == {"ids": ["n01", "n02"], "names": [NAMES["n01"], NAMES["n02"]]}


def test_a_shipped_config_with_the_small_overlay_trains_on_other_images(images: Path, tmp_path: Path) -> None:
    arguments = ["--config=imagenet.yaml", "--config=overlays/small.yaml", f"--data.root={images}"]
    arguments += ["--data.batch_size=6", "--data.num_workers=0", "--trainer.max_epochs=1"]
    arguments += [
        "--trainer.check_val_every_n_epoch=1",
        "--trainer.limit_train_batches=1",
        "--trainer.log_every_n_steps=1",
    ]
    assert main(["fit", *arguments, f"--runs={tmp_path}", *QUIETLY]) == 0
    rows = read_metrics(tmp_path / "imagenet" / "0")
    assert {"train/loss", "val/top1"} <= {name for row in rows for name in row}


def test_training_resumes_from_a_checkpoint(trained: Path, images: Path, tmp_path: Path) -> None:
    longer = fit(tmp_path, images, from_last(trained), trainer={"max_epochs": 9})
    assert [row["step"] for row in read_metrics(longer) if "train/loss" in row] == [24, 25, 26]


@pytest.mark.slow
def test_runs_are_numbered_from_the_highest(images: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "tiny" / "7").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "notes").mkdir()
    config = write_config(tmp_path / "config.yaml", images, trainer={"max_epochs": 1, "limit_train_batches": 1})
    for number in (8, 9):
        assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}"]) == 0
        assert (tmp_path / "runs" / "tiny" / str(number) / "checkpoints" / "last.ckpt").is_file()
    assert not any((tmp_path / "runs" / "tiny" / "7").iterdir())


def test_a_runs_config_starts_the_same_run_again(trained: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert main(["fit", f"--config={trained / 'config.yaml'}", f"--runs={tmp_path}"]) == 0
    again = tmp_path / "tiny" / "0"
    assert {path.name for path in (again / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before  # its own folder, and no other
    for row, other_row in zip(read_metrics(trained), read_metrics(again), strict=True):
        assert row == pytest.approx(other_row, rel=1e-4)


def test_averaged_weights_are_what_a_checkpoint_holds(images: Path, tmp_path: Path) -> None:
    """Lightning's own callback. With a decay of 0.5, the average of the first two steps is their mean."""
    average = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.5}}
    states = []
    for epochs in (1, 2):
        run = fit(
            tmp_path,
            images,
            trainer={"max_epochs": epochs, "limit_train_batches": 1, "callbacks": [average]},
            model={"init_args": {"schedule": {"warmup_epochs": 0}}},
        )
        states.append(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True))
    first, second = (state["current_model_state"] for state in states)
    averaged = states[1]["state_dict"]
    assert (first["head.fc.weight"] - second["head.fc.weight"]).abs().max() > 1e-3
    for name, value in averaged.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2)
    loaded = ClassificationTask.load_from_checkpoint(run / "checkpoints" / "last.ckpt")
    torch.testing.assert_close(loaded.state_dict()["head.fc.weight"], averaged["head.fc.weight"], rtol=0, atol=0)
    # The logged validation was of the average, too.
    assert validate(tmp_path, from_last(run)) == pytest.approx(read_scores(run), rel=1e-5)


# ---- evaluation


def by_hand(task: ClassificationTask, root: Path, **arguments: Any) -> dict[str, float]:
    """Loss and accuracy of a task over the validation images, image by image."""
    data = new_data(root, batch_size=1, **arguments)
    data.setup("validate")
    losses, hits = [], []
    with torch.no_grad():
        for batch in data.val_dataloader():
            logits = task.eval()(batch["image"])
            losses.append(nn.functional.cross_entropy(logits, batch["label"]).item())
            hits.append(logits.argmax(1).eq(batch["label"]).item())
    return {"val/loss": sum(losses) / len(losses), "val/top1": sum(hits) / len(hits)}


def test_metrics_are_those_counted_by_hand(random_checkpoint: Path, images: Path, tmp_path: Path) -> None:
    """Also where the last batch is smaller: 12 images in batches of 5."""
    metrics = validate(tmp_path, f"--ckpt_path={random_checkpoint}", "--data.batch_size=5")
    expected = by_hand(ClassificationTask.load_from_checkpoint(random_checkpoint), images)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert 0 < expected["val/top1"] < 1


def test_real_labels_have_a_metric_of_their_own(trained: Path, images: Path, tmp_path: Path) -> None:
    """The model knows every image; by these labels, a third has no label and another third a wrong one."""
    right = {"n01": [0], "n02": [], "n03": [0, 1]}
    labels = {path.name: right[path.parent.name] for path in (images / "val").rglob("*.jpg")}
    (tmp_path / "real.json").write_text(json.dumps(labels))
    checkpoint = trained / "checkpoints" / "best.ckpt"
    metrics = validate(tmp_path, f"--ckpt_path={checkpoint}", f"--data.real_labels={tmp_path / 'real.json'}")
    assert metrics == {"val/real_top1": 0.5, "val/real_top5": 1.0}


@pytest.mark.parametrize("several_labels", [False, True])
def test_top1_and_top5_are_counted_apart(several_labels: bool) -> None:
    """Also after a first batch that is all right, where both have counted the same."""
    task = new_task(7)
    metrics = task.val_real_metrics if several_labels else task.val_metrics
    scores = torch.arange(7.0).expand(4, 7)  # 6 is the first prediction, 2 the fifth
    for labels in (torch.tensor([6, 6, 6, 6]), torch.tensor([6, 2, 2, 0])):
        metrics.update(scores, nn.functional.one_hot(labels, 7) if several_labels else labels)
    prefix = "val/real_" if several_labels else "val/"
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert {name: values[f"{prefix}{name}"] for name in ("top1", "top5")} == {"top1": 5 / 8, "top5": 7 / 8}


# ---- window transfer


@pytest.mark.parametrize("side", [64, 128])
def test_weights_are_transferred_to_another_window_in_one_line(
    side: int, random_checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained at window 4 on maps of 8×8 and 4×4, evaluated at window 16: on 16×16 and 8×8, or 32×32 and 16×16."""
    config = write_config(tmp_path / "config.yaml", images)
    arguments = [f"--config={config}", f"--model.weights={random_checkpoint}"]
    arguments += ["--model.backbone.window_size=16", f"--data.image_size={side}"]
    metrics = validate(tmp_path, *arguments)
    report = capsys.readouterr().out
    assert "stage 1" in report
    assert report.count("4×4 → 16×16") == 2
    task = ClassificationTask.load_from_checkpoint(random_checkpoint)
    task.backbone.set_window(16)
    task.backbone.set_pretrained_window(4)
    expected = by_hand(task, images, image_size=side)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    task.backbone.set_pretrained_window(None)  # what a loader that ignores the training's windows evaluates
    assert by_hand(task, images, image_size=side)["val/loss"] != pytest.approx(expected["val/loss"], rel=1e-4)


def test_a_checkpoint_is_transferred_with_its_recorded_windows(
    random_checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    metrics = validate(
        tmp_path, f"--ckpt_path={random_checkpoint}", "--model.backbone.window_size=8", "--data.image_size=64"
    )
    task = new_task(window=8)
    task.load_state_dict(torch.load(random_checkpoint, weights_only=True)["state_dict"])
    task.backbone.set_pretrained_window(4)
    expected = by_hand(task, images, image_size=64)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)


# ---- fine-tuning


@pytest.mark.parametrize("format", ["official", "timm"])
def test_fine_tuning_starts_from_weights_of_any_format(
    format: Any, random_checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ClassificationTask.load_from_checkpoint(random_checkpoint)
    save_weights(task, tmp_path / "weights.pth", format=format)
    standstill = {"optimizer": {"init_args": {"lr": 1e-12}}, "schedule": {"warmup_lr": 0.0, "min_lr": 0.0}}
    run = fit(
        tmp_path,
        images,
        f"--model.weights={tmp_path / 'weights.pth'}",
        trainer={"max_epochs": 1},
        model={"init_args": standstill},
    )
    assert f"weights.pth ({format})" in capsys.readouterr().out
    logged = read_scores(run)
    expected = by_hand(task, images)
    assert {name: logged[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    written = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert written["swinv2_tasks"]["task"]["init_args"]["weights"] is None  # the checkpoint needs them no more


def test_fine_tuning_for_other_classes_keeps_the_backbone(
    random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "two", ("cat", "dog"))
    arguments = [f"--model.weights={random_checkpoint}", "--trainer.limit_train_batches=1"]
    run = fit(
        tmp_path,
        tmp_path / "two",
        *arguments,
        trainer={"max_epochs": 1},
        model={"init_args": {"optimizer": {"init_args": {"lr": 1e-12}}, "schedule": {"warmup_lr": 0.0, "min_lr": 0.0}}},
    )
    assert "randomly initialized, 2 classes: the checkpoint has 3" in capsys.readouterr().out
    before, after = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in (random_checkpoint, run / "checkpoints" / "last.ckpt")
    )
    for name in before:
        if name.startswith("backbone."):
            torch.testing.assert_close(after[name], before[name])
    assert after["head.fc.weight"].shape == (2, 16)


# ---- prediction


def test_predictions_are_a_table_of_classes_and_a_contact_sheet(trained: Path, images: Path, tmp_path: Path) -> None:
    predictions = predict(tmp_path, from_last(trained), f"--data.source={images / 'val'}")
    rows = read_table(predictions / "predictions.csv")
    assert len(rows) == 12
    assert list(rows[0]) == [
        "path",
        "id1",
        "name1",
        "score1",
        "id2",
        "name2",
        "score2",
        "id3",
        "name3",
        "score3",
        "error",
    ]
    for row in rows:
        assert row["id1"] == Path(row["path"]).parent.name
        assert [row[f"name{k}"] for k in (1, 2, 3)] == [NAMES[row[f"id{k}"]] for k in (1, 2, 3)]
        assert sum(float(row[f"score{k}"]) for k in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
        assert {row[f"id{k}"] for k in (1, 2, 3)} == set(COLORS)
    with Image.open(predictions / "contact_sheet.png") as figure:
        assert figure.size == (6 * 220, 2 * 310)


def test_predictions_are_those_of_the_task(random_checkpoint: Path, images: Path, tmp_path: Path) -> None:
    source = images / "val" / "*" / "*_1.jpg"
    predictions = predict(tmp_path, f"--ckpt_path={random_checkpoint}", f"--data.source={source}", *QUIETLY)
    rows = read_table(predictions / "predictions.csv")
    assert [Path(row["path"]).name for row in rows] == ["n01_1.jpg", "n02_1.jpg", "n03_1.jpg"]
    data = new_data(images, source=str(source))
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    with torch.no_grad():
        shares = ClassificationTask.load_from_checkpoint(random_checkpoint)(batch["image"]).softmax(1)
    for row, share in zip(rows, shares, strict=True):
        expected = sorted(zip(share.tolist(), COLORS, strict=True), reverse=True)
        assert [row[f"id{k}"] for k in (1, 2, 3)] == [class_id for _, class_id in expected]
        assert [float(row[f"score{k}"]) for k in (1, 2, 3)] == pytest.approx([s for s, _ in expected], abs=2e-6)


@pytest.mark.slow
def test_five_classes_are_shown_of_many(images: Path, tmp_path: Path) -> None:
    root = write_images(tmp_path / "seven", ())
    for k in range(7):
        shutil.copytree(images / "train" / "n01", root / "train" / f"c{k}")
        shutil.copytree(images / "val" / "n01", root / "val" / f"c{k}")
    run = fit(
        tmp_path, root, trainer={"max_epochs": 1, "limit_train_batches": 1}, data={"init_args": {"class_names": None}}
    )
    predictions = predict(tmp_path, from_last(run), f"--data.source={root / 'val' / 'c0'}")
    assert len(read_table(predictions / "predictions.csv")[0]) == 1 + 5 * 3 + 1


# ---- the record in the checkpoint


def test_a_checkpoints_record_is_plain(trained: Path) -> None:
    record = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["swinv2_tasks"]
    assert yaml.safe_load(yaml.safe_dump(record)) == record
    assert record["data"]["class"] == "ImageNetDataModule"
    assert record["data"]["init_args"]["image_size"] == 32
    assert record["windows"]["effective"] == [[4, 4], [4, 4]]
    assert record["name"] == "tiny"


# ---- rows of a head


def test_the_order_of_a_heads_rows_is_printed_where_folders_are_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As text they would be 1, 10, 2: a head that was trained so is as large and says something else."""
    root = write_images(tmp_path / "images", classes=("1", "2", "10"), train=4, val=2)
    source = tmp_path / "model.pth"
    save_weights(new_task(3), source, format="official", image_size=32)
    config = write_config(tmp_path / "tiny.yaml", root, data={"init_args": {"class_names": None}})
    arguments = [f"--config={config}", f"--runs={tmp_path / 'runs'}", f"--model.weights={source}"]
    assert main(["validate", *arguments]) == 0
    output = capsys.readouterr().out
    assert f"the rows of {source} are taken in this order of the classes: 1, 2, 10." in output
    assert "1, 10, 2; for such a head, state data.class_names in its order" in output


@pytest.mark.slow
def test_nothing_is_said_of_a_head_that_is_new_or_of_names(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "model.pth"
    numbered = write_images(tmp_path / "images", classes=("1", "2", "10"), train=4, val=2)
    for data, classes in ((numbered, 5), (images, 3)):  # a new head is trained: an evaluation would be of chance
        save_weights(new_task(classes), source, format="official", image_size=32)
        config = write_config(tmp_path / "tiny.yaml", data, data={"init_args": {"class_names": None}})
        arguments = [f"--config={config}", f"--runs={tmp_path / 'runs'}", f"--model.weights={source}"]
        assert main(["fit", *arguments, "--trainer.max_epochs=1"]) == 0
    assert "in this order" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_one_class_folder_ends_a_run_with_the_folders_below(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_images(tmp_path / "images")
    for split in ("train", "val"):
        (root / split).rename(root / "archive")
        (root / split).mkdir()
        (root / "archive").rename(root / split / "archive")
    config = write_config(tmp_path / "tiny.yaml", root, data={"init_args": {"class_names": None}})
    assert main([command, f"--config={config}", f"--runs={tmp_path / 'runs'}"]) == 1
    errors = capsys.readouterr().err
    assert "one class folder, archive" in errors and "data.train_dir=train/archive" in errors
    assert all(name in errors for name in COLORS)
    assert not [*(tmp_path / "runs").glob("*/*")]
