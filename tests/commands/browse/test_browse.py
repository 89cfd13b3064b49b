"""Pages of samples, through the command line, read back: what is on them is where the files and the datamodule say."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from swinv2_tasks.callbacks.batch_pictures import SamplePicture, spread_frames
from swinv2_tasks.cli.main import main
from swinv2_tasks.commands.browse import drawing
from swinv2_tasks.commands.browse.choice import choose
from swinv2_tasks.commands.browse.stored import Labels
from swinv2_tasks.commands.check.datasets import TaskName, open_datamodule
from swinv2_tasks.datamodules.loader import BatchPlan
from swinv2_tasks.datamodules.readers.channels import ImageReader
from swinv2_tasks.datamodules.scene_classes import colors
from swinv2_tasks.drawing import distinct_colors
from swinv2_tasks.errors import UserError
from swinv2_tasks.pages import LEAST_SIDE, embed
from swinv2_tasks.seeding import derive_seed, seed_generators
from tests.helpers.browsed import BrowsedPage
from tests.helpers.faulty_data import WRITERS, photograph, save, write_ade20k, write_coco, write_imagenet, write_simmim
from tests.helpers.names import NAMES
from tests.helpers.object_layouts import write_voc, write_yolo

TASKS: list[TaskName] = ["imagenet", "coco", "ade20k", "kinetics", "simmim"]

SLOW_VIDEOS = [pytest.param(task, marks=pytest.mark.slow if task == "kinetics" else ()) for task in TASKS]
"""The tasks, of which videos take seconds."""

TOTALS = {"imagenet": (18, 12), "coco": (6, 5), "ade20k": (6, 4), "kinetics": (6, 4), "simmim": (11, 1)}
"""Training and validation samples of the datasets that are drawn here."""

SMALL: dict[TaskName, list[str]] = {
    "imagenet": [
        "--data.image_size=64",
        *(f"--data.augmentation.{name}=0" for name in ("mixup", "cutmix", "random_erasing")),
    ],
    "coco": ["--data.augmentation.min_size=[90,120]", "--data.augmentation.max_size=160"],
    "ade20k": ["--data.crop_size=64", "--data.resize=[160,96]"],
    "kinetics": ["--data.image_size=64", "--data.sampling={frames: 8, stride: 2, mode: dense}"],
    "simmim": ["--data.image_size=64", "--data.mask_patch_size=16", "--data.train_dir=null", "--data.val_dir=null"],
}
"""Settings of small training samples that are not mixed with each other."""


def browse(task: str, root: Path | str, output: Path, *options: str) -> tuple[int, BrowsedPage]:
    """The exit status, and the page."""
    status = main(["data", "browse", task, str(root), f"--output={output}", *options])
    return status, BrowsedPage(output / "browse.html")


def state_of(root: Path) -> str:
    """A digest of all names, sizes, times and contents."""
    digest = hashlib.sha256()
    for path in sorted([root, *root.rglob("*")]):
        status = path.stat()
        digest.update(repr((str(path), status.st_size, status.st_mtime_ns, status.st_mode)).encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def flatten(root: Path, color: int = 128) -> Path:
    """Makes all photographs of a dataset gray."""
    for path in root.rglob("*.jpg"):
        save(path, np.full((96, 128, 3), color, np.uint8), quality=95)
    return root


# ---- what files have


@pytest.mark.parametrize("task", TASKS)
def test_each_sample_is_shown_with_its_labels(
    task: TaskName, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = WRITERS[task](tmp_path / "data")
    before = state_of(root)
    listed = tmp_path / "samples.json"
    status, page = browse(task, root, tmp_path / "out", "--number=200", f"--json={listed}")
    assert status == 0 and state_of(root) == before
    assert (len(page.of("train")), len(page.of("val"))) == TOTALS[task]
    assert len(page.figures) == sum(TOTALS[task])
    printed = capsys.readouterr().out
    assert f"train: {TOTALS[task][0]} of {TOTALS[task][0]} samples" in printed and str(tmp_path / "out") in printed

    entries = {entry["file"]: entry for entry in json.loads(listed.read_text())["samples"]}
    for figure in page.figures:
        file = root / figure.caption
        assert file.is_file() and not figure.is_faulty
        assert entries[str(file)]["labels"] == figure.lines
        assert {text.startswith(file.name) for text, _ in figure.pictures} == {True}
        if task == "imagenet":
            assert figure.lines == [file.parent.name]
        elif task == "coco":
            assert figure.lines == ["2 objects", "1 cup, 1 pen"]
        elif task == "ade20k":
            assert figure.lines == ["25.0% not labeled"]
            assert {text for text, _ in figure.legend} == {"sky 25.0%", "road 25.0%", "tree 25.0%"}
        elif task == "kinetics":
            assert figure.lines == [file.parent.name, "70 frames"] and len(figure.pictures) == 8
        else:
            assert figure.lines == []
    assert len(page.captions("train") | page.captions("val")) == len(page.figures)


def test_an_image_is_its_file(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path / "data")
    _, page = browse("imagenet", root, tmp_path / "out", "--split=val", "--number=200")
    assert {figure.split for figure in page.figures} == {"val"}
    for figure in page.figures:
        with Image.open(root / figure.caption) as image:
            assert np.abs(figure.pixels() - np.asarray(image)).mean() < 6  # both are JPEG


def test_boxes_and_masks_are_where_they_are_annotated(tmp_path: Path) -> None:
    root = flatten(write_coco(tmp_path / "data"))
    _, page = browse("coco", root, tmp_path / "out", "--split=train", "--number=200")
    for figure in page.figures:
        k = int(Path(figure.caption).stem.split("_")[1])
        shown = figure.pixels()
        scale = shown.shape[1] / 128
        assert shown.shape[:2] == (96 * scale, 128 * scale)
        for index in range(2):
            x, y, width, height = 10 + 50 * index, 12 + k, 40, 30
            color = np.array(distinct_colors(2)[index], float)
            inside = shown[round((y + 12) * scale) : round((y + 28) * scale), round((x + 4) * scale) :][
                :, : round(32 * scale)
            ]
            assert np.abs(inside - (color + 128) / 2).mean() < 3
            for column in (x, x + width):
                edge = shown[round((y + 15) * scale), round(column * scale) - 3 : round(column * scale) + 4]
                assert np.abs(edge - color).mean(axis=1).min() < 35, (column, edge)
            row = round((y + height) * scale)
            edge = shown[row - 3 : row + 4, round((x + 20) * scale)]
            assert np.abs(edge - color).mean(axis=1).min() < 35
        below = shown[round((12 + k + 33) * scale) :]
        assert np.abs(below - 128).max() < 12


def test_label_maps_have_the_colors_of_the_legend(tmp_path: Path) -> None:
    root = flatten(write_ade20k(tmp_path / "data"))
    _, page = browse("ade20k", root, tmp_path / "out", "--split=val", "--number=200")
    palette = colors(3)
    for figure in page.figures:
        shown = {text.split()[0]: color for text, color in figure.legend}
        names = ("sky", "road", "tree")
        assert shown == {name: "#{:02x}{:02x}{:02x}".format(*color) for name, color in zip(names, palette, strict=True)}
        image, colored = figure.pixels(0), figure.pixels(1)
        assert np.abs(image - 128).max() < 4
        for number, color in enumerate([*palette, (0, 0, 0)]):
            part = colored[8:88, 32 * number + 6 : 32 * number + 26]
            assert np.abs(part - (np.array(color) + 128) / 2).max() < 10


def test_other_layouts_show_the_same_objects(tmp_path: Path) -> None:
    coco = flatten(write_coco(tmp_path / "coco"))
    pictures = {}
    for name, root in {
        "coco": coco,
        "yolo": write_yolo(coco, tmp_path / "yolo", polygons=True),
        "voc": write_voc(coco, tmp_path / "voc"),
    }.items():
        status, page = browse("coco", root, tmp_path / "out" / name, "--split=val", "--number=200")
        assert status == 0
        pictures[name] = {Path(figure.caption).name: (figure.lines, figure.pixels()) for figure in page.figures}
    for file, (lines, pixels) in pictures["coco"].items():
        assert pictures["yolo"][file][0] == pictures["voc"][file][0] == lines
        assert np.abs(pictures["yolo"][file][1] - pixels).mean() < 1
        outside = np.ones(pixels.shape[:2], bool)
        outside[: pixels.shape[0] * 3 // 4] = False  # there VOC, which has no masks, shows the image
        assert np.abs(pictures["voc"][file][1] - pixels)[outside].max() < 12


def test_several_labels_are_named(tmp_path: Path) -> None:
    for k in range(4):
        save(tmp_path / "data" / "images" / f"{k}.jpg", photograph(k))
    (tmp_path / "data" / "labels.csv").write_text(
        "file,labels\n0.jpg,cat|dog\n1.jpg,dog\n2.jpg,owl|cat|dog\n3.jpg,owl\n"
    )
    status, page = browse("imagenet", tmp_path / "data", tmp_path / "out")
    assert status == 0
    shown = {Path(figure.caption).name: figure.lines for figure in page.figures}
    assert shown == {"0.jpg": ["cat", "dog"], "1.jpg": ["dog"], "2.jpg": ["cat", "dog", "owl"], "3.jpg": ["owl"]}

    _, page = browse("imagenet", tmp_path / "data", tmp_path / "out", "--augmented", *SMALL["imagenet"])
    assert page.figures
    for figure in page.figures:
        assert figure.lines == 4 * shown[Path(figure.caption).name]


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_shards_show_the_images_that_they_were_made_of(form: str, tmp_path: Path) -> None:
    root = write_imagenet(tmp_path / "data")
    assert main(["data", "optimize", "imagenet", str(root), str(tmp_path / "shards"), "--workers=1"]) == 0
    shown = []
    for location in (str(root), form.format(tmp_path / "shards")):
        status, page = browse("imagenet", location, tmp_path / "out", "--number=200")
        assert status == 0
        shown.append({Path(figure.caption).name: (figure.lines, figure.pictures[0][1]) for figure in page.figures})
    assert shown[0] == shown[1] and len(shown[0]) == 30

    for options in ([], ["--augmented", *SMALL["imagenet"]]):
        _, page = browse(
            "imagenet", form.format(tmp_path / "shards"), tmp_path / "out", "--class=owl", "--number=200", *options
        )
        assert len(page.of("train")) == 6 and {line for figure in page.figures for line in figure.lines} == {"owl"}


def test_what_is_set_aside_is_validation_data(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path / "data")
    for path in sorted((root / "val").rglob("*.jpg")):
        path.unlink()
    for path in sorted((root / "val").iterdir()):
        path.rmdir()
    (root / "val").rmdir()
    _, page = browse("imagenet", root, tmp_path / "out", "--data.val_share=0.5", "--number=200")
    assert (len(page.of("train")), len(page.of("val"))) == (9, 9)
    assert not page.captions("train") & page.captions("val")
    _, augmented = browse(
        "imagenet", root, tmp_path / "out", "--data.val_share=0.5", "--number=200", "--augmented", *SMALL["imagenet"]
    )
    assert augmented.captions("train") == page.captions("train")


def test_a_mapping_of_classes_counts(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path / "data")
    mapping = '--data.class_mapping={"cat": "pet", "dog": "pet", "owl": null}'
    # Training of one class is refused, and browsing its files is not.
    _, page = browse("imagenet", root, tmp_path / "out", mapping, "--number=200")
    assert {tuple(figure.lines) for figure in page.figures} == {("pet",)}
    assert len(page.figures) == 20


def test_images_of_many_channels_are_shown_as_figures_are(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    rng = np.random.default_rng(3)
    for k in range(3):
        values = np.dstack([photograph(10 * k + channel)[..., 0] for channel in range(5)]).astype(np.uint16)
        np.save(root / f"{k}.npy", values * np.uint16(rng.integers(10, 60)))
    options = ["--data.channels=5", f"--data.mean={[0.1] * 5}", f"--data.std={[0.1] * 5}"]
    folders = ["--data.train_dir=null", "--data.val_dir=null"]
    status, page = browse("simmim", root, tmp_path / "out", *options, *folders)
    assert status == 0 and len(page.figures) == 3
    for figure in page.figures:
        expected = np.asarray(ImageReader(5).picture(root / figure.caption)).astype(float)
        assert np.abs(figure.pixels() - expected).mean() < 6

    _, augmented = browse("simmim", root, tmp_path / "out", *options, *SMALL["simmim"], "--augmented")
    for figure in augmented.figures:
        assert figure.pixels().std() > 30  # 16 bits of which few are used would be next to black


# ---- what the model gets


def draw_all(data: Any, seed: int, draw: int) -> dict[str, dict[str, Any]]:
    """The training samples of a draw by their files, from the datamodule that fit makes."""
    dataset = data.train_dataset
    samples = {}
    for index in range(len(dataset)):
        seed_generators(derive_seed(seed, draw, index), gpus=False)
        samples[dataset.sample_id(index)] = dataset[index]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    for sample in samples.values():
        image = sample["clip"][0].transpose(0, 1) if "clip" in sample else sample.get("image", sample.get("images"))
        sample["shown"] = ((image * std + mean).clamp(0, 1) * 255).transpose(-3, -1).transpose(-3, -2).numpy()
    return samples


@pytest.mark.parametrize("task", SLOW_VIDEOS)
def test_augmented_samples_are_those_of_training(task: TaskName, tmp_path: Path) -> None:
    root = WRITERS[task](tmp_path / "data")
    before = state_of(root)
    seed = 5
    status, page = browse(task, root, tmp_path / "out", "--augmented", f"--seed={seed}", "--number=200", *SMALL[task])
    assert status == 0 and state_of(root) == before
    assert [figure.split for figure in page.figures] == ["train"] * TOTALS[task][0]
    number = {"ade20k": 2, "simmim": 2, "kinetics": 8}.get(task, 1)
    changes = []
    data = open_datamodule(task, str(root), SMALL[task], takes_config=True)
    data.setup("fit")
    for draw in range(4):
        samples = draw_all(data, seed, draw)
        for figure in page.figures:
            assert len(figure.pictures) == 4 * number
            sample = samples[str(root / figure.caption)]
            for frame in range(number if task == "kinetics" else 1):
                expected = sample["shown"]
                expected = expected[spread_frames(len(expected))[frame]] if task == "kinetics" else expected
                shown = figure.pixels(number * draw + frame)
                image = Image.fromarray(expected.round().astype(np.uint8)).resize(shown.shape[1::-1])
                assert np.median(np.abs(shown - np.asarray(image))) < 6
            if task == "simmim":
                mask = sample["mask"].repeat_interleave(16, 0).repeat_interleave(16, 1).numpy()
                is_changed = np.abs(figure.pixels(2 * draw + 1) - figure.pixels(2 * draw)).max(axis=2) > 40
                assert not is_changed[~mask].any() or is_changed[~mask].mean() < 0.01
                assert figure.lines[draw] == f"{mask.mean():.0%} masked"
            changes.append(figure.pictures[number * draw][1] != figure.pictures[0][1])
    assert np.mean(changes) > 0.5  # of the three other draws most


def test_mixed_images_have_the_shares_of_their_classes(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path / "data")
    _, page = browse("imagenet", root, tmp_path / "out", "--augmented", "--data.image_size=32")
    shares = []
    for line in [line for figure in page.figures for line in figure.lines]:
        name, _, share = line.partition(" ")
        assert name in ("cat", "dog", "owl")
        shares.append(int(share.rstrip("%") or 100))
    assert sum(share < 100 for share in shares) > 10
    assert {len(figure.pictures) for figure in page.figures} == {4}


def test_a_seed_decides_and_workers_do_not(tmp_path: Path) -> None:
    root = write_simmim(tmp_path / "data")
    texts = {}
    for name, options in {
        "none": ["--data.num_workers=0"],
        "two": ["--data.num_workers=2"],
        "other": ["--data.num_workers=0", "--seed=1"],
    }.items():
        _, page = browse("simmim", root, tmp_path / name, "--augmented", "--number=4", *SMALL["simmim"], *options)
        texts[name] = [(figure.caption, figure.pictures) for figure in page.figures]
    assert texts["none"] == texts["two"] != texts["other"]


def test_a_config_is_that_of_fit(tmp_path: Path) -> None:
    """An augmentation that flips all and does nothing else, over images white at the left."""
    root = write_imagenet(tmp_path / "data")
    for path in root.rglob("*.jpg"):
        save(path, np.repeat(np.repeat(np.uint8([255, 0]), 32)[None, :, None], 64, 0).repeat(3, 2))
    config = tmp_path / "own.yaml"
    steps = "{name: albumentations.HorizontalFlip, p: 1.0}, {name: albumentations.Resize, height: 64, width: 64}"
    config.write_text(f"data: {{init_args: {{image_size: 64, augmentation: [{steps}]}}}}")
    options = ["--config=imagenet.yaml", f"--config={config}"]
    _, page = browse("imagenet", root, tmp_path / "out", "--augmented", *options)
    for figure in page.figures:
        for draw in range(4):
            pixels = figure.pixels(draw)
            assert pixels[:, 2:28].max() < 20 and pixels[:, 36:62].min() > 235


# ---- which samples


@pytest.mark.parametrize(
    ("task", "name", "options"),
    [
        ("imagenet", "dog", []),
        ("imagenet", "dog", ["--augmented", *SMALL["imagenet"]]),
        ("coco", "pen", []),
        ("coco", "9", []),
        ("ade20k", "road", []),
        ("ade20k", "road", ["--augmented", *SMALL["ade20k"]]),
        ("kinetics", "run", []),
    ],
)
def test_samples_of_a_class(task: TaskName, name: str, options: list[str], tmp_path: Path) -> None:
    root = WRITERS[task](tmp_path / "data")
    if task == "coco":  # of which some have no pen
        for split in ("train", "val"):
            path = root / "annotations" / f"instances_{split}2017.json"
            content = json.loads(path.read_text())
            content["annotations"] = [
                entry for entry in content["annotations"] if entry["category_id"] == 3 or entry["image_id"] % 2
            ]
            path.write_text(json.dumps(content))
    if task == "ade20k":
        for path in (root / "annotations").rglob("*[135].png"):
            save(path, np.ones((96, 128), np.uint8))
    status, page = browse(task, root, tmp_path / "out", f"--class={name}", "--number=200", *options)
    assert status == 0 and page.figures
    stems = [Path(figure.caption).stem for figure in page.figures]
    if task == "coco":
        assert sorted(stems) == [*(f"train_{k}" for k in (1, 3, 5)), *(f"val_{k}" for k in (1, 3, 5))]
    elif task == "ade20k":
        expected = [f"training_{k}" for k in (0, 2, 4)]
        assert sorted(stems) == expected + ([] if options else ["validation_0", "validation_2"])
    else:
        splits = ("train",) if options else ("train", "val")
        expected_files = {path.name for split in splits for path in (root / split / name).iterdir()}
        assert {Path(figure.caption).name for figure in page.figures} == expected_files


@pytest.mark.parametrize("seed", range(3))
def test_each_class_is_shown_about_as_often(seed: int) -> None:
    labels = [(0,)] * 500 + [(1,)] * 30 + [(2,)] * 5 + [(0, 3)] * 4
    chosen, unread = choose(Labels(lambda index: labels[index]), len(labels), 24, seed, None)
    assert unread == 0 and len({*chosen}) == 24
    counts = [sum(label in labels[index] for index in chosen) for label in range(4)]
    assert counts[3] == 4 and counts[2] == 5  # all that there are
    assert counts[1] >= 6 and counts[0] <= 8 + 4  # of which four are of class 3 as well
    others, _ = choose(Labels(lambda index: labels[index]), len(labels), 24, seed + 10, None)
    assert others != chosen
    everything, _ = choose(Labels(lambda index: labels[index]), len(labels), 10_000, seed, None)
    assert sorted(everything) == [*range(len(labels))]


def test_no_more_are_read_than_a_search_needs() -> None:
    read: list[int] = []

    def of(index: int) -> set[int]:
        read.append(index)
        if index % 5 == 0:
            raise ValueError("corrupt")
        return {index % 2}

    chosen, unread = choose(Labels(of, are_known=False), 1000, 6, 0, 1)
    assert len(chosen) == 6 and all(index % 2 for index in chosen)
    assert unread == sum(index % 5 == 0 for index in read) and len(read) < 60
    read.clear()
    assert len(choose(Labels(of, are_known=False), 1000, 6, 0, None)[0]) == 6
    assert read == []


# ---- what cannot be read


@pytest.mark.parametrize("task", SLOW_VIDEOS)
def test_what_cannot_be_read_is_shown_so(task: TaskName, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = WRITERS[task](tmp_path / "data")
    files = {
        "imagenet": "train/dog/dog_train_2.jpg",
        "coco": "train2017/train_3.jpg",
        "ade20k": "annotations/training/training_1.png",
        "kinetics": "train/run/run_train_1.mp4",
        "simmim": "sub1/image_5.jpg",
    }
    sample = "images/training/training_1.jpg" if task == "ade20k" else files[task]
    (root / files[task]).write_bytes(b"neither image nor video")
    listed = tmp_path / "samples.json"
    status, page = browse(task, root, tmp_path / "out", "--number=200", f"--json={listed}")
    assert status == 1
    assert len(page.figures) == sum(TOTALS[task])
    (faulty,) = [figure for figure in page.figures if figure.is_faulty]
    assert faulty.caption == sample and faulty.pictures == []
    assert faulty.paragraphs[0].startswith("cannot be read:") and Path(files[task]).name in faulty.paragraphs[0]
    (entry,) = [entry for entry in json.loads(listed.read_text())["samples"] if entry["reason"]]
    assert entry["file"] == str(root / sample)
    captured = capsys.readouterr()
    assert str(root / sample) in captured.out and f"1 of {sum(TOTALS[task])} samples cannot be read" in captured.err

    status, page = browse(task, root, tmp_path / "out", "--augmented", "--number=200", *SMALL[task])
    assert status == 1
    (faulty,) = [figure for figure in page.figures if figure.is_faulty]
    assert faulty.caption == sample
    assert {len(figure.pictures) > 0 for figure in page.figures if figure is not faulty} == {True}


class Crashing(Dataset):
    """A dataset of which a sample crashes its decoder."""

    def __len__(self) -> int:
        return 3

    def sample_id(self, index: int) -> str:
        return f"image_{index}.jpg"

    def __getitem__(self, index: int) -> SamplePicture:
        if index == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        return SamplePicture([Image.new("RGB", (8, 8))], [])


def test_a_crash_of_a_decoder_names_its_file() -> None:
    section = drawing.Section("train", 3, [drawing.Sample(f"image_{k}.jpg") for k in range(3)], [])
    plans = [BatchPlan([k], [0], 0) for k in range(3)]
    room = drawing.room_of("imagenet", 3)
    with pytest.raises(UserError, match=r"died while it read image_1\.jpg"):
        drawing.draw_section(section, range(3), Crashing(), plans, list, room, num_workers=1)


# ---- the page


def test_the_page_loads_nothing_and_shows_names_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = ["<script>alert(1)<", '"><img src=x onerror=alert(1)>', "{{ 7*7 }}", *NAMES]
    names = [name for name in hostile if "/" not in name and not any("\ud800" <= c <= "\udfff" for c in name)]
    root = tmp_path / "<b>data\x1b[31m"
    for split in ("train", "val"):
        for name in names:
            save(root / split / name / f"{name}.jpg", np.full((20, 20, 3), 99, np.uint8), format="JPEG")
    save(root / "val" / names[0] / os.fsdecode(b"caf\xe9.jpg"), np.full((20, 20, 3), 99, np.uint8), format="JPEG")
    (root / "train" / names[0] / f"{names[1]}.jpg").write_bytes(b"<script>alert(2)</script>")
    status, page = browse("imagenet", root, tmp_path / "out", "--number=200")
    assert status == 1 and len(page.figures) == 2 * len(names) + 2
    captured = capsys.readouterr()
    assert all(line.isprintable() for line in [*captured.out.split("\n"), *captured.err.split("\n")])

    assert all(character.isprintable() or character == "\n" for character in page.text)
    assert {"script", "link", "iframe", "object", "base", "style"} & {tag for tag, _ in page.tags} == {"style"}
    for tag, named in page.tags:
        assert not [name for name in named if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            if name in named:
                assert named[name].startswith("data:image/jpeg;base64," if tag == "img" else "#")
    assert "http://" not in page.text and "https://" not in page.text
    assert "url(" not in page.text and "@import" not in page.text
    policies = [named["content"] for _, named in page.tags if "http-equiv" in named]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert "{{ 7*7 }}" in page.text and "color-scheme: light dark" in page.text


def test_the_page_can_be_read_without_seeing_it(tmp_path: Path) -> None:
    _, page = browse("ade20k", write_ade20k(tmp_path / "data"), tmp_path / "out")
    texts = [text for figure in page.figures for text, _ in figure.pictures]
    assert all(texts) and len({*texts}) == len(texts)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("h1") == 1 and tags.count("main") == 1 and tags.count("figcaption") == len(page.figures)
    assert dict(page.tags)["html"]["lang"] == "en"
    identifiers = {named["id"] for _, named in page.tags if "id" in named}
    targets = {named["href"].removeprefix("#") for tag, named in page.tags if tag == "a"}
    labels = {named["aria-label"] for tag, named in page.tags if tag == "section"}
    assert targets == labels == identifiers == {"train", "val"}


@pytest.mark.parametrize("most_bytes", [20_000, 3_000, 10])
def test_a_picture_fits_its_room(most_bytes: int) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    url, is_reduced = embed(noise, most_bytes)
    length = len(url.partition(",")[2]) * 3 // 4
    assert is_reduced and (length <= most_bytes or most_bytes < 3_000)
    flat = Image.new("RGB", (400, 300))
    assert embed(flat, 20_000)[1] is False
    assert LEAST_SIDE == 64


def test_a_page_stays_small_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_imagenet(tmp_path / "data")
    _, page = browse("imagenet", root, tmp_path / "out", "--data.num_workers=0")
    assert "smaller than usual" not in capsys.readouterr().out
    full = len(page.text)
    monkeypatch.setattr(drawing, "MOST_BYTES", 100_000)
    _, page = browse("imagenet", root, tmp_path / "out", "--data.num_workers=0")
    assert "30 of 30 drawings are smaller than usual" in capsys.readouterr().out
    assert len(page.figures) == 30 and len(page.text) < 130_000 < full


# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imagnet", "data"], "did you mean imagenet?"),
        (["simmim", "nowhere"], "nowhere does not exist"),
        (["simmim", "data", "--output=data/out"], "inside the dataset"),
        (["simmim", "data", "--number=0"], "expected 1 to 200"),
        (["simmim", "data", "--number=201"], "expected 1 to 200"),
        (["simmim", "data", "--seed=-1"], "--seed -1"),
        (["simmim", "data", "--class=cat"], "there are no classes"),
        (["simmim", "data", "--split=test"], "there is train, val"),
        (["simmim", "data", "--split=training"], "is not one of train"),
        (["simmim", "data", "--augmented", "--split=val"], "only training samples are augmented"),
        (["simmim", "data", "--config=coco.yaml"], "the config is of CocoDataModule"),
        (["simmim", "data", "--clss=cat"], "did you mean --class?"),
    ],
)
def test_refused_arguments_end_with_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_simmim(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "browse", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.name == "browse.html"]


def test_a_class_that_there_is_not_is_refused_with_those_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_imagenet(tmp_path / "data")
    assert main(["data", "browse", "imagenet", str(root), "--class", "dogs", f"--output={tmp_path / 'out'}"]) == 2
    assert "there is no class dogs among 3; as dog." in capsys.readouterr().err


def test_a_page_goes_to_a_folder_of_the_datasets_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_simmim(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    for arguments in (["mine"], ["mine", "--augmented"], ["--augmented", "mine"], ["--augmented=true", "mine"]):
        assert main(["data", "browse", "simmim", *arguments, "--number=2"]) == 0
        page = BrowsedPage(tmp_path / "browse" / "mine" / "browse.html")
        assert len(page.of("train")[0].pictures) == (8 if len(arguments) == 2 else 1)
    assert os.listdir(tmp_path / "browse") == ["mine"]
