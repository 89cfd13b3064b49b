"""Images whose labels stand in CSV files: `train.csv` and `val.csv`, or one `labels.csv`, beside the images.

A table has a column of files and a column of labels, or a column of 0 and 1 for each class. Columns are known by the
names that such files usually have; which were taken is printed.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.datamodules.classes import MOST_SAMPLES, Classes, abbreviate, is_number, read_lines
from swinv2_tasks.datamodules.layouts import SPLIT_NAMES, Split, Tree, join, split_of
from swinv2_tasks.datamodules.readers.image_lists import Sample
from swinv2_tasks.datamodules.readers.images import has_image_extension
from swinv2_tasks.datamodules.readers.label_cells import Labels, describe_separator, find_separator, split_labels
from swinv2_tasks.errors import UserError
from swinv2_tasks.files import is_inside
from swinv2_tasks.outside_files import open_file
from swinv2_tasks.tables import csv_cell, from_csv_cell
from swinv2_tasks.text import printable, say

FILE_COLUMNS = (
    *("file", "filename", "file_name", "fname", "path", "filepath", "file_path", "filepaths", "image_path", "img_path"),
    *("image", "img", "image_file", "image_name", "img_name", "image_id", "imageid", "img_id", "id"),
)
"""What the column of files is called, by descending preference; an id is a file's name without its ending."""

LABEL_COLUMNS = (
    *("label", "labels", "class", "classes", "class_name", "class_names", "category", "categories", "category_name"),
    *("target", "targets", "tag", "tags", "label_name", "class_id", "category_id", "label_id"),
)
"""What the column of labels is called, by descending preference."""

SPLIT_COLUMNS = ("split", "set", "subset", "partition", "data_set", "phase", "is_valid")
"""What the column of splits is called, if it holds such; `is_valid` says true or false."""

_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "data", "photos", "pictures")

_NAME_WORDS = {
    *("label", "labels", "annotation", "annotations", "metadata", "data", "dataset", "image", "images", "list", "set"),
    *("df", "multilabel", "groundtruth"),
}
"""Words in the names of tables, beside those of splits."""

