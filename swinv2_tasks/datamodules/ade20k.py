"""ADE20K scene parsing and everything laid out like it: images, and label maps of the same names.

ADE20K: https://arxiv.org/abs/1608.05442.
"""

import glob
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from swinv2_tasks.batches import ClassCounts
from swinv2_tasks.datamodules.base import BaseDataModule, FaultChoice
from swinv2_tasks.datamodules.class_mapping import (
    EVERY_OTHER,
    ClassMapping,
    MappedClasses,
    describe_mapping,
    map_classes,
)
from swinv2_tasks.datamodules.classes import abbreviate, class_source, in_root, lists_in_root, take_list
from swinv2_tasks.datamodules.datasets.segmentation import (
    LabeledScenes,
    Resize,
    Scenes,
    scenes_as_batch,
    scenes_as_prediction_batch,
)
from swinv2_tasks.datamodules.layouts import Layout, Split, on_disk, open_dataset, share_to_set_aside
from swinv2_tasks.datamodules.readers.ade20k import ADE20KSource, find_ade20k
from swinv2_tasks.datamodules.readers.cityscapes import find_cityscapes, open_cityscapes
from swinv2_tasks.datamodules.readers.coco import (
    BESIDE_IMAGES,
    CocoFiles,
    CocoSource,
    find_beside_images,
    find_files,
    open_beside_images,
    stated_files,
)
from swinv2_tasks.datamodules.readers.coco_scenes import CocoScenes
from swinv2_tasks.datamodules.readers.images import list_images
from swinv2_tasks.datamodules.readers.instance_masks import number_objects
from swinv2_tasks.datamodules.readers.label_values import (
    Background,
    LabelCoding,
    LabelSettings,
    MapCounts,
    classes_of_values,
    count_values,
    fitting_coding,
    palette_colors,
    possible_codings,
)
from swinv2_tasks.datamodules.readers.mask_folders import find_mask_folders, open_mask_folders
from swinv2_tasks.datamodules.readers.scenes import ScenePair, SceneSource, SetAsideScenes
from swinv2_tasks.datamodules.readers.voc_scenes import find_voc_scenes, open_voc_scenes
from swinv2_tasks.datamodules.scene_classes import ADE20K_NAMES, scene_class_names
from swinv2_tasks.datamodules.scene_shares import check_shares, class_pixels, describe_shares
from swinv2_tasks.datamodules.transforms.classification import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MOST_SIDE,
    check,
    height_width,
)
from swinv2_tasks.datamodules.transforms.listed import SegmentationChoice, segmentation_augmentation
from swinv2_tasks.datamodules.transforms.segmentation import ADE20KAugmentation
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable, say

_EXPECTED = (
    "Expected data.root with images/training/*.jpg, images/validation/*.jpg, and annotations/training/*.png, "
    "annotations/validation/*.png of the same names. Folders of other names: data.train_dir and data.val_dir; a class "
    "list: data.class_names. To have data to try: swinv2-tasks sample-data data/sample."
)

_EXPECTED_COCO = (
    "Expected data.root with train2017/*.jpg, val2017/*.jpg, annotations/instances_train2017.json and "
    "annotations/instances_val2017.json. Other names: data.files.train_images, data.files.train_annotations, "
    "data.files.val_images, data.files.val_annotations."
)

_COCO_VALIDATION_SETTINGS = "data.files.val_annotations and data.files.val_images"

CLASS_LISTS = ("objectInfo150.txt", "objectInfo.txt", "class_names.txt", "classes.txt", "labels.txt")
"""Names of files in the root that are taken for the class list."""

MAPS_COUNTED = {"train": 2000, "val": 500}
"""How many label maps of a split are looked at before training, at most."""


