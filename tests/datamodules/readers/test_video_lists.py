"""Lists of videos with several labels: how their lines are read, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swinv2_tasks.datamodules import KineticsDataModule
from swinv2_tasks.datamodules.readers.label_cells import Labels
from swinv2_tasks.datamodules.readers.video_lists import VideoLists, list_line
from swinv2_tasks.errors import UserError

LABELS_OF = {"a.mp4": ["3", "17"], "my films/b 1.avi": ["5"], "c.webm": ["17", "5"]}


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read(path: Path, labels: Labels | None = None) -> dict[str, list[int]]:
    """The class ids of each video, as numbers."""
    lists = VideoLists([path], labels)
    assert lists.multi_label
    from swinv2_tasks.datamodules.readers.video_lists import read_label_map

    names = lists.labels(path)
    classes = read_label_map(names)
    return {
        Path(name).relative_to(path.parent).as_posix(): [int(names[index]) for index in label]
        for name, label in lists.videos(path, [path.parent], classes)
        if isinstance(label, list)
    }


@pytest.mark.parametrize("mark", ["\t", ",", " ", " , "])
@pytest.mark.parametrize("between", [",", " ", "|", ";", ", "])
def test_numbers_are_labels_by_any_mark(tmp_path: Path, mark: str, between: str) -> None:
    lines = [f"{name}{mark}{between.join(labels)}" for name, labels in LABELS_OF.items()]
    expected = {name: sorted(map(int, labels)) for name, labels in LABELS_OF.items()}
    assert read(write(tmp_path / "train.txt", *lines)) == expected


def test_quoted_cells_and_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", "path,labels", 'a.mp4,"3,17"', '"b,1.mp4",5')
    assert read(path) == {"a.mp4": [3, 17], "b,1.mp4": [5]}


def test_names_of_several_words_are_one_label_each(tmp_path: Path) -> None:
    lists = VideoLists([write(tmp_path / "train.txt", "a.mp4 goes down", "b.mp4 goes up", "c.mp4 goes")])
    assert not lists.multi_label
    assert lists.labels(tmp_path / "train.txt") == ["goes", "goes down", "goes up"]


def test_words_that_all_stand_alone_too_are_ambiguous(tmp_path: Path) -> None:
    path = write(tmp_path / "train.txt", "a.mp4 cat", "b.mp4 dog", "c.mp4 cat dog")
    with pytest.raises(UserError, match=r"'cat dog' is the name of one class, or spaces stand between .*data\.labels"):
        VideoLists([path])
    assert VideoLists([path], "one").labels(path) == ["cat", "cat dog", "dog"]
    assert VideoLists([path], "several").labels(path) == ["cat", "dog"]


def test_lines_of_a_video_are_taken_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "train.txt", "a.mp4 3", "b.mp4 5", "a.mp4 17", "c.mp4")
    assert read(path, "several") == {"a.mp4": [3, 17], "b.mp4": [5], "c.mp4": []}
    output = capsys.readouterr().out
    assert "1 lines repeat a video" in output and "1 of 3 videos have no label" in output
    with pytest.raises(UserError, match=r"line 4: 'c.mp4' has no label.*data\.labels several"):
        VideoLists([path])
    write(path, "a.mp4 3", "a.mp4 17")
    assert not VideoLists([path]).multi_label
    assert "with different labels in several lines: a.mp4. --data.labels several" in capsys.readouterr().out


def test_lists_of_all_splits_tell_the_marks_together(tmp_path: Path) -> None:
    """The validation's alone would not show that a comma is no part of a name."""
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).touch()
    write(tmp_path / "train.txt", "a.mp4 cat,dog", "b.mp4 dog", "c.mp4 cat")
    write(tmp_path / "val.txt", "b.mp4 cat,dog")
    data = KineticsDataModule(str(tmp_path))
    assert data.multi_label is True and data.class_names == ["cat", "dog"]
    assert data.videos("val") == [(str(tmp_path / "b.mp4"), [0, 1])]


def test_a_setting_makes_rows_of_class_folders_too(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            write(tmp_path / split / name / "a.mp4")
    data = KineticsDataModule(str(tmp_path), labels="several")
    assert [label for _, label in data.videos("train")] == [[0], [1]]
    assert KineticsDataModule(str(tmp_path)).multi_label is False


def test_merged_classes_hold_where_any_of_theirs_does(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", "a.mp4 cat|dog|car", "b.mp4 car", "c.mp4 dog")
    mapping: Any = {"cat": "animal", "dog": "animal", "car": None}
    data = KineticsDataModule(str(tmp_path), class_mapping=mapping)
    assert [label for _, label in data.videos("train")] == [[0], [], [0]]


@pytest.mark.parametrize(
    ("path", "labels", "line"),
    [
        ("a 1.mp4", ["cat", "polar bear"], "a 1.mp4\tcat|polar bear"),
        ("a.mp4", [], "a.mp4"),
        ("a.mp4", ["cat|dog"], None),
        ("a\n.mp4", ["cat"], None),
        ("frames/1", ["cat", "dog"], "frames/1\tcat|dog"),
    ],
)
def test_lines_that_are_written_are_read_back(tmp_path: Path, path: str, labels: list[str], line: str | None) -> None:
    assert list_line(path, labels, multi_label=True) == line
    if line is not None and labels:
        file = write(tmp_path / "list.txt", line)
        assert VideoLists([file], "several").labels(file) == sorted(labels)
    assert list_line("a.mp4", []) is None
