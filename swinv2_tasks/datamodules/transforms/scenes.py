"""An image with its objects, as training takes it, and copy-paste: https://arxiv.org/abs/2012.07177."""

from typing import TypedDict

import numpy as np
import torch

from swinv2_tasks.batches import IGNORED


class Scene(TypedDict):
    """An image and its n objects, in pixels of the image."""

    image: np.ndarray
    """uint8 (H, W, 3), or float32 (H, W, C) of other channels."""

    boxes: np.ndarray
    """float32 (n, 4): left, top, right, bottom."""

    labels: np.ndarray
    """int64 (n,) class indices."""

    masks: np.ndarray | None
    """uint8 (n, H, W) of 0 and 1; all 0 for an object that has only a box. None where masks are not wanted."""

    stuff: np.ndarray | None
    """uint8 (H, W), classes of the background; 255 where nothing is known."""


def paste_objects(scene: Scene, other: Scene) -> Scene:
    """A scene with random objects of another one pasted over it, at the position that they have there.

    What lies below is cut off; objects of which nothing is left are left out. Both need masks.
    """
    assert scene["masks"] is not None and other["masks"] is not None
    height, width = scene["image"].shape[:2]
    rows = min(height, other["image"].shape[0])
    columns = min(width, other["image"].shape[1])

    chosen = np.flatnonzero(torch.rand(len(other["labels"])).numpy() < 0.5)
    pasted = np.zeros((len(chosen), height, width), np.uint8)
    pasted[:, :rows, :columns] = other["masks"][chosen, :rows, :columns]
    covered: np.ndarray = pasted.max(axis=0, initial=0).astype(bool)

    image = scene["image"].copy()
    image[covered] = other["image"][:rows, :columns][covered[:rows, :columns]]
    masks = np.concatenate([scene["masks"] * ~covered, pasted])
    labels = np.concatenate([scene["labels"], other["labels"][chosen]])

    boxes = [mask_bounds(mask) for mask in masks]
    has_box_alone = ~scene["masks"].any(axis=(1, 2))  # nobody knows their pixels: their boxes stay
    for k in np.flatnonzero(has_box_alone):
        boxes[k] = scene["boxes"][k]
    kept = [k for k, box in enumerate(boxes) if box is not None]

    stuff = scene["stuff"]
    return {
        "image": image,
        "boxes": np.array([boxes[k] for k in kept], dtype=np.float32).reshape(-1, 4),
        "labels": labels[kept],
        "masks": masks[kept],
        "stuff": None if stuff is None else np.where(covered, np.uint8(IGNORED), stuff),
    }


def mask_bounds(mask: np.ndarray) -> np.ndarray | None:
    """Left, top, right and bottom edge of a mask's pixels; None where it has none."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
