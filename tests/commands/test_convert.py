"""Converted datasets are the same samples, whatever layout they come from; what another layout cannot say is told."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules import ADE20KDataModule, CocoDataModule, ImageNetDataModule
from tests.helpers import objects, scenes, tiny
from tests.helpers.object_layouts import write_beside, write_voc


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return objects.write_objects(tmp_path_factory.mktemp("coco"))


def convert(root: Path, out: Path, to: str, *arguments: str) -> Path:
    assert main(["data", "convert", str(root), str(out), "--to", to, *arguments]) == 0
    assert sorted(path.name for path in out.parent.iterdir() if path.name.startswith(".")) == []
    return out


def boxes(root: Path, split: str = "val", crowds: bool = True) -> dict[str, list[tuple[str, list[float]]]]:
    """Name and edges of each object, of each image."""
    data = CocoDataModule(str(root), **{**objects.DATA, "masks": False})
    content, _ = data.source_on_disk.read(split)  # type: ignore[arg-type]
    return {
        Path(image.file_name).stem: sorted(
            (content.class_names[entry.label], [*entry.box[:2], *np.add(entry.box[:2], entry.box[2:]).tolist()])
            for entry in image.objects
            if crowds or not entry.crowd
        )
        for image in content.images
    }


def assert_same_boxes(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys() and any(first.values())
    for stem, entries in first.items():
        assert [name for name, _ in entries] == [name for name, _ in second[stem]]
        for (_, edges), (_, others) in zip(entries, second[stem], strict=True):
            np.testing.assert_allclose(edges, others, atol=1e-6)


def clip(root: Path) -> dict[str, Any]:
    """The boxes of COCO's validation images within their images, as they are drawn."""
    sizes = {path.stem: Image.open(path).size for path in (root / "val2017").iterdir()}
    return {
        stem: sorted((name, np.clip(edges, 0, sizes[stem] * 2).tolist()) for name, edges in entries)
        for stem, entries in boxes(root).items()
    }


@pytest.mark.parametrize("to", ["yolo", "voc", "coco"])
def test_objects_stay_the_same(to: str, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = convert(coco, tmp_path / "out", to)
    expected = clip(coco) if to != "coco" else boxes(coco)
    if to == "yolo":
        expected = boxes(coco, crowds=False)
    assert_same_boxes(expected, boxes(out))
    output = capsys.readouterr().out
    assert f"{out} holds the dataset as {to}: 17 images" in output
    for path in out.rglob("*.jpg"):
        original = next(coco.rglob(path.name))
        assert path.read_bytes() == original.read_bytes()


def test_coco_comes_back_whole(coco: Path, tmp_path: Path) -> None:
    """Ids, areas, crowds, outlines and run lengths, as COCO's own tools read them."""
    out = convert(coco, tmp_path / "out", "coco")
    for split in ("train", "val"):
        name = f"annotations/instances_{split}2017.json"
        first, second = COCO(str(coco / name)), COCO(str(out / name))
        assert first.cats.keys() == second.cats.keys() and first.imgs.keys() == second.imgs.keys()
        assert first.anns.keys() == second.anns.keys()
        for number, entry in first.anns.items():
            for key in ("bbox", "area", "iscrowd", "category_id", "image_id"):
                assert entry[key] == second.anns[number][key]
            assert (first.annToMask(entry) == second.annToMask(second.anns[number])).all()


def test_the_ways_through_all_layouts_lead_to_the_same_boxes(coco: Path, tmp_path: Path) -> None:
    source = write_beside(coco, tmp_path / "beside")
    voc = convert(source, tmp_path / "voc", "voc")
    yolo = convert(voc, tmp_path / "yolo", "yolo")
    again = convert(yolo, tmp_path / "coco", "coco")
    expected = boxes(coco, crowds=False)
    assert_same_boxes(expected, boxes(again))


def test_images_of_one_name_are_told_apart(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "voc"
    write_voc(coco, root)
    both = tmp_path / "both"
    shutil.copytree(coco, both)
    name = sorted(path.name for path in (both / "train2017").iterdir())[0]
    other = sorted(path.name for path in (both / "val2017").iterdir())[0]
    (both / "val2017" / other).rename(both / "val2017" / name)

    def rename(content: dict[str, Any]) -> None:
        next(image for image in content["images"] if image["file_name"] == other)["file_name"] = name

    objects.change(both, "val", rename)
    capsys.readouterr()
    out = convert(both, tmp_path / "out", "voc")
    assert "1 image renamed" in capsys.readouterr().out
    stem = Path(name).stem
    assert (out / "ImageSets/Main/val.txt").read_text().split().count(f"{stem}_2") == 1
    before = boxes(both)[stem]
    assert [label for label, _ in boxes(out)[f"{stem}_2"]] == [label for label, _ in before]


def test_links_take_no_room(coco: Path, tmp_path: Path) -> None:
    out = convert(coco, tmp_path / "out", "yolo", "--links", "true")
    images = [path for path in (out / "images").rglob("*") if not path.is_dir()]
    assert images and all(path.is_symlink() and path.exists() for path in images)


# ---- scenes and labeled images


def test_scenes_stay_the_same(tmp_path: Path) -> None:
    root = scenes.write_scenes(tmp_path / "scenes")
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in scenes.NAMES))
    out = convert(root, tmp_path / "out", "ade20k")
    first, second = (ADE20KDataModule(str(path), **scenes.DATA) for path in (root, out))
    for data in (first, second):
        data.setup("fit")
    assert first.class_names == second.class_names
    maps = [
        {image.stem: data.coding.read(path) for image, path in data.source_on_disk.pairs("val")}
        for data in (first, second)
    ]
    assert maps[0].keys() == maps[1].keys() and len(maps[0]) == 5
    for stem, labels in maps[0].items():
        assert (labels == maps[1][stem]).all()


