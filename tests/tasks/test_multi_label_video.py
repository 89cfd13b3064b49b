"""Videos of several labels through the command line: train, evaluate over views, predict, resume, check, memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from swinv2_tasks.cli.main import main
from swinv2_tasks.commands.memory.planned_training import read_training
from swinv2_tasks.datamodules import KineticsDataModule
from swinv2_tasks.datamodules.kinetics import ViewCounts
from swinv2_tasks.datamodules.readers.kinetics import VideoFiles
from swinv2_tasks.errors import UserError
from swinv2_tasks.tables import read_table
from swinv2_tasks.tasks import VideoClassificationTask
from swinv2_tasks.training import AsymmetricLoss
from tests.helpers import motions, runs
from tests.helpers.runs import evaluate, from_last, last_checkpoint, predict, read_scores, user_error
from tests.helpers.tagged import NAMES, tags
from tests.helpers.tagged_videos import write_tagged_videos
from tests.helpers.tiny import QUIET

QUIETLY = [f"--trainer.{name}={value}" for name, value in QUIET.items()]

DATA = {key: value for key, value in motions.DATA.items() if key != "files"}


def config(folder: Path, root: Path, **changes: Any) -> Path:
    """A config that says nothing of several labels but that videos without any are no mistake."""
    settings: dict[str, Any] = {"checkpoint": {"monitor": "val/top1", "mode": "max"}}
    data = {"init_args": {"labels": "several", "files": {"train_list": None, "val_list": None}}}
    path = motions.write_config(folder / "config.yaml", root, **settings, data=data)
    path.write_text(yaml.safe_dump(motions.merge(yaml.safe_load(path.read_text()), changes)))
    return path


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tagged_videos(tmp_path_factory.mktemp("tagged"))


@pytest.fixture(scope="module")
def trained(tagged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has learned the colors."""
    folder = tmp_path_factory.mktemp("runs")
    return runs.fit(config(folder, tagged, trainer={"max_epochs": 8}), folder)


def new_data(root: Path, **arguments: Any) -> KineticsDataModule:
    return KineticsDataModule(str(root), **{**DATA, "labels": "several", **arguments})


@pytest.mark.slow
def test_a_training_learns_which_classes_hold(trained: Path) -> None:
    scores = read_scores(trained)
    assert set(scores) == {"val/map", "val/macro_f1", "val/micro_f1", "val/loss"}
    assert scores["val/map"] > 0.9
    assert yaml.safe_load((trained / "config.yaml").read_text())["checkpoint"]["monitor"] == "val/map"
    record = torch.load(last_checkpoint(trained), weights_only=True)["swinv2_tasks"]
    assert record["task"]["init_args"]["multi_label"] is True
    assert record["classes"]["ids"] == list(NAMES)
    assert (trained / "first_batch.png").is_file()


