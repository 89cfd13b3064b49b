"""Lists of transforms of albumentations and torchvision, as configs state them: which there may be, and presets.

An entry is a mapping of ``name`` and arguments: ``{name: albumentations.HorizontalFlip, p: 0.5}``. Nothing is imported
here: what entries build is in `listed_steps.py`.

TrivialAugment: https://arxiv.org/abs/2103.10158; AugMix: https://arxiv.org/abs/1912.02781; 3-Augment:
https://arxiv.org/abs/2204.07118, section 3.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

from swinv2_tasks.errors import UserError
from swinv2_tasks.text import printable

TransformList = tuple[dict[str, Any], ...]
"""Mappings of ``name`` and arguments, which are plain values; a list of them does as well."""

Preset = Literal["none", "light", "published", "aerial", "medical"]
"""What every task has."""

ImagePreset = Literal["none", "light", "published", "aerial", "medical", "trivial_augment", "augmix", "three_augment"]
"""What tasks without boxes and masks have."""

ALBUMENTATIONS = "albumentations"
TORCHVISION = "torchvision.transforms.v2"

MOST_ENTRIES = 100
"""Of a list, with those within others."""

_ELSEWHERE = "images are converted and normalized afterwards, by data.mean and data.std"
_OTHER_IMAGES = "it takes other images, from files or from code"
_AFTERWARDS = "boxes are converted, clipped and left out afterwards"
_MIXING = "it mixes a batch: the settings mixup and cutmix of the augmentation do"
_SEVERAL = "it makes several images of one"

REFUSED = {
    **dict.fromkeys((f"{ALBUMENTATIONS}.Lambda", f"{TORCHVISION}.Lambda"), "it runs code that is no plain value"),
    **dict.fromkeys(
        (
            *(f"{ALBUMENTATIONS}.{name}" for name in ("Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D")),
            *(f"{TORCHVISION}.{name}" for name in ("Normalize", "LinearTransformation", "ToDtype", "ToImage")),
            *(f"{TORCHVISION}.{name}" for name in ("ConvertImageDtype", "ToPILImage", "ToPureTensor", "ToTensor")),
            f"{TORCHVISION}.PILToTensor",
        ),
        _ELSEWHERE,
    ),
    **dict.fromkeys(
        (
            *(f"{ALBUMENTATIONS}.{name}" for name in ("FDA", "HistogramMatching", "PixelDistributionAdaptation")),
            *(f"{ALBUMENTATIONS}.{name}" for name in ("TemplateTransform", "Mosaic", "OverlayElements")),
        ),
        _OTHER_IMAGES,
    ),
    f"{ALBUMENTATIONS}.TextImage": "it reads a font's file",
    **dict.fromkeys(
        (f"{ALBUMENTATIONS}.Compose", f"{ALBUMENTATIONS}.ReplayCompose"), f"take {ALBUMENTATIONS}.Sequential"
    ),
    f"{ALBUMENTATIONS}.SelectiveChannelTransform": "its transforms would get images of other channels",
    **dict.fromkeys(
        (
            *(f"{TORCHVISION}.{name}" for name in ("ConvertBoundingBoxFormat", "ClampBoundingBoxes", "ClampKeyPoints")),
            *(f"{TORCHVISION}.{name}" for name in ("SanitizeBoundingBoxes", "SanitizeKeyPoints", "SetClampingMode")),
        ),
        _AFTERWARDS,
    ),
    **dict.fromkeys((f"{TORCHVISION}.MixUp", f"{TORCHVISION}.CutMix"), _MIXING),
    **dict.fromkeys((f"{TORCHVISION}.FiveCrop", f"{TORCHVISION}.TenCrop"), _SEVERAL),
    f"{TORCHVISION}.UniformTemporalSubsample": "which frames a clip has is set by data.sampling",
}
"""Transforms that no list may name, and why."""

CONTAINERS = (
    *(f"{ALBUMENTATIONS}.{name}" for name in ("OneOf", "SomeOf", "RandomOrder", "Sequential", "OneOrOther")),
    *(f"{TORCHVISION}.{name}" for name in ("RandomApply", "RandomChoice", "RandomOrder", "Compose")),
)
"""Transforms that take a list of others as ``transforms``."""


def library_of(name: str) -> str:
    """The library of a transform's name; empty for names of other modules."""
    library, _, last = name.rpartition(".")
    return library if library in (ALBUMENTATIONS, TORCHVISION) and last.isidentifier() else ""


def check_entries(entries: Any) -> None:
    """Refuses what is no list of transforms that may be named, before anything is imported.

    Raises:
        UserError: An entry has no name, names something else, or has arguments that are no plain values.
    """
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise UserError(
            f"data.augmentation is {printable(entries)[:80]}; expected a list of transforms such as "
            f"{{name: {ALBUMENTATIONS}.HorizontalFlip, p: 0.5}}."
        )
    for number, (where, entry) in enumerate(walk(entries)):
        if number >= MOST_ENTRIES:
            raise UserError(f"data.augmentation lists more than {MOST_ENTRIES} transforms.")
        _check_entry(entry, where)


