"""Cityscapes' layout: ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and ``gtFine/SPLIT/CITY/*_gtFine_label*.png``.

Label maps hold training ids (``labelTrainIds``), or the ids of all 34 labels (``labelIds``), of which those of the 19
evaluated classes count: https://www.cityscapes-dataset.com, https://arxiv.org/abs/1604.01685.
"""

from pathlib import Path

from swinv2_tasks.datamodules.layouts import Split, Tree
from swinv2_tasks.datamodules.readers.images import list_images
from swinv2_tasks.datamodules.readers.label_values import LabelSettings
from swinv2_tasks.datamodules.readers.scenes import ScenePair
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable

CLASS_OF_ID = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""The evaluated classes by their ids, in the order of their training ids."""

LARGEST_ID = 33

IMAGES, LABELS = "leftImg8bit", "gtFine"


class CityscapesSource:
    """Images and label maps of cities.

    Args:
        root: The dataset's folder.
        splits: The folder of each split, the same in images and label maps.
        values: Which label maps are read: labelTrainIds or labelIds.
    """

    has_splits = True
    validation_settings = None

    def __init__(self, root: Path, splits: dict[Split, str], values: str) -> None:
        self.root = root
        self.class_names = list(CLASS_OF_ID.values())
        self._splits = splits
        self._values = values
        if values == "labelTrainIds":
            self.label_settings = LabelSettings(background="class", ignore_label=255)
        else:
            others = [label for label in range(LARGEST_ID + 1) if label not in CLASS_OF_ID]
            self.label_settings = LabelSettings(ignore_label=[*others, 255], label_values=CLASS_OF_ID)

    def has(self, split: Split) -> bool:
        """Whether there are label maps of a split."""
        return split in self._splits

    def place(self, split: Split) -> str:
        """The folder of a split's images."""
        return str(self.root / IMAGES / self._splits.get(split, split))

    def pairs(self, split: Split) -> list[ScenePair]:
        """The images of a split and their label maps."""
        if not self.has(split):
            raise UserError(f"There are no label maps of {printable(self.place(split))}.")
        images = self.root / IMAGES / self._splits[split]
        labels = self.root / LABELS / self._splits[split]
        pairs: list[ScenePair] = []
        for image in list_images(images):
            name = image.stem.removesuffix(f"_{IMAGES}")
            pairs.append((image, labels / image.parent.relative_to(images) / f"{name}_{LABELS}_{self._values}.png"))
        return pairs


def find_cityscapes(tree: Tree) -> str | None:
    """The folders of images and of label maps."""
    return f"{IMAGES}/, {LABELS}/" if tree.has_folder(IMAGES) and tree.has_folder(LABELS) else None


def open_cityscapes(tree: Tree) -> CityscapesSource:
    """The dataset in a folder. The labels of its test images are not public.

    Raises:
        UserError: There are no label maps.
    """
    splits: dict[Split, str] = {split: split for split in ("train", "val") if tree.folders(f"{LABELS}/{split}")}
    first = next((f"{LABELS}/{split}/{city}" for split in splits for city in tree.folders(f"{LABELS}/{split}")), LABELS)
    for values in ("labelTrainIds", "labelIds"):
        if any(name.endswith(f"_{values}.png") for name in tree.files(first)):
            return CityscapesSource(tree.root, splits, values)
    raise UserError(
        f"{printable(tree.root / first)} holds no *_{LABELS}_labelIds.png nor *_labelTrainIds.png. Expected "
        "Cityscapes' label maps, as gtFine_trainvaltest.zip has them."
    )
