"""Kinetics and other labeled videos: CSV files, lists, or folders per class.

Kinetics: https://arxiv.org/abs/1705.06950.
"""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torchvision.transforms import v2

from swinv2_tasks.batches import ClassCounts
from swinv2_tasks.datamodules.base import BaseDataModule, FaultChoice
from swinv2_tasks.datamodules.class_mapping import ClassMapping, MappedClasses, describe_mapping, map_classes
from swinv2_tasks.datamodules.classes import (
    Classes,
    abbreviate,
    check_several,
    class_source,
    find_class_list,
    mention_unused,
)
from swinv2_tasks.datamodules.datasets.video import EvaluatedClips, TrainingClips
from swinv2_tasks.datamodules.layouts import Layout, Split, on_disk, open_dataset, share_to_set_aside
from swinv2_tasks.datamodules.readers.frame_folders import find_frames, open_frames
from swinv2_tasks.datamodules.readers.kinetics import KineticsSource, VideoFiles, find_kinetics
from swinv2_tasks.datamodules.readers.label_cells import Labels
from swinv2_tasks.datamodules.readers.labeled_videos import SetAsideVideos, VideoSample, VideoSource
from swinv2_tasks.datamodules.readers.video_lists import read_label_map
from swinv2_tasks.datamodules.readers.video_splits import (
    find_hmdb51,
    find_something,
    find_ucf101,
    open_hmdb51,
    open_something,
    open_ucf101,
)
from swinv2_tasks.datamodules.readers.video_verdicts import look_up
from swinv2_tasks.datamodules.readers.videos import DecoderChoice, list_videos
from swinv2_tasks.datamodules.transforms.classification import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check,
    height_width,
)
from swinv2_tasks.datamodules.transforms.listed import VideoChoice, video_augmentation
from swinv2_tasks.datamodules.transforms.video import (
    EvalViews,
    FrameSampling,
    KineticsAugmentation,
    resize_to_cover,
)
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable, say

_EXPECTED = (
    "Expected data.root with train/ and val/, which hold a folder of videos per class, or videos that train.csv and "
    "val.csv (label,youtube_id,time_start,time_end) or train.txt and val.txt (`path label` lines) name. Other names: "
    "data.files.train_videos, data.files.train_list, data.files.val_videos, data.files.val_list; names of classes: "
    "data.class_names. To have data to try: swinv2-tasks sample-data data/sample."
)

CLASS_LISTS = (
    *("label_map.txt", "label_map.json", "class_names.txt", "classes.txt", "labels.txt"),
    "kinetics_classnames.json",
)
"""Names of files in the root that are taken for the label map."""


MOST_VIEWS = 1000
"""Clips of a video, or crops of a clip, at most."""


@dataclass(frozen=True)
class ViewCounts:
    """Over how many views of a video evaluation averages the probabilities.

    Args:
        val: Validation: clips per video and crops per clip.
        test: Testing and prediction: the same.
        per_sample: How many of a video's views are loaded at once; None: those of one clip.

    Raises:
        UserError: An argument is out of its range.
    """

    val: tuple[int, int] = (1, 1)
    test: tuple[int, int] = (4, 3)
    per_sample: int | None = None

    def __post_init__(self) -> None:
        check("views.per_sample", 1 if self.per_sample is None else self.per_sample, 1)
        for name, views in (("val", self.val), ("test", self.test)):
            check(f"views.{name}", min(views), 1)
            check(f"views.{name}", max(views), 1, MOST_VIEWS)
            clips, crops = views
            if clips * crops % min(self.per_sample or 1, clips * crops):
                raise UserError(
                    f"data.views.per_sample is {self.per_sample}, which does not divide the {clips} × {crops} views "
                    f"of data.views.{name}."
                )


def video_layouts(files: VideoFiles, labels: Labels | None = None) -> list[Layout[VideoSource]]:
    """The layouts of datasets of labeled videos.

    Args:
        files: What Kinetics' lists and folders are called.
        labels: How many labels a video has, as a setting states it.
    """
    return [
        Layout(
            "kinetics",
            "train.csv or train.txt, or train/CLASS/*.mp4; val likewise",
            partial(find_kinetics, files=files),
            lambda tree: KineticsSource(tree.root, files, _EXPECTED, labels),
        ),
        Layout("frames", "train/CLASS/VIDEO/*.jpg, a folder of frames for each video", find_frames, open_frames),
        Layout(
            "ucf101",
            "UCF-101/CLASS/*.avi and ucfTrainTestlist/trainlist01.txt",
            find_ucf101,
            lambda tree: open_ucf101(tree, files.split),
        ),
        Layout(
            "hmdb51",
            "CLASS/*.avi and testTrainMulti_7030_splits/CLASS_test_split1.txt",
            find_hmdb51,
            lambda tree: open_hmdb51(tree, files.split),
        ),
        Layout(
            "something",
            "labels/labels.json, labels/train.json and 20bn-something-something-v2/*.webm",
            find_something,
            open_something,
        ),
    ]


