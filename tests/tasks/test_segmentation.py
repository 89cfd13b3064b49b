"""Segmentation from a dataset to files, by the command line and from Python."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor, nn

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.callbacks import SegmentationPredictions
from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules import ADE20KDataModule
from swinv2_tasks.datamodules.datasets.segmentation import LabeledScenes, Resize
from swinv2_tasks.datamodules.readers.label_values import LabelSettings, possible_codings
from swinv2_tasks.datamodules.transforms.classification import IMAGENET_MEAN, IMAGENET_STD
from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.segmentation import Confusion
from swinv2_tasks.heads import Decoder, UPerNet
from swinv2_tasks.inference.segmentation import Inference
from swinv2_tasks.tasks import ClassificationTask, SegmentationTask
from swinv2_tasks.weights import load_weights, save_weights
from tests.helpers import runs
from tests.helpers.checkpoints import randomize
from tests.helpers.processes import run
from tests.helpers.runs import (
    from_last,
    last_checkpoint,
    predict,
    read_column,
    read_scores,
    read_table,
    user_error,
    validate,
)
from tests.helpers.scenes import DATA, NAMES, new_segmenter, write_config, write_scenes
from tests.helpers.tiny import new_trainer


@pytest.fixture(scope="module")
def scenes(dataset: Callable[[str], Path]) -> Path:
    return dataset("segmentation")


@pytest.fixture(scope="module")
def segmenter(trained_run: Callable[[str], Path]) -> Path:
    """The folder of a run that learned the scenes; not to be changed."""
    return trained_run("segmentation")


def fit(folder: Path, data: Path, /, *arguments: str, **changes: Any) -> Path:
    return runs.fit(write_config(folder / "scenes.yaml", data, **changes), folder / "runs", *arguments)


# ---- training


def test_losses_and_scores_are_logged_with_their_parts(segmenter: Path) -> None:
    assert len(read_column(segmenter, "train/auxiliary_loss")) == 12 * 3
    scores = read_scores(segmenter)
    assert scores.keys() == {"val/miou", "val/pixel_accuracy", "val/mean_accuracy"}
    table = json.loads((segmenter / "val_classes.json").read_text())
    assert [row["name"] for row in table["classes"]] == NAMES
    assert table["miou"] == pytest.approx(scores["val/miou"], abs=1e-6)


def test_validate_prints_the_scores_of_each_class(
    segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = validate(segmenter, tmp_path)
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    assert f"mIoU {scores['val/miou']:.4f}" in printed


def test_metrics_are_those_counted_by_hand(segmenter: Path, scenes: Path, tmp_path: Path) -> None:
    """Each image resized to fit 64×32, its logits enlarged to the label map's own size; 0 is not counted."""
    task = SegmentationTask.load_from_checkpoint(last_checkpoint(segmenter))
    data = ADE20KDataModule(str(scenes), class_names=NAMES, **DATA)
    data.setup("validate")
    union, inter = np.zeros(4), np.zeros(4)
    for batch in data.val_dataloader():
        path = Path(batch["path"][0])
        labels = np.asarray(Image.open(scenes / "annotations" / "validation" / f"{path.stem}.png"))
        assert min(batch["image"].shape[2:]) == 32
        with torch.no_grad():
            small = task.head(task.backbone(batch["image"]))
        large = F.interpolate(small, size=labels.shape, mode="bilinear", align_corners=False)
        prediction = large[0].argmax(0).numpy() + 1
        for k in (1, 2, 3):
            inter[k] += ((prediction == k) & (labels == k)).sum()
            union[k] += (((prediction == k) | (labels == k)) & (labels > 0)).sum()
    metrics = validate(segmenter, tmp_path)
    assert metrics["val/miou"] == pytest.approx((inter[1:] / union[1:]).mean(), abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"ohem_threshold": 0.7, "ohem_min_pixels": 100},
        {"class_weights": [1.0, 2.0, 0.5], "auxiliary_weight": 0.0},
        {"schedule": {"warmup_steps": 2, "base_batch_size": 16, "layer_decay": 0.9, "backbone_lr_mult": 0.5}},
    ],
)
def test_options_of_the_loss_and_the_optimizer_train(settings: dict[str, Any], scenes: Path, tmp_path: Path) -> None:
    folder = fit(tmp_path, scenes, model={"init_args": settings})
    losses = read_column(folder, "train/loss")
    assert len(losses) == 6 and all(0 < loss < 20 for loss in losses)
    names = torch.load(last_checkpoint(folder), weights_only=True)["state_dict"]
    assert any(name.startswith("head.auxiliary.") for name in names) == ("auxiliary_weight" not in settings)


