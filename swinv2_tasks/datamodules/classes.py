"""Class lists: original ids, readable names, and how labels on disk are matched with them."""

import csv
import errno
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import read_text
from swinv2_tasks.text import closest, printable, say

_CSV_HEADERS = {"id", "class_id", "wnid", "synset"}


@dataclass(frozen=True)
class Classes:
    """Ids and readable names, each in the order of the class indices."""

    ids: list[str]
    names: list[str]

    def __post_init__(self) -> None:
        if not self.ids:
            raise UserError("The class list is empty; expected at least one class.")
        repeated = [class_id for class_id, count in Counter(self.ids).items() if count > 1]
        if repeated:
            raise UserError(f"The class list repeats {abbreviate(repeated)}; expected each id once.")

    def __len__(self) -> int:
        return len(self.ids)

    def index_of(self, labels: Collection[str], where: str | Path) -> dict[str, int]:
        """Class index of each label; labels that mean no class are left out.

        Labels are ids. Only when some are not, and every label is a number below the number of classes, are they
        indices, which is said: ImageNet-V2 names its folders 0 … 999, an order that sorting them as text would
        scramble.

        Args:
            labels: The labels.
            where: The folder or file that has them, for what is said.
        """
        known = {class_id: index for index, class_id in enumerate(self.ids)}
        if all(label in known for label in labels):
            return {label: known[label] for label in labels}
        if self._are_indices(labels):
            first = self.ids[0] if self.ids[0] == self.names[0] else f"{self.ids[0]} {self.names[0]}"
            rank_zero_only(say)(
                f"{printable(where)}: labels are numbers and not the classes' ids, so they are taken as indices in the "
                f"class list: 0 is {printable(first)}"
            )
            return {label: int(label) for label in labels}
        return {label: known[label] for label in labels if label in known}

    def covers(self, labels: Collection[str]) -> bool:
        """Whether each label means a class, as an id or as an index."""
        return set(labels) <= set(self.ids) or self._are_indices(labels)

    def _are_indices(self, labels: Collection[str]) -> bool:
        digits = len(str(len(self.ids)))
        return all(is_number(label, digits) and int(label) < len(self.ids) for label in labels)


def is_number(label: str, digits: int = 18) -> bool:
    """Whether a label is a whole number of up to so many digits, zeros before it aside."""
    return label.isdecimal() and len(label) < 1000 and len(label.lstrip("0")) <= digits


def in_root(path: str | Path, root: str | None) -> Path:
    """Where a file is that a setting names: in the dataset's root if it is there, else as seen from here."""
    path = Path(path).expanduser()
    inside = Path(root or "").expanduser() / path
    return inside if inside.is_file() else path


def class_source(stated: str | Sequence[str], root: str | None) -> Path | Sequence[str]:
    """What data.class_names states: the file, in the dataset's root if it is there, or the list itself."""
    return in_root(stated, root) if isinstance(stated, str) else stated


def lists_in_root(root: str | None, names: Iterable[str]) -> list[Path]:
    """The class lists that lie in a dataset's root under one of these names."""
    if root is None:
        return []
    return [path for path in (Path(root).expanduser() / name for name in names) if path.is_file()]


def find_class_list(
    root: str | None, names: Iterable[str], read: Callable[[Path], Classes], labels: Collection[str]
) -> Classes | None:
    """The class list that lies in a dataset's root, if one does that is of this dataset; which one is printed.

    Args:
        root: The dataset's folder.
        names: What class lists are called there.
        read: Reads one.
        labels: The dataset's labels, all of which the list must have.

    Raises:
        UserError: Several lists have the labels, in another order or with other names.
    """
    lists: dict[Path, Classes] = {}
    for path in lists_in_root(root, names):
        reason = ""
        try:
            classes = read(path)
        except UserError as error:
            reason = str(error)
        else:
            missing = sorted(set(labels) - set(classes.ids))
            reason = "" if classes.covers(labels) else f"it lacks {abbreviate(missing)}"

        if reason:
            rank_zero_only(say)(f"{printable(path)} is not taken for the class list of this dataset: {reason}")
        else:
            lists[path] = classes
    return take_list(lists) if lists else None


T = TypeVar("T", bound=Sized)


