"""Class lists: those that lie in a dataset's root, those that a setting names, classes that nothing is of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from swinv2_tasks.backbone import SwinTransformerV2
from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules import ADE20KDataModule, CocoDataModule, ImageNetDataModule, KineticsDataModule
from swinv2_tasks.datamodules.classes import in_root
from swinv2_tasks.datamodules.scene_classes import ADE20K_NAMES
from swinv2_tasks.errors import UserError
from swinv2_tasks.tasks import ClassificationTask
from tests.helpers import motions, objects, scenes, tiny
from tests.helpers.runs import fit, last_checkpoint, read_scores, user_error
from tests.helpers.tiny_tasks import TINY_TASKS


def write_list(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Images in class folders n01, n02 and n03, without a class list."""
    root = tiny.write_images(tmp_path / "images", train=2, val=1)
    (root / "classes.csv").unlink()
    return root


# ---- found in the root


@pytest.mark.parametrize("name", ["class_names.csv", "classes.csv"])
def test_images_are_named_by_the_list_in_the_root(images: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_list(images / name, "n03,blue sea", "n01,red apple", "n02,green leaf")
    data = ImageNetDataModule(str(images), **tiny.DATA)
    assert data.class_ids == ["n03", "n01", "n02"]
    assert data.class_names == ["blue sea", "red apple", "green leaf"]
    assert capsys.readouterr().out.count("classes: the 3 of ") == 1


def test_a_list_of_other_things_is_not_taken_and_said(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_list(images / "labels.txt", "n01 red apple", "n09 something else")
    data = ImageNetDataModule(str(images), **tiny.DATA)
    assert data.class_names == ["n01", "n02", "n03"]
    assert f"{images}/labels.txt is not taken" in (said := capsys.readouterr().out)
    assert "lacks n02, n03" in said


def test_a_file_that_is_no_list_is_not_taken_and_said(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "labels.txt").write_bytes(b"\xff\xfe\xff")
    assert ImageNetDataModule(str(images), **tiny.DATA).class_names == ["n01", "n02", "n03"]
    assert "not UTF-8" in capsys.readouterr().out


def test_lists_that_disagree_are_refused(images: Path) -> None:
    write_list(images / "classes.txt", "n01", "n02", "n03")
    write_list(images / "labels.txt", "n03", "n02", "n01")
    with pytest.raises(UserError, match=r"classes\.txt and .*labels\.txt are both class lists.*data\.class_names"):
        _ = ImageNetDataModule(str(images), **tiny.DATA).class_names


def test_lists_that_agree_are_one(images: Path) -> None:
    write_list(images / "classes.txt", "n02", "n01", "n03")
    write_list(images / "classes.csv", "n02", "n01", "n03")
    assert ImageNetDataModule(str(images), **tiny.DATA).class_names == ["n02", "n01", "n03"]


def test_scenes_are_named_by_the_list_in_the_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = scenes.write_scenes(tmp_path / "scenes", train=2, val=1)
    (root / "names.txt").rename(root / "classes.txt")
    data = ADE20KDataModule(str(root), **scenes.DATA)
    assert data.class_names == scenes.NAMES
    assert data.class_ids == [1, 2, 3]
    assert f"classes: the 3 of {root}/classes.txt" in capsys.readouterr().out


def test_scenes_without_a_list_are_ade20k_s_and_absent_classes_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = scenes.write_scenes(tmp_path / "scenes", train=2, val=1)
    data = ADE20KDataModule(str(root), **scenes.DATA)
    data.setup("fit")
    assert data.class_names == list(ADE20K_NAMES)
    said = capsys.readouterr().out
    assert "147 classes have no pixel in them" in said
    assert "class_names" in said


def test_ade20k_s_own_list_means_what_no_list_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = scenes.write_scenes(tmp_path / "scenes", train=2, val=1)
    table = [f"{k}\t0.1\t1\t1\t{name}, synonym" for k, name in enumerate(ADE20K_NAMES, start=1)]
    write_list(root / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tName", *table)
    data = ADE20KDataModule(str(root), **scenes.DATA)
    assert data.class_ids == list(range(1, 151))  # 0 is no class, whatever the label maps at hand hold
    data.setup("fit")
    assert "note: " not in capsys.readouterr().out  # the list says what the classes are


def test_a_list_of_scenes_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    root = scenes.write_scenes(tmp_path / "scenes", train=2, val=1)
    write_list(root / "labels.txt", "only one")
    with pytest.raises(UserError, match=r"labels\.txt.*one class"):
        _ = ADE20KDataModule(str(root), **scenes.DATA).class_names


def test_videos_are_named_by_the_label_map_in_the_root(tmp_path: Path) -> None:
    root = motions.write_motions(tmp_path / "motions", train=1, val=1)
    write_list(root / "label_map.txt", "stays", *reversed(motions.LABELS))
    assert KineticsDataModule(str(root), **motions.DATA).class_names == ["stays", "goes up", "goes down"]


def test_a_label_map_of_json_in_the_root(tmp_path: Path) -> None:
    root = motions.write_motions(tmp_path / "motions", train=1, val=1)
    (root / "label_map.json").write_text(json.dumps({"goes up": 0, "goes down": 1}))
    assert KineticsDataModule(str(root), **motions.DATA).class_names == ["goes up", "goes down"]


# ---- named by a setting


def test_names_of_files_are_relative_to_the_root_first(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_list(tmp_path / "mine.txt", "n01", "n02", "n03")
    assert in_root("mine.txt", str(images)) == Path("mine.txt")
    assert ImageNetDataModule(str(images), class_names="mine.txt", **tiny.DATA).class_ids == ["n01", "n02", "n03"]
    write_list(images / "mine.txt", "n03", "n02", "n01")
    assert ImageNetDataModule(str(images), class_names="mine.txt", **tiny.DATA).class_ids == ["n03", "n02", "n01"]


def test_each_list_of_a_dataset_is_looked_for_in_its_root(images: Path, tmp_path: Path) -> None:
    (images / "val" / "n01" / "n01_0.jpg").rename(images / "val" / "one.jpg")
    for name in ("n01", "n02", "n03"):
        shutil.rmtree(images / "val" / name)
    write_list(images / "val_list.txt", "one.jpg n01")
    (images / "real.json").write_text(json.dumps({"one.jpg": [0, 2]}))
    data = ImageNetDataModule(str(images), val_list="val_list.txt", real_labels="real.json", **tiny.DATA)
    assert data.samples("val") == [(str(images / "val" / "one.jpg"), [0, 2])]

    root = scenes.write_scenes(tmp_path / "scenes", train=1, val=1)
    write_list(root / "colors.txt", "1 1 1", "2 2 2", "3 3 3")
    segmentation = ADE20KDataModule(str(root), class_names="names.txt", palette="colors.txt", **scenes.DATA)
    assert segmentation.class_names == scenes.NAMES
    assert segmentation.class_ids == ["#010101", "#020202", "#030303"]


# ---- classes of which there is nothing


def test_images_classes_without_training_images_are_said(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_list(images / "classes.txt", "n01", "n02", "n03", "n04")
    ImageNetDataModule(str(images), **tiny.DATA).setup("fit")
    assert "1 of 4 classes has no training image and cannot be learned: n04\n" in capsys.readouterr().out


def test_videos_classes_without_training_videos_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = motions.write_motions(tmp_path / "motions", train=1, val=1)
    write_list(root / "label_map.txt", *motions.LABELS, "stays", "turns")
    KineticsDataModule(str(root), **motions.DATA).setup("fit")
    assert "2 of 4 classes have no training video and cannot be learned: stays, turns\n" in capsys.readouterr().out


def test_categories_without_objects_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = objects.write_objects(tmp_path / "objects")
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}2017.json"
        content = json.loads(path.read_text())
        content["categories"].append({"id": 999, "name": "unicorn"})
        path.write_text(json.dumps(content))
    CocoDataModule(str(root), **objects.DATA).setup("fit")
    assert "1 of 4 classes has no training object and cannot be learned: 999 unicorn\n" in capsys.readouterr().out


# ---- a checkpoint needs none of these files


@pytest.mark.parametrize("name", ["classification", "segmentation", "video", "mask_rcnn"])
def test_a_checkpoint_is_evaluated_on_a_dataset_that_moved(name: str, tmp_path: Path) -> None:
    tiny_task = TINY_TASKS[name]
    data = tiny_task.write_data(tmp_path / "data")
    config = tiny_task.config(tmp_path, data, trainer={"max_epochs": 1})
    run = fit(config, tmp_path / "runs")

    moved = data.rename(tmp_path / "moved")
    for path in (*moved.glob("*.txt"), *moved.glob("*.csv")):
        if path.stem not in ("train", "val"):  # which say where the samples are, and not what the classes are
            path.unlink()
    config.unlink()
    arguments = [f"--ckpt_path={last_checkpoint(run)}", f"--data.root={moved}", f"--runs={tmp_path / 'evaluated'}"]
    assert main(["validate", *arguments]) == 0

    (metrics,) = (tmp_path / "evaluated").rglob("metrics.csv")
    assert read_scores(metrics.parent) == read_scores(run)
    for table in (tmp_path / "evaluated").rglob("val_classes.json"):
        assert json.loads(table.read_text()) == json.loads((run / "val_classes.json").read_text())


# ---- channels


@pytest.mark.parametrize("name", ["classification", "segmentation", "video", "mask_rcnn", "simmim"])
def test_a_backbone_for_other_channels_than_the_data_s_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_task = TINY_TASKS[name]
    config = tiny_task.config(tmp_path, tiny_task.write_data(tmp_path / "data"))
    message = user_error(
        capsys, "fit", f"--config={config}", f"--runs={tmp_path}", "--model.backbone.init_args.in_channels=4"
    )
    assert message.splitlines()[0].startswith("swinv2-tasks: model.backbone.in_channels is 4, but the data")
    assert len(message.splitlines()) == 1


def test_a_loader_of_one_s_own_may_have_any_channels() -> None:
    task = ClassificationTask(SwinTransformerV2(**tiny.BACKBONE, in_channels=4), 3)
    batch = {"image": torch.randn(2, 4, 32, 32), "label": torch.tensor([0, 2])}
    trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, **tiny.QUIET)
    trainer.fit(task, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    assert trainer.global_step == 1
