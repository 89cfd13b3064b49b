"""Multi-label classification through the command line and from Python: train, evaluate, predict, resume."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multilabel_average_precision

from swinv2_tasks.cli.main import main
from swinv2_tasks.errors import UserError
from swinv2_tasks.tables import read_table
from swinv2_tasks.tasks import ClassificationTask
from swinv2_tasks.training import AsymmetricLoss, BinaryCrossEntropy
from tests.helpers import runs
from tests.helpers.checkpoints import randomize
from tests.helpers.runs import evaluate, from_last, last_checkpoint, predict, read_scores, user_error
from tests.helpers.tagged import NAMES, tags, write_tagged
from tests.helpers.tiny import QUIET, new_data, new_task, new_trainer, write_config, write_images

QUIETLY = [f"--trainer.{name}={value}" for name, value in QUIET.items()]


def config(folder: Path, root: Path, **changes: Any) -> Path:
    """A config of the command line, as one of one label an image: nothing in it says that there are several."""
    settings = {"checkpoint": {"monitor": "val/top1", "mode": "max"}, **changes}
    path = write_config(folder / "config.yaml", root, **settings)
    content = yaml.safe_load(path.read_text())
    del content["data"]["init_args"]["class_names"]
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tagged(tmp_path_factory.mktemp("tagged"))


@pytest.fixture(scope="module")
def trained(tagged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has learned the colors."""
    folder = tmp_path_factory.mktemp("runs")
    return runs.fit(config(folder, tagged, trainer={"max_epochs": 12}), folder)


# ---- the command line


@pytest.mark.slow
def test_a_training_needs_nothing_but_the_data(trained: Path) -> None:
    scores = read_scores(trained)
    assert set(scores) == {"val/map", "val/macro_f1", "val/micro_f1", "val/loss"}
    assert scores["val/map"] > 0.9
    assert yaml.safe_load((trained / "config.yaml").read_text())["checkpoint"]["monitor"] == "val/map"
    assert (trained / "checkpoints" / "best.ckpt").is_file()
    record = torch.load(last_checkpoint(trained), weights_only=True)["swinv2_tasks"]
    assert record["task"]["init_args"]["multi_label"] is True
    assert record["classes"]["ids"] == list(NAMES)


