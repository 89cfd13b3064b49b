"""What label maps mean by settings, by what they hold, and not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swinv2_tasks.datamodules import ADE20KDataModule
from swinv2_tasks.datamodules.readers.label_values import LabelCoding, LabelSettings, possible_codings, write_label_map
from swinv2_tasks.errors import UserError

NAMES = ["clay", "moss", "slate"]
RED, GREEN, BLUE = [200, 0, 0], [0, 200, 0], [0, 0, 200]
NONE = 255


def write_maps(root: Path, training: Any, validation: Any = None, names: list[str] | None = None) -> Path:
    """A dataset of gray images whose label maps are given, a row or more of values or colors each."""
    for split, maps in (("training", training), ("validation", training if validation is None else validation)):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for k, values in enumerate(maps):
            pixels = np.atleast_1d(np.array(values, dtype=np.uint8))
            pixels = pixels if pixels.ndim > 1 + (pixels.shape[-1:] == (3,) and pixels.ndim == 3) else pixels[None]
            Image.fromarray(pixels).save(root / "annotations" / split / f"{k}.png")
            Image.new("RGB", (pixels.shape[1], pixels.shape[0]), "gray").save(root / "images" / split / f"{k}.jpg")
    (root / "names.txt").write_text("".join(f"{name}\n" for name in names or NAMES))
    return root


def new_data(root: Path, stage: str = "fit", **settings: Any) -> ADE20KDataModule:
    arguments = {"class_names": str(root / "names.txt"), "num_workers": 0, "batch_size": 1, "crop_size": 4}
    data = ADE20KDataModule(str(root), **{**arguments, **settings})
    data.setup(stage)
    return data


def masks(data: ADE20KDataModule) -> list[list[list[int]]]:
    """Class indices of the validation masks."""
    return [batch["mask"][0].tolist() for batch in data.val_dataloader()]


# ---- settings


@pytest.mark.parametrize(
    ("values", "settings", "expected"),
    [
        ([0, 1, 2, 3], {"background": "ignore"}, [NONE, 0, 1, 2]),
        ([0, 1, 2, 2], {"background": "class"}, [0, 1, 2, 2]),
        ([0, 1, 2, 255], {"background": "class", "ignore_label": 255}, [0, 1, 2, NONE]),
        ([0, 1, 3, 7, 255], {"background": "ignore", "ignore_label": [7, 255]}, [NONE, 0, 2, NONE, NONE]),
        ([0, 1, 2, 3], {"ignore_label": 0}, [NONE, 0, 1, 2]),
        ([0, 1, 2, 3], {"ignore_label": 3}, [0, 1, 2, NONE]),
        ([0, 128, 255], {"label_values": {0: "slate", 255: "clay", 128: "moss"}}, [2, 1, 0]),
        (
            [7, 8, 9, 10, 0],
            {"label_values": {7: "clay", 8: "clay", 9: "moss", 10: "slate"}, "ignore_label": 0},
            [0, 0, 1, 2, NONE],
        ),
        ([RED, GREEN, BLUE], {"palette": [RED, GREEN, BLUE]}, [0, 1, 2]),
        ([RED, [9, 9, 9], BLUE], {"palette": [BLUE, GREEN, RED], "ignore_label": [[9, 9, 9]]}, [2, NONE, 0]),
    ],
)
def test_settings_say_what_values_mean(
    values: list[Any], settings: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    data = new_data(write_maps(tmp_path, [[values]]), **settings)
    assert masks(data) == [[expected]]
    train = next(iter(data.train_dataloader()))["mask"].unique().tolist()
    assert set(train) <= {*expected, NONE}


def test_a_binary_mask_of_one_bit_has_the_values_0_and_1(tmp_path: Path) -> None:
    root = write_maps(tmp_path, [[[0, 1, 1]]], names=["background", "object"])
    for path in root.rglob("*.png"):
        Image.open(path).point(lambda value: 255 * value).convert("1").save(path)
    assert masks(new_data(root, background="class")) == [[[0, 1, 1]]]


def test_a_palette_image_has_its_indices_or_by_a_palette_its_colors(tmp_path: Path) -> None:
    root = write_maps(tmp_path, [[[0, 1, 2]]])
    for path in root.rglob("*.png"):
        image = Image.open(path)
        image.putpalette([*BLUE, *RED, *GREEN])
        image.save(path)
    assert masks(new_data(root, background="class")) == [[[0, 1, 2]]]
    assert masks(new_data(root, palette=[RED, GREEN, BLUE])) == [[[2, 0, 1]]]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("200 0 0\n0 200 0\n0 0 200\n", [0, 1, 2]),
        ("0,0,200\n200,0,0\n0,200,0\n", [1, 2, 0]),
        ("0 0 200\tslate\n200 0 0\tclay\n\n9 9 9\tsand dune\n0 200 0\tmoss\n", [0, 1, 2]),
    ],
)
def test_a_palette_is_a_file_in_order_or_with_names(lines: str, expected: list[int], tmp_path: Path) -> None:
    root = write_maps(tmp_path / "data", [[[RED, GREEN, BLUE]]])
    (tmp_path / "colors.txt").write_text(lines)
    data = new_data(root, palette=str(tmp_path / "colors.txt"))
    assert masks(data) == [[expected]]
    # A checkpoint evaluates without the file.
    (tmp_path / "colors.txt").unlink()
    assert masks(new_data(root, palette=data.init_args["palette"])) == [[expected]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"background": "class", "label_values": {0: "clay"}}, "background and data.label_values"),
        ({"background": "ignore", "palette": [RED, GREEN, BLUE]}, "background and data.palette"),
        ({"background": "class", "ignore_label": 0}, "leaves out 0, which by data.background is clay"),
        ({"background": "class", "ignore_label": 256}, "256; expected numbers from 0 to 255"),
        ({"background": "class", "ignore_label": [[0, 0, 0]]}, "expected numbers"),
        ({"palette": [RED, GREEN, BLUE], "ignore_label": 0}, "expected colors"),
        ({"palette": [RED, GREEN]}, "2 colors for 3 classes"),
        ({"palette": [RED, GREEN, RED]}, r"\(200, 0, 0\) for clay, slate"),
        ({"palette": [RED, GREEN, [0, 0, 256]]}, r"\[0, 0, 256\]"),
        ({"label_values": {0: "clay", 1: "moss"}}, "no value for these classes: slate"),
        ({"label_values": {0: "clay", 1: "moss", 2: "slate", 3: "sand"}}, "does not have: sand"),
        ({"label_values": {0: "clay", 1: "moss", 300: "slate"}}, "not from 0 to 255: 300"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as error:
        new_data(write_maps(tmp_path, [[[0, 1, 2]]]), **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "words"), [("200 0\n", "line 1"), ("1 2 3 clay\n", "no color for moss, slate")])
def test_a_palette_file_that_is_none_is_refused(text: str, words: str, tmp_path: Path) -> None:
    root = write_maps(tmp_path / "data", [[[RED, GREEN, BLUE]]])
    (tmp_path / "colors.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        new_data(root, palette=str(tmp_path / "colors.txt"))


# ---- no setting


def test_without_a_setting_label_maps_decide_where_they_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = new_data(write_maps(tmp_path / "a", [[[0, 1, 2, 2]], [[3, 1, 1, 1]]]))
    assert masks(data) == [[[NONE, 0, 1, 1]], [[2, 0, 0, 0]]]
    output = capsys.readouterr().out
    assert "data.background is not set" in output and "only fit ignore: 0 is left out, 1 is clay" in output
    assert data.init_args["background"] == "ignore"  # so that a checkpoint says it


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_label_maps_that_can_be_read_in_two_ways_are_refused(stage: str, tmp_path: Path) -> None:
    root = write_maps(tmp_path, [[[0, 1, 2, 2]], [[0, 1, 1, 1]]])
    with pytest.raises(UserError, match="read in two ways") as error:
        new_data(root, stage)
    assert "0: 4 (25.00 %), 1: 8 (50.00 %), 2: 4 (25.00 %)" in str(error.value)
    assert "background=ignore: 0 is left out, 1 is clay, 2 is moss, 3 is slate" in str(error.value)
    assert "background=class: 0 is clay, 1 is moss, 2 is slate" in str(error.value)


def test_training_label_maps_decide_for_validation_ones(tmp_path: Path) -> None:
    root = write_maps(tmp_path, [[[0, 1, 2, 3]]], [[[0, 1, 2, 2]]])
    assert masks(new_data(root, "validate")) == [[[NONE, 0, 1, 1]]]


@pytest.mark.parametrize(
    ("maps", "settings", "words"),
    [
        ([[0, 1, 2, 255]], {}, [": 255 is no class", "255: 2 (25.00 %)", "data.ignore_label=255"]),
        ([[0, 1, 2, 255]], {"background": "ignore"}, ["255 is no class", "As set, 0 is left out, 1 is clay"]),
        ([[0, 1, 4, 9]], {"background": "ignore"}, [": 4, 9 are no class", "4: 2 (", "data.ignore_label=[4,9]"]),
        ([[0, 1, 2, 3]], {"background": "class"}, [": 3 is no class", "0: 2 (", "data.background=class"]),
        ([[RED, GREEN, [1, 2, 3]]], {"palette": [RED, GREEN, BLUE]}, ["1,2,3 is no class", "ignore_label=[[1,2,3]]"]),
        ([[RED, GREEN, BLUE]], {"background": "class"}, ["holds colors", "the setting palette"]),
    ],
)
def test_labels_that_do_not_fit_stop_with_counts(
    maps: Any, settings: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        new_data(write_maps(tmp_path, [maps]), **settings)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_0_and_255_of_two_classes_suggest_their_mapping(tmp_path: Path) -> None:
    root = write_maps(tmp_path, [[[0, 255, 255]]], names=["ground", "object"])
    with pytest.raises(UserError, match=r"data\.label_values=\{0: ground, 255: object\}"):
        new_data(root)
    assert masks(new_data(root, label_values={0: "ground", 255: "object"})) == [[[0, 1, 1]]]


def test_evaluation_names_the_label_map_that_does_not_fit(tmp_path: Path) -> None:
    root = write_maps(tmp_path, [[[0, 1, 2]]], [[[1, 2, 3]], [[7, 2, 1]]])
    data = new_data(root, "validate", background="ignore")
    with pytest.raises(UserError, match=r"1\.png.* 7: 1 \(33\.33 %\)"):
        masks(data)


# ---- classes without pixels


def test_one_class_is_refused_with_the_remedy(tmp_path: Path) -> None:
    root = write_maps(tmp_path, [[[0, 1, 1]]], names=["object"])
    for settings in ({}, {"background": "ignore"}, {"background": "class"}):
        with pytest.raises(UserError, match=r"one class, object.*background,object\] with data\.background=class"):
            new_data(root, **settings)


@pytest.mark.parametrize(
    ("maps", "words"),
    [([[1, 1, 0]], "all labeled pixels are clay.*data.background=class"), ([[0, 0, 0]], "no pixel has a class")],
)
def test_pixels_of_one_class_alone_are_refused(maps: Any, words: str, tmp_path: Path) -> None:
    root = write_maps(tmp_path, [maps])
    with pytest.raises(UserError, match=words):
        new_data(root, background="ignore")
    new_data(root, "validate", background="ignore")


def test_a_rare_class_beyond_the_sample_is_found_before_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("swinv2_tasks.datamodules.ade20k.MAPS_COUNTED", {"train": 2, "val": 2})
    root = write_maps(tmp_path, [[[1, 2]], [[1, 0]], [[1, 0]], [[1, 0]]])
    new_data(root, background="ignore")
    assert "Classes in 4 training label maps" in capsys.readouterr().out


def test_shares_are_printed_with_what_is_left_out_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_maps(tmp_path, [[[0, 1, 1, 1]], [[0, 3, 255, 1]]])
    new_data(root, background="ignore", ignore_label=255)
    output = " ".join(capsys.readouterr().out.split())
    assert "Classes in 2 training label maps: 1 clay 50.00 %, 2 moss 0.00 %, 3 slate 12.50 %; left out: 0" in output
    assert "left out: 0: 25.00 %, 255: 12.50 %" in output
    assert "1 class has no pixel in them and cannot be learned: moss" in output


def test_a_last_class_without_a_pixel_may_mean_that_classes_count_from_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_data(write_maps(tmp_path, [[[0, 1, 2, 2]]]), background="ignore")
    output = capsys.readouterr().out
    assert "no pixel in them and cannot be learned: slate" in output
    assert "If 0 is clay, set data.background=class" in " ".join(output.split())


def test_a_sample_of_many_maps_is_called_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("swinv2_tasks.datamodules.ade20k.MAPS_COUNTED", {"train": 3, "val": 1})
    new_data(write_maps(tmp_path, [[[1, 2, 3]]] * 7), background="ignore")
    assert "Classes in 3 of 7 training label maps" in capsys.readouterr().out


def test_maps_that_do_not_fit_are_skipped_by_policy_up_to_its_budget(tmp_path: Path) -> None:
    root = write_maps(tmp_path, [[[0, 1, 2, 3]], [[0, 1, 2, 9]], [[0, 3, 2, 1]]], [[[0, 1, 2, 3]]])
    data = new_data(root, faulty_samples="skip", faulty_budget=1)
    assert len(list(data.train_dataloader())) == 3 and [Path(name).stem for name in data.faults.skipped] == ["1"]
    with pytest.raises(UserError, match="9 is no class"):
        new_data(root, faulty_samples="skip", faulty_budget=0)
    with pytest.raises(UserError, match=r"9 is no class.*data\.faulty_samples=skip"):
        new_data(root)


def test_label_maps_that_are_jpegs_are_refused(tmp_path: Path) -> None:
    root = write_maps(tmp_path, [[[0, 1, 2, 3]]])
    for path in root.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    with pytest.raises(UserError, match=r"There is 0\.jpg.*JPEG"):
        new_data(root)


# ---- predictions


@pytest.mark.parametrize(
    ("settings", "ids", "color"),
    [
        (LabelSettings(background="ignore"), [1, 2, 3], (1, 2, 3)),
        (LabelSettings(background="class"), [0, 1, 2], (1, 2, 3)),
        (LabelSettings(label_values={9: "moss", 255: "slate", 254: "slate", 4: "clay"}), [4, 9, 255], (1, 2, 3)),
        (LabelSettings(palette=[RED, GREEN, BLUE]), ["#c80000", "#00c800", "#0000c8"], RED),
    ],
)
def test_what_is_predicted_is_written_as_what_was_learned(
    settings: LabelSettings, ids: list[Any], color: Any, tmp_path: Path
) -> None:
    (coding,) = possible_codings(NAMES, settings, is_ade20k=False)
    assert isinstance(coding, LabelCoding) and coding.class_ids == ids
    labels = np.array([[0, 1, 2], [2, 1, 0]])
    write_label_map(tmp_path / "labels.png", labels, coding.class_ids, [(1, 2, 3), (4, 5, 6), (7, 8, 9)])
    assert (coding.read(tmp_path / "labels.png") == labels).all()
    with Image.open(tmp_path / "labels.png") as image:
        assert image.mode == "P" and image.convert("RGB").getpixel((0, 0)) == tuple(color)
