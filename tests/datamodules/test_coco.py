"""COCO's layout: what batches hold, which images they are made of, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from swinv2_tasks.datamodules import (
    CocoDataModule,
    DetectionAugmentation,
    MultiScaleAugmentation,
    ScaleJitterAugmentation,
)
from swinv2_tasks.datamodules.coco import CocoFiles
from swinv2_tasks.datamodules.transforms.classification import IMAGENET_MEAN, IMAGENET_STD
from swinv2_tasks.errors import UserError
from tests.helpers.objects import CATEGORIES, DATA, change, write_objects


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_objects(tmp_path_factory.mktemp("objects"))


@pytest.fixture
def own(objects: Path, tmp_path: Path) -> Path:
    """A copy that a test may corrupt."""
    return Path(shutil.copytree(objects, tmp_path / "own"))


def new_data(root: Path, stage: str = "fit", **arguments: Any) -> CocoDataModule:
    data = CocoDataModule(str(root), **{**DATA, **arguments})
    data.setup(stage)
    return data


def test_classes_are_the_categories(objects: Path) -> None:
    data = CocoDataModule(str(objects), **DATA)
    assert data.num_classes == 3
    assert (data.class_ids, data.class_names) == (list(CATEGORIES), list(CATEGORIES.values()))
    assert CocoDataModule(class_names=["a", "b"]).num_classes == 2


def test_training_batches_hold_images_and_targets(objects: Path, capsys: Any) -> None:
    data = new_data(objects)
    theirs = COCO(str(objects / "annotations" / "instances_train2017.json"))
    capsys.readouterr()
    images = 0
    for batch in data.train_dataloader():
        assert batch.keys() == {"images", "targets"} and len(batch["images"]) == len(batch["targets"]) == 4
        for image, target in zip(batch["images"], batch["targets"], strict=True):
            assert image.dtype == torch.float32 and min(image.shape[1:]) in (56, 64)
            number = len(target["boxes"])
            assert target["boxes"].shape == (number, 4) and target["boxes"].dtype == torch.float32
            assert target["labels"].dtype == torch.int64 and 0 <= target["labels"].min() <= target["labels"].max() < 3
            assert target["masks"].shape == (number, *image.shape[1:]) and target["masks"].dtype == torch.uint8
            assert (target["area"] == target["masks"].sum((1, 2))).all()
            assert target["iscrowd"].tolist() == [0] * number
            annotated = theirs.imgToAnns[target["image_id"]]
            expected = sorted(entry["category_id"] for entry in annotated if not entry["iscrowd"])
            assert sorted(data.class_ids[label] for label in target["labels"].tolist()) == expected
            images += number
    assert images > 5


def test_images_without_objects_are_dropped_or_kept(objects: Path) -> None:
    crowd_only = change(objects, "train", lambda content: None)
    content = json.loads(crowd_only.read_text())
    full = {entry["image_id"] for entry in content["annotations"] if not entry["iscrowd"]}
    assert len(full) < len(content["images"])
    assert new_data(objects).train_samples == len(full)
    data = new_data(objects, keep_empty=True)
    assert data.train_samples == len(content["images"])
    empty = [sample for sample in data.train_dataset if not len(sample["targets"]["boxes"])]  # type: ignore[union-attr]
    assert len(empty) == len(content["images"]) - len(full)
    assert all(sample["targets"]["masks"].shape[0] == 0 for sample in empty)


def test_evaluation_takes_everything_as_annotated(objects: Path, capsys: Any) -> None:
    data = new_data(objects, "validate")
    theirs = COCO(str(objects / "annotations" / "instances_val2017.json"))
    capsys.readouterr()
    loader = data.val_dataloader()
    assert len(loader) == len(theirs.imgs) == 5
    crowds = 0
    for batch in loader:
        (image,), (target,), (size,), (image_id,), (path,) = (
            batch[key] for key in ("images", "targets", "sizes", "image_ids", "paths")
        )
        entry = theirs.imgs[image_id]
        assert size == (entry["height"], entry["width"]) and Path(path).name == entry["file_name"]
        assert min(image.shape[1:]) == 64 or max(image.shape[1:]) == 96
        pixels = np.asarray(Image.open(path).resize(image.shape[:0:-1], Image.Resampling.BILINEAR), np.float32)
        restored = (image.permute(1, 2, 0).numpy() * IMAGENET_STD + IMAGENET_MEAN) * 255
        assert np.abs(restored - pixels).mean() < 12
        annotated = theirs.imgToAnns[image_id]
        assert [data.class_ids[k] for k in target["labels"]] == [entry["category_id"] for entry in annotated]
        boxes = np.array([entry["bbox"] for entry in annotated], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert np.array_equal(target["boxes"], boxes)
        assert target["iscrowd"].tolist() == [entry["iscrowd"] for entry in annotated]
        assert target["area"].tolist() == [entry["area"] for entry in annotated]
        for mask, entry in zip(target["masks"], annotated, strict=True):
            assert (mask.numpy() == theirs.annToMask(entry)).all()
        crowds += int(target["iscrowd"].sum())
    assert crowds


def test_batches_are_of_one_shape_as_far_as_possible(objects: Path) -> None:
    for group, expected in ((True, range(2)), (False, range(1, 4))):
        mixed = []
        for seed in range(12):
            torch.manual_seed(seed)
            data = new_data(objects, batch_size=3, aspect_ratio_grouping=group)
            shapes = [[i.shape[1] > i.shape[2] for i in batch["images"]] for batch in data.train_dataloader()]
            mixed.append(sum(len(set(orientations)) > 1 for orientations in shapes))
        assert expected.start <= sum(mixed) / len(mixed) < expected.stop


def test_boxes_alone(objects: Path, tmp_path: Path) -> None:
    plain = write_objects(tmp_path / "plain", masks=False)
    for data in (new_data(plain), new_data(objects, masks=False)):
        assert not data.has_masks
        batch = next(iter(data.train_dataloader()))
        assert all("masks" not in target for target in batch["targets"])
        assert all((t["boxes"][:, 2:] > t["boxes"][:, :2]).all() for t in batch["targets"])
        assert all("masks" not in target for target in next(iter(data.val_dataloader()))["targets"])
    assert new_data(objects).has_masks


def test_an_object_that_has_only_a_box_among_others_with_masks(own: Path) -> None:
    change(own, "train", lambda content: [is_bare.pop("segmentation") for is_bare in content["annotations"][1:3]])
    data = new_data(own)
    targets = [sample["targets"] for sample in data.train_dataset]  # type: ignore[union-attr]
    bare = [(t["masks"].flatten(1).any(1) == 0) for t in targets]
    assert sum(int(is_bare.sum()) for is_bare in bare) >= 1
    for target, is_bare in zip(targets, bare, strict=True):
        assert (target["area"] > 0).all() and (target["boxes"][is_bare][:, 2:] > target["boxes"][is_bare][:, :2]).all()


def test_bad_boxes_are_counted_in_a_warning(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    def spoil(content: Any) -> None:
        good = next(entry for entry in content["annotations"] if not entry["iscrowd"])
        for k, box in enumerate(([5, 5, 0, 9], [500, 5, 9, 9], [40, 40, 500, 500])):
            content["annotations"].append({**good, "id": 900 + k, "bbox": box, "segmentation": []})

    change(own, "train", spoil)
    data = new_data(own)
    assert "1 boxes without area, 1 outside of their image left out of training; 1 that reach beyond" in caplog.text
    for sample in data.train_dataset:  # type: ignore[union-attr]
        assert (sample["targets"]["boxes"][:, 2:] > sample["targets"]["boxes"][:, :2]).all()


def test_crowds_and_images_without_objects_are_counted(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Some annotation tools write iscrowd: 1 for every object."""

    def crowd(content: Any) -> None:
        single = [entry for entry in content["annotations"] if not entry["iscrowd"]]
        for entry in single[1:]:
            entry["iscrowd"] = 1

    change(own, "train", crowd)
    change(own, "val", crowd)
    content = json.loads((own / "annotations" / "instances_train2017.json").read_text())
    number = len(content["annotations"])
    data = new_data(own, batch_size=1)
    assert data.train_samples == 1
    assert f"of {number} objects {number - 1} crowds (iscrowd: 1) left out of training" in caplog.text
    assert "11 of 12 images have no object to train on and are left out" in caplog.text
    assert caplog.text.count("set iscrowd to 0") == 2  # for validation as well
    assert "are crowds (iscrowd: 1), which count neither as found nor as missed" in caplog.text


