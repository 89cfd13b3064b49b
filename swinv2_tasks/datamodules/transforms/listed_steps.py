"""What lists of transforms build: image, boxes and masks in step, by random numbers from torch's generator.

A module of its own, since albumentations takes a second to import and only training needs it. Which entries there may
be is in `transform_lists.py`.
"""

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

from swinv2_tasks.batches import IGNORED
from swinv2_tasks.datamodules.readers.packed_images import CocoObject
from swinv2_tasks.datamodules.transforms.classification import (
    CutStrip,
    ResizeToCover,
    fitting_size,
    normalization_steps,
    resize,
    treat_alike,
)
from swinv2_tasks.datamodules.transforms.detection_steps import DetectionTransform, RandomShortestSize, clip_box
from swinv2_tasks.datamodules.transforms.scenes import Scene, mask_bounds
from swinv2_tasks.datamodules.transforms.segmentation_steps import A, ClassLimitedCrop, reseed
from swinv2_tasks.datamodules.transforms.transform_lists import ALBUMENTATIONS, CONTAINERS, TransformList, library_of
from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable


@dataclass(frozen=True)
class Sample:
    """What the transforms of a list change alike."""

    image: np.ndarray
    """uint8 (H, W, 3), or float32 (H, W, C) of other channels."""

    label_map: np.ndarray | None = None
    """uint8 (H, W), counted down from 255: what is ignored is 0, with which transforms fill what lies beyond images."""

    masks: np.ndarray | None = None
    """uint8 (m, H, W) of 0 and 1."""

    boxes: np.ndarray | None = None
    """float32 (n, 4): left, top, right, bottom."""

    indices: np.ndarray | None = None
    """int64 (n,): which object each box is of."""


Stage = Callable[[Sample], Sample]
"""Consecutive transforms of one library."""


class ListedTransforms:
    """The transforms of a list, one after the other.

    Args:
        entries: The list.
        label_maps: Whether samples have label maps …
        objects: … or boxes and masks of objects.
        last: A transform of albumentations that follows.

    Raises:
        UserError: A transform does not exist, has other arguments, or does not keep boxes or masks in step.
    """

    def __init__(
        self, entries: TransformList, label_maps: bool = False, objects: bool = False, last: Any = None
    ) -> None:
        builder = _Builder(label_maps, objects)
        steps = [builder.build(entry, f"data.augmentation, transform {k}") for k, entry in enumerate(entries, 1)]
        if last is not None:
            steps.append(last)
        self.stages: list[Stage] = []
        for is_torchvision, group in groupby(steps, lambda step: isinstance(step, v2.Transform)):
            members = [*group]
            self.stages.append(TorchvisionStage(members) if is_torchvision else AlbumentationsStage(members, objects))

    def __call__(self, sample: Sample) -> Sample:
        """A sample after all transforms.

        Raises:
            UserError: A transform cannot be applied to it, such as one of colors to an image that is not RGB, or gives
                an image of another type or of other channels.
        """
        channels, dtype = sample.image.shape[2], sample.image.dtype
        for stage in self.stages:
            height, width = sample.image.shape[:2]
            try:
                sample = stage(sample)
            except Exception as error:  # transforms raise whatever they do not expect
                raise UserError(
                    f"data.augmentation cannot be applied to an image of {width}×{height} pixels and {channels} "
                    f"channels: {printable(error)[:300]}."
                ) from error
            _check_result(sample, channels, dtype)
        return sample


class AlbumentationsStage:
    """Transforms of albumentations.

    Args:
        steps: The transforms.
        objects: Whether samples have boxes.
    """

    def __init__(self, steps: Sequence[Any], objects: bool) -> None:
        boxes = A.BboxParams("pascal_voc", label_fields=["indices"], clip=True, filter_invalid_bboxes=True)
        # It warns of boxes where no transform has to do with them.
        self.transforms = A.Compose([*steps, A.NoOp(p=1.0)], bbox_params=boxes if objects else None)

    def __call__(self, sample: Sample) -> Sample:
        """Applies them with random numbers of their own."""
        inputs: dict[str, Any] = {"image": sample.image}
        if sample.label_map is not None:
            inputs["mask"] = sample.label_map
        if sample.masks is not None and len(sample.masks):
            inputs["masks"] = sample.masks
        if sample.boxes is not None:
            inputs |= {"bboxes": sample.boxes, "indices": sample.indices}

        reseed(self.transforms)
        outputs = self.transforms(**inputs)

        image = outputs["image"]
        masks = np.asarray(outputs["masks"]) if "masks" in inputs else sample.masks
        if masks is not None and not len(masks):
            masks = np.zeros((0, *image.shape[:2]), np.uint8)
        return Sample(
            image,
            outputs.get("mask"),
            masks,
            None if sample.boxes is None else np.asarray(outputs["bboxes"], np.float32).reshape(-1, 4),
            None if sample.boxes is None else np.asarray(outputs["indices"], np.int64),
        )


