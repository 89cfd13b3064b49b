"""What datamodules yield and tasks take: one TypedDict per kind of batch; and what a datamodule may offer beyond them.

A task trains, evaluates and predicts on any loader of these batches. B is the number of images in the batch. Images are
RGB, scaled to [0, 1] and then normalized with the datamodule's `mean` and `std`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NotRequired, TypedDict

from torch import Tensor

from swinv2_tasks.errors import UserError

__all__ = [
    "IGNORED",
    "ClassCounts",
    "ClassificationBatch",
    "DetectionBatch",
    "DetectionEvalBatch",
    "DetectionPredictBatch",
    "DetectionTarget",
    "PredictBatch",
    "SampleCounts",
    "SegmentationBatch",
    "SegmentationPredictBatch",
    "SimMIMBatch",
    "TaskData",
    "VideoBatch",
    "VideoPredictBatch",
]

IGNORED = 255
"""The class index of pixels that count neither in losses nor in metrics."""


class ClassificationBatch(TypedDict):
    """Images and what they show."""

    image: Tensor
    """(B, 3, H, W) float32."""

    label: Tensor
    """Either (B,) int64 class indices in [0, classes), or (B, classes) float32 in [0, 1].

    Training mixes images, so its rows sum to 1. Evaluation with several correct labels per image (ReaL) yields
    multi-hot rows of 0 and 1; a row of zeros is an image that nobody could label and that no metric counts.

    Multi-label classification has rows of 0 and 1 throughout, 1 where a class holds, or in training shares of them
    where images are mixed; a row of zeros is an image for which no class holds, which counts as any other.
    """

    path: NotRequired[list[str]]
    """In evaluation, the file of each image, B in all; what is written of predictions names it."""


class SegmentationBatch(TypedDict):
    """Images and the class of each of their pixels."""

    image: Tensor
    """(B, 3, H, W) float32. In evaluation B is 1, since each image keeps its own proportions."""

    mask: Tensor
    """(B, H, W) int64 class indices in [0, classes), or 255 for pixels that do not count. In evaluation H and W are
    those of the label file, which may be larger than the image given to the model."""

    path: NotRequired[list[str]]
    """The file of each image, B in all; what is written of predictions is named after it."""

    rescaled: NotRequired[list[Callable[[float], Tensor]]]
    """In evaluation, for each image: a factor → (1, 3, h, w) float32 on the CPU, the image file's pixels resized to
    that multiple of the evaluation size. Without it, evaluation at several scales resizes `image` once more."""


class PredictBatch(TypedDict):
    """Images without labels."""

    image: Tensor
    """(B, 3, H, W) float32."""

    path: NotRequired[list[str]]
    """The file of each image, B in all; what is written of predictions is named after it."""


class SimMIMBatch(TypedDict):
    """Images and which of their patches are masked."""

    image: Tensor
    """(B, 3, H, W) float32."""

    mask: Tensor
    """(B, h, w) bool, True for masked patches of H/h × W/w pixels; equally many in each image."""

    path: NotRequired[list[str]]
    """The file of each image, B in all; what is written of predictions is named after it."""


class SegmentationPredictBatch(PredictBatch):
    """One image without labels, and the size that its prediction is due at."""

    size: NotRequired[tuple[int, int]]
    """Height and width of the image file in pixels; without it, those of the image."""

    rescaled: NotRequired[list[Callable[[float], Tensor]]]
    """As in `SegmentationBatch`."""


class DetectionTarget(TypedDict):
    """The n ground-truth objects of an image.

    In evaluation all are in pixels of the image file, as annotated, with crowds among them; in training in pixels of
    the image given to the model, where each box is the bounds of its mask.
    """

    boxes: Tensor
    """(n, 4): left, top, right, bottom; float32 in training, float64 in evaluation."""

    labels: Tensor
    """(n,) int64 class indices in [0, classes)."""

    masks: NotRequired[Tensor]
    """(n, H, W) uint8 of 0 and 1; all 0 for an object that has only a box. Not there in a dataset without masks."""

    image_id: int
    """The image's own id."""

    area: Tensor
    """(n,), in pixels; float32 in training, float64 in evaluation."""

    iscrowd: Tensor
    """(n,) int64: 1 for a crowd, which counts neither as missed nor as a false positive."""

    stuff: NotRequired[Tensor]
    """(H, W) uint8, the background's classes, 255 where nothing is known; in training with stuff maps."""


class DetectionBatch(TypedDict):
    """Images of different sizes and their objects."""

    images: list[Tensor]
    """(3, H, W) float32 each, B in all."""

    targets: list[DetectionTarget]
    """B in all."""


class DetectionPredictBatch(TypedDict):
    """One image, and the size that its prediction is due at."""

    images: list[Tensor]
    """(3, H, W) float32."""

    paths: NotRequired[list[str]]
    """The image file."""

    sizes: NotRequired[list[tuple[int, int]]]
    """Height and width of the image file in pixels, for which boxes are due; without it, those of the image."""

    image_ids: NotRequired[list[int]]
    """Its id, where an annotation file states it."""

    rescaled: NotRequired[list[Callable[[float], Tensor]]]
    """As in `SegmentationBatch`."""


class DetectionEvalBatch(DetectionPredictBatch):
    """One image in evaluation. Without `image_ids` those of the targets hold, or images are counted from 1."""

    targets: NotRequired[list[DetectionTarget]]
    """Not there where annotations are not public."""