_TRUTH = {"": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
"""What cells of a class's column say, in lower case; an empty one says no."""

_HEAD_BYTES = 2**16
"""Of a table, what is read to tell whether it is one."""

_EXPECTED = "a table with the header `file,label`, or `file` and a column of 0 and 1 for each class"


@dataclass(frozen=True)
class Table:
    """A CSV file of a dataset.

    Attributes:
        name: relative to the dataset's folder.
        split: the split that its name, or its folder, states; None: a column says it, or nothing does.
    """

    name: str
    split: Split | None


@dataclass(frozen=True)
class Row:
    """What a line of a table says of an image; ``labels`` are ids of classes, and ``line`` is the line's number."""

    table: Table
    line: int
    file: str
    split: Split | None
    labels: tuple[str, ...]


# ---- recognizing


def find_tables(tree: Tree) -> list[Table]:
    """The CSV files in a dataset's folder, or in those of its splits, that name images."""
    tables = [Table(name, _split_in_name(name)) for name in tree.files() if _is_table_name(name)]
    for split in SPLIT_NAMES:
        for folder in tree.folders():
            if split_of(folder) == split:
                tables += [Table(join(folder, name), split) for name in tree.files(folder) if _is_table_name(name)]
    return [table for table in tables if _names_images(tree, table)]


def describe_tables(tree: Tree) -> str | None:
    """The names of the tables in a dataset's folder; None where there is none."""
    return ", ".join(table.name for table in find_tables(tree)) or None


def name_words(name: str) -> list[str]:
    """The words in a file's name, in lower case, without its ending."""
    return [word for word in re.split(r"[^a-z0-9]+", PurePosixPath(name).stem.lower()) if word]


def _is_table_name(name: str) -> bool:
    if PurePosixPath(name).suffix.lower() not in (".csv", ".tsv"):
        return False
    words = name_words(name)
    splits = [word for word in words if split_of(word) is not None]
    others = [word for word in words if split_of(word) is None]
    return name == "_classes.csv" or (bool(words) and len(splits) <= 1 and set(others) <= _NAME_WORDS)


def _split_in_name(name: str) -> Split | None:
    return next((split for word in name_words(name) if (split := split_of(word)) is not None), None)


def _names_images(tree: Tree, table: Table) -> bool:
    """Whether a table's header has a column of files; one called `id`, whether its first row names an image."""
    try:
        with open_file(tree.root / table.name) as file:
            lines = file.read(_HEAD_BYTES).decode("utf-8-sig", errors="replace").splitlines()
        columns, first = _head(lines)
    except (OSError, csv.Error):
        return False
    number = next((columns.index(name) for name in FILE_COLUMNS if name in columns), None)
    if number is None:
        return False
    if columns[number] != "id":
        return True
    return len(first) > number and ImageFinder(tree).find(first[number].strip(), table) is not None


def _head(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of the columns, and the first row; where there is no header, a file and its label."""
    rows = list(csv.reader(lines[:2], delimiter=_delimiter(lines)))
    header = rows[0] if rows else []
    if _is_headless(header):
        return ["file", "label"], header
    return [_column_name(cell) for cell in header], rows[1] if len(rows) > 1 else []


def _is_headless(header: Sequence[str]) -> bool:
    return len(header) == 2 and has_image_extension(header[0].strip())


def _delimiter(lines: Sequence[str]) -> str:
    """What stands between the cells: the most frequent in the header of a comma, a semicolon and a tab."""
    header = lines[0] if lines else ""
    return max((",", ";", "\t"), key=header.count)


def _reader(lines: Sequence[str], delimiter: str) -> Any:
    """The rows of a table; quotation marks that are not closed are an error."""
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != "\t", strict=True)


def _column_name(cell: str) -> str:
    return re.sub(r"[\s-]+", "_", cell.strip().lower())


# ---- finding images


class ImageFinder:
    """Finds the files that tables name: relative to the dataset's folder, a split's, or one of images within them.

    Each folder is listed once.

    Args:
        tree: The dataset's folder.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._listed: dict[str, tuple[set[str], dict[str, list[str]]]] = {}
        self._folders: dict[tuple[str, Split | None], list[str]] = {}

    def find(self, name: str, table: Table, split: Split | None = None) -> str | None:
        """The name of an image, relative to the dataset's folder; None where there is no such file.

        Args:
            name: What the table calls it, with its ending or without.
            table: The table.
            split: The split of its row.

        Raises:
            UserError: Several images are called so, with different endings.
        """
        for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
            path = PurePosixPath(spelled)
            if path.is_absolute() or not path.parts:
                continue
            if path.parts[0] == self._tree.root.name and (image := self._in("", PurePosixPath(*path.parts[1:]))):
                return image
            for folder in self._candidates(table, split or table.split):
                if (image := self._in(folder, path)) is not None:
                    return image
        return None

    def _candidates(self, table: Table, split: Split | None) -> list[str]:
        """The folders that names may be relative to; the first that has an image of a name counts."""
        own = str(PurePosixPath(table.name).parent)
        own = "" if own == "." else own
        if (own, split) not in self._folders:
            of_split = [name for name in self._tree.folders() if split is not None and _is_of_split(name, split)]
            parents = list(dict.fromkeys([own, "", *of_split]))
            within = [
                join(parent, name)
                for parent in parents
                for name in self._tree.folders(parent)
                if name.lower() in _IMAGE_FOLDERS
            ]
            within += [
                join(folder, name)
                for folder in within
                for name in self._tree.folders(folder)
                if split is not None and _is_of_split(name, split)
            ]
            # One that is of no split, or of all where the table does not tell them apart.
            others = [name for name in self._tree.folders() if split is None or _split_in_name(name) is None]
            self._folders[own, split] = list(dict.fromkeys([*parents, *within, *others]))
        return self._folders[own, split]

    def _in(self, folder: str, path: PurePosixPath) -> str | None:
        """The image of a name below a folder, with any ending where the name has none."""
        parent = join(folder, str(path.parent)) if str(path.parent) != "." else folder
        names, endings_of = self._list(parent)
        if path.name in names:
            return join(parent, path.name)
        named = endings_of.get(path.name, [])
        if len(named) > 1:
            raise UserError(
                f"{printable(self._tree.root / parent)} has several images called {printable(path.name)}: "
                f"{abbreviate(named)}. Leave one of them there, or name it with its ending."
            )
        return join(parent, named[0]) if named else None

    def _list(self, folder: str) -> tuple[set[str], dict[str, list[str]]]:
        """The names of the images in a folder, and by their stems."""
        if folder not in self._listed:
            names = [name for name in self._tree.files(folder) if has_image_extension(name)]
            stems: dict[str, list[str]] = {}
            for name in names:
                stems.setdefault(name.rpartition(".")[0], []).append(name)
            self._listed[folder] = set(names), stems
        return self._listed[folder]


def _is_of_split(folder: str, split: Split) -> bool:
    """Whether a folder is called as a split, perhaps among other words, as `train_images`."""
    return any(split_of(word) == split for word in name_words(folder))


# ---- reading


class ImageTables:
    """The images of a dataset that CSV files name.

    Args:
        tree: The dataset's folder.
        labels: How many labels an image has, as a setting states it; None: what the tables show.

    Raises:
        UserError: A table cannot be read, has no column of files or none of labels, or a row is not as it should be.
    """

    validation_settings = None

    def __init__(self, tree: Tree, labels: Labels | None = None) -> None:
        self._root = tree.root
        self._finder = ImageFinder(tree)
        self._stated = labels
        tables = find_tables(tree)
        _check_one_of_each(tree.root, tables)
        self.table_names = frozenset(table.name for table in tables)
        parsed = [self._parse(table) for table in tables]
        contents = [content for content in parsed if content is not None]
        if not contents:
            raise UserError(f"{printable(tables[0].name)} has no column of labels; expected {_EXPECTED}.")
        self._rows = self._make_rows(contents)
        self.has_splits = any(row.split is not None for row in self._rows)
        self._say_what_was_read(contents)

    # -- what is asked of every reader

    def classes(self) -> Classes:
        """The labels that the tables use, sorted: as numbers where all are; or the columns of the classes."""
        return Classes(self._names, self._names)

    def has(self, split: Split) -> bool:
        """Whether there are rows of a split; without splits all are the training's."""
        return any((row.split or "train") == split for row in self._rows)

    def place(self, split: Split) -> str:
        """The tables of a split, or all of them."""
        names = {row.table.name for row in self._rows if (row.split or "train") == split}
        return ", ".join(str(self._root / name) for name in sorted(names or {row.table.name for row in self._rows}))

    def samples(self, split: Split, classes: Classes) -> list[Sample]:
        """The images of a split and their labels, in the order of the tables."""
        used = {label for row in self._rows for label in row.labels}
        index_of = classes.index_of(used, self.place(split))
        samples: list[Sample] = []
        missing: list[Row] = []
        for row in self._rows:
            if (row.split or "train") != split:
                continue
            if unknown := [label for label in row.labels if label not in index_of]:
                raise UserError(
                    f"{self._at(row)}: {abbreviate(unknown)} is no class; the class list is {abbreviate(classes.ids)}. "
                    "Mend the line, or set data.class_names to the list it belongs to."
                )
            path = self._finder.find(row.file, row.table, row.split)
            if path is None:
                missing.append(row)
                continue
            indices = sorted(index_of[label] for label in row.labels)
            samples.append((str(self._root / path), indices if self.multi_label else indices[0]))
        if missing:
            raise UserError(
                f"{self._at(missing[0])}: there is no image {printable(missing[0].file)} in {printable(self._root)}"
                f"{f', nor {len(missing) - 1} others that it names' if len(missing) > 1 else ''}. Names are relative "
                "to the dataset's folder, to one of images in it, or to its split's. Mend the table, or add the images."
            )
        return samples

    def _at(self, row: Row) -> str:
        return f"{printable(self._root / row.table.name)}, line {row.line}"

    # -- from tables to rows

    def _parse(self, table: Table) -> "_Content | None":
        """The cells of a table; None of one without labels that is of a test, as those to be predicted are."""
        content = _Content.read(self._root, table)
        if content.has_labels:
            return content
        if table.split == "test":
            rank_zero_only(say)(f"{printable(content.path)} has no labels and is left out")
            return None
        raise UserError(
            f"{printable(content.path)} has the columns {abbreviate(content.columns)}: which of them has the labels? "
            f"Expected {_EXPECTED}."
        )

    def _make_rows(self, contents: "list[_Content]") -> list[Row]:
        """The rows of all tables, each image once."""
        is_one_hot = {bool(content.class_columns) for content in contents}
        if len(is_one_hot) > 1:
            raise UserError(
                f"{', '.join(content.table.name for content in contents)}: some have a column of labels, the others "
                "one for each class. Write them alike."
            )
        one_hot = is_one_hot.pop()
        self.separator = None
        if not one_hot:
            cells = {cell for content in contents for cell in content.label_cells()}
            where = f"{printable(contents[0].path)}, column {printable(contents[0].label_column)},"
            self.separator = find_separator(cells, self._stated, where)
        self.multi_label = self._stated == "several" if self._stated else one_hot or self.separator is not None

        rows: list[Row] = []
        for content in contents:
            rows += content.one_hot_rows() if one_hot else content.label_rows(self.separator)
        if not rows:
            raise UserError(f"{', '.join(str(content.path) for content in contents)} names no image.")
        self._names = contents[0].class_columns if one_hot else _sorted({label for row in rows for label in row.labels})
        for content in contents[1:]:
            if one_hot and set(content.class_columns) != set(self._names):
                raise UserError(
                    f"{printable(content.path)} has the classes {abbreviate(content.class_columns)}, "
                    f"{printable(contents[0].path)} {abbreviate(self._names)}. Write the same columns in all tables."
                )
        return self._checked(rows)

    def _checked(self, rows: list[Row]) -> list[Row]:
        """The rows with one of each image, which stay in the dataset's folder and have as many labels as they may."""
        kept: dict[tuple[str, Split | None], Row] = {}
        repeated = 0
        for row in rows:
            if not is_inside(self._root / row.file.replace("\\", "/"), self._root):
                raise UserError(
                    f"{self._at(row)}: {printable(row.file)} leaves the dataset's folder {printable(self._root)}. Mend "
                    "the line, or set data.root to a folder that holds all images."
                )
            if not self.multi_label and len(row.labels) != 1:
                shown = f"the labels {abbreviate(row.labels)}" if row.labels else "no label"
                other = "" if self._stated else ", or set data.labels to several, for images of any number of classes"
                raise UserError(
                    f"{self._at(row)}: {printable(row.file)} has {shown}; expected one. Mend the line{other}."
                )
            key = row.file, row.split
            if (first := kept.get(key)) is None:
                kept[key] = row
                continue
            repeated += 1
            if first.labels == row.labels:
                continue
            if self._stated != "several":
                raise UserError(
                    f"{self._at(row)}: {printable(row.file)} has other labels than in line {first.line}. Mend the line"
                    ", or set data.labels to several, which takes the labels of all lines of an image together."
                )
            labels = tuple(dict.fromkeys((*first.labels, *row.labels)))
            kept[key] = Row(first.table, first.line, first.file, first.split, labels)
        if repeated:
            rank_zero_only(say)(
                f"{repeated} lines of the tables repeat an image, which is taken once"
                + (", with the labels of all its lines" if self._stated == "several" else "")
            )
        return list(kept.values())

    def _say_what_was_read(self, contents: "list[_Content]") -> None:
        first = contents[0]
        column = f"the column {printable(first.label_column)}"
        if first.class_columns:
            column = f"{len(first.class_columns)} columns of 0 and 1"
        how = f"labels are those of {column} ({abbreviate(self._names)})"
        if self.multi_label:
            how += ", several of an image (data.labels)"
            how += f" {describe_separator(self.separator)}" if self.separator else ""
        if first.others:
            how += f"; not taken: {abbreviate(first.others)}"
        rank_zero_only(say)(f"{printable(first.table.name)}: {how}")

        if not self.multi_label:
            return
        unlabeled = sum(not row.labels for row in self._rows)
        if unlabeled:
            rank_zero_only(say)(f"{unlabeled} of {len(self._rows)} images have no label: no class holds for them")
        if self._stated is None and all(len(row.labels) == 1 for row in self._rows):
            rank_zero_only(say)(
                "every image has exactly one label: --data.labels one makes it classification with one label an image"
            )


def _sorted(labels: set[str]) -> list[str]:
    return sorted(labels, key=int) if all(map(is_number, labels)) else sorted(labels)


def _check_one_of_each(root: Path, tables: Sequence[Table]) -> None:
    """Refuses several tables of a split, or one of all images beside those of splits."""
    counts = Counter(table.split for table in tables)
    if max(counts.values(), default=0) > 1 or (None in counts and len(counts) > 1):
        raise UserError(
            f"{printable(root)} has the tables {abbreviate([table.name for table in tables])}, of which several may be "
            "of the same images. Leave one for each split there, or one of all images."
        )


class _Content:
    """The cells of a table, and what its columns are."""

    @classmethod
    def read(cls, root: Path, table: Table) -> "_Content":
        path = root / table.name
        lines = read_lines(path, "table of images", _EXPECTED, MOST_SAMPLES)
        try:
            return cls(root, path, table, lines)
        except csv.Error as error:  # a field that never ends, as where a quotation mark is left open
            raise UserError(
                f"{printable(path)} is no CSV file ({error}): look for a quotation mark that is not closed."
            ) from error

    def __init__(self, root: Path, path: Path, table: Table, lines: list[str]) -> None:
        self._root, self.path, self.table = root, path, table
        delimiter = _delimiter(lines)
        reader = _reader(lines, delimiter)
        header = [cell.strip() for cell in next(reader, [])]
        self._first_line = 2
        if _is_headless(header):
            self._first_line = 1
            reader, header = _reader(lines, delimiter), ["file", "label"]
        while header and not header[-1]:  # commas at the end of each line
            header.pop()
        self.columns = [*map(_unescaped, header)]
        names = [*map(_column_name, header)]
        self._check_columns(names)
        self._lines: list[int] = []
        self.cells: list[list[str]] = []
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                self.cells.append(self._fitted(cells, reader.line_num, delimiter))
                self._lines.append(reader.line_num)

        self._file = next(names.index(name) for name in FILE_COLUMNS if name in names)
        self._split = next((names.index(name) for name in SPLIT_COLUMNS if self._has_splits(name, names)), None)
        self._label, self._classes = self._find_labels(names)
        taken = {self._file, self._split, self._label, *self._classes}
        self.others = [name for number, name in enumerate(self.columns) if number not in taken and name]

    def _check_columns(self, names: list[str]) -> None:
        repeated = [name for name, number in Counter(filter(None, names)).items() if number > 1]
        if repeated:
            raise UserError(f"{printable(self.path)} has several columns {abbreviate(repeated)}; expected each once.")
        if {"xmin", "ymin"} <= {*names}:
            raise UserError(
                f"{printable(self.path)} has boxes of objects (xmin, ymin), which classification does not read."
            )

    def _fitted(self, cells: list[str], line: int, delimiter: str) -> list[str]:
        """A row with as many cells as there are columns."""
        number = len(self.columns)
        while len(cells) > number and not cells[-1]:
            cells.pop()
        if len(cells) == number:
            return cells
        hint = f" Several labels stand in quotation marks where there is a {delimiter} between them." * (
            len(cells) > number and delimiter != "\t"
        )
        raise UserError(
            f"{printable(self.path)}, line {line}: {len(cells)} cells, where the header has {number} columns.{hint}"
        )

    def _has_splits(self, name: str, names: list[str]) -> bool:
        """Whether there is a column of this name that holds splits, in most rows at least."""
        if name not in names:
            return False
        number = names.index(name)
        fitting = sum(_split_of_cell(name, row[number]) is not None for row in self.cells)
        return 2 * fitting > len(self.cells)

    def _find_labels(self, names: list[str]) -> tuple[int | None, list[int]]:
        """The column of labels, or those of the classes."""
        label = next((names.index(name) for name in LABEL_COLUMNS if name in names), None)
        if label is not None:
            return label, []
        ids = {name for name in FILE_COLUMNS if name in names}
        rest = [
            number
            for number, name in enumerate(names)
            if name and number not in (self._file, self._split) and name not in ids and not name.startswith("unnamed:")
        ]
        if len(rest) == 1:
            return rest[0], []
        return None, [number for number in rest if self._is_class(number)]

    def _is_class(self, number: int) -> bool:
        """Whether a column has 0 and 1 in most rows; others of its values are then refused."""
        fitting = sum(row[number].lower() in _TRUTH for row in self.cells)
        return 2 * fitting >= len(self.cells) > 0

    @property
    def has_labels(self) -> bool:
        return self._label is not None or bool(self._classes)

    @cached_property
    def class_columns(self) -> list[str]:
        """The names of the classes that have a column."""
        return [self.columns[number] for number in self._classes]

    @property
    def label_column(self) -> str:
        return "" if self._label is None else self.columns[self._label]

    def label_cells(self) -> Iterator[str]:
        """The cells of the column of labels."""
        assert self._label is not None
        return (_unescaped(row[self._label]) for row in self.cells)

    def label_rows(self, separator: str | None) -> Iterator[Row]:
        """Rows, with the labels of a cell."""
        for line, cells, cell in zip(self._lines, self.cells, self.label_cells(), strict=True):
            yield self._row(line, cells, tuple(split_labels(cell, separator)))

    def one_hot_rows(self) -> Iterator[Row]:
        """Rows, with the classes whose columns have a 1."""
        names = [*zip(self._classes, self.class_columns, strict=True)]
        for line, cells in zip(self._lines, self.cells, strict=True):
            try:
                yield self._row(line, cells, tuple(name for number, name in names if _TRUTH[cells[number].lower()]))
            except KeyError:
                number, name = next(pair for pair in names if cells[pair[0]].lower() not in _TRUTH)
                raise UserError(
                    f"{printable(self.path)}, line {line}: {printable(repr(cells[number]))} in the column "
                    f"{printable(name)}; expected 0 or 1."
                ) from None

    def _row(self, line: int, cells: list[str], labels: tuple[str, ...]) -> Row:
        file = _unescaped(cells[self._file])
        if PurePosixPath(file).is_absolute() and is_inside(Path(file), self._root):
            file = os.path.relpath(file, self._root)
        if not file:
            raise UserError(f"{printable(self.path)}, line {line}: no file is named; expected {_EXPECTED}.")
        return Row(self.table, line, file, self._split_of(line, cells), labels)

    def _split_of(self, line: int, cells: list[str]) -> Split | None:
        if self._split is None:
            return self.table.split
        cell, column = cells[self._split], self.columns[self._split]
        split = _split_of_cell(_column_name(column), cell)
        if split is None:
            raise UserError(
                f"{printable(self.path)}, line {line}: {printable(repr(cell))} in the column {printable(column)} is no "
                "split; expected train, val or test."
            )
        return split


def _split_of_cell(column: str, cell: str) -> Split | None:
    """The split that a cell states; of a column that says whether a row is validation's, in its own way."""
    if column == "is_valid":
        is_valid = _TRUTH.get(cell.lower()) if cell else None
        return None if is_valid is None else "val" if is_valid else "train"
    return split_of(cell)


def _unescaped(cell: str) -> str:
    """A cell's text, where it is written as this package writes text that a spreadsheet would take for a formula."""
    text = from_csv_cell(cell)
    return text if text != cell and csv_cell(text) == cell else cell
