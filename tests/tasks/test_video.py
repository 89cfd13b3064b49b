"""Video classification from a dataset to files, by the command line and from Python."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules import KineticsDataModule
from swinv2_tasks.errors import UserError
from swinv2_tasks.tasks import VideoClassificationTask
from swinv2_tasks.weights import load_weights, save_weights
from tests.helpers.films import cut_off
from tests.helpers.motions import DATA, LABELS, new_video_task, write_config, write_motions
from tests.helpers.processes import run, send_at
from tests.helpers.resuming import differences
from tests.helpers.tiny import new_task, new_trainer


@pytest.fixture(scope="module")
def motions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_motions(tmp_path_factory.mktemp("motions"))


@pytest.fixture(scope="module")
def watcher(motions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that learned the motions; not to be changed."""
    trainer = {"max_epochs": 25, "check_val_every_n_epoch": 5}
    return fit(tmp_path_factory.mktemp("watcher"), motions, trainer=trainer)


def fit(folder: Path, root: Path, *arguments: str, **changes: Any) -> Path:
    config = write_config(folder / "motions.yaml", root, **changes)
    assert main(["fit", f"--config={config}", f"--runs={folder / 'runs'}", *arguments]) == 0
    return folder / "runs" / "motions" / "0"


def metrics(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def evaluate(command: str, checkpoint: Path, folder: Path, *arguments: str) -> dict[str, float]:
    assert main([command, f"--ckpt_path={checkpoint}", f"--runs={folder}", "--name=again", *arguments]) == 0
    newest = max((folder / "again").iterdir(), key=lambda path: int(path.name))
    (row,) = metrics(newest)
    return row


def last(run_folder: Path) -> Path:
    return run_folder / "checkpoints" / "last.ckpt"


def test_fit_learns_what_single_frames_do_not_show(watcher: Path) -> None:
    rows = metrics(watcher)
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert sum(losses[-4:]) < sum(losses[:4]) / 2
    assert [row["val/top1"] for row in rows if "val/top1" in row][-1] >= 0.9


def test_scores_are_those_of_probabilities_averaged_by_hand(watcher: Path, motions: Path, tmp_path: Path) -> None:
    task = VideoClassificationTask.load_from_checkpoint(last(watcher)).eval()
    data = KineticsDataModule(str(motions), **{**DATA, "views_per_sample": 6})
    data.setup("test")
    right, losses = [], []
    for batch in data.test_dataloader():
        with torch.no_grad():
            for clips, label in zip(batch["clip"], batch["label"].tolist(), strict=True):
                probabilities = task(clips).softmax(1).mean(0)
                right.append(float(probabilities.argmax() == label))
                losses.append(-float(probabilities[label].log()))
    found = evaluate("test", last(watcher), tmp_path)
    assert len(right) == 8
    assert found["test/top1"] == pytest.approx(sum(right) / 8)
    assert found["test/loss"] == pytest.approx(sum(losses) / 8, rel=1e-5)
    split = evaluate("test", last(watcher), tmp_path, "--data.views_per_sample=1", "--data.batch_size=4")
    assert split["test/loss"] == pytest.approx(found["test/loss"], rel=1e-5)
    assert split["test/top1"] == found["test/top1"]


def test_validate_needs_only_a_checkpoint(watcher: Path, tmp_path: Path) -> None:
    found = evaluate("validate", last(watcher), tmp_path)
    assert found["val/loss"] == pytest.approx(metrics(watcher)[-1]["val/loss"], rel=1e-5)


def test_predict_writes_tables_and_a_picture(watcher: Path, motions: Path, tmp_path: Path) -> None:
    source = ["predict", f"--ckpt_path={last(watcher)}", f"--data.source={motions / 'val'}"]
    assert main([*source, f"--output={tmp_path / 'out'}", f"--runs={tmp_path}"]) == 0
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    answers = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(rows) == len(answers) == 8
    with (motions / "val.csv").open(newline="") as file:
        truth = {row["youtube_id"]: row["label"] for row in csv.DictReader(file)}
    right = sum(row["name1"] == truth[Path(row["path"]).name[:11]] for row in rows)
    assert right == round(8 * evaluate("test", last(watcher), tmp_path)["test/top1"])
    for row, answer in zip(rows, answers, strict=True):
        assert answer["path"] == row["path"]
        assert answer["classes"][0]["name"] == row["name1"] and set(LABELS) == {one["id"] for one in answer["classes"]}
        assert sum(one["score"] for one in answer["classes"]) == pytest.approx(1, abs=1e-5)
    assert min(Image.open(tmp_path / "out" / "contact_sheet.png").size) > 200


@pytest.mark.parametrize(
    "views",
    [pytest.param("[1,1]", id="one view"), pytest.param("[2,3]", id="six views", marks=pytest.mark.slow)],
)
def test_scores_of_two_processes_are_those_of_one(views: str, watcher: Path, motions: Path, tmp_path: Path) -> None:
    found = []
    for processes in (1, 2):
        arguments = [f"--ckpt_path={last(watcher)}", f"--name={processes}", f"--data.val_views={views}"]
        done = run(["validate", *arguments, "--data.batch_size=3"], tmp_path, processes)
        assert done.status == 0, done.errors
        found.append((tmp_path / "runs" / str(processes) / "0" / "metrics.csv").read_text())
    assert found[0] == found[1]


@pytest.mark.slow
def test_predictions_of_two_processes_are_one_file(watcher: Path, motions: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        arguments = [f"--ckpt_path={last(watcher)}", f"--data.source={motions / 'val'}", f"--output={processes}"]
        assert run(["predict", *arguments], tmp_path, processes).status == 0
    for name in ("predictions.csv", "predictions.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.slow
def test_a_training_killed_in_an_epoch_ends_as_an_undisturbed_one(motions: Path, tmp_path: Path) -> None:
    settings = {"callbacks": [{"class_path": "tests.helpers.faults.SendSignal"}], "max_epochs": 3}
    data = {"init_args": {"num_workers": 1, "sampling": "segments"}}
    write_config(tmp_path / "motions.yaml", motions, trainer=settings, data=data)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    arguments = ["fit", f"--config={tmp_path / 'motions.yaml'}", "--save.every_n_steps=1"]
    for folder in (straight, killed):
        folder.mkdir()
    assert run(arguments, straight).status == 0
    assert run(arguments, killed, **send_at(6)).status == -9
    assert run(["fit", "--resume", "runs/motions/0"], killed).status == 0
    one, two = (torch.load(last(folder / "runs/motions/0"), weights_only=True) for folder in (straight, killed))
    assert differences(one["state_dict"], two["state_dict"]) == []
    assert differences(one["optimizer_states"], two["optimizer_states"]) == []


def test_starts_from_image_weights(motions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = SwinTransformerV2(16, (2, 1), (1, 2), 4)
    save_weights(image, tmp_path / "image.safetensors", format="lightning", image_size=32)
    folder = fit(tmp_path, motions, f"--model.weights={tmp_path / 'image.safetensors'}", "--trainer.max_epochs=1")
    assert "inflated    4: " in capsys.readouterr().out
    again = new_video_task()
    assert load_weights(again, folder / "weights.safetensors").windows[0] == ((4, 4, 4), (4, 4, 4))


def test_from_python(motions: Path, tmp_path: Path) -> None:
    task = new_video_task()
    assert task(torch.randn(2, 3, 8, 32, 32)).shape == (2, 2)
    data = KineticsDataModule(str(motions), **DATA)
    new_trainer(tmp_path, limit_train_batches=1, limit_val_batches=1).fit(task, data)
    assert task.class_names == sorted(LABELS)


def test_mistakes(watcher: Path, motions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = new_task().backbone
    with pytest.raises(UserError, match=r"on clips, this backbone on images.*patch_size"):
        VideoClassificationTask(backbone, 2)
    broken = cut_off(min((write_motions(tmp_path / "few", 1, 1) / "val").iterdir()))
    predict = ["predict", f"--ckpt_path={last(watcher)}", f"--runs={tmp_path}"]
    assert main([*predict, f"--data.source={broken}"]) == 1
    assert f"Cannot read the video {broken}" in capsys.readouterr().err
    assert main([*predict, "--data.source=nowhere"]) == 1
    assert "nowhere does not exist" in capsys.readouterr().err
    assert main(["validate", f"--ckpt_path={last(watcher)}", f"--runs={tmp_path}", f"--data.root={tmp_path}"]) == 1
    assert "train.csv" in capsys.readouterr().err
