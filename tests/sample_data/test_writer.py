"""The sample data: what lies on disk is complete, consistent and the same every time."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from swinv2_tasks.commands.sample_data import sample_data
from swinv2_tasks.errors import UserError
from swinv2_tasks.sample_data.shapes import MOTIONS, OUTLINES, detection_scene, motion_clip
from swinv2_tasks.sample_data.writer import annotation, generator, write_sample_data
from tests.helpers.connections import python_path
from tests.helpers.runs import read_table

SCALE = 0.12
SMALLEST = 1e-6  # one file of everything


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An eighth of the sample data; not to be changed."""
    root = tmp_path_factory.mktemp("sample") / "data"
    write_sample_data(root, scale=SCALE)
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path within."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# Writing


def test_one_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        write_sample_data(tmp_path / name, seed, scale=SMALLEST)
    first, again, other = (contents(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert first.keys() == other.keys()
    drawn = [path for path in first if path.endswith((".jpg", ".png", ".mp4"))]
    assert len(drawn) > 30
    assert not [path for path in drawn if first[path] == other[path]]


def test_a_file_does_not_depend_on_how_many_others_there_are(sample: Path, tmp_path: Path) -> None:
    write_sample_data(tmp_path / "few", scale=SMALLEST)
    few, many = contents(tmp_path / "few"), contents(sample)
    drawn = [path for path in few if path.endswith((".jpg", ".png", ".mp4"))]
    assert drawn
    assert {path: few[path] for path in drawn} == {path: many[path] for path in drawn if path in many}


def test_summary_counts_the_files(sample: Path) -> None:
    counts = write_sample_data(sample, scale=SCALE)
    for split in ("train", "val"):
        longer = {"train": "training", "val": "validation"}[split]
        assert counts["imagenet"][split] == len(list((sample / "imagenet" / split).glob("*/*.jpg")))
        assert counts["coco"][split] == len(list((sample / "coco" / f"{split}2017").glob("*.jpg")))
        assert counts["ade20k"][split] == len(list((sample / "ade20k/images" / longer).glob("*.jpg")))
        assert counts["kinetics"][split] == len(list((sample / "kinetics" / split).glob("*/*.mp4")))


def test_complete_data_stay_unchanged(tmp_path: Path) -> None:
    first = write_sample_data(tmp_path / "data", scale=SMALLEST)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert write_sample_data(tmp_path / "data", scale=SMALLEST) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == times


@pytest.mark.parametrize("what", ["another file", "another seed", "a dataset gone"])
def test_a_folder_with_anything_else_is_refused_and_kept(tmp_path: Path, what: str) -> None:
    root = tmp_path / "data"
    if what == "another file":
        root.mkdir()
        (root / "thesis.tex").write_text("do not lose")
    else:
        write_sample_data(root, seed=1 if what == "another seed" else 0, scale=SMALLEST)
        if what == "a dataset gone":
            (root / "coco").rename(tmp_path / "elsewhere")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"data is not an empty folder.*seed 0.*another folder"):
        write_sample_data(root, scale=SMALLEST)
    assert contents(tmp_path) == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    write_sample_data(root, scale=SMALLEST)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    assert (root / "sample.json").is_file()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write sample data to .*file/data"):
        write_sample_data(tmp_path / "file" / "data", scale=SMALLEST)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"scale": 0}])
def test_senseless_numbers_are_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(UserError, match="seed must be 0 or more and scale above 0"):
        write_sample_data(tmp_path / "data", **wrong)


def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from swinv2_tasks.sample_data.writer import write_sample_data; write_sample_data(sys.argv[1])"
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": python_path(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "data")], stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        deadline = time.monotonic() + 60
        while not any(folder.rglob("*.jpg")):
            assert process.poll() is None and time.monotonic() < deadline, "it ended before it wrote an image"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert "KeyboardInterrupt" in errors
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_the_command_prints_the_folders_and_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    sample_data("sample")
    printed = capsys.readouterr().out
    for line in (r"sample/imagenet", r"sample/coco", r"sample/ade20k", r"sample/kinetics", "800"):
        assert line in printed


# ImageNet


