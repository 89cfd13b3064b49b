"""What an evaluation writes of each image and video: each sample once, and scores that are scikit-learn's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from sklearn import metrics
from torch.utils.data import DataLoader

from swinv2_tasks.callbacks import EvaluatedImages, EvaluatedVideos
from swinv2_tasks.datamodules import KineticsDataModule
from swinv2_tasks.datamodules.kinetics import ViewCounts
from swinv2_tasks.datamodules.readers.kinetics import VideoFiles
from swinv2_tasks.evaluation.predictions import read_multi_label, read_single_label
from swinv2_tasks.tasks import ClassificationTask, VideoClassificationTask
from tests.helpers import motions, tiny
from tests.helpers.broken_files import cut_off
from tests.helpers.checkpoints import randomize, write_randomized
from tests.helpers.processes import run_together
from tests.helpers.runs import evaluate, from_last, read_scores
from tests.helpers.tagged import NAMES, tags, write_tagged
from tests.helpers.tagged_videos import write_tagged_videos

IDS = [*tiny.COLORS]


@pytest.fixture(scope="module")
def poor(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained run's checkpoint with random weights, which are wrong about many images."""
    return write_randomized(tmp_path_factory.mktemp("poor") / "poor.ckpt", trained, tiny.new_task())


def logits_of(checkpoint: Path, root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What the network predicts of the validation images, and their labels."""
    task = ClassificationTask.load_from_checkpoint(checkpoint).eval()
    data = tiny.new_data(root, class_names=str(root / "classes.csv"))
    data.setup("validate")
    batches = [*data.val_dataloader()]
    with torch.no_grad():
        return torch.cat([task(batch["image"]) for batch in batches]), torch.cat([batch["label"] for batch in batches])


def test_scores_are_scikit_learns_of_the_networks_own_predictions(
    poor: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = evaluate(tmp_path, f"--ckpt_path={poor}")
    output = capsys.readouterr().out
    assert "lowest F1 of 3 classes" in output and "red apple" in output and "top1" in output
    logits, labels = logits_of(poor, images)
    probabilities, predicted = logits.softmax(1), logits.argmax(1)
    content = json.loads((folder / "val_classes.json").read_text())
    assert content["top1"] == metrics.accuracy_score(labels, predicted) < 1
    assert content["top5"] == 1.0
    assert content["images"] == 12
    precision, recall, f1, number = metrics.precision_recall_fscore_support(
        labels, predicted, labels=[0, 1, 2], zero_division=np.nan
    )
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        expected = [None if np.isnan(value) else value for value in values]
        assert [row[name] for row in content["classes"]] == expected
        assert content[f"macro_{name}"] == np.nanmean(values)
    assert [(row["id"], row["name"], row["images"]) for row in content["classes"]] == [
        (class_id, tiny.NAMES[class_id], count) for class_id, count in zip(IDS, number, strict=True)
    ]
    assert read_scores(folder)["val/top1"] == pytest.approx(content["top1"])

    results = read_single_label(folder / "val_predictions.csv", IDS)
    files = [f"{name}/{name}_{k}.jpg" for name in IDS for k in range(4)]
    assert results.paths == [str(images / "val" / file) for file in files]
    np.testing.assert_array_equal(results.labels, labels)
    best = probabilities.sort(dim=1, descending=True)
    np.testing.assert_array_equal(results.classes, best.indices)
    np.testing.assert_allclose(results.scores, best.values, atol=1e-6)
    np.testing.assert_allclose(results.label_scores, probabilities[torch.arange(12), labels], atol=1e-6)
    assert results.losses.mean() == pytest.approx(read_scores(folder)["val/loss"], abs=1e-5)


def test_a_training_writes_them_at_each_validation_and_a_test_its_own(trained: Path, tmp_path: Path) -> None:
    assert json.loads((trained / "val_classes.json").read_text())["top1"] == read_scores(trained)["val/top1"]
    folder = evaluate(tmp_path, from_last(trained), command="test")
    written = {path.name for path in folder.iterdir()}
    assert {"test_classes.json", "test_predictions.csv"} <= written and "val_classes.json" not in written
    own = read_single_label(folder / "test_predictions.csv", IDS)
    assert own.paths == read_single_label(trained / "val_predictions.csv", IDS).paths


def test_two_processes_write_each_sample_once(poor: Path, images: Path, tmp_path: Path) -> None:
    """Of seven batches one process has four; the file is that of one process, byte for byte."""
    texts = []
    for processes in (1, 2):
        name = f"on_{processes}"
        arguments = ["validate", f"--ckpt_path={poor}", "--data.batch_size=2", f"--name={name}"]
        for done in run_together(arguments, tmp_path, processes):
            assert done.status == 0, done.errors
        folder = tmp_path / "runs" / name / "validate_0"
        texts.append([(folder / file).read_bytes() for file in ("val_predictions.csv", "val_classes.json")])
    assert texts[0] == texts[1]


def test_samples_that_were_left_out_are_not_listed(poor: Path, tmp_path: Path) -> None:
    root = tiny.write_images(tmp_path / "data")
    bad = cut_off(root / "val/n02/n02_1.jpg")
    folder = evaluate(tmp_path, f"--ckpt_path={poor}", f"--data.root={root}", "--data.faulty_samples=skip")
    results = read_single_label(folder / "val_predictions.csv", IDS)
    assert len(results.paths) == 11 and str(bad) not in results.paths


def test_of_real_labels_the_most_probable_one_counts(tmp_path: Path) -> None:
    """An image without any is not listed."""
    task = randomize(tiny.new_task())
    loader = DataLoader(
        [  # type: ignore[arg-type]
            {"image": torch.randn(3, 32, 32), "label": row, "path": f"{k}.jpg"}
            for k, row in enumerate(torch.tensor([[1.0, 1, 1], [0, 1, 1], [0, 0, 0], [1, 0, 0]]))
        ],
        2,
    )
    trainer = Trainer(default_root_dir=tmp_path, logger=False, callbacks=[EvaluatedImages(tmp_path)], **QUIET)
    (scores,) = trainer.validate(task, loader, verbose=False)
    results = read_single_label(tmp_path / "val_predictions.csv", range(3))
    assert results.paths == ["0.jpg", "1.jpg", "3.jpg"]
    assert results.is_right.mean() == pytest.approx(scores["val/real_top1"])
    assert json.loads((tmp_path / "val_classes.json").read_text())["top1"] == pytest.approx(scores["val/real_top1"])


QUIET: dict[str, Any] = {**tiny.QUIET, "enable_checkpointing": False}


def labeled_loader(multi_label: bool) -> DataLoader:
    labels = torch.eye(3)[[0, 1, 2, 0]] if multi_label else torch.tensor([0, 1, 2, 0])
    return DataLoader([{"image": torch.randn(3, 32, 32), "label": label} for label in labels], 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("multi_label", [False, True])
def test_images_without_files_are_scored_and_not_listed(multi_label: bool, tmp_path: Path) -> None:
    task = randomize(tiny.new_task(multi_label=multi_label))
    trainer = Trainer(default_root_dir=tmp_path, logger=False, callbacks=[EvaluatedImages(tmp_path)], **QUIET)
    loader = labeled_loader(multi_label)
    trainer.validate(task, [loader, loader], verbose=False)
    assert [path.name for path in tmp_path.iterdir()] == [] if multi_label else ["val_classes.json"]


def test_several_labels_an_image(tmp_path: Path) -> None:
    root = write_tagged(tmp_path / "data")
    data = tiny.new_data(root)
    task = randomize(tiny.new_task(multi_label=True))
    trainer = Trainer(default_root_dir=tmp_path, logger=False, callbacks=[EvaluatedImages(tmp_path)], **QUIET)
    (scores,) = trainer.validate(task, data, verbose=False)
    results = read_multi_label(tmp_path / "val_predictions.csv", list(NAMES))
    assert [Path(path).name for path in results.paths] == [f"val_{k}.png" for k in range(16)]
    named = [[list(NAMES)[index] for index in row] for row in results.labels]
    assert named == [sorted(tags(k), key=list(NAMES).index) for k in range(16)]
    assert results.probabilities is not None
    for row, classes, predicted in zip(results.probabilities, results.classes, results.scores, strict=True):
        assert sorted(classes) == np.flatnonzero(row >= 0.5).tolist()
        assert predicted == row[classes].tolist() == sorted(predicted, reverse=True)
    truth = np.array([[index in row for index in range(3)] for row in results.labels])
    micro = metrics.f1_score(truth, results.probabilities >= 0.5, average="micro")
    assert scores["val/micro_f1"] == pytest.approx(micro)
    assert results.losses.mean() == pytest.approx(scores["val/loss"], abs=1e-5)


def test_a_video_has_one_row_for_all_of_its_views(dataset: Callable[[str], Path], tmp_path: Path) -> None:
    """Six views, two at a time, in batches that hold parts of videos."""
    data = KineticsDataModule(str(dataset("video")), **{**motions.DATA, "views": VIEWS})
    task, scores = score_videos(motions.new_video_task(), data, tmp_path)
    results = read_single_label(tmp_path / "test_predictions.csv", motions.LABELS)
    assert len({*results.paths}) == len(results.paths) == 8
    assert all(Path(name).is_file() for name in results.paths)
    assert results.losses.mean() == pytest.approx(scores["test/loss"], abs=1e-6)
    assert results.is_right.mean() == scores["test/top1"]
    means = mean_probabilities(task, data)
    np.testing.assert_allclose(results.scores, -np.sort(-means, axis=1), atol=1e-6)
    assert json.loads((tmp_path / "test_classes.json").read_text())["videos"] == 8


def test_several_labels_a_video(tmp_path: Path) -> None:
    root = write_tagged_videos(tmp_path / "data")
    settings = {**motions.DATA, "views": VIEWS, "labels": "several", "files": VideoFiles()}
    data = KineticsDataModule(str(root), **settings)
    task, scores = score_videos(motions.new_video_task(3, multi_label=True), data, tmp_path)
    results = read_multi_label(tmp_path / "test_predictions.csv", list(NAMES))
    assert [Path(path).stem for path in results.paths] == [str(k) for k in range(16)]
    np.testing.assert_allclose(results.probabilities, mean_probabilities(task, data), atol=1e-6)
    assert results.losses.mean() == pytest.approx(scores["test/loss"], abs=1e-6)
    assert not (tmp_path / "test_classes.json").exists()  # which is the multi-label table's to write


VIEWS = ViewCounts(test=(2, 3), per_sample=2)


def score_videos(
    task: VideoClassificationTask, data: KineticsDataModule, folder: Path
) -> tuple[VideoClassificationTask, Mapping[str, float]]:
    """The task with random weights, and what a test of it logs."""
    randomize(task).eval()
    trainer = Trainer(default_root_dir=folder, logger=False, callbacks=[EvaluatedVideos(folder)], **QUIET)
    (scores,) = trainer.test(task, data, verbose=False)
    return task, scores


def mean_probabilities(task: VideoClassificationTask, data: Any) -> np.ndarray:
    """Of each video's views, computed one by one."""
    sums: dict[int, list[torch.Tensor]] = {}
    for batch in data.test_dataloader():
        for clips, number in zip(batch["clip"], batch["video_id"].tolist(), strict=True):
            with torch.no_grad():
                sums.setdefault(number, []).append(task.probabilities_of(task(clips)))
    return np.stack([torch.cat(views).double().mean(0).numpy() for _, views in sorted(sums.items())])


@pytest.mark.slow
def test_two_processes_write_each_video_once(trained_run: Callable[[str], Path], tmp_path: Path) -> None:
    """Six views of a video, of which each process has some."""
    arguments = ["test", from_last(trained_run("video")), "--data.views.per_sample=1", "--data.batch_size=2"]
    texts = []
    for processes in (1, 2):
        for done in run_together([*arguments, f"--name=on_{processes}"], tmp_path, processes):
            assert done.status == 0, done.errors
        folder = tmp_path / "runs" / f"on_{processes}" / "test_0"
        texts.append([(folder / file).read_bytes() for file in ("test_predictions.csv", "test_classes.json")])
    assert texts[0] == texts[1]
    assert len(texts[0][0].splitlines()) == 9
