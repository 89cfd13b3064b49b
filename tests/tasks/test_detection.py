"""Detection from a dataset to files, by the command line and from Python."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_masks
from torch.utils.data import DataLoader

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules import CocoDataModule, MultiScaleAugmentation
from swinv2_tasks.datamodules.coco import CocoFiles
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.coco import as_results
from swinv2_tasks.heads import CascadeMaskRCNNConfig, HTCConfig, MaskRCNNConfig
from swinv2_tasks.inference.detection import DetectionInference
from swinv2_tasks.tasks import DetectionTask
from swinv2_tasks.training.optim import StepSchedule
from swinv2_tasks.weights import load_weights, save_weights
from tests.helpers import runs
from tests.helpers.checkpoints import randomize
from tests.helpers.evaluated_objects import evaluate as cocos_evaluation
from tests.helpers.objects import (
    BACKBONE,
    CATEGORIES,
    DATA,
    DETECTOR,
    change,
    new_detector,
    write_config,
    write_objects,
)
from tests.helpers.processes import run
from tests.helpers.runs import evaluate, from_last, last_checkpoint, read_column, read_metrics, read_scores, read_table
from tests.helpers.tiny import new_trainer


@pytest.fixture(scope="module")
def objects(dataset: Callable[[str], Path]) -> Path:
    return dataset("mask_rcnn")


@pytest.fixture(scope="module")
def finder(trained_run: Callable[[str], Path]) -> Path:
    """The folder of a run that learned the objects; not to be changed."""
    return trained_run("mask_rcnn")


def fit(folder: Path, root: Path, *arguments: str, **changes: Any) -> Path:
    return runs.fit(write_config(folder / "objects.yaml", root, **changes), folder / "runs", *arguments)


def validate(
    run_folder: Path, folder: Path, *arguments: str, command: str = "validate"
) -> tuple[Path, dict[str, float]]:
    """The folder of an evaluation of a run's last checkpoint, and what it logs."""
    evaluation = evaluate(folder, from_last(run_folder), *arguments, command=command)
    return evaluation, read_scores(evaluation, "test" if command == "test" else "val")


def predict(run_folder: Path, source: Path, folder: Path, *arguments: str) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the predictions by a run's last checkpoint, and the detections."""
    output = runs.predict(folder, from_last(run_folder), f"--data.source={source}", *arguments)
    return output, json.loads((output / "detections.json").read_text())


# ---- training and evaluation


def test_losses_and_scores_are_logged_with_their_parts(finder: Path) -> None:
    names = {name for row in read_metrics(finder) for name in row}
    assert {f"train/{part}_loss" for part in ("rpn_class", "rpn_box", "class", "box", "mask")} <= names
    table = json.loads((finder / "val_classes.json").read_text())
    assert [(row["id"], row["name"]) for row in table["classes"]] == list(CATEGORIES.items())
    assert table["box"]["ap50"] == pytest.approx(read_scores(finder)["val/box_ap50"], abs=1e-6)


