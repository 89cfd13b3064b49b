"""Samples of validations in TensorBoard: the images of all tasks, with what the model predicts of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from swinv2_tasks.callbacks.logged_samples import predict_first
from swinv2_tasks.cli.main import main
from swinv2_tasks.tasks import ClassificationTask, SegmentationTask
from tests.helpers.runs import fit, last_checkpoint, user_error
from tests.helpers.tiny_tasks import ON_ONE_DETECTOR, TINY_TASKS


def logged_images(run: Path) -> list[Image.Image]:
    events = EventAccumulator(str(run))
    events.Reload()
    if "val/samples" not in events.Tags()["images"]:
        return []
    return [Image.open(io.BytesIO(event.encoded_image_string)) for event in events.Images("val/samples")]


@pytest.mark.parametrize("name", ON_ONE_DETECTOR)
def test_each_validation_of_a_training_is_in_tensorboard(name: str, trained_run: Callable[[str], Path]) -> None:
    run, trainer = trained_run(name), TINY_TASKS[name].trainer
    images = logged_images(run)
    assert len(images) >= 1
    assert all(min(image.size) >= 32 and len(image.convert("L").getcolors() or []) > 10 for image in images)
    assert len(images) <= trainer["max_epochs"]


def test_none_are_logged_where_none_are_wanted(images: Path, tmp_path: Path) -> None:
    config = TINY_TASKS["classification"].config(tmp_path, images, trainer={"max_epochs": 1})
    assert logged_images(fit(config, tmp_path / "runs", "--log_samples=0")) == []


def test_what_is_predicted_stands_in_the_labels_place(trained_run: Callable[[str], Path], images: Path) -> None:
    task = ClassificationTask.load_from_checkpoint(last_checkpoint(trained_run("classification"))).eval()
    data = TINY_TASKS["classification"].new_data(images)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    annotated, predicted = predict_first(task, batch, 3)
    assert torch.equal(annotated["label"], batch["label"][:3]) and torch.equal(annotated["image"], batch["image"][:3])
    with torch.no_grad():
        assert torch.equal(predicted["label"], task(batch["image"][:3]).softmax(1))


def test_label_maps_are_predicted_at_their_own_size(
    trained_run: Callable[[str], Path], dataset: Callable[[str], Path]
) -> None:
    task = SegmentationTask.load_from_checkpoint(last_checkpoint(trained_run("segmentation"))).eval()
    data = TINY_TASKS["segmentation"].new_data(dataset("segmentation"))
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    annotated, predicted = predict_first(task, batch, 2)
    assert predicted["mask"].shape == annotated["mask"].shape
    own = task.segment(batch["image"][:1], batch["mask"].shape[1:])
    assert torch.equal(predicted["mask"][0], own)


# ---- other loggers


def test_loggers_that_are_not_there_are_refused_before_the_run(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TINY_TASKS["classification"].config(tmp_path, images)
    command = ["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}"]
    assert "there are wandb, mlflow, trackio, comet" in user_error(capsys, *command, "--log", "nothing")
    assert "pip install comet-ml" in user_error(capsys, *command, "--log=comet")
    assert not (tmp_path / "runs").exists()


def test_wandb_logs_beside_the_runs_own(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = TINY_TASKS["classification"].config(tmp_path, images, trainer={"max_epochs": 1})
    run = fit(config, tmp_path / "runs", "--log", "wandb")
    assert (run / "metrics.csv").is_file() and logged_images(run)
    (offline,) = run.glob("wandb/offline-run-*")
    assert [*offline.rglob("val/samples*.png")]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"


def test_mlflow_logs_beside_the_runs_own(images: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    config = TINY_TASKS["classification"].config(tmp_path, images, trainer={"max_epochs": 1})
    assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}", "--log=mlflow"]) == 0
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (experiment,) = (own for own in client.search_experiments() if own.name == "tiny")
    (run,) = client.search_runs([experiment.experiment_id])
    assert {"train/loss", "val/top1", "lr"} <= {*run.data.metrics} and run.info.status == "FINISHED"
    assert [*(tmp_path / "runs" / "mlflow_images").rglob("*.png")]
