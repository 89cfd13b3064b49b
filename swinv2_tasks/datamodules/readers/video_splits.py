"""Datasets of videos with lists of official splits: UCF101, HMDB51, Something-Something.

UCF101: https://www.crcv.ucf.edu/data/UCF101.php. HMDB51: https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-
motion-database/. Something-Something: https://developer.qualcomm.com/software/ai-datasets/something-something.
UCF101 and HMDB51 have three splits in two, of which the second part is taken for validation.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from swinv2_tasks.datamodules.classes import Classes, abbreviate, read_lines
from swinv2_tasks.datamodules.layouts import Split, Tree, join
from swinv2_tasks.datamodules.readers.annotations import read_json
from swinv2_tasks.datamodules.readers.labeled_videos import VideoSample
from swinv2_tasks.datamodules.readers.videos import has_video_extension
from swinv2_tasks.errors import UserError
from swinv2_tasks.files import is_inside
from swinv2_tasks.text import printable


@dataclass(frozen=True)
class ListedVideos:
    """Paths and labels of the videos of each split, from lists of a dataset.

    Attributes:
        root: The dataset's folder.
        entries: Path, relative to root, and label of each video of each split.
        labels: The classes, in their order.
        lists: What names the videos of each split, for messages.
    """

    root: Path
    entries: dict[Split, list[tuple[str, str]]]
    labels: list[str]
    lists: dict[Split, str]
    has_splits: bool = True
    validation_settings: str | None = None
    multi_label: bool = False

    def classes(self) -> Classes:
        """The labels."""
        return Classes(self.labels, self.labels)

    def has(self, split: Split) -> bool:
        """Whether there is a list of a split."""
        return split in self.entries

    def place(self, split: Split) -> str:
        """The list of a split."""
        return str(self.root / self.lists.get(split, split))

    def videos(self, split: Split, classes: Classes) -> list[VideoSample]:
        """Paths and class indices of the videos of a split, missing ones included."""
        if not self.has(split):
            raise UserError(f"There is no list of the videos of the {split} split in {printable(self.root)}.")
        entries = self.entries[split]
        index_of = classes.index_of({label for _, label in entries}, self.place(split))
        if unknown := sorted({label for _, label in entries} - index_of.keys()):
            raise UserError(
                f"{printable(self.place(split))} has labels that are no class: {abbreviate(unknown)}. Classes: "
                f"{abbreviate(classes.ids)}."
            )
        leaving = [name for name, _ in entries if not is_inside(self.root / name, self.root)]
        if leaving:
            raise UserError(
                f"{printable(self.place(split))} names videos outside of the dataset's folder: "
                f"{abbreviate(leaving, 3)}."
            )
        return [(str(self.root / name), index_of[label]) for name, label in entries]

    def verdict_folders(self, split: Split) -> list[Path]:
        """The dataset's folder, and that of the split's list."""
        return [self.root, Path(self.place(split)).parent]


def _check_number(number: int) -> None:
    if number not in (1, 2, 3):
        raise UserError(f"data.files.split is {number}; expected 1, 2 or 3: the official splits of UCF101 and HMDB51.")


# ---- UCF101


def _ucf_folder(tree: Tree) -> str | None:
    return next((name for name in ("ucfTrainTestlist", "") if tree.has_file(join(name, "trainlist01.txt"))), None)


def find_ucf101(tree: Tree) -> str | None:
    """The list of the first split."""
    folder = _ucf_folder(tree)
    return None if folder is None else join(folder, "trainlist01.txt")


def open_ucf101(tree: Tree, number: int) -> ListedVideos:
    """The videos of one of the three splits.

    Raises:
        UserError: A list is missing, or a line is not of its form.
    """
    _check_number(number)
    folder = _ucf_folder(tree) or ""
    videos = "UCF-101" if tree.has_folder("UCF-101") else ""
    lists: dict[Split, str] = {
        "train": join(folder, f"trainlist{number:02d}.txt"),
        "val": join(folder, f"testlist{number:02d}.txt"),
    }
    entries: dict[Split, list[tuple[str, str]]] = {}
    for split, name in lists.items():
        entries[split] = []
        for line_number, line in enumerate(
            read_lines(tree.root / name, "list of videos", "CLASS/VIDEO lines"), start=1
        ):
            if not line.strip():
                continue
            path = re.sub(r"\s+\d+$", "", line.strip())  # the class's number, which the folder's name says as well
            label, slash, video = path.partition("/")
            if not slash or not video:
                raise UserError(
                    f"{printable(tree.root / name)}, line {line_number}: expected CLASS/VIDEO, found "
                    f"{printable(line.strip()[:60])!r}."
                )
            entries[split].append((join(videos, path), label))

    labels = sorted({label for of_split in entries.values() for _, label in of_split})
    if tree.has_file(join(folder, "classInd.txt")):
        lines = read_lines(tree.root / folder / "classInd.txt", "class list", "NUMBER CLASS lines")
        labels = [line.split(maxsplit=1)[-1].strip() for line in lines if line.strip()]
    return ListedVideos(tree.root, entries, labels, lists)


# ---- HMDB51


HMDB_FOLDERS = ("testTrainMulti_7030_splits", "test_train_splits/testTrainMulti_7030_splits", "splits", "")
_HMDB_LIST = re.compile(r"(.+)_test_split([123])\.txt")


def _hmdb_folder(tree: Tree) -> str | None:
    return next((name for name in HMDB_FOLDERS if any(map(_HMDB_LIST.fullmatch, tree.files(name)))), None)


def find_hmdb51(tree: Tree) -> str | None:
    """The lists of the classes."""
    folder = _hmdb_folder(tree)
    return None if folder is None else join(folder, "CLASS_test_split1.txt")


def open_hmdb51(tree: Tree, number: int) -> ListedVideos:
    """The videos of one of the three splits.

    Raises:
        UserError: There are no lists of it, or a line is not of its form.
    """
    _check_number(number)
    folder = _hmdb_folder(tree) or ""
    matches = [match for match in map(_HMDB_LIST.fullmatch, tree.files(folder)) if match and int(match[2]) == number]
    labels = sorted(match[1] for match in matches)
    if not labels:
        raise UserError(
            f"{printable(tree.root / folder)} has no lists of split {number}, as CLASS_test_split{number}.txt."
        )
    videos = next((name for name in ("videos", "hmdb51", "hmdb51_org") if tree.has_folder(name)), "")

    entries: dict[Split, list[tuple[str, str]]] = {"train": [], "val": []}
    for label in labels:
        file = tree.root / folder / f"{label}_test_split{number}.txt"
        for line_number, line in enumerate(read_lines(file, "list of videos", "VIDEO 0, 1 or 2"), start=1):
            fields = line.rsplit(maxsplit=1)
            if not fields:
                continue
            if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
                raise UserError(
                    f"{printable(file)}, line {line_number}: expected a video and 0, 1 or 2, found "
                    f"{printable(line.strip()[:60])!r}."
                )
            entry = (join(join(videos, label), fields[0]), label)
            if fields[1] != "0":
                entries["train" if fields[1] == "1" else "val"].append(entry)
    name = join(folder, f"*_test_split{number}.txt")
    return ListedVideos(tree.root, entries, labels, {"train": name, "val": name})


# ---- Something-Something


_SOMETHING: dict[Split, tuple[str, ...]] = {
    "train": ("train.json", "something-something-v2-train.json"),
    "val": ("validation.json", "something-something-v2-validation.json"),
}
_LABELS = ("labels.json", "something-something-v2-labels.json")
_VIDEOS = ("20bn-something-something-v2", "videos", "")


def _something_lists(tree: Tree) -> dict[Split, str]:
    lists = {}
    for split, names in _SOMETHING.items():
        candidates = [join(folder, name) for folder in ("labels", "") for name in names]
        if (name := next(filter(tree.has_file, candidates), None)) is not None:
            lists[split] = name
    return lists


def _something_classes(tree: Tree) -> str | None:
    """The file that numbers the classes."""
    return next(filter(tree.has_file, (join(folder, name) for folder in ("labels", "") for name in _LABELS)), None)


def find_something(tree: Tree) -> str | None:
    """The lists of templates, beside which the classes are listed."""
    if _something_classes(tree) is None:
        return None
    return ", ".join(_something_lists(tree).values()) or None


def open_something(tree: Tree) -> ListedVideos:
    """The videos and their templates. The labels of the test videos are not public.

    Raises:
        UserError: A list is not of its form.
    """
    file = next(
        join(folder, name) for folder in ("labels", "") for name in _LABELS if tree.has_file(join(folder, name))
    )
    numbered = read_json(tree.root / file)
    if not isinstance(numbered, dict) or not all(str(number).isdecimal() for number in numbered.values()):
        raise UserError(f"{printable(tree.root / file)}: expected an object of labels and their numbers.")
    labels = sorted(numbered, key=lambda label: int(numbered[label]))
    videos = next(name for name in _VIDEOS if tree.has_folder(name))
    names = {Path(name).stem: name for name in tree.files(videos) if has_video_extension(name)}

    lists = _something_lists(tree)
    entries: dict[Split, list[tuple[str, str]]] = {}
    for split, name in lists.items():
        entries[split] = []
        content = read_json(tree.root / name)
        if not isinstance(content, list):
            raise UserError(f"{printable(tree.root / name)}: expected a list of videos with id and template.")
        for number, entry in enumerate(content):
            template = entry.get("template") if isinstance(entry, dict) else None
            if not isinstance(template, str) or "id" not in entry:
                raise UserError(f"{printable(tree.root / name)}: entry {number} lacks its id or its template.")
            # Templates have what stands for an object in brackets, which lists of labels lack.
            label = re.sub(r"[\[\]]", "", template)
            video = str(entry["id"])
            entries[split].append((join(videos, names.get(video, f"{video}.webm")), label))
    return ListedVideos(tree.root, entries, labels, lists)
