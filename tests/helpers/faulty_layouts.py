"""Faults of annotations to plant in datasets of objects in other layouts than COCO's, which have clean twins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.helpers.faulty_data import edit, write_coco
from tests.helpers.object_layouts import write_lvis, write_voc, write_yolo


class FaultyLayout(NamedTuple):
    """How a dataset is written, and what plants faults in it: checks, the files and parts of the details to name."""

    write: Callable[[Path], Path]
    plant: Callable[[Path], list[tuple[str, str, str]]]


def write_yolo_twin(root: Path) -> Path:
    return write_yolo(write_coco(root.parent / f"{root.name}_coco"), root, polygons=True)


def plant_yolo(root: Path) -> list[tuple[str, str, str]]:
    labels = root / "train" / "labels"
    with (labels / "train_1.txt").open("a") as file:
        file.write("\n7 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1\n0 0.2 0.2 0.1 0.1 0.9\n1 64 40 20 20\n0 one 0.5 0.1 0.1\n")
    (labels / "train_2.txt").write_bytes(b"\xff\xfe\x00\x01 no text")
    (labels / "train_3.txt").write_text("0 0.5 0.5 0 0.2\n0 0.5 0.5 1 1\n0 0.2 0.2 0.1 0.1\n0 0.2 0.2 0.1 0.1\n")
    (labels / "train_4.txt").unlink()
    (labels / "stray.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (root / "train" / "images" / "train_5.jpg").write_bytes(b"no image")
    return [
        ("invalid_annotation", "train_1.txt", "line 3: the class is 7"),
        ("invalid_annotation", "train_1.txt", "line 4: there are 4 numbers"),
        ("invalid_annotation", "train_1.txt", "line 5: there are 6 numbers"),
        ("invalid_annotation", "train_1.txt", "line 6: expected shares"),
        ("invalid_annotation", "train_1.txt", "line 7: '0 one"),
        ("invalid_annotation", "train_2.txt", "not UTF-8"),
        ("annotation_without_image", "stray.txt", ""),
        ("degenerate_box", "train_3.jpg", ""),
        ("whole_image_box", "train_3.jpg", ""),
        ("duplicate_box", "train_3.jpg", ""),
        ("image_without_annotations", "train_4.jpg", ""),
        ("unreadable_file", "train_5.jpg", ""),
    ]


def write_voc_twin(root: Path) -> Path:
    return write_voc(write_coco(root.parent / f"{root.name}_coco"), root)


def box_of(left: Any, top: Any, right: Any, bottom: Any, name: str = "cup") -> str:
    edges = {"xmin": left, "ymin": top, "xmax": right, "ymax": bottom}
    box = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges.items())
    return f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"


def plant_voc(root: Path) -> list[tuple[str, str, str]]:
    folder = root / "Annotations"
    objects = [
        box_of(10, 10, 5, 20), box_of("left", 10, 20, 20), box_of(5, 5, 20, 20, name=""),
        "<object><name>pen</name></object>", box_of(60, 60, 90, 90),
    ]  # fmt: skip
    (folder / "train_1.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
    (folder / "train_2.xml").write_text("<annotation><object>")
    twice = box_of(20, 20, 50, 50)
    (folder / "train_3.xml").write_text(f"<annotation>{twice}{twice}{box_of(300, 20, 330, 50)}</annotation>")
    (folder / "train_4.xml").write_text("<annotation></annotation>")
    (folder / "train_5.xml").unlink()
    (root / "JPEGImages" / "train_6.jpg").write_bytes(b"no image")
    with (root / "ImageSets" / "Main" / "val.txt").open("a") as file:
        file.write("gone\n")
    return [
        ("invalid_annotation", "train_1.xml", "object 1 of"),
        ("invalid_annotation", "train_1.xml", "has xmin 'left'"),
        ("invalid_annotation", "train_1.xml", "lacks its name"),
        ("invalid_annotation", "train_1.xml", "lacks its bndbox"),
        ("invalid_annotation", "train_2.xml", "are no XML"),
        ("duplicate_box", "train_3.jpg", ""),
        ("box_outside", "train_3.jpg", ""),
        ("image_without_annotations", "train_4.jpg", ""),
        ("invalid_annotation", "train.txt", "no XML file in Annotations: train_5"),
        ("unreadable_file", "train_6.jpg", ""),
        ("invalid_annotation", "val.txt", "no image in JPEGImages: gone"),
    ]


def write_lvis_twin(root: Path) -> Path:
    return write_lvis(write_coco(root.parent / f"{root.name}_coco"), root)


def plant_lvis(root: Path) -> list[tuple[str, str, str]]:
    def change(content: dict[str, Any]) -> None:
        objects = content["annotations"]
        by_id = {entry["id"]: entry for entry in objects}
        del content["images"][5]["coco_url"]  # train_6, of which two objects are
        by_id[10] |= {"bbox": [10, 10, 0, 5], "segmentation": None}
        by_id[20]["segmentation"] = [[1, 1, 5, 5]]
        objects += [
            {**by_id[31], "id": 500, "category_id": 77},
            {**by_id[31], "id": 501, "image_id": 999},
            {**by_id[31], "id": 502, "bbox": [1, 2, "3", 4]},
            {**by_id[31], "bbox": [3, 3, 22, 22], "segmentation": None},
            "no object",
        ]
        content["categories"].append({"id": 3})
        # Whoever reads entry by entry meets objects before their images.
        content["images"] = content.pop("images")

    file = root / "annotations" / "lvis_v1_train.json"
    edit(file, change)
    return [
        ("invalid_annotation", file.name, "entry 5 of images"),
        ("annotation_without_image", file.name, "object 60 of image 6"),
        ("annotation_without_image", file.name, "object 501 of image 999"),
        ("invalid_annotation", file.name, "bbox of object 502"),
        ("invalid_annotation", file.name, "entry 16 of annotations"),
        ("invalid_annotation", file.name, "entry 2 of categories"),
        ("repeated_id", file.name, "object 31"),
        ("unknown_category", "train_3.jpg", "category 77"),
        ("degenerate_box", "train_1.jpg", "object 10"),
        ("short_polygon", "train_2.jpg", "object 20"),
    ]


FAULTY_LAYOUTS = {
    "yolo": FaultyLayout(write_yolo_twin, plant_yolo),
    "voc": FaultyLayout(write_voc_twin, plant_voc),
    "lvis": FaultyLayout(write_lvis_twin, plant_lvis),
}