def test_the_loss_is_that_of_both_heads(scenes: Path) -> None:
    torch.manual_seed(0)
    task = new_segmenter(auxiliary_weight=0.4, dropout=0.0)
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    batch = {"image": torch.randn(2, 3, 32, 32), "mask": torch.randint(0, 3, (2, 32, 32)), "path": ["", ""]}
    maps = task.backbone(batch["image"])
    maps = [norm(x.movedim(1, -1)).movedim(-1, 1) for norm, x in zip(task.head.norms, maps, strict=True)]
    logits = [task.head.decoder(maps), task.head.auxiliary(maps[-2])]  # type: ignore[misc]
    large = [F.interpolate(x, size=(32, 32), mode="bilinear", align_corners=False) for x in logits]
    main_loss, auxiliary = (F.cross_entropy(x, batch["mask"]) for x in large)
    torch.testing.assert_close(task.training_step(batch, 0), main_loss + 0.4 * auxiliary)


def test_a_pair_that_cannot_be_read_is_skipped_by_policy(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "scenes")
    (data / "annotations" / "training" / "scene_3.png").unlink()
    Image.new("RGB", (36, 48)).save(data / "annotations" / "training" / "scene_4.png")
    folder = fit(tmp_path, data, "--data.faulty_samples=skip", trainer={"max_epochs": 1})
    summary = json.loads((folder / "summary.json").read_text())
    assert {Path(name).name for name in summary["skipped_samples"]} == {"scene_3.jpg", "scene_4.jpg"}


def test_a_batch_of_one_image_trains(scenes: Path, tmp_path: Path) -> None:
    """Maps pooled to one pixel then have a single value per channel, of which no variance can be taken."""
    assert last_checkpoint(fit(tmp_path, scenes, "--data.batch_size=1", trainer={"max_epochs": 1})).is_file()


# ---- windows


@pytest.mark.parametrize("format", ["official", "huggingface", "torchvision"])
def test_windows_are_transferred_from_8_to_16_to_40(format: Any, tmp_path: Path) -> None:
    """A classifier of window 8 at 256 starts a segmenter of window 16, which starts one of window 40 at 640."""
    architecture: dict[str, Any] = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}
    classifier = ClassificationTask(SwinTransformerV2(**architecture, window_size=8), 5)
    randomize(classifier)
    source = tmp_path / ("model" if format == "huggingface" else "model.pth")
    save_weights(classifier, source, format=format, image_size=256)

    def segmenter(window: int) -> SegmentationTask:
        return SegmentationTask(
            SwinTransformerV2(**architecture, window_size=window), 3, decoder=UPerNet(channels=8)
        ).eval()

    middle = segmenter(16)
    report = load_weights(middle, source)
    assert report.windows == [((8, 8), (16, 16))] * 4
    assert all(name.startswith("head.") for name in report.randomly_initialized)
    randomize(middle.head)
    checkpoint = {"state_dict": middle.state_dict()}
    middle.input_size = (512, 512)
    middle.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "middle.ckpt")
    large = segmenter(40)
    report = load_weights(large, tmp_path / "middle.ckpt")
    assert report.windows == [((8, 8), (40, 40))] * 4
    assert not report.randomly_initialized and "head" in str(report)

    # The same function of the same offsets as of the classifier's own backbone at that window.
    own = classifier.backbone.eval()
    own.set_pretrained_window(8)
    own.set_window(40)
    image = torch.randn(1, 3, 640, 640)
    with torch.no_grad():
        expected = middle.head.eval()(own(image))
        torch.testing.assert_close(large.small_logits(image), expected, rtol=1e-4, atol=1e-4)
        middle.backbone.set_window(40)
        torch.testing.assert_close(middle.small_logits(image), expected, rtol=1e-4, atol=1e-4)


