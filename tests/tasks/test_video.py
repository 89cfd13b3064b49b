"""Video classification from a dataset to files, by the command line and from Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules import KineticsDataModule
from swinv2_tasks.datamodules.kinetics import ViewCounts
from swinv2_tasks.tasks import VideoClassificationTask
from swinv2_tasks.weights import load_weights, save_weights
from tests.helpers.broken_files import cut_off
from tests.helpers.motions import DATA, LABELS, new_video_task, write_config, write_motions
from tests.helpers.processes import run_together
from tests.helpers.runs import evaluate, fit, from_last, last_checkpoint, predict, read_scores, read_table


@pytest.fixture(scope="module")
def motions(dataset: Callable[[str], Path]) -> Path:
    return dataset("video")


@pytest.fixture(scope="module")
def watcher(trained_run: Callable[[str], Path]) -> Path:
    """The folder of a run that learned the motions, which no single frame shows; not to be changed."""
    return trained_run("video")


@pytest.mark.slow
def test_scores_are_those_of_probabilities_averaged_by_hand(watcher: Path, motions: Path, tmp_path: Path) -> None:
    task = VideoClassificationTask.load_from_checkpoint(last_checkpoint(watcher)).eval()
    data = KineticsDataModule(str(motions), **{**DATA, "views": ViewCounts(test=(2, 3), per_sample=6)})
    data.setup("test")
    right, losses = [], []
    for batch in data.test_dataloader():
        with torch.no_grad():
            for clips, label in zip(batch["clip"], batch["label"].tolist(), strict=True):
                probabilities = task(clips).softmax(1).mean(0)
                right.append(float(probabilities.argmax() == label))
                losses.append(-float(probabilities[label].log()))
    scores = read_scores(evaluate(tmp_path, from_last(watcher), command="test"), "test")
    assert len(right) == 8
    assert scores["test/top1"] == pytest.approx(sum(right) / 8)
    assert scores["test/loss"] == pytest.approx(sum(losses) / 8, rel=1e-5)
    one_view_each = ["--data.views.per_sample=1", "--data.batch_size=4"]
    split = read_scores(evaluate(tmp_path, from_last(watcher), *one_view_each, command="test"), "test")
    assert split["test/loss"] == pytest.approx(scores["test/loss"], rel=1e-5)
    assert split["test/top1"] == scores["test/top1"]


@pytest.mark.slow
def test_predict_writes_tables_and_a_contact_sheet(watcher: Path, motions: Path, tmp_path: Path) -> None:
    output = predict(tmp_path, from_last(watcher), f"--data.source={motions / 'val'}")
    rows = read_table(output / "predictions.csv")
    predictions = json.loads((output / "predictions.json").read_text())
    assert len(rows) == len(predictions) == 8
    truth = {row["youtube_id"]: row["label"] for row in read_table(motions / "val.csv")}
    right = sum(row["name1"] == truth[Path(row["path"]).name[:11]] for row in rows)
    tested = read_scores(evaluate(tmp_path, from_last(watcher), command="test"), "test")
    assert right == round(8 * tested["test/top1"])
    for row, prediction in zip(rows, predictions, strict=True):
        assert prediction["path"] == row["path"]
        assert prediction["classes"][0]["name"] == row["name1"]
        assert {entry["id"] for entry in prediction["classes"]} == set(LABELS)
        assert sum(entry["score"] for entry in prediction["classes"]) == pytest.approx(1, abs=1e-5)
    assert min(Image.open(output / "contact_sheet.png").size) > 200


@pytest.mark.slow
def test_views_on_two_processes_score_as_on_one(watcher: Path, tmp_path: Path) -> None:
    """The six views of a clip are averaged, wherever they were evaluated."""
    arguments = ["validate", from_last(watcher), "--data.views.val=[2,3]", "--data.batch_size=3"]
    assert main([*arguments, "--name=one", f"--runs={tmp_path / 'runs'}"]) == 0
    for ended in run_together([*arguments, "--name=two"], tmp_path):
        assert ended.status == 0, ended.errors
    single, double = ((tmp_path / "runs" / name / "validate_0" / "metrics.csv").read_text() for name in ("one", "two"))
    assert single == double


def test_starts_from_image_weights(motions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = SwinTransformerV2(16, (2, 1), (1, 2), 4)
    save_weights(image, tmp_path / "image.safetensors", format="lightning", image_size=32)
    config = write_config(tmp_path / "motions.yaml", motions, trainer={"max_epochs": 1})
    folder = fit(config, tmp_path / "runs", f"--model.weights={tmp_path / 'image.safetensors'}")
    assert "inflated    4: " in capsys.readouterr().out
    again = new_video_task()
    assert load_weights(again, folder / "weights.safetensors").windows[0] == ((4, 4, 4), (4, 4, 4))


def test_files_that_are_no_videos_are_reported(
    watcher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = cut_off(min((write_motions(tmp_path / "few", 1, 1) / "val").iterdir()))
    assert main(["predict", from_last(watcher), f"--runs={tmp_path}", f"--data.source={broken}"]) == 1
    assert f"Cannot read the video {broken}" in capsys.readouterr().err
