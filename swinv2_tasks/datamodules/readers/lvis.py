"""LVIS's layout: COCO's images, and annotation files of its own, of 1,203 categories with a long tail.

Its files are COCO's but for images, which state an address instead of a file name: its last two parts are folder and
file, since validation images lie in both of COCO's folders. LVIS: https://arxiv.org/abs/1908.03195,
https://www.lvisdataset.org/dataset.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.datamodules.layouts import Split, Tree, join
from swinv2_tasks.datamodules.readers.annotations import CocoAnnotations, PrepareImage
from swinv2_tasks.datamodules.readers.coco import CocoSource
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable, say

_FILE = re.compile(r"lvis_v\d+(?:\.\d+)?_(train|val)\.json")

IMAGE_FOLDERS = ("train2017", "val2017")
"""COCO's folders, of which addresses of images end in one."""

_FEDERATED = (
    "neg_category_ids",
    "not_exhaustive_category_ids",
)
"""What an image says of the categories that it was searched for; the others were not looked for."""


class LvisSource(CocoSource):
    """LVIS's annotation files, and COCO's folders of images.

    Args:
        root: The dataset's folder.
        annotations: The annotation file of each split, relative to root.
        images: The folder that has COCO's folders of images, relative to root.
        expected: What is expected in root, for messages.
    """

    def __init__(self, root: Path, annotations: dict[Split, str], images: str, expected: str) -> None:
        super().__init__(root, annotations, dict.fromkeys(annotations, images), expected)

    def read(self, split: Split) -> tuple[CocoAnnotations, Path]:
        """What the annotation file of a split says, and the folder of COCO's folders of images."""
        annotations, folder = super().read(split)
        if split == "val":
            rank_zero_only(say)(
                f"{printable(annotations.path)}: each image is annotated for some of the categories "
                f"({', '.join(_FEDERATED)}), which are not taken into account: scores are COCO's, and detections of "
                "what is not annotated count as false. For LVIS's own AP, evaluate the written detections with its "
                "tools."
            )
        return annotations, folder

    def preparation(self, path: Path) -> PrepareImage:
        """Names the file of each image by its address."""
        return partial(_name_image, path)


def _name_image(path: Path, entry: dict[str, Any]) -> None:
    """Gives an image the file name that its address ends in, relative to the folder of COCO's folders."""
    address = entry.get("coco_url")
    if isinstance(address, str):
        entry["file_name"] = "/".join(address.split("/")[-2:])
    elif "file_name" not in entry:
        raise UserError(
            f"The annotations {printable(path)} are not LVIS's: an image has no coco_url, of which the last two parts "
            "are its folder and file. Fetch the file again."
        )


def lvis_files(tree: Tree) -> list[tuple[Split, str]]:
    """The annotation files, in the folder annotations or beside it, each with its split."""
    files: list[tuple[Split, str]] = []
    for folder in ("annotations", ""):
        for name in tree.files(folder):
            match = _FILE.fullmatch(name)
            if match is not None:
                files.append(("train" if match[1] == "train" else "val", join(folder, name)))
    return files


def find_lvis(tree: Tree) -> str | None:
    """LVIS's annotation files."""
    return ", ".join(name for _, name in lvis_files(tree)) or None


def open_lvis(tree: Tree, expected: str) -> LvisSource:
    """The dataset in a folder, with COCO's folders in it or in its folder `images`.

    Raises:
        UserError: There is no folder of images, or several files are of one split.
    """
    files = lvis_files(tree)
    annotations = dict(files)
    if len(annotations) < len(files):
        raise UserError(
            f"{printable(tree.root)} has several of LVIS's annotation files for a split: "
            f"{', '.join(printable(name) for _, name in files)}. Keep one for each."
        )
    for folder in ("", "images", "coco"):
        if any(tree.has_folder(join(folder, name)) for name in IMAGE_FOLDERS):
            return LvisSource(tree.root, annotations, folder, expected)
    raise UserError(
        f"{printable(tree.root)} has LVIS's annotations, but no folder {' or '.join(IMAGE_FOLDERS)}: its images are "
        "COCO's. Put these folders there, or links to them."
    )
