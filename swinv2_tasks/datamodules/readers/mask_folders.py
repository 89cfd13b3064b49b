"""Folders of images, and folders of their label maps beside them: the layout of most small datasets of scenes.

``images/`` and ``masks/`` (or what else they are called), both with a folder for each split, in a folder of each split,
or without splits; or ``train/`` and ``train_masks/``. A label map is called as its image, or ends in something that is
the same for all, as in ``1.jpg`` and ``1_mask.png``.
"""

from collections import Counter
from collections.abc import Collection
from pathlib import PurePosixPath

from swinv2_tasks.datamodules.layouts import Split, Tree, join
from swinv2_tasks.datamodules.readers.images import has_image_extension
from swinv2_tasks.datamodules.readers.scenes import ScenePair
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable

IMAGES = ("images", "image", "imgs", "img", "pngimages")
LABELS = ("masks", "mask", "labels", "label", "annotations", "segmentations", "gt", "ground_truth", "pedmasks")
"""What the folders are called, in lower case."""

SPLIT_ENDINGS = ("_masks", "_mask", "_labels", "_label", "annot", "_annot")
"""What a split's folder of label maps ends in, where it lies beside that of the images."""

IMAGE_ENDINGS = ("", "_image", "_img", "_sat", "-image", "-img")
"""What names of images may end in that those of label maps lack."""

_SPLITS: tuple[Split, ...] = ("train", "val", "test")

Folders = tuple[str, str]
"""A folder of images and one of label maps."""


class MaskFolders:
    """Images and label maps in folders.

    Args:
        tree: The dataset's folder.
        folders: Those of each split.
        has_splits: Whether they are of splits.
    """

    validation_settings = None
    class_names = None
    label_settings = None

    def __init__(self, tree: Tree, folders: dict[Split, Folders], has_splits: bool) -> None:
        self._tree = tree
        self._folders = folders
        self.has_splits = has_splits

    def has(self, split: Split) -> bool:
        """Whether there are folders of a split."""
        return split in self._folders

    def place(self, split: Split) -> str:
        """The folder of a split's images."""
        return str(self._tree.root / self._folders[split][0]) if self.has(split) else f"of {self._tree.root}"

    def pairs(self, split: Split) -> list[ScenePair]:
        """The images of a split and their label maps."""
        if not self.has(split):
            raise UserError(f"There are no images and label maps of the {split} split in {printable(self._tree.root)}.")
        images, labels = (self._tree.root / folder for folder in self._folders[split])
        image_names, label_names = (images_in(self._tree, folder) for folder in self._folders[split])
        if not image_names:
            raise UserError(f"There is no image in {printable(images)}.")
        label_of = match_names(image_names, label_names)
        return [(images / name, labels / label_of.get(name, f"{_base(name)}.png")) for name in image_names]


def match_names(images: list[str], labels: list[str]) -> dict[str, str]:
    """The label map of each image that has one.

    Args:
        images: Names of the images, with their subfolders.
        labels: Names of the label maps.

    Raises:
        UserError: Several label maps are of one name.
    """
    label_of: dict[str, str] = {}
    for name in labels:
        if label_of.setdefault(_base(name), name) != name:
            raise UserError(
                f"The label maps {printable(label_of[_base(name)])} and {printable(name)} are of one name: keep one."
            )
    for ending in IMAGE_ENDINGS:
        bases = {name: _base(name).removesuffix(ending) for name in images if _base(name).endswith(ending)}
        added = _common_ending(list(bases.values()), label_of)
        if added is not None:
            return {name: label_of[base + added] for name, base in bases.items() if base + added in label_of}
    return {}


def _base(name: str) -> str:
    """A name without what follows its last dot."""
    return str(PurePosixPath(name).with_suffix(""))


def _common_ending(bases: list[str], known: Collection[str]) -> str | None:
    """What is added to names of images to make those of label maps: what fits most; None where nothing does."""
    if any(base in known for base in bases):
        return ""
    endings = Counter(other[len(base) :] for base in bases[:50] for other in known if other.startswith(base))
    if not endings:
        return None
    return min(endings, key=lambda ending: (-endings[ending], len(ending), ending))


def images_in(tree: Tree, folder: str) -> list[str]:
    """The images in a folder and its subfolders, relative to it."""
    names = [name for name in tree.files(folder) if has_image_extension(name)]
    for below in tree.folders(folder):
        names += [join(below, name) for name in images_in(tree, join(folder, below))]
    return names


# ---- finding


def mask_folders(tree: Tree, names: Collection[str] = LABELS) -> tuple[dict[Split, Folders], bool]:
    """The folders of each split, and whether there are splits; without, all is the training's.

    Args:
        tree: The dataset's folder.
        names: What folders of label maps are called, in lower case.
    """
    both = _both(tree, "", names)
    if both is not None:
        images, labels = both
        within = {split: (tree.split_folder(split, images), tree.split_folder(split, labels)) for split in _SPLITS}
        splits = {split: (a, b) for split, (a, b) in within.items() if a is not None and b is not None}
        return (splits, True) if splits else ({"train": both}, False)

    of_splits: dict[Split, Folders] = {}
    for split in _SPLITS:
        folder = tree.split_folder(split)
        if folder is None:
            continue
        below = _both(tree, folder, names)
        beside = next((folder + ending for ending in SPLIT_ENDINGS if tree.has_folder(folder + ending)), None)
        if below is not None:
            of_splits[split] = below
        elif beside is not None:
            of_splits[split] = (folder, beside)
    return of_splits, True


def _both(tree: Tree, parent: str, names: Collection[str]) -> Folders | None:
    """The folders of images and of label maps below another one."""
    named = {name.lower(): join(parent, name) for name in tree.folders(parent)}
    images = next((named[name] for name in IMAGES if name in named), None)
    labels = next((named[name] for name in names if name in named), None)
    return None if images is None or labels is None else (images, labels)


def find_mask_folders(tree: Tree) -> str | None:
    """The folders of images and label maps, other than ADE20K's."""
    folders, _ = mask_folders(tree)
    if tree.has_folder("annotations/training") or tree.has_folder("annotations/validation"):
        return None
    with_maps = [(images, labels) for images, labels in folders.values() if images_in(tree, labels)]
    return ", ".join(f"{images}/ and {labels}/" for images, labels in with_maps) or None


def open_mask_folders(tree: Tree) -> MaskFolders:
    """The dataset in a folder."""
    return MaskFolders(tree, *mask_folders(tree))