def scene_layouts(folders: dict[Split, str], files: CocoFiles, labels: LabelSettings) -> list[Layout[SceneSource]]:
    """The layouts of datasets of scenes.

    Args:
        folders: What the folders of ADE20K's splits are called.
        files: What COCO's files and folders are called.
        labels: What settings say about label maps.
    """
    annotations, images = stated_files(files)
    return [
        Layout(
            "ade20k",
            f"annotations/{folders['train']}/*.png or annotations/{folders['val']}/*.png, and images alike",
            partial(find_ade20k, folders=folders),
            lambda tree: ADE20KSource(tree.root, folders, _EXPECTED),
        ),
        Layout("voc", "JPEGImages/*.jpg and SegmentationClass/*.png", find_voc_scenes, open_voc_scenes),
        Layout("cityscapes", "leftImg8bit/SPLIT and gtFine/SPLIT", find_cityscapes, open_cityscapes),
        Layout("folders", "images/ and masks/, with or without splits", find_mask_folders, open_mask_folders),
        Layout(
            "coco",
            f"{files.train_annotations} or {files.val_annotations}",
            partial(find_files, files=files),
            lambda tree: CocoScenes(
                CocoSource(tree.root, annotations, images, _EXPECTED_COCO, _COCO_VALIDATION_SETTINGS), labels
            ),
        ),
        Layout(
            "coco-beside",
            f"train/{BESIDE_IMAGES} and valid/{BESIDE_IMAGES} beside their images",
            find_beside_images,
            lambda tree: CocoScenes(open_beside_images(tree, _EXPECTED_COCO), labels),
        ),
    ]


