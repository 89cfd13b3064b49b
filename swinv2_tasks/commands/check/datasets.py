"""A dataset as the datamodule that fit uses opens it, but so that one fault does not hide the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

import numpy as np

from swinv2_tasks.batches import IGNORED
from swinv2_tasks.commands.check.annotations import (
    SplitObjects,
    check_annotation_file,
    check_packed,
    check_unlisted,
)
from swinv2_tasks.commands.check.findings import Findings
from swinv2_tasks.datamodules import (
    ADE20KDataModule,
    CocoDataModule,
    ImageNetDataModule,
    KineticsDataModule,
    SimMIMDataModule,
)
from swinv2_tasks.datamodules.classes import Classes
from swinv2_tasks.datamodules.layouts import SPLIT_NAMES, Split, Tree
from swinv2_tasks.datamodules.readers.channels import RGB_READER, ImageReader
from swinv2_tasks.datamodules.readers.coco import CocoSource
from swinv2_tasks.datamodules.readers.coco_scenes import CocoScenes
from swinv2_tasks.datamodules.readers.images import files_below, has_image_extension, list_images
from swinv2_tasks.datamodules.readers.label_values import LabelCoding
from swinv2_tasks.datamodules.readers.objects import FaultTolerant
from swinv2_tasks.datamodules.readers.scenes import ScenePair
from swinv2_tasks.datamodules.readers.yolo import YoloSource
from swinv2_tasks.datamodules.shards import INDEX
from swinv2_tasks.errors import ArgumentsError, UserError
from swinv2_tasks.text import printable, say

TaskName = Literal["imagenet", "coco", "ade20k", "kinetics", "simmim"]

DATAMODULES: dict[TaskName, Any] = {
    "imagenet": ImageNetDataModule,
    "coco": CocoDataModule,
    "ade20k": ADE20KDataModule,
    "kinetics": KineticsDataModule,
    "simmim": SimMIMDataModule,
}

SPLITS: tuple[Split, ...] = ("train", "val", "test")

TOLERANT: dict[str, Any] = {"faulty_samples": "skip", "faulty_budget": 10**9}
"""Settings with which a datamodule does not stop at files that cannot be read."""


@dataclass(frozen=True)
class Sample:
    """A file of a split."""

    path: str
    labels: tuple[int, ...] = ()
    """Class indices; none where there are no labels, or they are in a file of their own."""
    label_map: str | None = None


@dataclass
class Dataset:
    """What a dataset holds, by split."""

    task: TaskName
    samples: dict[Split, list[Sample]] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    counts: dict[str, Counter[int]] = field(default_factory=dict)
    """Samples or objects of each class in each split."""
    objects: dict[Split, SplitObjects] = field(default_factory=dict)
    """Of detection."""
    coding: LabelCoding | None = None
    """Of segmentation: what label maps hold; None where that cannot be told."""
    reader: ImageReader = RGB_READER
    """Of its images."""
    clip_frames: int = 1
    """Of videos: the frames that a training clip spans."""


def open_datamodule(
    task: TaskName,
    root: str,
    settings: Sequence[str],
    *,
    tolerates_faults: bool = True,
    takes_config: bool = False,
    **stated: Any,
) -> Any:
    """The datamodule of a dataset.

    Args:
        task: Of the dataset.
        root: Its folder.
        settings: Arguments of fit that describe the data: `--config` and `--data.…`.
        tolerates_faults: Whether it opens also where files cannot be read.
        takes_config: Whether the task's config counts also where there are no settings.
        stated: Further settings, that have another value than their default.

    Raises:
        UserError: The settings are not in order.
    """
    tolerant = TOLERANT if tolerates_faults else {}
    if not settings and task == "simmim":  # whose config has ImageNet's folders
        stated = {"train_dir": None, "val_dir": None, **_split_folders(root), **stated}
    if not settings and not takes_config:
        return DATAMODULES[task](root=root, **stated, **tolerant)

    from swinv2_tasks.cli.parser import TasksArgumentParser
    from swinv2_tasks.cli.tasks_cli import ParseOnlyCLI, run_as

    has_config = any(word.startswith("--config") for word in settings)
    arguments = [*([] if has_config else [f"--config={task}.yaml"]), *settings, f"--data.root={root}"]
    part = run_as(ParseOnlyCLI, "fit", arguments).config["fit"]["data"].as_dict()
    if not issubclass(resolve_name(part["class_path"]), DATAMODULES[task]):
        raise ArgumentsError(f"{task} data are expected, the config is of {part['class_path'].rpartition('.')[2]}.")
    part["init_args"] |= stated | tolerant | _any_normalization(part["init_args"])
    parser = TasksArgumentParser()
    parser.add_subclass_arguments(DATAMODULES[task], "data")
    return parser.instantiate_classes(parser.parse_object({"data": part}))["data"]


def _any_normalization(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and deviation for as many channels as there are, of images that other ones are still to be measured of."""
    channels = settings.get("channels", 3)
    is_stated = isinstance(channels, int) and channels > 0 and len(settings.get("mean", ())) != channels
    return {"mean": [0.5] * channels, "std": [0.5] * channels} if is_stated else {}


