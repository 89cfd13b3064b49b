"""ADE20K's layout: ``images/SPLIT/*.jpg``, and label maps of the same names in ``annotations/SPLIT/*.png``."""

from pathlib import Path

from swinv2_tasks.datamodules.layouts import Split, Tree
from swinv2_tasks.datamodules.readers.images import list_images
from swinv2_tasks.datamodules.readers.scenes import ScenePair
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable


class ADE20KSource:
    """Folders of images and of label maps, with a folder for each split in both.

    Args:
        root: The dataset's folder.
        folders: The name of each split's folder, in images and in annotations.
        expected: What is expected in root, for messages.
    """

    has_splits = True
    validation_settings = "data.val_dir"
    class_names = None
    label_settings = None

    def __init__(self, root: Path, folders: dict[Split, str], expected: str) -> None:
        self.root = root
        self._folders = folders
        self._expected = expected

    def has(self, split: Split) -> bool:
        """Whether there are label maps of a split."""
        return split in self._folders and self._labels(split).is_dir()

    def place(self, split: Split) -> str:
        """The folder of a split's images, or of its label maps where only these are missing."""
        folder = self._images(split)
        return str(self._labels(split) if folder.is_dir() else folder)

    def pairs(self, split: Split) -> list[ScenePair]:
        """The images of a split, with the label maps of their names."""
        for required in (self._images(split), self._labels(split)):
            if not required.is_dir():
                raise UserError(f"The dataset folder {printable(required)} does not exist. {self._expected}")
        images, labels = self._images(split), self._labels(split)
        return [(path, labels / path.relative_to(images).with_suffix(".png")) for path in list_images(images)]

    def _images(self, split: Split) -> Path:
        return self.root / "images" / self._folders[split]

    def _labels(self, split: Split) -> Path:
        return self.root / "annotations" / self._folders[split]


def find_ade20k(tree: Tree, folders: dict[Split, str]) -> str | None:
    """The folders of label maps that are there, of splits that settings name."""
    names = [f"annotations/{name}" for name in folders.values() if (tree.root / "annotations" / name).is_dir()]
    return ", ".join(names) or None