def walk(entries: Sequence[Any], where: str = "data.augmentation") -> Iterator[tuple[str, Any]]:
    """All entries with those within others, each with where it stands, from 1.

    Raises:
        UserError: Lists are nested too deep.
    """
    if where.count(", ") > 8:
        raise UserError("data.augmentation nests lists of transforms too deep: at most 8 of them.")
    for number, entry in enumerate(entries, 1):
        position = f"{where}, transform {number}"
        yield position, entry
        if isinstance(entry, dict) and entry.get("name") in CONTAINERS:
            inner = entry.get("transforms")
            if not isinstance(inner, list | tuple) or not inner:
                raise UserError(f"{position}: {entry['name']} takes a list of other transforms as `transforms`.")
            yield from walk(inner, position)


def _check_entry(entry: Any, where: str) -> None:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise UserError(
            f"{where} is {printable(entry)[:80]}; expected a mapping with `name` and the transform's arguments, such "
            f"as {{name: {ALBUMENTATIONS}.HorizontalFlip, p: 0.5}}."
        )
    if not library_of(name):
        raise UserError(
            f"{where}: {printable(name)[:80]} is not imported; expected a transform of {ALBUMENTATIONS} or "
            f"{TORCHVISION}, by its whole name. Code of your own goes into a class: docs/extending.md."
        )
    if name in REFUSED:
        raise UserError(f"{where}: {name} is not for this list: {REFUSED[name]}.")
    for argument, value in entry.items():
        if not isinstance(argument, str) or not _is_plain(value):
            raise UserError(
                f"{where}: {printable(argument)[:40]} of {name} is no plain value; expected numbers, text or lists."
            )


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(entry) for key, entry in value.items())
    return value is None or isinstance(value, bool | int | float | str)


# ---- presets


def check_preset(name: str, choices: Any) -> None:
    """Refuses names of presets that there are not.

    Raises:
        UserError: There is no such preset.
    """
    if name not in get_args(choices):
        raise UserError(
            f"data.augmentation is {printable(name)[:80]!r}; expected one of {', '.join(get_args(choices))}."
        )


def preset_of_images(name: str, image_size: tuple[int, int]) -> TransformList:
    """The transforms of a preset other than `published`, for images or clips that become `image_size`.

    Args:
        name: Of the preset.
        image_size: Height and width of the result in pixels.
    """
    scales = {"light": [0.5, 1.0], "aerial": [0.5, 1.0], "medical": [0.7, 1.0]}
    if name in scales:
        crop = {"name": f"{ALBUMENTATIONS}.RandomResizedCrop", "size": list(image_size), "scale": scales[name]}
        return (crop, *_changes(name))
    if name == "none":
        return ()
    return (
        {"name": f"{TORCHVISION}.RandomResizedCrop", "size": list(image_size), "interpolation": "bicubic"},
        {"name": f"{TORCHVISION}.RandomHorizontalFlip", "p": 0.5},
        *_AUTOMATIC[name],
    )


def preset_of_scenes(name: str) -> TransformList:
    """The transforms of a preset other than `published`, for images with boxes or masks: never larger than before.

    Args:
        name: Of the preset.
    """
    scales = {"light": [-0.25, 0.0], "aerial": [-0.5, 0.0], "medical": [-0.15, 0.0]}
    if name not in scales:
        return ()
    return ({"name": f"{ALBUMENTATIONS}.RandomScale", "scale_limit": scales[name], "p": 1.0}, *_changes(name))


def _changes(name: str) -> TransformList:
    """What a preset does beyond the image's scale."""

    def change(of: str, **arguments: Any) -> dict[str, Any]:
        return {"name": f"{ALBUMENTATIONS}.{of}", **arguments}

    lighting = change("RandomBrightnessContrast", brightness_limit=0.2, contrast_limit=0.2, p=0.5)
    if name == "light":
        return (change("HorizontalFlip", p=0.5), lighting)
    if name == "aerial":  # there is no up, and the sun and the season change
        shifts = {"hue_shift_limit": 10, "sat_shift_limit": 20, "val_shift_limit": 0}
        return (change("SquareSymmetry", p=1.0), lighting, change("HueSaturationValue", **shifts, p=0.5))
    # Sides and colors mean something; devices differ in contrast, noise and sharpness, patients in shape and posture.
    return (
        change("Affine", rotate=[-15, 15], translate_percent=[-0.05, 0.05], p=0.75),
        change("ElasticTransform", alpha=30, sigma=10, p=0.25),
        lighting,
        change("RandomGamma", gamma_limit=[80, 125], p=0.5),
        change("GaussNoise", std_range=[0.01, 0.05], p=0.25),
        change("GaussianBlur", sigma_limit=[0.5, 1.0], p=0.1),
    )


def _torchvision(of: str, **arguments: Any) -> dict[str, Any]:
    return {"name": f"{TORCHVISION}.{of}", **arguments}


_AUTOMATIC: dict[str, TransformList] = {
    "trivial_augment": (_torchvision("TrivialAugmentWide", interpolation="bilinear"),),
    "augmix": (_torchvision("AugMix", interpolation="bilinear"),),
    "three_augment": (
        _torchvision(
            "RandomChoice",
            transforms=[
                _torchvision("RandomGrayscale", p=1.0),
                _torchvision("RandomSolarize", threshold=128, p=1.0),
                _torchvision("GaussianBlur", kernel_size=13, sigma=[0.1, 2.0]),
            ],
        ),
        _torchvision("ColorJitter", brightness=0.3, contrast=0.3, saturation=0.3),
    ),
}
"""What presets do after a random crop and a horizontal flip."""
