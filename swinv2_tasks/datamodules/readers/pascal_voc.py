"""Pascal VOC's layout: an XML file of each image's objects, in ``Annotations/`` or beside the images.

Splits are lists in ``ImageSets/Main/``, or folders of images with their XML files.

VOC counts pixels from 1 and includes both edges of a box, so its left and upper edges are one less here
(https://host.robots.ox.ac.uk/pascal/VOC/voc2012/). Some annotation tools count from 0: a dataset in which any box
begins at 0 is read so, which is said. Objects marked as difficult count as crowds do: training leaves them out, and in
evaluation they are neither found nor missed.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.child_processes import available_cores
from swinv2_tasks.datamodules.classes import abbreviate, read_lines
from swinv2_tasks.datamodules.layouts import Split, Tree
from swinv2_tasks.datamodules.readers.annotations import CocoAnnotations
from swinv2_tasks.datamodules.readers.images import has_image_extension
from swinv2_tasks.datamodules.readers.objects import FaultTolerant, Sizes, annotations_of
from swinv2_tasks.datamodules.readers.packed_images import CocoImage, CocoObject
from swinv2_tasks.datamodules.readers.yolo import polygon_area
from swinv2_tasks.errors import UserError
from swinv2_tasks.outside_files import read_bytes
from swinv2_tasks.text import printable, say

MOST_XML_BYTES = 2**22
"""Of the annotations of an image: some 10,000 objects."""

VOC_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""VOC's own classes, in their order."""

LISTS = "ImageSets/Main"
"""The folder of the lists of splits."""

_EDGES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocObject:
    """An object of an XML file, with coordinates as they are written."""

    name: str
    edges: tuple[float, float, float, float]
    """Left, top, right and bottom."""
    polygons: tuple[tuple[float, ...], ...]
    difficult: bool


@dataclass(frozen=True)
class VocFiles:
    """An image file and the XML file of its objects."""

    image: Path
    objects: Path


class VocSource(FaultTolerant):
    """Images, and XML files of their objects.

    Args:
        root: The dataset's folder.
        files: The images of each split.
        listings: Where these are listed, for messages.
        incomplete: Of each split, what is wrong with its list or folder: files are missing.
        sizes: Reads the sizes of images.
    """

    validation_settings = None

    def __init__(
        self,
        root: Path,
        files: dict[Split, list[VocFiles]],
        listings: dict[Split, str],
        incomplete: dict[Split, list[str]],
        sizes: Sizes,
    ) -> None:
        self.root = root
        self.has_splits = "val" in files or "test" in files
        self._files = files
        self._listings = listings
        self._incomplete = incomplete
        self._sizes = sizes

    def categories(self) -> tuple[list[int], list[str]]:
        """VOC's 20 classes, where there are no others; else the names that objects have, sorted. Ids count from 1."""
        names = {entry.name for images in self._objects.values() for objects in images for entry in objects}
        ordered = list(VOC_NAMES) if names <= set(VOC_NAMES) else sorted(names)
        if not names:
            raise UserError(f"There is no object in the annotations of {printable(self.root)}.")
        return list(range(1, len(ordered) + 1)), ordered

    def has(self, split: Split) -> bool:
        """Whether there are images of a split."""
        return split in self._files

    def place(self, split: Split) -> str:
        """The list or the folder of a split."""
        return self._listings.get(split, str(self.root / LISTS / f"{split}.txt"))

    def read(self, split: Split) -> tuple[CocoAnnotations, Path]:
        """What is annotated in a split; file names are relative to the dataset's folder."""
        if not self.has(split):
            raise UserError(f"There are no images of the {split} split: {printable(self.place(split))} is not there.")
        ids, names = self.categories()
        return annotations_of(Path(self.place(split)), self._annotated(split, names), ids, names), self.root

    def images(self, split: Split) -> list[Path]:
        """The images of a split."""
        return [entry.image for entry in self._files[split]]

    @cached_property
    def _objects(self) -> dict[Split, list[list[VocObject]]]:
        """The objects of each image of each split."""
        objects: dict[Split, list[list[VocObject]]] = {}
        for split, entries in self._files.items():
            for problem in self._incomplete[split]:
                self.fault(split, Path(self.place(split)), problem)
            paths = [entry.objects for entry in entries]
            with ThreadPoolExecutor(min(8, available_cores())) as pool:
                files = list(pool.map(parse_objects, paths))
            for path, (_, problems) in zip(paths, files, strict=True):
                for problem in problems:
                    self.fault(split, path, problem)
            objects[split] = [own for own, _ in files]
        return objects

    @cached_property
    def _first(self) -> int:
        """What the first row and column are called: 1, as in VOC, or 0."""
        smallest = min(
            (min(entry.edges[:2]) for images in self._objects.values() for objects in images for entry in objects),
            default=1.0,
        )
        if smallest >= 1:
            return 1
        rank_zero_only(say)(
            f"{printable(self.root)}: boxes begin at {smallest:g}, so their coordinates count from 0, not from 1 as "
            "VOC's do"
        )
        return 0

    def _annotated(self, split: Split, names: list[str]) -> Iterator[CocoImage]:
        label_of = {name: label for label, name in enumerate(names)}
        next_id = 1
        for number, path, height, width in self._sizes([entry.image for entry in self._files[split]]):
            objects = []
            for entry in self._objects[split][number]:
                objects.append(self._object(entry, next_id, label_of[entry.name]))
                next_id += 1
            yield CocoImage(number + 1, str(path.relative_to(self.root)), height, width, tuple(objects))

    def _object(self, entry: VocObject, object_id: int, label: int) -> CocoObject:
        left, top, right, bottom = entry.edges
        left, top = left - self._first, top - self._first
        polygons = [[value - self._first for value in polygon] for polygon in entry.polygons]
        area = sum(polygon_area(polygon[::2], polygon[1::2]) for polygon in polygons)
        box = (left, top, right - left, bottom - top)
        return CocoObject(object_id, label, box, area or box[2] * box[3], entry.difficult, polygons or None)


