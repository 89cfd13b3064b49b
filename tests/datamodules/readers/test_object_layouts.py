"""Objects in the layouts of several tools are the same objects; what is wrong in them is refused by file and line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from swinv2_tasks.datamodules import CocoDataModule
from swinv2_tasks.datamodules.readers.image_sizes import image_size, image_sizes
from swinv2_tasks.datamodules.readers.pascal_voc import parse_objects
from swinv2_tasks.datamodules.readers.yolo import label_file, polygon_area
from swinv2_tasks.errors import UserError
from tests.helpers.object_layouts import write_beside, write_voc, write_yolo
from tests.helpers.objects import CATEGORIES, DATA, change, write_objects


def without_crowds(content: dict[str, Any]) -> None:
    """YOLO has no word for them."""
    for entry in content["annotations"]:
        entry["iscrowd"] = 0


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_objects(tmp_path_factory.mktemp("coco"), masks=False)
    for split in ("train", "val"):
        change(root, split, without_crowds)
    return root


def read(root: Path, **arguments: Any) -> CocoDataModule:
    data = CocoDataModule(str(root), **{**DATA, "masks": False, **arguments})
    data.setup("fit")
    return data


def targets(data: CocoDataModule) -> dict[str, tuple[tuple[int, int], list[tuple[str, list[float]]]]]:
    """Size, and name and box of each object, of each validation image."""
    return {
        Path(sample["paths"]).stem: (
            sample["sizes"],
            sorted(
                (data.class_names[label], box)
                for label, box in zip(
                    sample["targets"]["labels"].tolist(), sample["targets"]["boxes"].tolist(), strict=True
                )
            ),
        )
        for sample in data.val_dataset  # type: ignore[union-attr]
    }


LAYOUTS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "coco-beside": (write_beside, "train/_annotations.coco.json, valid/_annotations.coco.json"),
    "yolo": (write_yolo, "data.yaml"),
    "voc": (write_voc, "Annotations/*.xml"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_objects_in_each_layout(coco: Path, tmp_path: Path, layout: str, capsys: Any) -> None:
    write, evidence = LAYOUTS[layout]
    expected = read(coco)
    capsys.readouterr()
    data = read(write(coco, tmp_path / layout))
    assert f"data.root is read as {layout}: {evidence}\n" in capsys.readouterr().out
    assert sorted(data.class_names) == sorted(CATEGORIES.values())
    assert data.train_samples == expected.train_samples

    ours, theirs = targets(data), targets(expected)
    assert ours.keys() == theirs.keys() and any(objects for _, objects in theirs.values())
    for name, (size, objects) in theirs.items():
        assert ours[name][0] == size
        assert [class_name for class_name, _ in ours[name][1]] == [class_name for class_name, _ in objects]
        for (_, box), (_, expected_box) in zip(ours[name][1], objects, strict=True):
            assert box == pytest.approx(expected_box, abs=1e-9)


def test_class_names_state_the_order_of_the_classes(coco: Path, tmp_path: Path) -> None:
    """Ids stay those of the dataset, and each object its class; names of another dataset are refused."""
    root = write_voc(coco, tmp_path / "voc")
    expected = read(root)
    names = [*CATEGORIES.values()]
    assert expected.class_names == sorted(names) != names
    data = read(root, class_names=names)
    assert data.class_names == names
    id_of = dict(zip(expected.class_names, expected.class_ids, strict=True))
    assert data.class_ids == [id_of[name] for name in names]
    assert targets(data) == targets(expected)
    with pytest.raises(UserError, match="categories"):
        read(root, class_names=[*names[:-1], "violet bar"])


def test_lists_and_one_folder_of_yolo(coco: Path, tmp_path: Path) -> None:
    """Images in one folder, named by lists whose paths are relative to the dataset."""
    root = write_yolo(coco, tmp_path)
    expected = targets(read(root))
    for split, folder in (("train", "train"), ("val", "valid")):
        names = sorted(path.name for path in (root / folder / "images").iterdir())
        for kind in ("images", "labels"):
            shutil.copytree(root / folder / kind, root / "all" / kind, dirs_exist_ok=True)
        (root / f"{split}.txt").write_text("".join(f"./all/images/{name}\n" for name in names))
        shutil.rmtree(root / folder)
    text = (
        (root / "data.yaml").read_text().replace("../train/images", "train.txt").replace("../valid/images", "val.txt")
    )
    (root / "data.yaml").write_text(text)
    assert targets(read(root)) == expected


def test_yolo_without_a_yaml_file(coco: Path, tmp_path: Path) -> None:
    root = write_yolo(coco, tmp_path)
    expected = targets(read(root))
    (root / "data.yaml").unlink()
    with pytest.raises(UserError, match="nothing that names their classes"):
        read(root)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CATEGORIES.values()))
    assert targets(read(root)) == expected


def test_polygons_of_yolo(tmp_path: Path) -> None:
    """A rotated square beside a box, in an image that a viewer turns."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / split / kind).mkdir(parents=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (80, 40)).save(tmp_path / split / "images" / "turned.jpg", exif=exif)
        (tmp_path / split / "labels" / "turned.txt").write_text(
            "1 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5\n0 0.5 0.5 1 1\n"
        )
    (tmp_path / "data.yaml").write_text("names: {0: box, 1: square}\ntrain: train/images\nval: val/images\n")

    data = CocoDataModule(str(tmp_path), **DATA)
    data.setup("validate")
    assert data.has_masks and data.class_ids == [0, 1]
    (sample,) = data.val_dataset  # type: ignore[misc]
    assert sample["sizes"] == (80, 40)
    assert sample["targets"]["boxes"].tolist() == [[10, 20, 30, 60], [0, 0, 40, 80]]
    assert sample["targets"]["area"].tolist() == [20 * 40 / 2, 40 * 80]
    mask, box_alone = sample["targets"]["masks"]
    assert abs(int(mask.sum()) - 400) < 40 and not box_alone.any()


