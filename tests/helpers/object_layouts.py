"""One dataset of objects in the layouts of several tools, written from COCO's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

SPLITS = {"train": "train", "val": "valid"}
"""What exported datasets call the splits."""


def read_coco(root: Path, split: str) -> tuple[dict[str, Any], dict[int, list[dict[str, Any]]]]:
    """The content of a split's annotation file, and the objects of each image."""
    content = json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for entry in content["annotations"]:
        objects[entry["image_id"]].append(entry)
    return content, objects


def write_beside(coco: Path, root: Path) -> Path:
    """Annotation files beside the images."""
    for split, folder in SPLITS.items():
        shutil.copytree(coco / f"{split}2017", root / folder)
        shutil.copy(coco / "annotations" / f"instances_{split}2017.json", root / folder / "_annotations.coco.json")
    return root


def write_yolo(coco: Path, root: Path, polygons: bool = False) -> Path:
    """SPLIT/images, SPLIT/labels, and a data.yaml whose paths are those of another machine."""
    for split, folder in SPLITS.items():
        content, objects = read_coco(coco, split)
        index_of = {entry["id"]: index for index, entry in enumerate(content["categories"])}
        shutil.copytree(coco / f"{split}2017", root / folder / "images")
        (root / folder / "labels").mkdir()
        for image in content["images"]:
            lines = []
            for entry in objects[image["id"]]:
                if polygons:
                    shares = [
                        value / (image["height"] if axis % 2 else image["width"])
                        for axis, value in enumerate(entry["segmentation"][0])
                    ]
                else:
                    x, y, width, height = entry["bbox"]
                    center = ((x + width / 2) / image["width"], (y + height / 2) / image["height"])
                    shares = [*center, width / image["width"], height / image["height"]]
                lines.append(" ".join(map(repr, [index_of[entry["category_id"]], *shares])))
            if lines:  # an image without a file has no objects
                file = root / folder / "labels" / Path(image["file_name"]).with_suffix(".txt")
                file.write_text("\n".join(lines))
    names = [entry["name"] for entry in content["categories"]]
    paths = "".join(f"{key}: ../{folder}/images\n" for key, folder in SPLITS.items())
    (root / "data.yaml").write_text(f"{paths}test: ../test/images\nnc: {len(names)}\nnames: {json.dumps(names)}\n")
    return root


def write_voc(coco: Path, root: Path, first: int = 1) -> Path:
    """JPEGImages, Annotations and ImageSets/Main; pixels are counted from `first`."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split in SPLITS:
        content, objects = read_coco(coco, split)
        name_of = {entry["id"]: entry["name"] for entry in content["categories"]}
        stems = []
        for image in content["images"]:
            shutil.copy(coco / f"{split}2017" / image["file_name"], root / "JPEGImages")
            stems.append(Path(image["file_name"]).stem)
            entries = ""
            for entry in objects[image["id"]]:
                x, y, width, height = entry["bbox"]
                # From 1, the last pixel of a box has the number that its edge has from 0.
                edges = {"xmin": x + first, "ymin": y + first, "xmax": x + width, "ymax": y + height}
                box = "".join(f"<{edge}>{value!r}</{edge}>" for edge, value in edges.items())
                entries += (
                    f"<object><name>{name_of[entry['category_id']]}</name><difficult>{entry['iscrowd']}</difficult>"
                    f"<bndbox>{box}</bndbox></object>"
                )
            xml = f"<annotation><filename>{image['file_name']}</filename>{entries}</annotation>"
            (root / "Annotations" / f"{stems[-1]}.xml").write_text(xml)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return root
