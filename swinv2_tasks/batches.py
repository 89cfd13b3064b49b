"""What datamodules yield and tasks take: one TypedDict per kind of batch.

B is the number of images in the batch. Images are RGB, scaled to [0, 1] and then normalised with the datamodule's
`mean` and `std`.
"""

from collections.abc import Callable
from typing import NotRequired, TypedDict

from torch import Tensor

IGNORED = 255
"""The class index of pixels that count neither in losses nor in metrics."""


class ClassificationBatch(TypedDict):
    """Images and what they show."""

    image: Tensor
    """(B, 3, H, W) float32."""

    label: Tensor
    """Either (B,) int64 class indices in [0, classes), or (B, classes) float32 in [0, 1].

    Training mixes images, so its rows sum to 1. Evaluation with several right answers per image (ReaL) yields
    multi-hot rows of 0 and 1; a row of zeros is an image that nobody could label and that no metric counts.
    """


class SegmentationBatch(TypedDict):
    """Images and the class of each of their pixels."""

    image: Tensor
    """(B, 3, H, W) float32. In evaluation B is 1, since each image keeps its own proportions."""

    mask: Tensor
    """(B, H, W) int64 class indices in [0, classes), or 255 for pixels that do not count. In evaluation H and W are
    those of the label file, which may be larger than the image given to the model."""

    path: list[str]
    """The file of each image, B in all."""

    rescaled: NotRequired[list[Callable[[float], Tensor]]]
    """In evaluation, for each image: a factor → (1, 3, h, w) float32 on the CPU, the image file's pixels resized to
    that multiple of the evaluation size. Without it, evaluation at several scales resizes `image` once more."""


class PredictBatch(TypedDict):
    """Images without labels."""

    image: Tensor
    """(B, 3, H, W) float32."""

    path: list[str]
    """The file of each image, B in all."""


class SimMIMBatch(TypedDict):
    """Images and which of their patches are masked."""

    image: Tensor
    """(B, 3, H, W) float32."""

    mask: Tensor
    """(B, h, w) bool, True for masked patches of H/h × W/w pixels; equally many in each image."""

    path: list[str]
    """The file of each image, B in all."""


class SegmentationPredictBatch(PredictBatch):
    """One image without labels, and the size that its prediction is due at."""

    size: tuple[int, int]
    """Height and width of the image file in pixels."""

    rescaled: NotRequired[list[Callable[[float], Tensor]]]
    """As in `SegmentationBatch`."""


class DetectionTarget(TypedDict):
    """The n annotated objects of an image. In evaluation all are in pixels of the image file, as annotated, and crowds
    are among them; in training in pixels of the image given to the model, where each box is the bounds of its mask."""

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
    """(n,) int64: 1 for a crowd, which is neither missed nor wrongly found."""

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

    paths: list[str]
    """The image file."""

    sizes: list[tuple[int, int]]
    """Height and width of the image file in pixels."""

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

    path: list[str]
    """The file of each video, B in all."""


class VideoBatch(VideoPredictBatch):
    """Views of videos and what they show. In training there is one view, a random clip."""

    label: Tensor
    """(B,) int64 class indices in [0, classes)."""