def take_list(lists: Mapping[Path, T]) -> T:
    """What the class lists in a dataset's root hold, which is printed.

    Args:
        lists: The files, and what each of them holds.

    Raises:
        UserError: They are not the same.
    """
    (path, classes), *others = lists.items()
    for other, content in others:
        if content != classes:
            raise UserError(
                f"{printable(path)} and {printable(other)} are both class lists, but not the same: name the one of "
                "this dataset with data.class_names."
            )
    rank_zero_only(say)(f"classes: the {len(classes)} of {printable(path)}")
    return classes


def mention_unused(classes: Sequence[str], labels: Iterable[int], samples: str) -> None:
    """Prints which classes have no training sample.

    Args:
        classes: The classes, as they are to be called.
        labels: Class index of each training sample.
        samples: What a sample is, for the message, as `image`.
    """
    used = set(labels)
    unused = [name for index, name in enumerate(classes) if index not in used]
    if unused:
        rank_zero_only(say)(
            f"{len(unused)} of {len(classes)} classes {'has' if len(unused) == 1 else 'have'} no training {samples} "
            f"and cannot be learned: {abbreviate(unused)}"
        )


def read_classes(source: str | Path | Sequence[str]) -> Classes:
    """Read a class list.

    Args:
        source: A list of ids, which then are the names as well; or a text file with a class per line, the id, then
            optionally a space and the name (`n01440764 tench, Tinca tinca`); or a CSV file of `id,name` with or
            without that header.

    Raises:
        UserError: The file is missing or no text, the list is empty, or it repeats an id.
    """
    if not isinstance(source, str | Path):
        return Classes(list(source), list(source))
    lines = read_lines(source, "class list (data.class_names)", "one class per line: `ID`, `ID NAME`, or CSV `ID,NAME`")
    if Path(source).suffix.lower() == ".csv":
        try:
            rows = [[cell.strip() for cell in row] for row in csv.reader(lines, skipinitialspace=True) if row]
        except csv.Error as error:  # a field that never ends, as where a quotation mark is left open
            message = (
                f"{source} (data.class_names) is no CSV file ({error}): look for a quotation mark that is not closed."
            )
            raise UserError(message) from error
        if rows and rows[0][0].lower() in _CSV_HEADERS:
            rows = rows[1:]
    else:
        rows = [line.split(maxsplit=1) for line in lines if line.strip()]
    try:
        return Classes([row[0] for row in rows], ["".join(row[1:2]).strip() or row[0] for row in rows])
    except UserError as error:
        raise UserError(f"{source}: {error} An id ends at the first space; ids with spaces need a CSV file.") from error


def classes_of_folders(folder: Path) -> Classes:
    """The subfolders of `folder` as classes, sorted as text, or as numbers where all of them are numbers.

    Raises:
        UserError: There are no subfolders, or the name of one is no UTF-8.
    """
    names = class_folders(folder)
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):  # as Python's file names hold other bytes
            raise UserError(
                f"The class folder {printable(folder / name)} has a name that is no UTF-8, which no config or "
                "checkpoint can state. Rename it."
            )
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    return Classes(names, names)


def nested_folders(folder: Path, name: str, setting: str) -> str:
    """What to do about the only class folder: it may be what an archive was unpacked to, with the classes in it.

    Args:
        folder: Where it is.
        name: Its name.
        setting: What names `folder`, as `data.train_dir=train`.
    """
    below = _subfolders(folder / name)
    if not below:
        return f"It holds no folders. Expected several class folders in {folder}."
    return (
        f"It holds the folders {abbreviate(below)}: if these are the classes, the data lie one level too deep. Move "
        f"them up, or set {setting}/{printable(name)}, for training and validation alike."
    )


