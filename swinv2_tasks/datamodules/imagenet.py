"""ImageNet and everything laid out like it: folders of images per class, validation lists, ImageNet-V2, ReaL labels.

ImageNet-V2: https://arxiv.org/abs/1902.10811. ReaL: https://arxiv.org/abs/2006.07159.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image
from torch import Tensor

from swinv2_tasks.batches import ClassCounts
from swinv2_tasks.datamodules.base import BaseDataModule, FaultChoice
from swinv2_tasks.datamodules.class_mapping import ClassMapping, MappedClasses, describe_mapping, map_classes
from swinv2_tasks.datamodules.class_sampling import LEAST_THRESHOLD, SampleClasses, Sampling
from swinv2_tasks.datamodules.classes import (
    Classes,
    abbreviate,
    check_several,
    class_source,
    find_class_list,
    in_root,
    mention_unused,
    read_classes,
)
from swinv2_tasks.datamodules.datasets.classification import (
    LabeledImages,
    MixCollate,
    StreamedImages,
    UnlabeledImages,
)
from swinv2_tasks.datamodules.layouts import Layout, Split, on_disk, open_dataset, share_to_set_aside
from swinv2_tasks.datamodules.loader import repeat_order
from swinv2_tasks.datamodules.readers.class_folders import (
    ClassFolders,
    WholeClassFolders,
    find_class_folders,
    find_whole_class_folders,
    split_folders,
)
from swinv2_tasks.datamodules.readers.huggingface import HubDataset, find_hub_dataset
from swinv2_tasks.datamodules.readers.image_lists import Sample, with_real_labels
from swinv2_tasks.datamodules.readers.image_tables import ImageTables, describe_tables
from swinv2_tasks.datamodules.readers.imagenet_tars import ImageNetTars, find_imagenet_tars
from swinv2_tasks.datamodules.readers.images import list_images
from swinv2_tasks.datamodules.readers.label_cells import Labels
from swinv2_tasks.datamodules.readers.labeled_images import ImageSource, SetAsideImages
from swinv2_tasks.datamodules.readers.packed_samples import labels_of, relabel
from swinv2_tasks.datamodules.readers.webdataset import WebDataset, find_webdataset
from swinv2_tasks.datamodules.shards import INDEX, Shards, Streaming, is_url, join_location, open_shards
from swinv2_tasks.datamodules.transforms.classification import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageNetAugmentation,
    check,
    eval_transform,
    height_width,
)
from swinv2_tasks.datamodules.transforms.listed import ClassificationChoice, classification_augmentation
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import say

log = logging.getLogger("swinv2_tasks")

_EXPECTED = (
    "Expected data.root with train/CLASS/*.JPEG and val/CLASS/*.JPEG. Folders of other names: data.train_dir and "
    "data.val_dir (ImageNet-V2 as well); validation images in one folder: data.val_list; a class list: "
    "data.class_names; ReaL labels: data.real_labels. Labels in CSV files: train.csv and val.csv, or labels.csv, of "
    "`file,label`, beside the images. To have data to try: swinv2-tasks sample-data data/sample."
)

CLASS_LISTS = (
    *("class_names.csv", "class_names.txt", "classes.csv", "classes.txt", "labels.csv", "labels.txt"),
    "LOC_synset_mapping.txt",  # ImageNet's, as Kaggle has it
)
"""Names of files in the root that are taken for the class list."""


def image_layouts(
    stated: dict[Split, str],
    val_list: Path | None,
    allow_empty: bool,
    labels: Labels | None = None,
    label_column: str | None = None,
) -> list[Layout[ImageSource]]:
    """The layouts of datasets of labeled images.

    Args:
        stated: The folders of the splits, as settings name them.
        val_list: Text file of validation images and their labels.
        allow_empty: Whether a class may have a folder without images.
        labels: How many labels an image has, as a setting states it.
        label_column: The column of labels in files that have columns of any name.
    """
    return [
        Layout(
            "folders",
            f"{stated['train']}/CLASS/*.jpg or {stated['val']}/CLASS/*.jpg",
            partial(find_class_folders, stated=stated),
            lambda tree: ClassFolders(tree.root, split_folders(tree, stated), _EXPECTED, val_list, allow_empty),
        ),
        Layout(
            "class-folders",
            "CLASS/*.jpg, and no folders of splits",
            find_whole_class_folders,
            lambda tree: WholeClassFolders(tree.root, allow_empty),
        ),
        Layout(
            "csv",
            "train.csv and val.csv, or labels.csv, with a column of files (file, image, …) and one of labels, or a "
            "column of 0 and 1 for each class",
            describe_tables,
            lambda tree: ImageTables(tree, labels),
        ),
        Layout(
            "imagenet-tars",
            "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, with ILSVRC2012_devkit_t12.tar.gz beside them; or "
            "train/n01440764.tar, …",
            find_imagenet_tars,
            lambda tree: ImageNetTars(tree, labels),
        ),
        Layout(
            "huggingface",
            "data/train-00000-of-00001.parquet, …, or what `datasets` writes by save_to_disk: dataset_dict.json",
            find_hub_dataset,
            lambda tree: HubDataset(tree, labels, label_column),
        ),
        Layout(
            "webdataset",
            "train-000000.tar, train-000001.tar, … and val-000000.tar, …, of KEY.jpg and KEY.cls, KEY.json or KEY.txt",
            find_webdataset,
            lambda tree: WebDataset(tree, labels),
        ),
    ]


class ImageNetDataModule(BaseDataModule):
    """Image classification from an ImageNet folder: ``train/CLASS/*.JPEG`` and ``val/CLASS/*.JPEG``.

    Folders are matched to classes by id, so that a validation folder may hold any subset of the classes. ImageNet-V2
    is a `val_dir` of folders 0 … 999, taken as class indices. Yields `ClassificationBatch`, and `PredictBatch` from
    `source`. Testing uses the validation images: ImageNet's test labels are not public.

    A folder of training or validation images may also hold them in shards, as `swinv2-tasks data optimize` writes them.

    Args:
        root: Dataset folder, or the URL of one with shards. Only predicting does without it.
        image_size: Side of the images given to the model in pixels, or height and width.
        batch_size: Images per batch and process.
        num_workers: DataLoader workers of each loader; 0 loads in the main process. None: as many as cores are there
            for each device of the run, at most 8.
        layout: How the dataset lies in root: `folders`, `class-folders`, … (docs/data.md). None: what its structure
            shows.
        train_dir: `folders`: folder of training classes, relative to root.
        val_dir: `folders`: folder of validation classes, relative to root.
        val_share: Share of each class's training images that is set aside for validation, in (0, 1), where the dataset
            has no validation images. None: 0.1 where it has no splits at all.
        val_seed: Which images are set aside.
        class_names: The class list: a text file of `ID` or `ID NAME` lines, a CSV file of `ID,NAME`, or a list of
            ids; the file is looked for in root first. Without it, a class list that lies in root (class_names.csv,
            classes.txt and the like) is taken; if there is none, the sorted folder names of train_dir are the classes;
            of val_dir, if there is no train_dir.
        class_mapping: What becomes of classes, by name or id: another name, which merges those that share it, or null,
            which leaves their images out; the key `*` stands for all that no other key names.
        val_list: Text file of `relative/path label` lines for a val_dir without class folders, looked for in root
            first; paths are relative to val_dir, labels are class ids or indices.
        real_labels: JSON of ReaL labels: a list with one list of class indices for each validation image, in the order
            of the numbers in their names (ILSVRC2012_val_00000001.JPEG is the first), or an object of file names
            and such lists; looked for in root first. Evaluation then has several correct labels of an image, or none.
        labels: How many labels an image has: `one`, or `several`, which is any number (multi-label). None: as many as
            the dataset shows, which is said; one where folders are the classes.
        label_column: `huggingface`: the column of labels. None: what it is usually called, as `label`.
        source: What to predict: an image, a folder or a glob pattern.
        mean: Normalization, per channel: subtracted from values in [0, 1]. Other images than RGB need their own.
        std: Normalization, per channel: divides the difference.
        channels: Channels of the images: 3 for RGB; otherwise of TIFF, NumPy's .npy and what else has as many.
        value_range: The values of the files that become 0 and 1. None: of 8 and 16 bits the whole range, floating-point
            numbers stay unchanged.
        crop_pct: Evaluation: side of the center crop as a share of the resized short side; 1.0 stretches the whole
            image to image_size instead.
        sampling: Training: how often an epoch has each image: `uniform`, once; `balanced`, each class equally often, in
            as many images as there are; `repeat_factor`, images of rare classes more often, as for LVIS.
        repeat_threshold: `repeat_factor`: share of the images below which a class is repeated.
        augmentation: Training: what is done to images and batches: the published recipe, a preset's name, a list of
            transforms (docs/augmentation.md) or one of your own.
        faulty_samples: What happens on an image that cannot be read: `error` stops, `skip` leaves it out of its batch.
            None: `skip` in prediction, which lists them, else `error`.
        faulty_budget: How many different images `skip` may leave out in a run before it stops. None: 10, in
            prediction any number.
        stream: How shards are read.

    Raises:
        UserError: An argument is out of its range. Missing or malformed data is reported by `setup`, or as soon as the
            classes are asked for.
    """

    def __init__(
        self,
        root: str | None = None,
        image_size: int | tuple[int, int] = 256,
        batch_size: int = 128,
        num_workers: int | None = None,
        layout: str | None = None,
        train_dir: str = "train",
        val_dir: str = "val",
        val_share: float | None = None,
        val_seed: int = 0,
        class_names: str | list[str] | None = None,
        class_mapping: ClassMapping | None = None,
        val_list: str | None = None,
        real_labels: str | None = None,
        labels: Labels | None = None,
        label_column: str | None = None,
        source: str | None = None,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        channels: int = 3,
        value_range: tuple[float, float] | None = None,
        crop_pct: float = 0.875,
        sampling: Sampling = "uniform",
        repeat_threshold: float = 0.001,
        augmentation: ClassificationChoice = ImageNetAugmentation(),
        faulty_samples: FaultChoice | None = None,
        faulty_budget: int | None = None,
        stream: Streaming = Streaming(),
    ) -> None:
        super().__init__(batch_size, num_workers, mean, std, faulty_samples, faulty_budget, channels, value_range)
        self.root = root
        self.stream = stream
        self.image_size = image_size
        self._layout = layout
        self._labels = labels
        self._label_column = label_column
        if labels == "several" and real_labels is not None:
            raise UserError(
                "data.real_labels are ImageNet's, whose images have one label in training: leave them out, or "
                "data.labels several."
            )
        self._val_share = val_share
        self._val_seed = val_seed
        self.train_dir = train_dir
        self.val_dir = val_dir
        self.val_list = val_list
        self.real_labels = real_labels
        self.source = source
        self.augmentation = classification_augmentation(augmentation, height_width(image_size))
        self._class_source = class_names
        self._class_mapping = class_mapping
        self._sampling: Sampling = sampling
        check("repeat_threshold", repeat_threshold, LEAST_THRESHOLD, 1)
        self._repeat_threshold = repeat_threshold
        self._opened: dict[str, Shards | None] = {}
        self._eval_transform = eval_transform(image_size, mean, std, crop_pct)

    @property
    def class_names(self) -> list[str]:
        """Readable names, in the order of the class indices."""
        return self._classes.names

    @property
    def class_ids(self) -> list[str]:
        """WordNet ids, or the folders' names, in the order of the class indices."""
        return self._classes.ids

    @cached_property
    def _classes(self) -> Classes:
        """The classes of the run: the dataset's own, or what the mapping leaves of them."""
        return self._own_classes if self._mapped is None else Classes(self._mapped.ids, self._mapped.names)

    @cached_property
    def _mapped(self) -> MappedClasses[str] | None:
        if not self._class_mapping:
            return None
        own = self._own_classes
        mapped = map_classes(own.ids, own.names, self._class_mapping)
        rank_zero_only(say)(describe_mapping(own.names, mapped))
        # So that checkpoints have the classes that the mapping is of, whatever becomes of files.
        self.init_args |= {"class_names": own.ids, "class_mapping": mapped.resolved}
        return mapped

    @cached_property
    def _own_classes(self) -> Classes:
        if self._class_source is not None:
            return read_classes(class_source(self._class_source, self.root))
        first = self.train_dir if self.has("train") or self._shards(self.train_dir) else self.val_dir
        if shards := self._shards(first):
            return shards.classes
        shown = self._source.classes()
        lists = [name for name in CLASS_LISTS if name not in self._source.table_names]
        return find_class_list(self.root, lists, read_classes, shown.ids) or shown

    @property
    def source_on_disk(self) -> ImageSource:
        """The reader of the dataset with the splits that it has on disk: none of its samples set aside."""
        return on_disk(self._source)

    @cached_property
    def _source(self) -> ImageSource:
        """The reader of the images that are not in shards."""
        stated: dict[Split, str] = {"train": self.train_dir, "val": self.val_dir}
        if self.root is not None:
            self._refuse_unfinished()
        # With a class list of its own, a folder may be there for classes that this copy has no images of.
        has_list = self._class_source is not None
        layouts = image_layouts(stated, self._stated_val_list(), has_list, self._labels, self._label_column)
        # Who names other folders has said what the layout is, and shards are in such folders.
        has_stated = (self.train_dir, self.val_dir, self.val_list) != ("train", "val", None)
        has_shards = any(self._shards(name) for name in stated.values())
        layout = "folders" if self._layout is None and (has_stated or has_shards) else self._layout
        source = open_dataset(self.root, layouts, layout, _EXPECTED)
        share = share_to_set_aside(source, self._val_share)
        return source if share is None else SetAsideImages(source, share, self._val_seed)

    @property
    def multi_label(self) -> bool | None:
        """Whether an image may have any number of labels; None where there is no dataset to ask."""
        if self._labels is not None:
            return self._labels == "several"
        if self.root is None or not (is_url(self.root) or Path(self.root).expanduser().is_dir()):
            return None
        return not any(self._shards(name) for name in (self.train_dir, self.val_dir)) and self._source.multi_label

    def _stated_val_list(self) -> Path | None:
        return None if self.val_list is None else in_root(self.val_list, self.root)

    def _refuse_unfinished(self) -> None:
        """Refuses what can only hold shards, where there are none, and shards that are still being written."""
        for name in (self.train_dir, self.val_dir):
            if is_url(str(self.root)) and not self._shards(name):
                raise UserError(
                    f"{join_location(str(self.root), name)} holds no {INDEX}. Expected a folder of shards there, as "
                    "written by `swinv2-tasks data optimize`; plain folders of images are read from disk only."
                )
            if self._path(f"{name}.partial").is_dir():
                raise UserError(
                    f"{self._path(name)} is being written: run `swinv2-tasks data optimize` again, to its end."
                )

    def example_batch(self, batch_size: int, num_classes: int) -> dict[str, Any]:
        """A training batch of the images' size, of arbitrary values; labels are those that mixing makes."""
        with torch.device("cpu"):  # also where the batch is made without data: mixing looks into its own numbers
            mixes = self.augmentation.build_mixing(num_classes) is not None
        label = (
            torch.empty(batch_size, num_classes)
            if mixes or self._labels == "several"
            else torch.empty(batch_size, dtype=torch.int64)
        )
        return {"image": torch.empty(batch_size, self.channels, *height_width(self.image_size)), "label": label}

    def setup(self, stage: str) -> None:
        """Find the images that `stage` (fit, validate, test or predict) needs.

        Raises:
            UserError: A folder or file is missing, its content does not fit the classes, or there is only one class.
        """
        if stage == "predict":
            if self.source is None:
                raise UserError("Nothing to predict: set data.source to an image, a folder or a glob pattern.")
            self.predict_dataset = UnlabeledImages(list_images(self.source), self._eval_transform, self.reader)
            return
        if stage == "fit" and self.train_dataset is None:
            self.mention_left_out(self.augmentation)
            transform = self.augmentation.build(height_width(self.image_size), self.mean, self.std)
            if shards := self._shards(self.train_dir):
                self.train_dataset = self._streamed(shards, transform)
                self.train_permute = shards.shuffling()
            else:
                samples = self.samples("train")
                of_samples = labels_of(samples)
                labels = [index for label in of_samples for index in ([label] if isinstance(label, int) else label)]
                if not self.multi_label:
                    check_several(self._classes, Path(self._source.place("train")), self._setting("train"), labels)
                mention_unused(self.class_ids, labels, "image")
                self.train_dataset = LabeledImages(samples, self.num_classes, transform, self.reader)
                self.train_classes = SampleClasses.of_labels(of_samples, self.num_classes)
                self.class_counts = ClassCounts(self.train_classes.counts.tolist(), "images")
            self.sample_by_class(self._sampling, self._repeat_threshold)
            if self.augmentation.repeats > 1:
                self.train_permute = repeat_order(self.train_permute, self.epoch_samples, self.augmentation.repeats)
            self.train_collate = MixCollate(self.augmentation.build_mixing(self.num_classes))
        if stage == "fit" or self.trainer is not None:  # reading images of one class is fine
            self.check_classes()
        if stage == "test" and self.has("test"):
            self.test_dataset = self._evaluated("test")
        elif self.val_dataset is None and self.needs_validation(stage):
            if shards := self._shards(self.val_dir):
                self.val_dataset = self._streamed(shards, self._eval_transform, self._streamed_labels(shards))
            else:
                self.val_dataset = self._evaluated("val")
            self.test_dataset = self.val_dataset

    def stored_images(self, split: Split) -> LabeledImages | StreamedImages:
        """The images of a split as they are read, without a transform, and their labels.

        Raises:
            UserError: As of `samples`, and where shards are not of these classes.
        """
        if shards := self._shards(self._dir(split)):
            labels = self._streamed_labels(shards) if split == "val" else None
            return self._streamed(shards, _unchanged, labels)
        return LabeledImages(self.samples(split), self.num_classes, _unchanged, self.reader)

    def _evaluated(self, split: Split) -> LabeledImages:
        return LabeledImages(self.samples(split), self.num_classes, self._eval_transform, self.reader)

    def check_classes(self) -> None:
        """Make sure that there is something to learn or to measure.

        Raises:
            UserError: There is only one class; the message has the folders below it.
        """
        if self.multi_label:  # where one class may hold or not
            return
        split: Split = "train" if self.has("train") else "val"
        if not self._shards(self._dir(split)):
            check_several(self._classes, Path(self._source.place(split)), self._setting(split))
        else:
            check_several(self._classes, self._path(self._dir(split)), self._setting(split))

    def has(self, split: Split) -> bool:
        """Whether there are images of a split, or a folder of shards."""
        if self.root is None:
            return False
        if self._shards(self._dir(split)):
            return True
        has_shards = any(self._shards(name) for name in (self.train_dir, self.val_dir))
        if has_shards and not self._path(self._dir(split)).is_dir():  # which has no layout, if there are only shards
            return False
        return self._source.has(split)

    def samples(self, split: Split) -> Sequence[Sample]:
        """The images of a split and their labels, as the dataset has them.

        Raises:
            UserError: A folder or file is missing, or its content does not fit the classes.
        """
        if split == "val" and not self._source.has("val") and self._source.has("train"):
            raise self.missing_validation(self._source.place("val"), self._source.validation_settings)
        own = self._own_classes
        samples = labeled = self._source.samples(split, own)
        if self.multi_label:
            if self.real_labels is not None:
                raise UserError(
                    "data.real_labels are for images of one label, this dataset's have several: leave it out."
                )
            samples = labeled = relabel(samples, lambda label: [label] if isinstance(label, int) else label)
        elif split == "val" and self.real_labels is not None:
            labeled = with_real_labels(samples, in_root(self.real_labels, self.root), len(own))
        if self._mapped is None:
            return labeled
        if labeled is samples:
            return self._mapped.map_samples(samples, f"{split} images")
        # What an image of ReaL labels is left out by is its own label.
        kept = {path for path, _ in self._mapped.map_samples(samples, f"{split} images")}
        mapped = [(path, self._mapped.map_label(label)) for path, label in labeled if path in kept]
        return [(path, label) for path, label in mapped if label is not None]

    def _setting(self, split: str) -> str:
        """What names the folder of a split, as messages write it."""
        return f"data.{split}_dir={self._dir(split)}"

    def _dir(self, split: str) -> str:
        return {"train": self.train_dir, "val": self.val_dir}.get(split, split)

    def _shards(self, name: str) -> Shards | None:
        """The shards in a folder of the dataset, where there are such."""
        if self.root is not None and name not in self._opened:
            self._opened[name] = shards = open_shards(join_location(self.root, name), self.stream)
            if shards is not None and shards.left_out:
                rank_zero_only(log.warning)(
                    "the shards in %s were written without %d images that could not be read: %s",
                    shards.location,
                    len(shards.left_out),
                    abbreviate(shards.left_out),
                )
        return self._opened.get(name)

    def _streamed(
        self, shards: Shards, transform: Callable[[Image.Image], Tensor], labels: list[int | list[int]] | None = None
    ) -> "StreamedImages":
        if self._labels == "several":
            raise UserError(
                f"data.labels is several, but {shards.location} holds shards, whose images have one label each. Leave "
                "the setting out, or take the folder that they were written from."
            )
        if self.channels != 3 or self.reader.value_range is not None:
            raise UserError(
                f"{shards.location} holds shards, whose images are read as RGB: data.channels and data.value_range are "
                "of plain files."
            )
        index_of = self._own_classes.index_of(shards.classes.ids, shards.location)
        unknown = [class_id for class_id in shards.classes.ids if class_id not in index_of]
        if unknown:
            raise UserError(
                f"The shards in {shards.location} are of classes that are not in the class list: "
                f"{abbreviate(unknown)}. The class list is {abbreviate(self.class_ids)}. Set data.class_names to the "
                "list they belong to."
            )
        if self._mapped is not None:
            index_of = self._mapped_indices(shards, index_of, self._mapped)
        return StreamedImages(shards, index_of, self.num_classes, transform, labels)

    def _mapped_indices(self, shards: Shards, index_of: dict[str, int], mapped: MappedClasses[str]) -> dict[str, int]:
        """Class index of each id in shards, which can be renamed and merged: which samples to leave out, none says."""
        indices = {class_id: mapped.index_of[index] for class_id, index in index_of.items()}
        if dropped := [class_id for class_id, index in indices.items() if index is None]:
            raise UserError(
                f"data.class_mapping drops {abbreviate(dropped)}, but {shards.location} holds shards, whose samples "
                "show their classes only when they are read. Write shards of the other classes alone, or take the "
                "folder that they were written from."
            )
        return {class_id: index for class_id, index in indices.items() if index is not None}

    def _streamed_labels(self, shards: Shards) -> list[int | list[int]] | None:
        """Labels from elsewhere than the shards."""
        if self.val_list is not None:
            raise UserError(
                f"data.val_list is {self.val_list}, but {shards.location} holds shards, which have their own labels. "
                "Remove the setting, or write the shards with --val_list."
            )
        if self.real_labels is None:
            return None
        named: list[Sample] = [(shards.name(index), 0) for index in range(len(shards))]
        number = len(self._own_classes)
        labels = [label for _, label in with_real_labels(named, in_root(self.real_labels, self.root), number)]
        if self._mapped is None:
            return labels
        return [label for label in map(self._mapped.map_label, labels) if label is not None]

    def _path(self, name: str) -> Path:
        return Path(self.root or "").expanduser() / name


def _unchanged(image: Any) -> Any:
    return image