def _split_folders(root: str) -> dict[str, str]:
    """The folders of training and validation images, where both are there: without, all images are the training's."""
    tree = Tree(Path(root).expanduser())
    folders = {split: tree.split_folder(split) for split in ("train", "val") if split in SPLIT_NAMES}
    if not all(folders.values()):
        return {}
    say(f"data.root is read as splits: {', '.join(f'{printable(name)}/' for name in folders.values())}")
    return {f"{split}_dir": str(name) for split, name in folders.items()}


def read_dataset(task: TaskName, data: Any, findings: Findings) -> Dataset:
    """What is in a dataset; faults of its labels are added to the findings.

    Raises:
        UserError: The folder has no layout that is known, or could be read in several ways.
    """
    dataset = Dataset(task, reader=data.reader)
    readers: dict[TaskName, Callable[[Any, Dataset, Findings], None]] = {
        "imagenet": _read_images,
        "coco": _read_objects,
        "ade20k": _read_scenes,
        "kinetics": _read_videos,
        "simmim": _read_unlabeled,
    }
    readers[task](data, dataset, findings)
    for split in [split for split in SPLITS if split in dataset.samples and not dataset.samples[split]]:
        findings.add("empty_split", split, split)
    if "train" in dataset.samples and "val" not in dataset.samples and "test" not in dataset.samples:
        findings.add("no_validation", "val", "val")
    return dataset


# ---- classification


def _read_images(data: ImageNetDataModule, dataset: Dataset, findings: Findings) -> None:
    for name in (data.train_dir, data.val_dir):
        if (Path(str(data.root)).expanduser() / name / INDEX).is_file():
            raise UserError(
                f"{printable(name)} holds shards, whose images were decoded when they were written. data check reads "
                "the images that they were made of."
            )
    source = data.source_on_disk
    classes: Classes | None = None
    ids: list[str] = []
    try:
        classes = Classes(data.class_ids, data.class_names)
        ids, dataset.class_names = classes.ids, classes.names
    except UserError as error:
        findings.add("refused_labels", "", str(data.root), str(error))
    for split in [split for split in SPLITS if source.has(split)]:
        try:
            if classes is None:
                raise UserError("")
            samples = source.samples(split, classes)
            dataset.samples[split] = [Sample(path, _as_tuple(label)) for path, label in samples]
        except UserError as error:
            if str(error):
                findings.add("refused_labels", split, source.place(split), str(error))
            dataset.samples[split] = _list_class_folders(Path(source.place(split)), split, ids, findings)
    _count_labels(dataset)


def _as_tuple(label: int | list[int]) -> tuple[int, ...]:
    return (label,) if isinstance(label, int) else tuple(label)


def _list_class_folders(folder: Path, split: Split, ids: list[str], findings: Findings) -> list[Sample]:
    """The images in class folders that the reader refuses; folders that are no class are noted."""
    index_of = {class_id: index for index, class_id in enumerate(ids)}
    samples: list[Sample] = []
    unknown: set[str] = set()
    for path in sorted(files_below(folder)) if folder.is_dir() else []:
        if not has_image_extension(path):
            continue
        name = path.relative_to(folder).parts[0]
        if name not in index_of and ids and name not in unknown:
            unknown.add(name)
            findings.add("class_only_in_val" if split == "val" else "refused_labels", split, str(folder / name))
        samples.append(Sample(str(path), (index_of[name],) if name in index_of else ()))
    return samples


def _count_labels(dataset: Dataset) -> None:
    for split, samples in dataset.samples.items():
        dataset.counts[split] = Counter(label for sample in samples for label in sample.labels)


# ---- detection


def _read_objects(data: CocoDataModule, dataset: Dataset, findings: Findings) -> None:
    source = data.source_on_disk
    if isinstance(source, FaultTolerant):
        source.note_fault = partial(_note_fault, findings)
    try:
        class_ids, dataset.class_names = source.categories()
    except UserError as error:
        findings.add("refused_labels", "", str(data.root), str(error))
        class_ids = []
    for split in [split for split in SPLITS if source.has(split)]:
        try:
            objects = _split_objects(source, split, class_ids, findings)
        except UserError as error:
            findings.add("refused_labels", split, source.place(split), str(error))
            continue
        dataset.objects[split] = objects
        dataset.counts[split] = objects.counts
        paths = [*objects.images]
        if isinstance(source, FaultTolerant):  # with images that cannot be read, whose objects nobody can place
            paths = [str(path) for path in source.images(split)]
        dataset.samples[split] = [Sample(path) for path in paths]
    if isinstance(source, YoloSource):
        for path in source.stray_label_files():
            findings.add("annotation_without_image", "", str(path), "no image is called so")
    if type(source) is CocoSource:
        listed = {path for objects in dataset.objects.values() for path in objects.images}
        for split in dataset.objects:
            check_unlisted(findings, split, source.image_folder(split), dict.fromkeys(listed))


