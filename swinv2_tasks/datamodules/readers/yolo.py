"""YOLO's layout: data.yaml names classes and folders; each image has a text file of its objects.

A line of such a file is `CLASS X Y WIDTH HEIGHT`, with the box's center, or `CLASS X1 Y1 X2 Y2 X3 Y3 …`, a polygon; all
as fractions of the image's width and height. The file lies where the image does, with the folder `images` replaced by
`labels`. An image without one has no objects.

Format: https://docs.ultralytics.com/datasets/detect/
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from swinv2_tasks.datamodules.classes import abbreviate, read_lines
from swinv2_tasks.datamodules.layouts import Split, Tree, join
from swinv2_tasks.datamodules.readers.annotations import CocoAnnotations
from swinv2_tasks.datamodules.readers.images import list_images
from swinv2_tasks.datamodules.readers.objects import FaultTolerant, Sizes, annotations_of
from swinv2_tasks.datamodules.readers.packed_images import CocoImage, CocoObject
from swinv2_tasks.errors import UserError
from swinv2_tasks.files import is_inside
from swinv2_tasks.outside_files import MOST_CONFIG_BYTES, load_yaml, read_text
from swinv2_tasks.text import printable

CLASS_LISTS = ("classes.txt", "labels/classes.txt", "obj.names")
"""Files that name the classes, where there is no data.yaml."""

_SPLIT_KEYS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}

SLACK = 0.01
"""By how much a coordinate may lie outside of the image, as a fraction of its side, which rounding explains."""


class YoloSource(FaultTolerant):
    """Images, and text files of their objects.

    Args:
        root: The dataset's folder.
        names: Of the classes.
        folders: The folders of images of each split, or text files that list images.
        where: What names the classes and folders, for messages.
        sizes: Reads the sizes of images.
    """

    validation_settings = None

    def __init__(
        self,
        root: Path,
        names: list[str],
        folders: dict[Split, list[Path]],
        where: Path,
        sizes: Sizes,
    ) -> None:
        self.root = root
        self.has_splits = "val" in folders or "test" in folders
        self._names = names
        self._folders = folders
        self._where = where
        self._sizes = sizes
        self._listed: dict[Split, list[Path]] = {}

    def categories(self) -> tuple[list[int], list[str]]:
        """Ids from 0, and the names."""
        return list(range(len(self._names))), self._names

    def has(self, split: Split) -> bool:
        """Whether there are images of a split."""
        return any(path.exists() for path in self._folders.get(split, []))

    def place(self, split: Split) -> str:
        """The folders or lists of a split."""
        return ", ".join(map(str, self._folders.get(split, []))) or f"of {self._where}"

    def read(self, split: Split) -> tuple[CocoAnnotations, Path]:
        """What is annotated in a split; file names are relative to the dataset's folder."""
        if not self.has(split):
            raise UserError(f"{printable(self._where)} names no images of the {split} split that are there.")
        return annotations_of(self._where, self._annotated(split), *self.categories()), self.root

    def images(self, split: Split) -> list[Path]:
        """The images of a split, in its folders or lists, which are read once."""
        if split not in self._listed:
            self._listed[split] = [path for folder in self._folders[split] for path in self._images(split, folder)]
        return self._listed[split]

    def stray_label_files(self) -> list[Path]:
        """Text files beside those of the images, of all splits, that are of no image."""
        files = {label_file(path) for split in self._folders if self.has(split) for path in self.images(split)}
        lists = {Path(name).name for name in CLASS_LISTS}
        beside = {path for folder in {file.parent for file in files} for path in folder.glob("*.txt")}
        return sorted(path for path in beside - files if path.name not in lists)

    def _images(self, split: Split, source: Path) -> list[Path]:
        """The images in a folder, or those that a text file lists."""
        if source.is_dir():
            return list_images(source)
        lines = read_lines(source, "list of images", "a path per line")
        paths = []
        for line in lines:
            try:
                paths += [_inside(self.root, line.strip(), source.parent)] if line.strip() else []
            except UserError as error:
                self.fault(split, source, str(error))
        if not paths:
            raise UserError(f"{printable(source)} lists no image.")
        return paths

    def _annotated(self, split: Split) -> Iterator[CocoImage]:
        next_id = 1
        for number, path, height, width in self._sizes(self.images(split)):
            objects = self._objects(split, label_file(path), next_id, height, width)
            next_id += len(objects)
            yield CocoImage(number + 1, str(path.relative_to(self.root)), height, width, tuple(objects))

    def _objects(self, split: Split, file: Path, first_id: int, height: int, width: int) -> list[CocoObject]:
        objects: list[CocoObject] = []
        try:
            lines = read_lines(file, "labels", "CLASS X Y WIDTH HEIGHT") if file.is_file() else []
        except UserError as error:
            self.fault(split, file, str(error))
            return objects
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{printable(file)}, line {number}"
            try:
                objects.append(self._object(line, where, first_id + len(objects), height, width))
            except UserError as error:
                self.fault(split, file, str(error))
        return objects

    def _object(self, line: str, where: str, object_id: int, height: int, width: int) -> CocoObject:
        label, shares = self._parse(line, where)
        size = (width, height)
        if len(shares) == 4:
            center_x, center_y, share_x, share_y = shares
            box = (
                (center_x - share_x / 2) * width,
                (center_y - share_y / 2) * height,
                share_x * width,
                share_y * height,
            )
            return CocoObject(object_id, label, box, box[2] * box[3], False, None)

        polygon = [share * size[index % 2] for index, share in enumerate(shares)]
        columns, rows = polygon[::2], polygon[1::2]
        box = (min(columns), min(rows), max(columns) - min(columns), max(rows) - min(rows))
        return CocoObject(object_id, label, box, polygon_area(columns, rows), False, [polygon])

    def _parse(self, line: str, where: str) -> tuple[int, list[float]]:
        """The class and the coordinates of a line, as fractions of the image's sides."""
        fields = line.split()
        if len(fields) == 6:  # a confidence, as predictions have it
            raise UserError(
                f"{where}: there are 6 numbers, as in predictions with their confidence. Expected labels: CLASS X Y "
                "WIDTH HEIGHT, or CLASS and the corners of a polygon."
            )
        if len(fields) != 5 and (len(fields) < 7 or len(fields) % 2 == 0):
            raise UserError(
                f"{where}: there are {len(fields)} numbers; expected CLASS X Y WIDTH HEIGHT, or CLASS and X Y of three "
                "corners or more."
            )
        try:
            label, shares = float(fields[0]), [float(field) for field in fields[1:]]
        except ValueError:
            raise UserError(f"{where}: {line.strip()[:60]!r} is not made of numbers; mend the line.") from None

        if not label.is_integer() or not 0 <= label < len(self._names):
            raise UserError(
                f"{where}: the class is {fields[0][:20]}; {printable(self._where)} has {len(self._names)} classes, 0 "
                f"to {len(self._names) - 1}."
            )
        if not all(map(math.isfinite, shares)) or min(shares) < -SLACK or max(shares) > 1 + SLACK:
            raise UserError(
                f"{where}: expected shares of the image's width and height, from 0 to 1; there is "
                f"{max(shares, key=abs):g}. Divide pixels by the image's size."
            )
        return int(label), shares


