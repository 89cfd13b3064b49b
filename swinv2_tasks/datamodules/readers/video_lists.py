"""The labeled videos of a dataset: Kinetics' CSV files, lists of paths and labels, class folders.

Kinetics: https://arxiv.org/abs/1705.06950.
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from swinv2_tasks.datamodules.classes import (
    MOST_SAMPLES,
    Classes,
    abbreviate,
    class_folders,
    is_number,
    nested_folders,
    read_lines,
)
from swinv2_tasks.datamodules.readers.images import describe_others, files_below, mention_others
from swinv2_tasks.datamodules.readers.videos import has_video_extension
from swinv2_tasks.errors import UserError
from swinv2_tasks.files import is_inside
from swinv2_tasks.outside_files import load_json, read_text

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
_FORMS = "a CSV file of `label,youtube_id,time_start,time_end`, or `path label` lines"


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


def list_labels(path: Path) -> list[str]:
    """The labels that a list of videos uses, sorted: as numbers where all are numbers, otherwise as text."""
    labels = sorted({label for _, label in _read(path)[0]})
    return sorted(labels, key=int) if all(map(is_number, labels)) else labels


def listed_videos(path: Path, folders: Sequence[Path], classes: Classes) -> list[tuple[str, int]]:
    """Paths and class indices of the videos in a list; files that are missing among them, as they should be called.

    Args:
        path: A CSV file with the columns of Kinetics, where a video is called ID_START_END (six digits each) or just
            ID, with any ending and in any subfolder; or lines of a path and a label with a tab, comma or space between.
        folders: Where the videos may be; paths are relative to the first of these where they are there.
        classes: The classes; labels are theirs or, where all are numbers, their indices.

    Raises:
        UserError: The list cannot be read or is empty; a line has no label, one that is no class, or a path that leaves
            all of the folders.
    """
    entries, is_kinetics = _read(path)
    index_of = classes.index_of({label for _, label in entries}, path)
    unknown = sorted({label for _, label in entries} - index_of.keys())
    if unknown:
        raise UserError(
            f"{path} has labels that are no class: {abbreviate(unknown)}. Classes: {abbreviate(classes.ids)}. Name the "
            "list of all of them with data.class_names."
        )
    leaving = [name for name, _ in entries if not any(is_inside(folder / name, folder) for folder in folders)]
    if leaving:
        raise UserError(
            f"{path} names videos outside of the dataset's folder: {abbreviate(leaving, 3)}. Mend the list, or set "
            "data.root to a folder that holds all videos."
        )
    if is_kinetics:
        path_of = _videos_by_name(folders[0])
        return [(_kinetics_path(name, path_of, folders[0]), index_of[label]) for name, label in entries]
    return [(_first_existing(name, folders), index_of[label]) for name, label in entries]


def folder_videos(folder: Path, classes: Classes, setting: str) -> list[tuple[str, int]]:
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
    videos = [(str(path), label) for path, label in files if has_video_extension(path)]
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


def _read(path: Path) -> tuple[list[tuple[str, str]], bool]:
    """Names of videos and labels, as the list has them, and whether it is one of Kinetics' tables."""
    lines = _lines(path)
    header = {cell.strip().lower() for cell in lines[0].split(",")} if lines else set()
    is_kinetics = {"label", "youtube_id"} <= header
    entries = []
    if is_kinetics:
        for number, row in enumerate(_rows(path, lines), start=2):
            cells = {str(key).strip().lower(): (value or "").strip() for key, value in row.items() if key}
            if not cells.get("label") or not cells.get("youtube_id"):
                raise UserError(f"{path}, line {number}: a label or an id is missing; expected {','.join(_COLUMNS)}.")
            times = [cells.get(name, "") for name in _COLUMNS[2:]]
            try:
                span = "_".join(f"{_whole_seconds(time):06d}" for time in times if time)
            except (ValueError, OverflowError):
                raise UserError(
                    f"{path}, line {number}: the times {times} are no numbers of seconds; mend the line."
                ) from None
            entries.append((f"{cells['youtube_id']}_{span}" if span else cells["youtube_id"], cells["label"]))
    else:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            entry = _path_and_label(line)
            if entry is None:
                raise UserError(f"{path}, line {number}: {line.strip()!r} has no label; expected {_FORMS}.")
            entries.append(entry)
    if not entries:
        raise UserError(f"The list {path} names no video; expected {_FORMS}.")
    return entries, is_kinetics


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


def _path_and_label(line: str) -> tuple[str, str] | None:
    """What a line of a list says; None where it has no label."""
    splits = [re.fullmatch(rf"(.*\S)\s*{mark}\s*(\S.*)", line.strip()) for mark in ("\t", ",", " ")]
    fields = next((split for split in splits if split and has_video_extension(split[1].strip('"'))), splits[-1])
    if fields is None or has_video_extension(fields[2]):
        return None
    return fields[1].strip('"'), fields[2].strip('"')


def list_line(path: str, label: str) -> str | None:
    """A line of a list that names a video; None where no line can, as there is a line break in the name, say."""
    line = f"{path}\t{label}"
    is_read_back = line.splitlines() == [line] and _path_and_label(line) == (path, label)
    return line if is_read_back and not line.startswith("\ufeff") else None


def _videos_below(folder: Path) -> list[Path]:
    return [path for path in files_below(folder) if has_video_extension(path)]


def _videos_by_name(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in _videos_below(folder)}


def _kinetics_path(name: str, path_of: dict[str, Path], folder: Path) -> str:
    """Where Kinetics' video of a name is; where it should be, if it is missing."""
    short = re.sub(r"_\d{6}_\d{6}$", "", name)
    return str(path_of.get(name) or path_of.get(short) or folder / f"{name}.mp4")


def _first_existing(name: str, folders: Sequence[Path]) -> str:
    """The path of a name in the first folder that has it; in the first one, if none has."""
    return str(next((folder / name for folder in folders if (folder / name).exists()), folders[0] / name))
