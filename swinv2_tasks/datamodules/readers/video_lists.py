"""The labeled videos of a dataset: Kinetics' CSV files, lists of paths and labels, class folders.

Kinetics: https://arxiv.org/abs/1705.06950.
"""

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.datamodules.classes import (
    MOST_SAMPLES,
    Classes,
    abbreviate,
    class_folders,
    is_number,
    nested_folders,
    read_lines,
)
from swinv2_tasks.datamodules.readers.image_tables import LABEL_COLUMNS
from swinv2_tasks.datamodules.readers.images import describe_others, files_below, mention_others
from swinv2_tasks.datamodules.readers.label_cells import Labels, describe_separator, find_separator, split_labels
from swinv2_tasks.datamodules.readers.labeled_videos import VideoSample
from swinv2_tasks.datamodules.readers.videos import VIDEO_EXTENSIONS, has_video_extension
from swinv2_tasks.errors import UserError
from swinv2_tasks.files import is_inside
from swinv2_tasks.outside_files import load_json, read_text
from swinv2_tasks.text import printable, say

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
_FORMS = "a CSV file of `label,youtube_id,time_start,time_end`, or `path label` lines, with several labels as `3,17`"


def read_label_map(source: str | Path | Sequence[str]) -> Classes:
    """The classes of a label map; labels are ids and names alike.

    Args:
        source: A list of labels; or a text file with a label per line, which may hold spaces; or JSON, a list of labels
            or an object of labels and indices.

    Raises:
        UserError: The file cannot be read, or what it holds is no such list.
    """
    if not isinstance(source, str | Path):
        return Classes(list(source), list(source))
    lines = read_lines(source, "label map (data.class_names)", "a label per line")
    labels = [line.strip() for line in lines if line.strip()]
    if Path(source).suffix.lower() == ".json":
        labels = _json_labels("\n".join(lines), source)
    try:
        return Classes(labels, labels)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _json_labels(text: str, source: str | Path) -> list[str]:
    try:
        content = load_json(text)
    except ValueError as error:
        raise UserError(f"{source} (data.class_names) is not JSON: {error}.") from error
    if isinstance(content, dict) and sorted(content.values(), key=str) == sorted(range(len(content)), key=str):
        content = sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not all(isinstance(label, str) for label in content):
        raise UserError(f"{source}: expected a JSON list of labels, or an object of labels and indices from 0.")
    return [label.strip('"') for label in content]  # some label maps quote twice


