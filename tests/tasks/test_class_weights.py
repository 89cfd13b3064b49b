"""`model.class_weights` and losses of classes: what they come to by the data, what trains with them, what resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from swinv2_tasks.batches import ClassCounts
from swinv2_tasks.cli.main import main
from swinv2_tasks.errors import UserError
from swinv2_tasks.heads import CascadeMaskRCNNConfig, FocalLoss, HTCConfig
from swinv2_tasks.tasks import ClassificationTask
from swinv2_tasks.training.class_weights import resolve
from tests.helpers import motions, objects, scenes, tiny
from tests.helpers.every_task import DETECTOR, new_batch, new_detection_task
from tests.helpers.runs import evaluate, fit, from_last, last_checkpoint, predict, user_error
from tests.helpers.tagged import write_tagged

COUNTS = ClassCounts([60, 30, 0, 10], "images")
NAMES = ["cat", "dog", "owl", "lynx"]


def test_balanced_weights_are_inverse_frequencies_with_a_mean_of_one_over_the_samples() -> None:
    weights = resolve("balanced", NAMES, NAMES, COUNTS)
    assert weights[0] * 60 == pytest.approx(weights[1] * 30) == pytest.approx(weights[3] * 10)
    assert sum(w * n for w, n in zip(weights, COUNTS.numbers, strict=True)) == pytest.approx(100)
    assert weights[2] == 1  # without a sample
    of_classes = resolve("balanced", NAMES, NAMES, COUNTS, every_class_counts=True)
    assert sum(of_classes[k] for k in (0, 1, 3)) == pytest.approx(3)


def test_effective_numbers_are_the_papers() -> None:
    weights = resolve("effective_number", NAMES, NAMES, COUNTS)
    numbers = {k: sum(0.999**j for j in range(COUNTS.numbers[k])) for k in (0, 1, 3)}
    assert weights[0] * numbers[0] == pytest.approx(weights[1] * numbers[1]) == pytest.approx(weights[3] * numbers[3])
    assert sum(w * n for w, n in zip(weights, COUNTS.numbers, strict=True)) == pytest.approx(100)


def test_stated_weights_are_by_name_or_id() -> None:
    assert resolve({"lynx": 4.0, "7": 0.5}, [7, 8, 9, 10], NAMES, None) == [0.5, 1, 1, 4]
    assert resolve([1.0, 2.0, 3.0, 4.0], NAMES, NAMES, None) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("setting", "counts", "parts"),
    [
        ({"linx": 2.0}, COUNTS, ["model.class_weights names linx", "Did you mean lynx?", "cat, dog"]),
        ("balanced", None, ["nothing says how often", "shards", "a mapping"]),
    ],
)
def test_what_means_no_weights_is_refused(setting: Any, counts: Any, parts: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        resolve(setting, NAMES, NAMES, counts)
    assert all(part in str(refusal.value) for part in parts)


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ([1.0, 2.0], "2 values for 3 classes"),
        ([1.0, -1.0, 1.0], "at least 0"),
        ([0.0, 0.0, 0.0], "some above it"),
        ({}, "empty"),
        ({"n01": -1.0}, "at least 0"),
    ],
)
def test_numbers_that_weigh_nothing_are_refused(setting: Any, part: str) -> None:
    with pytest.raises(UserError, match=part):
        tiny.new_task(class_weights=setting)


# ---- tasks


def test_a_training_loop_of_ones_own_states_the_weights() -> None:
    task = tiny.new_task(class_weights="balanced", label_smoothing=0.0)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 1, 2])
    with pytest.raises(UserError, match="set_class_weights"):
        task.compute_losses({"image": images, "label": labels})
    task.set_class_weights([1.0, 2.0, 4.0])
    task.eval()
    expected = F.cross_entropy(task(images), labels, torch.tensor([1.0, 2.0, 4.0]))
    torch.testing.assert_close(task.compute_losses({"image": images, "label": labels})["loss"], expected)


@pytest.mark.parametrize("detector", [CascadeMaskRCNNConfig(**DETECTOR, anchor_scale=1), HTCConfig(**DETECTOR)])
def test_every_box_branch_learns_by_the_loss_and_its_weights(detector: Any) -> None:
    """With weights of 0 for all objects, only the background has a loss of classes."""
    task = new_detection_task(detector)
    batch = new_batch("cascade")
    values = []
    for setting in (None, [1.0, 1.0, 1.0], [3.0, 3.0, 3.0]):
        torch.manual_seed(0)
        task.set_class_weights(setting)
        torch.manual_seed(1)
        values.append([value for name, value in task.compute_losses(batch).items() if name.startswith("class")])
    assert len(values[0]) == 3
    torch.testing.assert_close(values[0], values[1])
    assert all(more > less for more, less in zip(values[2], values[0], strict=True))
    task.head.class_loss = FocalLoss(2.0)
    torch.manual_seed(1)
    focal = [value for name, value in task.compute_losses(batch).items() if name.startswith("class")]
    assert all(0 < less < more for less, more in zip(focal, values[0], strict=True))


# ---- runs


def write_uneven(root: Path) -> Path:
    """Ten images of two classes each and two of the third, which is `blue sea`."""
    tiny.write_images(root, train=10)
    for path in sorted((root / "train" / "n03").iterdir())[2:]:
        path.unlink()
    return root


@pytest.mark.slow
def test_a_classifier_with_weights_is_resumed_bitwise_and_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With mixed labels, label smoothing, the focal loss, and weights by the numbers of images."""
    root = write_uneven(tmp_path / "data")
    loss = {"class_path": "swinv2_tasks.heads.FocalLoss", "init_args": {"gamma": 1.5}}
    changes: dict[str, Any] = {
        "model": {"init_args": {"class_weights": "balanced", "loss": loss, "label_smoothing": 0.1}},
        "data": {"init_args": {"augmentation": {"init_args": {"mixup": 0.8}}}},
    }
    path = tiny.write_config(tmp_path / "config.yaml", root, trainer={"max_epochs": 2}, **changes)
    whole = fit(path, tmp_path / "whole", "--config=overlays/ema.yaml")
    said = "model.class_weights balanced: from 0.7333 (red apple, 10 images) to 3.667 (blue sea, 2 images)"
    assert said in capsys.readouterr().out
    part = fit(path, tmp_path / "part", "--config=overlays/ema.yaml", "--trainer.max_steps=2")
    capsys.readouterr()
    assert main(["fit", f"--resume={part}", "--trainer.max_steps=-1"]) == 0
    assert "other settings" not in capsys.readouterr().out
    first, second = (torch.load(last_checkpoint(run), weights_only=True) for run in (whole, part))
    assert first["state_dict"].keys() == second["state_dict"].keys()
    assert all(torch.equal(value, second["state_dict"][name]) for name, value in first["state_dict"].items())

    record = first["swinv2_tasks"]
    assert record["task"]["init_args"]["class_weights"] == "balanced"
    assert record["task"]["init_args"]["loss"] == {"class": "FocalLoss", "init_args": {"gamma": 1.5}}
    assert record["training"]["class_weights"] == pytest.approx([22 / 30, 22 / 30, 22 / 6])
    task = ClassificationTask.load_from_checkpoint(last_checkpoint(whole))
    assert task.class_weight_numbers == record["training"]["class_weights"]
    assert isinstance(task.loss, FocalLoss) and task.loss.gamma == 1.5

    evaluate(tmp_path / "runs", from_last(whole))
    table = predict(tmp_path, from_last(whole), f"--data.source={root / 'val' / 'n01'}") / "predictions.csv"
    assert len(table.read_text().splitlines()) == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detection", "segmentation", "video", "several labels"])
