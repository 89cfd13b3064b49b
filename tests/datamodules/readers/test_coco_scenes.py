"""Label maps drawn of objects in COCO's format, against a composition of pycocotools' masks pixel by pixel."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules import ADE20KDataModule
from swinv2_tasks.datamodules.datasets.segmentation import LabeledScenes
from swinv2_tasks.errors import UserError
from tests.helpers.object_layouts import write_beside
from tests.helpers.objects import change, write_objects
from tests.helpers.scenes import DATA, write_config

NAMES = ["background", "red square", "green disc", "blue bar"]
CATEGORY_IDS = [3, 5, 90]


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Objects that lie over each other: polygons, run lengths as numbers and as text, crowds, boxes alone."""
    root = write_objects(tmp_path_factory.mktemp("coco"), train=6, val=4)
    rng = np.random.default_rng(1)
    for split in ("train", "val"):
        change(root, split, lambda content: pile_up(rng, content))
    return root


def pile_up(rng: np.random.Generator, content: dict[str, Any]) -> None:
    content["annotations"] = []
    for image in content["images"]:
        size = [image["height"], image["width"]]
        for _ in range(12):
            corner, sides = rng.integers(-10, 60, 2), rng.integers(3, 60, 2)
            (left, top), (right, bottom) = corner.tolist(), (corner + sides).tolist()
            polygons = [[left, top, right, top, (left + right) / 2 + 0.3, bottom], [5, 5, 9, 5, 9, 9, 5, 9]]
            mask = np.asfortranarray(rng.random(size) < 0.02, np.uint8)
            mask[max(top, 0) : bottom, max(left, 0) : right] = 1
            text = coco_masks.encode(mask)
            pixels = mask.ravel(order="F")
            edges = np.flatnonzero(np.diff(pixels, prepend=0))
            numbers = np.diff(edges, prepend=0, append=pixels.size).tolist()
            shape = {
                0: polygons,
                1: {"size": size, "counts": text["counts"].decode()},
                2: {"size": size, "counts": numbers},
                3: None,
            }[int(rng.integers(0, 4))]
            entry = {
                "id": len(content["annotations"]) + 1,
                "image_id": image["id"],
                "category_id": int(rng.choice(CATEGORY_IDS)),
                "bbox": [max(left, 0), max(top, 0), 5, 5],
                "area": float(rng.integers(1, 1000)),  # of some other tool: not that of the mask
                "iscrowd": int(rng.random() < 0.2),
            }
            if shape is not None:
                entry["segmentation"] = shape
            content["annotations"].append(entry)


def compose(coco_file: Path) -> dict[str, np.ndarray]:
    """The label map of each image, by its file name: pycocotools' masks, pixel by pixel."""
    reference = COCO(str(coco_file))
    label_maps = {}
    for image in reference.loadImgs(reference.getImgIds()):
        entries = [entry for entry in reference.loadAnns(reference.getAnnIds(image["id"])) if "segmentation" in entry]
        masks = [reference.annToMask(entry) for entry in entries]
        label_map = np.zeros((image["height"], image["width"]), np.uint8)
        for row, column in np.ndindex(*label_map.shape):
            over = [k for k, mask in enumerate(masks) if mask[row, column]]
            objects = [k for k in over if not entries[k]["iscrowd"]]
            if objects:  # the smallest; of the same size, the last
                top = min(objects, key=lambda k: (masks[k].sum(), -k))
                label_map[row, column] = entries[top]["category_id"]
            elif over:
                label_map[row, column] = 255
        label_maps[image["file_name"]] = label_map
    return label_maps


def open_data(root: Path, stage: str = "validate", **arguments: Any) -> ADE20KDataModule:
    data = ADE20KDataModule(root=str(root), **{**DATA, **arguments})
    data.setup(stage)
    return data


def labels_of(data: ADE20KDataModule) -> dict[str, np.ndarray]:
    """What the validation samples hold, by the file name of the image."""
    dataset = data.val_dataset
    assert isinstance(dataset, LabeledScenes)
    return {
        Path(sample["path"]).name: sample["mask"].numpy() for sample in map(dataset.__getitem__, range(len(dataset)))
    }


def test_label_maps_are_pycocotools_masks_one_over_the_other(coco: Path, tmp_path: Path, capsys: Any) -> None:
    expected = compose(coco / "annotations" / "instances_val2017.json")
    assert {255, 0, *CATEGORY_IDS} == {int(value) for label_map in expected.values() for value in np.unique(label_map)}
    index_of = np.full(256, 255)
    index_of[[0, *CATEGORY_IDS]] = range(4)

    data = open_data(coco)
    assert data.class_names == NAMES and data.class_ids == [0, *CATEGORY_IDS]
    for name, labels in labels_of(data).items():
        np.testing.assert_array_equal(labels, index_of[expected[name]])
    said = capsys.readouterr().out
    assert "data.root is read as coco" in said
    assert "pixels of none are the class background (data.background=ignore leaves them out)" in said
    assert "have only a box and are not drawn" in said and "are crowds" in said

    beside = labels_of(open_data(write_beside(coco, tmp_path / "beside")))
    ignoring = open_data(coco, background="ignore")
    assert ignoring.class_names == NAMES[1:] and ignoring.class_ids == CATEGORY_IDS
    for name, labels in labels_of(ignoring).items():
        own = index_of[expected[name]]
        np.testing.assert_array_equal(labels, np.where((own == 0) | (own == 255), 255, own - 1))
        np.testing.assert_array_equal(beside[name], own)