class TorchvisionStage:
    """Transforms of torchvision.

    Args:
        steps: The transforms.
    """

    def __init__(self, steps: Sequence[v2.Transform]) -> None:
        self.transforms = v2.Compose(steps)

    def __call__(self, sample: Sample) -> Sample:
        """Applies them with torch's random numbers."""
        inputs: dict[str, Tensor] = {"image": tv_tensors.Image(torch.from_numpy(sample.image).permute(2, 0, 1))}
        for name in ("label_map", "masks"):
            if (values := getattr(sample, name)) is not None:
                inputs[name] = tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(values)))
        if sample.boxes is not None:
            inputs["boxes"] = tv_tensors.BoundingBoxes(
                torch.from_numpy(sample.boxes), format="XYXY", canvas_size=sample.image.shape[:2]
            )

        outputs = {name: value.as_subclass(Tensor).numpy() for name, value in self.transforms(inputs).items()}

        outputs["image"] = np.ascontiguousarray(outputs["image"].transpose(1, 2, 0))
        return replace(sample, **outputs)


def _writable(image: Any) -> np.ndarray:
    """An image as an array that transforms may write into: those that read files are not."""
    return np.require(image, requirements=["C", "W"])


def _check_result(sample: Sample, channels: int, dtype: np.dtype) -> None:
    image = sample.image
    if not isinstance(image, np.ndarray) or image.dtype != dtype or image.ndim != 3 or image.shape[2] != channels:
        raise UserError(
            f"data.augmentation gives {getattr(image, 'dtype', 'no')} pixels of shape {tuple(image.shape)}; expected "
            f"an image {dtype} (H, W, {channels}). It is converted and normalized afterwards."
        )
    for masks in (sample.label_map, sample.masks):
        if masks is not None and masks.shape[-2:] != image.shape[:2]:
            raise UserError(
                f"data.augmentation gives masks of {masks.shape[-1]}×{masks.shape[-2]} pixels for an image of "
                f"{image.shape[1]}×{image.shape[0]}: one of its transforms does not keep them in step."
            )


# ---- transforms by name

_FILLS = ("fill_mask", "mask_drop_value")
"""Arguments of albumentations that say what masks are filled with."""


