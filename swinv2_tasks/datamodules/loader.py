"""Which samples each batch holds, and reading them in worker processes: reproducible, resumable, and honest on faults.

The order of samples and the random numbers of each sample follow from the run's seed, the epoch and the place in it.
So a run can go on in the middle of an epoch, and neither the number of workers nor a sample that cannot be read changes
what is made of the others.
"""

import logging
import os
import re
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Sized
from multiprocessing.util import Finalize
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import Dataset, get_worker_info

from swinv2_tasks.batches import SampleCounts
from swinv2_tasks.errors import UserError, printable
from swinv2_tasks.seeding import derive_seed, seed_generators
from swinv2_tasks.torch_internals import ForkSafeDataLoader, end_workers

log = logging.getLogger("swinv2_tasks")


class BatchPlan(NamedTuple):
    """What one batch is made of."""

    indices: list[int]
    """Its samples."""
    seeds: list[int]
    """The seed of each sample's random numbers."""
    seed: int
    """The seed of what is drawn for the batch as a whole: mixup, say."""


class BatchOrder:
    """The batches of one process, as a function of seed and epoch.

    Batches are dealt to processes like cards: batch k of process r is batch k·W + r of all, so each batch is the same
    whatever the number W of processes. Training shuffles anew in each epoch and drops what does not fill a batch of
    every process, so that all have equally many; evaluation takes every sample once, and a process may have one batch
    less than others, or none.

    Args:
        samples: Number of samples.
        batch_size: Samples per batch.
        rank: This process, from 0.
        world_size: Number of processes.
        seed: Seed of the run, at least 0.
        drop_last: Drop what does not fill a batch of every process.
        shuffle: Draw the order anew for each epoch.
        groups: Which group each sample belongs to; as many batches as possible are of one group. None: no matter.
        permute: Draws an epoch's order from a generator; None: any order is as likely.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        drop_last: bool,
        shuffle: bool,
        groups: Sequence[int] | None = None,
        permute: Callable[[np.random.Generator], np.ndarray] | None = None,
    ) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.drop_last = drop_last
        self.shuffle = shuffle
        self.groups = groups
        self.permute = permute
        self.epoch = 0

    def __len__(self) -> int:
        """The most batches that any process has."""
        if self.drop_last:
            return self.samples // (self.batch_size * self.world_size)
        return -(-self.samples // (self.batch_size * self.world_size))

    @property
    def sampler(self) -> "BatchOrder":
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0."""
        self.epoch = epoch

    def plans(self, first: int = 0) -> Iterator[BatchPlan]:
        """This epoch's batches of this process, from its `first` one on."""
        draw = np.random.default_rng([self.seed, self.epoch])
        if self.shuffle:
            order = draw.permutation(self.samples) if self.permute is None else self.permute(draw)
        else:
            order = np.arange(self.samples)
        seeds = draw.integers(2**32, size=self.samples, dtype=np.uint32)
        if self.groups is not None:
            order = grouped(order, self.groups, self.batch_size)
        for number in range(first, len(self)):
            start = (number * self.world_size + self.rank) * self.batch_size
            places = slice(start, start + self.batch_size)
            if start < self.samples:
                seed = int(seeds[start]) ^ 0xFFFFFFFF  # other than the first sample's
                yield BatchPlan(order[places].tolist(), seeds[places].tolist(), seed)

    def indices(self, number: int) -> list[int]:
        """The samples of one of this epoch's batches of this process."""
        return next(self.plans(number)).indices


def grouped(order: np.ndarray, groups: Sequence[int], batch_size: int) -> np.ndarray:
    """Reorders samples so that batches are of one group, each where its last sample stood; leftovers come last, mixed.

    Args:
        order: Samples, (n,) indices.
        groups: Which group each sample belongs to.
        batch_size: Samples per batch.
    """
    waiting: dict[int, list[int]] = {}
    batches: list[int] = []
    for index in order.tolist():
        batch = waiting.setdefault(groups[index], [])
        batch.append(index)
        if len(batch) == batch_size:
            batches += batch
            batch.clear()
    left = {index for batch in waiting.values() for index in batch}
    return np.array([*batches, *(index for index in order.tolist() if index in left)], dtype=order.dtype)


