"""Pascal VOC's layout of scenes: ``JPEGImages/*.jpg``, ``SegmentationClass/*.png``, ``ImageSets/Segmentation/*.txt``.

Label maps are palette images whose numbers are the classes: 0 is the background, a class, and 255 the seams between
objects, which are left out. Tools that export this layout write colors instead, and which they are to labelmap.txt.
"""

from pathlib import Path

from PIL import Image

from swinv2_tasks.datamodules.classes import abbreviate, read_lines
from swinv2_tasks.datamodules.layouts import Split, Tree
from swinv2_tasks.datamodules.readers.images import FORMATS, describe_error, has_image_extension
from swinv2_tasks.datamodules.readers.label_values import LabelSettings
from swinv2_tasks.datamodules.readers.pascal_voc import VOC_NAMES, read_list
from swinv2_tasks.datamodules.readers.scenes import ScenePair
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable

NAMES = ("background", *VOC_NAMES)
"""VOC's own classes, in the order of their numbers."""

LISTS = "ImageSets/Segmentation"
LABELS = "SegmentationClass"
LABEL_MAP = "labelmap.txt"
"""Lines of `NAME:R,G,B:PARTS:ACTIONS`, as annotation tools write them."""


class VocScenes:
    """Images and label maps in two folders, of which lists name those of a split.

    Args:
        root: The dataset's folder.
        pairs: The images and label maps of each split.
        lists: The list of each split, relative to root.
        class_names: Names of the classes; None: a class list in root says them.
        label_settings: What label maps hold.
    """

    validation_settings = None

    def __init__(
        self,
        root: Path,
        pairs: dict[Split, list[ScenePair]],
        lists: dict[Split, str],
        class_names: list[str] | None,
        label_settings: LabelSettings,
    ) -> None:
        self.root = root
        self.has_splits = "val" in pairs or "test" in pairs
        self.class_names = class_names
        self.label_settings = label_settings
        self._pairs = pairs
        self._lists = lists

    def has(self, split: Split) -> bool:
        """Whether there is a list of a split."""
        return split in self._pairs

    def place(self, split: Split) -> str:
        """The list of a split."""
        return str(self.root / self._lists.get(split, f"{LISTS}/{split}.txt"))

    def pairs(self, split: Split) -> list[ScenePair]:
        """The images of a split and their label maps."""
        if not self.has(split):
            raise UserError(f"There is no list {printable(self.place(split))} of images.")
        return self._pairs[split]


def find_voc_scenes(tree: Tree) -> str | None:
    """The folder of label maps beside that of images."""
    return f"{LABELS}/*.png" if tree.has_folder("JPEGImages") and tree.files(LABELS) else None


def open_voc_scenes(tree: Tree) -> VocScenes:
    """The dataset in a folder.

    Raises:
        UserError: A list names images that are not there, or label maps hold colors that nothing explains.
    """
    image_of = {Path(name).stem: name for name in tree.files("JPEGImages") if has_image_extension(name)}
    labels = [name for name in tree.files(LABELS) if has_image_extension(name)]
    splits: tuple[Split, ...] = ("train", "val", "test")
    lists = {split: f"{LISTS}/{split}.txt" for split in splits if tree.has_file(f"{LISTS}/{split}.txt")}
    if "train" not in lists and tree.has_file(f"{LISTS}/trainval.txt"):
        lists["train"] = f"{LISTS}/trainval.txt"
    names = {split: read_list(tree.root / name) for split, name in lists.items()}
    if not names:
        lists, names = {"train": LABELS}, {"train": [Path(name).stem for name in labels]}

    pairs: dict[Split, list[ScenePair]] = {}
    for split, members in names.items():
        if missing := [name for name in members if name not in image_of]:
            raise UserError(
                f"{len(missing)} of {len(members)} names in {printable(tree.root / lists[split])} have no image in "
                f"JPEGImages: {abbreviate(missing)}. Add the files, or take the names off the list."
            )
        pairs[split] = [
            (tree.root / "JPEGImages" / image_of[name], tree.root / LABELS / f"{name}.png") for name in members
        ]
    class_names, settings = _labels(tree, labels)
    return VocScenes(tree.root, pairs, lists, class_names, settings)


def _labels(tree: Tree, files: list[str]) -> tuple[list[str] | None, LabelSettings]:
    """The names of the classes, where they are known, and what label maps hold."""
    has_map = tree.has_file(LABEL_MAP)
    if not _has_colors(tree.root / LABELS / files[0]):
        names = [name for name, _ in read_label_map(tree.root / LABEL_MAP)] if has_map else None
        has_list = any(tree.has_file(name) for name in ("class_names.txt", "classes.txt", "labels.txt"))
        return names or (None if has_list else list(NAMES)), LabelSettings(background="class", ignore_label=255)

    if has_map:
        rows = read_label_map(tree.root / LABEL_MAP)
        return [name for name, _ in rows], LabelSettings(palette=[color for _, color in rows])
    palette = [list(voc_color(number)) for number in range(len(NAMES))]
    return list(NAMES), LabelSettings(palette=palette, ignore_label=[list(voc_color(255))])


def _has_colors(path: Path) -> bool:
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.mode in ("RGB", "RGBA")
    except Exception as error:  # Pillow raises whatever the bytes provoke
        raise UserError(f"Cannot read the label map {printable(path)}: {describe_error(error)}. Replace it.") from error


def read_label_map(path: Path) -> list[tuple[str, list[int]]]:
    """Names and colors [R, G, B] of the lines of labelmap.txt.

    Raises:
        UserError: A line is not of that form.
    """
    rows = []
    for number, line in enumerate(read_lines(path, "label map", "NAME:R,G,B:: lines"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        channels = rest.partition(":")[0].split(",")
        if len(channels) != 3 or not all(channel.strip().isdecimal() for channel in channels):
            raise UserError(f"{printable(path)}, line {number}: expected NAME:R,G,B::, found {printable(line[:60])!r}.")
        rows.append((name.strip(), [int(channel) for channel in channels]))
    return rows


def voc_color(number: int) -> tuple[int, int, int]:
    """The color of a class in VOC's palette: its bits, lowest first, become the highest bits of R, G and B in turn."""
    red = green = blue = 0
    for position in range(7, -1, -1):
        red |= (number & 1) << position
        green |= (number >> 1 & 1) << position
        blue |= (number >> 2 & 1) << position
        number >>= 3
    return red, green, blue