@pytest.mark.parametrize("keep_empty", [False, True])
def test_nothing_but_crowds_is_refused_with_the_remedy(keep_empty: bool, own: Path) -> None:
    change(own, "train", lambda content: [entry.update(iscrowd=1) for entry in content["annotations"]])
    with pytest.raises(UserError, match=r"no object to train on: of (\d+), \1 are crowds .* set iscrowd to 0"):
        new_data(own, keep_empty=keep_empty)


@pytest.mark.parametrize(
    "augmentation",
    [
        ScaleJitterAugmentation(scale_range=(0.3, 2.0), target_size=64, copy_paste=1.0),
        MultiScaleAugmentation(min_size=(56, 64), min_size_step=8, max_size=96, crop=1.0),
    ],
    ids=["jitter", "crop"],
)
def test_other_augmentations_yield_whole_targets(objects: Path, augmentation: DetectionAugmentation) -> None:
    torch.manual_seed(0)
    data = new_data(objects, augmentation=augmentation)
    largest = augmentation.largest_size()
    assert largest is not None
    for sample in data.train_dataset:  # type: ignore[union-attr]
        image, target = sample["images"], sample["targets"]
        assert max(image.shape[1:]) <= max(largest) and min(image.shape[1:]) <= min(largest)
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = mask.nonzero(as_tuple=True)
            bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [float(edge) for edge in bounds]


