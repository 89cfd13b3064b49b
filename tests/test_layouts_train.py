"""A dataset in each layout trains a step with ``--data.root`` alone, and the same boxes score the same in each."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.helpers import motions, objects, scenes, tiny
from tests.helpers.archives import write_webdataset
from tests.helpers.hub_datasets import both_splits
from tests.helpers.hub_datasets import write as write_hub
from tests.helpers.object_layouts import write_beside, write_lvis, write_numbered, write_one_each, write_voc, write_yolo
from tests.helpers.runs import evaluate, fit, last_checkpoint, read_scores, user_error
from tests.helpers.scene_layouts import write_cityscapes, write_folders
from tests.helpers.scene_layouts import write_voc as write_voc_scenes
from tests.helpers.video_layouts import CLASSES, write_frames, write_hmdb51, write_something, write_ucf101

CONFIGS: dict[str, Callable[..., Path]] = {
    "imagenet": tiny.write_config,
    "coco": objects.write_config,
    "ade20k": scenes.write_config,
    "kinetics": motions.write_config,
}


def write_bare_config(folder: Path, task: str, **changes: Any) -> Path:
    """A config of a small model that says nothing of where the data lie, what their files are called and their classes.

    Args:
        folder: where to write it.
        task: one of `CONFIGS`.
        **changes: of the config.
    """
    path = CONFIGS[task](folder / f"{task}.yaml", folder / "nowhere", **changes)
    settings = yaml.safe_load(path.read_text())
    for name in ("root", "class_names", "files"):
        settings["data"]["init_args"].pop(name, None)
    path.write_text(yaml.safe_dump(settings))
    return path


# ---- the datasets, each drawn once


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the layouts are written from, by the task."""
    folder = tmp_path_factory.mktemp("sources")
    images, motion = tiny.write_images(folder / "imagenet"), motions.write_motions(folder / "kinetics", train=3, val=1)
    (images / "classes.csv").unlink()
    coco = objects.write_objects(folder / "coco")
    for split in ("train", "val"):
        objects.change(coco, split, drop_crowds)
    return {
        "imagenet": images,
        "coco": coco,
        "ade20k": scenes.write_scenes(folder / "ade20k"),
        "kinetics": motion,
    }


def drop_crowds(content: dict[str, Any]) -> None:
    """YOLO has no word for them."""
    content["annotations"] = [entry for entry in content["annotations"] if not entry["iscrowd"]]


def copy(source: Path, root: Path) -> Path:
    return Path(shutil.copytree(source, root))


def write_one_folder_each(images: Path, root: Path) -> Path:
    """Class folders without splits."""
    for split in ("train", "val"):
        for image in (images / split).glob("*/*"):
            (root / image.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(image, root / image.parent.name / f"{split}_{image.name}")
    return root


def write_csv(images: Path, root: Path, several: bool = False) -> Path:
    """A table of files and classes; ``several``: a column of 0 and 1 for each class, of which some images have two."""
    (root / "images").mkdir(parents=True)
    rows = []
    for number, image in enumerate(sorted((images / "train").glob("*/*"))):
        shutil.copy(image, root / "images")
        label = image.parent.name
        shown = [int(label == name or (number % 3 == 0 and name == "n01")) for name in tiny.COLORS]
        rows.append([image.name, *(shown if several else [label])])
    header = ["file", *tiny.COLORS] if several else ["file", "label"]
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return root


def write_stated_splits(images: Path, root: Path) -> Path:
    """Class folders for training, valid and testing, as exporting tools call them."""
    copy(images / "train", root / "training")
    copy(images / "val", root / "valid")
    copy(images / "val", root / "testing")
    return root


def videos_of(source: Path) -> list[Path]:
    return [*sorted((source / "train").iterdir()), *sorted((source / "val").iterdir())]


def write_class_folders(source: Path, root: Path) -> Path:
    """Folders of videos for each class, in each split."""
    for number, video in enumerate(videos_of(source)):
        folder = root / ("train" if number < 6 else "val") / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, folder)
    return root


def write_path_lists(source: Path, root: Path, several: bool = False) -> Path:
    """Lists of a path and a label number; ``several``: of which some videos have two."""
    copy(source / "train", root / "videos")
    shutil.copytree(source / "val", root / "videos", dirs_exist_ok=True)
    labels = ["0", "1", "0,1" if several else "0"]
    lines = [f"videos/{video.name} {labels[number % 3]}\n" for number, video in enumerate(videos_of(source))]
    (root / "train.txt").write_text("".join(lines[:6]))
    (root / "val.txt").write_text("".join(lines[6:]))
    return root


def from_videos(write: Callable[[list[Path], Path], Path]) -> Callable[[Path, Path], Path]:
    return lambda source, root: write(videos_of(source), root)


