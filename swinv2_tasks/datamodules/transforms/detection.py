"""Training transforms of detection: image, boxes and masks alike, by albumentations.

Multi-scale training and resize-crop-resize: https://arxiv.org/abs/2103.14030, appendix A2; large-scale jitter and
copy-paste: https://arxiv.org/abs/2012.07177. A module of its own, since albumentations takes seconds to import and only
training needs it.

Outlines and boxes go through as points, so that a mask is drawn once, at the size and in the part that is trained on.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch

from swinv2_tasks.batches import IGNORED
from swinv2_tasks.datamodules.readers.annotations import CocoObject, rasterize
from swinv2_tasks.datamodules.transforms.classification import fitting_size
from swinv2_tasks.datamodules.transforms.segmentation import A, RandomRescale, Rescale, reseed


class Scene(TypedDict):
    """An image and its n objects, in pixels of the image."""

    image: np.ndarray
    """uint8 (H, W, 3)."""
    boxes: np.ndarray
    """float32 (n, 4): left, top, right, bottom."""
    labels: np.ndarray
    """int64 (n,) class indices."""
    masks: np.ndarray | None
    """uint8 (n, H, W) of 0 and 1; all 0 for an object that has only a box. None where masks are not wanted."""
    stuff: np.ndarray | None
    """uint8 (H, W), classes of the background; 255 where nothing is known."""


class RandomShortSide(Rescale):
    """Resizes the short side to one of several lengths, keeping proportions, unless the long side got too long then.

    Args:
        sides: lengths in pixels.
        max_side: the most that the long side may have; None: any.
        p: probability.
    """

    def __init__(self, sides: Sequence[int], max_side: int | None, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.sides, self.max_side = sides, max_side

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        return {"size": fitting_size(params["shape"][:2], (self.max_side or 2**20, self.py_random.choice(self.sides)))}


class RandomCrop(A.DualTransform):
    """Cuts out a random part whose height and width are drawn from a range, as far as the image has as many pixels.

    Args:
        least: shortest side.
        most: longest side.
    """

    def __init__(self, least: int, most: int) -> None:
        super().__init__(p=1.0)
        self.least, self.most = least, most

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        draw = self.py_random.randint
        spans = []
        for side in params["shape"][:2]:
            length = draw(min(side, self.least), min(side, self.most))
            start = draw(0, side - length)
            spans.append(slice(start, start + length))
        return {"place": tuple(spans)}

    def apply(self, img: np.ndarray, place: tuple[slice, slice], **params: Any) -> np.ndarray:
        return img[place]

    def apply_to_keypoints(self, keypoints: np.ndarray, place: tuple[slice, slice], **params: Any) -> np.ndarray:
        moved = keypoints.copy()
        moved[:, :2] -= [place[1].start, place[0].start]
        return moved


class Mirror(A.HorizontalFlip):
    """Mirrors left and right; albumentations' own takes points for middles of pixels, ours lie between them."""

    def apply_to_keypoints(self, keypoints: np.ndarray, **params: Any) -> np.ndarray:
        moved = keypoints.copy()
        moved[:, 0] = params["shape"][1] - moved[:, 0]
        return moved


def multi_scale(sides: Sequence[int], max_side: int, crop: float) -> list[Any]:
    """Resizing to a random short side; some of the images are resized and cropped before.

    Args:
        sides: short sides in pixels to draw from.
        max_side: the most that the long side may have.
        crop: probability of resizing the short side to 400, 500 or 600 and cropping to sides of 384 to 600 before.
    """
    plain = RandomShortSide(sides, max_side, p=1 - crop)
    before = [RandomShortSide((400, 500, 600), None), RandomCrop(384, 600), RandomShortSide(sides, max_side)]
    return [A.OneOf([plain, A.Sequential(before, p=crop)], p=1.0)] if crop else [plain]


def large_scale_jitter(size: int, scales: tuple[float, float]) -> list[Any]:
    """Resizing to a random multiple of a square and cropping to that square at most.

    Args:
        size: the square's side in pixels.
        scales: least and greatest multiple.
    """
    return [RandomRescale((size, size), scales), RandomCrop(size, size)]


