"""LVIS and masks of objects are read as the same objects that COCO's files have; EXIF rotation is a setting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from swinv2_tasks.datamodules import ADE20KDataModule, CocoDataModule
from swinv2_tasks.datamodules.readers.instance_masks import CITY_CLASSES, instance_codes
from swinv2_tasks.datamodules.readers.label_maps import read_numbers
from swinv2_tasks.errors import UserError
from tests.helpers.object_layouts import (
    MASK_CLASSES,
    masks_of,
    read_coco,
    write_lvis,
    write_numbered,
    write_one_each,
)
from tests.helpers.objects import CATEGORIES, DATA, change, write_objects


def without_crowds(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        entry["iscrowd"] = 0


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_objects(tmp_path_factory.mktemp("coco"))
    for split in ("train", "val"):
        change(root, split, without_crowds)
    return root


def read(root: Path, **arguments: Any) -> CocoDataModule:
    data = CocoDataModule(str(root), **{**DATA, **arguments})
    data.setup("fit")
    return data


Objects = list[tuple[list[float], float, bytes]]


def objects(data: CocoDataModule) -> dict[str, Objects]:
    """Box, area and mask of each object, of each validation image."""
    return {
        Path(sample["paths"]).stem: sorted(
            (box, area, mask.numpy().tobytes())
            for box, area, mask in zip(
                sample["targets"]["boxes"].tolist(),
                sample["targets"]["area"].tolist(),
                sample["targets"]["masks"],
                strict=True,
            )
        )
        for sample in data.val_dataset  # type: ignore[union-attr]
    }


def drawn(coco: Path) -> dict[str, Objects]:
    """The same of the masks themselves, by looking at each pixel."""
    expected = {}
    for file, entries in masks_of(coco, "val").items():
        expected[Path(file).stem] = sorted((*box_and_area(pixels), pixels.tobytes()) for _, pixels in entries)
    return expected


def box_and_area(pixels: np.ndarray) -> tuple[list[float], float]:
    rows, columns = np.nonzero(pixels)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return [float(edge) for edge in box], float(pixels.sum())


# ---- LVIS


def test_lvis_has_the_objects_of_coco(coco: Path, tmp_path: Path, capsys: Any) -> None:
    expected = read(coco)
    capsys.readouterr()
    data = read(write_lvis(coco, tmp_path))
    said = capsys.readouterr().out
    assert "data.root is read as lvis: annotations/lvis_v1_train.json, annotations/lvis_v1_val.json\n" in said
    assert "neg_category_ids" in said and "scores are COCO's" in said
    assert (data.class_ids, data.class_names) == (expected.class_ids, expected.class_names)
    assert data.class_frequencies == ["r", "c", "f"] and expected.class_frequencies is None
    assert data.train_samples == expected.train_samples
    assert objects(data) == objects(expected)
    assert "train2017" in data.val_dataset.sample_id(4)  # type: ignore[union-attr]


def test_lvis_files_may_lie_beside_images_in_a_folder(coco: Path, tmp_path: Path) -> None:
    root = write_lvis(coco, tmp_path)
    expected = objects(read(root))
    for split in ("train", "val"):
        shutil.move(root / "annotations" / f"lvis_v1_{split}.json", root)
        (root / "images").mkdir(exist_ok=True)
        shutil.move(root / f"{split}2017", root / "images")
    assert objects(read(root)) == expected
    shutil.rmtree(root / "images")
    with pytest.raises(UserError, match="no folder train2017 or val2017"):
        read(root)


def test_lvis_beside_coco_is_ambiguous(coco: Path, tmp_path: Path) -> None:
    root = write_lvis(coco, tmp_path)
    shutil.copytree(coco / "annotations", root / "annotations", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"as coco .* or as lvis .*--data\.layout coco or --data\.layout lvis"):
        read(root)
    shutil.copy(root / "annotations" / "lvis_v1_val.json", root / "annotations" / "lvis_v0.5_val.json")
    with pytest.raises(UserError, match=r"several of LVIS's annotation files .*lvis_v0\.5_val\.json"):
        read(root, layout="lvis")


@pytest.mark.parametrize(
    ("address", "message"),
    [("http://host/../x.jpg", "leaves the folder"), (None, "no coco_url"), (3, "no coco_url")],
)
def test_addresses_choose_no_other_folders(coco: Path, tmp_path: Path, address: Any, message: str) -> None:
    root = write_lvis(coco, tmp_path)
    file = root / "annotations" / "lvis_v1_train.json"
    content = json.loads(file.read_text())
    content["images"][0]["coco_url"] = address
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read(root)


# ---- masks

FORMS = {
    "images/{0}/{1}.jpg masks/{0}/{1}.png": "images/train/ and masks/train/, images/valid/ and masks/valid/",
    "{0}/images/{1}.jpg {0}/masks/{1}_mask.png": "train/images/ and train/masks/, valid/images/ and valid/masks/",
}


@pytest.mark.parametrize("form", FORMS)
def test_numbered_masks(coco: Path, tmp_path: Path, form: str, capsys: Any) -> None:
    data = read(write_numbered(coco, tmp_path, form))
    assert f"data.root is read as instance-masks: {FORMS[form]}\n" in capsys.readouterr().out
    assert (data.class_ids, data.class_names) == ([1], ["object"])
    assert data.train_samples == read(coco).train_samples
    assert objects(data) == drawn(coco)


def test_masks_of_penn_fudan(coco: Path, tmp_path: Path, capsys: Any) -> None:
    data = read(write_numbered(coco, tmp_path, "PNGImages/{0}-{1}.png PedMasks/{0}-{1}_mask.png"), keep_empty=True)
    said = capsys.readouterr().out
    assert "data.root is read as instance-masks: PNGImages/ and PedMasks/" in said
    assert "2 of 17 training images are set aside for validation" in said and data.train_samples == 15


def test_masks_with_classes(coco: Path, tmp_path: Path, capsys: Any) -> None:
    root = write_numbered(coco, tmp_path, "images/{0}/{1}.jpg masks/{0}/{1}.png", per_class=1000)
    data = read(root)
    assert "class × 1000 + number" in capsys.readouterr().out
    assert (data.class_ids, data.class_names) == ([3, 5, 9], ["3", "5", "9"])
    (root / "classes.csv").write_text("".join(f"{MASK_CLASSES[key]},{name}\n" for key, name in CATEGORIES.items()))
    data = read(root)
    assert data.class_names == list(CATEGORIES.values()) and objects(data) == drawn(coco)
    labels = {Path(item["paths"]).stem: sorted(item["targets"]["labels"].tolist()) for item in data.val_dataset}  # type: ignore[union-attr]
    categories = list(CATEGORIES)
    for file, entries in masks_of(coco, "val").items():
        assert labels[Path(file).stem] == sorted(categories.index(category) for category, _ in entries)
    (root / "classes.csv").write_text("3,a\n5,b\n")
    with pytest.raises(UserError, match=r"objects of the classes 9, which .*classes\.csv"):
        read(root)


def test_a_mask_of_each_object(coco: Path, tmp_path: Path, capsys: Any) -> None:
    root = write_one_each(coco, tmp_path)
    data = read(root)
    said = capsys.readouterr().out
    assert "data.root is read as instance-masks: stage1_train/IMAGE/masks/, stage1_valid/IMAGE/masks/\n" in said
    assert objects(data) == drawn(coco)

    shutil.rmtree(root / "stage1_valid")
    assert read(root / "stage1_train").train_samples > 0  # each folder is an image's
    shutil.copy(next(root.glob("stage1_train/*/images/*")), root / "stage1_train" / "train_3" / "images" / "more.jpg")
    with pytest.raises(UserError, match=r"train_3 has 2 images"):
        read(root, val_share=0.2)


def test_masks_of_objects_may_overlap(coco: Path, tmp_path: Path) -> None:
    root = write_one_each(coco, tmp_path)
    folder = root / "stage1_valid" / "val_0" / "masks"
    Image.new("L", (80, 64), 1).save(folder / "all.png")
    Image.new("L", (80, 64), 0).save(folder / "none.png")
    boxes = [box for box, _, _ in objects(read(root))["val_0"]]
    assert [0, 0, 80, 64] in boxes and len(boxes) == len(drawn(coco)["val_0"]) + 1


def test_masks_of_cityscapes(coco: Path, tmp_path: Path, capsys: Any) -> None:
    """Cars and persons by their numbers; a group of persons is a crowd; roads and caravans are no objects."""
    for split in ("train", "val"):
        for kind in ("leftImg8bit", "gtFine"):
            (tmp_path / kind / split / "ulm").mkdir(parents=True)
        numbers = np.full((32, 48), 7, np.uint16)
        for number, rows in ((26000, 0), (26001, 8), (24000, 16), (24, 20), (29000, 26)):
            numbers[rows : rows + 4, 5:20] = number
        Image.fromarray(numbers).save(tmp_path / "gtFine" / split / "ulm" / "ulm_1_gtFine_instanceIds.png")
        Image.new("RGB", (48, 32)).save(tmp_path / "leftImg8bit" / split / "ulm" / "ulm_1_leftImg8bit.png")
    data = read(tmp_path)
    assert "read as instance-masks: gtFine/*_gtFine_instanceIds.png" in capsys.readouterr().out
    assert data.class_ids == list(CITY_CLASSES) and data.class_names[:3] == ["person", "rider", "car"]
    (sample,) = data.val_dataset  # type: ignore[misc]
    target = sample["targets"]
    found = sorted(zip(target["labels"].tolist(), target["iscrowd"].tolist(), target["boxes"].tolist(), strict=True))
    assert found == [
        (0, 0, [5, 16, 20, 20]), (0, 1, [5, 20, 20, 24]), (2, 0, [5, 0, 20, 4]), (2, 0, [5, 8, 20, 12]),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(10))
def test_codes_of_numbers_are_their_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, rng.integers(1, 6), rng.integers(1, 30, 2)).astype(np.uint16)
    codes = dict(instance_codes(numbers))
    assert codes.keys() == set(np.unique(numbers).tolist()) - {0}
    for number, code in codes.items():
        assert (coco_masks.decode(code) == (numbers == number)).all()


def test_many_objects_of_one_class_are_no_classes(tmp_path: Path) -> None:
    """Numbers beyond 1000 are no classes where those between 255 and 1000 are used, too."""
    numbers = np.arange(40 * 40, dtype=np.uint16).reshape(40, 40)
    for folder, array in (("images", np.zeros((40, 40, 3), np.uint8)), ("masks", numbers)):
        (tmp_path / folder).mkdir()
        for name in "abc":
            Image.fromarray(array).save(tmp_path / folder / f"{name}.png")
    data = read(tmp_path)
    assert data.class_ids == [1]
    (sample,) = data.val_dataset  # type: ignore[misc]
    assert len(sample["targets"]["boxes"]) == 1599


def test_what_are_no_masks_of_objects_is_refused(coco: Path, tmp_path: Path) -> None:
    root = write_numbered(coco, tmp_path, "images/{0}/{1}.jpg masks/{0}/{1}.png")
    mask = root / "masks" / "valid" / "val_2.png"
    content = mask.read_bytes()
    mask.unlink()
    with pytest.raises(UserError, match=r"1 of 5 images have no mask in masks/valid: val_2\.jpg"):
        read(root)
    Image.new("RGB", (72, 72)).save(mask)
    with pytest.raises(UserError, match=r"val_2\.png holds colors"):
        read(root)
    Image.new("L", (70, 72), 1).save(mask)
    with pytest.raises(UserError, match=r"val_2\.png has 70×72 pixels, its image .*val_2\.jpg 72×72"):
        read(root)
    mask.write_bytes(content)
    read(root)

    for path in root.glob("masks/*/*.png"):
        image = Image.open(path)
        pattern = (np.indices((image.height, image.width)).sum(0) // 8 % 3).astype(np.uint8)
        Image.fromarray(pattern).save(path)
    with pytest.raises(UserError, match=r"as instance-masks .* or as label maps .*--data\.layout instance-masks"):
        read(root)
    read(root, layout="instance-masks")
    for path in root.glob("masks/*/*.png"):
        Image.fromarray(np.where(np.array(Image.open(path)), np.uint8(255), np.uint8(0))).save(path)
    with pytest.raises(UserError, match="hold 0 and 255 alone"):
        read(root)


def test_segmentation_tells_numbers_of_objects_from_classes(coco: Path, tmp_path: Path) -> None:
    root = write_numbered(coco, tmp_path, "images/{0}/{1}.jpg masks/{0}/{1}.png")
    data = ADE20KDataModule(str(root), crop_size=32, resize=[64, 32], batch_size=4, num_workers=0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"as label maps .* or as masks .*data\.class_names or data\.label_values"):
        data.setup("fit")
    values = {number: str(min(number, 1)) for number in range(5)}
    data = ADE20KDataModule(str(root), 32, (64, 32), 4, 0, label_values=values)
    data.setup("fit")
    assert data.class_names == ["0", "1"]


def test_numbers_of_16_bits(tmp_path: Path) -> None:
    values = np.array([[0, 1, 256], [65535, 1000, 24001]], np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert (read_numbers(tmp_path / name) == values).all()
    Image.fromarray(np.array([[0, 70_000]], np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(UserError, match="not from 0 to 65,535"):
        read_numbers(tmp_path / "b.tif")


# ---- EXIF


def write_turned(root: Path, width: int, height: int) -> Path:
    """An image of 40 × 20 stored pixels that a viewer turns, red at its stored left, declared as width × height."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :10, 0] = 250
    exif = Image.Exif()
    exif[0x0112] = 6
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": width, "height": height}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 20]}],
        "categories": [{"id": 1, "name": "red"}],
    }
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir()
        Image.fromarray(pixels).save(root / f"{split}2017" / "a.png", exif=exif)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def test_exif_rotation_can_be_switched_off(tmp_path: Path) -> None:
    root = write_turned(tmp_path / "stored", 40, 20)
    with pytest.raises(UserError, match=r"20×40 pixels as a viewer shows it, .* 40×20.*data\.exif_rotation=false"):
        read(root).val_dataset[0]  # type: ignore[index]
    data = read(root, exif_rotation=False, resize=(40, 20))
    assert data.record["init_args"]["exif_rotation"] is False
    data.source = str(root / "val2017")
    data.setup("predict")
    for dataset in (data.val_dataset, data.predict_dataset):
        sample = dataset[0]  # type: ignore[index]
        assert sample["sizes"] == (20, 40) and sample["images"].shape == (3, 20, 40)
        red = sample["images"][0] > sample["images"][0].mean()
        assert red[:, :10].all() and not red[:, 10:].any()
        assert sample["rescaled"](1.0).shape == (1, 3, 20, 40)
    assert data.train_dataset[0]["images"].shape[1] < data.train_dataset[0]["images"].shape[2]  # type: ignore[index]

    root = write_turned(tmp_path / "shown", 20, 40)
    with pytest.raises(UserError, match=r"40×20 pixels as stored, .* 20×40.*data\.exif_rotation=true"):
        read(root, exif_rotation=False).val_dataset[0]  # type: ignore[index]
    data = read(root)
    assert data.val_dataset[0]["sizes"] == (40, 20)  # type: ignore[index]


def test_sizes_that_are_read_from_files_follow_the_setting(tmp_path: Path) -> None:
    root = write_turned(tmp_path, 40, 20)
    Image.open(root / "val2017" / "a.png").close()
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        shutil.move(root / f"{split}2017" / "a.png", root / split / "images")
        (root / split / "labels" / "a.txt").write_text("0 0.125 0.5 0.25 1\n")
    shutil.rmtree(root / "annotations")
    (root / "data.yaml").write_text("names: [red]\ntrain: train/images\nval: val/images\n")
    for exif_rotation, size, box in ((True, (40, 20), [0, 0, 5, 40]), (False, (20, 40), [0, 0, 10, 20])):
        (sample,) = read(root, exif_rotation=exif_rotation).val_dataset  # type: ignore[misc]
        assert sample["sizes"] == size and sample["targets"]["boxes"].tolist() == [box]


def test_the_copies_of_coco_are_what_they_seem(coco: Path) -> None:
    """Otherwise equal boxes would say nothing."""
    _, entries = read_coco(coco, "val")
    boxes = [entry["bbox"] for objects in entries.values() for entry in objects]
    assert len(boxes) > 5