class VideoLists:
    """Lists that name the videos of a dataset's splits, in which labels are marked alike.

    Args:
        paths: CSV files with the columns of Kinetics, where a video is called ID_START_END (six digits each) or just
            ID, with any ending and in any subfolder; or lines of a path and its labels, with a tab, comma or space
            between. Several labels have the same mark between them in all lists (`label_cells`).
        labels: How many labels a video has, as a setting states it; None: what the lists show.

    Raises:
        UserError: A list cannot be read or is empty, a line has no label, or it is not plain how many there are.
    """

    def __init__(self, paths: Sequence[Path], labels: Labels | None = None) -> None:
        self._lists = {path: _read(path, needs_label=labels != "several") for path in paths}
        cells = {cell for entries, _ in self._lists.values() for _, cell in entries}
        where = f"{printable(paths[0])}:" if paths else ""
        self._separator = find_separator(cells, labels, where, names_have_spaces=True)
        self.multi_label = labels == "several" if labels else self._separator is not None
        self._entries = {path: self._merged(path, entries) for path, (entries, _) in self._lists.items()}
        self._say_how_labels_are_read()

    def labels(self, path: Path) -> list[str]:
        """The labels that a list uses, sorted: as numbers where all are numbers, otherwise as text."""
        labels = sorted({label for _, of_video in self._entries[path] for label in of_video})
        return sorted(labels, key=int) if all(map(is_number, labels)) else labels

    def videos(self, path: Path, folders: Sequence[Path], classes: Classes) -> list[VideoSample]:
        """Paths and class indices of the videos in a list; files that are missing among them, as they should be called.

        Args:
            path: The list.
            folders: Where the videos may be; paths are relative to the first of these where they are there.
            classes: The classes; labels are theirs or, where all are numbers, their indices.

        Raises:
            UserError: A label is no class, or a path leaves all of the folders.
        """
        entries = self._entries[path]
        used = {label for _, labels in entries for label in labels}
        index_of = classes.index_of(used, path)
        if unknown := sorted(used - index_of.keys()):
            raise UserError(
                f"{path} has labels that are no class: {abbreviate(unknown)}. Classes: {abbreviate(classes.ids)}. Name "
                "the list of all of them with data.class_names."
            )
        leaving = [name for name, _ in entries if not any(is_inside(folder / name, folder) for folder in folders)]
        if leaving:
            raise UserError(
                f"{path} names videos outside of the dataset's folder: {abbreviate(leaving, 3)}. Mend the list, or set "
                "data.root to a folder that holds all videos."
            )
        _, is_kinetics = self._lists[path]
        path_of = _videos_by_name(folders[0]) if is_kinetics else {}
        samples: list[VideoSample] = []
        for name, labels in entries:
            file = _kinetics_path(name, path_of, folders[0]) if is_kinetics else _first_existing(name, folders)
            indices = sorted(index_of[label] for label in labels)
            samples.append((file, indices if self.multi_label else indices[0]))
        return samples

    def _merged(self, path: Path, entries: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
        """Names and labels; of several labels, each video once with those of all its lines."""
        split = [(name, [label.strip('"') for label in split_labels(cell, self._separator)]) for name, cell in entries]
        if not self.multi_label:
            labels_of: dict[str, set[str]] = {}
            for name, labels in split:
                labels_of.setdefault(name, set()).update(labels)
            if contradicting := [name for name, labels in labels_of.items() if len(labels) > 1]:
                rank_zero_only(say)(
                    f"{printable(path)} names {len(contradicting)} videos with different labels in several lines: "
                    f"{abbreviate(contradicting, 3)}. --data.labels several takes those of a video together"
                )
            return split
        merged: dict[str, list[str]] = {}
        for name, labels in split:
            merged[name] = list(dict.fromkeys([*merged.get(name, []), *labels]))
        if len(merged) < len(split):
            rank_zero_only(say)(
                f"{printable(path)}: {len(split) - len(merged)} lines repeat a video, which is taken once, with the "
                "labels of all its lines"
            )
        return list(merged.items())

    def _say_how_labels_are_read(self) -> None:
        """Says that videos have several labels, by what these are told apart, and how many have none."""
        if not self.multi_label or not self._entries:
            return
        of_videos = [labels for entries in self._entries.values() for _, labels in entries]
        between = f" {describe_separator(self._separator)}" if self._separator else ""
        names = ", ".join(printable(path.name) for path in self._entries)
        rank_zero_only(say)(f"{names}: several labels of a video (data.labels){between}")
        if unlabeled := sum(not labels for labels in of_videos):
            rank_zero_only(say)(f"{unlabeled} of {len(of_videos)} videos have no label: no class holds for them")


def folder_videos(folder: Path, classes: Classes, setting: str) -> list[VideoSample]:
    """Paths and class indices of the videos in class folders, searched with their subfolders.

    Args:
        folder: The folder.
        classes: The classes, whose ids or indices are the names of folders.
        setting: What names the folder, for messages, as `data.files.val_videos=val`.

    Raises:
        UserError: There are no class folders, one belongs to no class, or there is no video.
    """
    names = class_folders(folder)
    index_of = classes.index_of(names, folder)
    if unknown := [name for name in names if name not in index_of]:
        raise UserError(
            f"{folder} has folders that are no class: {abbreviate(unknown)}. Classes: {abbreviate(classes.ids)}. "
            "Remove the folders, or set data.class_names to the list that they belong to."
            + (f" {nested_folders(folder, names[0], setting)}" if len(names) == 1 else "")
        )
    files = [(path, index_of[name]) for name in names for path in files_below(folder / name)]
    videos: list[VideoSample] = [(str(path), label) for path, label in files if has_video_extension(path)]
    others = [path for path, _ in files if not has_video_extension(path)]
    if not videos:
        rest = describe_others(others, "video")
        raise UserError(f"There is no video in the class folders of {folder}{rest and f', but {rest}'}.")
    mention_others(folder, others, "video")
    return videos


def _whole_seconds(text: str) -> int:
    """A time of a Kinetics table, as the names of its videos have it.

    Raises:
        ValueError, OverflowError: it is none: names have six digits.
    """
    seconds = int(float(text))
    if not 0 <= seconds < 1_000_000:
        raise ValueError(text)
    return seconds


def _rows(path: Path, lines: Sequence[str]) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(lines))
    except csv.Error as error:  # a field that never ends, as where a quotation mark is left open
        raise UserError(f"{path} is no CSV file ({error}): look for a quotation mark that is not closed.") from error


def _read(path: Path, needs_label: bool) -> tuple[list[tuple[str, str]], bool]:
    """Names of videos and their labels, as a list has them, and whether it is one of Kinetics' tables."""
    lines = _lines(path)
    header = {cell.strip().lower() for cell in lines[0].split(",")} if lines else set()
    is_kinetics = {"label", "youtube_id"} <= header
    entries = _kinetics_entries(path, lines, needs_label) if is_kinetics else _line_entries(path, lines, needs_label)
    if not entries:
        raise UserError(f"The list {path} names no video; expected {_FORMS}.")
    return entries, is_kinetics


