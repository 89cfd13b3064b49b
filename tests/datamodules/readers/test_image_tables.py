"""Images with their labels in CSV files, as people and other tools write these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from swinv2_tasks.datamodules import ImageNetDataModule
from swinv2_tasks.errors import UserError
from swinv2_tasks.tables import write_table
from tests.helpers.tiny import DATA


def images(root: Path, *names: str) -> Path:
    """Small images in a dataset's folder."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path, format="PNG")
    return root


def table(root: Path, text: str, name: str = "labels.csv") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return root


def read(root: Path, split: Any = "train", **arguments: Any) -> dict[str, list[str]]:
    """The labels of each image of a split, by its name in the dataset's folder."""
    data = ImageNetDataModule(str(root), **{**DATA, **arguments})
    ids = data.class_ids
    return {
        Path(path).relative_to(root).as_posix(): [ids[k] for k in ([label] if isinstance(label, int) else label)]
        for path, label in data.samples(split)
    }


def is_multi_label(root: Path, **arguments: Any) -> bool | None:
    return ImageNetDataModule(str(root), **{**DATA, **arguments}).multi_label


def refusal(root: Path, split: Any = "train", **arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        read(root, split, **arguments)
    return str(error.value)


# ---- one label


@pytest.mark.parametrize(
    "header",
    ["file,label", "filename,class", "Image,Category", "path,target", "fname,labels", "img,tags", "image_id,y"],
)
def test_files_and_labels_by_their_usual_names(tmp_path: Path, header: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = table(images(tmp_path, "a.png", "b.png"), f"{header}\na.png,dog\nb.png,cat\n")
    assert read(root, val_share=0.5) == {"a.png": ["dog"], "b.png": ["cat"]}  # of a class of one nothing is set aside
    assert is_multi_label(root) is False
    output = capsys.readouterr().out
    assert "data.root is read as csv: labels.csv" in output
    assert "(cat, dog)" in output


def test_train_and_val_tables_and_folders_of_images_without_endings(tmp_path: Path) -> None:
    root = images(tmp_path, "train_images/1.png", "train_images/2.png", "test_images/1.png")
    table(root, "image_id,label\n1,5\n2,10\n", "train.csv")
    table(root, "image_id,label\n2,5\n", "valid.csv")
    table(root, "image_id\n1\n", "test.csv")  # to be predicted: nothing says what is in it
    images(root, "valid_images/2.png")
    assert read(root) == {"train_images/1.png": ["5"], "train_images/2.png": ["10"]}
    assert read(root, "val") == {"valid_images/2.png": ["5"]}
    data = ImageNetDataModule(str(root), **DATA)
    assert data.class_ids == ["5", "10"] and not data.has("test")


@pytest.mark.parametrize(
    ("column", "values"), [("split", ("train", "Val", "test")), ("is_valid", ("False", "True", None))]
)
def test_a_split_column_is_respected(tmp_path: Path, column: str, values: tuple[str | None, ...]) -> None:
    names = [name for name, value in zip("abc", values, strict=True) if value]
    rows = [f"{name}.png,{'dog' if name == 'a' else 'cat'},{value}" for name, value in zip(names, values, strict=False)]
    root = table(
        images(tmp_path, *(f"images/{name}.png" for name in names)), f"file,label,{column}\n" + "\n".join(rows)
    )
    splits = ("train", "val", "test")[: len(names)]
    assert [list(read(root, split)) for split in splits] == [[f"images/{name}.png"] for name in names]


def test_tables_beside_the_images_of_each_split(tmp_path: Path) -> None:
    """As Roboflow writes them, with a space after each comma."""
    root = images(tmp_path, "train/a.png", "valid/b.png")
    table(root, "filename, cat, dog\na.png, 1, 1\n", "train/_classes.csv")
    table(root, "filename, cat, dog\nb.png, 0, 1\n", "valid/_classes.csv")
    assert read(root) == {"train/a.png": ["cat", "dog"]}
    assert read(root, "val") == {"valid/b.png": ["dog"]}
    assert is_multi_label(root) is True


@pytest.mark.parametrize("text", ["file;label\na.png;x\nb.png;y\n", "\ufefffile\tlabel\na.png\tx\nb.png\ty\n"])
def test_semicolons_and_tabs_between_cells(tmp_path: Path, text: str) -> None:
    assert read(table(images(tmp_path, "a.png", "b.png"), text), labels="one") == {"a.png": ["x"], "b.png": ["y"]}


def test_a_table_without_a_header(tmp_path: Path) -> None:
    root = table(images(tmp_path, "a.png", "b.png"), "a.png,x\nb.png,y\n", "train.csv")
    assert read(root) == {"a.png": ["x"], "b.png": ["y"]}


def test_names_with_the_root_with_backslashes_and_in_full(tmp_path: Path) -> None:
    root = images(tmp_path / "pets", "x/a.png", "x/b.png", "c.png")
    table(root, f"file,label\npets/x/a.png,k\nx\\b.png,k\n{root / 'c.png'},l\n", "train.csv")
    assert list(read(root)) == ["x/a.png", "x/b.png", "c.png"]


def test_a_class_list_names_the_classes(tmp_path: Path) -> None:
    root = table(images(tmp_path, "a.png", "b.png"), "file,label\na.png,1\nb.png,0\n")
    (root / "classes.csv").write_text("cat\ndog\n")
    assert read(root) == {"a.png": ["dog"], "b.png": ["cat"]}


def test_what_this_package_writes_is_read_back(tmp_path: Path) -> None:
    """Also names that a spreadsheet would take for formulas; others keep their apostrophe."""
    root = images(tmp_path, "=a.png", "'b'.png")
    write_table(root / "labels.csv", [("file", "label"), ("=a.png", "-x"), ("'b'.png", "y")])
    assert read(root) == {"=a.png": ["-x"], "'b'.png": ["y"]}
    table(root, "file,label\n=a.png,x\n'b'.png,y\n")
    assert read(root) == {"=a.png": ["x"], "'b'.png": ["y"]}


def test_a_share_is_set_aside_where_one_table_has_no_splits(tmp_path: Path) -> None:
    names = [f"{k}.png" for k in range(20)]
    root = table(
        images(tmp_path, *names), "file,label\n" + "".join(f"{n},{'ab'[k % 2]}\n" for k, n in enumerate(names))
    )
    assert len(read(root)) == 18 and len(read(root, "val")) == 2
    assert not set(read(root)) & set(read(root, "val"))


# ---- several labels


@pytest.mark.parametrize(
    ("cells", "how"),
    [
        (("cat|dog", "dog"), "|"),
        (("cat;dog", "dog"), ";"),
        (('"cat,dog"', "dog"), "commas"),
        (('"cat, dog"', "dog"), "commas"),
        (("cat dog", "dog"), "spaces"),
        (("\"['cat', 'dog']\"", "\"['dog']\""), "commas in brackets"),
    ],
)
def test_marks_between_labels(
    tmp_path: Path, cells: tuple[str, str], how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = images(tmp_path, *(f"{name}.png" for name in "abc"))
    table(root, f"image,labels\na.png,{cells[0]}\nb.png,{cells[1]}\nc.png,\n", "train.csv")
    assert read(root, labels="several") == {"a.png": ["cat", "dog"], "b.png": ["dog"], "c.png": []}
    table(root, f"image,labels\na.png,{cells[0]}\nb.png,{cells[1]}\nc.png,cat\n", "train.csv")
    capsys.readouterr()
    assert read(root) == {"a.png": ["cat", "dog"], "b.png": ["dog"], "c.png": ["cat"]}
    assert f"with {how} between" in capsys.readouterr().out


def test_names_with_spaces_and_commas_are_names(tmp_path: Path) -> None:
    root = images(tmp_path, *(f"{name}.png" for name in "abc"))
    table(root, 'file,label\na.png,hot dog\nb.png,"tench, Tinca tinca"\nc.png,golden retriever\n')
    assert read(root)["b.png"] == ["tench, Tinca tinca"]
    assert is_multi_label(root) is False


def test_what_may_be_names_or_labels_is_refused_with_both_readings(tmp_path: Path) -> None:
    root = table(images(tmp_path, "a.png", "b.png"), "file,label\na.png,polar bear\nb.png,brown bear\n", "train.csv")
    message = refusal(root)
    assert "'brown bear' is the name of one class" in message
    assert "--data.labels one or --data.labels several" in message
    assert read(root, labels="one")["a.png"] == ["polar bear"]
    assert read(root, labels="several")["a.png"] == ["bear", "polar"]


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("1.0", "0.0"), ("True", "False"), ("1", "")])
def test_a_column_for_each_class(tmp_path: Path, yes: str, no: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = images(tmp_path, *(f"images/{name}.png" for name in "abc"))
    table(root, f"image_id,age,zebra,ant\na,31,{yes},{yes}\nb,40,{no},{yes}\nc,7,{no},{no}\n")
    assert read(root, val_share=0.1) == {
        "images/a.png": ["zebra", "ant"], "images/b.png": ["ant"], "images/c.png": [],
    }  # fmt: skip
    output = capsys.readouterr().out
    assert "2 columns of 0 and 1 (zebra, ant)" in output and "not taken: age" in output
    assert "1 of 3 images have no label" in output


def test_columns_with_exactly_one_class_may_be_one_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = table(images(tmp_path, "a.png", "b.png"), "image,x,y\na,1,0\nb,0,1\n")
    assert is_multi_label(root) is True
    assert "--data.labels one" in capsys.readouterr().out
    assert read(root, labels="one") == {"a.png": ["x"], "b.png": ["y"]}
    assert is_multi_label(root, labels="one") is False


def test_lines_of_one_image_are_taken_together_where_that_is_stated(tmp_path: Path) -> None:
    root = table(images(tmp_path, "a.png", "b.png"), "image_id,label\na,x\na,y\nb,x\nb,x\n", "train.csv")
    assert "line 3" in (message := refusal(root)) and "data.labels to several" in message
    assert read(root, labels="several") == {"a.png": ["x", "y"], "b.png": ["x"]}


def test_class_folders_may_be_read_as_several_labels(tmp_path: Path) -> None:
    root = images(tmp_path, "train/x/a.png", "train/y/b.png")
    assert ImageNetDataModule(str(root), **DATA).samples("train")[1][1] == 1
    assert ImageNetDataModule(str(root), labels="several", **DATA).samples("train")[1][1] == [1]


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("file,label\na.png,x\nb.png\n", "line 3: 1 cells"),
        ("file,label\na.png,x,y\n", "line 2: 3 cells"),
        ("file,label\na.png,\nb.png,x\n", "line 2: a.png has no label"),
        ("file,label\n,x\n", "line 2: no file"),
        ("file,label\na.png,x\n../secret.png,y\n", "line 3: ../secret.png leaves"),
        ("file,label\na.png,x\n/etc/passwd,y\n", "line 3: /etc/passwd leaves"),
        ("file,label\na.png,x\n\nc.png,y\n", "line 4: there is no image c.png"),
        ("file,x,y\na.png,1,0\nb.png,-1,0\n", "line 3: '-1' in the column x"),
        ("file,label,split\na.png,x,train\nb.png,y,val\na.png,x,later\n", "line 4: 'later' in the column split"),
        ('file,label\na.png,"x\n', "quotation mark that is not closed"),
        ("file,label\na.png,a;b\nb.png,a|b\n", r"both \| and ;"),
        ("file,xmin,ymin,label\na.png,1,2,x\n", "boxes"),
        ("file,label,label\na.png,x,y\n", "several columns label"),
        ("file,width,height\na.png,10,20\n", "which of them has the labels"),
        ("file,label\n", "names no image"),
    ],
)
def test_wrong_tables_end_in_one_message_with_the_line(tmp_path: Path, text: str, named: str) -> None:
    root = table(images(tmp_path / "root", "a.png", "b.png"), text)
    images(tmp_path, "secret.png")
    with pytest.raises(UserError, match=named):
        read(root)


