"""Videos in the layouts of several datasets: the videos of each split, their labels, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from swinv2_tasks.datamodules import KineticsDataModule
from swinv2_tasks.datamodules.readers.kinetics import VideoFiles
from swinv2_tasks.datamodules.readers.videos import Video, find_corruption, list_videos
from swinv2_tasks.errors import UserError
from tests.helpers import motions
from tests.helpers.video_layouts import (
    CLASSES,
    write_frames,
    write_hmdb51,
    write_lines,
    write_something,
    write_ucf101,
)

DATA = {key: value for key, value in motions.DATA.items() if key != "files"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight videos, of the one class and the other in turn."""
    root = motions.write_motions(tmp_path_factory.mktemp("motions"), train=3, val=1)
    return [*sorted((root / "train").iterdir()), *sorted((root / "val").iterdir())]


LAYOUTS = {"ucf101": write_ucf101, "hmdb51": write_hmdb51, "something": write_something, "frames": write_frames}


def read(root: Path, **arguments: Any) -> KineticsDataModule:
    data = KineticsDataModule(str(root), **{**DATA, **arguments})
    data.setup("fit")
    return data


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_has_the_same_videos(videos: list[Path], tmp_path: Path, layout: str, capsys: Any) -> None:
    data = read(LAYOUTS[layout](videos, tmp_path / layout))
    assert f"data.root is read as {layout}: " in capsys.readouterr().out
    first, second = ("Moving something down", "Moving something up") if layout == "something" else CLASSES
    assert data.class_names == [first, second]
    assert data.train_samples == 6

    expected = KineticsDataModule(str(videos[0].parents[1]), **motions.DATA)
    expected.setup("fit")
    ours, theirs = (list(loaded.val_dataset) for loaded in (data, expected))  # type: ignore[call-overload]
    assert [sample["label"] for sample in ours] == [sample["label"] for sample in theirs] == [0, 1]
    for sample, other in zip(ours, theirs, strict=True):
        assert torch.equal(sample["clip"], other["clip"])


def test_official_splits_are_chosen(videos: list[Path], tmp_path: Path) -> None:
    root = write_ucf101(videos, tmp_path)
    assert read(root, files=VideoFiles(split=2)).train_samples == 2
    with pytest.raises(UserError, match="trainlist03"):
        read(root, files=VideoFiles(split=3))
    with pytest.raises(UserError, match="expected 1, 2 or 3"):
        read(root, files=VideoFiles(split=4))


def test_lines_that_name_no_video_are_refused_by_number(videos: list[Path], tmp_path: Path) -> None:
    ucf = write_ucf101(videos, tmp_path / "ucf")
    write_lines(ucf / "ucfTrainTestlist" / "trainlist01.txt", ["Falling/v_Falling_g00_c01.mp4 1", "video.mp4 1"])
    with pytest.raises(UserError, match=r"trainlist01\.txt, line 2: expected CLASS/VIDEO"):
        read(ucf)
    write_lines(ucf / "ucfTrainTestlist" / "trainlist01.txt", ["Falling/../../../x.mp4 1"])
    with pytest.raises(UserError, match="outside of the dataset"):
        read(ucf)

    hmdb = write_hmdb51(videos, tmp_path / "hmdb")
    write_lines(hmdb / "testTrainMulti_7030_splits" / "Falling_test_split1.txt", ["clip 0.mp4 1", "clip 1.mp4 3"])
    with pytest.raises(UserError, match=r"line 2: expected a video and 0, 1 or 2"):
        read(hmdb)

    something = write_something(videos, tmp_path / "something")
    (something / "labels" / "train.json").write_text('[{"id": "1"}]')
    with pytest.raises(UserError, match="entry 0 lacks its id or its template"):
        read(something)
    (something / "labels" / "train.json").write_text('[{"id": "1", "template": "Doing [something] else"}]')
    with pytest.raises(UserError, match="no class: Doing something else"):
        read(something)


def test_folders_of_frames_without_splits(videos: list[Path], tmp_path: Path, capsys: Any) -> None:
    root = write_frames(videos, tmp_path)
    for label in CLASSES:
        (root / label).mkdir()
        for split in ("train", "val"):
            for folder in (root / split / label).iterdir():
                folder.rename(root / label / folder.name)
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "val")
    data = read(root)
    assert "2 of 8 training videos are set aside for validation" in capsys.readouterr().out
    assert data.class_names == list(CLASSES) and data.train_samples == 6
    assert sorted(sample["label"] for sample in data.val_dataset) == [0, 1]  # type: ignore[union-attr]


def test_a_folder_of_frames_is_read_like_a_file(videos: list[Path], tmp_path: Path) -> None:
    folder = write_frames(videos, tmp_path) / "train" / CLASSES[0] / "clip0"
    with Video(videos[0]) as video, Video(folder) as frames:
        assert len(frames) == len(video) > 10  # so that 10.png follows on 9.png
        numbers = [3, 0, 10, 3]
        assert np.array_equal(frames.frames(numbers), video.frames(numbers))
        with pytest.raises(IndexError):
            frames.frames([len(video)])
    assert find_corruption(folder) is None
    assert list_videos(tmp_path / "val") == sorted((tmp_path / "val").glob("*/*"))

    (folder / "5.png").write_bytes(b"no image")
    assert "5.png" in str(find_corruption(folder))
    Image.new("RGB", (8, 8)).save(folder / "5.png")
    assert "frame 5 (5.png) is of another size" in str(find_corruption(folder))
    with Video(folder) as frames, pytest.raises(UserError, match=r"another size"):
        frames.frames([4, 5])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="folder without images"):
        Video(empty)


def test_frames_beside_lists_are_no_class_folders_of_videos(videos: list[Path], tmp_path: Path) -> None:
    """Folders of frames are one layout, not two; with a list there are two."""
    root = write_frames(videos, tmp_path)
    read(root)
    write_lines(root / "train.txt", ["train/Falling/clip0 Falling"])
    with pytest.raises(UserError, match=r"as kinetics .* or as frames"):
        read(root)
