"""COCO object detection and everything laid out like it: images, and a JSON file of their objects.

COCO: https://arxiv.org/abs/1405.0312.
"""

import logging
from collections import Counter
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.batches import IGNORED, ClassCounts
from swinv2_tasks.datamodules.base import BaseDataModule, FaultChoice
from swinv2_tasks.datamodules.category_lists import stated_categories
from swinv2_tasks.datamodules.class_mapping import ClassMapping, MappedClasses, describe_mapping, map_classes
from swinv2_tasks.datamodules.class_sampling import LEAST_THRESHOLD, SampleClasses, Sampling
from swinv2_tasks.datamodules.classes import abbreviate, class_source, mention_unused
from swinv2_tasks.datamodules.datasets.detection import (
    EvaluatedObjects,
    PredictedObjects,
    TrainingObjects,
    collate_lists,
)
from swinv2_tasks.datamodules.datasets.segmentation import Scenes
from swinv2_tasks.datamodules.layouts import Layout, Split, on_disk, open_dataset, share_to_set_aside
from swinv2_tasks.datamodules.readers.annotations import CocoAnnotations, clean, crowd_hint, describe_unmatched
from swinv2_tasks.datamodules.readers.coco import (
    BESIDE_IMAGES,
    CocoFiles,
    CocoSource,
    find_beside_images,
    find_files,
    open_beside_images,
    stated_files,
)
from swinv2_tasks.datamodules.readers.images import list_images
from swinv2_tasks.datamodules.readers.instance_masks import find_instance_masks, open_instance_masks
from swinv2_tasks.datamodules.readers.lvis import find_lvis, open_lvis
from swinv2_tasks.datamodules.readers.objects import ObjectSource, SetAsideObjects, Sizes, sized
from swinv2_tasks.datamodules.readers.pascal_voc import find_voc, open_voc
from swinv2_tasks.datamodules.readers.yolo import find_yolo, open_yolo
from swinv2_tasks.datamodules.transforms.classification import IMAGENET_MEAN, IMAGENET_STD, MOST_SIDE, check
from swinv2_tasks.datamodules.transforms.detection import MultiScaleAugmentation
from swinv2_tasks.datamodules.transforms.listed import DetectionChoice, detection_augmentation
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import say

log = logging.getLogger("swinv2_tasks")

_EXPECTED = (
    "Expected data.root with train2017/*.jpg, val2017/*.jpg, annotations/instances_train2017.json and "
    "annotations/instances_val2017.json. Other names: data.files.train_images, data.files.train_annotations, "
    "data.files.val_images, data.files.val_annotations. To have data to try: swinv2-tasks sample-data data/sample."
)

_VALIDATION_SETTINGS = "data.files.val_annotations and data.files.val_images"

EXAMPLE_OBJECTS = 20
"""Annotated objects of each image of an example batch."""


def object_layouts(files: CocoFiles, sizes: Sizes, stated: str | None) -> list[Layout[ObjectSource]]:
    """The layouts of datasets of objects.

    Args:
        files: What COCO's files and folders are called.
        sizes: Reads the sizes of images.
        stated: Which one a setting names.
    """
    return [
        Layout(
            "coco",
            f"{files.train_annotations} or {files.val_annotations}",
            partial(find_files, files=files),
            lambda tree: CocoSource(tree.root, *stated_files(files), _EXPECTED, _VALIDATION_SETTINGS),
        ),
        Layout(
            "coco-beside",
            f"train/{BESIDE_IMAGES} and valid/{BESIDE_IMAGES} beside their images",
            find_beside_images,
            partial(open_beside_images, expected=_EXPECTED),
        ),
        Layout(
            "lvis",
            "lvis_v1_train.json and lvis_v1_val.json, in annotations or beside it",
            find_lvis,
            partial(open_lvis, expected=_EXPECTED),
        ),
        Layout(
            "instance-masks",
            "images/ and masks/ with a number for each object, a folder of each image with a mask for each object, "
            "PNGImages/ and PedMasks/, or Cityscapes' *_instanceIds.png",
            find_instance_masks,
            partial(open_instance_masks, sizes=sizes, is_stated=stated == "instance-masks"),
        ),
        Layout(
            "yolo",
            "data.yaml, and folders images and labels",
            find_yolo,
            partial(open_yolo, sizes=sizes),
        ),
        Layout(
            "voc",
            "JPEGImages, Annotations/*.xml and ImageSets/Main/train.txt",
            find_voc,
            partial(open_voc, sizes=sizes),
        ),
    ]


