"""Augmentations as lists of albumentations and torchvision, and presets: what they do, keep in step and refuse."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from benchmarks.whole_runs import compare_runs
from swinv2_tasks.batches import IGNORED
from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules import (
    ClassificationTransformList,
    DetectionTransformList,
    ImageNetAugmentation,
    ImageNetDataModule,
    SegmentationTransformList,
    VideoTransformList,
)
from swinv2_tasks.datamodules.loader import BatchOrder, repeat_order
from swinv2_tasks.datamodules.readers.packed_images import CocoObject
from swinv2_tasks.datamodules.transforms.classification import IMAGENET_MEAN, IMAGENET_STD
from swinv2_tasks.datamodules.transforms.listed_steps import ListedTransforms, Sample
from swinv2_tasks.datamodules.transforms.scenes import mask_bounds
from swinv2_tasks.datamodules.transforms.transform_lists import preset_of_images, preset_of_scenes
from swinv2_tasks.errors import UserError
from swinv2_tasks.hyperparameters import recorded_arguments
from swinv2_tasks.sample_data.writer import annotation
from tests.helpers import tiny
from tests.helpers.processes import run, send_at
from tests.helpers.resuming import RESUME, differences, newest
from tests.helpers.tiny_tasks import TINY_TASKS

PRESETS = ("none", "light", "published", "aerial", "medical")

IMAGE_PRESETS = (*PRESETS, "trivial_augment", "augmix", "three_augment")

NOTHING: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
"""No normalization."""


def a(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": f"albumentations.{name}", **arguments}


def t(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": f"torchvision.transforms.v2.{name}", **arguments}


def photograph(height: int = 72, width: int = 90, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


# ---- the transforms of the libraries, with the same random numbers


@pytest.mark.parametrize("seed", range(3))
def test_transforms_of_albumentations_do_what_they_do_alone(seed: int) -> None:
    entries = (
        a("OneOf", transforms=[a("GaussNoise"), a("Blur", blur_limit=[3, 7])], p=0.9),
        a("RandomResizedCrop", size=[48, 40], scale=[0.3, 1.0]),
        a("HueSaturationValue", p=0.8),
    )
    plain = [
        A.OneOf([A.GaussNoise(), A.Blur(blur_limit=(3, 7))], p=0.9),
        A.RandomResizedCrop((48, 40), scale=(0.3, 1.0)),
        A.HueSaturationValue(p=0.8),
    ]
    torch.manual_seed(seed)
    ours = ListedTransforms(entries)(Sample(photograph())).image
    torch.manual_seed(seed)
    drawn = int(torch.randint(2**62, ()))
    compose = A.Compose(plain)
    compose.set_random_state(np.random.default_rng(drawn), random.Random(drawn))
    assert np.array_equal(ours, compose(image=photograph())["image"])


@pytest.mark.parametrize("seed", range(3))
def test_transforms_of_torchvision_do_what_they_do_alone(seed: int) -> None:
    entries = (
        t("RandomAffine", degrees=30, interpolation="bilinear"),
        t("RandomChoice", transforms=[t("TrivialAugmentWide"), t("AugMix")]),
        t("RandomApply", transforms=[t("ColorJitter", brightness=0.4)], p=0.5),
    )
    plain = v2.Compose(
        [
            v2.RandomAffine(30, interpolation=InterpolationMode.BILINEAR),
            v2.RandomChoice([v2.TrivialAugmentWide(), v2.AugMix()]),
            v2.RandomApply([v2.ColorJitter(brightness=0.4)], p=0.5),
        ]
    )
    torch.manual_seed(seed)
    ours = ListedTransforms(entries)(Sample(photograph())).image
    torch.manual_seed(seed)
    theirs = plain(tv_tensors.Image(torch.from_numpy(photograph()).permute(2, 0, 1)))
    assert np.array_equal(ours, theirs.permute(1, 2, 0).numpy())


def test_both_libraries_take_turns_and_leave_the_global_generators_of_numpy_and_python_alone() -> None:
    entries = (t("RandomHorizontalFlip", p=1.0), a("VerticalFlip", p=1.0), t("RandomHorizontalFlip", p=1.0))
    states = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    assert np.array_equal(ListedTransforms(entries)(Sample(photograph())).image, photograph()[::-1])
    assert random.getstate() == states[0] and np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[arg-type]


def test_an_image_gets_the_models_size_where_the_list_does_not_give_it() -> None:
    image = photograph(60, 90)
    torch.manual_seed(0)
    fitted = ClassificationTransformList(()).build((30, 30), **NOTHING)(Image.fromarray(image))
    expected = v2.Compose([v2.Resize(30, interpolation=InterpolationMode.BICUBIC), v2.CenterCrop(30)])
    whole = expected(tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))) / 255
    torch.testing.assert_close(fitted, whole.as_subclass(torch.Tensor))
    listed = ClassificationTransformList((a("Resize", height=30, width=30),))
    exact = listed.build((30, 30), **NOTHING)(Image.fromarray(image))
    assert np.array_equal((exact * 255).round().byte().permute(1, 2, 0), A.Resize(30, 30)(image=image)["image"])


def test_three_augment_is_one_of_three_changes_and_color_jitter() -> None:
    """With the colors of the paper's own code, as it draws them: its blur is Pillow's, which approximates this one."""
    *_, choice, jitter = preset_of_images("three_augment", (32, 32))
    image = photograph()
    gray, solarized, blurred = (
        ListedTransforms((entry,))(Sample(image)).image.astype(int) for entry in choice["transforms"]
    )
    pillow = Image.fromarray(image)
    from PIL import ImageOps

    assert np.abs(gray - np.asarray(pillow.convert("L"))[..., None]).max() <= 1
    assert np.array_equal(solarized, np.asarray(ImageOps.solarize(pillow)))
    assert np.abs(blurred - image.astype(int)).max() > 0
    assert {key: jitter[key] for key in ("brightness", "contrast", "saturation")} == dict.fromkeys(
        ("brightness", "contrast", "saturation"), 0.3
    )


# ---- boxes, masks and clips in step


def disc(height: int = 72, width: int = 90) -> np.ndarray:
    rows, columns = np.ogrid[:height, :width]
    return ((rows - 30) ** 2 / 200 + (columns - 40) ** 2 / 320 <= 1).astype(np.uint8)


def objects() -> list[CocoObject]:
    """The disc as polygons, as run lengths, and as a box alone."""
    polygon, lengths = (annotation(disc().astype(bool), crowd=crowd) for crowd in (False, True))
    left, top, right, bottom = mask_bounds(disc()).tolist()  # type: ignore[union-attr]
    box = (left, top, right - left, bottom - top)
    return [
        CocoObject(0, 0, box, 100.0, False, polygon["segmentation"]),
        CocoObject(1, 1, box, 100.0, False, lengths["segmentation"]),
        CocoObject(2, 2, box, 100.0, False, None),
    ]


MOVES = {
    "flip": a("HorizontalFlip", p=1.0),
    "quarter turn": a("Rotate", limit=[90, 90], p=1.0),
    "any quarter turn": a("RandomRotate90", p=1.0),
    "eight": a("SquareSymmetry", p=1.0),
    "transpose": a("Transpose", p=1.0),
    "affine": a("Affine", scale=[0.7, 1.2], translate_percent=[-0.1, 0.1], p=1.0),
    "crop": a("RandomResizedCrop", size=[64, 64], scale=[0.6, 1.0]),
    "torchvision's flip": t("RandomVerticalFlip", p=1.0),
    "torchvision's quarter turn": t("RandomRotation", degrees=[90, 90]),
    "torchvision's affine": t("RandomAffine", degrees=0, translate=[0.1, 0.1], scale=[0.7, 1.2]),
    "torchvision's crop": t("RandomResizedCrop", size=[64, 64], scale=[0.6, 1.0]),
    "torchvision's zoom": t("RandomZoomOut", side_range=[1.0, 1.5], p=1.0),
    "torchvision's crop by overlap": t("RandomIoUCrop"),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("seed", range(3))
def test_boxes_and_masks_stay_on_what_the_image_shows(move: str, seed: int) -> None:
    image = np.repeat(255 * disc()[..., None], 3, axis=2)
    torch.manual_seed(seed)
    scene = DetectionTransformList((MOVES[move],)).build(masks=True)(image, objects(), disc())
    assert scene["masks"] is not None and scene["stuff"] is not None
    shown = scene["image"][..., 0] > 127
    assert scene["image"].shape[:2] == scene["masks"].shape[1:] == scene["stuff"].shape
    assert scene["labels"].tolist() == [0, 1, 2]
    for box, mask in zip(scene["boxes"][:2], scene["masks"][:2], strict=True):
        assert box.tolist() == mask_bounds(mask).tolist()  # type: ignore[union-attr]
        assert (mask & shown).sum() / (mask | shown).sum() > 0.9  # masks are moved to the nearest pixel
    assert np.abs(scene["boxes"][2] - scene["boxes"][1]).max() <= 1.5
    assert ((scene["stuff"] == 1) & shown).sum() / (
        (scene["stuff"] == 1) | shown
    ).sum() > 0.9  # masks are moved to the nearest pixel


@pytest.mark.parametrize("turn", ["quarter turn", "torchvision's quarter turn"])
def test_the_box_of_a_turned_object_is_that_of_its_turned_mask(turn: str) -> None:
    image = np.repeat(255 * disc(80, 80)[..., None], 3, axis=2)
    box = mask_bounds(disc(80, 80))
    assert box is not None
    left, top, right, bottom = box.tolist()
    alone = CocoObject(0, 0, (left, top, right - left, bottom - top), 1.0, False, None)
    scene = DetectionTransformList((MOVES[turn],)).build(masks=False)(image, [alone])
    assert scene["masks"] is None
    expected = mask_bounds(np.rot90(disc(80, 80)))
    assert np.allclose(scene["boxes"], [expected], atol=1e-3)
    assert np.array_equal(scene["image"][..., 0] > 0, np.rot90(disc(80, 80)) > 0)


def test_what_is_cut_off_is_clipped_or_left_out() -> None:
    crop = a("Crop", x_min=50, y_min=0, x_max=90, y_max=72)
    far = CocoObject(3, 2, (2.0, 2.0, 20.0, 20.0), 1.0, False, None)
    sliver = CocoObject(4, 2, (40.0, 2.0, 10.5, 20.0), 1.0, False, None)
    scene = DetectionTransformList((crop,)).build(masks=True)(photograph(), [*objects(), far, sliver])
    assert scene["labels"].tolist() == [0, 1, 2]
    assert scene["boxes"][2, 0] == 0 and scene["boxes"][:, 2].max() <= 10


@pytest.mark.parametrize("name", [*MOVES, "elastic", "perspective"])
def test_label_maps_move_with_their_images_and_ignore_what_lies_beyond(name: str) -> None:
    if name == "torchvision's crop by overlap":
        pytest.skip("it looks at boxes")
    more = {"elastic": a("ElasticTransform", alpha=40, sigma=6, p=1.0), "perspective": a("Perspective", p=1.0)}
    entry = {**MOVES, **more}[name]
    nearest = {"interpolation": 0} if "interpolation" in _arguments(entry) else {}
    nearest |= {"fill": 255} if "fill" in _arguments(entry) else {}
    labels = np.random.default_rng(0).integers(0, 5, (9, 10), dtype=np.uint8).repeat(8, 0).repeat(9, 1)
    image = np.repeat(labels[..., None] * 10, 3, axis=2).astype(np.uint8)
    torch.manual_seed(1)
    augmented, mask = SegmentationTransformList(({**entry, **nearest},)).build((200, 200), None)(image, labels)
    assert mask.shape == augmented.shape[:2] and mask.dtype == np.uint8
    shown = np.where(augmented[..., 0] == 255, IGNORED, augmented[..., 0] // 10)
    agree = (shown == mask).mean()
    assert agree > (0.97 if "crop" in name or "affine" in name or name in more else 0.999), agree


def _arguments(entry: dict[str, Any]) -> set[str]:
    import inspect

    library, _, name = entry["name"].rpartition(".")
    return {*inspect.signature(getattr(A if library == "albumentations" else v2, name)).parameters}


def test_a_label_map_is_filled_with_the_class_that_the_list_names() -> None:
    shift = a("Affine", translate_px={"x": [20, 20], "y": [0, 0]}, p=1.0)
    labels = np.full((40, 40), 3, np.uint8)
    for entry, expected in ((shift, IGNORED), ({**shift, "fill_mask": 2}, 2)):
        _, mask = SegmentationTransformList((entry,)).build((40, 40), None)(photograph(40, 40), labels)
        assert (mask[:, :20] == expected).all() and (mask[:, 20:] == 3).all()


def test_results_that_are_larger_than_the_crop_are_cropped_after_evaluations_size() -> None:
    build = SegmentationTransformList((a("RandomScale", scale_limit=[0.5, 0.5], p=1.0),)).build
    image, mask = build((100, 100), (180, 100))(photograph(50, 90), np.zeros((50, 90), np.uint8))
    assert image.shape == (100, 100, 3) and mask.shape == (100, 100)
    image, _ = build((1000, 1000), (180, 100))(photograph(50, 90), np.zeros((50, 90), np.uint8))
    assert image.shape == (150, 270, 3)


NOISY = {
    "albumentations": (a("GaussNoise", p=1.0), a("Affine", rotate=[-40, 40], p=1.0), a("CoarseDropout", p=1.0)),
    "torchvision": (t("ColorJitter", brightness=0.5, hue=0.2), t("TrivialAugmentWide"), t("ElasticTransform")),
}


@pytest.mark.parametrize("library", NOISY)
def test_frames_of_a_clip_get_the_same_random_numbers(library: str) -> None:
    frame = torch.from_numpy(photograph()).permute(2, 0, 1)
    transform = VideoTransformList(NOISY[library]).build((48, 48), **NOTHING)
    torch.manual_seed(0)
    first = transform(torch.stack([frame] * 3))
    assert first.shape == (3, 3, 48, 48) and first.dtype == torch.float32
    assert torch.equal(first[0], first[1]) and torch.equal(first[0], first[2])
    assert not torch.equal(transform(torch.stack([frame] * 3)), first)


# ---- presets and lists as settings


@pytest.mark.parametrize("name", [n for n in TINY_TASKS if n not in ("cascade", "htc")])
def test_presets_and_lists_are_settings_whose_batches_follow_from_seed_epoch_and_sample(
    name: str, tmp_path: Path
) -> None:
    """Also in the middle of an epoch, and whatever the number of DataLoader workers."""
    example = TINY_TASKS[name].new_data(TINY_TASKS[name].write_data(tmp_path / "data"))
    own = [a("HorizontalFlip"), t("RandomGrayscale"), a("Affine", rotate=[-20, 20])]
    seen: list[Any] = []
    presets = {"classification": IMAGE_PRESETS, "simmim": IMAGE_PRESETS, "video": ("aerial", "augmix")}
    for choice in (*presets.get(name, PRESETS), own):

        def new_data(choice: Any = choice, **arguments: Any) -> Any:
            settings = {**example.init_args, "augmentation": choice, **arguments}
            built = recorded_arguments(type(example), {**settings, "augmentation": choice}, "a.ckpt")
            data = type(example)(**built)
            assert data.init_args["augmentation"] == choice
            torch.manual_seed(5)
            data.setup("fit")
            return data

        loader = new_data().train_dataloader()
        loader.batch_sampler.set_epoch(1)
        batches = [*loader]
        resumed = new_data().train_dataloader()
        resumed.load_state_dict({"epoch": 1, "batches": 1})
        assert differences(batches[1:], [*resumed]) == []
        assert all(differences(batches, other) for other in seen)
        seen.append(batches)
        if choice is own:
            data = new_data(num_workers=1)
            by_workers = data.train_dataloader()
            by_workers.batch_sampler.set_epoch(1)
            assert differences(batches, [*by_workers]) == []
            data.teardown("fit")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("classification", "three_augment"),
        ("simmim", "medical"),
        ("video", "aerial"),
        ("segmentation", "medical"),
        ("mask_rcnn", [a("Affine", rotate=[-20, 20]), t("RandomHorizontalFlip")]),
    ],
)
def test_a_training_that_is_stopped_is_resumed_bitwise_identical(name: str, choice: Any, tmp_path: Path) -> None:
    dataset = TINY_TASKS[name].write_data(tmp_path / "data")
    straight, disturbed = tmp_path / "straight", tmp_path / "disturbed"
    trainer = {"callbacks": [{"class_path": "tests.helpers.faults.SendSignal"}]}
    for folder in (straight, disturbed):
        config = TINY_TASKS[name].config(folder, dataset, name="tiny", trainer=trainer)
        settings = yaml.safe_load(config.read_text())
        settings["data"]["init_args"]["augmentation"] = choice
        config.write_text(yaml.safe_dump(settings))
    first = ("fit", "--config=config.yaml", "--trainer.max_epochs=2")
    assert run(first, straight).status == 0
    stopped = run(first, disturbed, **send_at(1, number=signal.SIGTERM))
    assert stopped.status == 143
    assert run(RESUME, disturbed).status == 0
    lines = [*compare_runs(newest(straight), newest(disturbed))]
    assert [line for line in lines if not line.startswith("checkpoints/previous.ckpt")] == []


@pytest.mark.slow
def test_a_preset_and_a_list_go_through_configs_checkpoints_and_evaluation(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny.config(images)
    own = [a("RandomBrightnessContrast", p=0.5), t("RandomHorizontalFlip")]
    settings["data"]["init_args"]["augmentation"] = own
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    arguments = [f"--config={tmp_path / 'tiny.yaml'}", f"--runs={tmp_path / 'runs'}", "--trainer.max_epochs=1"]
    for option in ((), ("--data.augmentation=light",)):
        with pytest.raises(SystemExit):
            main(["fit", *arguments, *option, "--print_config"])
        printed = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["augmentation"]
        assert printed == ("light" if option else own)
        assert main(["fit", *arguments, *option]) == 0
        capsys.readouterr()
    for number, expected in ((0, own), (1, "light")):
        checkpoint = tmp_path / "runs" / "tiny" / str(number) / "checkpoints" / "last.ckpt"
        record = torch.load(checkpoint, weights_only=True)["swinv2_tasks"]["data"]["init_args"]["augmentation"]
        assert record == expected
        quietly = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
        assert main(["validate", f"--ckpt_path={checkpoint}", f"--runs={tmp_path}", *quietly]) == 0


# ---- repeated augmentation


def test_an_epoch_has_each_of_its_images_several_times() -> None:
    order = BatchOrder(20, 4, 0, 1, seed=3, drop_last=True, shuffle=True, permute=repeat_order(None, 20, 3))
    epochs = []
    for epoch in (0, 1, 0):
        order.set_epoch(epoch)
        plans = [*order.plans()]
        indices = np.concatenate([plan.indices for plan in plans])
        assert len(indices) == 20 and len({seed for plan in plans for seed in plan.seeds}) == 20
        assert [*map(len, map(set, np.split(indices[:18], 6)))] == [1] * 6 and len({*indices}) == 7
        assert [*order.plans(2)] == plans[2:]
        epochs.append(indices.tolist())
    assert epochs[0] == epochs[2] != epochs[1]


@pytest.mark.parametrize("augmentation", [ImageNetAugmentation(repeats=3), ClassificationTransformList((), repeats=3)])
def test_repeats_are_a_setting_of_the_augmentation(augmentation: Any, images: Path) -> None:
    data = ImageNetDataModule(str(images), **{**tiny.DATA, "augmentation": augmentation})
    torch.manual_seed(0)
    data.setup("fit")
    loader = data.train_dataloader()
    assert [len({*loader.sample_ids(k)}) for k in range(len(loader))] == [2] * len(loader)  # of six


# ---- what is refused


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"p": 0.5}, "expected a mapping with `name`"),
        ("albumentations.HorizontalFlip", "expected a mapping with `name`"),
        ({"name": "os.system"}, "not imported"),
        ({"name": "albumentations.core.utils.to_tuple"}, "not imported"),
        ({"name": "torchvision.io.read_file"}, "not imported"),
        (a("Lambda", image="print"), "runs code"),
        (a("TextImage", font_path="/etc/passwd"), "font"),
        (a("TemplateTransform"), "other images"),
        (a("FDA"), "other images"),
        (a("Normalize"), "normalized afterwards"),
        (a("ToTensorV2"), "normalized afterwards"),
        (t("ToDtype"), "normalized afterwards"),
        (t("MixUp"), "mixup"),
        (t("Lambda"), "runs code"),
        (t("TenCrop", size=10), "several images"),
        (a("OneOf"), "takes a list of other transforms"),
        (a("OneOf", transforms=[{"name": "os.system"}]), "transform 1, transform 1: os.system"),
        (a("HorizontalFlip", p=print), "no plain value"),
    ],
)
def test_entries_that_no_list_may_have_are_refused_before_anything_is_imported(entry: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        DetectionTransformList((entry,))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (a("HorizontlFlip"), "did you mean albumentations.HorizontalFlip"),
        (a("load"), "is no transform"),
        (a("DualTransform"), "is no transform"),
        (a("BboxParams"), "is no transform"),
        (t("Transform"), "is no transform"),
        (t("InterpolationMode"), "is no transform"),
        (a("HorizontalFlip", prob=0.5), "no argument prob"),
        (a("Blur", blur_limit="much"), "does not take these arguments"),
        (t("RandomRotation", degrees=3, interpolation="cubical"), "expected one of nearest"),
        (t("RandomChoice", transforms=[a("Blur")]), "own library"),
        (a("CenterCrop3D", size=[2, 2, 2]), "cannot keep"),
        (a("MaskDropout"), "looks at mask"),
        (a("RandomCropNearBBox"), "looks at cropping_bbox"),
        (a("RandomGridShuffle"), "cannot keep boxes in step"),
        (t("TrivialAugmentWide"), "cannot keep boxes and masks in step"),
        (t("AutoAugment"), "cannot keep boxes and masks in step"),
        (t("RandomErasing"), "cannot keep boxes and masks in step"),
        (a("Affine", mask_interpolation=1), "mask_interpolation"),
        (a("Affine", fill_mask=3), "fill_mask"),
        (a("OneOf", transforms=[a("Morphological"), t("AugMix")]), "cannot keep"),
    ],
)
def test_transforms_that_do_not_fit_are_refused_by_name(entry: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        DetectionTransformList((entry,)).build(masks=True)
    assert "data.augmentation, transform 1" in str(caught.value)


def test_what_only_boxes_would_lose_is_taken_elsewhere() -> None:
    ClassificationTransformList((t("TrivialAugmentWide"), a("RandomGridShuffle"))).build((32, 32), **NOTHING)
    SegmentationTransformList((a("RandomGridShuffle"),)).build((32, 32), None)
    with pytest.raises(UserError, match="brightness"):
        SegmentationTransformList((a("Morphological"),)).build((32, 32), None)


def test_a_result_that_is_no_image_of_bytes_is_refused() -> None:
    transform = ClassificationTransformList((a("ToGray", num_output_channels=1, p=1.0),))
    build = transform.build((32, 32), IMAGENET_MEAN, IMAGENET_STD)
    with pytest.raises(UserError, match=r"pixels of shape|expected an image"):
        build(Image.fromarray(photograph()))
    crop = ClassificationTransformList((a("RandomCrop", height=500, width=500),)).build((32, 32), **NOTHING)
    with pytest.raises(UserError, match="cannot be applied to an image of 90×72 pixels"):
        crop(Image.fromarray(photograph()))


def test_lists_are_bounded() -> None:
    nested: dict[str, Any] = a("Blur")
    for _ in range(12):
        nested = a("Sequential", transforms=[nested])
    for entries in ((a("Blur"),) * 101, (nested,)):
        with pytest.raises(UserError, match=r"more than 100|too deep"):
            ClassificationTransformList(entries)


def test_presets_that_there_are_not_are_refused() -> None:
    with pytest.raises(UserError, match="expected one of none, light, published"):
        ImageNetDataModule(augmentation="lite")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["light", "aerial", "medical"])
def test_presets_for_objects_never_enlarge(name: str) -> None:
    transform = DetectionTransformList(preset_of_scenes(name), (90, 72)).build(masks=True)
    for seed in range(10):
        torch.manual_seed(seed)
        assert max(transform(photograph(144, 180), [])["image"].shape[:2]) <= 90