def test_a_config_moves_weights_to_its_window(
    segmenter: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, scenes, f"--model.weights={last_checkpoint(segmenter)}", "--model.backbone.window_size=8")
    output = capsys.readouterr().out
    assert re.search(r"stage 1 +4×4 → 8×8", output)
    assert "head" in output


def test_fine_tuning_for_other_classes_keeps_all_but_the_classifiers(segmenter: Path) -> None:
    task = new_segmenter(classes=7)
    report = load_weights(task, last_checkpoint(segmenter))
    assert set(report.randomly_initialized) == {
        f"head.{part}.classifier.1.{leaf}" for part in ("decoder", "auxiliary") for leaf in ("weight", "bias")
    }


# ---- inference


def test_from_python_a_checkpoint_gives_logits(segmenter: Path) -> None:
    task = SegmentationTask.load_from_checkpoint(last_checkpoint(segmenter))
    assert not task.training
    logits = task(torch.randn(2, 3, 37, 50))
    assert logits.shape == (2, 3, 37, 50)
    assert task.class_names == NAMES and task.class_ids == [1, 2, 3]


@pytest.mark.parametrize("size", [(37, 50), (40, 40)])
def test_a_window_that_covers_the_image_is_the_whole(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    whole = new_segmenter(inference=Inference("whole", flip=True)).eval()
    randomize(whole)
    slide = new_segmenter(inference=Inference("slide", crop_size=64, stride=32, blend="gaussian", flip=True)).eval()
    slide.load_state_dict(whole.state_dict())
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert torch.equal(whole.segment(image), slide.segment(image))
        torch.testing.assert_close(whole.probabilities(image), slide.probabilities(image))
        assert whole.segment(image, (100, 90)).shape == (100, 90)
        assert whole.probabilities(image, (100, 90)).sum(0) == pytest.approx(1, abs=1e-5)


def test_predictions_do_not_depend_on_windows_per_pass() -> None:
    torch.manual_seed(0)
    tasks = [
        new_segmenter(inference=Inference("slide", 32, 20, sliding_window_batch_size=number)).eval()
        for number in (1, 3, 100)
    ]
    randomize(tasks[0])
    image = torch.randn(1, 3, 77, 90)
    for task in tasks[1:]:
        task.load_state_dict(tasks[0].state_dict())
    with torch.no_grad():
        expected, *others = [task.probabilities(image) for task in tasks]
    for probabilities in others:
        torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_inference_is_chosen_when_evaluating(segmenter: Path, tmp_path: Path) -> None:
    plain = validate(segmenter, tmp_path)
    slide = ["--model.inference.mode=slide", "--model.inference.crop_size=32", "--model.inference.stride=16"]
    assert validate(segmenter, tmp_path, *slide) != plain
    scales = ["--model.inference.scales=[0.75, 1.0, 1.5]", "--model.inference.flip=true"]
    assert validate(segmenter, tmp_path, *scales)["val/miou"] > 0.5


@pytest.mark.slow
def test_scales_are_evaluated_and_predicted_from_the_files_pixels(
    segmenter: Path, scenes: Path, tmp_path: Path
) -> None:
    """Counted by hand: the file resized by OpenCV to each scale, probabilities averaged at the label map's size."""
    scales = (0.5, 1.0, 1.75)
    task = SegmentationTask.load_from_checkpoint(last_checkpoint(segmenter))
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    counts, predictions = Confusion(3), {}
    for path in sorted((scenes / "images" / "validation").iterdir()):
        labels = np.array(Image.open(scenes / "annotations" / "validation" / f"{path.stem}.png"))
        pixels = np.asarray(Image.open(path))
        total = torch.zeros(3, *labels.shape)
        for scale in scales:
            factor = min(int(64 * scale) / max(labels.shape), int(32 * scale) / min(labels.shape))
            width, height = (int(side * factor + 0.5) for side in labels.shape[::-1])
            resized = torch.from_numpy(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR))
            x = (resized.movedim(-1, 0).float() / 255 - mean) / std
            with torch.no_grad():
                small = task.small_logits(x[None])
            total += F.interpolate(small, labels.shape, mode="bilinear", align_corners=False).softmax(1)[0]
        predictions[path.stem] = total.argmax(0)
        counts.update(predictions[path.stem], torch.from_numpy(labels).long() - 1)
    stated = [f"--model.inference.scales={list(scales)}"]
    metrics = validate(segmenter, tmp_path, *stated)
    assert metrics["val/miou"] == pytest.approx(float(counts.compute()["miou"]), abs=1e-4)

    source = scenes / "images" / "validation"
    out = predict(tmp_path, from_last(segmenter), f"--data.source={source}", *stated)
    for name, prediction in predictions.items():
        predicted = np.asarray(Image.open(out / "labels" / f"{name}.png")).astype(int) - 1
        assert (predicted == prediction.numpy()).mean() > 0.999