class CocoDataModule(BaseDataModule):
    """Objects with boxes and masks from annotation files in COCO's format, COCO's own or any other.

    The classes are the categories of the annotation files; their ids may leave gaps, and predictions state them. Yields
    `DetectionBatch` in training, `DetectionEvalBatch` in evaluation and `DetectionPredictBatch` from `source`. Training
    leaves out crowds, objects that have no area or lie outside of their image, and images without objects, with a
    warning that counts them; evaluation takes all as annotated, as COCO's own tools do, and says which of them cannot
    be detected.

    Args:
        root: Dataset folder. Only predicting does without it.
        batch_size: Images per batch and process in training; evaluation takes one at a time.
        num_workers: DataLoader workers of each loader; 0 loads in the main process. None: as many as cores are there
            for each device of the run, at most 8.
        layout: How the dataset lies in root: `coco`, `coco-beside`, … (docs/data.md). None: what its structure shows.
        files: `coco`: where the images and annotations of each split are.
        val_share: Share of the training images that is set aside for validation, in (0, 1), where the dataset has no
            validation images. None: 0.1 where it has no splits at all.
        val_seed: Which images are set aside.
        stuff_classes: How many classes the maps of `files.train_stuff` have, at most 254; with 0 they are not read. The
            command line takes it from the detector.
        class_names: Names of the classes, for predicting without annotation files, or to read the dataset's classes in
            this order: a list, or a text file with a name
            per line, whose ids are 1, 2, …; or a CSV file of `ID,NAME`. Files are looked for in root first.
        class_mapping: What becomes of classes, by name or id: another name, which merges those that share it, or null,
            which leaves their objects out, crowds as well, while the images stay; the key `*` stands for all that no
            other key names.
        source: What to predict: an image, a folder or a glob pattern.
        mean: Normalization, per channel: subtracted from values in [0, 1]. Other images than RGB need their own.
        std: Normalization, per channel: divides the difference.
        channels: Channels of the images: 3 for RGB; otherwise of TIFF, NumPy's .npy and what else has as many.
        value_range: The values of the files that become 0 and 1. None: of 8 and 16 bits the whole range, floating-point
            numbers stay unchanged.
        resize: Evaluation and prediction: limits of the long and the short side in pixels; images are resized to fit,
            keeping their proportions.
        sampling: Training: how often an epoch has each image: `uniform`, once; `balanced`, each class equally often, in
            as many images as there are; `repeat_factor`, images of rare classes more often, as for LVIS.
        repeat_threshold: `repeat_factor`: share of the images below which a class is repeated.
        augmentation: Training: what is done to images and their objects: `MultiScaleAugmentation`,
            `ScaleJitterAugmentation`, a preset's name, a list of transforms (docs/augmentation.md) or one of your own.
        masks: Whether masks are read; with false, boxes are trained on and evaluated alone. The command line sets it to
            false where the detector has no mask branch.
        exif_rotation: Whether images are rotated as their EXIF orientation says, as viewers do. With false, pixels stay
            as stored: for annotations made by tools that ignore EXIF. Predictions do the same.
        keep_empty: Training: keep images without objects.
        aspect_ratio_grouping: Training: batches of wide images or of tall ones, which need less padding.
        faulty_samples: What happens on an image that cannot be read: `error` stops, `skip` leaves it out of its batch.
            None: `skip` in prediction, which lists them, else `error`.
        faulty_budget: How many different images `skip` may leave out in a run before it stops. None: 10, in
            prediction any number.

    Raises:
        UserError: An argument is out of its range. Missing or malformed data is reported by `setup`, or as soon as the
            classes are asked for.
    """

    eval_batch_size = 1
    size_setting = "resize"
    published_classes = 80

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 16,
        num_workers: int | None = None,
        layout: str | None = None,
        files: CocoFiles = CocoFiles(),
        val_share: float | None = None,
        val_seed: int = 0,
        stuff_classes: int = 183,
        class_names: str | list[str] | None = None,
        class_mapping: ClassMapping | None = None,
        source: str | None = None,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        channels: int = 3,
        value_range: tuple[float, float] | None = None,
        resize: tuple[int, int] = (1333, 800),
        sampling: Sampling = "uniform",
        repeat_threshold: float = 0.001,
        augmentation: DetectionChoice = MultiScaleAugmentation(),
        masks: bool = True,
        exif_rotation: bool = True,
        keep_empty: bool = False,
        aspect_ratio_grouping: bool = True,
        faulty_samples: FaultChoice | None = None,
        faulty_budget: int | None = None,
    ) -> None:
        super().__init__(
            batch_size, num_workers, mean, std, faulty_samples, faulty_budget, channels, value_range, exif_rotation
        )
        check("resize", resize[0], 1, MOST_SIDE)
        check("resize", resize[1], 1, resize[0])
        check("stuff_classes", stuff_classes, 0, IGNORED - 1)
        self.root = root
        self.source = source
        self.resize = (resize[0], resize[1])
        self.train_stuff = files.train_stuff
        self.stuff_classes = stuff_classes
        self._layout = layout
        self._file_names = files
        self._val_share = val_share
        self._val_seed = val_seed
        self._stated_names = class_names
        self._class_mapping = class_mapping
        self._sampling: Sampling = sampling
        check("repeat_threshold", repeat_threshold, LEAST_THRESHOLD, 1)
        self._repeat_threshold = repeat_threshold
        self.augmentation = detection_augmentation(augmentation, self.resize)
        self.masks = masks
        self.exif_rotation = exif_rotation
        self._keep_empty = keep_empty
        self.aspect_ratio_grouping = aspect_ratio_grouping
        self._splits: dict[str, tuple[CocoAnnotations, Path]] = {}
        """What is annotated in each split that was read, and the folder of its images."""
        self._emptied: dict[str, np.ndarray] = {}
        """Of a split's images, which have objects of dropped classes alone, bool (images,)."""

    @property
    def source_on_disk(self) -> ObjectSource:
        """The reader of the dataset with the splits that it has on disk: none of its samples set aside."""
        return on_disk(self._source)

    @cached_property
    def _source(self) -> ObjectSource:
        # Who names other files than COCO's has said what the layout is.
        stated = "coco" if self._layout is None and self._file_names != CocoFiles() else self._layout
        sizes = partial(sized, allows=self.faults.allows, reader=self.reader)
        source = open_dataset(self.root, object_layouts(self._file_names, sizes, stated), stated, _EXPECTED)
        share = share_to_set_aside(source, self._val_share)
        return source if share is None else SetAsideObjects(source, share, self._val_seed)

    @cached_property
    def _classes(self) -> tuple[list[int], list[str]]:
        """The classes of the run: the dataset's own, or what the mapping leaves of them."""
        return self._own_classes if self._mapped is None else (self._mapped.ids, self._mapped.names)

    @cached_property
    def _mapped(self) -> MappedClasses[int] | None:
        if not self._class_mapping:
            return None
        ids, names = self._own_classes
        mapped = map_classes(ids, names, self._class_mapping)
        rank_zero_only(say)(describe_mapping(names, mapped))
        return mapped

    @cached_property
    def _own_classes(self) -> tuple[list[int], list[str]]:
        if self._stated_names is None:
            return self._source.categories()
        ids, names = stated_categories(class_source(self._stated_names, self.root))
        if self.source is None and self.root is not None and Path(self.root).expanduser().is_dir():
            own_ids, own_names = self._source.categories()
            if sorted(names) == sorted(set(own_names)):  # their order is stated; ids are the dataset's
                return [own_ids[own_names.index(name)] for name in names], names
        return ids, names

    @property
    def class_names(self) -> list[str]:
        """Names of the categories, in the order of their indices."""
        return self._classes[1]

    @property
    def class_ids(self) -> list[int]:
        """The category ids, in ascending order."""
        return self._classes[0]

    @property
    def class_frequencies(self) -> list[str] | None:
        """LVIS: how frequent each category is, `r`, `c` or `f`; None in other layouts. Known after `setup`."""
        stated = (annotations.frequencies for annotations, _ in self._splits.values())
        return next((frequencies for frequencies in stated if frequencies is not None), None)

    @property
    def stuff_labels(self) -> int:
        """Number of the background's classes in training targets; 0 where their maps are not read."""
        return 0 if self.train_stuff is None else self.stuff_classes

    @property
    def has_masks(self) -> bool:
        """Whether the data of the stage that was set up have masks, and they are read. Known after `setup`."""
        return self.masks and any(annotations.has_masks for annotations, _ in self._splits.values())

    @property
    def has_training_masks(self) -> bool:
        """Whether the training data have masks, and they are read; known before `setup`.

        Raises:
            UserError: The annotations cannot be read.
        """
        return self.masks and self.read_split("train")[0].has_masks

    def largest_size(self) -> tuple[int, int]:
        """Height and width in pixels of the largest images that training batches are padded to."""
        short, long = self.augmentation.largest_size() or sorted(self.resize)
        # Wide and tall images in one batch are padded to a square.
        return (short if self.aspect_ratio_grouping else long), long

    @property
    def example_note(self) -> str:
        """The size of the example's images and how many objects each has."""
        size = "the greatest size that a batch may have"
        if self.augmentation.largest_size() is None:
            size = f"evaluation's size, since {type(self.augmentation).__name__} does not say its largest_size"
        return f"images of {size}, {EXAMPLE_OBJECTS} objects each"

    def example_batch(self, batch_size: int, num_classes: int) -> dict[str, Any]:
        """A training batch of the largest size, of arbitrary values."""
        size, objects = self.largest_size(), EXAMPLE_OBJECTS
        target: dict[str, Any] = {"boxes": torch.empty(objects, 4), "labels": torch.empty(objects, dtype=torch.int64)}
        if self.masks:
            target["masks"] = torch.empty(objects, *size, dtype=torch.uint8)
        if self.stuff_labels:
            target["stuff"] = torch.empty(size, dtype=torch.uint8)
        return {
            "images": [torch.empty(self.channels, *size) for _ in range(batch_size)],
            "targets": [{key: torch.empty_like(value) for key, value in target.items()} for _ in range(batch_size)],
        }

    def setup(self, stage: str) -> None:
        """Read the annotations that `stage` (fit, validate, test or predict) needs, and find the images.

        Raises:
            UserError: A file or folder is missing, the annotations are not in order, or training and validation have
                other categories.
        """
        if stage == "predict":
            if self.source is None:
                raise UserError("Nothing to predict: set data.source to an image, a folder or a glob pattern.")
            self.collate = collate_lists
            images = list_images(self.source)
            scenes = Scenes(images, self.resize, self.mean, self.std, reader=self.reader)
            self.predict_dataset = PredictedObjects(scenes)
            return
        self.train_collate = self.collate = collate_lists
        if stage == "fit" and self.train_dataset is None:
            self.mention_left_out(self.augmentation)
            self.train_dataset = self._training_objects()
        if self.val_dataset is None and stage != "test" and self.needs_validation(stage):
            self.val_dataset = self._evaluated_objects("val")
        if self.test_dataset is None and stage == "test":
            has_own = self._file_names.test_annotations is not None or self._source.has("test")
            self.test_dataset = self._evaluated_objects("test" if has_own else "val")

    def has(self, split: Split) -> bool:
        """Whether there are images of a split."""
        return self._source.has(split)

    def read_split(self, split: Split) -> tuple[CocoAnnotations, Path]:
        """What is annotated in a split, of the classes of the run, and the folder of its images; read once.

        These are all there, unless faulty samples are skipped.

        Raises:
            UserError: A file or folder is missing, the annotations are not in order, or the splits have other
                categories.
        """
        if split not in self._splits:
            self._splits[split] = self._open_split(split)
        return self._splits[split]

    def _open_split(self, split: Split) -> tuple[CocoAnnotations, Path]:
        if split == "val" and not self._source.has("val") and self._source.has("train"):
            raise self.missing_validation(self._source.place("val"), self._source.validation_settings)
        annotations, folder = self._source.read(split)
        path = annotations.path
        classes = (annotations.class_ids, annotations.class_names)
        name_of, own_name_of = (dict(zip(*each, strict=True)) for each in (classes, self._own_classes))
        if classes != self._own_classes and name_of == own_name_of:
            annotations = _in_order(annotations, *self._own_classes)
        elif classes != self._own_classes:
            is_stated = self._stated_names is not None
            others = "data.class_names states" if is_stated else "the other annotation file of this dataset has"
            advice = (
                "Leave data.class_names out, or state these names."
                if is_stated
                else "Training and evaluation need the same: give both files all categories."
            )
            raise UserError(
                f"{path} has the categories {abbreviate(_named(*classes), 8)}, {others} "
                f"{abbreviate(_named(*self._own_classes), 8)}. {advice}"
            )

        if not len(annotations.images):
            raise UserError(f"{path} lists no image.")
        files = [folder / name for name in annotations.images.file_names]
        missing = [str(file) for file in files if not file.is_file()]
        none_left = len(missing) == len(files)
        if missing and (none_left or not self.faults.allows(len(missing))):
            advice = "" if none_left else f", or {self.faults.remedy(len(missing))}"
            raise UserError(
                f"{len(missing)} of {len(files)} images in {path} are not in {folder}: {abbreviate(missing)}. Fetch "
                f"them{advice}."
            )
        if self._mapped is not None:
            before = len(annotations.images.objects)
            annotations, self._emptied[split] = map_annotations(annotations, self._mapped)
            self._report_mapped(split, before, len(annotations.images.objects))
        return annotations, folder

    def _report_mapped(self, split: Split, before: int, after: int) -> None:
        """Says in a line what a mapping has left out of a split."""
        if before > after:
            rank_zero_only(say)(
                f"data.class_mapping: {before - after} of {before} {split} objects are of dropped classes and left "
                f"out; {np.count_nonzero(self._emptied[split])} images have no others and stay as background"
            )

    def _training_objects(self) -> "TrainingObjects":
        annotations, folder = self.read_split("train")
        if not annotations.has_objects:
            raise UserError(f"{annotations.path} has no annotations: nothing can be learned from it.")
        masks = self.masks and annotations.has_masks
        if self.augmentation.copy_paste and not masks:
            raise UserError(
                "data.augmentation.copy_paste needs masks: without them nothing says which pixels belong to an object."
            )

        cleaned, counts = clean(annotations.images, masks)
        counts["objects"] = len(annotations.images.objects)
        kept = (cleaned.object_numbers > 0) | self._keep_empty
        if "train" in self._emptied:
            kept |= self._emptied["train"]
        if not len(cleaned.objects):
            raise UserError(
                f"{annotations.path} has no object to train on: of {counts['objects']}, {counts['crowd']} are crowds "
                f"(iscrowd: 1), {counts['no area']} have a box without area, {counts['outside']} lie outside of their "
                f"image.{crowd_hint(counts)}"
            )
        self._report_left_out(annotations, counts, int((~kept).sum()))
        shown = np.unique(cleaned.objects.labels).tolist()
        mention_unused(_named(annotations.class_ids, annotations.class_names), shown, "object")

        stuff = None
        if self.train_stuff is not None and self.stuff_classes:
            stuff = Path(str(self.root)).expanduser() / Path(self.train_stuff).expanduser()
            if not stuff.is_dir():
                raise UserError(f"The folder {stuff} of data.files.train_stuff does not exist.")

        if self.aspect_ratio_grouping:
            self.train_groups = annotations.portrait[kept].astype(int).tolist()
        images = cleaned.select(np.flatnonzero(kept))
        labels = images.objects.labels
        self.train_classes = SampleClasses.of_objects(len(images), self.num_classes, images.owners, labels)
        self.class_counts = ClassCounts(np.bincount(labels, minlength=self.num_classes).tolist(), "objects")
        self.sample_by_class(self._sampling, self._repeat_threshold)
        return TrainingObjects(
            images,
            folder,
            self.augmentation.build(masks),
            self.mean,
            self.std,
            self.augmentation.copy_paste,
            stuff,
            self.stuff_classes,
            self.reader,
        )

    def _report_left_out(self, annotations: CocoAnnotations, counts: Counter[str], empty: int) -> None:
        """Says in a line what training leaves out or cuts off."""
        descriptions = {
            "crowd": "crowds (iscrowd: 1)",
            "no area": "boxes without area",
            "outside": "outside of their image",
        }
        left_out = [f"{counts[fault]} {words}" for fault, words in descriptions.items() if counts[fault]]
        parts = [f"{', '.join(left_out)} left out of training"] if left_out else []
        if counts["clipped"]:
            parts.append(f"{counts['clipped']} that reach beyond their image cut off")
        if parts:
            rank_zero_only(log.warning)(
                "%s: of %d objects %s.%s",
                annotations.path,
                counts["objects"],
                "; ".join(parts),
                crowd_hint(counts),
            )
        if empty:
            rank_zero_only(log.warning)(
                "%s: %d of %d images have no object to train on and are left out; data.keep_empty=true keeps them",
                annotations.path,
                empty,
                len(annotations.images),
            )

    def _evaluated_objects(self, split: Split) -> "EvaluatedObjects":
        annotations, folder = self.read_split(split)
        masks = self.masks and annotations.has_masks
        if unmatched := describe_unmatched(annotations, masks):
            rank_zero_only(log.warning)(unmatched)
        return EvaluatedObjects(
            annotations.images,
            folder,
            self.resize,
            masks,
            annotations.has_objects,
            self.mean,
            self.std,
            self.reader,
        )


