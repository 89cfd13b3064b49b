"""Folders of images for each class, in folders of their splits or alone: ``train/CLASS/*.JPEG``, or ``CLASS/*.jpg``."""

from pathlib import Path, PurePosixPath

from swinv2_tasks.datamodules.classes import Classes, classes_of_folders
from swinv2_tasks.datamodules.layouts import Split, Tree
from swinv2_tasks.datamodules.readers.image_lists import Sample, folder_samples, listed_samples
from swinv2_tasks.datamodules.readers.image_tables import find_tables
from swinv2_tasks.datamodules.readers.images import has_image_extension
from swinv2_tasks.errors import UserError
from swinv2_tasks.files import is_inside
from swinv2_tasks.text import printable

FEWEST_CLASSES = 2
"""Folders of images that a root must hold to be taken for class folders."""


class ClassFolders:
    """Folders of the splits, with a folder for each class in them; validation images may be named by a list instead.

    Args:
        root: The dataset's folder.
        folders: The folder of each split, relative to root.
        expected: What is expected in root, for messages.
        val_list: Text file of `relative/path label` lines, of validation images that are not in class folders.
        allow_empty: Whether a class may have a folder without images: where a class list says which classes there are.
    """

    has_splits = True
    validation_settings = "data.val_dir"
    multi_label = False
    table_names = ()

    def __init__(
        self,
        root: Path,
        folders: dict[Split, str],
        expected: str,
        val_list: Path | None = None,
        allow_empty: bool = False,
    ) -> None:
        self.root = root
        self._folders = folders
        self._expected = expected
        self._val_list = val_list
        self._allow_empty = allow_empty

    def classes(self) -> Classes:
        """The class folders of the training images, or of the validation's where there are no others."""
        return classes_of_folders(self._folder("train" if self.has("train") else "val"))

    def has(self, split: Split) -> bool:
        """Whether there is a folder of a split."""
        return split in self._folders and (self.root / self._folders[split]).is_dir()

    def place(self, split: Split) -> str:
        """The folder of a split."""
        return str(self.root / self._folders.get(split, split))

    def samples(self, split: Split, classes: Classes) -> list[Sample]:
        """The images of a split and their labels, as folders and lists have them."""
        folder = self._folder(split)
        if split == "val" and self._val_list is not None:
            own_root = self.root if is_inside(folder, self.root) else folder  # which lists may not leave
            return listed_samples(folder, own_root, self._val_list, classes)
        return folder_samples(folder, classes, f"data.{split}_dir={self._folders[split]}", self._allow_empty)

    def _folder(self, split: Split) -> Path:
        """The folder of a split, made sure that it exists."""
        folder = self.root / self._folders[split]
        if not folder.is_dir():
            raise UserError(f"The dataset folder {printable(folder)} does not exist. {self._expected}")
        return folder


class WholeClassFolders:
    """Class folders in the dataset's folder itself, without splits.

    Args:
        root: The dataset's folder.
        allow_empty: Whether a class may have a folder without images.
    """

    has_splits = False
    validation_settings = None
    multi_label = False
    table_names = ()

    def __init__(self, root: Path, allow_empty: bool = False) -> None:
        self.root = root
        self._allow_empty = allow_empty

    def classes(self) -> Classes:
        """The folders."""
        return classes_of_folders(self.root)

    def has(self, split: Split) -> bool:
        """All images are the training's."""
        return split == "train"

    def place(self, split: Split) -> str:
        """The dataset's folder."""
        return str(self.root)

    def samples(self, split: Split, classes: Classes) -> list[Sample]:
        """The images and their labels."""
        return folder_samples(self.root, classes, "data.root", self._allow_empty)


def split_folders(tree: Tree, stated: dict[Split, str]) -> dict[Split, str]:
    """The folders of the splits: those that settings name, else what they are usually called."""
    folders = dict(stated)
    splits: tuple[Split, ...] = ("train", "val", "test")
    for split in splits:
        if stated.get(split, split) == split and (usual := tree.split_folder(split)) is not None:
            folders[split] = usual
    return folders


def find_class_folders(tree: Tree, stated: dict[Split, str]) -> str | None:
    """The folders of splits that hold folders."""
    names = split_folders(tree, stated).values()
    return ", ".join(f"{name}/CLASS/" for name in names if _has_folders(tree, name)) or None


def _has_folders(tree: Tree, name: str) -> bool:
    """Whether there are folders in a folder, which settings may name anywhere."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        folder = tree.root / name
        return folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir() if not entry.name.startswith("."))
    return bool(tree.folders(name))


def find_whole_class_folders(tree: Tree) -> str | None:
    """The folders of images in the root, where these are no splits, and no table says what is in them."""
    if split_folders(tree, {}) or any(has_image_extension(name) for name in tree.files()) or find_tables(tree):
        return None
    with_images = [name for name in tree.folders() if any(map(has_image_extension, tree.files(name)))]
    if len(with_images) < FEWEST_CLASSES or len(with_images) < len(tree.folders()):
        return None
    return f"{len(with_images)} class folders without splits"