def test_stuff_maps_follow_the_image(objects: Path) -> None:
    data = new_data(objects, files=CocoFiles(train_stuff="stuff"), stuff_classes=2)
    for sample in data.train_dataset:  # type: ignore[union-attr]
        stuff = sample["targets"]["stuff"]
        assert stuff.shape == sample["images"].shape[1:] and stuff.dtype == torch.uint8
        assert set(stuff.unique().tolist()) <= {0, 1, 255}
        things = sample["targets"]["masks"].sum(0) > 0
        assert (stuff[things] == 255).float().mean() > 0.85
    with pytest.raises(UserError, match=r"train_\d+.png holds 1, data.stuff_classes is 1"):
        [*new_data(objects, files=CocoFiles(train_stuff="stuff"), stuff_classes=1).train_dataset]  # type: ignore[misc]
    with pytest.raises(UserError, match=r"nowhere of data.files.train_stuff does not exist"):
        new_data(objects, files=CocoFiles(train_stuff="nowhere"))


def test_test_images_of_their_own_may_lack_annotations(own: Path) -> None:
    content = json.loads((own / "annotations" / "instances_val2017.json").read_text())
    del content["annotations"]
    (own / "annotations" / "image_info_test.json").write_text(json.dumps(content))
    settings = {"files": CocoFiles(test_images="val2017", test_annotations="annotations/image_info_test.json")}
    batch = next(iter(new_data(own, "test", **settings).test_dataloader()))
    assert "targets" not in batch and batch["image_ids"]
    assert len(new_data(own, "test").test_dataloader()) == 5  # the validation images, otherwise
    with pytest.raises(UserError, match="belong together"):
        CocoDataModule(str(own), files=CocoFiles(test_images="val2017"))