def map_annotations(annotations: CocoAnnotations, mapped: MappedClasses[int]) -> tuple[CocoAnnotations, np.ndarray]:
    """What is annotated, of the classes that a mapping leaves, and which images had objects of dropped classes alone.

    Args:
        annotations: What is annotated of the dataset's own classes.
        mapped: What became of them.

    Returns:
        The same images with the objects that are left, crowds among them; bool (images,).
    """
    images, table = annotations.images, mapped.table
    labels = table[images.objects.labels]
    is_kept = labels >= 0
    objects = replace(images.objects.select(is_kept), labels=labels[is_kept])
    numbers = np.bincount(images.owners[is_kept], minlength=len(images))
    is_emptied = (images.object_numbers > 0) & (numbers == 0)
    frequencies = annotations.frequencies
    if frequencies is not None:
        # Of merged ones that of the most frequent: f, c, r is the order from frequent to rare.
        of_classes = [
            [f for f, new in zip(frequencies, table, strict=True) if new == k] for k in range(table.max() + 1)
        ]
        frequencies = [min(of_class, key="fcr".index) for of_class in of_classes]
    return replace(
        annotations,
        images=images.with_objects(objects, numbers),
        class_ids=mapped.ids,
        class_names=mapped.names,
        has_masks=bool(objects.have_shapes.any()),
        frequencies=frequencies,
    ), is_emptied


def _in_order(annotations: CocoAnnotations, ids: list[int], names: list[str]) -> CocoAnnotations:
    """The same with the classes in another order."""
    arranged = MappedClasses(ids, names, [ids.index(category) for category in annotations.class_ids], {})
    return map_annotations(annotations, arranged)[0]


def _named(ids: list[int], names: list[str]) -> list[str]:
    return [f"{category} {name}" for category, name in zip(ids, names, strict=True)]
