"""Steps of augmentation that treat an image, its boxes and masks alike, by albumentations.

A module of its own, since albumentations takes a second to import and only training needs it.

Outlines and boxes go through as points, so that a mask is drawn once, at the size and in the part that is trained on.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from swinv2_tasks.datamodules.readers.annotations import check_masks, rasterize
from swinv2_tasks.datamodules.readers.packed_images import CocoObject
from swinv2_tasks.datamodules.transforms.classification import fitting_size
from swinv2_tasks.datamodules.transforms.scenes import Scene, mask_bounds
from swinv2_tasks.datamodules.transforms.segmentation_steps import A, Rescale, reseed

LONGEST_SIDE = 2**14
"""Pixels of the long side where nothing limits it: an image that is a thin strip would else become millions of rows."""


class RandomShortestSize(Rescale):
    """Resizes the short side to one of several lengths, keeping proportions, unless the long side got too long then.

    Args:
        min_size: Lengths in pixels.
        max_size: The most that the long side may have; None: `LONGEST_SIDE`.
        p: Probability.
    """

    def __init__(self, min_size: Sequence[int], max_size: int | None, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.min_size = min_size
        self.max_size = max_size

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draws a short side and computes the size that fits it and the limit of the long side."""
        limits = (self.max_size or LONGEST_SIDE, self.py_random.choice(self.min_size))
        return {"size": fitting_size(params["shape"][:2], limits)}


class RandomCrop(A.DualTransform):
    """Cuts out a random part whose height and width are drawn from a range, as far as the image has as many pixels.

    Args:
        min_size: Shortest side in pixels.
        max_size: Longest side in pixels.
    """

    def __init__(self, min_size: int, max_size: int) -> None:
        super().__init__(p=1.0)
        self.min_size = min_size
        self.max_size = max_size

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draws the region: (rows, columns) as slices."""
        draw = self.py_random.randint
        spans = []
        for side in params["shape"][:2]:
            length = draw(min(side, self.min_size), min(side, self.max_size))
            start = draw(0, side - length)
            spans.append(slice(start, start + length))
        return {"region": tuple(spans)}

    def apply(self, img: np.ndarray, region: tuple[slice, slice], **params: Any) -> np.ndarray:
        """Crops an image or a mask to the region."""
        return img[region]

    def apply_to_keypoints(self, keypoints: np.ndarray, region: tuple[slice, slice], **params: Any) -> np.ndarray:
        """Moves points (n, ≥2), x and y first, into the region's coordinates; they may lie outside."""
        moved = keypoints.copy()
        moved[:, :2] -= [region[1].start, region[0].start]
        return moved


class HorizontalFlip(A.HorizontalFlip):
    """Flips horizontally; albumentations' own takes points for middles of pixels, ours lie between them."""

    def apply_to_keypoints(self, keypoints: np.ndarray, **params: Any) -> np.ndarray:
        """Flips points (n, ≥2), x first, about the middle: edges of pixels, not their centers."""
        moved = keypoints.copy()
        moved[:, 0] = params["shape"][1] - moved[:, 0]
        return moved


class DetectionTransform:
    """Applies steps of albumentations to an image and its objects, by random numbers from torch's generator.

    Args:
        steps: Transforms of albumentations that treat image, masks and keypoints alike.
        masks: Whether masks are drawn, and boxes drawn around them.
    """

    def __init__(self, steps: Sequence[Any], masks: bool) -> None:
        points = A.KeypointParams(format="xy", remove_invisible=False)
        self.transforms = A.Compose(steps, keypoint_params=points)
        self.masks = masks

    def __call__(
        self, image: np.ndarray, objects: Sequence[CocoObject], stuff: np.ndarray | None = None, where: str = "an image"
    ) -> Scene:
        """Objects of which nothing is left are left out.

        Args:
            image: uint8 (H, W, 3), or float32 (H, W, C) of other channels.
            objects: What is annotated on it.
            stuff: Classes of its background, uint8 (H, W).
            where: What messages call the image.
        """
        outlines = [self._outline(scene_object) for scene_object in objects]
        points = np.concatenate([np.empty((0, 2)), *itertools.chain(*outlines)])
        inputs: dict[str, Any] = {"image": image, "keypoints": points}
        if run_lengths := self._run_lengths(objects, image.shape[:2], where):
            inputs["masks"] = np.stack(run_lengths)
        if stuff is not None:
            inputs["mask"] = stuff

        reseed(self.transforms)
        outputs = self.transforms(**inputs)

        image = np.ascontiguousarray(outputs["image"])
        height, width = image.shape[:2]
        if self.masks:
            check_masks(len(objects), height, width, where)
        moved_outlines = _split_like(np.asarray(outputs["keypoints"]), outlines)
        moved_run_lengths = iter(outputs.get("masks", []))

        boxes, labels, masks = [], [], []
        for scene_object, (corners, *polygons) in zip(objects, moved_outlines, strict=True):
            mask = None
            if self.masks and isinstance(scene_object.segmentation, list):
                mask = rasterize([polygon.ravel().tolist() for polygon in polygons], height, width, where)
            elif self.masks and isinstance(scene_object.segmentation, dict):
                mask = next(moved_run_lengths)

            box = clip_box(corners, height, width) if mask is None else mask_bounds(mask)
            if box is None:
                continue
            boxes.append(box)
            labels.append(scene_object.label)
            if self.masks:
                masks.append(np.zeros((height, width), np.uint8) if mask is None else mask)

        return {
            "image": image,
            "boxes": np.array(boxes, dtype=np.float32).reshape(-1, 4),
            "labels": np.array(labels, dtype=np.int64),
            "masks": np.array(masks, dtype=np.uint8).reshape(-1, height, width) if self.masks else None,
            "stuff": np.ascontiguousarray(outputs["mask"]) if stuff is not None else None,
        }

    def _outline(self, scene_object: CocoObject) -> list[np.ndarray]:
        """An object as points (n, 2) each: its box's corners, then its polygons where masks are drawn."""
        left, top, width, height = scene_object.box
        corners = np.array([[left, top], [left + width, top + height]], dtype=np.float64)
        if not self.masks or not isinstance(scene_object.segmentation, list):
            return [corners]
        polygons = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in scene_object.segmentation]
        return [corners, *polygons]

    def _run_lengths(self, objects: Sequence[CocoObject], size: tuple[int, int], where: str) -> list[np.ndarray]:
        """The masks of those objects that are annotated by run lengths, which go through as pixels."""
        check_masks(sum(isinstance(each.segmentation, dict) for each in objects) * self.masks, *size, where)
        return [
            rasterize(scene_object.segmentation, *size, f"annotation {scene_object.id} of {where}")
            for scene_object in objects
            if self.masks and isinstance(scene_object.segmentation, dict)
        ]


def _split_like(points: np.ndarray, outlines: Sequence[Sequence[np.ndarray]]) -> Iterator[list[np.ndarray]]:
    """All points in their order, taken apart into as many of each part of each outline as that has."""
    start = 0
    for outline in outlines:
        parts = []
        for part in outline:
            parts.append(points[start : start + len(part)])
            start += len(part)
        yield parts


def clip_box(corners: np.ndarray, height: int, width: int) -> np.ndarray | None:
    """The box between corners (2, 2), as far as it lies in the image; None where less than a pixel is left of it."""
    box = np.concatenate([corners.min(0), corners.max(0)]).clip(0, [width, height, width, height])
    return None if min(box[2:] - box[:2]) < 1 else box
