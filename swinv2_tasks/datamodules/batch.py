"""What datamodules yield and tasks take: one TypedDict per kind of batch.

B is the number of images in the batch. Images are RGB, scaled to [0, 1] and then normalised with the datamodule's
`mean` and `std`.
"""

from typing import TypedDict

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


class PredictBatch(TypedDict):
    """Images without labels."""

    image: Tensor
    """(B, 3, H, W) float32."""

    path: list[str]
    """The file of each image, B in all."""


class SegmentationPredictBatch(PredictBatch):
    """One image without labels, and the size that its prediction is due at."""

    size: tuple[int, int]
    """Height and width of the image file in pixels."""