def test_validate_prints_the_scores_of_each_class_and_writes_detections_that_score_the_same(
    finder: Path, objects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, metrics = validate(finder, tmp_path)
    output = capsys.readouterr().out
    assert all(name in output for name in CATEGORIES.values()) and f"{metrics['val/box_ap50']:.4f}" in output
    # What it wrote scores the same, by COCO's own rules for files.
    files = [f"--annotations={objects / 'annotations' / 'instances_val2017.json'}"]
    files += [f"--predictions={folder / 'val_detections.json'}", f"--json={tmp_path / 'scores.json'}"]
    assert main(["score", "coco", *files, "--iou-type", "bbox", "segm"]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    for iou_type in ("box", "mask"):
        assert {f"val/{iou_type}_{name}": value for name, value in scores[iou_type].items()} == {
            name: pytest.approx(value, abs=1e-6)
            for name, value in metrics.items()
            if name.startswith(f"val/{iou_type}_")
        }


def test_a_training_writes_what_cocos_tools_compute_its_scores_from(finder: Path) -> None:
    classes, curves = (json.loads((finder / f"val_{name}.json").read_text()) for name in ("classes", "curves"))
    truth, results = (json.loads((finder / f"val_{name}.json").read_text()) for name in ("truth", "detections"))
    folder = Path(truth["info"]["image_folder"])
    assert [(folder / image["file_name"]).is_file() for image in truth["images"]] == [True] * 5
    for iou_type, name in (("bbox", "box"), ("segm", "mask")):
        evaluation = cocos_evaluation(truth, results, iou_type)
        assert [*classes[name].values()] == evaluation.stats.tolist()
        assert curves[name]["ap"]["all"][0] == classes[name]["ap50"]
        rows = [row for row in classes["classes"] if row[f"{name}_ap"] is not None]
        assert [row["id"] for row in curves[name]["classes"]] == [row["id"] for row in rows]


@pytest.mark.slow
def test_images_with_more_objects_than_detections_that_count_are_noted(
    finder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, name in (("validate", "val"), ("test", "test")):
        folder, metrics = validate(finder, tmp_path, "--model.inference.max_detections=1", command=command)
        assert f"{name}/box_ar100" in metrics
        note = json.loads((folder / f"{name}_classes.json").read_text())["note"]
        assert "3 of 5 images have more objects (up to 2) than the 1 detections that count" in note
        assert "--model.inference.max_detections 2" in note
        assert note in capsys.readouterr().err
    folder, metrics = validate(finder, tmp_path, "--model.inference.max_detections=150")
    assert "val/box_ar150" in metrics and "val/box_ar100" not in metrics
    assert "note" not in json.loads((folder / "val_classes.json").read_text())
    assert "detections that count" not in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_polygon_far_outside_of_its_image_is_refused(
    split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_objects(tmp_path / "objects")
    number = 0

    def spoil(content: Any) -> None:
        nonlocal number
        number = content["annotations"][-1]["id"]
        content["annotations"][-1]["segmentation"] = [[0, 0, 1e9, 0, 1e9, 1e9]]

    change(data, split, spoil)
    config = write_config(tmp_path / "objects.yaml", data)
    assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}"]) == 1
    errors = capsys.readouterr().err
    assert f"a polygon of annotation {number} has the coordinate 1e+09, far outside" in errors
    assert "Traceback" not in errors and not [*(tmp_path / "runs").glob("*/*")]


@pytest.mark.slow
def test_the_fast_backend_gives_the_same_numbers(finder: Path, tmp_path: Path) -> None:
    _, slow = validate(finder, tmp_path)
    _, fast = validate(finder, tmp_path, "--model.backend=faster_coco_eval")
    assert fast == {name: pytest.approx(value, abs=1e-6) for name, value in slow.items()}


@pytest.mark.slow
def test_test_writes_a_submission_where_annotations_are_not_public(finder: Path, objects: Path, tmp_path: Path) -> None:
    _, metrics = validate(finder, tmp_path, command="test")
    _, expected = validate(finder, tmp_path)
    assert metrics["test/box_ap"] == expected["val/box_ap"]
    content = json.loads((objects / "annotations" / "instances_val2017.json").read_text())
    del content["annotations"]
    (tmp_path / "image_info.json").write_text(json.dumps(content))
    (objects / "annotations" / "image_info.json").write_text(json.dumps(content))
    files = ["--data.files.test_images=val2017", "--data.files.test_annotations=annotations/image_info.json"]
    command = ["test", from_last(finder), f"--runs={tmp_path}", "--name=server", *files]
    assert main(command) == 0
    results = json.loads((tmp_path / "server" / "test_0" / "test_detections.json").read_text())
    assert {entry["category_id"] for entry in results} <= set(CATEGORIES) and results
    assert all(entry.keys() == {"image_id", "category_id", "bbox", "score", "segmentation"} for entry in results)


DETECTORS: dict[str, dict[str, Any]] = {
    "mask_rcnn": {"class_path": "swinv2_tasks.heads.MaskRCNNConfig", "init_args": DETECTOR},
    "boxes": {"class_path": "swinv2_tasks.heads.MaskRCNNConfig", "init_args": {**DETECTOR, "masks": False}},
    "cascade": {"class_path": "swinv2_tasks.heads.CascadeMaskRCNNConfig", "init_args": DETECTOR},
    "htc": {"class_path": "swinv2_tasks.heads.HTCConfig", "init_args": DETECTOR},
    "htc_stuff": {"class_path": "swinv2_tasks.heads.HTCConfig", "init_args": {**DETECTOR, "stuff_classes": 2}},
}


@pytest.mark.parametrize(
    "name",
    [name if name == "boxes" else pytest.param(name, marks=pytest.mark.slow) for name in DETECTORS],
)
def test_each_detector_trains_evaluates_and_predicts(name: str, objects: Path, tmp_path: Path) -> None:
    data = {"files": {"train_stuff": "stuff"}}
    model = {"detector": DETECTORS[name], "inference": {"nms": "soft_gaussian", "score_threshold": 0.01}}
    folder = fit(tmp_path, objects, model={"init_args": model}, data={"init_args": data})
    losses = read_column(folder, "train/loss")
    assert len(losses) == 4 and losses[-1] < losses[0]
    # The detector's settings are the data's.
    used = torch.load(last_checkpoint(folder), weights_only=True)["swinv2_tasks"]["data"]["init_args"]
    assert (used["masks"], used["stuff_classes"]) == (name != "boxes", 2 * (name == "htc_stuff"))
    stated = yaml.safe_load((folder / "config.yaml").read_text())["data"]["init_args"]
    assert not stated.keys() & {"masks", "stuff_classes"}
    _, metrics = validate(folder, tmp_path)
    assert ("val/mask_ap" in metrics) == (name != "boxes")
    output, results = predict(folder, objects / "val2017", tmp_path)
    assert results and all(("segmentation" in entry) == (name != "boxes") for entry in results)
    assert len([*(output / "visualizations").iterdir()]) == 5
    task = DetectionTask.load_from_checkpoint(last_checkpoint(folder))
    assert type(task.head).__name__ == {"m": "MaskRCNN", "b": "MaskRCNN", "c": "CascadeMaskRCNN", "h": "HTC"}[name[0]]
    assert task.class_ids == list(CATEGORIES)


def test_a_dataset_of_boxes_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_objects(tmp_path / "plain", masks=False)
    config = write_config(tmp_path / "objects.yaml", data)
    assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}", "--trainer.max_epochs=1"]) == 0
    folder = runs.newest_run(tmp_path / "runs")
    assert "the data have no masks: the detector learns boxes alone" in capsys.readouterr().out
    names = {name for row in read_metrics(folder) for name in row}
    assert "val/box_ap" in names and not any("mask" in name for name in names)

    # The run says so: it is evaluated and resumed as what it is, on data with masks as well.
    detector = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["detector"]
    assert detector["init_args"]["masks"] is False
    assert not DetectionTask.load_from_checkpoint(last_checkpoint(folder)).head.has_masks
    with_masks = write_objects(tmp_path / "other")
    scores = read_scores(evaluate(tmp_path / "runs", from_last(folder), f"--data.root={with_masks}"))
    assert "val/box_ap" in scores and "val/mask_ap" not in scores
    assert main(["fit", f"--resume={folder}", "--trainer.max_epochs=2"]) == 0


@pytest.mark.slow
def test_bfloat16_trains(objects: Path, tmp_path: Path) -> None:
    folder = fit(tmp_path, objects, "--trainer.precision=bf16-mixed", "--trainer.max_epochs=2")
    losses = read_column(folder, "train/loss")
    assert losses[-1] < losses[0]


# ---- from Python


def test_plain_inference_gives_torchvisions_dicts(objects: Path) -> None:
    torch.manual_seed(0)
    task = new_detector(inference=DetectionInference(score_threshold=0.01))
    randomize(task)
    task.train()
    images = [torch.randn(3, 40, 64), torch.randn(3, 72, 50)]
    detections = task(images)
    assert task.training  # as it was
    for image, detected in zip(images, detections, strict=True):
        number = len(detected["boxes"])
        assert 0 < number <= 100
        height, width = image.shape[1:]
        assert detected["boxes"].shape == (number, 4) and detected["labels"].dtype == torch.int64
        assert detected["masks"].shape == (number, 1, height, width)
        assert 0 <= detected["masks"].min() <= detected["masks"].max() <= 1
        assert (detected["scores"].diff() <= 0).all() and detected["labels"].max() < 3
        assert (detected["boxes"] >= 0).all() and (detected["boxes"] <= torch.tensor([width, height] * 2)).all()
        assert not detected["boxes"].requires_grad
    alone = task(torch.stack([images[0]]))
    torch.testing.assert_close(alone[0]["boxes"], task([images[0]])[0]["boxes"])


@pytest.mark.parametrize(
    ("detector", "data", "message"),
    [
        ({"masks": False}, {}, r"the data has masks, .* CocoDataModule\(masks=False\)"),
        ({}, {"masks": False}, r"data.masks=false leaves them out: .* MaskRCNNConfig\(masks=False\)"),
        (
            {},
            {"files": CocoFiles(train_stuff="stuff"), "stuff_classes": 2},
            "has stuff_classes=0, the data has maps of 2",
        ),
        (
            {"stuff_classes": 3},
            {"files": CocoFiles(train_stuff="stuff"), "stuff_classes": 2},
            "has stuff_classes=3, the data has .* 2",
        ),
        ({"stuff_classes": 2}, {}, "has stuff_classes=2, the data has maps of 0"),
    ],
    ids=str,
)
def test_a_detector_that_does_not_match_the_data_is_refused(
    detector: dict[str, Any], data: dict[str, Any], message: str, objects: Path, tmp_path: Path
) -> None:
    """Without the command line, which takes the data's settings from the detector."""
    task = new_detector(HTCConfig(**DETECTOR, **detector))
    with pytest.raises(UserError, match=message):
        new_trainer(tmp_path).fit(task, CocoDataModule(str(objects), **DATA, **data))


def loader_of(batches: list[Any]) -> DataLoader:
    return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]


def test_evaluation_batches_need_not_state_the_ids_of_images(objects: Path, tmp_path: Path) -> None:
    """Those of the targets do; where there are none, images are counted from 1."""
    torch.manual_seed(0)
    task = new_detector(inference=DetectionInference(score_threshold=0.01))
    data = CocoDataModule(str(objects), **DATA)
    data.setup("validate")
    batches: list[Any] = [*data.val_dataloader()]
    ids = [batch["image_ids"][0] for batch in batches]
    without = [{name: value for name, value in batch.items() if name != "image_ids"} for batch in batches]
    bare = [{name: batch[name] for name in ("images", "paths", "sizes")} for batch in batches]
    trainer = new_trainer(tmp_path)
    expected = trainer.validate(task, loader_of(batches))
    assert {entry["image_id"] for entry in task.val_scores.results} <= set(ids) and expected[0]
    assert trainer.validate(task, loader_of(without)) == expected
    assert {entry["image_id"] for entry in task.val_scores.results} <= set(ids)
    trainer.test(task, loader_of(bare))
    assert {entry["image_id"] for entry in task.test_scores.results} == {1, 2, 3, 4, 5}


def test_detections_are_due_at_the_files_size() -> None:
    torch.manual_seed(0)
    task = new_detector(inference=DetectionInference(score_threshold=0.01)).eval()
    image = torch.randn(3, 40, 60)
    (plain,), (large,) = task.detect([image]), task.detect([image], [(80, 180)])
    torch.testing.assert_close(large.boxes, plain.boxes.double() * torch.tensor([3.0, 2.0, 3.0, 2.0]))
    results = as_results(large, 4, (80, 180), [3, 5, 90])
    assert all(entry["segmentation"]["size"] == [80, 180] for entry in results)


def test_weights_of_other_windows_start_a_detector(tmp_path: Path) -> None:
    """The position bias of a backbone of window 4 moves to a detector's window 6."""
    torch.manual_seed(0)
    source = SwinTransformerV2(**BACKBONE)
    randomize(source)
    save_weights(source, tmp_path / "weights.safetensors", format="official")
    backbone = SwinTransformerV2(**{**BACKBONE, "window_size": 6})
    task = DetectionTask(backbone, MaskRCNNConfig(**DETECTOR), 3, weights=str(tmp_path / "weights.safetensors"))
    direct = SwinTransformerV2(**{**BACKBONE, "window_size": 6})
    load_weights(direct, tmp_path / "weights.safetensors")
    x = torch.randn(1, 3, 48, 48)
    for own, direct_map in zip(task.backbone.eval()(x), direct.eval()(x), strict=True):
        torch.testing.assert_close(own, direct_map)


# ---- prediction


def test_predict_writes_results_visualizations_and_a_table(finder: Path, objects: Path, tmp_path: Path) -> None:
    output, results = predict(finder, objects / "val2017", tmp_path)
    rows = read_table(output / "predictions.csv")
    assert [Path(row["path"]).name for row in rows] == [f"val_{k}.jpg" for k in range(5)]
    assert [row["image_id"] for row in rows] == ["1", "2", "3", "4", "5"]
    for row in rows:
        with Image.open(row["path"]) as image, Image.open(output / row["visualization"]) as figure:
            assert min(figure.size) >= 400 and figure.width % image.width == 0
            detections = [detection for detection in results if detection["image_id"] == int(row["image_id"])]
            for detection in detections:
                x, y, width, height = detection["bbox"]
                assert 0 <= x <= x + width <= image.width + 1e-3 and 0 <= y <= y + height <= image.height + 1e-3
                assert detection["segmentation"]["size"] == [image.height, image.width]
            for name in CATEGORIES.values():
                visible = [o for o in detections if CATEGORIES[o["category_id"]] == name and o["score"] >= 0.3]
                cell = row["objects of score 0.3 or more"]
                assert (f"{len(visible)} {name}" in cell) == bool(visible)
    # A disc that was found covers green pixels.
    discs = [detection for detection in results if detection["category_id"] == 5]
    best = max(discs, key=lambda detection: detection["score"])
    pixels = np.asarray(Image.open(objects / "val2017" / f"val_{best['image_id'] - 1}.jpg"))
    inside = pixels[coco_masks.decode(best["segmentation"]).astype(bool)].mean(0)
    assert inside[1] > inside[0] + 40 and inside[1] > inside[2] + 40


def test_images_named_by_numbers_keep_them_as_ids(finder: Path, objects: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for k, number in enumerate((139, 285, 7)):
        (tmp_path / "images" / f"{number:012d}.jpg").write_bytes((objects / "val2017" / f"val_{k}.jpg").read_bytes())
    _, results = predict(finder, tmp_path / "images", tmp_path)
    image_ids = {entry["image_id"] for entry in results}
    assert image_ids <= {7, 139, 285} and len(image_ids) > 1


# ---- several processes


@pytest.mark.slow
def test_training_on_two_processes_with_batch_norm(objects: Path, tmp_path: Path) -> None:
    """Statistics are of all processes' regions: both hold the same running means in the end."""
    model = {"init_args": {"detector": DETECTORS["cascade"]}}
    write_config(tmp_path / "objects.yaml", objects, model=model)
    done = run(["fit", "--config=objects.yaml", "--data.batch_size=2"], tmp_path, processes=2)
    assert done.status == 0, done.errors
    trained = tmp_path / "runs" / "objects" / "0"
    _, metrics = validate(trained, tmp_path)
    assert metrics == read_scores(trained) and "val/box_ap" in metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask_rcnn", "cascade", "htc_stuff"])
def test_weights_in_bfloat16_are_trained(name: str, objects: Path, tmp_path: Path) -> None:
    """RoIAlign takes features and boxes of one type only."""
    stuff = {"data": {"init_args": {"files": {"train_stuff": "stuff"}}}} if name == "htc_stuff" else {}
    model = {"init_args": {"detector": DETECTORS[name]}}
    short = ["--trainer.precision=bf16-true", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    folder = fit(tmp_path, objects, *short, model=model, **stuff)
    assert all(math.isfinite(loss) for loss in read_column(folder, "train/loss"))


# ---- real images


@pytest.mark.slow
@pytest.mark.parametrize("detector", [CascadeMaskRCNNConfig, HTCConfig])
def test_a_handful_of_real_images_can_be_overfitted(detector: Any, real_data: Path, tmp_path: Path) -> None:
    """Five of coco-mini with few objects each; box AP50 of 0.9 and mask AP50 of 0.8 on the very images trained on."""
    root = tmp_path / "handful"
    content = json.loads((real_data / "coco-mini" / "annotations" / "instances_train2017.json").read_text())
    counts = {image["id"]: 0 for image in content["images"]}
    for entry in content["annotations"]:
        counts[entry["image_id"]] += 1 + 100 * entry["iscrowd"]
    chosen = [key for key, number in counts.items() if 2 <= number <= 6][:5]
    content["images"] = [image for image in content["images"] if image["id"] in chosen]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in chosen]
    category_ids = {entry["category_id"] for entry in content["annotations"]}
    content["categories"] = [entry for entry in content["categories"] if entry["id"] in category_ids]
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    data = CocoDataModule(
        str(root),
        files=CocoFiles(val_images="train2017"),
        batch_size=5,
        num_workers=0,
        resize=(256, 192),
        augmentation=MultiScaleAugmentation(min_size=(192, 192), max_size=256, horizontal_flip=0.0),
    )
    (root / "train2017").symlink_to(real_data / "coco-mini" / "train2017")
    torch.manual_seed(0)
    backbone = SwinTransformerV2(embed_dim=32, depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16), window_size=8)
    settings = {"channels": 64, "representation_size": 256, "post_nms_top_n": 100, "batch_size_per_image": 64}
    task = DetectionTask(
        backbone,
        detector(**settings),
        data.num_classes,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0),
        schedule=StepSchedule(base_batch_size=0, warmup_steps=20, milestones=(160,)),
    )
    trainer = new_trainer(tmp_path, max_epochs=200, check_val_every_n_epoch=200, gradient_clip_val=5.0)
    trainer.fit(task, data)
    scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert scores["val/box_ap50"] >= 0.9 and scores["val/mask_ap50"] >= 0.8, scores


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.inference.nms=softly"], ["nms"]),
        (["--model.inference.score_threshold=2"], ["score_threshold", "between 0 and 1"]),
        (["--model.backend=coco"], ["backend"]),
        (["--model.detector.init_args.channels=0"], ["detector.channels", "above 0"]),
        (["--model.detector=Nothing"], ["detector"]),
        (["--model.schedule.milestones=[-1]"], ["schedule.milestones", "negative"]),
        (["--data.augmentation.min_size=[9,5]"], ["data.augmentation.min_size"]),
        (
            ["--model.detector=HTCConfig", "--model.detector.init_args.stuff_classes=2"],
            ["data.files.train_stuff", "stuff_classes=2"],
        ),
    ],
)
def test_mistakes_in_settings_are_reported(
    arguments: list[str], words: list[str], objects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "objects.yaml", objects)
    assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}", *arguments]) in (1, 2)
    errors = capsys.readouterr().err
    assert all(word in errors for word in words), errors
    assert "Traceback" not in errors
    assert not [*(tmp_path / "runs").glob("*/*")]


def test_a_checkpoint_that_names_another_class_of_detector_is_refused(finder: Path, tmp_path: Path) -> None:
    contents = torch.load(last_checkpoint(finder), weights_only=True)
    for harm in (
        {"class": "os.system", "init_args": {}},
        {"class": "MaskRCNNConfig", "init_args": {"command": "x"}},
        "MaskRCNNConfig",
    ):
        contents["swinv2_tasks"]["task"]["init_args"]["detector"] = harm
        torch.save(contents, tmp_path / "evil.ckpt")
        with pytest.raises(UserError, match="was not written by this package"):
            DetectionTask.load_from_checkpoint(tmp_path / "evil.ckpt")