class DetectionTransform:
    """Resizes, crops and flips an image and its objects, by random numbers from torch's generator.

    Args:
        steps: transforms of albumentations that treat image, masks and keypoints alike.
        flip: probability of a horizontal flip.
        masks: whether masks are drawn, and boxes drawn around them.
    """

    def __init__(self, steps: Sequence[Any], flip: float, masks: bool) -> None:
        points = A.KeypointParams(format="xy", remove_invisible=False)
        self.transforms = A.Compose([*steps, Mirror(p=flip)], keypoint_params=points)
        self.masks = masks

    def __call__(
        self, image: np.ndarray, objects: Sequence[CocoObject], stuff: np.ndarray | None = None, where: str = "an image"
    ) -> Scene:
        """Objects of which nothing is left are left out.

        Args:
            image: uint8 (H, W, 3).
            objects: what is annotated on it.
            stuff: classes of its background, uint8 (H, W).
            where: what messages call the image.
        """
        outlines: list[np.ndarray] = []  # of each object its box's corners, then its polygons
        numbers: list[int] = []
        run_lengths: list[np.ndarray] = []
        for one in objects:
            left, top, across, down = one.box
            outlines.append(np.array([[left, top], [left + across, top + down]], dtype=np.float64))
            polygons = one.segmentation if self.masks and isinstance(one.segmentation, list) else []
            outlines += [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons]
            numbers.append(1 + len(polygons))
            if self.masks and isinstance(one.segmentation, dict):
                height, width = image.shape[:2]
                run_lengths.append(rasterize(one.segmentation, height, width, f"annotation {one.id} of {where}"))
        inputs: dict[str, Any] = {"image": image, "keypoints": np.concatenate([np.empty((0, 2)), *outlines])}
        if run_lengths:
            inputs["masks"] = np.stack(run_lengths)
        if stuff is not None:
            inputs["mask"] = stuff
        reseed(self.transforms)
        moved = self.transforms(**inputs)
        image, points = np.ascontiguousarray(moved["image"]), np.asarray(moved["keypoints"])
        lines = iter(np.split(points, np.cumsum([len(line) for line in outlines])[:-1]) if outlines else [])
        coded = iter(moved.get("masks", []))
        height, width = image.shape[:2]
        boxes, labels, masks = [], [], []
        for one, number in zip(objects, numbers, strict=True):
            corners, *outline = (next(lines) for _ in range(number))
            mask = None
            if self.masks and one.segmentation is not None:
                flat = [part.ravel().tolist() for part in outline]
                mask = next(coded) if isinstance(one.segmentation, dict) else rasterize(flat, height, width, where)
                if (box := bounds(mask)) is None:
                    continue
            else:
                box = np.concatenate([corners.min(0), corners.max(0)]).clip(0, [width, height, width, height])
                if min(box[2:] - box[:2]) < 1:
                    continue
            boxes.append(box)
            labels.append(one.label)
            if self.masks:
                masks.append(np.zeros((height, width), np.uint8) if mask is None else mask)
        return {
            "image": image,
            "boxes": np.array(boxes, dtype=np.float32).reshape(-1, 4),
            "labels": np.array(labels, dtype=np.int64),
            "masks": np.array(masks, dtype=np.uint8).reshape(-1, height, width) if self.masks else None,
            "stuff": np.ascontiguousarray(moved["mask"]) if stuff is not None else None,
        }


def bounds(mask: np.ndarray) -> np.ndarray | None:
    """Left, top, right and bottom edge of a mask's pixels; None where it has none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def copy_paste(scene: Scene, other: Scene) -> Scene:
    """Pastes random objects of another scene over a scene, at the place where they are there.

    What lies below is cut off; objects of which nothing is left are left out. Both need masks.
    """
    assert scene["masks"] is not None and other["masks"] is not None
    height, width = scene["image"].shape[:2]
    rows, columns = min(height, other["image"].shape[0]), min(width, other["image"].shape[1])
    chosen = np.flatnonzero(torch.rand(len(other["labels"])).numpy() < 0.5)
    pasted = np.zeros((len(chosen), height, width), np.uint8)
    pasted[:, :rows, :columns] = other["masks"][chosen, :rows, :columns]
    over: np.ndarray = pasted.max(axis=0, initial=0).astype(bool)
    image = scene["image"].copy()
    image[over] = other["image"][:rows, :columns][over[:rows, :columns]]
    boxed = ~scene["masks"].any(axis=(1, 2))  # nobody knows their pixels: they stay as they are
    masks = np.concatenate([scene["masks"] * ~over, pasted])
    labels = np.concatenate([scene["labels"], other["labels"][chosen]])
    boxes = [bounds(mask) for mask in masks]
    for k in np.flatnonzero(boxed):
        boxes[k] = scene["boxes"][k]
    kept = [k for k, box in enumerate(boxes) if box is not None]
    stuff = scene["stuff"]
    return {
        "image": image,
        "boxes": np.array([boxes[k] for k in kept], dtype=np.float32).reshape(-1, 4),
        "labels": labels[kept],
        "masks": masks[kept],
        "stuff": None if stuff is None else np.where(over, np.uint8(IGNORED), stuff),
    }
