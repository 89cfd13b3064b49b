"""Layouts: what a folder's structure shows, what it leaves open, and what is set aside for validation."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swinv2_tasks.datamodules import CocoDataModule
from swinv2_tasks.datamodules.layouts import Layout, Tree, open_dataset, set_aside, split_of
from swinv2_tasks.errors import UserError
from tests.helpers.objects import DATA, write_objects

EXPECTED = "Expected a dataset."


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def marked_by(name: str, file: str) -> Layout[tuple[str, Tree]]:
    """A layout that a file in the root shows."""
    return Layout(name, file, lambda tree: file if tree.has_file(file) else None, lambda tree: (name, tree))


LAYOUTS = (marked_by("first", "one.txt"), marked_by("second", "two/two.txt"))


def test_the_structure_shows_the_layout(tmp_path: Path, capsys: Any) -> None:
    for name, file in (("first", "one.txt"), ("second", "two/two.txt")):
        root = write(tmp_path / name, file)
        assert open_dataset(str(root), LAYOUTS, None, EXPECTED)[0] == name
        assert capsys.readouterr().out == f"data.root is read as {name}: {file}\n"


def test_a_setting_says_the_layout(tmp_path: Path, capsys: Any) -> None:
    root = str(write(tmp_path, "one.txt", "two/two.txt"))
    for name in ("first", "second"):
        assert open_dataset(root, LAYOUTS, name, EXPECTED)[0] == name
    assert capsys.readouterr().out == ""

    with pytest.raises(UserError, match=r"data\.layout is third; expected one of first, second"):
        open_dataset(root, LAYOUTS, "third", EXPECTED)
    (tmp_path / "one.txt").unlink()
    with pytest.raises(UserError, match=r"does not have the layout first: expected one\.txt"):
        open_dataset(root, LAYOUTS, "first", EXPECTED)


def test_what_can_be_read_in_two_ways_is_refused_with_both(tmp_path: Path) -> None:
    root = write(tmp_path, "one.txt", "two/two.txt")
    with pytest.raises(UserError) as refusal:
        open_dataset(str(root), LAYOUTS, None, EXPECTED)
    for part in ("first (one.txt)", "second (two/two.txt)", "--data.layout first", "--data.layout second"):
        assert part in str(refusal.value)


def test_what_has_no_layout_is_refused_with_what_is_there(tmp_path: Path) -> None:
    root = write(tmp_path, "three.txt", "photos/1.jpg")
    with pytest.raises(UserError) as refusal:
        open_dataset(str(root), LAYOUTS, None, EXPECTED)
    for part in ("photos/, three.txt", "first, second", EXPECTED):
        assert part in str(refusal.value)
    for missing in (None, str(tmp_path / "nowhere")):
        with pytest.raises(UserError, match=EXPECTED):
            open_dataset(missing, LAYOUTS, None, EXPECTED)


def test_each_folder_is_listed_once_and_hidden_ones_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, "a/b/1.jpg", "a/b/2.jpg", "a/c/3.jpg", ".hidden/4.jpg", "a/.hidden.jpg", "5.jpg")
    scandir, listed = os.scandir, Counter[str]()

    def counted(path: Any) -> Any:
        listed[os.path.relpath(path, root)] += 1
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    tree = Tree(root)
    for _ in range(2):
        assert (tree.folders(), tree.files()) == (["a"], ["5.jpg"])
        assert (tree.folders("a"), tree.files("a"), tree.files("a/b")) == (["b", "c"], [], ["1.jpg", "2.jpg"])
        assert tree.has_file("a/c/3.jpg") and tree.has_folder("a/c") and tree.has_folder("")
        assert not tree.has_file("a/c") and not tree.has_folder("5.jpg") and not tree.has_file("a/d/6.jpg")
        assert tree.files("nowhere/at/all") == []
    assert listed == {".": 1, "a": 1, "a/b": 1, "a/c": 1}


def test_names_of_splits(tmp_path: Path) -> None:
    for split, names in (
        ("train", ("train", "Training")),
        ("val", ("val", "valid", "VALIDATION")),
        ("test", ("test",)),
    ):
        assert [split_of(name) for name in names] == [split] * len(names)
    assert split_of("images") is None

    tree = Tree(write(tmp_path, "images/training/1.jpg", "images/valid/1.jpg", "images/val/1.jpg"))
    assert tree.split_folder("train", "images") == "images/training"
    assert tree.split_folder("test", "images") is None
    with pytest.raises(UserError, match="val, valid"):
        tree.split_folder("val", "images")


def test_a_share_of_each_group_is_set_aside() -> None:
    generator = np.random.default_rng(0)
    for share in (0.01, 0.1, 0.5, 0.9):
        groups = [*generator.integers(0, 7, 400).tolist(), 7]
        aside = set_aside(groups, share, seed=0)
        assert aside.shape == (401,) and not aside[-1]  # a group of one stays in training
        for group in range(7):
            members = np.asarray(groups) == group
            expected = min(members.sum() - 1, max(1, round(members.sum() * share)))
            assert aside[members].sum() == expected
        assert (aside == set_aside(groups, share, seed=0)).all()
        assert (aside != set_aside(groups, share, seed=1)).any()


def test_objects_are_set_aside_for_validation(tmp_path: Path, capsys: Any) -> None:
    root = write_objects(tmp_path)
    annotated = {
        entry["id"] for entry in json.loads((root / "annotations/instances_train2017.json").read_text())["images"]
    }
    with pytest.raises(UserError, match=r"data\.val_share is 0\.3, but there are validation data"):
        CocoDataModule(str(root), val_share=0.3, **DATA).setup("fit")

    (root / "annotations/instances_val2017.json").unlink()
    with pytest.raises(UserError, match=r"data\.val_share 0\.1"):
        CocoDataModule(str(root), **DATA).setup("fit")
    data = CocoDataModule(str(root), val_share=0.3, keep_empty=True, **DATA)
    data.setup("fit")
    train, val = ({image.id for image in dataset.images} for dataset in (data.train_dataset, data.val_dataset))  # type: ignore[union-attr]
    assert train | val == annotated and not train & val and len(val) == round(0.3 * len(annotated))
    assert f"{len(val)} of {len(annotated)} training images are set aside" in capsys.readouterr().out
    for share in (0, 1, -1):
        with pytest.raises(UserError, match="above 0 and below 1"):
            CocoDataModule(str(root), val_share=share, **DATA).setup("fit")
