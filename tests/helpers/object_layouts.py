"""One dataset of objects in the layouts of several tools, written from COCO's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_masks

SPLITS = {"train": "train", "val": "valid"}
"""What exported datasets call the splits."""

MASK_CLASSES = {3: 3, 5: 5, 90: 9}
"""The classes of the categories in masks of 16 bits, which have room for 65."""


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


def write_lvis(coco: Path, root: Path) -> Path:
    """LVIS's annotation files beside COCO's folders; the last validation image lies in the training's folder."""
    (root / "annotations").mkdir(parents=True)
    for split in SPLITS:
        shutil.copytree(coco / f"{split}2017", root / f"{split}2017")
        content, _ = read_coco(coco, split)
        for image in content["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/{split}2017/{image.pop('file_name')}"
            image |= {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
        if split == "val":
            moved = Path(content["images"][-1]["coco_url"]).name
            content["images"][-1]["coco_url"] = f"http://images.cocodataset.org/train2017/{moved}"
            shutil.move(root / "val2017" / moved, root / "train2017" / moved)
        for entry in content["annotations"]:
            del entry["iscrowd"]
        for number, category in enumerate(content["categories"]):
            category |= {"frequency": "rcf"[number % 3], "synset": f"thing.n.{number}", "image_count": 1}
        (root / "annotations" / f"lvis_v1_{split}.json").write_text(json.dumps(content))
    return root


def masks_of(coco: Path, split: str) -> dict[str, list[tuple[int, np.ndarray]]]:
    """The category and the pixels of each object, bool (H, W), by the file name of its image."""
    content, objects = read_coco(coco, split)
    return {
        image["file_name"]: [
            (entry["category_id"], decode(entry["segmentation"], image["height"], image["width"]))
            for entry in objects[image["id"]]
        ]
        for image in content["images"]
    }


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The pixels of an object, bool (H, W)."""
    code = coco_masks.frPyObjects(segmentation, height, width)
    return coco_masks.decode(coco_masks.merge(code) if isinstance(code, list) else code).astype(bool)


def write_numbered(coco: Path, root: Path, form: str, per_class: int = 0) -> Path:
    """Images and masks in folders of the named form, where {0} is the split and {1} the file.

    Each object has a number in its order from 1; ``per_class``: plus so much times its class of `MASK_CLASSES`.
    """
    for split, name in SPLITS.items():
        for file, objects in masks_of(coco, split).items():
            image = Image.open(coco / f"{split}2017" / file)
            numbers = np.zeros((image.height, image.width), np.uint16 if per_class else np.uint8)
            for number, (category, pixels) in enumerate(objects, start=1):
                numbers[pixels] = number + per_class * MASK_CLASSES[category]
            image_path, mask_path = (root / place.format(name, Path(file).stem) for place in form.split())
            for path in (image_path, mask_path):
                path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(coco / f"{split}2017" / file, image_path)
            Image.fromarray(numbers).save(mask_path)
    return root


def write_one_each(coco: Path, root: Path) -> Path:
    """A folder for each image, with a mask of each object in it."""
    for split, name in SPLITS.items():
        for file, objects in masks_of(coco, split).items():
            folder = root / f"stage1_{name}" / Path(file).stem
            for below in ("images", "masks"):
                (folder / below).mkdir(parents=True)
            shutil.copy(coco / f"{split}2017" / file, folder / "images")
            for number, (_, pixels) in enumerate(objects):
                Image.fromarray(np.where(pixels, np.uint8(255), np.uint8(0))).save(folder / "masks" / f"{number}.png")
    return root