def test_imagenet_folders_are_the_named_ids(sample: Path) -> None:
    names = {row["id"]: row["name"] for row in read_table(sample / "imagenet/class_names.csv")}
    assert sorted(names.values()) == sorted(OUTLINES)
    for split in ("train", "val"):
        folders = sorted((sample / "imagenet" / split).iterdir())
        assert [folder.name for folder in folders] == sorted(names)
        assert len({len(list(folder.glob("*.jpg"))) for folder in folders}) == 1
        for folder in folders:
            for path in folder.iterdir():
                image = cv2.imread(str(path))
                assert image.ndim == 3 and min(image.shape[:2]) >= 88 and max(image.shape[:2]) <= 112


def test_outlines_lie_in_the_unit_circle() -> None:
    for name, outline in OUTLINES.items():
        reach = np.linalg.norm(np.concatenate(outline), axis=1).max()
        assert 0.85 < reach <= 1 + 1e-9, name


# COCO


@pytest.fixture(scope="session", params=["train", "val"])
def coco(sample: Path, request: pytest.FixtureRequest) -> tuple[COCO, Path]:
    """The annotations of one split and the folder of its images."""
    split = request.param
    file = sample / "coco" / "annotations" / f"instances_{split}2017.json"
    return COCO(str(file)), sample / "coco" / f"{split}2017"


def test_coco_boxes_and_areas_are_those_of_the_masks(coco: tuple[COCO, Path]) -> None:
    annotations, _ = coco
    assert annotations.anns
    for each in annotations.anns.values():
        mask = annotations.annToMask(each)
        rows, columns = np.nonzero(mask)
        x, y = columns.min(), rows.min()
        assert each["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
        assert each["area"] == mask.sum() > 20


def test_coco_has_one_crowd_of_run_lengths_and_polygons_besides(coco: tuple[COCO, Path]) -> None:
    every = coco[0].anns.values()
    crowds = [each for each in every if each["iscrowd"]]
    assert len(crowds) == 1
    image = coco[0].imgs[crowds[0]["image_id"]]
    lengths = crowds[0]["segmentation"]
    assert lengths["size"] == [image["height"], image["width"]]
    assert sum(lengths["counts"]) == image["height"] * image["width"]
    for each in every:
        if not each["iscrowd"]:
            assert all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in each["segmentation"])


def test_coco_images_and_categories(coco: tuple[COCO, Path]) -> None:
    annotations, folder = coco
    assert {"info", "licenses", "images", "annotations", "categories"} <= annotations.dataset.keys()
    assert sorted(annotations.cats) == [1, 7, 44, 90]
    assert {each["category_id"] for each in annotations.anns.values()} == {1, 7, 44, 90}
    assert {each["file_name"] for each in annotations.imgs.values()} == {path.name for path in folder.iterdir()}
    for number, image in annotations.imgs.items():
        assert cv2.imread(str(folder / image["file_name"])).shape == (image["height"], image["width"], 3)
        assert 1 <= len([each for each in annotations.imgToAnns[number] if not each["iscrowd"]]) <= 5


def test_coco_ids_are_not_shared_by_splits(sample: Path) -> None:
    train, val = (
        json.loads((sample / "coco" / "annotations" / f"instances_{split}2017.json").read_text())
        for split in ("train", "val")
    )
    for key in ("images", "annotations"):
        ids = [each["id"] for each in train[key] + val[key]]
        assert len(set(ids)) == len(ids)


def test_polygons_and_run_lengths_are_the_drawn_masks() -> None:
    holes = 0
    for seed in range(30):
        scene = detection_scene(np.random.default_rng(seed), ["ring", "star", "triangle"])
        union = np.zeros_like(scene.masks[0], int)
        for mask in scene.masks:
            height, width = mask.shape
            for crowd in (False, True):
                coded = coco_mask.frPyObjects(annotation(mask, crowd)["segmentation"], height, width)
                decoded = coco_mask.decode(coco_mask.merge(coded) if isinstance(coded, list) else coded) > 0
                np.testing.assert_array_equal(decoded, mask)
            union += mask
            holes += len(cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, 2)[0]) > 1
        assert union.max() == 1  # a pixel shows one object
    assert holes > 10


# ADE20K


