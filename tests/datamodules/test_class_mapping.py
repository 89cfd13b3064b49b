"""Classes that a setting selects, renames, merges and drops: the mapping, and what each datamodule makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swinv2_tasks.datamodules import ADE20KDataModule, CocoDataModule, ImageNetDataModule, KineticsDataModule
from swinv2_tasks.datamodules.class_mapping import map_classes
from swinv2_tasks.errors import UserError
from swinv2_tasks.hyperparameters import recorded_arguments
from tests.helpers import objects, scenes, tiny

IDS = [1, 7, 8, 90]
NAMES = ["cat", "dog", "eel", "fox"]


# ---- the mapping


def reference(names: list[str], mapping: dict[str, str | None]) -> list[str | None]:
    """What each class is called in the end, class by class; of classes whose names are not ids."""
    final = []
    for name in names:
        if name in mapping:
            final.append(mapping[name])
        elif "*" in mapping:
            final.append(mapping["*"])
        else:
            final.append(name)
    return final


def test_mappings_are_those_of_a_loop_over_the_classes() -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        names = [f"n{k}" for k in range(rng.integers(1, 6))]
        ids = [int(k) for k in np.cumsum(rng.integers(100, 200, len(names)))]
        keys = [name for name in names if rng.random() < 0.6] + ["*"] * int(rng.random() < 0.3)
        targets = [None, "new", "n0", "n1", "n2", "other"]
        mapping = {key: targets[rng.integers(len(targets))] for key in keys}
        final = reference(names, mapping)
        kept = [name for name in final if name is not None]
        unsaid = [name for name in names if name not in mapping and "*" not in mapping]
        if not kept or any(target in unsaid for target in mapping.values()):
            refused += 1
            with pytest.raises(UserError, match="class_mapping"):
                map_classes(ids, names, mapping)
            continue

        mapped = map_classes(ids, names, mapping)
        assert mapped.names == list(dict.fromkeys(kept))
        assert mapped.ids == [ids[final.index(name)] for name in mapped.names]
        assert mapped.index_of == [None if name is None else mapped.names.index(name) for name in final]
        assert mapped.table.tolist() == [-1 if name is None else mapped.names.index(name) for name in final]
        # Ids mean the same, and so do the names where keys are ids alone.
        by_id = {key if key == "*" else str(ids[names.index(key)]): target for key, target in mapping.items()}
        assert mapped.resolved == by_id
        assert map_classes(ids, names, by_id) == mapped
    assert 200 < refused < 1500


def test_other_classes_become_background_and_equal_names_stay_apart() -> None:
    mapped = map_classes(IDS, ["background", "dog", "dog", "fox"], {"fox": "background"})
    assert (mapped.ids, mapped.names) == ([1, 7, 8], ["background", "dog", "dog"])
    assert mapped.index_of == [0, 1, 2, 0]


def test_names_count_before_ids(capsys: Any) -> None:
    mapped = map_classes([1, 2, 3], ["3", "1", "x"], {"3": "three"})  # as where digits are numbered from 1
    assert mapped.names == ["three", "1", "x"]
    assert "3 is the name of one class and the id of another, x; the name counts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"cow": None}, r"names cow, which is no class\. The classes are 1 cat, 7 dog, 8 eel, 90 fox"),
        ({"cat": "dog"}, r"`dog: dog`"),
        ({"cat": ""}, "no name"),
        ({"cat": "*"}, "no name"),
        ({"*": None}, "drops all 4 classes"),
        ({"cat": "a", "1": "b"}, "cat and 1, which are one class"),
    ],
)
def test_what_means_nothing_is_refused(mapping: dict[str, str | None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        map_classes(IDS, NAMES, mapping)


def test_a_name_of_several_classes_is_refused_and_their_ids_are_not() -> None:
    names = ["crane", "crane", "eel", "fox"]
    with pytest.raises(UserError, match="several classes are called: 1, 7 by id"):
        map_classes(IDS, names, {"crane": None})
    assert map_classes(IDS, names, {"7": "machine"}).names == ["crane", "machine", "eel", "fox"]


# ---- datamodules


MAPPING = {"n01": "plant", "green leaf": "plant"}


def images(root: Path, **arguments: Any) -> ImageNetDataModule:
    return tiny.new_data(root, class_names=str(root / "classes.csv"), **arguments)


def labels_of(dataset: Any) -> list[Any]:
    return [label for _, label in dataset.samples]


def test_images_are_merged_and_left_out(tmp_path: Path, capsys: Any) -> None:
    root = tiny.write_images(tmp_path / "images")
    merged = images(root, class_mapping=MAPPING)
    merged.setup("fit")
    assert (merged.class_ids, merged.class_names) == (["n01", "n03"], ["plant", "blue sea"])
    assert labels_of(merged.train_dataset) == [0] * 12 + [1] * 6
    assert labels_of(merged.val_dataset) == [0] * 8 + [1] * 4

    capsys.readouterr()
    selected = images(root, class_mapping={"n03": "sea", "n01": "n01", "*": None})
    selected.setup("fit")
    assert (selected.class_ids, selected.class_names) == (["n01", "n03"], ["n01", "sea"])
    assert labels_of(selected.train_dataset) == [0] * 6 + [1] * 6
    output = capsys.readouterr().out
    assert "3 classes become 2, n01, sea" in output
    assert "6 of 18 train images are of dropped classes" in output
    assert "4 of 12 val images are of dropped classes" in output

    # A checkpoint's record, which needs no file, gives the same.
    record = selected.init_args
    again = ImageNetDataModule(**recorded_arguments(ImageNetDataModule, record, "a.ckpt"))
    again.setup("fit")
    assert again.class_ids == selected.class_ids
    assert labels_of(again.train_dataset) == labels_of(selected.train_dataset)


def test_one_class_that_is_left_is_refused(tmp_path: Path) -> None:
    root = tiny.write_images(tmp_path / "images")
    with pytest.raises(UserError, match="one class"):
        images(root, class_mapping={"n01": "n01", "*": None}).setup("fit")


def test_real_labels_are_mapped_and_go_by_the_image_own_class(tmp_path: Path) -> None:
    root = tiny.write_images(tmp_path / "images")
    # Class indices are those of the dataset, before any mapping.
    real = {f"{name}_{k}.jpg": [0, 1] if k else [1, 2] for name in tiny.COLORS for k in range(4)}
    (root / "real.json").write_text(json.dumps(real))
    data = images(root, class_mapping={"n02": None}, real_labels="real.json")
    data.setup("validate")
    assert labels_of(data.val_dataset) == [[1], [0], [0], [0]] * 2


def test_several_labels_are_merged_by_any_and_images_stay(tmp_path: Path) -> None:
    labels = {"a": "cat|dog", "b": "dog", "c": "eel", "d": "cat|eel|fox", "e": "fox"}
    for name in labels:
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "train.csv").write_text("file,labels\n" + "".join(f"{k}.png,{v}\n" for k, v in labels.items()))
    (tmp_path / "val.csv").write_text("file,labels\na.png,cat|dog\nc.png,eel|fox\n")
    data = ImageNetDataModule(str(tmp_path), class_mapping={"cat": "pet", "dog": "pet", "eel": None}, **tiny.DATA)
    data.setup("fit")
    assert (data.class_ids, data.class_names) == (["cat", "fox"], ["pet", "fox"])
    assert labels_of(data.train_dataset) == [[0], [0], [], [0, 1], [1]]
    assert labels_of(data.val_dataset) == [[0], [1]]


def objects_of(dataset: Any) -> dict[str, list[tuple[int, int, bool]]]:
    """Id, label and crowd of each object, by the file of its image."""
    return {image.file_name: [(o.id, o.label, o.crowd) for o in image.objects] for image in dataset.images}


def test_objects_are_left_out_and_their_images_stay(tmp_path: Path, capsys: Any) -> None:
    root = objects.write_objects(tmp_path)
    plain, mapped = (
        CocoDataModule(str(root), class_mapping=mapping, **objects.DATA)
        for mapping in (None, {"3": None, "blue bar": "thing", "green disc": "thing"})
    )
    for data in (plain, mapped):
        data.setup("fit")
    assert (mapped.class_ids, mapped.class_names) == ([5], ["thing"])
    before, after = objects_of(plain.val_dataset), objects_of(mapped.val_dataset)
    assert after == {name: [(k, 0, crowd) for k, label, crowd in own if label != 0] for name, own in before.items()}
    assert any(crowd for own in before.values() for _, _, crowd in own)
    trained = objects_of(plain.train_dataset)
    assert objects_of(mapped.train_dataset) == {
        name: [(k, 0, crowd) for k, label, crowd in own if label != 0] for name, own in trained.items()
    } | {name: own for name, own in objects_of(mapped.train_dataset).items() if name not in trained}
    assert [] in objects_of(mapped.train_dataset).values()
    assert "images have no others and stay as background" in capsys.readouterr().out
    target = mapped.train_dataset[[*objects_of(mapped.train_dataset).values()].index([])]["targets"]  # type: ignore[index]
    assert len(target["boxes"]) == 0


def read_masks(data: ADE20KDataModule) -> list[np.ndarray]:
    data.setup("validate")
    return [sample["mask"].numpy() for sample in data.val_dataset]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("mapping", "becomes", "ids", "names"),
    [
        ({"red clay": None}, [255, 0, 1], [2, 3], ["green moss", "blue slate"]),
        ({"blue slate": "soil", "1": "soil"}, [0, 1, 0], [1, 2], ["soil", "green moss"]),
        ({"green moss": "plant", "*": "rest"}, [0, 1, 0], [1, 2], ["rest", "plant"]),
    ],
)
def test_pixels_are_merged_and_left_out(
    tmp_path: Path, mapping: dict[str, str | None], becomes: list[int], ids: list[int], names: list[str]
) -> None:
    root = scenes.write_scenes(tmp_path)
    stated = {"class_names": scenes.NAMES, **scenes.DATA}
    plain = read_masks(ADE20KDataModule(str(root), **stated))
    mapped = ADE20KDataModule(str(root), class_mapping=mapping, **stated)
    mapped.setup("fit")
    table = np.full(256, 255)
    table[: len(becomes)] = becomes
    for one, other in zip(plain, read_masks(mapped), strict=True):
        assert np.array_equal(table[one], other)
    assert (mapped.class_ids, mapped.class_names, mapped.num_classes) == (ids, names, len(names))

    record = recorded_arguments(ADE20KDataModule, mapped.init_args, "a.ckpt")
    again = ADE20KDataModule(**{**record, "root": None})  # as predicting does
    assert (again.class_ids, again.class_names) == (ids, names)


def test_colors_are_mapped(tmp_path: Path) -> None:
    root = scenes.write_scenes(tmp_path)
    palette = [[200, 0, 0], [0, 200, 0], [0, 0, 200]]
    colors = np.array([[0, 0, 0], *palette], np.uint8)
    for path in root.glob("annotations/*/*.png"):
        Image.fromarray(colors[np.asarray(Image.open(path))]).save(path)
    stated = {"class_names": scenes.NAMES, "palette": palette, "ignore_label": [[0, 0, 0]], **scenes.DATA}
    data = ADE20KDataModule(str(root), class_mapping={"#00c800": None, "red clay": "clay"}, **stated)
    masks = read_masks(data)
    assert data.class_ids == ["#c80000", "#0000c8"]
    assert data.class_names == ["clay", "blue slate"]
    assert {value for mask in masks for value in np.unique(mask)} == {0, 1, 255}


def test_videos_are_left_out(tmp_path: Path, capsys: Any) -> None:
    for split in ("train", "val"):
        for name in ("run", "sit", "walk"):
            for number in range(2):
                path = tmp_path / split / name / f"{number}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    data = KineticsDataModule(str(tmp_path), class_mapping={"sit": None, "walk": "go"}, num_workers=0)
    assert (data.class_ids, data.class_names) == (["run", "walk"], ["run", "go"])
    assert [label for _, label in data.videos("train")] == [0, 0, 1, 1]
    assert not any("sit" in path for path, _ in data.videos("val"))
    assert "2 of 6 val videos are of dropped classes" in capsys.readouterr().out
    again = KineticsDataModule(**recorded_arguments(KineticsDataModule, data.init_args, "a.ckpt"))
    assert again.videos("val") == data.videos("val")
