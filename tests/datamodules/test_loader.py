"""Which samples make up each batch, and what happens when reading them goes wrong."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from swinv2_tasks.datamodules import ImageNetDataModule
from swinv2_tasks.datamodules.base import BaseDataModule
from swinv2_tasks.datamodules.loader import BatchLoader, BatchOrder, FaultPolicy, FileOrder, group_batches
from swinv2_tasks.errors import UserError
from swinv2_tasks.stopping import SIGNALS
from swinv2_tasks.torch_internals import WorkerStalled
from tests.helpers.broken_files import cut_off
from tests.helpers.processes import wait_for
from tests.helpers.tiny import AUGMENTATION, new_data, write_images

SIZES = [
    (samples, batch_size, world_size)
    for samples in (1, 3, 7, 48, 101)
    for batch_size in (1, 8)
    for world_size in (1, 2, 3, 8)
]


def order(samples: int, batch_size: int, rank: int = 0, world_size: int = 1, train: bool = True, seed: int = 3) -> Any:
    return BatchOrder(samples, batch_size, rank, world_size, seed, drop_last=train, shuffle=train)


def ranks(samples: int, batch_size: int, world_size: int, train: bool, epoch: int = 0) -> list[list[Any]]:
    """The plans of each process."""
    orders = [order(samples, batch_size, rank, world_size, train) for rank in range(world_size)]
    for each in orders:
        each.set_epoch(epoch)
    return [list(each.plans()) for each in orders]


class Draws(Dataset):
    """Samples of random numbers from each of the global generators."""

    def __init__(self, samples: int = 30) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def sample_id(self, index: int) -> str:
        return f"file_{index}.jpg"

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, "torch": torch.rand(3), "numpy": np.random.rand(), "python": random.random()}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    numbers = {"torch of all": torch.rand(2), "numpy of all": np.random.rand(), "python of all": random.random()}
    return {**default_collate(samples), **numbers}


def new_loader(
    dataset: Any, workers: int = 0, batch_size: int = 4, train: bool = True, faults: FaultPolicy | None = None
) -> BatchLoader:
    faults = faults or FaultPolicy("error", 0)
    return BatchLoader(dataset, order(len(dataset), batch_size, train=train), collate, workers, faults)


def assert_same(batches: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """To the last bit."""
    assert len(batches) == len(others) > 0
    for batch, again in zip(batches, others, strict=True):
        assert batch.keys() == again.keys()
        for key, value in batch.items():
            assert torch.equal(value, again[key]) if isinstance(value, Tensor) else value == again[key], key


# ---- which samples make up each batch


@pytest.mark.parametrize(("samples", "batch_size", "world_size"), SIZES)
def test_training_distributes_full_batches_over_all_processes(samples: int, batch_size: int, world_size: int) -> None:
    batches_by_rank = ranks(samples, batch_size, world_size, train=True, epoch=2)
    assert {len(plans) for plans in batches_by_rank} == {samples // (batch_size * world_size)}
    assert len(order(samples, batch_size, world_size=world_size)) == len(batches_by_rank[0])
    indices = [index for plans in batches_by_rank for plan in plans for index in plan.indices]
    assert len(set(indices)) == len(indices) and set(indices) <= set(range(samples))
    assert all(len(plan.indices) == len(plan.seeds) == batch_size for plans in batches_by_rank for plan in plans)


@pytest.mark.parametrize(("samples", "batch_size", "world_size"), SIZES)
def test_many_processes_train_on_the_batches_of_one(samples: int, batch_size: int, world_size: int) -> None:
    batches_by_rank = ranks(samples, batch_size, world_size, train=True, epoch=1)
    (alone,) = ranks(samples, batch_size * world_size, 1, train=True, epoch=1)
    together = list(zip(*batches_by_rank, strict=True))
    assert [[i for plan in step for i in plan.indices] for step in together] == [plan.indices for plan in alone]
    assert [[s for plan in step for s in plan.seeds] for step in together] == [plan.seeds for plan in alone]


@pytest.mark.parametrize(("samples", "batch_size", "world_size"), SIZES)
def test_evaluation_takes_every_sample_once(samples: int, batch_size: int, world_size: int) -> None:
    batches_by_rank = ranks(samples, batch_size, world_size, train=False)
    assert sorted(i for plans in batches_by_rank for plan in plans for i in plan.indices) == list(range(samples))
    assert len(order(samples, batch_size, world_size=world_size, train=False)) == len(batches_by_rank[0]) >= 1
    assert {len(batches_by_rank[0]) - len(plans) for plans in batches_by_rank} <= {0, 1}

    def content(plans: list[Any]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
        return {(tuple(plan.indices), tuple(plan.seeds)) for plan in plans}

    (alone,) = ranks(samples, batch_size, 1, train=False)
    assert content([plan for plans in batches_by_rank for plan in plans]) == content(alone)


def test_order_follows_from_seed_and_epoch() -> None:
    def plans(seed: int, epoch: int, train: bool = True) -> list[Any]:
        each = order(40, 4, seed=seed, train=train)
        each.set_epoch(epoch)
        return list(each.plans())

    assert plans(1, 2) == plans(1, 2)
    different = [plans(seed, epoch) for seed in (0, 1, 2**63 - 1) for epoch in (0, 1, 2)]
    assert len({str([plan.indices for plan in each]) for each in different}) == 9
    assert len({str([plan.seeds for plan in each]) for each in different}) == 9
    assert [i for plan in plans(1, 2, train=False) for i in plan.indices] == list(range(40))


def test_samples_and_batches_have_seeds_of_their_own() -> None:
    plans = list(order(3000, 30).plans())
    seeds = [seed for plan in plans for seed in (*plan.seeds, plan.seed)]
    assert len(seeds) == 3100
    assert len(set(seeds)) > 3090  # two of 2³² may meet
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert all(plan.seed not in plan.seeds for plan in plans)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("world_size", [1, 3])
def test_resuming_in_an_epoch_gives_its_rest(train: bool, world_size: int) -> None:
    for rank in range(world_size):
        each = order(50, 4, rank, world_size, train)
        whole = list(each.plans())
        for first in range(len(whole) + 1):
            assert list(each.plans(first)) == whole[first:]
        assert [each.indices(number) for number in range(len(whole))] == [plan.indices for plan in whole]


# ---- reading them


@pytest.mark.parametrize("train", [True, False])
def test_workers_change_nothing(train: bool) -> None:
    alone, helped = (new_loader(Draws(), workers, train=train) for workers in (0, 2))
    for epoch in range(2):
        alone.batch_sampler.set_epoch(epoch)
        helped.batch_sampler.set_epoch(epoch)
        torch.rand(epoch)  # nor does what else is drawn
        assert_same(list(alone), list(helped))


def test_each_sample_draws_its_own_numbers() -> None:
    batches = list(new_loader(Draws()))
    for name in ("torch", "numpy", "python"):
        drawn = [number for batch in batches for number in batch[name].flatten().tolist()]
        drawn += [number for batch in batches for number in np.ravel(batch[f"{name} of all"]).tolist()]
        assert len(set(drawn)) == len(drawn) >= 28


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_generators_of_the_process_alone(workers: int) -> None:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()

    before = states()
    for _ in new_loader(Draws(), workers):
        assert states() == before
    assert states() == before


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batches", [0, 1, 5, 7])
def test_a_loader_resumes_where_another_was_left(workers: int, batches: int) -> None:
    interrupted, whole, other = (new_loader(Draws(), workers) for _ in range(3))
    for each in (interrupted, whole):
        each.batch_sampler.set_epoch(2)
    iterator = iter(interrupted)
    for _ in range(batches):
        next(iterator)
    if batches:
        assert interrupted.state_dict() == {"epoch": 2, "batches": batches}
        other.load_state_dict(interrupted.state_dict())
    else:
        other.load_state_dict({"epoch": 2, "batches": 0})
    rest = list(other)
    assert len(rest) == 7 - batches
    if rest:
        assert_same(rest, list(whole)[batches:])
    assert other.state_dict() == {"epoch": 2, "batches": 7}
    assert len(list(other)) == 7  # only the first iteration is of the rest


def test_a_place_in_another_epoch_skips_nothing() -> None:
    resumed, fresh = new_loader(Draws()), new_loader(Draws())
    resumed.load_state_dict({"epoch": 1, "batches": 3})
    for loader in (resumed, fresh):
        loader.batch_sampler.set_epoch(2)
    assert_same(list(resumed), list(fresh))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iteration_that_was_abandoned_takes_nothing_from_the_next(workers: int) -> None:
    interrupted, fresh = new_loader(Draws(), workers), new_loader(Draws())
    for batches in (1, 3):
        iterator = iter(interrupted)
        for _ in range(batches):
            next(iterator)
        assert_same(list(interrupted), list(fresh))


# ---- samples that cannot be read


@pytest.fixture
def corrupted(tmp_path: Path) -> Path:
    """18 training and 6 validation images, of which two and one are cut off in the middle."""
    root = write_images(tmp_path / "corrupted", val=2)
    for name in ("train/n01/n01_2.jpg", "train/n03/n03_0.jpg", "val/n02/n02_1.jpg"):
        cut_off(root / name)
    return root


def data_of(root: Path, **arguments: Any) -> ImageNetDataModule:
    """With augmentation that draws random numbers, but without mixing."""
    torch.manual_seed(5)
    augmentation = replace(AUGMENTATION, color_jitter=0.3, random_erasing=0.5)
    data = new_data(root, **{"augmentation": augmentation, **arguments})
    data.setup("fit")
    return data


def read_named_images(
    data: ImageNetDataModule, epochs: int = 1, without: tuple[str, ...] = ()
) -> list[dict[str, Tensor]]:
    """The images of each training batch by their files' names."""
    loader, batches = data.train_dataloader(), []
    for epoch in range(epochs):
        loader.batch_sampler.set_epoch(epoch)
        for number, batch in enumerate(loader):
            names = [Path(name).name for name in data.train_sample_ids(number)]
            names = [name for name in names if name not in without]
            batches.append(dict(zip(names, batch["image"], strict=True)))
    return batches


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_stops_the_training(workers: int, corrupted: Path) -> None:
    with pytest.raises(
        UserError, match=r"corrupted/train/n0[13]/n0[13]_[02]\.jpg.*truncated.*faulty_samples=skip"
    ) as e:
        list(data_of(corrupted, num_workers=workers).train_dataloader())
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match=r"corrupted/val/n02/n02_1\.jpg"):
        list(data_of(corrupted, num_workers=workers).val_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_leaves_out_broken_images_and_changes_no_other(
    workers: int, corrupted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = ("n01_2.jpg", "n03_0.jpg")
    data = data_of(corrupted, num_workers=workers, faulty_samples="skip", faulty_budget=2)
    with caplog.at_level(logging.WARNING, "swinv2_tasks"):
        batches = read_named_images(data, epochs=3, without=broken)
    whole = read_named_images(data_of(write_images(tmp_path / "whole")), epochs=3)
    assert len(batches) == len(whole) == 9
    for batch, expected in zip(batches, whole, strict=True):
        assert batch.keys() == expected.keys() - set(broken)
        assert all(torch.equal(image, expected[name]) for name, image in batch.items())
    assert sum(len(batch) for batch in batches) == 3 * 16

    assert {Path(name).name for name in data.faults.skipped} == set(broken)  # each once, though met three times
    assert all("truncated" in reason for reason in data.faults.skipped.values())
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for name in broken:
        (about,) = [message for message in messages if name in message]
        assert f" {corrupted}/train/" in about and "truncated" in about


@pytest.mark.parametrize("workers", [0, 2])
def test_more_broken_images_than_allowed(workers: int, corrupted: Path) -> None:
    data = data_of(corrupted, num_workers=workers, faulty_samples="skip", faulty_budget=1)
    with pytest.raises(UserError, match=r"2 samples.*faulty_budget allows 1") as error:
        read_named_images(data, without=("n01_2.jpg", "n03_0.jpg"))
    assert "n01_2.jpg" in str(error.value) and "n03_0.jpg" in str(error.value)


def test_skipped_images_count_after_a_resume(corrupted: Path) -> None:
    data = data_of(corrupted, faulty_samples="skip", faulty_budget=2)
    read_named_images(data, without=("n01_2.jpg", "n03_0.jpg"))
    resumed = data_of(corrupted, faulty_samples="skip", faulty_budget=2)
    resumed.load_state_dict(data.state_dict())
    with pytest.raises(UserError, match=r"3 samples.*faulty_budget allows 2"):
        list(resumed.val_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_batch_with_nothing_to_read(workers: int, corrupted: Path, tmp_path: Path) -> None:
    """The next sample stands in; all others are as they would have been."""
    data = data_of(corrupted, num_workers=workers, batch_size=1, faulty_samples="skip")
    batches = list(data.train_dataloader())
    assert [len(batch["image"]) for batch in batches] == [1] * len(batches) == [1] * data.train_samples
    order = [data.train_sample_ids(number)[0] for number in range(len(batches))]
    whole = data_of(write_images(tmp_path / "whole"), num_workers=0, batch_size=1)
    whole_batches = list(whole.train_dataloader())
    for name, batch, expected in zip(order, batches, whole_batches, strict=True):
        assert torch.equal(batch["image"], expected["image"]) == (name not in data.faults.skipped)


def test_a_hundred_bad_samples_in_a_row_are_enough() -> None:
    class Bad(Draws):
        def __getitem__(self, index: int) -> dict[str, Any]:
            raise UserError(f"nothing at {index}")

    with pytest.raises(UserError, match="hundred samples in a row"):
        list(new_loader(Bad(), 0, train=True, faults=FaultPolicy("skip", 1000)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_batch_with_nothing_to_read_is_left_out(workers: int, corrupted: Path) -> None:
    data = data_of(corrupted, num_workers=workers, batch_size=1, faulty_samples="skip")
    batches = list(data.val_dataloader())
    assert [len(batch["image"]) for batch in batches] == [1] * 5
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [0, 0, 1, 2, 2]


class Mistaken(Draws):
    """A dataset with a bug that shows at one sample."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._look_up({}) if index == 11 else super().__getitem__(index)

    def _look_up(self, table: dict[str, Any]) -> dict[str, Any]:
        return table["no such key"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bug_in_a_dataset_keeps_its_traceback(workers: int) -> None:
    with pytest.raises(RuntimeError, match=r"file_11\.jpg.*no such key") as error:
        list(new_loader(Mistaken(), workers, train=False))
    assert "_look_up" in str(error.value) and "KeyError" in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bug_at_one_sample_can_be_skipped(workers: int) -> None:
    faults = FaultPolicy("skip", 1)
    batches = list(new_loader(Mistaken(), workers, train=False, faults=faults))
    assert [i for batch in batches for i in batch["index"].tolist()] == [i for i in range(30) if i != 11]
    assert list(faults.skipped) == ["file_11.jpg"] and "no such key" in faults.skipped["file_11.jpg"]


# ---- DataLoader workers that die


class Deadly(Draws):
    """Ends the process that reads sample 6, once a file is there."""

    def __init__(self, end: Callable[[], None], sign: Path) -> None:
        super().__init__()
        self.end = end
        self.sign = sign

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 6:
            wait_for(self.sign.exists)
            self.end()
        return super().__getitem__(index)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


ENDS = [pytest.param(kill, id="killed"), pytest.param(leave, id="exit")]


@pytest.mark.parametrize("end", ENDS)
def test_a_dataloader_worker_that_dies_is_reported_with_its_sample(end: Callable[[], None], tmp_path: Path) -> None:
    (tmp_path / "now").touch()
    with pytest.raises(UserError, match=r"a DataLoader worker died while it read file_6\.jpg") as error:
        list(new_loader(Deadly(end, tmp_path / "now"), workers=2, train=False))
    assert "\n" not in str(error.value)
    assert "num_workers" in str(error.value)


class DeadlyData(BaseDataModule):
    def __init__(self, end: Callable[[], None], sign: Path) -> None:
        super().__init__(4, 2, (0.0,) * 3, (1.0,) * 3)
        self.val_dataset = self.predict_dataset = Deadly(end, sign)


@pytest.mark.parametrize("end", ENDS)
def test_a_death_that_shows_outside_the_loader(end: Callable[[], None], tmp_path: Path) -> None:
    """The system tells of it by a signal, wherever the main process is."""
    data = DeadlyData(end, tmp_path / "now")
    iterator = iter(data.val_dataloader())
    next(iterator)
    with pytest.raises(RuntimeError, match="DataLoader worker") as error:
        (tmp_path / "now").touch()
        for _ in range(200):
            time.sleep(0.1)
    death = data.worker_death(error.value)
    assert isinstance(death, UserError)
    assert "died while it read file_6.jpg" in str(death)


def test_a_death_in_a_prediction_says_how_to_leave_the_file_out(tmp_path: Path) -> None:
    (tmp_path / "now").touch()
    with pytest.raises(
        UserError, match=r"died while it read file_6\.jpg.*move it out of data\.source and run the same"
    ):
        list(DeadlyData(kill, tmp_path / "now").predict_dataloader())


def test_other_errors_are_no_death() -> None:
    data = DeadlyData(kill, Path("never"))
    data.val_dataset = Pids()
    pid = int(next(iter(data.val_dataloader()))["pid"][0])
    others = (f"out of memory in pid {pid}", f"pid {pid}", "DataLoader worker (pid 1) is killed by signal: Killed.")
    assert [data.worker_death(RuntimeError(message)) for message in others] == [None] * 3
    error = data.worker_death(RuntimeError(f"DataLoader worker (pid {pid}) is killed by signal: Killed. "))
    assert isinstance(error, UserError)


# ---- the end of DataLoader workers


class Pids(Draws):
    """Samples that tell which process has read them."""

    def __init__(self) -> None:
        super().__init__(80)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "pid": os.getpid()}


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def leave_early(file: Path) -> None:
    loader = new_loader(Pids(), workers=2)
    iterator = iter(loader)
    pids = {int(next(iterator)["pid"][0]) for _ in range(2)}
    file.write_text(" ".join(map(str, pids)))


@pytest.mark.slow
def test_a_process_ends_its_dataloader_workers_promptly(tmp_path: Path) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=leave_early, args=(tmp_path / "pids",))
    process.start()
    file = tmp_path / "pids"
    wait_for(lambda: process.exitcode is not None or (file.exists() and len(file.read_text().split()) == 2))
    process.join(20)
    ended = process.exitcode
    process.kill()
    assert ended == 0
    pids = [int(pid) for pid in file.read_text().split()]
    assert len(pids) == 2
    wait_for(lambda: not any(is_alive(pid) for pid in pids), 5)


def test_a_loader_that_is_dropped_ends_its_dataloader_workers() -> None:
    loader = new_loader(Pids(), workers=2)
    pids = {int(batch["pid"][0]) for batch in loader}
    assert len(pids) == 2 and os.getpid() not in pids
    assert all(is_alive(pid) for pid in pids)  # they wait for the next epoch
    del loader
    wait_for(lambda: not any(is_alive(pid) for pid in pids), 20)


def test_a_datamodule_that_is_torn_down_ends_its_workers() -> None:
    data = DeadlyData(kill, Path("never"))
    data.val_dataset = Pids()
    pids = {int(batch["pid"][0]) for batch in data.val_dataloader()}
    assert len(pids) == 2 and all(is_alive(pid) for pid in pids)
    data.teardown("validate")
    assert not any(is_alive(pid) for pid in pids)
    assert len(list(data.val_dataloader())) == 20


class Collecting(Draws):
    """Samples whose reading sets off a collection of garbage."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        gc.collect()
        return super().__getitem__(index)


def leave_garbage(begun: bool) -> None:
    """A loader with living workers that only itself refers to, in the middle of an epoch or at its end."""
    loader: Any = new_loader(Pids(), workers=2)
    iterator = iter(loader)
    if begun:
        next(iterator)
    else:
        list(iterator)
    loader.itself = [loader, iterator]


def collect_in_workers(file: Path) -> None:
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), 2)
    multiprocessing.set_start_method("fork", force=True)  # for workers, as in a program of its own
    gc.disable()
    for begun in (True, False):
        leave_garbage(begun)
    assert len(list(new_loader(Collecting(), workers=2))) == 7
    gc.collect()


@pytest.mark.slow
def test_loaders_that_are_garbage_are_not_collected_in_workers_of_others(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    process = multiprocessing.get_context("forkserver").Process(target=collect_in_workers, args=(errors,))
    process.start()
    process.join(600)  # it imports torch and collects garbage in every worker, which takes a busy machine minutes
    ended = process.exitcode
    process.kill()
    assert errors.read_text() == "" and ended == 0


class StopsItself(Pids):
    """Stops the process that reads its sample 33, the first times that it is read."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = torch.tensor(times).share_memory_()

    def __getitem__(self, index: int) -> Any:
        if index == 33 and self.left > 0:
            self.left -= 1
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().__getitem__(index)


def test_signals_that_ask_a_run_to_stop_leave_it_its_batches() -> None:
    loader = new_loader(Pids(), workers=2)
    iterator = iter(loader)
    batches = [next(iterator), next(iterator)]
    pids = {int(batch["pid"][0]) for batch in batches}
    assert len(pids) == 2 and os.getpid() not in pids
    for pid in pids:
        for number in (*SIGNALS, signal.SIGUSR2):
            os.kill(pid, number)
    batches += iterator
    assert {int(batch["pid"][0]) for batch in batches[8:]} == pids
    assert sorted(index for batch in batches for index in batch["index"].tolist()) == list(range(80))


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_worker_that_is_stopped_is_replaced_once(
    times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By SIGSTOP, while it reads a sample that hangs as often as is said; all other batches are as they would be."""
    monkeypatch.setenv("SWINV2_TASKS_TIMEOUT", "8")
    expected = [batch["index"].tolist() for batch in new_loader(Pids(), workers=2)]
    loader = new_loader(StopsItself(times), workers=2)
    started, seen = time.monotonic(), list[list[int]]()
    if times == 1:
        seen += [batch["index"].tolist() for batch in loader]
        assert seen == expected
    else:
        with pytest.raises(UserError, match=r"reading file_33\.jpg for the second time"):
            seen += [batch["index"].tolist() for batch in loader]
    assert "reading file_33.jpg: all workers are replaced" in caplog.text
    loader.close()
    assert time.monotonic() - started < 50


@pytest.mark.parametrize(
    ("awaited", "reading", "message"),
    [
        (101, [[101, 33], [102, 7]], "DataLoader worker 101 has given no batch for 8 s, reading file_33.jpg"),
        # Its batch is ready, but behind one in the queue that cannot be fetched from the other.
        (101, [[101, -1], [102, 33]], "DataLoader worker 102 has given no batch for 8 s, reading file_33.jpg"),
        (None, [[101, -1], [102, 33]], "DataLoader worker 102 has given no batch for 8 s, reading file_33.jpg"),
        (101, [[101, -1], [102, -1]], "DataLoader worker 101 has given no batch for 8 s, between two samples"),
        (101, [[-1, -1], [102, 33]], "DataLoader worker 101 has given no batch for 8 s, and has not begun to read"),
        (None, [[-1, -1], [-1, -1]], "a DataLoader worker has given no batch for 8 s, between two samples"),
    ],
)
def test_a_stall_names_the_worker_that_hangs(awaited: int | None, reading: list[list[int]], message: str) -> None:
    loader = new_loader(Pids(), workers=2)
    loader._reader.reading[:] = torch.tensor(reading)
    assert loader._describe_stall(WorkerStalled(awaited, 8.0)) == message


# ---- batches of one group


@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_grouped_batches_hold_every_sample_once_and_are_mixed_only_at_the_end(batch_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 3, 50).tolist()
    order = rng.permutation(50)
    samples = group_batches(order, groups, batch_size).tolist()
    assert sorted(samples) == list(range(50))
    batches = [samples[k : k + batch_size] for k in range(0, 50, batch_size)]
    pure = [len({groups[k] for k in batch}) == 1 for batch in batches]
    whole = sum(groups.count(group) // batch_size for group in range(3))
    assert all(pure[:whole])
    for batch in batches[:whole]:  # within a group the order stays
        positions = [order.tolist().index(k) for k in batch]
        assert positions == sorted(positions)
    ends = [order.tolist().index(batch[-1]) for batch in batches[:whole]]
    assert ends == sorted(ends)


def test_grouping_changes_neither_the_number_of_batches_nor_what_processes_share() -> None:
    groups = np.random.default_rng(0).integers(0, 2, 23).tolist()
    for world_size in (1, 2, 3):
        orders = [BatchOrder(23, 2, rank, world_size, 7, True, True, groups) for rank in range(world_size)]
        batches_by_rank = [[plan.indices for plan in order.plans()] for order in orders]
        assert all(len(batches) == len(orders[0]) for batches in batches_by_rank)
        together = [batch for turn in zip(*batches_by_rank, strict=True) for batch in turn]
        alone = [plan.indices for plan in BatchOrder(23, 2, 0, 1, 7, True, True, groups).plans()]
        assert together == alone[: len(together)]


@pytest.mark.parametrize(
    ("files", "parts", "batch_size"), [(7, 1, 3), (6, 1, 3), (5, 4, 3), (5, 2, 5), (1, 1, 8), (3, 6, 6)]
)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_file_is_predicted_by_one_process_in_the_batches_of_any(
    files: int, parts: int, batch_size: int, world_size: int
) -> None:
    alone = [plan.indices for plan in FileOrder(files, parts, batch_size, 0, 1, seed=0).plans()]
    assert [index for batch in alone for index in batch] == list(range(files * parts))
    orders = [FileOrder(files, parts, batch_size, rank, world_size, seed=0) for rank in range(world_size)]
    shares = [[plan.indices for plan in order.plans()] for order in orders]
    assert sorted(batch for share in shares for batch in share) == sorted(alone)
    assert max(map(len, shares)) <= len(orders[0])
    of_files = [{index // parts for batch in share for index in batch} for share in shares]
    assert sum(map(len, of_files)) == files


def test_files_that_are_done_are_left_out_and_change_no_other_batch() -> None:
    order = FileOrder(9, 1, 3, 0, 1, seed=0)
    order.done[[0, 1, 2, 4]] = True
    assert [plan.indices for plan in order.plans()] == [[3, 5], [6, 7, 8]]
    assert len(order) == 2
    order.limit = 2  # of all, also of those that are done
    assert [plan.indices for plan in order.plans()] == [[3, 5]]
    assert len(order) == 1
