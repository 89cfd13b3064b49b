"""COCO's layout: folders of images, and annotation files in a folder of their own or beside the images.

COCO: https://cocodataset.org/#format-data.
"""

from dataclasses import dataclass
from pathlib import Path

from swinv2_tasks.datamodules.layouts import Split, Tree, join
from swinv2_tasks.datamodules.readers.annotations import (
    CocoAnnotations,
    PrepareImage,
    read_annotations,
    read_categories,
)
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable

BESIDE_IMAGES = "_annotations.coco.json"
"""What an annotation file is called that lies beside its images."""


@dataclass(frozen=True)
class CocoFiles:
    """Where the images and annotations of each split are. Paths are in the dataset's root, or absolute.

    Args:
        train_images: Folder of the training images.
        train_annotations: Their annotation file.
        val_images: Folder of the validation images.
        val_annotations: Their annotation file.
        test_images: Folder of the test images; None: the validation images are tested on.
        test_annotations: Their annotation file, which may lack annotations: testing then only writes the detections.
        train_stuff: Folder of label maps (NAME.png) of the training images' background, for HTC's semantic branch:
            from 0 the classes, 255 where there is none.

    Raises:
        UserError: Of the test images and their annotation file only one is stated.
    """

    train_images: str = "train2017"
    train_annotations: str = "annotations/instances_train2017.json"
    val_images: str = "val2017"
    val_annotations: str = "annotations/instances_val2017.json"
    test_images: str | None = None
    test_annotations: str | None = None
    train_stuff: str | None = None

    def __post_init__(self) -> None:
        if (self.test_images is None) != (self.test_annotations is None):
            raise UserError(
                "data.files.test_images and data.files.test_annotations belong together: set both, or neither."
            )


class CocoSource:
    """Annotation files in COCO's format, and folders of images.

    Args:
        root: The dataset's folder.
        annotations: The annotation file of each split, relative to root or absolute.
        images: The folder of its images.
        expected: What is expected in root, for messages.
        validation_settings: The settings that name other validation data; None where there are no such.
    """

    has_splits = True

    def __init__(
        self,
        root: Path,
        annotations: dict[Split, str],
        images: dict[Split, str],
        expected: str,
        validation_settings: str | None = None,
    ) -> None:
        self.root = root
        self.validation_settings = validation_settings
        self._annotations = annotations
        self._images = images
        self._expected = expected

    def categories(self) -> tuple[list[int], list[str]]:
        """Those of the validation's annotation file, which is the smaller one, else of the training's."""
        for split in ("val", "train", "test"):
            if self.has(split):
                return read_categories(self._path(split))
        raise UserError(f"There are no annotations {printable(self.place('train'))}. {self._expected}")

    def has(self, split: Split) -> bool:
        """Whether there is an annotation file of a split."""
        return split in self._annotations and self._path(split).is_file()

    def place(self, split: Split) -> str:
        """The annotation file of a split."""
        return str(self._path(split)) if split in self._annotations else str(self.root)

    def read(self, split: Split) -> tuple[CocoAnnotations, Path]:
        """What the annotation file of a split says, and the folder of its images."""
        if not self.has(split):
            raise UserError(f"There are no annotations {printable(self.place(split))}. {self._expected}")
        path = self._path(split)
        annotations = read_annotations(path, self.preparation(path))
        return annotations, self.image_folder(split)

    def image_folder(self, split: Split) -> Path:
        """The folder of a split's images.

        Raises:
            UserError: It does not exist.
        """
        folder = self.root / Path(self._images[split]).expanduser()
        if not folder.is_dir():
            raise UserError(f"The folder {printable(folder)} of the images does not exist. {self._expected}")
        return folder

    def preparation(self, path: Path) -> PrepareImage | None:
        """What is done to each entry of images of a file before it is read as COCO's; None: nothing."""
        return None

    def _path(self, split: Split) -> Path:
        return self.root / Path(self._annotations[split]).expanduser()


def stated_files(files: CocoFiles) -> tuple[dict[Split, str], dict[Split, str]]:
    """Annotation files and folders of images of the splits, as settings name them."""
    annotations: dict[Split, str | None] = {
        "train": files.train_annotations,
        "val": files.val_annotations,
        "test": files.test_annotations,
    }
    images: dict[Split, str | None] = {
        "train": files.train_images,
        "val": files.val_images,
        "test": files.test_images,
    }
    return (
        {split: name for split, name in annotations.items() if name is not None},
        {split: name for split, name in images.items() if name is not None},
    )


def find_files(tree: Tree, files: CocoFiles) -> str | None:
    """The annotation files that are there of those that settings name, which may lie anywhere."""
    names = [name for name in stated_files(files)[0].values() if (tree.root / Path(name).expanduser()).is_file()]
    return ", ".join(names) or None


def files_beside_images(tree: Tree) -> dict[Split, str]:
    """The folders of splits that hold an annotation file beside their images."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    folders = {split: tree.split_folder(split) for split in splits}
    return {
        split: folder
        for split, folder in folders.items()
        if folder is not None and tree.has_file(join(folder, BESIDE_IMAGES))
    }


def find_beside_images(tree: Tree) -> str | None:
    """The annotation files that lie beside images."""
    return ", ".join(join(folder, BESIDE_IMAGES) for folder in files_beside_images(tree).values()) or None


def open_beside_images(tree: Tree, expected: str) -> CocoSource:
    """The dataset whose annotation files lie beside the images."""
    folders = files_beside_images(tree)
    annotations = {split: join(folder, BESIDE_IMAGES) for split, folder in folders.items()}
    return CocoSource(tree.root, annotations, folders, expected)
