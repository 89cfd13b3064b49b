"""Released weights and a photograph are enough to predict: classes by the head, in an empty folder."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from swinv2_tasks.cli.configs import LONGEST_LIST
from swinv2_tasks.cli.main import main
from swinv2_tasks.heads import MaskRCNNConfig, UPerNet
from swinv2_tasks.tasks import DetectionTask, SegmentationTask, VideoClassificationTask
from swinv2_tasks.weights.classes import HeadTask, count_classes
from tests.helpers.checkpoints import CHANNELS, DEPTHS, HEADS, official_state, simmim_state, tiny_backbone
from tests.helpers.films import write_film
from tests.helpers.foreign_weights import CLASSES, foreign_state, huggingface_model, timm_model
from tests.helpers.objects import write_objects
from tests.helpers.runs import fit, from_last, last_checkpoint, read_table
from tests.helpers.tiny import COLORS, write_config, write_images

TINY = [
    "--model.backbone=SwinTransformerV2",
    f"--model.backbone.embed_dim={CHANNELS}",
    f"--model.backbone.depths={[*DEPTHS]}",
    f"--model.backbone.num_heads={[*HEADS]}",
]
TINY_IMAGES = [*TINY, "--model.backbone.window_size=4"]
QUICKLY = ["--data.num_workers=0", "--trainer.precision=32-true", "--trainer.accelerator=cpu"]
SMALL = ["--data.image_size=64"]


@pytest.fixture(autouse=True)
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A photograph of nothing, alone in the working folder."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    return Path("photo.png")


@torch.no_grad()
def always(layer: nn.Module | Mapping[str, Tensor], index: int) -> None:
    """Lets a classifier choose one class, whatever it sees."""
    tensors = layer if isinstance(layer, Mapping) else dict(layer.named_parameters())
    for name, tensor in tensors.items():
        tensor.zero_()
        if name.endswith("bias"):
            tensor[index] = 20.0


def official_file(classes: int, index: int, path: Path = Path("official.pth")) -> Path:
    state = official_state(classes=classes)
    always({name: tensor for name, tensor in state.items() if name.startswith("head.")}, index)
    torch.save({"model": state}, path)
    return path


def timm_file(classes: int, index: int) -> Path:
    model: Any = timm_model()
    model.reset_classifier(classes)
    always(model.head.fc, index)
    save_file(model.state_dict(), "timm.safetensors")
    return Path("timm.safetensors")


def huggingface_folder(classes: int, index: int) -> Path:
    model = huggingface_model()
    model.classifier = nn.Linear(model.classifier.in_features, classes)
    always(model.classifier, index)
    model.config.num_labels = classes
    model.save_pretrained("huggingface")
    return Path("huggingface")


def predict(config: str, weights: Path, *arguments: str, source: str = "photo.png") -> int:
    """The exit status of a prediction into the folder ``out``."""
    own = ["--output=out", f"--data.source={source}", *QUICKLY, *arguments]
    return main(["predict", f"--config={config}", f"--model.weights={weights}", *own])


def best(folder: Path = Path("out")) -> tuple[str, str, float]:
    """Id, name and score of the class that comes first, in the only row."""
    (row,) = read_table(folder / "predictions.csv")
    assert not row["error"]
    return row["id1"], row["name1"], float(row["score1"])


def line_of_classes(output: str) -> str:
    (line,) = [line for line in output.splitlines() if line.startswith("classes:")]
    return line


# ---- classification


@pytest.mark.parametrize("write", [official_file, timm_file, huggingface_folder])
def test_imagenet_1k_is_named(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    weights = write(1000, 207)
    capsys.readouterr()  # transformers shows its progress
    assert predict("imagenet.yaml", weights, *TINY_IMAGES, *SMALL) == 0
    assert best() == ("n02099601", "golden retriever", pytest.approx(1.0, abs=1e-4))
    printed = capsys.readouterr()
    expected = "classes: ImageNet-1k's 1,000, as the head has; data.class_names names others"
    assert line_of_classes(printed.out) == expected
    assert re.search(r"head +loaded, 1000 classes", printed.out)
    assert not printed.err


@pytest.mark.timeout(120)  # a list of so many classes would keep the parser busy for minutes
def test_imagenet_22k_is_named_and_its_order_is_in_doubt(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("paper/swinv2_base_22k_w12_192.yaml", official_file(21_841, 359), *TINY_IMAGES, *SMALL) == 0
    assert best()[:2] == ("n01440764", "tench")
    line = line_of_classes(capsys.readouterr().out)
    assert "ImageNet-22k's 21,841" in line
    assert "a neighbor's name may be meant" in line


def test_a_22k_head_is_predicted_with_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Not cut to 1,000 classes, as the config's dataset would have it."""
    assert predict("imagenet.yaml", official_file(21_841, 359), *TINY_IMAGES, *SMALL) == 0
    assert best()[:2] == ("n01440764", "tench")
    assert re.search(r"head +loaded, 21841 classes", capsys.readouterr().out)