def polygon_area(columns: list[float], rows: list[float]) -> float:
    """Area in pixels that a polygon encloses."""
    pairs = zip(columns, rows, columns[1:] + columns[:1], rows[1:] + rows[:1], strict=True)
    return abs(sum(x * next_y - next_x * y for x, y, next_x, next_y in pairs)) / 2


def label_file(image: Path) -> Path:
    """The text file of an image's objects: the last folder `images` of its path replaced by `labels`."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


# ---- finding


def find_yolo(tree: Tree) -> str | None:
    """The YAML file beside folders of labels, or folders of images and labels without one."""
    with_labels = [parent for parent in ("", *tree.folders()) if tree.has_folder(join(parent, "labels"))]
    names = [name for name in tree.files() if name.lower().endswith((".yaml", ".yml"))]
    has_data = [name for name in names if name.lower() in ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")]
    if has_data or (with_labels and len(names) == 1):
        return (has_data or names)[0]
    folders = [join(parent, "labels") for parent in with_labels if _has_label_files(tree, join(parent, "labels"))]
    return ", ".join(f"{name}/*.txt" for name in folders) or None


def _has_label_files(tree: Tree, name: str) -> bool:
    folders = [name, *(join(name, below) for below in tree.folders(name))]
    return any(file.endswith(".txt") for folder in folders for file in tree.files(folder))


def open_yolo(tree: Tree, sizes: Sizes) -> YoloSource:
    """The dataset in a folder.

    Raises:
        UserError: data.yaml cannot be read or is not as it should be, or nothing names the classes.
    """
    evidence = find_yolo(tree)
    assert evidence is not None
    if not evidence.endswith(".txt"):
        return _open_yaml(tree, evidence, sizes)

    lists = [name for name in CLASS_LISTS if tree.has_file(name)]
    if not lists:
        raise UserError(
            f"{printable(tree.root)} has labels in YOLO's format, but nothing that names their classes: write a "
            "data.yaml with names: [NAME, …], or a classes.txt with a name per line."
        )
    where = tree.root / lists[0]
    names = [line.strip() for line in read_lines(where, "class list", "a name per line") if line.strip()]
    return YoloSource(tree.root, _checked_names(names, where), _usual_folders(tree), where, sizes)


def _usual_folders(tree: Tree) -> dict[Split, list[Path]]:
    """The folders of images: images/SPLIT, SPLIT/images, or images alone, which is the training's."""
    folders: dict[Split, list[Path]] = {}
    splits: tuple[Split, ...] = ("train", "val", "test")
    for split in splits:
        above, below = tree.split_folder(split), tree.split_folder(split, "images")
        if below is not None:
            folders[split] = [tree.root / below]
        elif above is not None and tree.has_folder(join(above, "images")):
            folders[split] = [tree.root / above / "images"]
    return folders or {"train": [tree.root / "images"]}