class FileOrder(BatchOrder):
    """The batches of a prediction: all that is read of a file follows in one process, which then knows all about it.

    Groups of as many files as fill a batch are dealt to processes in turn; a file of which more is read than that is a
    group of its own, in several batches. Each batch is the same whatever the number of processes.

    Args:
        files: Number of files.
        parts: Samples of each file, which lie side by side in the dataset.
        batch_size: Samples per batch.
        rank: This process, from 0.
        world_size: Number of processes.
        seed: Seed of the run, at least 0.

    Attributes:
        done: Which files, (files,) bool, are left out, as they are predicted already.
        limit: How many batches of the process are taken at most, counting those that are left out; None: all.
    """

    def __init__(self, files: int, parts: int, batch_size: int, rank: int, world_size: int, seed: int) -> None:
        super().__init__(files * parts, batch_size, rank, world_size, seed, drop_last=False, shuffle=False)
        self.files = files
        self.parts = parts
        self.group_size = max(1, batch_size // parts)
        self.done = np.zeros(files, dtype=bool)
        self.limit: int | None = None

    def __len__(self) -> int:
        if self.done.any():
            return max(sum(1 for _ in self._batches(rank)) for rank in range(self.world_size))
        groups = -(-self.files // (self.group_size * self.world_size))
        batches = groups * -(-self.group_size * self.parts // self.batch_size)
        return batches if self.limit is None else min(batches, self.limit)

    def group(self, file: int) -> range:
        """The files that are read together with one."""
        first = file // self.group_size * self.group_size
        return range(first, min(first + self.group_size, self.files))

    def plans(self, first: int = 0) -> Iterator[BatchPlan]:
        for number, indices in enumerate(self._batches(self.rank)):
            if number >= first:
                yield BatchPlan(
                    indices, [derive_seed(self.seed, index) % 2**32 for index in indices], self.seed % 2**32
                )

    def _batches(self, rank: int) -> Iterator[list[int]]:
        """The samples of each batch of a process."""
        number = 0
        for start in range(rank * self.group_size, self.files, self.world_size * self.group_size):
            files = self.group(start)
            samples = np.arange(files.start * self.parts, files.stop * self.parts)
            for begin in range(0, len(samples), self.batch_size):
                if self.limit is not None and number >= self.limit:
                    return
                number += 1
                batch = samples[begin : begin + self.batch_size]
                left = batch[~self.done[batch // self.parts]]
                if len(left):
                    yield left.tolist()


class Fault(NamedTuple):
    """A sample that could not be read."""

    place: int
    """Its index in the dataset."""

    sample: str
    """Its file, or whatever else names it."""
    reason: str
    """The error's message."""
    traceback: str
    """Where it happened; empty for a mistake in the data, whose message says all."""


class FaultPolicy:
    """What happens on samples that cannot be read: `error` stops, `skip` leaves them out up to a budget.

    Where `report` is set, samples that are left out are told to it, instead of being logged.

    A training batch of which no sample can be read is made of the dataset's next one that can: it must not be empty.

    Args:
        policy: `error` or `skip`.
        budget: How many different samples may be skipped in a run; None: any number.
    """

    def __init__(self, policy: str, budget: int | None) -> None:
        self.policy = policy
        self.budget = budget
        self.report: Callable[[Fault], None] | None = None
        self.found: dict[str, str] = {}
        """Each sample skipped so far and why."""

    def meet(self, faults: list[Fault]) -> None:
        """Log the faults of a batch, each sample once, or stop.

        Raises:
            UserError: A sample is bad and none may be, or there are more bad ones than allowed.
        """
        for fault in faults:
            name = printable(fault.sample)
            what = fault.reason if name in fault.reason else f"{name}: {fault.reason}"
            if self.policy == "error":
                if not fault.traceback:
                    raise UserError(f"{what} Or leave such samples out: data.faulty_samples=skip.")
                raise RuntimeError(f"{fault.sample} could not be read: {fault.reason}\n{fault.traceback}")
            if self.report is not None:
                self.report(fault)
                if self.budget is not None:  # nothing else needs to remember them
                    self.found[fault.sample] = fault.reason
                continue
            if fault.sample in self.found:
                continue  # named once, however many epochs meet it
            self.found[fault.sample] = fault.reason
            details = {"event": "sample skipped", "sample": fault.sample, "reason": fault.reason}
            log.warning("skipped: %s", what, extra={"details": details})
        self._check_budget()

    def share(self) -> None:
        """Take over what other processes have found: the budget is one for all. To be called by all of them.

        Raises:
            UserError: Together they have found more bad samples than allowed.
        """
        if self.policy == "skip" and torch.distributed.is_initialized():
            shares: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(shares, self.found)
            for share in shares:
                self.found.update(share)
            self._check_budget()

    def _check_budget(self) -> None:
        """Stop when there are more bad samples than allowed."""
        if self.budget is not None and len(self.found) > self.budget:
            listed = "\n".join(f"  {sample}: {reason}" for sample, reason in list(self.found.items())[-5:])
            raise UserError(
                f"{len(self.found)} samples could not be read, data.faulty_budget allows {self.budget}. Mend them or "
                f"raise the budget. The last ones:\n{listed}"
            )


class BatchLoader:
    """Iterates over an epoch's batches; Lightning saves and restores its place.

    Args:
        dataset: Samples by index. Where it has `sample_id(index)`, messages name samples so.
        order: Which samples make up each batch.
        collate: Turns a list of samples into a batch, inside the workers.
        num_workers: Loading processes; 0 loads in this one, without touching its random numbers.
        faults: What happens on samples that cannot be read.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: BatchOrder,
        collate: Callable[[list[Any]], Any],
        num_workers: int,
        faults: FaultPolicy,
    ) -> None:
        self.dataset = dataset
        self.batch_sampler = order
        self.batch_size = order.batch_size
        self.collate = collate
        self.num_workers = num_workers
        self.faults = faults
        self.counts = SampleCounts()
        """Of the latest iteration."""
        self._place = (0, 0)
        self._resumed: tuple[int, int] | None = None
        self._plans = _Plans(order)
        self._reader = _Reader(
            dataset, collate, stop_at_fault=faults.policy == "error", training=order.drop_last, num_workers=num_workers
        )
        self._loader = ForkSafeDataLoader(
            self._reader,
            batch_size=None,
            sampler=self._plans,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_outlive_signals,
            generator=torch.Generator(),  # or the workers' seeds, which nothing uses, were drawn from the global one
        )

        # Before multiprocessing closes their queues and ends them by a signal, which they outlive for a while.
        Finalize(self, end_workers, args=(self._loader,), exitpriority=100)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        epoch = self.batch_sampler.epoch
        first = self._resumed[1] if self._resumed and self._resumed[0] == epoch else 0
        self._resumed = None
        self._plans.first = first
        self._place = (epoch, first)
        self.counts = SampleCounts()
        try:
            for batch, number, faults in self._loader:
                self.faults.meet(faults)
                self.counts += SampleCounts(number, {fault.sample: fault.reason for fault in faults})
                self._place = (epoch, self._place[1] + 1)
                if batch is not None:
                    yield batch
                elif self.batch_sampler.drop_last:
                    raise UserError(f"a hundred samples in a row cannot be read, the last of them {faults[-1].sample}")
        except RuntimeError as error:
            if (death := self.death(error)) is not None:
                raise death from error
            raise

    def close(self) -> None:
        """End the workers. Another iteration starts new ones."""
        end_workers(self._loader)

    def state_dict(self) -> dict[str, int]:
        """The place in the training: `epoch`, and `batches` taken from it."""
        return {"epoch": self._place[0], "batches": self._place[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at a place: the next iteration over that epoch starts there."""
        self._resumed = (state["epoch"], state["batches"])
        self._place = self._resumed
        self.batch_sampler.set_epoch(state["epoch"])

    def sample_ids(self, number: int) -> list[str]:
        """Names of the samples of one of this epoch's batches of this process."""
        return [sample_id(self.dataset, index) for index in self.batch_sampler.indices(number)]

    def death(self, error: BaseException) -> UserError | None:
        """What to say when `error` tells that a worker died: which sample it was reading. None for other errors."""
        pids = [int(pid) for pid in re.findall(r"\d+", " ".join(re.findall(r"pids?\S* ([\d, ]+)", str(error))))]
        if "DataLoader worker" not in str(error):
            return None
        reading = {int(pid): int(index) for pid, index in self._reader.reading.tolist()}
        if not reading.keys() & set(pids):
            return None
        names = [sample_id(self.dataset, reading[pid]) for pid in pids if reading.get(pid, -1) >= 0]
        doing = f"while it read {', '.join(names)}" if names else "between two samples"
        return UserError(
            f"a loading process died {doing} ({str(error).splitlines()[0].rstrip('. ')}). If memory ran out, lower "
            "data.num_workers; if the file makes its decoder crash, remove it. With data.num_workers=0 the main "
            "process reads, and shows the crash itself."
        )


def sample_id(dataset: Dataset, index: int) -> str:
    """What messages call a sample: its file where the dataset says so, else its index."""
    name = getattr(dataset, "sample_id", None)
    return str(name(index)) if name is not None else f"sample {index}"


class _Plans:
    """The plans of the order's epoch, from the `first` one on: what the DataLoader takes for a sampler."""

    def __init__(self, order: BatchOrder) -> None:
        self.order = order
        self.first = 0

    def __iter__(self) -> Iterator[BatchPlan]:
        return self.order.plans(self.first)

    def __len__(self) -> int:
        return len(self.order)


class _Reader(Dataset):
    """Makes a batch of a plan, and lists what could not be read. Says in shared memory what each worker reads."""

    def __init__(
        self,
        dataset: Dataset,
        collate: Callable[[list[Any]], Any],
        stop_at_fault: bool,
        training: bool,
        num_workers: int,
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.stop_at_fault = stop_at_fault
        self.training = training
        # (process id, index or -1) of each worker.
        self.reading = torch.full((max(num_workers, 1), 2), -1, dtype=torch.int64).share_memory_()

    def __getitem__(self, plan: BatchPlan) -> tuple[Any, int, list[Fault]]:
        if (worker := get_worker_info()) is None:
            with isolate_rng(include_cuda=False):
                return self._read(plan, self.reading[0])
        return self._read(plan, self.reading[worker.id])

    def _read(self, plan: BatchPlan, reading: torch.Tensor) -> tuple[Any, int, list[Fault]]:
        samples, faults = [], []
        reading[0] = os.getpid()
        wanted = deque(zip(plan.indices, plan.seeds, strict=True))
        while wanted:
            index, seed = wanted.popleft()
            reading[1] = index
            seed_generators(seed, gpus=False)
            try:
                samples.append(self.dataset[index])
            except Exception as error:  # decoders raise whatever the bytes provoke
                where = "" if isinstance(error, UserError) else traceback.format_exc()
                reason = str(error) or type(error).__name__
                faults.append(Fault(index, sample_id(self.dataset, index), reason, where))
                if self.stop_at_fault:
                    return None, 1, faults
                if self.training and not samples and not wanted and len(faults) < 100:
                    # Other processes wait for this one's gradients: the next sample of the dataset stands in.
                    wanted.append(((index + 1) % len(cast(Sized, self.dataset)), seed))
        reading[1] = -1
        seed_generators(plan.seed, gpus=False)
        return (self.collate(samples) if samples else None), len(samples) + len(faults), faults


def _outlive_signals(worker: int) -> None:
    """Lets a worker live on when a signal that asks the run to stop reaches all of its processes.

    The main process still needs batches until it has come to the end of a step and saved; then it ends its workers by
    other means. One that hangs dies a minute after its SIGTERM.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60) and None)


def _as_it_is(batch: Any) -> Any:
    return batch