def test_settings_merge_categories_by_their_ids(coco: Path) -> None:
    merged = open_data(coco, label_values={0: "ground", 3: "thing", 5: "thing", 90: "bar"})
    apart = labels_of(open_data(coco))
    assert merged.class_names == ["ground", "thing", "bar"]
    for name, labels in labels_of(merged).items():
        np.testing.assert_array_equal(labels, np.array([*[0, 1, 1, 2], *[255] * 252])[apart[name]])


@pytest.mark.parametrize("ids", [(0, 1, 2), (3, 5, 1000)])
def test_ids_that_are_no_values_are_counted(coco: Path, tmp_path: Path, ids: tuple[int, ...], capsys: Any) -> None:
    root = write_beside(coco, tmp_path / "own")
    new_id = dict(zip(CATEGORY_IDS, ids, strict=True))
    for file in root.glob("*/*.json"):
        content = json.loads(file.read_text())
        for entry in content["annotations"]:
            entry["category_id"] = new_id[entry["category_id"]]
        for entry in content["categories"]:
            entry["id"] = new_id[entry["id"]]
        file.write_text(json.dumps(content))
    data, expected = open_data(root), labels_of(open_data(coco))
    assert data.class_ids == [0, 1, 2, 3] and data.class_names == NAMES
    assert "values are 1 to 3 in the order of the category ids" in capsys.readouterr().out
    for name, labels in labels_of(data).items():
        np.testing.assert_array_equal(labels, expected[name])


def categories(number: int) -> list[dict[str, Any]]:
    return [{"id": k + 1, "name": f"class {k}"} for k in range(number)]


@pytest.mark.parametrize(
    ("edit", "settings", "message"),
    [
        (lambda content: content.update(categories=categories(255)), {}, "255 categories; label maps tell at most 254"),
        (lambda content: content.update(categories=categories(254)), {}, "255 classes; .* data.background=ignore"),
        (lambda content: [entry.pop("segmentation", 0) for entry in content["annotations"]], {}, "boxes alone"),
        (lambda content: content["images"][1].update(height=60000, width=60000), {}, "60000×60000 pixels, more"),
        (lambda content: content["categories"].pop(), {}, "categor"),
        (lambda content: None, {"palette": [[0, 0, 0], [1, 1, 1]]}, "data.palette"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, edit: Any, settings: Any, message: str) -> None:
    root = write_objects(tmp_path, train=3, val=3)
    for split in ("train", "val"):
        change(root, split, edit)
    with pytest.raises(UserError, match=message):
        labels_of(open_data(root, "fit", **settings))


def test_missing_images_are_refused_or_skipped(tmp_path: Path) -> None:
    root = write_objects(tmp_path, train=3, val=4)
    (root / "val2017" / "val_2.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 4 images in .* do not exist: .*val_2\.jpg"):
        open_data(root)
    assert len(open_data(root, faulty_samples="skip", faulty_budget=1).val_dataset) == 4  # type: ignore[arg-type]


def test_label_maps_share_the_columns_of_the_objects(coco: Path) -> None:
    pairs = open_data(coco)._source.pairs("val")
    assert len({id(label_map.images) for _, label_map in pairs}) == 1  # type: ignore[union-attr]
    one, all_of_them = len(pickle.dumps(pairs[:1])), len(pickle.dumps(pairs))
    assert all_of_them < 1.5 * one


@pytest.mark.slow
def test_training_validation_and_prediction_by_the_folder_alone(tmp_path: Path, capsys: Any) -> None:
    root = write_objects(tmp_path / "objects", train=6, val=3)
    settings = {"data": {"init_args": {"class_names": None, "batch_size": 2}}}
    config = write_config(tmp_path / "config.yaml", tmp_path / "nowhere", **settings)
    run = tmp_path / "runs"
    arguments = [f"--config={config}", f"--data.root={root}", f"--runs={run}"]
    assert main(["fit", *arguments, "--trainer.max_epochs=1"]) == 0
    checkpoint = next(run.rglob("last.ckpt"))
    said = capsys.readouterr().out
    assert "0 background" in said and "90 blue bar" in said

    rows = next(run.rglob("metrics.csv")).read_text().splitlines()
    trained = [dict(zip(rows[0].split(","), row.split(","), strict=True))["val/miou"] for row in rows[1:]]
    assert main(["validate", f"--ckpt_path={checkpoint}", f"--data.root={root}", f"--runs={tmp_path / 'again'}"]) == 0
    rows = next((tmp_path / "again").rglob("metrics.csv")).read_text().splitlines()
    again = [dict(zip(rows[0].split(","), row.split(","), strict=True))["val/miou"] for row in rows[1:]]
    assert float(next(filter(None, again))) == pytest.approx(float(next(filter(None, trained))), abs=1e-9)

    results = tmp_path / "results"
    source = root / "val2017" / "val_0.jpg"
    assert main(["predict", f"--ckpt_path={checkpoint}", f"--data.source={source}", f"--output={results}"]) == 0
    (written,) = [path for path in results.rglob("*.png") if Image.open(path).mode == "P"]
    assert set(np.unique(np.array(Image.open(written)))) <= {0, *CATEGORY_IDS}


def test_data_check_counts_the_classes_drawn(coco: Path, tmp_path: Path) -> None:
    main(["data", "check", "ade20k", str(coco), f"--output={tmp_path / 'check'}", "--workers=0"])
    results = json.loads((tmp_path / "check" / "check.json").read_text())
    drawn = compose(coco / "annotations" / "instances_val2017.json").values()
    expected = {value: sum(value in label_map for label_map in drawn) for value in (0, *CATEGORY_IDS)}
    assert {entry["name"]: entry["val"] for entry in results["classes"]} == dict(
        zip(NAMES, expected.values(), strict=True)
    )
