"""Augmentations as settings of the datamodules: those of this package, and one's own."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from swinv2_tasks.cli.main import main
from swinv2_tasks.datamodules import (
    ADE20KAugmentation,
    ADE20KDataModule,
    Augmentation,
    ClassificationAugmentation,
    CocoDataModule,
    CropFlipAugmentation,
    DetectionAugmentation,
    ImageNetAugmentation,
    ImageNetDataModule,
    KineticsAugmentation,
    KineticsDataModule,
    MultiScaleAugmentation,
    SegmentationAugmentation,
    SimMIMAugmentation,
    SimMIMDataModule,
    VideoAugmentation,
)
from swinv2_tasks.datamodules.base import BaseDataModule
from swinv2_tasks.datamodules.transforms.scenes import Scene
from swinv2_tasks.hyperparameters import recorded_arguments
from tests.helpers import motions as clips
from tests.helpers import objects, photos, scenes, tiny
from tests.helpers.tiny import write_config

# ---- augmentations from outside of the package: one class with one method


@dataclass(frozen=True)
class FlatImages(ClassificationAugmentation):
    """Images of one value."""

    value: float = 0.25

    def build(self, image_size: tuple[int, int], mean: Any, std: Any) -> Callable[[Any], Tensor]:
        return lambda image: torch.full((3, *image_size), self.value)


class FlatPatches(SimMIMAugmentation):
    """The same for masked images, without a dataclass."""

    def __init__(self, value: float = 0.25) -> None:
        self.value = value

    def build(self, image_size: tuple[int, int], mean: Any, std: Any) -> Callable[[Any], Tensor]:
        return lambda image: torch.full((3, *image_size), self.value)


@dataclass(frozen=True)
class FlatClips(VideoAugmentation):
    """Clips of one value."""

    value: float = 0.25

    def build(self, image_size: tuple[int, int], mean: Any, std: Any) -> Callable[[Tensor], Tensor]:
        return lambda clip: torch.full((len(clip), 3, *image_size), self.value)


@dataclass(frozen=True)
class FlatScenes(SegmentationAugmentation):
    """Crops of one value, once it is normalized, and of the first class."""

    value: float = 0.25

    def build(self, crop_size: tuple[int, int], resize: Any) -> Callable[[np.ndarray, np.ndarray], Any]:
        pixels = np.full((*crop_size, 3), round(255 * self.value), np.uint8)
        return lambda image, mask: (pixels, np.zeros(crop_size, np.uint8))


@dataclass(frozen=True)
class FlatObjects(DetectionAugmentation):
    """The same with one object for detection."""

    value: float = 0.25

    def build(self, masks: bool) -> Callable[..., Scene]:
        pixels = np.full((48, 64, 3), round(255 * self.value), np.uint8)

        def transform(image: np.ndarray, objects: Any, stuff: Any, where: str) -> Scene:
            whole = np.ones((1, 48, 64), np.uint8)
            box = np.array([[0, 0, 64, 48]], np.float32)
            return {"image": pixels, "boxes": box, "labels": np.array([1]), "masks": whole, "stuff": stuff}

        return transform


@dataclass(frozen=True)
class Case:
    """A datamodule, its own augmentation, and one from outside."""

    datamodule: type[BaseDataModule]
    published: Augmentation
    outside: type[Augmentation]
    write: Callable[[Path], Path]
    arguments: dict[str, Any]
    values: Callable[[Any], Tensor]
    """The pixels of a batch."""


PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
"""No normalization."""

CASES = {
    "images": Case(
        ImageNetDataModule, ImageNetAugmentation(), FlatImages, tiny.write_images, tiny.DATA, lambda x: x["image"]
    ),
    "photos": Case(
        SimMIMDataModule, CropFlipAugmentation(), FlatPatches, photos.write_photos, photos.DATA, lambda x: x["image"]
    ),
    "motions": Case(
        KineticsDataModule,
        KineticsAugmentation(),
        FlatClips,
        lambda root: clips.write_motions(root, train=3, val=1),
        clips.DATA,
        lambda x: x["clip"],
    ),
    "scenes": Case(
        ADE20KDataModule,
        ADE20KAugmentation(),
        FlatScenes,
        scenes.write_scenes,
        {**scenes.DATA, "class_names": scenes.NAMES, "background": "ignore", **PLAIN},
        lambda x: x["image"],
    ),
    "objects": Case(
        CocoDataModule,
        MultiScaleAugmentation(),
        FlatObjects,
        objects.write_objects,
        {**objects.DATA, **PLAIN},
        lambda x: x["images"][0],
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def first_batch(data: BaseDataModule) -> Any:
    torch.manual_seed(0)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def test_one_class_with_one_method_is_an_augmentation(case: Case, tmp_path: Path) -> None:
    arguments = {**case.arguments, "augmentation": case.outside(value=0.75)}  # type: ignore[call-arg]
    data = case.datamodule(root=str(case.write(tmp_path)), **arguments)
    torch.testing.assert_close(case.values(first_batch(data)).unique(), torch.tensor([0.75]), rtol=0, atol=2e-3)
    data.setup("validate")
    assert case.values(next(iter(data.val_dataloader()))).std() > 0  # evaluation augments nothing


def test_the_published_one_is_the_default_and_recorded_with_all_its_values(case: Case) -> None:
    record = case.datamodule().init_args["augmentation"]
    cls = type(case.published)
    assert record == {"class": cls.__name__, "init_args": case.published.init_args}
    assert json.loads(json.dumps(record)) == record  # plain values
    built = recorded_arguments(case.datamodule, {"augmentation": record}, "a.ckpt")["augmentation"]
    assert type(built) is cls and built.init_args == case.published.init_args
    with pytest.raises(FrozenInstanceError):  # what is recorded is what is done
        case.published.horizontal_flip = 0.0  # type: ignore[attr-defined]


def parse_augmentation(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as end:
        main(["fit", *arguments, "--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]


@pytest.mark.parametrize("config", ["imagenet", "simmim", "kinetics", "ade20k", "coco"])
def test_one_value_is_overridden_by_its_name_alone(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the config leaves the augmentation to its default, as kinetics.yaml does."""
    before = parse_augmentation(capsys, f"--config={config}.yaml")["augmentation"]
    after = parse_augmentation(capsys, f"--config={config}.yaml", "--data.augmentation.horizontal_flip=0.125")[
        "augmentation"
    ]
    assert after["init_args"].pop("horizontal_flip") == 0.125 != before["init_args"].pop("horizontal_flip")
    assert after == before