def _kinetics_entries(path: Path, lines: Sequence[str], needs_label: bool) -> list[tuple[str, str]]:
    entries = []
    for number, row in enumerate(_rows(path, lines), start=2):
        cells = {str(key).strip().lower(): (value or "").strip() for key, value in row.items() if key}
        if not cells.get("youtube_id") or (needs_label and not cells.get("label")):
            raise UserError(f"{path}, line {number}: a label or an id is missing; expected {','.join(_COLUMNS)}.")
        times = [cells.get(name, "") for name in _COLUMNS[2:]]
        try:
            span = "_".join(f"{_whole_seconds(time):06d}" for time in times if time)
        except (ValueError, OverflowError):
            raise UserError(
                f"{path}, line {number}: the times {times} are no numbers of seconds; mend the line."
            ) from None
        entries.append((f"{cells['youtube_id']}_{span}" if span else cells["youtube_id"], cells.get("label", "")))
    return entries


def _line_entries(path: Path, lines: Sequence[str], needs_label: bool) -> list[tuple[str, str]]:
    entries = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and _is_header(line)):
            continue
        entry = _path_and_labels(line)
        if entry is None and not needs_label:
            entry = line.strip().strip('"'), ""
        if entry is None:
            raise UserError(
                f"{path}, line {number}: {line.strip()!r} has no label; expected {_FORMS}. Videos of no class: "
                "data.labels several."
            )
        entries.append(entry)
    return entries


_HEADER_WORDS = ("path", "file", "filename", "file_name", "video", "video_path", "name")


def _is_header(line: str) -> bool:
    """Whether a list's first line names its columns, as `path,labels`."""
    cells = [cell.strip().strip('"').lower() for cell in re.split("[\t,; ]", line.strip())]
    return len(cells) == 2 and cells[0] in _HEADER_WORDS and cells[1] in LABEL_COLUMNS


def _lines(path: Path) -> list[str]:
    """The lines of a list. Paths may hold bytes that are no UTF-8, as Python's file names do; labels may not."""
    try:
        lines = read_text(path, encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError:
        return read_lines(path, "list of videos", _FORMS, MOST_SAMPLES)  # says what is wrong
    for line in lines:
        label = line.rpartition("\t")[2]
        if not label.isascii() and any("\udc80" <= character <= "\udcff" for character in label):
            return read_lines(path, "list of videos", _FORMS, MOST_SAMPLES)
    return lines


_ENDINGS = "|".join(re.escape(ending) for ending in VIDEO_EXTENSIONS)
_AFTER_VIDEO = {mark: re.compile(rf'(?i:{_ENDINGS})"?\s*{mark}') for mark in "\t, "}
"""The end of a video's path, and the mark that stands after it."""


def _path_and_labels(line: str) -> tuple[str, str] | None:
    """What a line of a list says; None where it has no label."""
    text = line.strip()
    for pattern in _AFTER_VIDEO.values():
        ends = [match.end() for match in pattern.finditer(text)]
        if ends:
            path, labels = text[: ends[-1] - 1].strip(), text[ends[-1] :].strip()
            break
    else:  # folders of frames have no ending
        path, _, labels = (part.strip() for part in text.rpartition("\t" if "\t" in text else " "))
    if not path or not labels or has_video_extension(labels):
        return None
    return path.strip('"'), labels.strip('"')


def list_line(path: str, labels: Sequence[str], multi_label: bool = False) -> str | None:
    """A line of a list that names a video; None where no line can, as there is a line break in the name, say.

    Args:
        path: The video.
        labels: Its labels.
        multi_label: Whether it may have any number of them.
    """
    cell = "|".join(labels)
    line = f"{path}\t{cell}" if cell else path
    is_read_back = line.splitlines() == [line] and (_path_and_labels(line) or (line, "")) == (path, cell)
    are_told_apart = not any(mark in label for label in labels for mark in "|;")
    is_labeled = bool(cell) or multi_label
    return line if is_read_back and are_told_apart and is_labeled and not line.startswith("\ufeff") else None


def _videos_below(folder: Path) -> list[Path]:
    return [path for path in files_below(folder) if has_video_extension(path)]


def _videos_by_name(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in _videos_below(folder)}


def _kinetics_path(name: str, path_of: dict[str, Path], folder: Path) -> str:
    """Where Kinetics' video of a name is; where it should be, if it is missing."""
    short = re.sub(r"_\d{6}_\d{6}$", "", name)
    return str(path_of.get(name) or path_of.get(short) or folder / f"{name}.mp4")


def _first_existing(name: str, folders: Sequence[Path]) -> str:
    """The path of a name in the first folder that has it; in the first one, if none has or can have it."""
    return str(next((folder / name for folder in folders if os.path.exists(folder / name)), folders[0] / name))