def test_predicting_reads_images_anywhere(objects: Path) -> None:
    data = CocoDataModule(source=str(objects / "val2017"), class_names=["a"], **DATA)
    data.setup("predict")
    batches = [*data.predict_dataloader()]
    assert len(batches) == 5 and batches[0].keys() == {"images", "paths", "sizes", "rescaled"}
    assert batches[0]["sizes"] == [(64, 80)] and batches[0]["images"][0].shape == (3, 64, 80)
    with pytest.raises(UserError, match=r"data.source"):
        CocoDataModule(class_names=["a"], **DATA).setup("predict")


@pytest.mark.parametrize("name", ["coco-mini", "bccd"])
def test_real_data_train_and_evaluate(real_data: Path, name: str) -> None:
    augmentation = MultiScaleAugmentation(min_size=(160, 224), max_size=320, crop=0.5)
    data = new_data(real_data / name, num_workers=2, batch_size=4, augmentation=augmentation)
    assert data.has_masks == (name == "coco-mini")
    batch = next(iter(data.train_dataloader()))
    assert all(len(target["boxes"]) for target in batch["targets"])
    assert len([*data.val_dataloader()]) == {"coco-mini": 32, "bccd": 29}[name]


def test_scales_are_made_of_the_files_pixels(objects: Path) -> None:
    """As the published code does it: limits are scaled and cut down to whole pixels, then files are resized to fit."""
    arguments: dict[str, Any] = {"resize": (97, 65), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    evaluated = new_data(objects, "validate", **arguments)
    predicted = new_data(objects, "predict", source=str(objects / "val2017"), **arguments)
    for batch in [*evaluated.val_dataloader(), *predicted.predict_dataloader()]:
        pixels = cv2.imread(batch["paths"][0])[..., ::-1]
        long, short = max(pixels.shape[:2]), min(pixels.shape[:2])
        (rescaled,), (image,) = batch["rescaled"], batch["images"]
        for scale, limits in ((0.5, (48, 32)), (0.75, (72, 48)), (1.5, (145, 97))):
            factor = min(limits[0] / long, limits[1] / short)
            size = [int(side * factor + 0.5) for side in pixels.shape[1::-1]]
            expected = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
            expected = (expected - arguments["mean"]) / arguments["std"]
            torch.testing.assert_close(rescaled(scale)[0].movedim(0, -1), torch.from_numpy(expected).float())
        torch.testing.assert_close(rescaled(1.0)[0], image)


def test_paths_may_be_absolute_or_in_the_home_folder(
    objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root is where relative ones are looked for, and nothing else."""
    monkeypatch.setenv("HOME", str(objects.parent))
    for start in (objects, Path("~", objects.name)):
        paths = {
            f"{split}_{what}": str(start / path)
            for split in ("train", "val")
            for what, path in (("images", f"{split}2017"), ("annotations", f"annotations/instances_{split}2017.json"))
        }
        data = new_data(tmp_path, files=CocoFiles(**paths, train_stuff=str(start / "stuff")), stuff_classes=2)
        assert data.num_classes == 3 and len(next(iter(data.train_dataloader()))["images"]) == 4
        assert len(data.val_dataloader()) == 5
    elsewhere = shutil.copy(objects / "annotations" / "instances_val2017.json", tmp_path / "own.json")
    assert len(new_data(objects, "validate", files=CocoFiles(val_annotations=str(elsewhere))).val_dataloader()) == 5


# ---- what is refused


def test_missing_paths_are_reported(own: Path, tmp_path: Path) -> None:
    for settings, message in (
        ({"root": str(tmp_path / "no")}, "The dataset folder .*no does not exist"),
        ({"files": CocoFiles(train_annotations="annotations/no.json")}, "There are no annotations .*no.json"),
        ({"files": CocoFiles(train_images="no")}, "The folder .*no of the images does not exist"),
    ):
        data = CocoDataModule(**{"root": str(own), **DATA, **settings})
        with pytest.raises(UserError, match=message):
            data.setup("fit")
    with pytest.raises(UserError, match=r"No dataset: set data.root"):
        CocoDataModule(**DATA).setup("fit")


def test_missing_images_stop_or_are_skipped(own: Path) -> None:
    (own / "train2017" / "train_3.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 12 images in .* are not in .*train_3.jpg.*faulty_samples=skip"):
        new_data(own)
    data = new_data(own, faulty_samples="skip", batch_size=5)
    assert sum(len(batch["images"]) for batch in data.train_dataloader()) == 9
    assert [Path(name).name for name in data.faults.skipped] == ["train_3.jpg"]
    shutil.rmtree(own / "train2017")
    (own / "train2017").mkdir()
    with pytest.raises(UserError, match="12 of 12 images"):
        new_data(own, faulty_samples="skip")


def test_an_image_of_another_size_than_declared_is_reported(own: Path) -> None:
    path = own / "train2017" / "train_2.jpg"
    Image.open(path).resize((50, 40)).save(path)
    data = new_data(own)
    with pytest.raises(UserError, match=r"train_2.jpg \(id 15\) has 50×40 pixels .* declares 72×72"):
        [*data.train_dataloader()]


def test_a_mask_that_does_not_add_up_is_reported(own: Path) -> None:
    def spoil(content: Any) -> None:
        good = next(entry for entry in content["annotations"] if not entry["iscrowd"])
        size = next([i["height"], i["width"]] for i in content["images"] if i["id"] == good["image_id"])
        good["segmentation"] = {"size": size, "counts": [1, 2, 3]}

    change(own, "train", spoil)
    with pytest.raises(UserError, match=r"run lengths of annotation \d+ of image \d+ \(.*jpg\) do not add up"):
        [*new_data(own).train_dataloader()]


def test_other_categories_in_validation_are_refused_with_both_lists(own: Path) -> None:
    change(own, "val", lambda content: content["categories"].append({"id": 91, "name": "extra"}))
    with pytest.raises(UserError, match=r"3 red square, 5 green disc, 90 blue bar, the other .*91 extra"):
        new_data(own)


def test_nothing_to_train_on_is_reported(own: Path) -> None:
    change(own, "train", lambda content: content.update(annotations=[]))
    with pytest.raises(UserError, match="no object to train on"):
        new_data(own)
    change(own, "train", lambda content: content.pop("annotations"))
    with pytest.raises(UserError, match="nothing can be learned"):
        new_data(own)
    change(own, "val", lambda content: content.update(images=[], annotations=[]))
    with pytest.raises(UserError, match="lists no image"):
        new_data(own, "validate")


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.resize is 200"):
        CocoDataModule(resize=(100, 200))


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (MultiScaleAugmentation, {"min_size": (200, 100)}, "min_size is 200"),
        (MultiScaleAugmentation, {"min_size_step": 0}, "min_size_step is 0"),
        (MultiScaleAugmentation, {"max_size": 10}, "max_size is 10"),
        (MultiScaleAugmentation, {"crop": 2.0}, "crop is 2"),
        (MultiScaleAugmentation, {"horizontal_flip": -1.0}, "horizontal_flip is -1"),
        (MultiScaleAugmentation, {"copy_paste": 1.5}, "copy_paste is 1.5"),
        (ScaleJitterAugmentation, {"scale_range": (2.0, 1.0)}, "scale_range is 2"),
        (ScaleJitterAugmentation, {"target_size": 0}, "target_size is 0"),
        (ScaleJitterAugmentation, {"copy_paste": -0.5}, "copy_paste is -0.5"),
    ],
)
def test_settings_of_the_augmentation_out_of_range_are_refused(make: Any, settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"data\.augmentation\.{message}"):
        make(**settings)


def test_copy_paste_needs_masks(objects: Path) -> None:
    with pytest.raises(UserError, match="copy_paste needs masks"):
        new_data(objects, masks=False, augmentation=replace(DATA["augmentation"], copy_paste=0.5))