def test_a_mistake_in_a_name_or_a_value_is_reported(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "tiny.yaml", images)
    assert main(["fit", f"--config={config}", "--data.augmentation.flip=0.5"]) == 2
    assert "did you mean data.augmentation.horizontal_flip?" in capsys.readouterr().err
    assert main(["fit", f"--config={config}", "--data.augmentation.horizontal_flip=2"]) == 1
    assert "data.augmentation.horizontal_flip is 2; expected a value between 0 and 1" in capsys.readouterr().err


# ---- what a run with an augmentation from outside leaves behind

OUTSIDE = """
import torch
from swinv2_tasks.datamodules import ClassificationAugmentation

class Noise(ClassificationAugmentation):
    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def build(self, image_size, mean, std):
        return lambda image: self.scale * torch.randn(3, *image_size)
"""


@pytest.fixture(scope="module")
def outside(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module that holds an augmentation, and runs/tiny/0, trained with it; not to be changed."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "outside_noise.py").write_text(OUTSIDE)
    settings = tiny.config(images)
    settings["data"]["init_args"]["augmentation"] = {"class_path": "outside_noise.Noise", "init_args": {"scale": 0.5}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        arguments = [f"--config={folder / 'tiny.yaml'}", f"--runs={folder / 'runs'}", "--trainer.max_epochs=1"]
        assert main(["fit", *arguments, "--allow", "outside_noise"]) == 0
    return folder


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Each test imports the module anew, or cannot."""
    sys.modules.pop("outside_noise", None)
    yield
    sys.modules.pop("outside_noise", None)


def test_a_checkpoint_records_it_as_plain_values(outside: Path) -> None:
    checkpoint = outside / "runs" / "tiny" / "0" / "checkpoints" / "last.ckpt"
    record = torch.load(checkpoint, weights_only=True)["swinv2_tasks"]["data"]["init_args"]["augmentation"]
    assert record == {"class": "Noise", "init_args": {"scale": 0.5}}


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluation_from_the_checkpoint_does_without_it(
    command: str, outside: Path, images: Path, tmp_path: Path
) -> None:
    checkpoint = outside / "runs" / "tiny" / "0" / "checkpoints" / "last.ckpt"
    source = [f"--data.source={images / 'val'}"] if command == "predict" else []
    quietly = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main([command, f"--ckpt_path={checkpoint}", f"--runs={tmp_path}", *source, *quietly]) == 0
    assert "outside_noise" not in sys.modules


def test_a_training_is_resumed_where_it_can_be_imported(
    outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a decoder or detector of one's own: the run's config names the class."""
    run = tmp_path / "runs" / "tiny" / "0"
    shutil.copytree(outside / "runs" / "tiny" / "0", run)
    arguments = ["fit", f"--resume={run}", f"--runs={tmp_path / 'runs'}", "--trainer.max_epochs=2"]
    assert main(arguments) == 2
    assert "--allow outside_noise" in capsys.readouterr().err
    assert main([*arguments, "--allow=outside_noise"]) == 2
    assert "no module outside_noise" in capsys.readouterr().err
    monkeypatch.syspath_prepend(outside)
    assert main([*arguments, "--allow=outside_noise"]) == 0
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1