class _Builder:
    """Makes transforms of entries that `transform_lists.check_entries` has looked through.

    Args:
        label_maps: Whether samples have label maps.
        objects: Whether they have boxes and masks of objects.
    """

    def __init__(self, label_maps: bool, objects: bool) -> None:
        self.label_maps = label_maps
        self.objects = objects

    def build(self, entry: dict[str, Any], where: str) -> Any:
        """The transform of an entry.

        Args:
            entry: The entry.
            where: What messages call it.
        """
        arguments = dict(entry)
        name = arguments.pop("name")
        where = f"{where}: {name}"
        library = A if library_of(name) == ALBUMENTATIONS else v2
        cls = _find(library, name, where)
        self._check_targets(cls, where)
        _check_names(cls, arguments, where)

        if name in CONTAINERS:
            inner = arguments["transforms"]
            arguments["transforms"] = [self.build(other, f"{where}, transform {k}") for k, other in enumerate(inner, 1)]
            if any(isinstance(step, v2.Transform) != (library is v2) for step in arguments["transforms"]):
                raise UserError(f"{where} takes transforms of its own library only.")
        elif library is A:
            arguments = {key: self._mask_argument(key, value, where) for key, value in arguments.items()}
        else:
            arguments = {key: self._torchvision_argument(key, value, where) for key, value in arguments.items()}

        try:
            transform = cls(**arguments)
        except Exception as error:  # constructors raise whatever their values provoke
            reason = " ".join(str(error).split())
            raise UserError(f"{where} does not take these arguments: {printable(reason)[:300]}.") from error
        if library is A and name not in CONTAINERS:
            self._check_inputs(transform, where)
        return transform

    def _check_targets(self, cls: type, where: str) -> None:
        """Refuses a transform that moves or removes pixels, and leaves boxes and masks where they were."""
        if not (self.label_maps or self.objects):
            return
        if issubclass(cls, v2.AutoAugment | v2.RandAugment | v2.TrivialAugmentWide | v2.AugMix):
            raise UserError(f"{where} cannot keep boxes and masks in step: it moves the pixels of images alone.")
        if issubclass(cls, v2.RandomErasing):
            raise UserError(
                f"{where} cannot keep boxes and masks in step: they would stay where the image is erased. "
                f"{ALBUMENTATIONS}.CoarseDropout has fill_mask for label maps."
            )
        if issubclass(cls, A.RandomGridShuffle) and self.objects:
            raise UserError(f"{where} cannot keep boxes in step: it cuts objects apart.")
        if issubclass(cls, A.Morphological) and self.label_maps:
            raise UserError(f"{where} cannot keep label maps in step: it would take class numbers for brightness.")

    def _check_inputs(self, transform: Any, where: str) -> None:
        """Refuses a transform of albumentations that needs something that samples do not have."""
        given = {"image", "bboxes"} if self.objects else {"image"}
        if others := sorted({*transform.targets_as_params} - given):
            raise UserError(f"{where} looks at {' and '.join(others)}, which it is not given.")
        if isinstance(transform, A.ImageOnlyTransform):
            return
        wanted = {"image"} | ({"mask"} if self.label_maps else {"masks", "bboxes"} if self.objects else set())
        if missing := sorted(wanted - transform.available_keys):
            raise UserError(f"{where} cannot keep {' and '.join(missing)} in step: it does not transform them.")

    def _mask_argument(self, key: str, value: Any, where: str) -> Any:
        """An argument of albumentations; those about masks are about label maps, which are counted down from 255."""
        if key == "mask_interpolation" and value != cv2.INTER_NEAREST:
            raise UserError(f"{where}: mask_interpolation is {value}; expected 0: masks have no values in between.")
        if key not in _FILLS or value is None:
            return value
        if self.objects and value != 0:
            raise UserError(f"{where}: {key} is {value}; expected 0 or null: masks of objects end at the image's edge.")
        if self.label_maps and not (isinstance(value, int) and 0 <= value <= IGNORED):
            raise UserError(f"{where}: {key} is {value}; expected a class index, or {IGNORED}, which is ignored.")
        return IGNORED - value if self.label_maps else value

    def _torchvision_argument(self, key: str, value: Any, where: str) -> Any:
        """An argument of torchvision; names stand for what is no plain value there."""
        if key == "fill" and (self.label_maps or self.objects):
            return {tv_tensors.Mask: 0, "others": value}
        enums = {"interpolation": InterpolationMode, "policy": AutoAugmentPolicy}
        if key not in enums or not isinstance(value, str):
            return value
        try:
            return enums[key](value)
        except ValueError as error:
            choices = ", ".join(choice.value for choice in enums[key])
            raise UserError(f"{where}: {key} is {printable(value)!r}; expected one of {choices}.") from error


_BASES = (A.BasicTransform, A.DualTransform, A.ImageOnlyTransform, A.Transform3D, v2.Transform)
"""Classes that others derive from."""


def _find(library: Any, name: str, where: str) -> type:
    """The class of a transform.

    Raises:
        UserError: The library has none of this name.
    """
    base = (A.BasicTransform, A.BaseCompose) if library is A else v2.Transform
    last = name.rpartition(".")[2]
    cls: Any = getattr(library, last, None)
    is_transform = inspect.isclass(cls) and issubclass(cls, base) and cls not in _BASES
    if is_transform and not last.startswith("_") and (not issubclass(cls, A.BaseCompose) or name in CONTAINERS):
        return cls
    known = [key for key, value in vars(library).items() if inspect.isclass(value) and issubclass(value, base)]
    nearest = difflib.get_close_matches(last, known, n=1)
    hint = f"; did you mean {name.rpartition('.')[0]}.{nearest[0]}?" if nearest else "."
    raise UserError(f"{where} is no transform{hint}")


def _check_names(cls: type, arguments: dict[str, Any], where: str) -> None:
    """Refuses arguments that a transform does not have: albumentations would warn and leave them out.

    Raises:
        UserError: There is one.
    """
    known = [name for name in inspect.signature(cls).parameters if name not in ("args", "kwargs")]
    for name in arguments:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"It has {', '.join(known)}."
            raise UserError(f"{where} has no argument {printable(name)[:40]}; {hint}")


# ---- what each task makes of a list


