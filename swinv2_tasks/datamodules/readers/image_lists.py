"""The labeled images of a dataset: from class folders, validation lists and ReaL labels."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from swinv2_tasks.datamodules.classes import (
    MOST_SAMPLES,
    Classes,
    abbreviate,
    class_folders,
    nested_folders,
    read_lines,
)
from swinv2_tasks.datamodules.readers.images import describe_others, files_below, has_image_extension, mention_others
from swinv2_tasks.errors import UserError
from swinv2_tasks.files import is_inside
from swinv2_tasks.outside_files import load_json
from swinv2_tasks.text import printable

Sample = tuple[str, int | list[int]]
"""Path of an image and its class index, or all its class indices, perhaps none."""


def folder_samples(folder: Path, classes: Classes, setting: str, allow_empty: bool = False) -> list[Sample]:
    """The images in the class folders of `folder`, searched with their subfolders.

    Args:
        folder: The folder.
        classes: The classes, whose ids or indices are the names of folders.
        setting: What names the folder, for messages, as `data.val_dir=val`.
        allow_empty: Class folders may be empty.

    Raises:
        UserError: There are no class folders, one belongs to no class, one is empty (unless `allow_empty`), or all are.
    """
    names = class_folders(folder)
    index_of = classes.index_of(names, folder)
    unknown = [name for name in names if name not in index_of]
    if unknown:
        raise UserError(
            f"{folder} has folders that are not in the class list: {abbreviate(unknown)}. The class list is "
            f"{abbreviate(classes.ids)}. Remove these folders, or set data.class_names to the list they belong to."
            + (f" {nested_folders(folder, names[0], setting)}" if len(names) == 1 else "")
        )
    samples: list[Sample] = []
    others: list[Path] = []
    for name in names:
        files = sorted(files_below(folder / name), key=lambda path: (str(path.parent), path.name))
        samples += [(str(path), index_of[name]) for path in files if has_image_extension(path)]
        others += [path for path in files if not has_image_extension(path)]

    filled = {label for _, label in samples}
    empty = [name for name in names if index_of[name] not in filled]
    if not samples or (empty and not allow_empty):
        rest = describe_others(others, "image")
        raise UserError(
            f"No images in these class folders of {folder}: {abbreviate(empty)}{rest and f', but {rest}'}. Fill or "
            "remove them, in the training and the validation folder alike."
        )
    mention_others(folder, others, "image")
    return samples


def listed_samples(folder: Path, root: Path, val_list: str | Path, classes: Classes) -> list[Sample]:
    """The images that a text file of `relative/path label` lines names, relative to `folder`.

    Args:
        folder: The folder of the images.
        root: The folder of the dataset, which no path may leave.
        val_list: The text file.
        classes: The classes; labels are their ids or indices.

    Raises:
        UserError: The file cannot be read or is empty; or a line has no label, one that is no class, or the path of
            no file, or of one outside of the dataset; the message gives its number.
    """
    expected = "`relative/path label` lines, each label a class id or index"
    lines = read_lines(val_list, "validation list (data.val_list)", expected, MOST_SAMPLES)
    entries: list[tuple[int, str, str]] = []
    for number, line in enumerate(lines, start=1):
        fields = line.rsplit(maxsplit=1)
        if len(fields) == 1:
            raise UserError(f"{val_list}, line {number}: {line.strip()!r} has no label; expected {expected}.")
        if fields:
            entries.append((number, fields[0].strip(), fields[1]))
    if not entries:
        raise UserError(f"The validation list {val_list} is empty; expected {expected}.")
    index_of = classes.index_of({label for _, _, label in entries}, val_list)
    samples: list[Sample] = []
    for number, name, label in entries:
        if label not in index_of:
            raise UserError(
                f"{val_list}, line {number}: {label!r} is no class; expected an index below {len(classes.ids)} or one "
                f"of {abbreviate(classes.ids)}, and only the one or only the other in all lines."
            )
        path = folder / name
        if not is_inside(path, root):
            raise UserError(
                f"{val_list}, line {number}: {printable(name)} leaves the dataset's folder {root}. Mend the line, or "
                "set data.root to a folder that holds all images."
            )
        if not os.path.isfile(path):  # also of a name that no file can have
            raise UserError(
                f"{val_list}, line {number}: there is no file {printable(path)}; paths are relative to {folder}."
            )
        samples.append((str(path), index_of[label]))
    return samples


def with_real_labels(samples: Sequence[Sample], real_labels: str | Path, num_classes: int) -> list[Sample]:
    """The same images with their ReaL labels: all the classes that are right, perhaps none.

    Args:
        samples: Validation images.
        real_labels: JSON list, one list of class indices per ILSVRC2012 validation number, or JSON object of file
            names and such lists. Entries of other images are ignored.
        num_classes: Number of classes.

    Raises:
        UserError: The file is not such JSON, an index is no class, or an image has no entry.
    """
    lines = read_lines(real_labels, "ReaL labels (data.real_labels)", "JSON", MOST_SAMPLES)
    try:
        content = load_json("\n".join(lines))
    except ValueError as error:
        raise UserError(f"{real_labels} (data.real_labels) is not JSON: {error}.") from error

    if not isinstance(content, list | dict):
        raise UserError(f"{real_labels}: expected a JSON list of lists, or an object of file names and lists.")
    entries = dict(enumerate(content)) if isinstance(content, list) else content
    for key, indices in entries.items():
        if not isinstance(indices, list) or not all(type(i) is int and 0 <= i < num_classes for i in indices):
            raise UserError(
                f"{real_labels}, entry {key!r}: expected a list of class indices below {num_classes}, found "
                f"{indices!r}. If these are ImageNet's, data.class_names must list all of its classes."
            )

    names = [Path(path).name for path, _ in samples]
    if len(set(names)) < len(names):
        raise UserError(f"{real_labels} goes by file names, but several validation images share one.")

    # A list has an entry for each number, from 1; an object goes by file names.
    keys = [validation_number(name, real_labels) - 1 for name in names] if isinstance(content, list) else names
    missing = [name for name, key in zip(names, keys, strict=True) if key not in entries]
    if missing:
        raise UserError(f"{real_labels} has {len(entries)} entries, but none for {abbreviate(missing)}.")
    return [(path, entries[key]) for (path, _), key in zip(samples, keys, strict=True)]


def validation_number(name: str, real_labels: str | Path) -> int:
    """8 for ILSVRC2012_val_00000008.JPEG.

    Raises:
        UserError: It is called otherwise.
    """
    match = re.match(r"ILSVRC2012_val_(\d+)", name)
    if match is None:
        raise UserError(
            f"{real_labels} is a list in the order of ILSVRC2012_val_00000001.JPEG …, but a validation image is named "
            f"{name}. For other names, write a JSON object of file names and lists of class indices."
        )
    return int(match[1])