@pytest.mark.parametrize("split", ["training", "validation"])
def test_ade20k_labels_fit_their_images(sample: Path, split: str) -> None:
    root = sample / "ade20k"
    classes = (root / "objectInfo.txt").read_text().splitlines()
    assert len(set(classes)) == len(classes) == 9
    images = sorted((root / "images" / split).iterdir())
    assert [path.stem for path in images] == sorted(path.stem for path in (root / "annotations" / split).iterdir())
    values = set()
    for path in images:
        labels = cv2.imread(str(root / "annotations" / split / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8
        assert labels.shape == cv2.imread(str(path)).shape[:2]
        values |= set(np.unique(labels).tolist())
    assert values == set(range(10))


def test_ade20k_unlabeled_pixels_are_the_dark_lines(sample: Path) -> None:
    for path in (sample / "ade20k/images/training").iterdir():
        labels = cv2.imread(str(sample / f"ade20k/annotations/training/{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        line = cv2.erode((labels == 0).astype(np.uint8), np.ones((3, 3))) > 0  # JPEG blurs its edges
        assert 0 < (labels == 0).mean() < 0.15
        assert not line.any() or cv2.imread(str(path))[line].mean() < 70


# Kinetics


@pytest.mark.parametrize("split", ["train", "val"])
def test_kinetics_clips_decode_to_what_was_drawn(sample: Path, split: str) -> None:
    decord = pytest.importorskip("decord")
    root = sample / "kinetics"
    rows = read_table(root / f"{split}.csv")
    assert list(rows[0]) == ["label", "youtube_id", "time_start", "time_end", "split"]
    assert {row["label"] for row in rows} == set(MOTIONS) == set((root / "label_map.txt").read_text().splitlines())
    files = set()
    for index, row in enumerate(rows):
        times = f"{int(row['time_start']):06d}_{int(row['time_end']):06d}"
        file = root / split / row["label"] / f"{row['youtube_id']}_{times}.mp4"
        files.add(file)
        video = decord.VideoReader(str(file))
        drawn = motion_clip(generator(0, "kinetics", split, index), row["label"]) * 255
        decoded = video.get_batch(range(len(video))).asnumpy()
        assert decoded.shape == drawn.shape
        assert 16 <= len(video) <= 24
        assert video.get_avg_fps() == pytest.approx(12)
        assert np.abs(decoded - drawn).mean() < 10  # of 255: mp4 is lossy
        assert row["split"] == split
    assert files == set((root / split).glob("*/*.mp4"))


def test_motions_differ_only_from_the_second_frame_on() -> None:
    for seed in range(5):
        clips = [motion_clip(np.random.default_rng(seed), motion) for motion in MOTIONS]
        for number, clip in enumerate(clips):
            np.testing.assert_array_equal(clip[0], clips[0][0])
            assert all(np.abs(clip[1] - other[1]).max() > 0.02 for other in clips[:number])


def rises(frame: np.ndarray, later: np.ndarray) -> float:
    """Above 0 where a shape, lighter than its background, moves up from one frame to the next."""
    change = (later - frame).sum(axis=-1)
    height = len(change)
    clock = np.exp(2j * np.pi * np.arange(height) / height)  # rows on a circle, as top and bottom meet
    covered, left = ((np.clip(sign * change, 0, None).sum(axis=1) * clock).sum() for sign in (1, -1))
    return float(np.angle(left * covered.conj()))


def lightens(frame: np.ndarray, later: np.ndarray) -> float:
    """Above 0 where more is covered by a shape lighter than its background, or covered more fully."""
    return float((later - frame).sum())


@pytest.mark.parametrize(
    ("forth", "back", "measure"),
    [("moves_up", "moves_down", rises), ("grows", "shrinks", lightens), ("fades_in", "fades_out", lightens)],
)
def test_motions_go_the_way_of_their_names(forth: str, back: str, measure: Callable) -> None:
    for seed in range(15):
        for motion, sign in ((forth, 1), (back, -1)):
            clip = motion_clip(np.random.default_rng(seed), motion)
            steps = [measure(frame, later) for frame, later in pairwise(clip)]
            assert sign * np.median(steps) > 0, (seed, motion)  # one step may start over