# ---- XML


def parse_objects(path: Path) -> tuple[list[VocObject], list[str]]:
    """The objects of an XML file, and what is wrong in it: it cannot be read, or objects lack a name or a box."""
    try:
        root = ElementTree.fromstring(read_bytes(path, MOST_XML_BYTES))
    except OSError as error:
        return [], [f"Cannot read the annotations {printable(path)}: {error.strerror}."]
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        return [], [f"The annotations {printable(path)} are no XML: {error}. Export the file again."]
    objects, problems = [], []
    for number, entry in enumerate(root.iter("object"), start=1):
        try:
            objects.append(_object(path, number, entry))
        except UserError as error:
            problems.append(str(error))
    return objects, problems


def _object(path: Path, number: int, entry: ElementTree.Element) -> VocObject:
    where = f"object {number} of {printable(path)}"
    name = (entry.findtext("name") or "").strip()
    box = entry.find("bndbox")
    if not name or box is None:
        raise UserError(f"{where} lacks its {'bndbox' if name else 'name'}. Mend the file.")
    left, top, right, bottom = (_number(box.findtext(edge), edge, where) for edge in _EDGES)
    if right < left or bottom < top:
        raise UserError(f"{where} ends before it begins: xmin {left:g}, xmax {right:g}, ymin {top:g}, ymax {bottom:g}.")
    polygons = tuple(_polygon(polygon, where) for polygon in entry.findall("polygon"))
    difficult = (entry.findtext("difficult") or "0").strip() == "1"
    return VocObject(name, (left, top, right, bottom), polygons, difficult)


def _polygon(polygon: ElementTree.Element, where: str) -> tuple[float, ...]:
    """The corners, as x1, y1, x2, y2, … name them."""
    corners: list[float] = []
    number = 1
    while polygon.find(f"x{number}") is not None:
        corners += [_number(polygon.findtext(f"{axis}{number}"), f"{axis}{number}", where) for axis in "xy"]
        number += 1
    if len(corners) < 6:
        raise UserError(f"{where} has a polygon of {len(corners) // 2} corners; expected three or more.")
    return tuple(corners)


