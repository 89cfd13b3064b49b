"""Text in the encodings of other programs is read right, or refused with the file and what was expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from swinv2_tasks.datamodules import ADE20KDataModule, CocoDataModule, ImageNetDataModule, KineticsDataModule
from swinv2_tasks.errors import UserError
from tests.helpers import motions, objects, scenes, tiny
from tests.helpers.object_layouts import write_voc, write_yolo
from tests.helpers.video_layouts import write_lines

NAME = "réd square"


def read_coco_names(root: Path, encoding: str) -> list[str]:
    return _objects(_recode(_write_coco(root), encoding, "annotations/*.json"))


def read_yolo_names(root: Path, encoding: str) -> list[str]:
    yolo = write_yolo(_write_coco(root / "coco"), root / "yolo")
    config = yolo / "data.yaml"
    config.write_text(config.read_text("utf-8").encode("ascii").decode("unicode_escape"), "utf-8")
    return _objects(_recode(yolo, encoding, "data.yaml"))


def read_yolo_labels(root: Path, encoding: str) -> list[str]:
    yolo = write_yolo(_write_coco(root / "coco"), root / "yolo")
    for file in (yolo / "train" / "labels").iterdir():
        file.write_text(f"\ufeff{file.read_text()}" if encoding == "utf-8-sig" else file.read_text(), "utf-8")
    return _objects(_recode(yolo, encoding if encoding != "utf-8-sig" else "utf-8", "*/labels/*.txt"))


def read_voc_names(root: Path, encoding: str) -> list[str]:
    return _objects(_recode(write_voc(_write_coco(root / "coco"), root / "voc"), encoding, "Annotations/*.xml"))


def read_class_list(root: Path, encoding: str) -> list[str]:
    images = tiny.write_images(root)
    (images / "classes.csv").write_text(f"n01,{NAME}\nn02,leaf\nn03,sea\n", "utf-8")
    _recode(images, encoding, "classes.csv")
    return ImageNetDataModule(str(images), class_names=str(images / "classes.csv"), **tiny.DATA).class_names


def read_table(root: Path, encoding: str) -> list[str]:
    images = tiny.write_images(root, train=2, val=1)
    names = sorted(path.relative_to(images / "train").as_posix() for path in (images / "train").rglob("*.jpg"))
    rows = [f"{name},{NAME if number % 2 else 'leaf'}" for number, name in enumerate(names)]
    write_lines(images / "train" / "labels.csv", [])
    (images / "train" / "labels.csv").write_text("\n".join(["file,label", *rows]), "utf-8")
    _recode(images, encoding, "train/labels.csv")
    return ImageNetDataModule(str(images / "train"), layout="csv", **tiny.DATA).class_names


def read_scene_names(root: Path, encoding: str) -> list[str]:
    written = scenes.write_scenes(root, train=1, val=1)
    (written / "names.txt").write_text(f"{NAME}\nmoss\nslate\n", "utf-8")
    _recode(written, encoding, "names.txt")
    return ADE20KDataModule(str(written), class_names=str(written / "names.txt"), **scenes.DATA).class_names


def read_video_list(root: Path, encoding: str) -> list[str]:
    written = motions.write_motions(root, train=1, val=1)
    for path in written.glob("*.csv"):
        path.write_text(path.read_text().replace("goes down", NAME), "utf-8")
    return KineticsDataModule(str(_recode(written, encoding, "*.csv")), **motions.DATA).class_names


def _write_coco(root: Path) -> Path:
    coco = objects.write_objects(root, train=3, val=3, masks=False)
    for split in ("train", "val"):
        path = coco / "annotations" / f"instances_{split}2017.json"
        content = json.loads(path.read_text())
        content["categories"][0]["name"] = NAME
        path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return coco


def _objects(root: Path) -> list[str]:
    data = CocoDataModule(str(root), **{**objects.DATA, "masks": False})
    data.setup("fit")
    return data.class_names


def _recode(root: Path, encoding: str, pattern: str) -> Path:
    for path in root.glob(pattern):
        path.write_bytes(path.read_text("utf-8").encode(encoding))
    return root


READERS: dict[str, Callable[[Path, str], list[str]]] = {
    "annotations of COCO": read_coco_names,
    "data.yaml of YOLO": read_yolo_names,
    "labels of YOLO": read_yolo_labels,
    "XML of Pascal VOC": read_voc_names,
    "classes of ImageNet": read_class_list,
    "a table of images": read_table,
    "classes of ADE20K": read_scene_names,
    "a list of videos": read_video_list,
}


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"])
@pytest.mark.parametrize("name", READERS)
def test_text_is_read_right_or_refused_by_its_file(name: str, encoding: str, tmp_path: Path) -> None:
    """Unicode with a mark that says so may be read; what would be other letters never is."""
    try:
        names = READERS[name](tmp_path / "data", encoding)
    except UserError as error:
        assert not encoding.startswith("utf-8"), str(error)
        assert str(tmp_path / "data") in str(error)
        assert "Traceback" not in str(error) and len(str(error)) < 900
        return
    assert NAME in names