@pytest.mark.slow
def test_scores_are_those_of_probabilities_averaged_by_hand(
    trained: Path, tagged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over six views of each video, read at once or one by one."""
    folder = evaluate(tmp_path / "whole", from_last(trained), *QUIETLY, command="test")
    assert "precision" in capsys.readouterr().out
    one_by_one = ["--data.views.per_sample=1", "--data.batch_size=4"]
    split = evaluate(tmp_path / "split", from_last(trained), *one_by_one, *QUIETLY, command="test")
    scores = read_scores(folder, "test")
    assert read_scores(split, "test") == pytest.approx(scores, abs=1e-6)

    task = VideoClassificationTask.load_from_checkpoint(last_checkpoint(trained)).eval()
    data = new_data(tagged, views=ViewCounts(test=(2, 3), per_sample=6))
    data.setup("test")
    means, labels = [], []
    for batch in data.test_dataloader():
        assert batch["label"].dtype == torch.float32
        labels += batch["label"].int().tolist()
        with torch.no_grad():
            means += [task(clips).sigmoid().mean(0) for clips in batch["clip"]]
    assert labels == [[int(name in tags(index)) for name in NAMES] for index in range(16)]
    from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

    probabilities, truth = torch.stack(means).double(), torch.tensor(labels)
    assert scores["test/map"] == pytest.approx(multilabel_average_precision(probabilities, truth, 3).item(), abs=1e-5)
    expected = multilabel_f1_score(probabilities, truth, 3, average="micro")
    assert scores["test/micro_f1"] == pytest.approx(expected.item(), abs=1e-5)
    content = json.loads((folder / "test_classes.json").read_text())
    assert [row["videos"] for row in content["classes"]] == truth.sum(0).tolist()


def test_the_checkpoint_alone_predicts_each_class_above_the_threshold(
    trained: Path, tagged: Path, tmp_path: Path
) -> None:
    source = f"--data.source={tagged / 'val'}"
    output = predict(tmp_path, from_last(trained), source, *QUIETLY)
    table = read_table(output / "predictions.csv")
    assert list(table[0]) == ["path", "ids", "names", *(f"score {name}" for name in NAMES), "error"]
    entries = json.loads((output / "predictions.json").read_text())
    right, wrong = 0, 0
    for row, entry in zip(table, entries, strict=True):
        predicted = [name for name in row["names"].split("|") if name]
        truth = tags(int(Path(row["path"]).stem))
        right += len({*predicted} & {*truth})
        wrong += len({*predicted} ^ {*truth})
        assert [entry_class["name"] for entry_class in entry["classes"]] == predicted
        for entry_class in entry["classes"]:
            assert entry_class["score"] == pytest.approx(float(row[f"score {entry_class['name']}"]), abs=1e-5) and (
                entry_class["score"] >= 0.5
            )
    scores = read_scores(evaluate(tmp_path, from_last(trained), *QUIETLY, command="test"), "test")
    assert scores["test/micro_f1"] == pytest.approx(2 * right / (2 * right + wrong))
    assert (output / "contact_sheet.png").is_file()
    everything = predict(tmp_path / "all", from_last(trained), source, *QUIETLY, "--model.threshold=0")
    assert all(row[f"score {name}"] for row in read_table(everything / "predictions.csv") for name in NAMES)


def test_a_resumed_training_is_bitwise_that_of_an_undisturbed_one(tagged: Path, tmp_path: Path) -> None:
    """With the asymmetric loss, whose settings the checkpoint keeps, and a rate that no planned end changes."""
    loss = {"class_path": "swinv2_tasks.training.AsymmetricLoss", "init_args": {"gamma_neg": 2.0}}
    changes: dict[str, Any] = {"model": {"init_args": {"multi_label_loss": loss, "schedule": {"min_lr": 0.005}}}}
    path = config(tmp_path, tagged, trainer={"max_epochs": 2}, **changes)
    whole = runs.fit(path, tmp_path / "whole")
    part = runs.fit(path, tmp_path / "part", "--trainer.max_steps=5")
    assert main(["fit", f"--resume={part}", "--trainer.max_steps=-1"]) == 0
    states = [torch.load(last_checkpoint(run), weights_only=True)["state_dict"] for run in (whole, part)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    task = VideoClassificationTask.load_from_checkpoint(last_checkpoint(whole))
    assert isinstance(task.multi_label_loss, AsymmetricLoss) and task.multi_label_loss.init_args["gamma_neg"] == 2


def test_the_other_kind_of_labels_is_refused(
    trained: Path, tagged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = {split: tmp_path / f"{split}.txt" for split in ("train", "val")}
    for split, path in lists.items():
        path.write_text("".join(f"{tagged / split / f'{k}.mp4'} {NAMES[k % 3]}\n" for k in range(6)))
    with pytest.raises(UserError, match="outside of the dataset"):
        new_data(tmp_path).videos("train")
    message = user_error(
        capsys, "validate", from_last(trained), "--data.labels=one", f"--runs={tmp_path / 'runs'}", *QUIETLY
    )
    assert "no label" in message or "one label a sample" in message


@pytest.mark.slow
def test_the_check_writes_lists_that_are_read_back(tmp_path: Path) -> None:
    root = write_tagged_videos(tmp_path / "data", train=5, val=2)
    assert main(["data", "check", "kinetics", str(root), "--data.labels=several", "--workers=1"]) == 0
    for split, number in (("train", 5), ("val", 2)):
        lines = (root / f"{split}_clean.txt").read_text().splitlines()
        assert lines == ["\t".join(filter(None, [f"{split}/{k}.mp4", "|".join(tags(k))])) for k in range(number)]
    again = new_data(root, files=VideoFiles(train_list="train_clean.txt"))
    assert again.videos("train") == new_data(root).videos("train")


def test_memory_is_estimated_with_the_labels_of_the_task(tagged: Path, tmp_path: Path) -> None:
    path = config(tmp_path, tagged, data={"init_args": {"labels": None}}, model={"init_args": {"multi_label": True}})
    batch = read_training([f"--config={path}"], num_classes=3).example_batch(2)
    assert batch["label"].shape == (2, 3) and batch["label"].is_floating_point()
    path = config(tmp_path, tagged)
    batch = read_training([f"--config={path}"]).example_batch(2)
    assert batch["label"].shape == (2, 3)