def test_areas_of_polygons() -> None:
    assert polygon_area([0, 4, 4, 0], [0, 0, 3, 3]) == 12
    assert polygon_area([0, 0, 4, 4], [0, 3, 3, 0]) == 12  # the other way around
    assert polygon_area([0, 4, 0], [0, 0, 3]) == 6


def test_files_of_labels() -> None:
    assert label_file(Path("/a/images/train/images/b/c.d.jpg")) == Path("/a/images/train/labels/b/c.d.txt")
    assert label_file(Path("/a/photos/c.png")) == Path("/a/photos/c.txt")


LINES = {
    "0 0.5 0.5 0.1": "there are 4 numbers",
    "0 0.5 0.5 0.1 0.1 0.9": "confidence",
    "0 0.1 0.1 0.2 0.1 0.2 0.2 0.3": "there are 8 numbers",
    "a 0.5 0.5 0.1 0.1": "not made of numbers",
    "3 0.5 0.5 0.1 0.1": "the class is 3; .* has 3 classes, 0 to 2",
    "-1 0.5 0.5 0.1 0.1": "the class is -1",
    "0.5 0.5 0.5 0.1 0.1": r"the class is 0\.5",
    "0 50 50 10 10": "from 0 to 1; there is 50. Divide pixels",
    "0 nan 0.5 0.1 0.1": "from 0 to 1",
    "0 0.5 0.5 1e999 0.1": "from 0 to 1",
}


@pytest.mark.parametrize("line", LINES)
def test_lines_that_are_no_labels_are_refused_by_number(coco: Path, tmp_path: Path, line: str) -> None:
    root = write_yolo(coco, tmp_path)
    (root / "train" / "labels" / "train_0.txt").write_text(f"0 0.5 0.5 0.1 0.1\n\n{line}\n")
    with pytest.raises(UserError, match=rf"train_0\.txt, line 3: .*{LINES[line]}"):
        read(root)


DATA_YAMLS = {
    "names: []": "has no names",
    "names: [a, a, b]": "repeats a",
    "names: {1: a, 2: b, 3: c}": "nor are their keys 0, 1",
    "names: [a, b]\nnc: 3": "2 names, but nc: 3",
    "train: train/images": "no names of classes",
    "- a": "no names of classes",
    "names: [a": "is no YAML",
    "names: [a, b, c]\ntrain: 3": "expected a folder of images",
    "names: [a, b, c]\ntrain: nowhere/images": "no images of the train split|does not exist|There are no",
}


@pytest.mark.parametrize("text", DATA_YAMLS)
def test_what_is_wrong_with_data_yaml(coco: Path, tmp_path: Path, text: str) -> None:
    root = write_yolo(coco, tmp_path)
    (root / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=DATA_YAMLS[text]):
        read(root, val_share=0.2)


def test_lists_do_not_leave_the_folder(coco: Path, tmp_path: Path) -> None:
    root = write_yolo(coco, tmp_path / "inside")
    shutil.copytree(root / "train", tmp_path / "outside")
    (root / "list.txt").write_text("../outside/images/train_0.jpg\n")
    text = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(text.replace("../train/images", "list.txt"))
    with pytest.raises(UserError, match="lies outside of"):
        read(root)
    # A folder of that end inside is another one, and none outside is ever taken.
    (root / "data.yaml").write_text(text.replace("../train/images", "../../outside/images"))
    with pytest.raises(UserError, match="names no images of the train split"):
        read(root, val_share=None)


def test_voc_that_counts_from_0_is_read_so_and_said(coco: Path, tmp_path: Path, capsys: Any) -> None:
    root = write_voc(coco, tmp_path, first=0)
    file = root / "Annotations" / "val_0.xml"
    text = file.read_text()
    start = text.index("<xmin>")
    file.write_text(text[:start] + "<xmin>0</xmin>" + text[text.index("</xmin>", start) + len("</xmin>") :])
    data = read(root)
    assert "count from 0, not from 1" in capsys.readouterr().out
    expected = targets(read(coco))
    changed = targets(data)
    for name in expected.keys() - {"val_0"}:
        assert changed[name] == expected[name]