@pytest.mark.parametrize("classes", [7, 101])  # few are stated as a list, many as a file
def test_classes_that_no_list_has_are_numbered(classes: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("imagenet.yaml", official_file(classes, 3), *TINY_IMAGES, *SMALL) == 0
    assert best()[:2] == ("3", "3")
    line = line_of_classes(capsys.readouterr().out)
    assert f"the head has {classes}" in line
    assert f"0 to {classes - 1}; data.class_names names them" in line


def test_a_list_on_the_command_line_counts(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.csv").write_text("".join(f"id{k},name {k}\n" for k in range(1000)))
    weights = official_file(1000, 207)
    assert predict("imagenet.yaml", weights, "--data.class_names=mine.csv", *TINY_IMAGES, *SMALL) == 0
    assert best()[:2] == ("id207", "name 207")
    assert "classes:" not in capsys.readouterr().out.replace("1,000 classes:", "")


def test_a_dataset_that_is_there_names_its_classes(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        folder = Path("data/imagenet/train") / name
        folder.mkdir(parents=True)
        (folder / "one.png").write_bytes(photo.read_bytes())
    assert predict("imagenet.yaml", official_file(2, 1), *TINY_IMAGES, *SMALL) == 0
    assert best()[:2] == ("dog", "dog")
    assert not re.search("^classes:", capsys.readouterr().out, re.MULTILINE)


def test_a_missing_dataset_on_the_command_line_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    weights = official_file(1000, 207)
    assert predict("imagenet.yaml", weights, "--data.root=data/imagnet", *TINY_IMAGES, *SMALL) == 1
    assert "data/imagnet does not exist" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_other_commands_still_need_the_dataset(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    weights = official_file(1000, 207)
    arguments = ["--config=imagenet.yaml", f"--model.weights={weights}", *QUICKLY, *TINY_IMAGES]
    assert main([command, *arguments]) == 1
    assert "The dataset folder data/imagenet does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_many_classes_of_a_checkpoint_are_named(tmp_path: Path) -> None:
    """They reach the parser as a file; ids with spaces and commas come back as they were."""
    data = write_images(tmp_path / "data", train=2, val=1)
    ids = [*COLORS, *(f"rare, {k}" for k in range(LONGEST_LIST))]
    with (data / "classes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([class_id, f"name of {class_id}"] for class_id in ids)
    run = fit(write_config(tmp_path / "config.yaml", data), tmp_path / "runs", "--trainer.max_steps=1")

    assert main(["predict", from_last(run), "--output=out", "--data.source=photo.png"]) == 0
    (row,) = read_table(Path("out/predictions.csv"))
    predicted = [row[f"id{k}"] for k in range(1, 6)]
    assert set(predicted) <= set(ids)
    assert [row[f"name{k}"] for k in range(1, 6)] == [f"name of {class_id}" for class_id in predicted]


def test_a_checkpoint_of_a_run_is_given_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its classes are known by more than their number, and another dataset may have as many."""
    data = write_images(tmp_path / "data", train=2, val=1)
    run = fit(write_config(tmp_path / "config.yaml", data), tmp_path / "runs", "--trainer.max_steps=1")
    assert predict("imagenet.yaml", last_checkpoint(run)) == 1
    assert f"give it as --ckpt_path {last_checkpoint(run)}" in capsys.readouterr().err
    Path("settings.yaml").write_text(f"model: {{init_args: {{weights: {run}}}}}")  # the run's folder, in a config
    assert main(["predict", "--config=imagenet.yaml", "--config=settings.yaml", "--data.source=photo.png", *SMALL]) == 1
    assert f"give it as --ckpt_path {run}" in capsys.readouterr().err


# ---- the other tasks


DETECTOR = {"channels": 16, "representation_size": 32, "post_nms_top_n": 20}
DETECTION = [
    *TINY_IMAGES, "--data.resize=[96,72]", *(f"--model.detector.{name}={value}" for name, value in DETECTOR.items())
]  # fmt: skip


def detection_file(classes: int, row: int) -> Path:
    """Weights of a detector that finds one class; row 0 is of none."""
    task = DetectionTask(tiny_backbone(), MaskRCNNConfig(**DETECTOR), classes)
    always(task.head.box.classes, row)
    torch.save({"state_dict": task.state_dict()}, "detector.pth")
    return Path("detector.pth")


def test_coco_has_its_own_ids() -> None:
    assert predict("coco.yaml", detection_file(80, 17), *DETECTION) == 0
    detections = json.loads(Path("out/detections.json").read_text())
    assert {detection["category_id"] for detection in detections} == {18}  # the 17th of 80, as 12 is no category
    (row,) = read_table(Path("out/predictions.csv"))
    (counts,) = [value for name, value in row.items() if name.startswith("objects")]
    assert re.fullmatch(r"\d+ dog", counts)


def test_categories_that_no_list_has_are_numbered_from_1() -> None:
    assert predict("coco.yaml", detection_file(5, 2), *DETECTION) == 0
    detections = json.loads(Path("out/detections.json").read_text())
    assert {detection["category_id"] for detection in detections} == {2}


SEGMENTATION = [*TINY_IMAGES, "--data.resize=[96,72]", "--model.decoder.channels=16", "--model.auxiliary_channels=8"]


def segmentation_file(classes: int, index: int) -> Path:
    task = SegmentationTask(tiny_backbone(), classes, UPerNet(channels=16), auxiliary_channels=8)
    always(task.head.decoder.classifier, index)
    torch.save(task.state_dict(), "segmenter.pth")
    return Path("segmenter.pth")


@pytest.mark.parametrize(("classes", "name"), [(150, "sky"), (9, "3")])
def test_scenes_are_named_by_the_number_of_classes(classes: int, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("ade20k.yaml", segmentation_file(classes, 2), *SEGMENTATION) == 0
    (row,) = read_table(Path("out/predictions.csv"))
    assert row["classes"] == f"{name} 1.0000"
    with Image.open(Path("out") / row["labels"]) as labels:
        assert np.unique(np.asarray(labels)).tolist() == [3]  # 0 is no class
    assert "names " in line_of_classes(capsys.readouterr().out)


VIDEO = [
    *TINY, "--model.backbone.patch_size=[2,4,4]", "--model.backbone.window_size=[4,4,4]", "--data.image_size=32",
    "--data.sampling.frames=8", "--data.sampling.stride=1", "--data.views.test=[1,1]",
]  # fmt: skip


@pytest.mark.parametrize(("classes", "label"), [(400, "archery"), (6, "5")])
@pytest.mark.parametrize("config", ["kinetics.yaml", "paper/kinetics_swinv2_small_w7_224.yaml"])
def test_videos_are_named_without_the_label_map_of_the_config(classes: int, label: str, config: str) -> None:
    clips = tiny_backbone((4, 4, 4), patch_size=(2, 4, 4))
    task = VideoClassificationTask(clips, classes)
    always(task.head.fc, 5)
    torch.save(task.state_dict(), "video.pth")
    write_film(Path("film.mp4"))
    assert predict(config, Path("video.pth"), *VIDEO, source="film.mp4") == 0
    (row,) = read_table(Path("out/predictions.csv"))
    assert label in (row.get("name1"), row.get("label1"), row.get("class1"))


# ---- files that nothing can be predicted with


def test_a_backbone_alone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    state = {name: tensor for name, tensor in official_state().items() if not name.startswith("head.")}
    torch.save(state, "backbone.pth")
    assert predict("imagenet.yaml", Path("backbone.pth"), *TINY_IMAGES, *SMALL) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "backbone.pth has no head of image classification" in line
    assert "swinv2-tasks fit --config CONFIG --model.weights backbone.pth" in line
    assert not Path("runs").exists()


def test_a_head_of_another_task_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("ade20k.yaml", official_file(1000, 0), *SEGMENTATION) == 1
    assert "has a head of image classification, but none of segmentation" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "validate", "test"])
def test_nothing_is_said_by_chance(command: str, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dataset of three classes, and a head of five, of which no row is loaded."""
    root = write_images(Path("images"))
    weights = official_file(5, 0)
    arguments = ["--config=imagenet.yaml", f"--model.weights={weights}", f"--data.root={root}", *TINY_IMAGES, *SMALL]
    source = [f"--data.source={photo}"] if command == "predict" else []
    assert main([command, *arguments, *source, *QUICKLY]) == 1
    message = capsys.readouterr().err
    assert "the head is randomly initialized, 3 classes: the checkpoint has 5" in message
    assert "data.class_names" in message
    assert not Path("runs").exists()


def test_nothing_is_detected_by_chance(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The dataset has categories; the weights are of a backbone with a head of another task."""
    weights = official_file(5, 0)
    data = [f"--data.root={write_objects(Path('objects'))}", f"--data.source={photo}", "--data.resize=[96,72]"]
    arguments = ["--config=coco.yaml", f"--model.weights={weights}", *TINY_IMAGES, *data, *QUICKLY]
    assert main(["predict", *arguments]) == 1
    assert "the head is randomly initialized in" in capsys.readouterr().err


def test_weights_that_are_not_there_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("imagenet.yaml", Path("no.pth"), *TINY_IMAGES, *SMALL) == 1
    assert "no.pth: no such file" in capsys.readouterr().err


# ---- counting


@pytest.mark.parametrize("format", ["official", "timm", "huggingface", "torchvision", "lightning"])
def test_each_format_tells_how_many_classes_it_has(format: str) -> None:
    torch.save(foreign_state(format), "weights.pth")
    assert count_classes("weights.pth", "image classification") == CLASSES


@pytest.mark.parametrize("head_task", ["image classification", "segmentation", "detection"])
def test_simmim_has_no_classes(head_task: HeadTask) -> None:
    torch.save(simmim_state(), "weights.pth")
    with pytest.raises(ValueError, match=f"has no head of {head_task}"):
        count_classes("weights.pth", head_task)


def test_other_architectures_are_named() -> None:
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet\.pth: .* a ResNet"):
        count_classes("resnet.pth", "image classification")