def test_labeled_images_become_tables(tmp_path: Path) -> None:
    root = tiny.write_images(tmp_path / "images")
    out = convert(root, tmp_path / "out", "csv")
    first, second = (ImageNetDataModule(str(path), **tiny.DATA) for path in (root, out))
    assert first.class_ids == second.class_ids
    for split in ("train", "val"):
        contents = [
            sorted((Path(path).read_bytes(), label) for path, label in data.samples(split))  # type: ignore[arg-type]
            for data in (first, second)
        ]
        assert contents[0] == contents[1] and contents[0]


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}", "{root}/out", "--to", "yolo"], "is inside the dataset"),
        (["{root}", "{full}", "--to", "yolo"], "is there already"),
        (["{root}/nothing", "{out}", "--to", "yolo"], "does not exist"),
        (["{root}", "{out}", "--to", "tfrecord"], "tfrecord"),
        (["{root}", "{out}", "--to", "csv"], "none of the layouts known"),
        (["{root}", "{out}"], "--to"),
    ],
)
def test_mistakes_leave_nothing_behind(
    arguments: list[str], message: str, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    places = {"root": coco, "full": full, "out": tmp_path / "out"}
    before = sorted(coco.rglob("*"))
    assert main(["data", "convert", *(argument.format(**places) for argument in arguments)]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert sorted(os.listdir(tmp_path)) == ["full"]
    assert sorted(coco.rglob("*")) == before


def test_an_image_that_is_missing_leaves_no_half_dataset(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    shutil.copytree(coco, root)
    missing = sorted((root / "val2017").iterdir())[2]
    missing.unlink()
    assert main(["data", "convert", str(root), str(tmp_path / "out"), "--to", "voc"]) == 1
    assert missing.name in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["root"]


def test_a_name_that_no_list_can_hold_is_refused(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    shutil.copytree(coco, root)
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}2017.json"
        content = json.loads(path.read_text())
        content["categories"][0]["name"] = "a\x1b[31mb"
        path.write_text(json.dumps(content))
    assert main(["data", "convert", str(root), str(tmp_path / "out"), "--to", "yolo"]) == 1
    error = capsys.readouterr().err
    assert "\x1b" not in error and "no list can hold" in error