def test_voc_without_lists_sets_a_tenth_aside(coco: Path, tmp_path: Path, capsys: Any) -> None:
    root = write_voc(coco, tmp_path)
    shutil.rmtree(root / "ImageSets")
    data = read(root, keep_empty=True)
    assert "2 of 17 training images are set aside for validation (data.val_share 0.1)" in capsys.readouterr().out
    assert (data.train_samples, len(data.val_dataset)) == (15, 2)  # type: ignore[arg-type]


def test_voc_beside_the_images(coco: Path, tmp_path: Path) -> None:
    root = write_voc(coco, tmp_path / "voc")
    beside = tmp_path / "beside"
    for split, folder in (("train", "train"), ("val", "valid")):
        (beside / folder).mkdir(parents=True)
        for name in (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
            shutil.copy(root / "JPEGImages" / f"{name}.jpg", beside / folder)
            shutil.copy(root / "Annotations" / f"{name}.xml", beside / folder)
    assert targets(read(beside)) == targets(read(root))
    (beside / "valid" / "val_0.xml").unlink()
    with pytest.raises(UserError, match=r"1 of 5 images have no XML file beside them: val_0\.jpg"):
        read(beside)


def test_difficult_objects_count_as_crowds(coco: Path, tmp_path: Path) -> None:
    root = write_voc(coco, tmp_path)
    for file in (root / "Annotations").glob("val_*.xml"):
        file.write_text(file.read_text().replace("<difficult>0", "<difficult>1"))
    crowds = [sample["targets"]["iscrowd"] for sample in read(root).val_dataset]  # type: ignore[union-attr]
    assert sum(map(len, crowds)) > 3 and all(bool(flags.all()) for flags in crowds)


BOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"

XML = {
    "": "are no XML",
    "<annotation><object>": "are no XML",
    f"<annotation><object>{BOX}</object></annotation>": "object 1 of .* lacks its name",
    "<annotation><object><name>a</name></object></annotation>": "lacks its bndbox",
    f"<annotation><object><name>a</name>{BOX.replace('5', 'x')}</object></annotation>": "xmax 'x'; expected a number",
    f"<annotation><object><name>a</name>{BOX.replace('5', 'nan')}</object></annotation>": "xmax 'nan'",
    f"<annotation><object><name>a</name>{BOX.replace('5', '1e300')}</object></annotation>": "xmax '1e300'",
    f"<annotation><object><name>a</name>{BOX.replace('5', '0')}</object></annotation>": "ends before it begins",
    f"<annotation><object><name>a</name>{BOX}<polygon><x1>1</x1><y1>2</y1></polygon></object></annotation>": "of 1",
}


@pytest.mark.parametrize("text", XML)
def test_xml_that_is_no_annotation_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    _, problems = parse_objects(tmp_path / "a.xml")
    assert len(problems) == 1 and re.search(XML[text], problems[0])


def test_an_xml_bomb_is_refused(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{k} "{f"&e{k - 1};" * 10}">' for k in range(1, 10))
    (tmp_path / "a.xml").write_text(f'<!DOCTYPE a [<!ENTITY e0 "lol">{entities}]><a>&e9;</a>')
    objects, (problem,) = parse_objects(tmp_path / "a.xml")
    assert objects == [] and "are no XML" in problem


def test_entities_of_other_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "a.xml").write_text(
        f'<!DOCTYPE a [<!ENTITY e SYSTEM "file://{tmp_path}/secret.txt">]>'
        f"<annotation><object><name>&e;</name>{BOX}</object></annotation>"
    )
    objects, (problem,) = parse_objects(tmp_path / "a.xml")
    assert objects == [] and re.search(r"are no XML|lacks its name", problem)


def test_sizes_are_those_that_a_viewer_shows(tmp_path: Path) -> None:
    paths = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        paths.append(tmp_path / f"{orientation}.jpg")
        Image.new("RGB", (30, 20)).save(paths[-1], exif=exif)
    assert image_sizes(paths) == [(20, 30)] * 4 + [(30, 20)] * 4

    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (error,) = image_sizes([tmp_path / "broken.jpg"])
    assert isinstance(error, UserError) and "broken.jpg" in str(error)
    with pytest.raises(UserError, match=r"broken\.jpg"):
        image_size(tmp_path / "broken.jpg")


def test_faulty_images_are_left_out_where_they_may_be(coco: Path, tmp_path: Path) -> None:
    root = write_yolo(coco, tmp_path)
    (root / "valid" / "images" / "val_2.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"val_2\.jpg"):
        read(root)
    assert targets(read(root, faulty_samples="skip")).keys() == {f"val_{k}" for k in (0, 1, 3, 4)}