def test_images_of_the_same_name_are_refused(tmp_path: Path) -> None:
    root = table(images(tmp_path, "a.png", "a.jpg", "b.png"), "image,label\na,x\nb,y\n")
    assert "a.jpg, a.png" in refusal(root)


def test_two_tables_of_the_same_images_are_refused(tmp_path: Path) -> None:
    root = table(images(tmp_path, "a.png"), "file,label\na.png,x\n")
    table(root, "file,label\na.png,x\n", "train.csv")
    assert "labels.csv, train.csv" in refusal(root)


def test_tables_beside_class_folders_are_refused_with_both_readings(tmp_path: Path) -> None:
    root = table(images(tmp_path, "train/x/a.png", "train/y/b.png"), "file,label\ntrain/x/a.png,x\n", "train.csv")
    message = refusal(root)
    assert "folders" in message and "csv (train.csv)" in message
    assert read(root, layout="folders") == {"train/x/a.png": ["x"], "train/y/b.png": ["y"]}


def test_a_class_list_beside_class_folders_is_no_table(tmp_path: Path) -> None:
    root = table(images(tmp_path, "train/x/a.png", "train/y/b.png"), "id,name\nx,ant\ny,bee\n")
    assert read(root) == {"train/x/a.png": ["x"], "train/y/b.png": ["y"]}


def test_labels_of_other_classes_are_refused(tmp_path: Path) -> None:
    root = table(images(tmp_path, "a.png", "b.png"), "file,label\na.png,x\nb.png,y\n")
    assert "line 3: y is no class" in refusal(root, class_names=["x", "z"])