class ADE20KDataModule(BaseDataModule):
    """Semantic segmentation from ADE20K's folders: ``images/SPLIT/*.jpg``, ``annotations/SPLIT/*.png``.

    Yields `SegmentationBatch`, and `SegmentationPredictBatch` from `source`. Testing uses the validation images:
    ADE20K's test labels are not public.

    What label maps hold is a setting: `background`, `label_values` or `palette`, and `ignore_label`. Of ADE20K's own
    classes it is known. Without a setting for other classes, the label maps are looked at, and what they leave open is
    refused. Of annotation files in COCO's format label maps are drawn (readers/coco_scenes.py). Before training they
    are counted: shares of the classes are printed.

    Args:
        root: Dataset folder. Only predicting does without it.
        crop_size: Training: side of the crops given to the model in pixels, or height and width.
        resize: Limits of the long and the short side in pixels: images are resized to fit, keeping their proportions.
            None: images keep their size.
        batch_size: Crops per batch and process in training; evaluation takes one image at a time, each of its own size.
        num_workers: DataLoader workers of each loader; 0 loads in the main process. None: as many as cores are there
            for each device of the run, at most 8.
        layout: How the dataset lies in root: `ade20k`, … (docs/data.md). None: what its structure shows.
        train_dir: `ade20k`: name of the training folder in images and in annotations.
        val_dir: `ade20k`: name of the validation folder in both.
        files: `coco`: where the images and annotations of each split are; `train_stuff` is of detection alone.
        val_share: Share of the training images that is set aside for validation, in (0, 1), where the dataset has no
            validation images. None: 0.1 where it has no splits at all.
        val_seed: Which images are set aside.
        class_names: The class list, two at least: a text file with a name per line, a table like objectInfo150.txt, or
            a list; the file is looked for in root first. Without it, a class list that lies in root (objectInfo150.txt,
            classes.txt and the like); if there is none, ADE20K's 150 classes.
        class_mapping: What becomes of classes, by name or by what label maps hold: another name, which merges those
            that share it, or null, which leaves their pixels out; the key `*` stands for all that no other key names.
        background: What 0 is in label maps: `ignore`, no class, and classes count from 1; `class`, the first class.
            None: for ADE20K's classes `ignore`; for others what the label maps show, if they do. `coco`,
            `coco-beside`: whether pixels of no object are a class; None: `class`.
        ignore_label: Further values that are left out, of training and of scores: a number or several; with a palette,
            colors [R, G, B].
        label_values: Instead of background: the class name of each value, as in {0: sky, 255: road}. Several
            values may be of one class; the first one is written in predictions.
        palette: Label maps hold colors: [R, G, B] of each class in their order; or a text file of `R G B` lines, or
            `R G B NAME` lines in any order, looked for in root first.
        source: What to predict: an image, a folder or a glob pattern.
        mean: Normalization, per channel: subtracted from values in [0, 1]. Other images than RGB need their own.
        std: Normalization, per channel: divides the difference.
        channels: Channels of the images: 3 for RGB; otherwise of TIFF, NumPy's .npy and what else has as many.
        value_range: The values of the files that become 0 and 1. None: of 8 and 16 bits the whole range, floating-point
            numbers stay unchanged.
        augmentation: Training: what is done to images and masks: the published recipe, a preset's name, a list of
            transforms (docs/augmentation.md) or one of your own.
        faulty_samples: What happens on a pair that cannot be read: `error` stops, `skip` leaves it out of its batch.
            None: `skip` in prediction, which lists them, else `error`.
        faulty_budget: How many different pairs `skip` may leave out in a run before it stops. None: 10, in
            prediction any number.

    Raises:
        UserError: An argument is out of its range. Missing or malformed data is reported by `setup`, or as soon as the
            classes are asked for.
    """

    eval_batch_size = 1
    size_setting = "resize"
    published_classes = 150

    def __init__(
        self,
        root: str | None = None,
        crop_size: int | tuple[int, int] = 512,
        resize: tuple[int, int] | None = (2048, 512),
        batch_size: int = 16,
        num_workers: int | None = None,
        layout: str | None = None,
        train_dir: str = "training",
        val_dir: str = "validation",
        files: CocoFiles = CocoFiles(),
        val_share: float | None = None,
        val_seed: int = 0,
        class_names: str | list[str] | None = None,
        class_mapping: ClassMapping | None = None,
        background: Background | None = None,
        ignore_label: int | list[int] | list[list[int]] | None = None,
        label_values: dict[int, str] | None = None,
        palette: str | list[list[int]] | None = None,
        source: str | None = None,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        channels: int = 3,
        value_range: tuple[float, float] | None = None,
        augmentation: SegmentationChoice = ADE20KAugmentation(),
        faulty_samples: FaultChoice | None = None,
        faulty_budget: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, mean, std, faulty_samples, faulty_budget, channels, value_range)
        if resize is not None:
            check("resize", resize[0], 1, MOST_SIDE)
            check("resize", resize[1], 1, resize[0])
        self.root = root
        self.resize = None if resize is None else (resize[0], resize[1])
        self._layout = layout
        self._val_share = val_share
        self._val_seed = val_seed
        self.train_dir = train_dir
        self.val_dir = val_dir
        if files.train_stuff is not None:
            raise UserError(
                "data.files.train_stuff is for detectors (HTC). Annotation files of stuff are named by "
                "data.files.train_annotations and data.files.val_annotations."
            )
        self._file_names = files
        self.source = source
        self._class_source = class_names
        self._class_mapping = class_mapping
        if isinstance(palette, str):
            palette = str(in_root(palette, root))
        self._stated_labels = LabelSettings(background, ignore_label, label_values, palette)
        self._shown_labels: LabelSettings | None = None
        self._coding: LabelCoding | None = None
        self._crop_size = height_width(crop_size, "crop_size")
        self.augmentation = segmentation_augmentation(augmentation)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of their indices."""
        return self._own_names if self._mapped is None else self._mapped.names

    @cached_property
    def _mapped(self) -> MappedClasses[str] | None:
        """What the mapping leaves of the dataset's own classes; ids are those of `coding`."""
        if not self._class_mapping:
            return None
        names = ids = self._own_names
        if set(self._class_mapping) - {EVERY_OTHER, *names}:  # which only label maps may show
            ids = [*map(str, self._own_coding.class_ids)]
        mapped = map_classes(ids, names, self._class_mapping)
        rank_zero_only(say)(describe_mapping(names, mapped))
        # So that checkpoints have the classes that the mapping is of, whatever becomes of files.
        self.init_args["class_names"] = names
        return mapped

    @cached_property
    def _own_names(self) -> list[str]:
        """Names of the dataset's own classes."""
        if self._class_source is not None:
            return scene_class_names(class_source(self._class_source, self.root))
        if self._is_there and self._source.class_names is not None:
            return self._source.class_names
        lists = {path: _read_found_list(path) for path in lists_in_root(self.root, CLASS_LISTS)}
        if lists:
            return take_list(lists)
        if not self._is_there or isinstance(self._source, ADE20KSource):
            return list(ADE20K_NAMES)
        if self._stated_labels.label_values is not None:
            return list(dict.fromkeys(self._stated_labels.label_values.values()))
        return self._name_classes_by_values()

    def _name_classes_by_values(self) -> list[str]:
        """Names of the classes, where nothing says them: the values of the label maps, which are all counted."""
        both: tuple[Split, ...] = ("train", "val")
        maps = []
        for split in (split for split in both if self._source.has(split)):
            pairs = self.pairs(split)
            maps += self._counted(split, pairs, most=len(pairs))
        if number_objects(maps):
            raise UserError(
                f"The masks of {printable(self.root)} can be read as label maps (a number for each class) or as masks "
                "of objects (a number for each object), and seem to be of objects: each has the numbers from 1 on, in "
                "one piece each. If they are classes, name them: data.class_names or data.label_values. Objects are "
                "learned by detection: --config coco.yaml --data.layout instance-masks."
            )
        names, settings = classes_of_values(maps, printable(self.root))
        ignored = ", 255 is left out" if settings.ignore_label is not None else ""
        rank_zero_only(say)(
            f"classes: the values of the label maps, {abbreviate(names)}{ignored}. Name them with data.class_names, or "
            "in data.root/classes.txt, a line each."
        )
        self._shown_labels = settings
        return names

    @property
    def num_classes(self) -> int:
        """Number of classes, without the ignored label."""
        return len(self.class_names)

    @property
    def class_ids(self) -> list[int] | list[str]:
        """What label maps hold for each class: a number, or a color `#rrggbb`."""
        return self.coding.class_ids

    @property
    def coding(self) -> LabelCoding:
        """How label maps are read, as what the mapping leaves of the classes.

        Raises:
            UserError: Settings contradict each other, or leave open what the label maps do not show.
        """
        return self._apply_mapping(self._own_coding)

    def _apply_mapping(self, coding: LabelCoding) -> LabelCoding:
        return coding if self._mapped is None else coding.mapped(self._mapped.names, self._mapped.index_of)

    @property
    def _own_coding(self) -> LabelCoding:
        """How label maps are read, as the dataset's own classes.

        Raises:
            UserError: Settings contradict each other, or leave open what the label maps do not show.
        """
        if self._coding is None:
            codings = self._codings()
            if len(codings) > 1 and self.root is None:
                raise UserError(
                    "What label maps hold is not said: set data.background to ignore, where 0 is no class, or to "
                    "class, where it is the first one; or data.label_values or data.palette."
                )
            if len(codings) > 1:
                both: tuple[Split, ...] = ("train", "val")
                splits: list[Split] = [split for split in both if self._source.has(split)] or ["val"]
                maps = [counts for split in splits for counts in self._counted(split, self.pairs(split))]
                return self._coding_of(maps)
            self._take(codings[0])
        assert self._coding is not None
        return self._coding

    @property
    def _is_there(self) -> bool:
        """Whether there is a dataset: predicting does without, also where a config names a folder."""
        return self.root is not None and Path(self.root).expanduser().is_dir()

    @property
    def _label_settings(self) -> LabelSettings:
        """What is said about label maps: by settings, else by the layout, else by the label maps themselves."""
        if not self._is_there:
            return self._stated_labels
        if isinstance(self.source_on_disk, CocoScenes):  # which minds what is stated
            return self.source_on_disk.label_settings
        if self._stated_labels != LabelSettings():
            return self._stated_labels
        return self._source.label_settings or self._shown_labels or self._stated_labels

    def example_batch(self, batch_size: int, num_classes: int) -> dict[str, Any]:
        """A training batch of the crop's size, of arbitrary values."""
        mask = torch.empty(batch_size, *self._crop_size, dtype=torch.int64)
        return {"image": torch.empty(batch_size, self.channels, *self._crop_size), "mask": mask}

    def setup(self, stage: str) -> None:
        """Find the images that `stage` (fit, validate, test or predict) needs, and their label maps.

        Raises:
            UserError: A folder is missing, holds no image, or an image has no label map; before training also, when
                label maps do not fit the settings, or have pixels of one class only.
        """
        if stage == "predict":
            if self.source is None:
                raise UserError("Nothing to predict: set data.source to an image, a folder or a glob pattern.")
            self.collate = scenes_as_prediction_batch
            images = list_images(self.source)
            self.predict_dataset = Scenes(images, self.resize, self.mean, self.std, self.patch_side, self.reader)
            return
        if stage == "fit" and self.train_dataset is None:
            pairs = self.pairs("train")
            self._check_label_maps(pairs, self.pairs("val") if self.needs_validation(stage) else [])
            self.mention_left_out(self.augmentation)
            transform = self.augmentation.build(self._crop_size, self.resize)
            self.train_dataset = LabeledScenes(
                pairs, self.coding, transform, self.mean, self.std, self._crop_size, reader=self.reader
            )
        if stage == "test" and self._source.has("test"):
            self.test_dataset = self._evaluated("test")
        elif self.val_dataset is None and self.needs_validation(stage):
            self.val_dataset = self.test_dataset = self._evaluated("val")
        self.collate = scenes_as_batch

    def _evaluated(self, split: Split) -> LabeledScenes:
        pairs = self.pairs(split)
        transform = Resize(self.resize)
        return LabeledScenes(
            pairs, self.coding, transform, self.mean, self.std, smallest_side=self.patch_side, reader=self.reader
        )

    def _codings(self) -> list[LabelCoding]:
        """The ways to read label maps that settings leave open."""
        return possible_codings(self._own_names, self._label_settings, is_ade20k=self._own_names == [*ADE20K_NAMES])

    def _check_label_maps(self, train_pairs: list[ScenePair], val_pairs: list[ScenePair]) -> None:
        """Makes sure that label maps fit the settings, and prints what share of the pixels each class has."""
        train, val = self._counted("train", train_pairs), self._counted("val", val_pairs)
        coding = self._apply_mapping(self._coding_of([*train, *val]))
        whole = len(train_pairs)
        if problem := check_shares(coding, train):
            if len(train) < whole:  # what so many do not have, others may
                train = self._counted("train", train_pairs, most=whole)
                problem = check_shares(self._apply_mapping(self._coding_of(train)), train)
            if problem:
                raise UserError(problem)
        rank_zero_only(say)(describe_shares(coding, train, whole))
        counted = "pixels" if len(train) == whole else f"pixels in {len(train):,} label maps"
        self.class_counts = ClassCounts(class_pixels(coding, train), counted)
        absent = class_pixels(coding, [*train, *val]).count(0)
        is_assumed = self._class_source is None and not lists_in_root(self.root, CLASS_LISTS)
        if is_assumed and self._own_names == [*ADE20K_NAMES] and absent > len(coding.names) // 2:
            rank_zero_only(say)(
                "note: these are ADE20K's names, as nothing states others. If it is another dataset, name its classes "
                "with data.class_names, or in data.root/classes.txt, a line each."
            )

    def _coding_of(self, maps: list[MapCounts]) -> LabelCoding:
        """How these label maps are read, as the dataset's own classes."""
        codings = self._codings()
        tolerated = (self.faults.budget or 0) if self.faults.policy == "skip" else 0
        folder = str(Path(self.root or "") / "annotations")
        coding = fitting_coding(codings, maps, folder, tolerated, self.faults.remedy)
        if len(codings) > 1:
            rank_zero_only(say)(
                f"data.background is not set; the label maps only fit {coding.background}: {coding.meaning}"
            )
        self._take(coding)
        return coding

    def _take(self, coding: LabelCoding) -> None:
        """Reads label maps so from now on, and lets checkpoints say so, whatever becomes of files."""
        self._coding = coding
        self.init_args |= {
            "background": coding.background,
            "ignore_label": self._label_settings.ignore_label,
            "label_values": self._label_settings.label_values,
        }
        if self._label_settings.palette is not None:
            colors = palette_colors(self._label_settings.palette, self._own_names, "data.")
            self.init_args["palette"] = [list(color) for color in colors]

    def _counted(self, split: Split, pairs: list[ScenePair], most: int | None = None) -> list[MapCounts]:
        """The values of the label maps of a split; of so many of them, if there are more."""
        has_colors = self._label_settings.palette is not None
        label_maps = [label_map for _, label_map in pairs]
        return count_values(label_maps, has_colors, most or MAPS_COUNTED[split], self.faults.policy == "skip")

    @property
    def source_on_disk(self) -> SceneSource:
        """The reader of the dataset with the splits that it has on disk: none of its samples set aside."""
        return on_disk(self._source)

    @cached_property
    def _source(self) -> SceneSource:
        folders: dict[Split, str] = {"train": self.train_dir, "val": self.val_dir}
        stated = self._layout
        if stated is None:  # who names other folders than ADE20K's, or other files than COCO's, has said it
            if (self.train_dir, self.val_dir) != ("training", "validation"):
                stated = "ade20k"
            elif self._file_names != CocoFiles():
                stated = "coco"
        layouts = scene_layouts(folders, self._file_names, self._stated_labels)
        source = open_dataset(self.root, layouts, stated, _EXPECTED)
        share = share_to_set_aside(source, self._val_share)
        return source if share is None else SetAsideScenes(source, share, self._val_seed)

    def has(self, split: Split) -> bool:
        """Whether there are images of a split."""
        return self._source.has(split)

    def pairs(self, split: Split) -> list[ScenePair]:
        """The images of a split and their label maps, which are all there unless faulty samples are skipped.

        Raises:
            UserError: There are no such data, or some are missing.
        """
        if split == "val" and not self._source.has("val") and self._source.has("train"):
            raise self.missing_validation(self._source.place("val"), self._source.validation_settings)
        pairs = self._source.pairs(split)
        if isinstance(self.source_on_disk, CocoScenes):
            self._check_images([image for image, _ in pairs], split)
        else:
            self._check_files([(image, Path(str(label_map))) for image, label_map in pairs])
        return pairs

    def _check_images(self, images: list[Path], split: Split) -> None:
        """Refuses images that annotation files list and that are not there."""
        missing = [str(image) for image in images if not image.is_file()]
        none_left = len(missing) == len(images)
        if missing and (none_left or not self.faults.allows(len(missing))):
            advice = "" if none_left else f", or {self.faults.remedy(len(missing))}"
            raise UserError(
                f"{len(missing)} of {len(images)} images in {printable(self._source.place(split))} do not exist: "
                f"{abbreviate(missing)}. Fetch them{advice}."
            )

    def _check_files(self, pairs: list[tuple[Path, Path]]) -> None:
        """Refuses label maps that are not there."""
        missing = [str(image) for image, mask in pairs if not mask.is_file()]
        if len(missing) == len(pairs):
            others = sorted(pairs[0][1].parent.glob(f"{glob.escape(pairs[0][1].stem)}.*"))
            hint = f" There is {others[0].name}: label maps must be PNG files." if others else ""
            if others and others[0].suffix.lower() in (".jpg", ".jpeg"):
                hint += " A JPEG's compression changes their pixels, so make them again from their source."
            raise UserError(
                f"None of the {len(pairs)} images in {pairs[0][0].parent} has a label map in {pairs[0][1].parent}: "
                f"{pairs[0][1]} should be that of {pairs[0][0].name}.{hint} {_EXPECTED}"
            )

        if missing and not self.faults.allows(len(missing)):
            raise UserError(
                f"{len(missing)} of {len(pairs)} images have no label map in {pairs[0][1].parent}: "
                f"{abbreviate(missing)}. Add the label maps or remove the images, or "
                f"{self.faults.remedy(len(missing))}."
            )


def _read_found_list(path: Path) -> list[str]:
    """The names in a class list that no setting names.

    Raises:
        UserError: It is none; the message has its name.
    """
    try:
        return scene_class_names(path)
    except UserError as error:
        raise UserError(
            f"{printable(path)}, which lies in data.root, is taken for the class list, as data.class_names names no "
            f"other: {error}"
        ) from error
