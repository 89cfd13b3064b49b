"""Detections for other libraries: supervision (extra ``interop``), which draws, tracks and counts them.

https://supervision.roboflow.com
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from swinv2_tasks.errors import UserError
from swinv2_tasks.inference.detection import Detections, paste_masks

if TYPE_CHECKING:
    import supervision


def to_supervision(
    detections: Detections,
    size: Sequence[int],
    class_names: Sequence[str] | None = None,
    mask_threshold: float = 0.5,
) -> supervision.Detections:
    """What ``DetectionTask.detect`` gives of an image, as supervision has it.

    Args:
        detections: of an image.
        size: height and width in pixels that its boxes are of.
        class_names: names of the classes, ``task.class_names``; None: there are indices alone.
        mask_threshold: from which on a pixel belongs to an object.

    Returns:
        ``xyxy`` float (n, 4), ``confidence`` float (n,), ``class_id`` int (n,): class indices from 0; ``mask`` bool
        (n, height, width), with a mask branch; ``data["class_name"]``, with names.

    Raises:
        UserError: supervision is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise UserError(
            f"supervision is not installed ({error}): pip install supervision, or the extra interop of this package"
        ) from error

    own = detections.cpu()
    labels = own.labels.numpy()
    masks = None
    if own.masks is not None:
        masks = (paste_masks(own.masks, own.boxes, (int(size[0]), int(size[1]))) >= mask_threshold).numpy()
    data: dict[str, Any] = {}
    if class_names is not None:
        data["class_name"] = np.array([class_names[label] for label in labels.tolist()], dtype=np.str_)
    return supervision.Detections(
        xyxy=own.boxes.numpy().astype(np.float32).reshape(-1, 4),
        mask=masks,
        confidence=own.scores.numpy(),
        class_id=labels,
        data=data,
    )
