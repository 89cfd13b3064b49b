"""COCO's annotation files: what is read, what is cleaned, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from swinv2_tasks.datamodules.readers.annotations import (
    clean,
    compress,
    describe_unmatched,
    rasterize,
    read_annotations,
    read_categories,
)
from swinv2_tasks.datamodules.readers.packed_images import CocoImage, CocoObject, PackedImages
from swinv2_tasks.errors import UserError


def content() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "b.jpg", "height": 40, "width": 60},
            {"id": 3, "file_name": "sub/a.jpg", "height": 50, "width": 20},
        ],
        "annotations": [
            {
                "id": 11, "image_id": 7, "category_id": 90, "bbox": [10, 5.5, 20, 10], "area": 120.5, "iscrowd": 0,
                "segmentation": [[10, 5.5, 30, 5.5, 30, 15.5], [1, 2]],
            },
            {"id": 12, "image_id": 7, "category_id": 1, "bbox": [0, 0, 4, 4]},
            {
                "id": 5, "image_id": 3, "category_id": 1, "bbox": [0, 0, 20, 1], "area": 20, "iscrowd": 1,
                "segmentation": {"size": [50, 20], "counts": [0, *[1, 49] * 20]},
            },
        ],
        "categories": [{"id": 90, "name": "brush"}, {"id": 1, "name": "person"}],
    }  # fmt: skip


def write(folder: Path, value: Any) -> Path:
    path = folder / "instances.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_reading_keeps_ids_order_and_all_kinds_of_masks(tmp_path: Path) -> None:
    read = read_annotations(write(tmp_path, content()))
    assert (read.class_ids, read.class_names) == ([1, 90], ["person", "brush"])
    assert read_categories(read.path) == (read.class_ids, read.class_names)
    assert read.has_objects and read.has_masks and read.portrait.tolist() == [False, True]
    first, second = read.images
    assert (first.id, first.height, first.width) == (7, 40, 60)
    brush, person = first.objects
    assert (brush.label, person.label) == (1, 0)
    assert brush.segmentation == [[10, 5.5, 30, 5.5, 30, 15.5]]  # two corners enclose nothing
    assert person.segmentation is None and person.area == 16 and not person.crowd
    assert second.objects[0].crowd
    assert rasterize(second.objects[0].segmentation, 50, 20, "")[0].all()  # type: ignore[arg-type]
    assert read.images[-1] == second and read.images[0:1] == [first]


def test_files_without_annotations_are_those_of_test_images(tmp_path: Path) -> None:
    read = read_annotations(write(tmp_path, {k: v for k, v in content().items() if k != "annotations"}))
    assert not read.has_objects and [len(image.objects) for image in read.images] == [0, 0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_files_are_read_as_pycocotools_reads_them(real_data: Path, split: str, capsys: Any) -> None:
    for name in ("coco-mini", "bccd"):
        path = real_data / name / "annotations" / f"instances_{split}2017.json"
        read, theirs = read_annotations(path), COCO(str(path))
        assert len(read.images) == len(theirs.imgs) and read.class_ids == sorted(theirs.cats)
        for image in read.images:
            annotations = theirs.imgToAnns[image.id]
            assert [own.id for own in image.objects] == [own["id"] for own in annotations]
            for own, other in zip(image.objects, annotations, strict=True):
                assert read.class_ids[own.label] == other["category_id"] and own.box == tuple(other["bbox"])
                if own.segmentation is not None:
                    mask = rasterize(own.segmentation, image.height, image.width, "")
                    assert (mask == theirs.annToMask(other)).all()
    capsys.readouterr()


# ---- what is refused


def edit_content(path: str, value: Any) -> dict[str, Any]:
    """The content with one place changed; a value of ... removes it."""
    changed: Any = content()
    parent: Any = changed
    *steps, last = [int(step) if step.isdecimal() else step for step in path.split(".")]
    for step in steps:
        parent = parent[step]
    if value is ...:
        del parent[last]
    else:
        parent[last] = value
    return changed


@pytest.mark.parametrize(
    ("key_path", "value", "message"),
    [
        ("images", ..., "it has no list 'images'"),
        ("categories", {}, "it has no list 'categories'"),
        ("categories", [], "no categories"),
        ("annotations", "none", "it has no list 'annotations'"),
        ("images.0", 3, "entry 0 of images is no object"),
        ("images.1.width", ..., r"entry 1 of images \(id 3\) lacks width"),
        ("images.1.width", "20", r"the width of entry 1 of images \(id 3\) is '20', expected a whole number"),
        ("images.1.height", 0, "image 3 has 20×0 pixels"),
        ("images.1.id", 7, "1 ids stand more than once in images: 7"),
        ("categories.1.id", 90, "ids stand more than once in categories: 90"),
        ("categories.0.name", ..., r"entry 0 of categories \(id 90\) lacks name"),
        ("annotations.2.id", 11, "1 ids stand more than once in annotations: 11"),
        ("annotations.0.bbox", ..., r"entry 0 of annotations \(id 11\) lacks bbox"),
        ("annotations.0.image_id", 8, "annotation 11 is of image 8, which is not among the images"),
        ("annotations.0.category_id", 2, "annotation 11 has category 2, which is not among the categories"),
        ("annotations.0.bbox.2", float("nan"), "the bbox of annotation 11 is .*nan.*, expected four finite numbers"),
        ("annotations.0.bbox.0", float("inf"), "the bbox of annotation 11"),
        ("annotations.0.bbox.0", None, "the bbox of annotation 11"),
        ("annotations.0.bbox", [1, 2, 3], "the bbox of annotation 11"),
        ("annotations.0.area", float("nan"), "the area of annotation 11"),
        ("annotations.0.iscrowd", 2, "iscrowd of annotation 11 is 2, expected 0 or 1"),
        ("annotations.0.segmentation", "mask", "the segmentation of annotation 11 is neither"),
        ("annotations.0.segmentation", [1, 2, 3, 4, 5, 6], "the segmentation of annotation 11 is neither"),
        ("annotations.0.segmentation.0.1", float("nan"), "a polygon of annotation 11"),
        ("annotations.0.segmentation.0", [1, 2, 3, 4, 5, 6, 7], "a polygon of annotation 11"),
        ("annotations.2.segmentation.size", [20, 50], r"annotation 5 are of size \[20, 50\], image 3 is of \[50, 20\]"),
        ("annotations.2.segmentation.counts", [0.5], "the run lengths of annotation 5 are neither"),
        ("images.0.file_name", "/etc/passwd", "the file_name '/etc/passwd' of image 7 leaves the folder"),
        ("images.0.file_name", "../val/x.jpg", "leaves the folder"),
        ("images.0.file_name", "a/../../x.jpg", "leaves the folder"),
        ("images.0.file_name", "..\\x.jpg", "leaves the folder"),
        ("images.0.file_name", "C:\\x.jpg", "leaves the folder"),
        ("images.0.id", 2**63, "the id of entry 0 of images has more than 64 bits"),
        ("images.0.width", 10**9, "image 7 has 1000000000×40 pixels, expected 1 to 100000 per side"),
        ("annotations.0.bbox.0", 1e9, "the bbox of annotation 11 is .*, far outside of its 60×40 image 7"),
        ("annotations.0.bbox", [-1e9, -1e9, 2e9, 2e9], "the bbox of annotation 11 is .*, far outside"),
        ("annotations.0.bbox.2", 1e308, "the bbox of annotation 11 is .*, far outside"),
        ("annotations.0.bbox.3", -1e9, "the bbox of annotation 11 is .*, far outside"),
        ("annotations.0.bbox.2", 10**400, "more than 100 digits"),
        ("annotations.0.bbox.2", True, "the bbox of annotation 11"),
        ("annotations.0.segmentation.0.2", 1e7, r"a polygon of annotation 11 has the coordinate 1e\+07, far outside"),
        ("annotations.0.segmentation.0.3", -1e8, r"a polygon of annotation 11 has the coordinate -1e\+08, far outside"),
        ("annotations.0.segmentation.1", [1e9, 2.0], r"a polygon of annotation 11 has the coordinate 1e\+09"),
        ("annotations.0.segmentation.0.3", 1e308, r"a polygon of annotation 11 has the coordinate 1e\+308"),
        ("annotations.0.segmentation.0", [0, 0, 60, 40] * 500, "a polygon of annotation 11 is 60000 pixels long"),
    ],
)
def test_what_is_wrong_is_reported_with_ids(key_path: str, value: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, edit_content(key_path, value))
    with pytest.raises(UserError, match=message) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"text"', "[" * 100_000])
def test_what_is_no_annotation_file_is_reported(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=r"is no JSON|not in COCO's format"):
        read_annotations(path)
    with pytest.raises(UserError, match=r"Cannot read .*nothing.json"):
        read_annotations(tmp_path / "nothing.json")


# ---- run lengths


@pytest.mark.parametrize("seed", range(20))
def test_codes_of_all_kinds_give_the_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 90, 2).tolist()
    mask = (rng.random((height, width)) < rng.random()).astype(np.uint8)
    code = coco_masks.encode(np.asfortranarray(mask))
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat, prepend=0, append=2))  # 0 before, and an end whatever the last one is
    counts = np.diff(ends, prepend=0).tolist()
    for form in (code["counts"], code["counts"].decode(), counts):
        got = rasterize({"size": [height, width], "counts": form}, height, width, "")
        assert (got == mask).all()


def test_run_lengths_without_end_are_refused_at_once() -> None:
    """Each character would add five bits to a number, in time that grows with the square of their number."""
    with pytest.raises(UserError, match="do not add up"):
        compress({"size": [4, 5], "counts": "o" * 2_000_000}, "annotation 4")


def test_sizes_of_run_lengths_may_be_written_with_a_point(tmp_path: Path) -> None:
    read = read_annotations(write(tmp_path, edit_content("annotations.2.segmentation.size", [50.0, 20.0])))
    (crowd,) = read.images[1].objects
    assert rasterize(crowd.segmentation, 50, 20, "").shape == (50, 20)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "counts",
    [[10, 5, 4], [10, 5, 6], [30, -10], [10, 5.0, 5], "PPP", "0" * 50, "zz\n", "\u20ac", "Q", 5, None, b"\xff\xff"],
)
def test_run_lengths_that_do_not_add_up_are_never_decoded(counts: Any) -> None:
    with pytest.raises(UserError, match="run lengths of annotation 4 do not add up to the 20 pixels of its size, 5×4"):
        compress({"size": [4, 5], "counts": counts}, "annotation 4")


def test_polygons_may_reach_beyond_the_image() -> None:
    square = [[-10.0, -10.0, 15.0, -10.0, 15.0, 12.0, -10.0, 12.0], [25.0, 5.0, 99.0, 5.0, 99.0, 99.0, 25.0, 99.0]]
    mask = rasterize(square, 20, 30, "")
    expected = np.zeros((20, 30), bool)
    expected[:12, :15] = expected[5:, 25:] = True
    assert (mask.astype(bool) == expected).all()


# ---- cleaning


def test_training_takes_boxes_with_an_area_within_the_image() -> None:
    boxes: dict[str, tuple[float, float, float, float]] = {
        "fine": (1, 2, 3, 4), "flat": (5, 5, 0, 4), "negative": (5, 5, -2, 4), "right": (60, 5, 4, 4),
        "above": (5, -8, 4, 8), "over": (50, 30, 30, 30), "rounded": (30, 30, 30.5, 10.2),
    }  # fmt: skip
    objects = tuple(CocoObject(k, 0, box, 1.0, False, None) for k, box in enumerate(boxes.values()))
    crowd = CocoObject(99, 0, (1, 2, 3, 4), 1.0, True, None)
    (cleaned,), counts = clean(PackedImages([CocoImage(1, "x.jpg", 40, 60, (*objects, crowd))]))
    names = list(boxes)
    assert {names[item.id]: item.box for item in cleaned.objects} == {
        "fine": (1, 2, 3, 4), "over": (50, 30, 10, 10), "rounded": (30, 30, 30, 10),
    }  # fmt: skip
    assert counts == {"crowd": 1, "no area": 2, "outside": 2, "clipped": 1}


def test_polygons_are_cleaned_as_boxes_are() -> None:
    """What annotation tools draw a little beyond the image is cut off; what lies beyond it as a whole is left out."""
    shapes = {
        "within": [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]],
        "rounded": [[-0.5, 1.0, 9.0, 1.0, 9.0, 9.0]],
        "over": [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0], [50.0, 30.0, 70.0, 30.0, 70.0, 45.0]],
        "right": [[61.0, 1.0, 69.0, 1.0, 69.0, 9.0]],
    }
    objects = tuple(CocoObject(k, 0, (1, 1, 8, 8), 1.0, False, shape) for k, shape in enumerate(shapes.values()))
    images = PackedImages([CocoImage(1, "x.jpg", 40, 60, objects)])
    (cleaned,), counts = clean(images)
    assert [item.id for item in cleaned.objects] == [0, 1, 2]
    assert counts == Counter({"outside": 1, "clipped": 1})
    assert len(clean(images, masks=False)[0].objects) == 4  # nobody draws them


# ---- what cannot be found


def test_objects_that_cannot_be_found_are_described(tmp_path: Path) -> None:
    assert describe_unmatched(read_annotations(write(tmp_path, edit_content("annotations.2", ...))), False) is None
    changed = content()
    changed["annotations"] += [
        {"id": 20, "image_id": 7, "category_id": 1, "bbox": [5, 5, -3, 9]},
        {"id": 21, "image_id": 7, "category_id": 1, "bbox": [60, 5, 9, 9]},
        {"id": 22, "image_id": 7, "category_id": 1, "bbox": [5, 5, 9, 9], "area": -1},
    ]
    line = describe_unmatched(read_annotations(write(tmp_path, changed)), masks=True)
    assert line is not None and "\n" not in line
    for words in (
        "of 6 objects", "1 are crowds (iscrowd: 1)", "2 have a box without area or outside", "1 have an area below 0",
        "1 have only a box",
    ):  # fmt: skip
        assert words in line
    assert "set iscrowd to 0" in line  # a sixth are crowds
    for entry in changed["annotations"]:
        entry["iscrowd"] = 0
    line = describe_unmatched(read_annotations(write(tmp_path, changed)), masks=False)
    assert line is not None and "crowds" not in line and "only a box" not in line
