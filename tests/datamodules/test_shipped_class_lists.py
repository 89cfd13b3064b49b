"""The shipped class lists are those of the datasets, as other libraries state them."""

from __future__ import annotations

import csv
from importlib import resources
from pathlib import Path

import pytest
from timm.data import ImageNetInfo
from torchvision.models._meta import _COCO_CATEGORIES, _IMAGENET_CATEGORIES, _KINETICS400_CATEGORIES

from swinv2_tasks.datamodules import CocoDataModule, ImageNetDataModule, KineticsDataModule, class_lists
from swinv2_tasks.errors import UserError

FOLDER = Path(str(resources.files(class_lists)))

IN_GOOGLES_LIST_ONLY = ("n03931044", "n09859684")
"""Classes without images in ImageNet-22k, which the authors' table of rows counts as well."""

TEDDY_BEAR = 850
"""The class of ImageNet-1k that ImageNet-22k does not have; the table names the row of a garment."""


def map_of_rows() -> list[int]:
    """For each class of ImageNet-1k its row in the 22k head, by the authors' table."""
    text = resources.files("swinv2_tasks.weights").joinpath("imagenet_22k_to_1k.txt").read_text()
    return [int(row) for row in text.split()]


def test_imagenet_1k_is_that_of_timm_and_torchvision() -> None:
    data = ImageNetDataModule(class_names=str(FOLDER / "imagenet_1k.csv"))
    assert data.class_ids == ImageNetInfo("imagenet-1k").label_names()
    assert data.class_names == list(_IMAGENET_CATEGORIES)
    assert len(set(data.class_ids)) == data.num_classes == 1000


def test_imagenet_22k_is_that_of_timm_in_the_order_of_ids() -> None:
    info = ImageNetInfo("imagenet-22k")
    data = ImageNetDataModule(class_names=str(FOLDER / "imagenet_22k.csv"))
    assert data.class_ids == info.label_names() == sorted(data.class_ids)
    assert len(set(data.class_ids)) == data.num_classes == 21_841
    lemmas = [info.index_to_description(k, detailed=False) for k in range(21_841)]
    assert data.class_names == [lemma.split(", ")[0] for lemma in lemmas]


def test_the_authors_rows_of_imagenet_1k_are_those_of_a_list_with_two_more_classes() -> None:
    """What README.md says: without the two, the rows before them agree, and the others are one or two further."""
    ids_1k = ImageNetDataModule(class_names=str(FOLDER / "imagenet_1k.csv")).class_ids
    ids_22k = ImageNetDataModule(class_names=str(FOLDER / "imagenet_22k.csv")).class_ids
    rows = map_of_rows()

    with_both = sorted([*ids_22k, *IN_GOOGLES_LIST_ONLY])
    differing = [k for k, class_id in enumerate(ids_1k) if with_both[rows[k]] != class_id]
    assert differing == [TEDDY_BEAR]
    assert ids_1k[TEDDY_BEAR] not in ids_22k

    further = {k: rows[k] - ids_22k.index(class_id) for k, class_id in enumerate(ids_1k) if k != TEDDY_BEAR}
    assert [k for k, rows_further in further.items() if rows_further == 0] == list(range(718))
    assert set(further.values()) == {0, 1, 2}
    assert sum(rows_further > 0 for rows_further in further.values()) == 281


def test_coco_has_the_original_ids() -> None:
    data = CocoDataModule(class_names=str(FOLDER / "coco.csv"))
    assert data.num_classes == 80
    assert {k: name for k, name in enumerate(_COCO_CATEGORIES) if name not in ("__background__", "N/A")} == dict(
        zip(data.class_ids, data.class_names, strict=True)
    )
    assert data.class_ids == sorted(data.class_ids)


def test_kinetics_has_the_order_of_torchvision() -> None:
    data = KineticsDataModule(class_names=str(FOLDER / "kinetics_400.txt"))
    assert data.class_ids == data.class_names == list(_KINETICS400_CATEGORIES)
    assert len(set(data.class_ids)) == 400


def test_the_readme_names_each_list() -> None:
    named = {path.name for path in FOLDER.iterdir() if path.suffix in (".csv", ".txt")}
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in named)


@pytest.mark.parametrize(
    ("file", "text", "ids"),
    [
        ("mine.txt", "cat\nfire hydrant\n\n", [1, 2]),
        ("mine.csv", "id,name\n7,cat\n3,fire hydrant\n", [7, 3]),
        ("mine.csv", '7,cat\n3,"fire hydrant"\n', [7, 3]),
    ],
)
def test_categories_are_stated_by_a_file(tmp_path: Path, file: str, text: str, ids: list[int]) -> None:
    (tmp_path / file).write_text(text)
    data = CocoDataModule(class_names=str(tmp_path / file))
    assert (data.class_ids, data.class_names) == (ids, ["cat", "fire hydrant"])


def test_ids_of_categories_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["n01", "cat"], ["2", "dog"]])
    with pytest.raises(UserError, match=r"mine\.csv .* no numbers: n01"):
        _ = CocoDataModule(class_names=str(path)).class_ids