def test_an_image_smaller_than_a_patch_is_refused_by_name_or_skipped(
    segmenter: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    for folder, ending in (("images", "jpg"), ("annotations", "png")):
        path = root / folder / "validation" / f"scene_1.{ending}"
        Image.open(path).resize((64, 2), Image.Resampling.NEAREST).save(path)
    arguments = ["validate", from_last(segmenter), f"--data.root={root}", f"--runs={tmp_path / 'runs'}"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "scene_1.jpg would be given to the model as 64×2 pixels, less than one of its patches of 4×4" in error

    assert main([*arguments, "--data.faulty_samples=skip"]) == 0
    assert "the scores are of 4 of 5 samples" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"scene_0\.jpg would be given to the model as \d×3 pixels"):
        LabeledScenes(
            [(scenes / "images" / "validation" / "scene_0.jpg", scenes / "annotations" / "validation" / "scene_0.png")],
            possible_codings(NAMES, LabelSettings(background="ignore"), is_ade20k=False)[0],
            Resize((64, 32)), (0.0,) * 3, (1.0,) * 3, smallest_side=4,
        )[0]["rescaled"](0.1)  # fmt: skip


# ---- prediction


def test_predict_writes_label_maps_and_overlays_at_the_images_own_sizes(
    segmenter: Path, scenes: Path, tmp_path: Path
) -> None:
    source = scenes / "images" / "validation"
    out = predict(tmp_path, from_last(segmenter), f"--data.source={source}")
    task = SegmentationTask.load_from_checkpoint(last_checkpoint(segmenter))
    data = ADE20KDataModule(source=str(source), **DATA)
    data.setup("predict")
    for batch in data.predict_dataloader():
        name = Path(batch["path"][0]).with_suffix(".png").name
        with Image.open(out / "labels" / name) as labels, Image.open(batch["path"][0]) as image:
            assert labels.mode == "P" and labels.size == image.size
            assert labels.getpalette()[:6] == [0, 0, 0, 0x56, 0xB4, 0xE9]  # the sky blue of Okabe and Ito
            with torch.no_grad():
                expected = task.segment(batch["image"], batch["size"]) + 1
            assert (np.asarray(labels) == expected.numpy()).all()
            with Image.open(out / "overlays" / name) as overlay:
                assert overlay.height == image.height and overlay.width > image.width
    rows = read_table(out / "predictions.csv")
    assert [Path(row["path"]).name for row in rows] == [f"scene_{k}.jpg" for k in range(5)]
    assert all((out / row["labels"]).is_file() and (out / row["overlay"]).is_file() for row in rows)
    shares = [float(part.rsplit(" ", 1)[1]) for part in rows[0]["classes"].split("; ")]
    assert sum(shares) == pytest.approx(1, abs=1e-3) and shares == sorted(shares, reverse=True)


def test_saved_predictions_score_as_the_evaluation_does(segmenter: Path, scenes: Path, tmp_path: Path) -> None:
    out = predict(tmp_path, from_last(segmenter), f"--data.source={scenes / 'images' / 'validation'}")
    folders = [f"--annotations={scenes / 'annotations' / 'validation'}", f"--predictions={out / 'labels'}"]
    files = [f"--class_names={scenes / 'names.txt'}", f"--json={tmp_path / 'scores.json'}"]
    assert main(["score", "ade20k", *folders, *files]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    metrics = validate(segmenter, tmp_path)
    for name in ("miou", "mean_accuracy", "pixel_accuracy"):
        assert scores[name] == pytest.approx(metrics[f"val/{name}"], abs=1e-6)


def test_images_of_one_name_keep_apart(segmenter: Path, scenes: Path, tmp_path: Path) -> None:
    for name in ("a/x.jpg", "b/x.jpg", "b/x.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), "red").save(tmp_path / "images" / name)
    out = predict(tmp_path, from_last(segmenter), f"--data.source={tmp_path / 'images'}")
    names = {str(path.relative_to(out / "labels")) for path in (out / "labels").rglob("*.png")}
    assert names == {"a/x.png", "b/x.jpg.png", "b/x.png.png"}


# ---- several processes


@pytest.mark.slow
def test_training_on_two_processes_is_that_on_one(tmp_path: Path) -> None:
    """Batch norm takes its statistics of all processes, of which each sees its half of the same batches.

    All pixels are labeled: each process takes the mean over its own.
    """
    data = write_scenes(tmp_path / "scenes", labeled=True)
    plain = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "weight_decay": 0.0}}  # Adam enlarges roundings
    model = {"init_args": {"dropout": 0.0, "optimizer": plain}}
    augmentation = {"init_args": {"scale_range": [1.0, 1.0], "cat_max_ratio": 1.0}}  # nothing to pad
    whole = {"init_args": {"augmentation": augmentation}}
    write_config(tmp_path / "scenes.yaml", data, model=model, data=whole, trainer={"max_epochs": 3})
    for processes in (1, 2):
        settings = [f"--data.batch_size={4 // processes}", f"--name={processes}"]
        done = run(["fit", "--config=scenes.yaml", *settings], tmp_path, processes)
        assert done.status == 0, done.errors
    single, double = (
        torch.load(tmp_path / "runs" / name / "0" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("1", "2")
    )
    assert single.keys() == double.keys()
    for name, value in single.items():
        torch.testing.assert_close(
            double[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.class_weights=[1.0, 2.0]"], ["class_weights", "2 values", "3 classes"]),
        (["--model.ohem_threshold=1.5"], ["ohem_threshold", "1.5"]),
        (["--model.auxiliary_weight=-1"], ["auxiliary_weight", "negative"]),
        (["--model.inference.stride=600"], ["inference.stride", "600"]),
        (["--model.inference.scales=[]"], ["inference.scales"]),
        (["--model.schedule.backbone_lr_mult=-1"], ["backbone_lr_mult"]),
        (["--data.crop_size=0"], ["crop_size"]),
        (["--model.backbone.depths=[1]", "--model.backbone.num_heads=[1]"], ["two feature maps"]),
    ],
)
def test_mistakes_in_settings_are_reported(
    arguments: list[str], words: list[str], scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "scenes.yaml", scenes)
    assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}", *arguments]) == 1
    errors = capsys.readouterr().err
    assert all(word in errors for word in words), errors
    assert "Traceback" not in errors
    assert not [*(tmp_path / "runs").glob("*/*")]


def test_windows_that_do_not_fit_the_stride_are_reported(
    segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model.inference.mode=slide", "--model.inference.crop_size=30", "--model.inference.stride=10"]
    assert main(["validate", from_last(segmenter), f"--runs={tmp_path}", *arguments]) == 1
    assert "multiples of 4" in capsys.readouterr().err


def test_fewer_classes_than_the_checkpoints_are_reported(
    segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [from_last(segmenter), f"--runs={tmp_path}", "--data.class_names=[clay,moss]"]
    message = user_error(capsys, "validate", *arguments)
    assert "the model" in message or "the checkpoint" in message, message


def test_more_classes_than_a_label_map_holds_are_reported(scenes: Path, tmp_path: Path) -> None:
    data = ADE20KDataModule(source=str(scenes / "images" / "validation"), **DATA)
    trainer = new_trainer(tmp_path, SegmentationPredictions(str(tmp_path / "out")))
    with pytest.raises(UserError, match="254 classes, the model has 300"):
        trainer.predict(new_segmenter(classes=300), data, return_predictions=False)
    assert not (tmp_path / "out").exists()


# ---- what label maps mean


def recode(data: Path, change: Any) -> Path:
    """Scenes whose label maps are changed: class numbers uint8 (H, W), 0 for none, to values or colors."""
    for path in (data / "annotations").rglob("*.png"):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)
    return data


CODINGS: dict[str, tuple[Any, dict[str, Any], list[Any]]] = {
    "counted from 1": (lambda labels: labels, {"background": "ignore"}, [1, 2, 3]),
    "counted from 0": (lambda labels: labels - np.uint8(1), {"background": "class", "ignore_label": 255}, [0, 1, 2]),
    "a mapping": (
        lambda labels: np.array([9, 0, 255, 7], np.uint8)[labels],
        {"label_values": {0: "red clay", 255: "green moss", 7: "blue slate"}, "ignore_label": [9]},
        [0, 255, 7],
    ),
    "colors": (
        lambda labels: np.array([(1, 1, 1), (9, 0, 0), (0, 9, 0), (0, 0, 9)], np.uint8)[labels],
        {"palette": [[9, 0, 0], [0, 9, 0], [0, 0, 9]], "ignore_label": [[1, 1, 1]]},
        ["#090000", "#000900", "#000009"],
    ),
}


@pytest.mark.parametrize(
    ("change", "settings", "ids"),
    [
        pytest.param(*coding, id=name, marks=pytest.mark.slow if name.startswith("counted") else ())
        for name, coding in CODINGS.items()
    ],
)
def test_what_label_maps_mean_holds_from_training_to_scores(
    change: Any, settings: dict[str, Any], ids: list[Any], segmenter: Path, tmp_path: Path
) -> None:
    """Trained on the same scenes with labels written otherwise: the same scores, from the checkpoint and from files."""
    data = recode(write_scenes(tmp_path / "scenes"), change)
    run_folder = fit(tmp_path, data, trainer={"max_epochs": 1}, data={"init_args": settings})
    metrics = validate(run_folder, tmp_path)
    (table,) = (tmp_path / "evaluation").glob("*/val_classes.json")
    assert [row["id"] for row in json.loads(table.read_text())["classes"]] == ids

    out = predict(tmp_path, from_last(run_folder), f"--data.source={data / 'images' / 'validation'}")
    folders = [f"--annotations={data / 'annotations' / 'validation'}", f"--predictions={out / 'labels'}"]
    files = [f"--class_names={data / 'names.txt'}", f"--json={tmp_path / 'scores.json'}"]
    stated = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()]
    assert main(["score", "ade20k", *folders, *files, *stated]) == 0
    scored, validated = (json.loads(path.read_text()) for path in (tmp_path / "scores.json", table))
    assert {name: scored[name] for name in validated} == validated  # score also counts the label maps
    assert metrics["val/miou"] == pytest.approx(json.loads(table.read_text())["miou"], abs=1e-6)


@pytest.mark.slow
def test_a_background_that_is_a_class_is_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = recode(write_scenes(tmp_path / "scenes"), lambda labels: (labels == 2).astype(np.uint8))
    names = {"init_args": {"class_names": ["background", "green moss"], "background": "class"}}
    run_folder = fit(tmp_path, data, trainer={"max_epochs": 12}, data=names)
    rows = json.loads((run_folder / "val_classes.json").read_text())["classes"]
    assert [(row["id"], row["name"]) for row in rows] == [(0, "background"), (1, "green moss")]
    assert all(row["iou"] > 0.6 for row in rows)
    assert "Classes in 12 training label maps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "settings", "words"),
    [
        (["object"], [], "one class, object"),
        (["background", "object"], [], "read in two ways"),
        (["background", "object"], ["--data.background=ignore"], "all labeled pixels are background"),
    ],
)
def test_binary_masks_without_their_settings_train_nothing(
    names: list[str], settings: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = recode(write_scenes(tmp_path / "scenes", 4, 2), lambda labels: (labels == 2).astype(np.uint8))
    config = write_config(tmp_path / "scenes.yaml", data, data={"init_args": {"class_names": names}})
    assert main(["fit", f"--config={config}", f"--runs={tmp_path / 'runs'}", *settings]) == 1
    assert words in capsys.readouterr().err
    assert not [*(tmp_path / "runs").glob("*/*")]


def test_label_maps_read_otherwise_than_in_training_stop_the_evaluation(
    segmenter: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = recode(write_scenes(tmp_path / "scenes"), lambda labels: labels - np.uint8(1))
    arguments = [f"--data.root={data}", "--data.background=class", "--data.ignore_label=255", f"--runs={tmp_path}"]
    assert main(["validate", from_last(segmenter), *arguments]) == 1
    errors = capsys.readouterr().err
    assert "other values for the same classes" in errors and "0, 1, 2" in errors and "1, 2, 3" in errors


@pytest.mark.slow
def test_two_processes_print_shares_once(scenes: Path, tmp_path: Path) -> None:
    write_config(tmp_path / "scenes.yaml", scenes, trainer={"max_epochs": 1})
    done = run(["fit", "--config=scenes.yaml", "--data.batch_size=2"], tmp_path, 2)
    assert done.status == 0, done.errors
    assert done.output.count("Classes in 12 training label maps") == 1
    assert done.output.count("data.background is not set") == 1


def test_one_class_cannot_be_told_from_others() -> None:
    with pytest.raises(UserError, match="num_classes is 1"):
        new_segmenter(classes=1)


class OneLayer(Decoder):
    """A linear layer on the largest map."""

    def __init__(self, bias: bool = True) -> None:
        self.bias = bias

    def build(self, in_channels: Sequence[int], num_classes: int, dropout: float) -> nn.Module:
        return OnLargest(nn.Conv2d(in_channels[0], num_classes, 1, bias=self.bias))


class OnLargest(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.layer(maps[0])


def test_a_decoder_of_ones_own_by_a_line_of_the_config(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "data")
    config = write_config(tmp_path / "config.yaml", root)
    settings = yaml.safe_load(config.read_text())
    settings["model"]["init_args"]["decoder"] = {"class_path": f"{__name__}.OneLayer", "init_args": {"bias": False}}
    config.write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", str(config), "--runs", str(tmp_path / "runs"), "--allow", "tests"]) == 0
    checkpoint = tmp_path / "runs" / "scenes" / "0" / "checkpoints" / "last.ckpt"
    task = SegmentationTask.load_from_checkpoint(checkpoint, decoder=OneLayer(bias=False))
    assert isinstance(task.head.decoder, OnLargest)
    assert task.head.decoder.layer.bias is None
    # No class from outside of the package is built by what a file says.
    with pytest.raises(UserError, match="OneLayer"):
        SegmentationTask.load_from_checkpoint(checkpoint)