def _split_objects(source: Any, split: Split, class_ids: list[int], findings: Findings) -> SplitObjects:
    """What is annotated in a split.

    Raises:
        UserError: It cannot be told.
    """
    if not isinstance(source, CocoSource):
        return check_packed(findings, split, *source.read(split))
    before = findings.total("error")
    path = Path(source.place(split))
    objects = check_annotation_file(
        findings, split, path, source.image_folder(split), class_ids, source.preparation(path)
    )
    if findings.total("error") == before:
        source.read(split)  # which may refuse what none of the checks looks for
    return objects


def _note_fault(findings: Findings, split: Split, path: Path, problem: str) -> None:
    """Adds what a reader cannot read, and passes over."""
    findings.add("invalid_annotation", split, str(path), problem)


# ---- segmentation


def _read_scenes(data: ADE20KDataModule, dataset: Dataset, findings: Findings) -> None:
    source = data.source_on_disk
    drawn: dict[Split, list[ScenePair]] = {}
    for split in [split for split in SPLITS if source.has(split)]:
        try:
            pairs = source.pairs(split)
        except UserError as error:
            findings.add("refused_labels", split, source.place(split), str(error))
            continue
        files = [(image, label_map) for image, label_map in pairs if isinstance(label_map, Path)]
        if len(files) == len(pairs):
            dataset.samples[split] = [Sample(str(image), (), str(label_map)) for image, label_map in files]
        else:
            drawn[split] = pairs
            dataset.samples[split] = [Sample(str(image)) for image, _ in pairs]
    if not any(dataset.samples.values()):
        return
    try:
        dataset.class_names = data.class_names
        dataset.coding = data.coding
    except UserError as error:
        findings.add("refused_labels", "", str(data.root), str(error))
        return
    for split, pairs in drawn.items():
        if isinstance(source, CocoScenes):
            _check_objects_of_scenes(source.objects, dataset, split, findings)
        _label_by_drawing(dataset, split, pairs, dataset.coding, findings)


def _check_objects_of_scenes(source: CocoSource, dataset: Dataset, split: Split, findings: Findings) -> None:
    """Checks the objects that label maps are drawn of."""
    try:
        dataset.objects[split] = _split_objects(source, split, source.categories()[0], findings)
    except UserError as error:
        findings.add("refused_labels", split, source.place(split), str(error))


def _label_by_drawing(
    dataset: Dataset, split: Split, pairs: Sequence[ScenePair], coding: LabelCoding, findings: Findings
) -> None:
    """Labels each sample by the classes in its label map, which is drawn for that."""
    samples = []
    for image, label_map in pairs:
        labels: list[int] = []
        try:
            labels = [label for label in np.unique(coding.read(label_map)).tolist() if label != IGNORED]
        except UserError as error:
            findings.add("unreadable_label_map", split, str(image), str(error))
        samples.append(Sample(str(image), tuple(labels)))
    dataset.samples[split] = samples


# ---- video


def _read_videos(data: KineticsDataModule, dataset: Dataset, findings: Findings) -> None:
    source = data.source_on_disk
    dataset.class_names = data.class_names
    sampling = data.sampling
    dataset.clip_frames = (sampling.frames - 1) * sampling.stride + 1 if sampling.mode == "dense" else sampling.frames
    for split in [split for split in SPLITS if source.has(split)]:
        videos = source.videos(split, Classes(data.class_ids, data.class_names))
        dataset.samples[split] = [Sample(path, _as_tuple(label)) for path, label in videos]
    _count_labels(dataset)


# ---- SimMIM


def _read_unlabeled(data: SimMIMDataModule, dataset: Dataset, findings: Findings) -> None:
    root = Path(str(data.root)).expanduser()
    folders: dict[Split, str | None] = {"train": data.train_dir}
    if data.val_dir is not None:
        folders["val"] = data.val_dir
    for split, name in folders.items():
        try:
            dataset.samples[split] = [Sample(str(path)) for path in list_images(root / (name or ""))]
        except UserError as error:
            findings.add("refused_labels", split, str(root / (name or "")), str(error))
