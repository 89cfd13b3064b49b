"""What datamodules yield and tasks take: one TypedDict per kind of batch.

B is the number of images in the batch. Images are RGB, scaled to [0, 1] and then normalised with the datamodule's
`mean` and `std`.
"""

from typing import TypedDict

from torch import Tensor


class ClassificationBatch(TypedDict):
    """Images and what they show."""

    image: Tensor
    """(B, 3, H, W) float32."""

    label: Tensor
    """Either (B,) int64 class indices in [0, classes), or (B, classes) float32 in [0, 1].

    Training mixes images, so its rows sum to 1. Evaluation with several right answers per image (ReaL) yields
    multi-hot rows of 0 and 1; a row of zeros is an image that nobody could label and that no metric counts.
    """


class PredictBatch(TypedDict):
    """Images without labels."""

    image: Tensor
    """(B, 3, H, W) float32."""

    path: list[str]
    """The file of each image, B in all."""