class VideoPredictBatch(TypedDict):
    """Views of videos without labels; the views of one video may be in several batches."""

    clip: Tensor
    """(B, views, 3, T, H, W) float32."""

    video_id: Tensor
    """(B,) int64: the number of each video in its dataset, from 0."""

    path: NotRequired[list[str]]
    """The file of each video, B in all."""


class VideoBatch(VideoPredictBatch):
    """Views of videos and what they show. In training there is one view, a random clip."""

    label: Tensor
    """(B,) int64 class indices in [0, classes); multi-label: (B, classes) float32, 1 where a class holds, else 0."""


@dataclass(frozen=True)
class ClassCounts:
    """How often training data show each class, before any sampling of an epoch."""

    numbers: Sequence[int]
    """In the order of the class indices."""

    unit: str
    """What is counted, in the plural: ``images``, ``objects``."""


@dataclass(frozen=True)
class SampleCounts:
    """How many samples were read for an evaluation, in one process or in all of them."""

    number: int = 0
    """Of samples, those that could not be read included."""

    left_out: Mapping[str, str] = field(default_factory=dict)
    """Those that could not be read, by name, and why."""

    samples_per_file: int = 1
    """As how many samples each file is read: views of a video, say."""

    def __add__(self, other: "SampleCounts") -> "SampleCounts":
        return replace(self, number=self.number + other.number, left_out={**self.left_out, **other.left_out})


class TaskData:
    """What a datamodule may offer beyond its batches: classes, names of samples, counts. This class offers nothing.

    A LightningDataModule that derives from this class as well overrides what it knows. The tasks do without all of it:
    the length of the schedule then comes from the trainer's own counts, classes are called by their indices, and a
    resumed training relies on the loader for its progress within an epoch.

    This is a base class, no `typing.Protocol`: a datamodule offers any part of it, the rest is said here; and
    `isinstance` would read all properties of a protocol, some of which look into the dataset.

    Attributes:
        batch_size: samples per batch and process.
        published_classes: number of classes of the dataset that the recipes were published for, which is assumed where
            there is no dataset to ask.
        image_channels: channels of the images or clips, which the backbone must take.
        class_counts: how often the training data show each class; None where that is not known without reading them.
            Known after ``setup("fit")``.
        is_sampled_by_class: whether training samples of some classes come more often than there are.
        size_setting: name of the argument that says at which size images are evaluated: a side, or several of which the
            shortest counts; at another size their proportions stay.
    """

    batch_size: int | None = None
    published_classes: int = 1000
    image_channels: int | None = None
    size_setting: str | None = None
    class_counts: ClassCounts | None = None
    is_sampled_by_class: bool = False

    @property
    def class_ids(self) -> Sequence[Any] | None:
        """The dataset's own ids, in the order of the class indices."""
        return None

    @property
    def class_names(self) -> Sequence[str] | None:
        """Readable names, in the order of the class indices."""
        return None

    @property
    def multi_label(self) -> bool | None:
        """Whether several classes may hold for a sample; None where the data do not say."""
        return None

    @property
    def seed(self) -> int | None:
        """What the random numbers of each training step follow from, alike in all processes; None: nothing does."""
        return None

    @property
    def train_samples(self) -> int | None:
        """Number of training samples, over all processes."""
        return None

    def train_batches(self, world_size: int = 1) -> int | None:
        """Training batches of an epoch in each of ``world_size`` processes."""
        return None

    def train_sample_ids(self, batch: int) -> list[str]:
        """Names of the samples in one of the running epoch's training batches of this process, from 0."""
        return []

    @property
    def example_note(self) -> str | None:
        """What is to be said of ``example_batch``: what was assumed."""
        return None

    def example_batch(self, batch_size: int, num_classes: int) -> dict[str, Any]:
        """A training batch of the largest size, of arbitrary values: what the memory of a step is estimated with.

        Raises:
            UserError: the data does not say what its batches are.
        """
        raise UserError(
            f"memory needs a training batch to go by, which {type(self).__name__} does not give: write its method "
            "example_batch"
        )

    def share_faults(self) -> None:
        """Shares with the other processes which samples could not be read; called by all as a training epoch ends."""

    @property
    def skipped_samples(self) -> Mapping[str, str]:
        """Samples that were left out so far, and why."""
        return {}

    def evaluated_samples(self, split: str) -> SampleCounts | None:
        """What this process has read for the latest evaluation of a split: ``val``, ``test`` or ``predict``.

        None where no sample can be left out, as the first one that cannot be read stops the run.
        """
        return None

    @property
    def has_masks(self) -> bool | None:
        """Whether training targets of detection have masks."""
        return None

    @property
    def stuff_labels(self) -> int | None:
        """Number of the background's classes in training targets of detection; 0 where they have no maps of it."""
        return None

    @property
    def record(self) -> dict[str, Any] | None:
        """What a checkpoint says of the data, plain values only: ``{"class": …, "init_args": {…}}``."""
        return None

    def worker_death(self, error: BaseException) -> Exception | None:
        """What to raise when ``error`` means that a DataLoader worker died; None for other errors."""
        return None


def task_data(trainer: Any) -> TaskData:
    """What the datamodule of a trainer, or of a command line, offers; nothing where there is none that does."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, TaskData) else TaskData()


def batches_of(batch: Any) -> list[Any]:
    """The batches of one step: with several loaders Lightning gives a list or a dict of them, one of each."""
    if isinstance(batch, list | tuple):
        return list(batch)
    if isinstance(batch, Mapping) and batch and all(isinstance(value, Mapping) for value in batch.values()):
        return list(batch.values())
    return [batch]
