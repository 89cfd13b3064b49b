from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from swinv2_tasks.datamodules.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    eval_transform,
    mix_transform,
    train_transform,
)
from swinv2_tasks.errors import UserError

NO_MEAN, NO_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
PLAIN: dict[str, Any] = {"mean": NO_MEAN, "std": NO_STD, "crop_scale": (1.0, 1.0), "flip": 0.0, "random_erasing": 0.0}


def photograph(height: int = 90, width: int = 120) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def names(transform: v2.Transform) -> list[str]:
    """Names of the steps, those inside RandomApply too."""
    inner = [name for step in getattr(transform, "transforms", []) for name in names(step)]
    return [type(transform).__name__, *inner]


@pytest.mark.parametrize("height", [90, 300])
def test_eval_is_resize_then_centre_crop(height: int) -> None:
    image = photograph(height, 130)
    resized = v2.functional.resize(image, 36, interpolation=InterpolationMode.BICUBIC)  # int(256 / 224 * 32)
    expected = v2.functional.to_image(v2.functional.center_crop(resized, [32, 32])) / 255
    torch.testing.assert_close(eval_transform(32, NO_MEAN, NO_STD)(image), expected.as_subclass(torch.Tensor))


def test_eval_without_a_crop_stretches_the_whole_image() -> None:
    image = photograph(90, 300)
    expected = torch.from_numpy(np.array(image.resize((48, 32), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 255
    torch.testing.assert_close(eval_transform((32, 48), NO_MEAN, NO_STD, crop_ratio=1.0)(image), expected)


def test_eval_of_another_shape_covers_it_and_keeps_proportions() -> None:
    image = photograph(100, 400)
    expected = v2.functional.center_crop(image.resize((320, 80), Image.Resampling.BICUBIC), [40, 140])
    tensor = eval_transform((40, 140), NO_MEAN, NO_STD, crop_ratio=0.5)(image)
    torch.testing.assert_close(tensor, v2.functional.to_image(expected).as_subclass(torch.Tensor) / 255)


@pytest.mark.parametrize("make", [train_transform, eval_transform])
@pytest.mark.parametrize(("size", "shape"), [(32, (3, 32, 32)), ((32, 48), (3, 32, 48))])
def test_results_are_plain_float_tensors(make: Callable, size: int | tuple[int, int], shape: tuple) -> None:
    tensor = make(size)(photograph())
    assert type(tensor) is torch.Tensor
    assert tensor.dtype == torch.float32
    assert tensor.shape == shape


def test_normalisation() -> None:
    gray = Image.new("RGB", (40, 40), (51, 51, 51))
    expected = (torch.tensor([0.2, 0.2, 0.2]) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(eval_transform(8)(gray)[:, 0, 0], expected)
    quiet = train_transform(8, rand_augment_ops=0, color_jitter=0, random_erasing=0)
    torch.testing.assert_close(quiet(gray)[:, 7, 3], expected)


def test_training_augments_unless_told_not_to() -> None:
    image = photograph(96, 96)
    quiet = train_transform(32, **PLAIN, rand_augment_ops=0, color_jitter=0)
    for seed in range(8):  # a square image and a full crop leave only the aspect ratio to chance
        torch.manual_seed(seed)
        assert (quiet(image) - eval_transform(32, NO_MEAN, NO_STD, crop_ratio=1.0)(image)).abs().mean() < 0.1
    flipped = train_transform(32, **(PLAIN | {"flip": 1.0}), rand_augment_ops=0, color_jitter=0)
    torch.manual_seed(0)
    expected = quiet(image).flip(-1)
    torch.manual_seed(0)
    assert (flipped(image) - expected).abs().mean() < 0.01


def test_each_drawn_rand_augment_operation_is_applied_half_of_the_time() -> None:
    image = photograph(64, 64)
    one = train_transform(32, **PLAIN, rand_augment_ops=1, rand_augment_magnitude=10, color_jitter=0)
    changed = 0
    for seed in range(200):
        torch.manual_seed(seed)
        augmented = one(image)
        torch.manual_seed(seed)
        changed += not torch.equal(augmented, train_transform(32, **PLAIN, rand_augment_ops=0, color_jitter=0)(image))
    assert 60 < changed < 120  # half of 200, less where the identity or nothing to change was drawn


def test_colour_jitter_only_without_rand_augment() -> None:
    assert "RandAugment" in names(train_transform(32))
    assert "ColorJitter" not in names(train_transform(32))
    assert "RandAugment" not in names(train_transform(32, rand_augment_ops=0))
    assert "ColorJitter" in names(train_transform(32, rand_augment_ops=0))


def test_erased_rectangles_hold_noise() -> None:
    erase = train_transform(64, **(PLAIN | {"random_erasing": 1.0}), rand_augment_ops=0, color_jitter=0)
    torch.manual_seed(0)
    tensor = erase(Image.new("RGB", (64, 64), (255, 255, 255)))
    erased = tensor[tensor != 1]
    assert 0.02 * tensor.numel() < erased.numel() < 0.4 * tensor.numel()
    assert 0.9 < erased.std() < 1.1  # one value for the rectangle would have no spread


def batch() -> dict[str, torch.Tensor]:
    label = torch.arange(6)
    image = label.float().view(6, 1, 1, 1).expand(6, 3, 16, 16).clone()  # every pixel tells whose it is
    return {"image": image, "label": label}


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_labels_tell_the_shares_of_the_pixels(mixup: float, cutmix: float) -> None:
    mix = mix_transform(6, mixup, cutmix)
    assert mix is not None
    torch.manual_seed(0)
    for _ in range(20):
        mixed = mix(batch())
        assert mixed["label"].shape == (6, 6)
        torch.testing.assert_close(mixed["label"].sum(1), torch.ones(6))
        torch.testing.assert_close(mixed["image"].mean((1, 2, 3)), mixed["label"] @ torch.arange(6.0))


def test_switch_chooses_between_mixup_and_cutmix() -> None:
    def blended(switch: float) -> float:
        """Share of the batches with pixels that are neither the one image nor the other."""
        mix = mix_transform(6, 0.8, 1.0, switch)
        assert mix is not None
        torch.manual_seed(0)
        return sum(bool((mix(batch())["image"] % 1).any()) for _ in range(100)) / 100

    assert blended(0.0) > 0.95
    assert blended(1.0) == 0
    assert 0.3 < blended(0.5) < 0.7


def test_no_mixing_when_both_are_off() -> None:
    assert mix_transform(6, 0.0, 0.0) is None


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (train_transform, {"image_size": 0}),
        (train_transform, {"image_size": (32, -1)}),
        (train_transform, {"crop_scale": (0.5, 0.2)}),
        (train_transform, {"crop_scale": (0.0, 1.0)}),
        (train_transform, {"flip": 1.5}),
        (train_transform, {"rand_augment_ops": -1}),
        (train_transform, {"rand_augment_magnitude": 31}),
        (train_transform, {"color_jitter": -0.1}),
        (train_transform, {"random_erasing": 2.0}),
        (eval_transform, {"crop_ratio": 0.0}),
        (eval_transform, {"crop_ratio": 1.1}),
        (mix_transform, {"mixup": -1.0}),
        (mix_transform, {"cutmix": -1.0}),
        (mix_transform, {"switch": 2.0}),
    ],
)
def test_values_out_of_range_are_named(make: Callable, wrong: dict) -> None:
    size = {"num_classes": 2} if make is mix_transform else {"image_size": 32}
    with pytest.raises(UserError, match=next(iter(wrong))):
        make(**(size | wrong))