class ListedImage:
    """The transforms of a list, then the model's size: PIL image or array uint8 (H, W, 3) -> (3, h, w) float32.

    Images of C other channels are float32 (C, H, W), and keep them.
    Where the list does not give an image of that size, it is resized to cover it, and its middle is cropped.

    Args:
        entries: The list.
        image_size: Height and width of the result in pixels.
        mean: Subtracted from RGB in [0, 1].
        std: Divides the difference.
    """

    def __init__(
        self,
        entries: TransformList,
        image_size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.transforms = ListedTransforms(entries)
        self.image_size = image_size
        size = [*image_size]
        self.fit = v2.Compose([v2.ToImage(), CutStrip(size), ResizeToCover(size), v2.CenterCrop(size)])
        self.normalize = v2.Compose([*normalization_steps(mean, std), v2.ToPureTensor()])

    def __call__(self, image: Any) -> Tensor:
        """Transforms, fits and normalizes an image."""
        if isinstance(image, Tensor):  # of other channels than RGB
            image = image.permute(1, 2, 0).numpy()
        pixels = self.transforms(Sample(_writable(image))).image
        return self.normalize(pixels if pixels.shape[:2] == self.image_size else self.fit(pixels))


class ListedClip:
    """The same for all frames of a clip, with the same random numbers: uint8 (T, 3, H, W) -> (T, 3, h, w) float32.

    Args:
        of_image: What is done to a frame.
    """

    def __init__(self, of_image: ListedImage) -> None:
        self.of_image = of_image

    def __call__(self, clip: Tensor) -> Tensor:
        """Transforms, fits and normalizes a clip."""
        return treat_alike(clip, lambda frame: self.of_image(np.ascontiguousarray(frame.permute(1, 2, 0).numpy())))


class ListedScene:
    """Resizes image and label map as evaluation does, applies the transforms of a list, and crops what is larger.

    Args:
        entries: The list.
        crop_size: Height and width that results have at most.
        limits: What the long and the short side may have, in pixels; None: as many as they have.
    """

    def __init__(self, entries: TransformList, crop_size: tuple[int, int], limits: tuple[int, int] | None) -> None:
        crop = ClassLimitedCrop(crop_size, cat_max_ratio=1.0)
        self.transforms = ListedTransforms(entries, label_maps=True, last=crop)
        self.limits = limits

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (H, W, 3) and mask uint8 (H, W), 255 where ignored -> the same of another size."""
        size = fitting_size(image.shape[:2], self.limits)
        if size != image.shape[:2]:
            image = resize(image, size)
            mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        done = self.transforms(Sample(_writable(image), IGNORED - mask))
        assert done.label_map is not None
        return np.ascontiguousarray(done.image), IGNORED - done.label_map


class ListedObjects:
    """Resizes an image with its objects as evaluation does, and applies the transforms of a list.

    A box is the bounds of its object's mask where there is one. Objects of which nothing is left are left out, and
    those that have only a box when less than a pixel is left of it.

    Args:
        entries: The list.
        limits: What the long and the short side may have, in pixels; None: as many as they have.
        masks: Whether masks are wanted.
    """

    def __init__(self, entries: TransformList, limits: tuple[int, int] | None, masks: bool) -> None:
        steps = [A.NoOp(p=1.0)] if limits is None else [RandomShortestSize([limits[1]], limits[0])]
        self.resize = DetectionTransform(steps, masks)
        self.transforms = ListedTransforms(entries, objects=True)

    def __call__(
        self, image: np.ndarray, objects: Sequence[CocoObject], stuff: np.ndarray | None = None, where: str = "an image"
    ) -> Scene:
        """Makes a scene of an image uint8 (H, W, 3), its objects and the classes of its background."""
        scene = self.resize(image, objects, stuff, where)
        masks = scene["masks"]
        has_mask = np.zeros(len(scene["labels"]), bool)
        if masks is not None:
            has_mask |= masks.any(axis=(1, 2))
        done = self.transforms(
            Sample(
                _writable(scene["image"]),
                None if scene["stuff"] is None else IGNORED - scene["stuff"],
                None if masks is None else masks[has_mask],
                scene["boxes"],
                np.arange(len(has_mask)),
            )
        )
        assert done.boxes is not None and done.indices is not None
        height, width = done.image.shape[:2]

        moved: list[tuple[int, np.ndarray | None, np.ndarray | None]] = []  # index, box, mask
        for index, box in zip(done.indices.tolist(), done.boxes, strict=True):
            if not has_mask[index]:  # more than once where an image is continued by its reflection
                moved.append((index, clip_box(box.reshape(2, 2), height, width), None))
        for index, mask in zip(
            np.flatnonzero(has_mask).tolist(), () if done.masks is None else done.masks, strict=True
        ):
            moved.append((index, mask_bounds(mask), mask))
        kept = [entry for entry in sorted(moved, key=lambda entry: entry[0]) if entry[1] is not None]

        empty = np.zeros((height, width), np.uint8)
        drawn = [empty if mask is None else mask for _, _, mask in kept]
        return {
            "image": np.ascontiguousarray(done.image),
            "boxes": np.array([box for _, box, _ in kept], dtype=np.float32).reshape(-1, 4),
            "labels": scene["labels"][[index for index, _, _ in kept]],
            "masks": None if masks is None else np.array(drawn, dtype=np.uint8).reshape(-1, height, width),
            "stuff": None if done.label_map is None else np.ascontiguousarray(IGNORED - done.label_map),
        }