class KineticsDataModule(BaseDataModule):
    """Labeled videos: Kinetics' CSV files, lists of paths and labels, or class folders.

    Yields `VideoBatch`, and `VideoPredictBatch` from `source`. A video is opened by the worker that reads it and closed
    at once; only the frames of the clip are decoded. What is random is the same for all frames of a clip.

    Args:
        root: Dataset folder. Only predicting does without it.
        image_size: Side of the views given to the model in pixels, or height and width.
        batch_size: Clips per batch and process, in evaluation as well.
        num_workers: DataLoader workers of each loader; 0 loads in the main process. None: as many as cores are there
            for each device of the run, at most 8.
        sampling: Which frames of a video a clip is made of.
        views: Over how many views of a video evaluation averages.
        layout: How the dataset lies in root: `kinetics`, … (docs/data.md). None: what its structure shows.
        files: `kinetics`: where the videos of each split are.
        val_share: Share of each class's training videos that is set aside for validation, in (0, 1), where the dataset
            has no validation videos. None: 0.1 where it has no splits at all.
        val_seed: Which videos are set aside.
        class_names: The label map: a text file of a label per line, JSON, or a list; the file is looked for in root
            first. Without it, a label map that lies in root (label_map.txt, classes.txt and the like); if there is
            none, the labels in the training list, or its class folders, sorted.
        class_mapping: What becomes of classes, by name or id: another name, which merges those that share it, or null,
            which leaves their videos out; the key `*` stands for all that no other key names.
        labels: How many labels a video has: `one`, or `several`, which is any number (multi-label). None: as many as
            the lists show, which is said; one where folders are the classes.
        source: What to predict: a video, a folder or a glob pattern.
        check_source: Prediction: decode every frame of a video before its first sample, so that corrupt frames outside
            of its clips are found too, as `data check` finds them.
        mean: Normalization, per RGB channel: subtracted from values in [0, 1].
        std: Normalization, per RGB channel: divides the difference.
        crop_pct: Training and validation: frames are first resized until a view covers this share of their short side,
            in (0, 1]: 0.875 is 256 pixels for views of 224. None: training crops out of the unchanged frames, and
            validation takes as much as a view can show. Testing and prediction always do.
        augmentation: Training: what is done to clips: the published recipe, a preset's name, a list of transforms
            (docs/augmentation.md) or one of your own.
        decoder: Which library decodes videos: `auto` and `pyav` PyAV, `decord` decord, which refuses files in which its
            seek is not proved to give the frames asked for.
        faulty_samples: What happens on a video that cannot be read: `error` stops, `skip` leaves it out of its batch.
            None: `skip` in prediction, which lists them, else `error`.
        faulty_budget: How many different videos `skip` may leave out in a run before it stops. None: 10, in
            prediction any number.

    Raises:
        UserError: An argument is out of its range. Missing or malformed data is reported by `setup`, or as soon as the
            classes are asked for.
    """

    published_classes = 400

    def __init__(
        self,
        root: str | None = None,
        image_size: int | tuple[int, int] = 224,
        batch_size: int = 8,
        num_workers: int | None = None,
        sampling: FrameSampling = FrameSampling(),
        views: ViewCounts = ViewCounts(),
        layout: str | None = None,
        files: VideoFiles = VideoFiles(),
        val_share: float | None = None,
        val_seed: int = 0,
        class_names: str | list[str] | None = None,
        class_mapping: ClassMapping | None = None,
        labels: Labels | None = None,
        source: str | None = None,
        check_source: bool = True,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        crop_pct: float | None = None,
        augmentation: VideoChoice = KineticsAugmentation(),
        decoder: DecoderChoice = "auto",
        faulty_samples: FaultChoice | None = None,
        faulty_budget: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, mean, std, faulty_samples, faulty_budget)
        self.sampling = sampling
        self.image_size = height_width(image_size)
        check("crop_pct", 1.0 if crop_pct is None else crop_pct, 0.01, 1)
        self.crop_pct = crop_pct
        self.views = views
        self.decoder: DecoderChoice = decoder
        self.root = root
        self.source = source
        self.check_source = check_source
        self._layout = layout
        self._labels: Labels | None = labels
        self._file_names = files
        self._val_share = val_share
        self._val_seed = val_seed
        self._unchecked: dict[str, tuple[int, int]] = {}
        self._class_source = class_names
        self._class_mapping = class_mapping
        self.augmentation = video_augmentation(augmentation, self.image_size)

    @property
    def class_names(self) -> list[str]:
        """Readable names, in the order of the class indices."""
        return self._classes.names

    @property
    def class_ids(self) -> list[str]:
        """The dataset's own ids, in the order of the class indices."""
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
            return read_label_map(class_source(self._class_source, self.root))
        shown = self._source.classes()
        return find_class_list(self.root, CLASS_LISTS, read_label_map, shown.ids) or shown

    @property
    def source_on_disk(self) -> VideoSource:
        """The reader of the dataset with the splits that it has on disk: none of its samples set aside."""
        return on_disk(self._source)

    @cached_property
    def _source(self) -> VideoSource:
        # Who names other files than Kinetics' has said what the layout is.
        has_stated = replace(self._file_names, split=1) != VideoFiles()
        stated = "kinetics" if self._layout is None and has_stated else self._layout
        source = open_dataset(self.root, video_layouts(self._file_names, self._labels), stated, _EXPECTED)
        share = share_to_set_aside(source, self._val_share)
        return source if share is None else SetAsideVideos(source, share, self._val_seed)

    @property
    def multi_label(self) -> bool | None:
        """Whether a video may have any number of labels; None where there is no dataset to ask."""
        if self._labels is not None:
            return self._labels == "several"
        if self.root is None or not Path(self.root).expanduser().is_dir():
            return None
        return self._source.multi_label

    def example_batch(self, batch_size: int, num_classes: int) -> dict[str, Any]:
        """A training batch of one view per clip, of arbitrary values."""
        clip = torch.empty(batch_size, 1, 3, self.sampling.frames, *self.image_size)
        return {"clip": clip, "label": torch.empty(batch_size, dtype=torch.int64)}

    def setup(self, stage: str) -> None:
        """Find the videos that `stage` (fit, validate, test or predict) needs.

        Raises:
            UserError: A folder or list is missing, its content does not fit the classes, videos are missing, or there
                is only one class.
        """
        if stage == "predict":
            if self.source is None:
                raise UserError("Nothing to predict: set data.source to a video, a folder or a glob pattern.")
            videos: Sequence[VideoSample] = [(str(path), -1) for path in list_videos(self.source)]
            self.predict_dataset = self._views_of("predict", videos, {}, self.check_source)
            return
        if self.trainer is not None:  # reading videos of one class is fine
            self._check_several()
        if stage == "fit" and self.train_dataset is None:
            videos, faulty = self._present("train")
            labels = [index for _, label in videos for index in ([label] if isinstance(label, int) else label)]
            self._check_several(labels)
            mention_unused(self.class_ids, labels, "video")
            numbers = Counter(labels)
            self.class_counts = ClassCounts([numbers[index] for index in range(self.num_classes)], "videos")
            transform = self._train_transform()
            self.train_dataset = TrainingClips(videos, self.num_classes, self.sampling, transform, self.decoder, faulty)
        if self.val_dataset is None and stage != "test" and self.needs_validation(stage):
            self.val_dataset = self._views_of("val", *self._present("val"))
        if self.test_dataset is None and stage == "test":
            is_stated = self._file_names.test_videos is not None or self._file_names.test_list is not None
            own = is_stated or self._source.has("test")
            self.test_dataset = self._views_of("test", *self._present("test" if own else "val"))
        if stage == "fit" and self.trainer is not None:
            self._mention_unchecked()

    def has(self, split: Split) -> bool:
        """Whether there is a list or a folder of a split's videos."""
        return self._source.has(split)

    def videos(self, split: Split) -> Sequence[VideoSample]:
        """Paths and class indices of the videos of a split, missing ones included.

        Raises:
            UserError: A folder or list is missing, its content does not fit the classes, or the mapping leaves nothing.
        """
        if split == "val" and not self.has("val") and self.has("train"):
            raise self.missing_validation(self._source.place("val"), self._source.validation_settings)
        videos = self._source.videos(split, self._own_classes)
        if self.multi_label:
            videos = [(path, [label] if isinstance(label, int) else label) for path, label in videos]
        return videos if self._mapped is None else self._mapped.map_samples(videos, f"{split} videos")

    def _check_several(self, labels: Iterable[int] | None = None) -> None:
        """Makes sure that there are several classes, and training videos of more than one."""
        if self.multi_label:  # where one class may hold or not
            return
        split: Split = "train" if self.has("train") else "val"
        setting = f"data.files.{split}_videos={getattr(self._file_names, f'{split}_videos')}"
        check_several(self._classes, Path(self._source.place(split)), setting, labels)

    def _present(self, split: Split) -> tuple[Sequence[VideoSample], dict[str, str]]:
        """The videos of a split, and of those that `data check` found faulty the reasons.

        Raises:
            UserError: All are missing or faulty; or some are, and faulty samples are not skipped.
        """
        videos = self.videos(split)
        findings = look_up([path for path, _ in videos], self._source.verdict_folders(split))
        self._unchecked[split] = (findings.unchecked, len(videos))

        missing, faulty = findings.missing, findings.faulty
        none_left = len(missing) + len(faulty) == len(videos)
        excess = not self.faults.allows(len(missing) + len(faulty))
        advice = "" if none_left else f"; or {self.faults.remedy(len(missing) + len(faulty))}"
        if missing and (excess or none_left):
            raise UserError(
                f"{len(missing)} of {len(videos)} {split} videos are not there: {abbreviate(missing, 3)}. Fetch them; "
                "or have `swinv2-tasks data check kinetics` write a list of those that are there and can be decoded"
                f"{advice}."
            )
        if faulty and (excess or none_left):
            listed = abbreviate([f"{path}: {reason}" for path, reason in faulty.items()], 3)
            raise UserError(
                f"{len(faulty)} of {len(videos)} {split} videos cannot be read: {listed}. Mend them; or name the list "
                f"of the others that `data check` has written: data.files.{split}_list={split}_clean.txt{advice}."
            )
        return videos, faulty

    def _mention_unchecked(self) -> None:
        """Says how many videos have never been decoded in full, in which a fit may pass by corrupt frames."""
        unchecked, videos = map(sum, zip(*self._unchecked.values(), strict=True))
        if unchecked:
            rank_zero_only(say)(
                f"{unchecked} of {videos} videos have not been decoded in full, so corrupt frames outside of the "
                f"clips that are read are not found. To find them: {self._check_command()}"
            )

    def _check_command(self) -> str:
        """The command that checks these videos."""
        options = {"class_names": self._class_source if isinstance(self._class_source, str) else None}
        for split in ("train", "val", "test"):
            folder = getattr(self._file_names, f"{split}_videos")
            options[f"files.{split}_videos"] = None if folder == split else folder
            options[f"files.{split}_list"] = getattr(self._file_names, f"{split}_list")
        words = ["swinv2-tasks", "data", "check", "kinetics", str(self.root)]
        words += [] if self._labels is None else ["--data.labels", self._labels]
        words += [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
        return printable(shlex.join(words))

    def _train_transform(self) -> Callable[[Tensor], Tensor]:
        """Clip uint8 (T, 3, H, W) -> float32 of the views' size, resized first where `crop_pct` says so."""
        augment = self.augmentation.build(self.image_size, self.mean, self.std)
        if self.crop_pct is None:
            return augment
        resize = partial(resize_to_cover, size=self.image_size, crop_pct=self.crop_pct)
        return v2.Compose([resize, augment])

    def _views_of(
        self, split: str, videos: Sequence[VideoSample], faulty: dict[str, str], checks_all: bool = False
    ) -> "EvaluatedClips":
        clips, crops = self.views.val if split == "val" else self.views.test
        number = min(self.views.per_sample or crops, clips * crops)
        self.eval_batch_size = max(1, self.batch_size // number)
        crop_pct = self.crop_pct if split == "val" and self.crop_pct is not None else 1.0
        transform = EvalViews(self.image_size, crops, self.mean, self.std, crop_pct)
        num_classes = 0 if split == "predict" else self.num_classes
        return EvaluatedClips(
            videos, num_classes, self.sampling, clips, number, transform, self.decoder, faulty, checks_all
        )