def _open_yaml(tree: Tree, name: str, sizes: Sizes) -> YoloSource:
    where = tree.root / name
    try:
        content = load_yaml(read_text(where, MOST_CONFIG_BYTES, encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"Cannot read {printable(where)}: {error.strerror}.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{printable(where)} is no YAML: {str(error).splitlines()[0]}.") from error

    if not isinstance(content, dict) or "names" not in content:
        raise UserError(
            f"{printable(where)} has no names of classes; expected names: [NAME, …] and train, val: FOLDER."
        )
    names = _names(content["names"], where)
    if content.get("nc", len(names)) != len(names):
        raise UserError(f"{printable(where)} has {len(names)} names, but nc: {content['nc']}. Mend one of them.")

    folders: dict[Split, list[Path]] = {}
    for split, keys in _SPLIT_KEYS.items():
        entry = next((content[key] for key in keys if content.get(key)), None)
        if entry is not None:
            folders[split] = _entries(tree.root, content.get("path"), entry, f"{printable(where)}, {split}")
    if "train" not in folders and "val" not in folders:
        folders = _usual_folders(tree)
    return YoloSource(tree.root, names, folders, where, sizes)


def _names(value: Any, where: Path) -> list[str]:
    if isinstance(value, dict) and sorted(value, key=str) == sorted(range(len(value)), key=str):
        value = [value[index] for index in range(len(value))]
    if not isinstance(value, list) or not all(isinstance(name, str | int) for name in value):
        raise UserError(f"{printable(where)}: names is no list of names, nor are their keys 0, 1, …")
    return _checked_names([str(name) for name in value], where)


def _checked_names(names: list[str], where: Path) -> list[str]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not names or repeated:
        what = f"repeats {abbreviate(repeated)}" if names else "has no names"
        raise UserError(f"{printable(where)} {what}; expected a name of its own for each class.")
    return names


def _entries(root: Path, base: Any, entry: Any, where: str) -> list[Path]:
    """The folders or lists that an entry of data.yaml names, which all lie in the dataset's folder."""
    items = entry if isinstance(entry, list) else [entry]
    if not all(isinstance(item, str) for item in items):
        raise UserError(f"{where} is {str(entry)[:60]}; expected a folder of images, or a list of such.")
    bases = [root] if not isinstance(base, str) else [root / base, root]
    return [_existing(root, bases, item) for item in items]


def _existing(root: Path, bases: list[Path], item: str) -> Path:
    """Where a folder is that data.yaml names: below its `path`, or in the dataset's folder.

    Many have paths of the machine that they were written on, or begin with `../`: then the folder of the same end
    counts.
    """
    candidates = [base / item for base in bases]
    parts = [part for part in Path(item).parts if part not in ("..", ".", "/")]
    candidates += [root.joinpath(*parts[start:]) for start in range(len(parts))]
    inside = [candidate for candidate in candidates if is_inside(candidate, root)]
    return next((candidate for candidate in inside if candidate.exists()), inside[0] if inside else root / parts[-1])


def _inside(root: Path, line: str, folder: Path) -> Path:
    """The image that a line of a list names, relative to the list or to the dataset's folder."""
    for base in (root, folder):
        if is_inside(base / line, root) and (base / line).is_file():
            return base / line
    path = root / line
    if not is_inside(path, root):
        raise UserError(f"A list names the image {printable(line)}, which lies outside of {printable(root)}.")
    return path