def _number(text: str | None, name: str, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > 1e6:
        raise UserError(f"{where} has {name} {printable((text or '').strip()[:20])!r}; expected a number of pixels.")
    return value


# ---- finding


def find_voc(tree: Tree) -> str | None:
    """The folder of XML files, or the folders of splits in which they lie beside images."""
    if any(name.lower().endswith(".xml") for name in tree.files("Annotations")):
        return "Annotations/*.xml"
    return ", ".join(f"{name}/*.xml" for name in _folders_with_xml(tree).values()) or None


def _folders_with_xml(tree: Tree) -> dict[Split, str]:
    """The folders of splits that hold XML files; the root as the training's, where it holds some itself."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    folders = {split: tree.split_folder(split) for split in splits}
    with_xml = {
        split: folder
        for split, folder in folders.items()
        if folder is not None and any(name.lower().endswith(".xml") for name in tree.files(folder))
    }
    if not with_xml and any(name.lower().endswith(".xml") for name in tree.files()):
        return {"train": ""}
    return with_xml


def open_voc(tree: Tree, sizes: Sizes) -> VocSource:
    """The dataset in a folder.

    Raises:
        UserError: Images or XML files are missing.
    """
    if find_voc(tree) != "Annotations/*.xml":
        folders = _folders_with_xml(tree)
        pairs = {split: _beside(tree, folder) for split, folder in folders.items()}
        listings = {split: str(tree.root / name) for split, name in folders.items()}
        return _source_of(tree.root, pairs, listings, sizes)

    folder = "JPEGImages" if tree.has_folder("JPEGImages") else "images"
    image_of = {Path(name).stem: name for name in tree.files(folder) if has_image_extension(name)}
    if not image_of:
        raise UserError(f"There are no images in {printable(tree.root / 'JPEGImages')}, whose objects Annotations has.")

    lists = _lists(tree)
    names = {split: read_list(tree.root / file) for split, file in lists.items()}
    if not names:
        names = {"train": sorted(image_of)}
        lists = {"train": folder}
    pairs = {split: _named(tree, folder, image_of, members, lists[split]) for split, members in names.items()}
    return _source_of(tree.root, pairs, {split: str(tree.root / name) for split, name in lists.items()}, sizes)


def _source_of(
    root: Path, pairs: dict[Split, tuple[list[VocFiles], list[str]]], listings: dict[Split, str], sizes: Sizes
) -> VocSource:
    files = {split: own for split, (own, _) in pairs.items()}
    incomplete = {split: problems for split, (_, problems) in pairs.items()}
    return VocSource(root, files, listings, incomplete, sizes)


def _lists(tree: Tree) -> dict[Split, str]:
    """The lists of the splits; trainval is the training's where there are no others."""
    candidates: tuple[tuple[Split, str], ...] = (("train", "train"), ("val", "val"), ("test", "test"))
    lists = {split: f"{LISTS}/{name}.txt" for split, name in candidates if tree.has_file(f"{LISTS}/{name}.txt")}
    if "train" not in lists and tree.has_file(f"{LISTS}/trainval.txt"):
        lists["train"] = f"{LISTS}/trainval.txt"
    return lists


def read_list(path: Path) -> list[str]:
    """The names in a list of a split, each the first word of a line.

    Raises:
        UserError: It cannot be read, or is empty.
    """
    lines = read_lines(path, "list of images", "a name per line")
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise UserError(f"{printable(path)} lists no image.")
    return names


def _named(
    tree: Tree, folder: str, image_of: dict[str, str], names: list[str], where: str
) -> tuple[list[VocFiles], list[str]]:
    """The files of the images on a list, and which of them are not there."""
    problems = []
    with_objects = {Path(name).stem for name in tree.files("Annotations") if name.lower().endswith(".xml")}
    for what, known in (("no image in JPEGImages", image_of), ("no XML file in Annotations", with_objects)):
        missing = [name for name in names if name not in known]
        if missing:
            problems.append(
                f"{len(missing)} of {len(names)} names in {printable(tree.root / where)} have {what}: "
                f"{abbreviate(missing)}. Add the files, or take the names off the list."
            )
    images, objects = tree.root / folder, tree.root / "Annotations"
    there = [name for name in names if name in image_of and name in with_objects]
    return [VocFiles(images / image_of[name], objects / f"{name}.xml") for name in there], problems


def _beside(tree: Tree, folder: str) -> tuple[list[VocFiles], list[str]]:
    """The images of a folder with the XML files beside them, and which of them have none.

    Raises:
        UserError: There are no images.
    """
    images = [name for name in tree.files(folder) if has_image_extension(name)]
    xml_of = {Path(name).stem: name for name in tree.files(folder) if name.lower().endswith(".xml")}
    missing = [name for name in images if Path(name).stem not in xml_of]
    here = tree.root / folder
    if not images:
        raise UserError(f"{printable(here)}: there are XML files but no images.")
    what = f"{len(missing)} of {len(images)} images have no XML file beside them: {abbreviate(missing)}"
    problems = [f"{printable(here)}: {what}."] if missing else []
    with_objects = [name for name in images if name not in missing]
    return [VocFiles(here / name, here / xml_of[Path(name).stem]) for name in with_objects], problems
