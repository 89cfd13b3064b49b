"""How many DataLoader workers there are, and that nothing but the time depends on it, in all five datamodules."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_tasks.child_processes import available_cores
from swinv2_tasks.datamodules import (
    ADE20KDataModule,
    CocoDataModule,
    ImageNetDataModule,
    KineticsDataModule,
    SimMIMDataModule,
)
from swinv2_tasks.datamodules.base import BaseDataModule
from swinv2_tasks.errors import UserError
from tests.helpers import motions, objects, photos, scenes, tiny
from tests.helpers.resuming import differences


def new_imagenet(root: Path, **arguments: Any) -> BaseDataModule:
    tiny.write_images(root)
    return ImageNetDataModule(str(root), image_size=32, batch_size=4, **arguments)  # its own augmentation, and mixing


def new_ade20k(root: Path, **arguments: Any) -> BaseDataModule:
    scenes.write_scenes(root)
    names = str(root / "names.txt")
    return ADE20KDataModule(str(root), class_names=names, **{**scenes.DATA, "background": "ignore", **arguments})


def new_coco(root: Path, **arguments: Any) -> BaseDataModule:
    objects.write_objects(root)
    return CocoDataModule(str(root), **{**objects.DATA, **arguments})


def new_kinetics(root: Path, **arguments: Any) -> BaseDataModule:
    motions.write_motions(root)
    return KineticsDataModule(str(root), **{**motions.DATA, **arguments})


def new_simmim(root: Path, **arguments: Any) -> BaseDataModule:
    photos.write_photos(root)
    return SimMIMDataModule(str(root), **{**photos.DATA, **arguments})


NEW_DATA = {
    "imagenet": new_imagenet,
    "ade20k": new_ade20k,
    "coco": new_coco,
    "kinetics": new_kinetics,
    "simmim": new_simmim,
}

EACH = pytest.mark.parametrize("new_data", NEW_DATA.values(), ids=NEW_DATA.keys())


def read_batches(data: BaseDataModule, workers: int | None) -> list[Any]:
    """Training and validation batches of a second epoch, which begins in its middle as in a resumed run."""
    data._stated_workers, data._seed = workers, None
    torch.manual_seed(7)
    data.setup("fit")
    loader = data.train_dataloader()
    loader.load_state_dict({"epoch": 1, "batches": 1})
    batches = [*loader, *data.val_dataloader()]
    data.teardown("fit")
    for batch in batches:
        batch.pop("rescaled", None)  # an object that reads the file again
    return batches


@EACH
def test_batches_do_not_depend_on_the_number_of_workers(
    new_data: Callable[..., BaseDataModule], tmp_path: Path
) -> None:
    data = new_data(tmp_path)
    alone = read_batches(data, 0)
    assert len(alone) > 2 and differences(alone, read_batches(data, 3)) == []


@EACH
def test_workers_follow_the_cores_without_a_word(
    new_data: Callable[..., BaseDataModule], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = new_data(tmp_path, num_workers=None)
    data.setup("fit")
    assert data.num_workers == min(8, available_cores()) >= 1
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        assert [loader.num_workers for loader in (data.train_dataloader(), data.val_dataloader())] == [
            data.num_workers
        ] * 2
    assert "num_workers" not in caplog.text
    assert data.record["init_args"]["num_workers"] is None  # another machine has other cores


@pytest.mark.parametrize(("devices", "cores", "workers"), [(1, 64, 8), (8, 64, 8), (8, 16, 2), (1, 1, 1), (4, 2, 0)])
def test_devices_share_the_cores(
    devices: int, cores: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    data = ImageNetDataModule(str(tmp_path), image_size=32)
    data.trainer = tiny.new_trainer(tmp_path, devices=devices, strategy="ddp" if devices > 1 else "auto")
    assert data.num_workers == min(workers, available_cores())


def test_more_workers_than_cores_are_taken_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = new_imagenet(tmp_path, num_workers=available_cores() + 1)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        data.setup("fit")
        loaders = [data.train_dataloader(), data.val_dataloader()]
    assert [loader.num_workers for loader in loaders] == [available_cores() + 1] * 2
    assert caplog.text.count("data.num_workers is") == 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "something else\n"}, None),
        ({}, None),
    ],
)
def test_cores_are_those_of_the_affinity_and_of_the_quota(
    files: dict[str, str], cores: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert available_cores(tmp_path) == (available if cores is None else cores)


class _Gone:
    """The queue of a worker that was killed after it sent a batch: what it sent has to be fetched from it."""

    def get(self, timeout: float) -> Any:
        raise EOFError


def test_a_worker_is_found_dead_that_is_killed_with_a_batch_of_its_own_on_the_way(tmp_path: Path) -> None:
    """Its connections close a moment before it is found dead."""
    data = new_imagenet(tmp_path / "images", num_workers=1)
    data.setup("fit")
    batches = iter(data.val_dataloader())
    next(batches)
    iterator: Any = data._loaders["val"]._loader._iterator
    (worker,) = iterator._workers
    iterator._data_queue = _Gone()
    threading.Timer(0.5, worker.kill).start()
    with pytest.raises(UserError, match=f"a DataLoader worker died .*{worker.pid}"):
        next(batches)