def test_scores_are_those_of_the_trained_network_and_have_a_table(
    trained: Path, tagged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = evaluate(tmp_path, from_last(trained), *QUIETLY)
    output = capsys.readouterr().out
    scores = read_scores(folder)
    task = ClassificationTask.load_from_checkpoint(last_checkpoint(trained))
    assert task.multi_label is True
    data = new_data(tagged)
    data.setup("validate")
    batches = [*data.val_dataloader()]
    logits = torch.cat([task(batch["image"]) for batch in batches]).detach()
    labels = torch.cat([batch["label"] for batch in batches])
    assert labels.shape == (16, 3) and labels.dtype == torch.float32
    assert labels.tolist() == [[float(name in tags(index)) for name in NAMES] for index in range(16)]
    reference = multilabel_average_precision(logits.double(), labels.int(), 3)
    assert scores["val/map"] == pytest.approx(float(reference), abs=1e-6)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert scores["val/loss"] == pytest.approx(float(loss), abs=1e-5)

    content = json.loads((folder / "val_classes.json").read_text())
    assert content["map"] == pytest.approx(scores["val/map"])
    assert [row["name"] for row in content["classes"]] == list(NAMES)
    assert [row["images"] for row in content["classes"]] == labels.sum(0).tolist()
    assert "precision" in output and "blue" in output


def test_test_scores_as_well(trained: Path, tmp_path: Path) -> None:
    folder = evaluate(tmp_path, from_last(trained), *QUIETLY, command="test")
    assert read_scores(folder, "test")["test/map"] > 0.9
    assert (folder / "test_classes.json").is_file()


def test_the_checkpoint_alone_predicts_each_class_above_the_threshold(
    trained: Path, tagged: Path, tmp_path: Path
) -> None:
    source = f"--data.source={tagged / 'images' / 'val_*.png'}"
    table = read_table(predict(tmp_path, from_last(trained), source, *QUIETLY) / "predictions.csv")
    assert list(table[0]) == ["path", "ids", "names", *(f"score {name}" for name in NAMES), "error"]
    task = ClassificationTask.load_from_checkpoint(last_checkpoint(trained))
    data = new_data(tagged)
    data.setup("validate")
    rows = {Path(row["path"]).name: row for row in table}
    assert len(rows) == 16
    for index in range(16):
        row = rows[f"val_{index}.png"]
        with torch.no_grad():
            probabilities = task(data.val_dataset[index]["image"][None]).sigmoid()[0].tolist()  # type: ignore[index]
        predicted = {name: p for name, p in zip(NAMES, probabilities, strict=True) if p >= 0.5}
        assert row["ids"] == row["names"] == "|".join(sorted(predicted, key=lambda name: -predicted[name]))
        cells = {name: float(row[f"score {name}"]) for name in NAMES if row[f"score {name}"]}
        assert cells == pytest.approx(predicted, abs=1e-5)
    assert len({row["names"] for row in table}) > 2

    everything = predict(tmp_path / "all", from_last(trained), source, *QUIETLY, "--model.threshold=0")
    assert all(row[f"score {name}"] for row in read_table(everything / "predictions.csv") for name in NAMES)


def test_a_resumed_training_is_bitwise_that_of_an_undisturbed_one(tagged: Path, tmp_path: Path) -> None:
    """With mixed labels and the asymmetric loss, whose settings the checkpoint keeps."""
    loss = {"class_path": "swinv2_tasks.training.AsymmetricLoss", "init_args": {"gamma_neg": 2.0}}
    changes: dict[str, Any] = {
        "model": {"init_args": {"multi_label_loss": loss}},
        "data": {"init_args": {"augmentation": {"init_args": {"mixup": 0.8, "cutmix": 1.0}}}},
    }
    path = config(tmp_path, tagged, trainer={"max_epochs": 2}, **changes)
    whole = runs.fit(path, tmp_path / "whole")
    part = runs.fit(path, tmp_path / "part", "--trainer.max_steps=5")
    assert main(["fit", f"--resume={part}", "--trainer.max_steps=-1"]) == 0
    states = [torch.load(last_checkpoint(run), weights_only=True)["state_dict"] for run in (whole, part)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    task = ClassificationTask.load_from_checkpoint(last_checkpoint(whole))
    assert isinstance(task.multi_label_loss, AsymmetricLoss)
    assert task.multi_label_loss.init_args["gamma_neg"] == 2


@pytest.mark.slow
def test_averaged_weights_are_scored_and_saved(tagged: Path, tmp_path: Path) -> None:
    run = runs.fit(config(tmp_path, tagged), tmp_path / "runs", "--config=overlays/ema.yaml")
    assert read_scores(evaluate(tmp_path, from_last(run), *QUIETLY)).keys() >= {"val/map"}


def test_columns_of_classes_train_too_and_label_smoothing_is_said_to_have_no_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_tagged(tmp_path / "data", train=12, val=6)
    for split, number in (("train", 12), ("val", 6)):
        with (root / f"{split}.csv").open("w", newline="") as file:
            rows = [[f"{split}_{k}", *(int(name in tags(k)) for name in NAMES)] for k in range(number)]
            csv.writer(file).writerows([["image_id", *NAMES], *rows])
    smoothing = {"init_args": {"label_smoothing": 0.1}}
    run = runs.fit(config(tmp_path, root, trainer={"max_epochs": 1}, model=smoothing), tmp_path / "runs")
    assert read_scores(run).keys() >= {"val/map"}
    output = capsys.readouterr().out
    assert "model.label_smoothing 0.1 is for one label" in output
    assert "checkpoint.monitor is val/map" in output


@pytest.mark.slow
def test_tables_of_one_label_train_as_folders_do(tmp_path: Path) -> None:
    """The same images and order give the same network."""
    root = write_images(tmp_path / "images")
    for split, number in (("train", 6), ("val", 4)):
        lines = [f"{split}/{name}/{name}_{k}.jpg,{name}" for name in ("n01", "n02", "n03") for k in range(number)]
        (root / f"{split}.csv").write_text("\n".join(["file,label", *lines]))
    states = []
    for layout in ("folders", "csv"):
        path = config(tmp_path, root, trainer={"max_epochs": 1}, data={"init_args": {"layout": layout}})
        run = runs.fit(path, tmp_path / layout)
        states.append(torch.load(last_checkpoint(run), weights_only=True)["state_dict"])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


# ---- what does not fit together


@pytest.mark.slow
def test_a_model_of_one_label_stops_at_data_of_several(
    tagged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_images(tmp_path / "images")
    run = runs.fit(config(tmp_path, root, trainer={"max_epochs": 1}), tmp_path / "runs")
    quietly = [f"--runs={tmp_path / 'runs'}", *QUIETLY]
    message = user_error(
        capsys, "validate", from_last(run), f"--data.root={tagged}", f"--data.class_names={list(NAMES)}", *quietly
    )
    assert "the data have several labels" in message and "one label a sample" in message
    path = config(tmp_path, tagged)
    message = user_error(capsys, "validate", f"--config={path}", from_last(run), *quietly)
    assert "several labels" in message or "classes" in message


@pytest.mark.slow
def test_a_softmax_checkpoint_of_the_same_classes_stops_as_well(
    tagged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_images(tmp_path / "images", classes=NAMES)
    run = runs.fit(config(tmp_path, root, trainer={"max_epochs": 1}), tmp_path / "runs")
    for arguments in ([f"--data.root={tagged}"], [f"--config={config(tmp_path, tagged)}"]):
        message = user_error(capsys, "validate", from_last(run), *arguments, f"--runs={tmp_path / 'runs'}", *QUIETLY)
        assert "several labels a sample (multi-label)" in message and "one label a sample" in message


# ---- from Python


def multi_hot_loader(indices: bool = False) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0]) if indices else torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 1]])
    images = torch.randn(4, 3, 32, 32, generator=generator)
    return DataLoader([{"image": image, "label": label} for image, label in zip(images, labels, strict=True)], 2)  # type: ignore[arg-type]