LAYOUTS: dict[str, tuple[str, str, Callable[[Path, Path], Path]]] = {
    "class folders with splits": ("imagenet", "", copy),
    "class folders of other split names": ("imagenet", "", write_stated_splits),
    "class folders without splits": ("imagenet", "class-folders", write_one_folder_each),
    "a table of classes": ("imagenet", "csv", write_csv),
    "a table of several labels": ("imagenet", "csv", partial(write_csv, several=True)),
    "WebDataset": ("imagenet", "webdataset", partial(write_webdataset, label=lambda name: ("cls", name.encode()))),
    "parquet files": ("imagenet", "huggingface", lambda source, root: write_hub("parquet", both_splits(source), root)),
    "a saved dataset": ("imagenet", "huggingface", lambda source, root: write_hub("saved", both_splits(source), root)),
    "COCO": ("coco", "coco", copy),
    "COCO beside the images": ("coco", "coco-beside", write_beside),
    "YOLO, boxes": ("coco", "yolo", write_yolo),
    "YOLO, polygons": ("coco", "yolo", partial(write_yolo, polygons=True)),
    "Pascal VOC": ("coco", "voc", write_voc),
    "LVIS": ("coco", "lvis", write_lvis),
    "numbered masks": ("coco", "instance-masks", partial(write_numbered, form="images/{0}/{1}.jpg masks/{0}/{1}.png")),
    "a mask for each object": ("coco", "instance-masks", write_one_each),
    "ADE20K": ("ade20k", "ade20k", copy),
    "Pascal VOC, label maps": ("ade20k", "voc", write_voc_scenes),
    "Cityscapes, ids": ("ade20k", "cityscapes", write_cityscapes),
    "Cityscapes, train ids": ("ade20k", "cityscapes", partial(write_cityscapes, kind="labelTrainIds")),
    "images and masks": ("ade20k", "folders", partial(write_folders, form="images/{0}/{1}.jpg masks/{0}/{1}.png")),
    "masks with suffixes": ("ade20k", "folders", partial(write_folders, form="{0}/{1}.jpg {0}_masks/{1}_mask.png")),
    "objects as label maps": ("ade20k", "coco", lambda source, root: copy(source.parent / "coco", root)),
    "Kinetics": ("kinetics", "kinetics", copy),
    "lists of paths and labels": ("kinetics", "kinetics", write_path_lists),
    "lists of several labels": ("kinetics", "kinetics", partial(write_path_lists, several=True)),
    "folders of videos": ("kinetics", "kinetics", write_class_folders),
    "folders of frames": ("kinetics", "frames", from_videos(write_frames)),
    "UCF101": ("kinetics", "ucf101", from_videos(write_ucf101)),
    "HMDB51": ("kinetics", "hmdb51", from_videos(write_hmdb51)),
    "Something-Something": ("kinetics", "something", from_videos(write_something)),
}  # fmt: skip
"""The task of each layout, what it is read as, and what writes it from the task's source."""

QUICK = ("a table of several labels", "Pascal VOC", "images and masks", "UCF101")
"""One of each task, tested where slow tests are not."""


@pytest.mark.parametrize(
    "layout", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def test_a_layout_trains_a_step_by_its_folder_alone(
    layout: str, sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, name, write = LAYOUTS[layout]
    root = write(sources[task], tmp_path / "dataset")
    config = write_bare_config(tmp_path, task)
    run = fit(config, tmp_path / "runs", f"--data.root={root}", "--trainer.max_steps=1")

    said = capsys.readouterr().out
    assert not name or f"data.root is read as {name}: " in said
    assert torch.load(last_checkpoint(run), weights_only=True)["global_step"] == 1
    assert np.isfinite([*read_scores(run).values()]).any()  # validated as well


# ---- the same boxes


@pytest.mark.slow
def test_the_same_boxes_have_the_same_average_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A detector trained on COCO's files is as good on the same objects in YOLO's and VOC's."""
    coco = objects.write_objects(tmp_path / "coco", masks=False)
    for split in ("train", "val"):
        objects.change(coco, split, drop_crowds)
    config = write_bare_config(tmp_path, "coco")
    trained = fit(config, tmp_path / "runs", f"--data.root={coco}", "--trainer.max_epochs=25",
                  "--trainer.check_val_every_n_epoch=25")  # fmt: skip

    roots = {
        "coco": coco,
        "coco-beside": write_beside(coco, tmp_path / "beside"),
        "yolo": write_yolo(coco, tmp_path / "yolo"),
        "voc": write_voc(coco, tmp_path / "voc"),
    }
    checkpoint = f"--ckpt_path={last_checkpoint(trained)}"
    # Class names of VOC's are in the order of the alphabet: the message says what to type.
    capsys.readouterr()
    message = user_error(
        capsys, "validate", checkpoint, f"--data.root={roots['voc']}", f"--runs={tmp_path / 'refused'}"
    )
    order = "--data.class_names=" + json.dumps([*objects.CATEGORIES.values()])
    assert "in another order" in message and order.replace("=", " '", 1) in message

    scores = {
        name: read_scores(evaluate(tmp_path / name, checkpoint, f"--data.root={root}", *[order] * (name == "voc")))
        for name, root in roots.items()
    }
    expected = {name: value for name, value in scores["coco"].items() if "_ap" in name}
    assert expected["val/box_ap50"] > 0.2
    for name, values in scores.items():
        assert {key: values[key] for key in expected} == pytest.approx(expected, abs=1e-9), name


# ---- VOC's values


def test_a_map_of_0_and_255_trains_class_0_and_leaves_255_out(tmp_path: Path) -> None:
    """The pixels of 255 look like those of class 5: were they a class, or 5, it would cost the score of class 0."""
    rng = np.random.default_rng(0)
    root = tmp_path / "voc"
    stems: dict[str, list[str]] = {"train": [], "val": []}
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number in range(8):
        mask = np.zeros((32, 40), np.uint8)
        mask[:, 20:] = 5 if number % 2 else 255
        pixels = np.where(mask[..., None] == 0, 60, 200) + rng.normal(0, 5, (32, 40, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "JPEGImages" / f"{number}.jpg")
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{number}.png")
        stems["val" if number in (0, 2) else "train"].append(f"{number}")
    for split, names in stems.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names))

    run = fit(
        write_bare_config(tmp_path, "ade20k"), tmp_path / "runs", f"--data.root={root}", "--trainer.max_epochs=10"
    )
    assert read_scores(run)["val/pixel_accuracy"] > 0.95  # of the left halves alone
