"""Scenes in the layouts of several datasets are the same scenes; what their label maps leave open is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swinv2_tasks.datamodules import ADE20KDataModule
from swinv2_tasks.datamodules.readers.cityscapes import CLASS_OF_ID
from swinv2_tasks.datamodules.readers.mask_folders import match_names
from swinv2_tasks.datamodules.readers.voc_scenes import NAMES, read_label_map, voc_color
from swinv2_tasks.errors import UserError
from tests.helpers.scene_layouts import save_changed, scene_files, write_cityscapes, write_folders, write_voc
from tests.helpers.scenes import DATA, write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"))


def read(root: Path, **arguments: Any) -> ADE20KDataModule:
    data = ADE20KDataModule(str(root), **{**DATA, **arguments})
    data.setup("fit")
    return data


def validated_masks(data: ADE20KDataModule) -> list[np.ndarray]:
    """The labels of the validation images, in an order of their own."""
    return in_order(sample["mask"].numpy() for sample in data.val_dataset)  # type: ignore[union-attr]


def in_order(masks: Iterable[np.ndarray]) -> list[np.ndarray]:
    return sorted(masks, key=lambda mask: (mask.shape, mask.tobytes()))


def assert_same(data: ADE20KDataModule, expected: ADE20KDataModule) -> None:
    assert data.train_samples == expected.train_samples
    ours, theirs = validated_masks(data), validated_masks(expected)
    assert len(ours) == len(theirs) == 5
    assert all(np.array_equal(mask, other) for mask, other in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def expected(scenes: Path) -> ADE20KDataModule:
    return read(scenes, class_names=["red", "green", "blue"], background="ignore")


@pytest.mark.parametrize("colors", [False, True])
def test_voc(scenes: Path, expected: ADE20KDataModule, tmp_path: Path, colors: bool, capsys: Any) -> None:
    data = read(write_voc(scenes, tmp_path, colors))
    assert "data.root is read as voc: SegmentationClass/*.png\n" in capsys.readouterr().out
    assert data.class_names == list(NAMES) and len(NAMES) == 21
    assert_same(data, expected)


def test_voc_with_the_label_map_of_a_tool(scenes: Path, expected: ADE20KDataModule, tmp_path: Path) -> None:
    root = write_voc(scenes, tmp_path, colors=True)
    lines = [f"{name}:{','.join(map(str, voc_color(number)))}::" for number, name in enumerate(("a", "b", "c"))]
    (root / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]))
    with pytest.raises(UserError, match="224,224,192"):  # the seams, of which this list says nothing
        read(root)
    data = read(root, class_names=["a", "b", "c"], palette=[list(voc_color(k)) for k in range(3)],
                ignore_label=[list(voc_color(255))])  # fmt: skip
    assert_same(data, expected)
    (root / "labelmap.txt").write_text("a:1,2\n")
    with pytest.raises(UserError, match=r"labelmap\.txt, line 1"):
        read_label_map(root / "labelmap.txt")


def test_voc_map_of_background_and_seams(tmp_path: Path) -> None:
    """0 is a class and 255 is left out, whatever else a map lacks."""
    for name, rest in (("a", 0), ("b", 5)):
        mask = np.zeros((32, 40), np.uint8)
        mask[:, :4] = 255
        mask[8:16, 8:16] = rest
        for folder, array in (("JPEGImages", np.stack([mask] * 3, -1)), ("SegmentationClass", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            ending = "jpg" if folder == "JPEGImages" else "png"
            Image.fromarray(array).save(tmp_path / folder / f"{name}.{ending}")
    data = read(tmp_path, val_share=0.5)
    masks = {Path(sample["path"]).stem: sample["mask"] for sample in [*data.val_dataset, *data.train_dataset]}  # type: ignore[misc]
    assert set(masks["a"].unique().tolist()) <= {0, 255}
    assert set(masks["b"].unique().tolist()) <= {0, 5, 255}


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes(scenes: Path, expected: ADE20KDataModule, tmp_path: Path, kind: str, capsys: Any) -> None:
    data = read(write_cityscapes(scenes, tmp_path, kind))
    assert "data.root is read as cityscapes" in capsys.readouterr().out
    assert data.class_names == list(CLASS_OF_ID.values()) and data.num_classes == 19
    assert_same(data, expected)


FORMS = (
    "images/{0}/{1}.jpg masks/{0}/{1}.png",
    "{0}/images/{1}.jpg {0}/masks/{1}.png",
    "{0}/{1}.jpg {0}_masks/{1}_mask.png",
    "{0}/{1}.jpg {0}annot/{1}.png",
    "img/{0}/{1}_image.jpg labels/{0}/{1}_label.png",
)


@pytest.mark.parametrize("form", FORMS)
def test_folders(scenes: Path, expected: ADE20KDataModule, tmp_path: Path, form: str, capsys: Any) -> None:
    root = write_folders(scenes, tmp_path, form)
    data = read(root)  # the values are the classes, 0 among them
    said = capsys.readouterr().out
    assert "data.root is read as folders: " in said and "classes: the values of the label maps, 0, 1, 2, 3" in said
    assert data.class_names == ["0", "1", "2", "3"]
    from_1 = in_order(np.where(mask == 0, 255, mask - 1) for mask in validated_masks(data))
    for mask, other in zip(from_1, validated_masks(expected), strict=True):
        assert np.array_equal(mask, other)

    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    assert_same(read(root), expected)


def test_folders_without_splits(scenes: Path, tmp_path: Path, capsys: Any) -> None:
    root = write_folders(scenes, tmp_path, "images/{0}-{1}.jpg masks/{0}-{1}.png")
    data = read(root)
    assert "2 of 17 training images are set aside for validation (data.val_share 0.1)" in capsys.readouterr().out
    assert (data.train_samples, len(data.val_dataset)) == (15, 2)  # type: ignore[arg-type]


def test_binary_masks_are_ambiguous_until_a_setting_says_more(scenes: Path, tmp_path: Path) -> None:
    for image, mask in scene_files(scenes, "training"):
        (tmp_path / "images").mkdir(exist_ok=True)
        shutil.copy(image, tmp_path / "images")
        save_changed(mask, tmp_path / "masks" / mask.name, {0: 0, 1: 0, 2: 255, 3: 255})
    with pytest.raises(UserError) as refusal:
        read(tmp_path)
    assert "data.label_values={0: background, 255: object}" in str(refusal.value)
    assert "data.ignore_label=255" in str(refusal.value)
    data = read(tmp_path, label_values={0: "background", 255: "object"})
    assert data.class_names == ["background", "object"] and data.class_ids == [0, 255]


def test_what_can_be_read_in_two_ways(scenes: Path, tmp_path: Path) -> None:
    root = write_voc(scenes, write_folders(scenes, tmp_path, "images/{0}/{1}.jpg masks/{0}/{1}.png"))
    with pytest.raises(UserError, match=r"as voc .* or as folders .*--data\.layout voc or --data\.layout folders"):
        read(root)
    assert read(root, layout="voc").num_classes == 21
    assert read(root, layout="folders").num_classes == 4


def test_what_checkpoints_record_reads_the_label_maps_alike(scenes: Path, tmp_path: Path) -> None:
    """The record says what the layout said, for evaluation on data that lie otherwise."""
    for root in (write_voc(scenes, tmp_path / "voc"), write_cityscapes(scenes, tmp_path / "city")):
        data = read(root)
        record = {**data.record["init_args"], "root": None, "class_names": data.class_names, "augmentation": None}
        assert record["label_values"] is not None or record["background"] == "class"
        for name in ("background", "label_values"):
            assert record[name] == data.init_args[name]
        again = ADE20KDataModule(
            class_names=data.class_names,
            **{name: record[name] for name in ("background", "ignore_label", "label_values", "palette")},
        )
        assert again.coding.class_of == data.coding.class_of and again.coding.ignored == data.coding.ignored


def test_label_maps_are_matched_with_images_by_their_names() -> None:
    cases: list[tuple[list[str], list[str], dict[str, str]]] = [
        (["a.jpg", "b.jpg"], ["a.png", "b.png"], {"a.jpg": "a.png", "b.jpg": "b.png"}),
        (["1.jpg", "11.jpg"], ["1_m.png", "11_m.png"], {"1.jpg": "1_m.png", "11.jpg": "11_m.png"}),
        (["a_image.jpg"], ["a_label.png"], {"a_image.jpg": "a_label.png"}),
        (["x/a.jpg", "y/a.jpg"], ["x/a.png", "y/a.png"], {"x/a.jpg": "x/a.png", "y/a.jpg": "y/a.png"}),
        (["a.jpg", "b.jpg"], ["a.png"], {"a.jpg": "a.png"}),
        (["a.jpg"], ["q.png"], {}),
    ]
    for images, labels, pairs in cases:
        assert match_names(images, labels) == pairs
    with pytest.raises(UserError, match="keep one"):
        match_names(["a.jpg"], ["a.png", "a.tif"])


def test_the_palette_of_voc() -> None:
    """As the development kit lists its first colors."""
    assert [voc_color(number) for number in (0, 1, 2, 3, 4, 15, 255)] == [
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (192, 128, 128), (224, 224, 192),
    ]  # fmt: skip


def layouts() -> dict[str, Callable[[Path, Path], Path]]:
    return {"voc": write_voc, "cityscapes": write_cityscapes}


@pytest.mark.parametrize("layout", layouts())
def test_missing_label_maps_are_named(scenes: Path, tmp_path: Path, layout: str) -> None:
    root = layouts()[layout](scenes, tmp_path)
    mask = sorted((root / "SegmentationClass").glob("val*") if layout == "voc" else root.glob("gtFine/val/*/*"))[0]
    mask.unlink()
    with pytest.raises(UserError, match="1 of 5 images have no label map"):
        read(root)