def test_any_loader_of_multi_hot_labels_trains(tmp_path: Path) -> None:
    task = new_task(multi_label=True, multi_label_loss=BinaryCrossEntropy([1.0, 2.0, 3.0]))
    trainer = new_trainer(tmp_path)
    trainer.fit(task, multi_hot_loader(), multi_hot_loader())
    assert {"val/map", "val/micro_f1", "train/loss"} <= trainer.callback_metrics.keys()
    assert "val/top1" not in trainer.callback_metrics
    (scores,) = trainer.validate(task, multi_hot_loader(), verbose=False)
    assert 0 < scores["val/map"] <= 1
    outputs = trainer.predict(task, multi_hot_loader())
    assert outputs is not None and outputs[0]["probabilities"].shape == (2, 3)  # type: ignore[index, call-overload]


def test_labels_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="multi_label true"):
        new_trainer(tmp_path).fit(new_task(), multi_hot_loader())
    with pytest.raises(UserError, match="multi_label false"):
        new_trainer(tmp_path).fit(new_task(multi_label=True), multi_hot_loader(indices=True))


def test_several_loaders_are_scored_apart(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path)
    first, second = trainer.validate(
        randomize(new_task(multi_label=True)), [multi_hot_loader(), multi_hot_loader()], verbose=False
    )
    assert first["val/map"] == second["val/map/dataloader_idx_1"]


def test_mixing_makes_shares_of_the_labels(tagged: Path) -> None:
    from swinv2_tasks.datamodules import ImageNetAugmentation

    still = {"rand_augment_ops": 0, "random_erasing": 0.0, "color_jitter": 0.0}
    for mixup, cutmix in ((0.8, 0.0), (0.0, 1.0)):
        data = new_data(tagged, augmentation=ImageNetAugmentation(mixup=mixup, cutmix=cutmix, **still))  # type: ignore[arg-type]
        data.setup("fit")
        labels = torch.cat([batch["label"] for batch in data.train_dataloader()])
        assert labels.shape == (24, 3) and ((labels >= 0) & (labels <= 1)).all()
        assert ((labels > 0) & (labels < 1)).any()
        positives = sum(len(tags(index)) for index in range(24))
        assert labels.sum().item() == pytest.approx(positives, rel=1e-4)  # each image is mixed once in and once out


@pytest.mark.parametrize("arguments", [{"threshold": 1.5}, {"multi_label_loss": BinaryCrossEntropy([1.0, 2.0])}])
def test_settings_that_do_not_fit_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"threshold|2 numbers for 3 classes"):
        new_task(multi_label=True, **arguments)


def test_the_loss_is_the_mean_over_images_and_classes() -> None:
    task = randomize(new_task(multi_label=True, multi_label_loss=AsymmetricLoss(0, 0, 0)))
    (batch, _) = multi_hot_loader()
    loss = task.compute_losses(batch)["loss"].item()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(task(batch["image"]), batch["label"])
    assert math.isclose(loss, expected.item(), rel_tol=1e-5)
