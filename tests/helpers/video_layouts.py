"""Eight videos of two classes in turn in the layouts of several datasets: six to train on, two for validation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from swinv2_tasks.datamodules.readers.videos import Video

CLASSES = ("Falling", "RisingUp")


def place(video: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(video, target)


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_ucf101(videos: list[Path], root: Path) -> Path:
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for number, video in enumerate(videos):
        label = number % 2
        name = f"{CLASSES[label]}/v_{CLASSES[label]}_g{number:02d}_c01.mp4"
        place(video, root / "UCF-101" / name)
        lists["train" if number < 6 else "test"].append(f"{name} {label + 1}" if number < 6 else name)
    for split, lines in lists.items():
        write_lines(root / "ucfTrainTestlist" / f"{split}list01.txt", lines)
        write_lines(root / "ucfTrainTestlist" / f"{split}list02.txt", lines[:2])
    write_lines(root / "ucfTrainTestlist" / "classInd.txt", [f"{k + 1} {name}" for k, name in enumerate(CLASSES)])
    return root


def write_hmdb51(videos: list[Path], root: Path) -> Path:
    lists: dict[str, list[str]] = {name: [] for name in CLASSES}
    for number, video in enumerate(videos):
        label = CLASSES[number % 2]
        place(video, root / label / f"clip {number}.mp4")
        lists[label].append(f"clip {number}.mp4 {1 if number < 6 else 2} ")
    for label, lines in lists.items():
        write_lines(root / "testTrainMulti_7030_splits" / f"{label}_test_split1.txt", [*lines, "unused.mp4 0"])
    return root


def write_something(videos: list[Path], root: Path) -> Path:
    """Labels are templates, in which brackets mark what an object stands for."""
    templates = ["Moving [something] down", "Moving [something] up"]
    entries: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for number, video in enumerate(videos):
        place(video, root / "20bn-something-something-v2" / f"{number}.mp4")
        entry = {"id": str(number), "label": "moving a square", "template": templates[number % 2]}
        entries["train" if number < 6 else "validation"].append(entry)
    (root / "labels").mkdir()
    for split, content in entries.items():
        (root / "labels" / f"{split}.json").write_text(json.dumps(content))
    numbered = {"Moving something up": "1", "Moving something down": "0"}
    (root / "labels" / "labels.json").write_text(json.dumps(numbered))
    return root


def write_frames(videos: list[Path], root: Path) -> Path:
    """Frames as PNG, whose numbers are not filled up with zeros."""
    for number, path in enumerate(videos):
        split = "train" if number < 6 else "val"
        folder = root / split / CLASSES[number % 2] / f"clip{number}"
        folder.mkdir(parents=True)
        with Video(path) as video:
            for index, frame in enumerate(video.frames(range(len(video)))):
                Image.fromarray(frame).save(folder / f"{index}.png")
    return root