def check_several(classes: Classes, folder: Path, setting: str, labels: Iterable[int] | None = None) -> None:
    """Make sure that there are several classes, and training samples of more than one.

    Args:
        classes: The classes.
        folder: Where the training samples are, or should be.
        setting: What names this folder, for the message, as `data.train_dir=train`.
        labels: Class index of each training sample.

    Raises:
        UserError: There is only one class, or all samples are of one.
    """
    used = set(labels or ())
    if len(classes.ids) > 1 and len(used) != 1:
        return
    text = f"There is one class, {classes.ids[0]}"
    if len(classes.ids) > 1:
        text = f"All training samples are of one of the {len(classes.ids)} classes, {classes.ids[used.pop()]}"
    names = _subfolders(folder) if folder.is_dir() else []
    hint = "Add others; images or videos of anything else make a class of their own."
    if len(names) == 1:
        hint = f"{folder} has one class folder, {printable(names[0])}. {nested_folders(folder, names[0], setting)}"
    raise UserError(f"{text}: on one class any model has a top-1 of 1.0. {hint}")


def class_folders(folder: Path) -> list[str]:
    """Names of the subfolders, sorted as text; hidden ones are left out.

    Raises:
        UserError: There are none.
    """
    names = _subfolders(folder)
    if not names:
        raise UserError(
            f"{folder} holds no class folders; expected {folder}/CLASS/*.JPEG. For validation images that all lie in "
            "one folder, set data.val_list to a text file of `relative/path label` lines, and data.class_names."
        )
    return names


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


MOST_CLASSES = 1_000_000
"""Lines of a class list; ImageNet-22k's has 21,841."""

MOST_SAMPLES = 50_000_000
"""Lines of a list of images or videos; one of all of ImageNet-22k's has 14,197,122."""

_LONGEST_LINE = 256
"""Bytes of a line on average, at most."""

_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""What ``str.splitlines`` splits at."""


def read_lines(path: str | Path, what: str, expected: str, most: int = MOST_CLASSES) -> list[str]:
    """Lines of a UTF-8 text file, without their ends.

    Args:
        path: The file.
        what: What the file is, for the message.
        expected: What it should hold, for the message.
        most: How many lines it may have.

    Raises:
        UserError: It is missing, a folder, a pipe or a device, no text, or has too many lines.
    """
    try:
        text = read_text(Path(path).expanduser(), _LONGEST_LINE * most, encoding="utf-8-sig")
        if len(text) >= most and sum(map(text.count, _LINE_ENDS)) > most:
            raise OSError(errno.EFBIG, f"it has more than {most:,} lines")
        return text.splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"Cannot read the {what} {path}: {reason}. Expected a text file, {expected}.") from error


def abbreviate(items: Sequence[object], limit: int = 6) -> str:
    """The first few items in words: `a, b, c, … (40 in all)`."""
    shown = ", ".join(map(printable, items[:limit]))
    return shown if len(items) <= limit else f"{shown}, … ({len(items)} in all)"


def find_class(key: str, ids: Sequence[object], names: Sequence[str], keys: Collection[str], setting: str) -> int:
    """The index of the class that a key of a setting means: by its name or, where no class is called so, by its id.

    Args:
        key: The key.
        ids: Of the classes, in their order.
        names: Of the classes.
        keys: All keys of the setting.
        setting: Its name, for messages.

    Raises:
        UserError: It means no class, or several; or another key means the same one.
    """
    by_name = [index for index, name in enumerate(names) if name == key]
    by_id = [index for index, class_id in enumerate(ids) if str(class_id) == key]
    if len(by_name) > 1 and not set(by_id) & set(by_name):
        several = abbreviate([str(ids[index]) for index in by_name])
        raise UserError(f"{setting} names {printable(key)}, as several classes are called: {several} by id.")
    meant = by_name if len(by_name) == 1 else by_id
    if not meant:
        nearest = closest(key, names)
        hint = f" Did you mean {printable(nearest[0])}?" if nearest else ""
        raise UserError(
            f"{setting} names {printable(key)}, which is no class.{hint} The classes are "
            f"{abbreviate(_described(ids, names), 40)}."
        )

    (index,) = meant
    if by_id and by_id != meant:
        rank_zero_only(say)(
            f"{setting}: {printable(key)} is the name of one class and the id of another, "
            f"{printable(names[by_id[0]])}; the name counts"
        )
    other = str(ids[index])
    if other != key and other in keys and other not in names:
        raise UserError(f"{setting} names {printable(key)} and {printable(other)}, which are one class.")
    return index


def _described(ids: Sequence[object], names: Sequence[str]) -> list[str]:
    return [name if str(class_id) == name else f"{class_id} {name}" for class_id, name in zip(ids, names, strict=True)]