def test_other_tasks_train_with_weights_by_the_data(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights: dict[str, Any] = {"class_weights": "balanced"}
    if name == "detection":
        root, write, unit = objects.write_objects(tmp_path / "data"), objects.write_config, "objects"
        weights["class_loss"] = {"class_path": "swinv2_tasks.heads.FocalLoss"}
    elif name == "segmentation":
        root, write, unit = scenes.write_scenes(tmp_path / "data"), scenes.write_config, "pixels"
    elif name == "video":
        root, write, unit = motions.write_motions(tmp_path / "data"), motions.write_config, "videos"
    else:
        root, write, unit = write_tagged(tmp_path / "data"), tiny.write_config, "images"
        weights["multi_label_loss"] = {"class_path": "swinv2_tasks.training.BinaryFocalLoss"}
    changes: dict[str, Any] = {"trainer": {"max_epochs": 1}, "model": {"init_args": weights}}
    if name == "several labels":
        changes["data"] = {"init_args": {"class_names": None}}
    run = fit(write(tmp_path / "config.yaml", root, **changes), tmp_path / "runs")
    output = capsys.readouterr().out
    (line,) = [line for line in output.splitlines() if line.startswith("model.class_weights balanced: from")]
    assert f" {unit})" in line and line.endswith("; the background has 1") == (name == "detection")
    record = torch.load(last_checkpoint(run), weights_only=True)["swinv2_tasks"]
    assert len(record["training"]["class_weights"]) == len(record["classes"]["ids"])
    evaluate(tmp_path / "again", from_last(run))


@pytest.mark.slow
def test_changed_settings_of_a_resumed_training_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_uneven(tmp_path / "data")
    path = tiny.write_config(tmp_path / "config.yaml", root, trainer={"max_epochs": 1})
    run = fit(path, tmp_path / "runs")

    def resumed(*settings: str) -> str:
        capsys.readouterr()
        epochs = torch.load(last_checkpoint(run), weights_only=True)["epoch"] + 2
        assert main(["fit", f"--resume={run}", f"--trainer.max_epochs={epochs}", *settings]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resuming with other")]
        assert len(lines) <= 1
        return "".join(lines)

    assert resumed() == ""
    assert "data.sampling balanced (was uniform)" in resumed("--data.sampling=balanced")
    said = resumed("--data.augmentation.repeats=2", "--model.loss=FocalLoss", "--model.class_weights=balanced")
    assert "data.augmentation.repeats 2 (was 1)" in said
    assert "model.loss FocalLoss (was CrossEntropy)" in said
    assert "model.class_weights balanced (was null)" in said
    assert "They hold from here on" in said

    # The same setting, of labels that have changed.
    moved = root / "train" / "n01" / "n01_0.jpg"
    moved.rename(root / "train" / "n03" / "moved.jpg")
    said = resumed()
    assert "other class weights" in said and "training data, which have changed" in said


def test_a_wrong_class_stops_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.write_config(tmp_path / "config.yaml", tiny.write_images(tmp_path / "data"))
    message = user_error(
        capsys, "fit", f"--config={path}", f"--runs={tmp_path}", '--model.class_weights={"blue see": 3}'
    )
    assert "model.class_weights names blue see, which is no class. Did you mean blue sea?" in message
