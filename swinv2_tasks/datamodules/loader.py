"""Which samples each batch holds, and reading them in DataLoader workers: reproducible, resumable, reporting faults.

The order of samples and the random numbers of each sample follow from the run's seed, the epoch and the position in it.
So a run can be resumed in the middle of an epoch, and neither the number of workers nor a sample that cannot be read
changes what is made of the others.
"""

import logging
import os
import re
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Sized
from functools import partial
from multiprocessing.util import Finalize
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import Dataset, get_worker_info

from swinv2_tasks.batches import SampleCounts
from swinv2_tasks.child_processes import check_open_files, timeout_seconds
from swinv2_tasks.datamodules.remarks import collect_remarks
from swinv2_tasks.errors import UserError, reason_of
from swinv2_tasks.failures import explain_failure
from swinv2_tasks.progress import in_words
from swinv2_tasks.records import mapping, require, whole
from swinv2_tasks.seeding import derive_seed, seed_generators
from swinv2_tasks.stopping import SIGNALS
from swinv2_tasks.text import printable
from swinv2_tasks.torch_internals import ForkSafeDataLoader, WorkerStalled, end_workers

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

    Batches are distributed over processes in turn: batch k of process r is batch k·W + r of all, so each batch is the
    same whatever the number W of processes. Training shuffles in each epoch and drops what does not fill a batch of
    every process, so that all have equally many; evaluation takes every sample once, and a process may have one batch
    less than others, or none.

    Args:
        samples: Number of samples of an epoch.
        batch_size: Samples per batch.
        rank: This process, from 0.
        world_size: Number of processes.
        seed: Seed of the run, at least 0.
        drop_last: Drop what does not fill a batch of every process.
        shuffle: Draw another order for each epoch.
        groups: Which group each sample belongs to; as many batches as possible are of one group. None: there are none.
        permute: Draws an epoch's order from a generator, of as many samples, in which some may stand several times and
            others not at all; None: each once, any order is as likely.
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
        generator = np.random.default_rng([self.seed, self.epoch])
        if not self.shuffle:
            order = np.arange(self.samples)
        elif self.permute is None:
            order = generator.permutation(self.samples)
        else:
            order = self.permute(generator)
        seeds = generator.integers(2**32, size=self.samples, dtype=np.uint32)
        if self.groups is not None:
            order = group_batches(order, self.groups, self.batch_size)

        for number in range(first, len(self)):
            start = (number * self.world_size + self.rank) * self.batch_size
            if start >= self.samples:
                break
            positions = slice(start, start + self.batch_size)
            batch_seed = int(seeds[start]) ^ 0xFFFFFFFF  # other than the first sample's
            yield BatchPlan(order[positions].tolist(), seeds[positions].tolist(), batch_seed)

    def indices(self, number: int) -> list[int]:
        """The samples of one of this epoch's batches of this process."""
        return next(self.plans(number)).indices


def group_batches(order: np.ndarray, groups: Sequence[int], batch_size: int) -> np.ndarray:
    """Reorders samples so that batches are of one group, each where its last sample stood; leftovers come last, mixed.

    Args:
        order: Samples, (n,) indices.
        groups: Which group each sample belongs to.
        batch_size: Samples per batch.
    """
    incomplete: dict[int, list[int]] = {}
    reordered: list[int] = []  # positions in the order, in which a sample may stand several times
    for position, index in enumerate(order.tolist()):
        batch = incomplete.setdefault(groups[index], [])
        batch.append(position)
        if len(batch) == batch_size:
            reordered += batch
            batch.clear()

    reordered += sorted(position for batch in incomplete.values() for position in batch)
    return order[reordered]


def repeat_order(
    permute: Callable[[np.random.Generator], np.ndarray] | None, samples: int, repeats: int
) -> Callable[[np.random.Generator], np.ndarray]:
    """An order for repeated augmentation: each sample several times in a row, as many of them as an epoch is long.

    An epoch has other samples than the one before, drawn from all.

    Args:
        permute: Draws the order that is repeated; None: any is as likely.
        samples: Number of samples of an epoch.
        repeats: How many times each comes.
    """

    def draw(generator: np.random.Generator) -> np.ndarray:
        order = generator.permutation(samples) if permute is None else permute(generator)
        return np.repeat(order[: -(-samples // repeats)], repeats)[:samples]

    return draw


class FileOrder(BatchOrder):
    """The batches of a prediction: all that is read of a file follows in one process, which then knows all about it.

    Groups of as many files as fill a batch are distributed over processes in turn; a file of which more is read than
    that is a group of its own, in several batches. Each batch is the same whatever the number of processes.

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
        """Yields this process's batches from number ``first`` on; an image's seed follows from its index alone."""
        for number, indices in enumerate(self._batches(self.rank)):
            if number >= first:
                seeds = [derive_seed(self.seed, index) % 2**32 for index in indices]
                yield BatchPlan(indices, seeds, self.seed % 2**32)

    def _batches(self, rank: int) -> Iterator[list[int]]:
        """The samples of each batch of a process."""
        number = 0
        for first_file in range(rank * self.group_size, self.files, self.world_size * self.group_size):
            files = self.group(first_file)
            samples = np.arange(files.start * self.parts, files.stop * self.parts)
            for start in range(0, len(samples), self.batch_size):
                if self.limit is not None and number >= self.limit:
                    return
                number += 1
                batch = samples[start : start + self.batch_size]
                remaining = batch[~self.done[batch // self.parts]]
                if len(remaining):
                    yield remaining.tolist()


class Fault(NamedTuple):
    """A sample that could not be read."""

    sample_index: int
    """Its index in the dataset."""

    sample: str
    """Its file, or whatever else names it."""
    reason: str
    """The error's message."""
    traceback: str
    """Where it happened; empty for a mistake in the data, whose message is enough."""


class FaultPolicy:
    """What happens on samples that cannot be read: `error` stops, `skip` leaves them out up to a budget.

    Where `report` is set, it is called with samples that are left out, instead of logging them.

    A training batch of which no sample can be read is made of the dataset's next one that can: it must not be empty.

    Args:
        policy: `error` or `skip`.
        budget: How many different samples may be skipped in a run; None: any number.
    """

    def __init__(self, policy: str, budget: int | None) -> None:
        self.policy = policy
        self.budget = budget
        self.report: Callable[[Fault], None] | None = None
        self.skipped: dict[str, str] = {}
        """Each sample skipped so far and why."""

    def handle(self, faults: list[Fault]) -> None:
        """Log the faults of a batch, each sample once, or stop.

        Raises:
            UserError: A sample is bad and none may be, or there are more bad ones than allowed.
        """
        for fault in faults:
            name = printable(fault.sample)
            message = fault.reason if name in fault.reason else f"{name}: {fault.reason}"

            if self.policy == "error" and fault.traceback:
                raise RuntimeError(f"{name} could not be read: {fault.reason}\n{fault.traceback}")
            if self.policy == "error":
                raise UserError(f"{message} Or {self.remedy(1)}.")

            if self.report is not None:
                self.report(fault)
                if self.budget is not None:  # nothing else needs to remember them
                    self.skipped[fault.sample] = fault.reason
            elif fault.sample not in self.skipped:  # named once, however many epochs come to it
                self.skipped[fault.sample] = fault.reason
                details = {"event": "sample skipped", "sample": fault.sample, "reason": fault.reason}
                log.warning("skipped: %s", message, extra={"details": details})
        self._check_budget()

    def allows(self, number: int) -> bool:
        """Whether so many samples that cannot be read, which are known before they are, may be left out."""
        return self.policy == "skip" and (self.budget is None or number <= self.budget)

    def remedy(self, number: int) -> str:
        """How to leave out so many samples: the settings with which they may be, as messages end."""
        settings = "" if self.policy == "skip" else "data.faulty_samples=skip"
        if self.budget is not None and number > self.budget:
            settings += f"{settings and ' and '}data.faulty_budget={number}"
        return f"leave such samples out: {settings}"

    def share(self) -> None:
        """Take over what other processes have skipped: the budget is one for all. To be called by all of them.

        Raises:
            UserError: Together they have skipped more samples than allowed.
        """
        if self.policy == "skip" and torch.distributed.is_initialized():
            of_processes: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(of_processes, self.skipped)
            for skipped in of_processes:
                self.skipped.update(skipped)
            self._check_budget()

    def _check_budget(self) -> None:
        """Stop when there are more bad samples than allowed."""
        if self.budget is not None and len(self.skipped) > self.budget:
            latest = list(self.skipped.items())[-5:]
            listed = "\n".join(f"  {printable(sample)}: {printable(reason)}" for sample, reason in latest)
            raise UserError(
                f"{len(self.skipped)} samples could not be read, data.faulty_budget allows {self.budget}. Mend them or "
                f"raise the budget. The last ones:\n{listed}"
            )


POSITION = mapping({"epoch": whole(), "batches": whole()})
"""Where a training stands in its data."""


class BatchLoader:
    """Iterates over an epoch's batches; Lightning saves and restores its position.

    Args:
        dataset: Samples by index. Where it has `sample_id(index)`, messages name samples so.
        order: Which samples make up each batch.
        collate: Turns a list of samples into a batch, inside the workers.
        num_workers: DataLoader workers; 0 loads in this process, without touching its random numbers.
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
        check_open_files(num_workers)
        self.dataset = dataset
        self.batch_sampler = order
        self.batch_size = order.batch_size
        self.collate = collate
        self.num_workers = num_workers
        self.faults = faults
        self.counts = SampleCounts()
        """Of the latest iteration."""
        self._remarks: dict[str, set[int]] = {}
        """Of which samples readers have noted something, by what it is."""
        self._told: set[str] = set()
        self._position = (0, 0)
        self._resumed: tuple[int, int] | None = None
        self._plans = _Plans(order)
        self._reader = _Reader(
            dataset, collate, stop_at_fault=faults.policy == "error", training=order.drop_last, num_workers=num_workers
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # the datamodule says it shorter
            self._loader = ForkSafeDataLoader(
                self._reader,
                batch_size=None,
                sampler=self._plans,
                collate_fn=_identity,
                num_workers=num_workers,
                persistent_workers=num_workers > 0,
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=_ignore_signals,
                generator=torch.Generator(),  # or the workers' seeds, which nothing uses, came from the global one
            )

        self._loader.find_limit = partial(_find_limit, self._reader.reading)

        # Before multiprocessing closes their queues and ends them by a signal, which they outlive for a while.
        Finalize(self, end_workers, args=(self._loader,), exitpriority=100)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        epoch = self.batch_sampler.epoch
        first = 0
        if self._resumed is not None and self._resumed[0] == epoch:
            first = self._resumed[1]
        self._resumed = None
        self._position = (epoch, first)
        self.counts = SampleCounts()
        replaced_at = -1
        while True:
            self._plans.first = self._position[1]
            try:
                yield from self._batches(epoch)
                break
            except WorkerStalled as stall:
                end_workers(self._loader, at_once=True)
                message = self._describe_stall(stall)
                if self._position[1] == replaced_at:
                    raise UserError(f"{message} for the second time. {self._remedy(slow=True)}") from stall
                replaced_at = self._position[1]
                log.warning("%s: all workers are replaced", message, extra={"details": {"event": "workers replaced"}})
            except RuntimeError as error:
                if (explained := self.explain_worker_death(error)) is not None:
                    raise explained from error
                raise
        self._tell_remarks()

    def _batches(self, epoch: int) -> Iterator[Any]:
        """The batches that the workers give, from the plans' first one on."""
        self._reader.reading[:] = -1
        for batch, number, faults, remarks in self._loader:
            self.faults.handle(faults)
            for index, remark in remarks:
                self._remarks.setdefault(remark, set()).add(index)
            self.counts += SampleCounts(number, {fault.sample: fault.reason for fault in faults})
            self._position = (epoch, self._position[1] + 1)
            if batch is not None:
                yield batch
            elif self.batch_sampler.drop_last:
                raise UserError(
                    f"a hundred samples in a row cannot be read, the last of them {printable(faults[-1].sample)}"
                )

    def _describe_stall(self, stall: WorkerStalled) -> str:
        index_of = {int(pid): int(index) for pid, index in self._reader.reading.tolist() if pid >= 0}
        pid = stall.pid
        if pid is None or index_of.get(pid) == -1:
            # Its batch may be ready, but behind one in the queue that cannot be fetched from another, which hangs.
            pid = next((other for other, index in index_of.items() if index >= 0), pid)
        reads = "between two samples"
        if pid is not None and pid not in index_of:
            reads = "and has not begun to read"
        elif pid is not None and index_of[pid] >= 0:
            reads = f"reading {printable(sample_id(self.dataset, index_of[pid]))}"
        worker = "a DataLoader worker" if pid is None else f"DataLoader worker {pid}"
        return f"{worker} has given no batch for {in_words(stall.seconds)}, {reads}"

    def _remedy(self, slow: bool = False) -> str:
        """What to do about a file that its worker does not come to the end of."""
        remedy = "remove it from the dataset"
        if isinstance(self.batch_sampler, FileOrder):
            remedy = "move it out of data.source and run the same command again, which keeps what is predicted"
        if slow:
            return f"If a file makes its decoder hang, {remedy}; if reading is that slow, raise --timeout"
        return f"if the file makes its decoder crash, {remedy}"

    def close(self) -> None:
        """End the workers. Another iteration starts new ones."""
        end_workers(self._loader)
        self._tell_remarks()

    @rank_zero_only
    def _tell_remarks(self) -> None:
        """Says in a line for each kind, once, on how many files there is something to remark."""
        for remark in self._remarks.keys() - self._told:
            self._told.add(remark)
            indices = self._remarks[remark]
            number = len(indices)
            log.warning(
                "%d file%s %s, as %s",
                *(number, "s" * (number > 1), remark, printable(sample_id(self.dataset, min(indices)))),
            )

    def state_dict(self) -> dict[str, int]:
        """The position in the training: `epoch`, and `batches` taken from it."""
        return {"epoch": self._position[0], "batches": self._position[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume at a position: the next iteration over that epoch starts there.

        Raises:
            UserError: it is none.
        """
        require(state, POSITION, "the checkpoint is corrupt: of the training data's position,")
        self._position = (state["epoch"], state["batches"])
        self._resumed = self._position
        self.batch_sampler.set_epoch(state["epoch"])

    def sample_ids(self, number: int) -> list[str]:
        """Names of the samples of one of this epoch's batches of this process."""
        return [sample_id(self.dataset, index) for index in self.batch_sampler.indices(number)]

    def explain_worker_death(self, error: BaseException) -> UserError | None:
        """The message for an error by which torch reports a dead worker: what it was reading. None for other errors."""
        message = str(error)
        if "DataLoader worker" not in message:
            return None
        pids = [int(pid) for listed in re.findall(r"pids?\S* ([\d, ]+)", message) for pid in re.findall(r"\d+", listed)]

        index_of = {int(pid): int(index) for pid, index in self._reader.reading.tolist()}
        if not index_of.keys() & set(pids):  # of another loader
            return None
        if (explained := explain_failure(error)) is not None:  # which needs no file to be named
            return UserError(explained)
        names = [printable(sample_id(self.dataset, index_of[pid])) for pid in pids if index_of.get(pid, -1) >= 0]
        when = f"while it read {', '.join(names)}" if names else "between two samples"
        return UserError(
            f"a DataLoader worker died {when} ({message.splitlines()[0].rstrip('. ')}). If memory ran out, lower "
            f"data.num_workers; {self._remedy()}. With data.num_workers=0 the main process reads, and shows the crash "
            "itself."
        )


def _find_limit(reading: torch.Tensor, pid: int | None) -> float:
    """Seconds that a worker is waited for; one that has not begun to read may hang since its fork.

    Args:
        reading: what the workers say of themselves, as ``_Reader`` has it.
        pid: the worker's process; None where it is not known which one is waited for.
    """
    seconds = timeout_seconds()
    has_begun = pid is None or pid in reading[:, 0].tolist()
    return seconds if has_begun else min(seconds, max(60, seconds / 5))


def sample_id(dataset: Dataset, index: int) -> str:
    """What messages call a sample: its file where the dataset says so, else its index."""
    name_of = getattr(dataset, "sample_id", None)
    return f"sample {index}" if name_of is None else str(name_of(index))


class _Plans:
    """The plans of the order's epoch, from the `first` one on: what the DataLoader takes for a sampler."""

    def __init__(self, order: BatchOrder) -> None:
        self.order = order
        self.first = 0

    def __iter__(self) -> Iterator[BatchPlan]:
        return self.order.plans(self.first)

    def __len__(self) -> int:
        return len(self.order)


class _Read(NamedTuple):
    """What came of reading a plan."""

    batch: Any
    """None where no sample could be read."""
    number: int
    """How many samples were read or could not be."""
    faults: list[Fault]
    """Those that could not be."""
    remarks: list[tuple[int, str]]
    """Indices of samples, and what their readers have noted."""


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

    def __getitem__(self, plan: BatchPlan) -> "_Read":
        if (worker := get_worker_info()) is None:
            with isolate_rng(include_cuda=False):
                return self._read(plan, self.reading[0])
        return self._read(plan, self.reading[worker.id])

    def _read(self, plan: BatchPlan, reading: torch.Tensor) -> "_Read":
        samples: list[Any] = []
        faults: list[Fault] = []
        noted: list[tuple[int, str]] = []
        reading[0] = os.getpid()
        remaining = deque(zip(plan.indices, plan.seeds, strict=True))
        while remaining:
            index, seed = remaining.popleft()
            reading[1] = index
            seed_generators(seed, gpus=False)
            try:
                with collect_remarks() as remarks:
                    samples.append(self.dataset[index])
                noted += [(index, remark) for remark in remarks]
            except Exception as error:  # decoders raise whatever the bytes provoke
                faults.append(self._fault(index, error))
                if self.stop_at_fault:
                    return _Read(None, 1, faults, noted)
                if self.training and not samples and not remaining and len(faults) < 100:
                    # Other processes wait for this one's gradients: the next sample of the dataset stands in.
                    remaining.append(((index + 1) % len(cast(Sized, self.dataset)), seed))

        reading[1] = -1
        seed_generators(plan.seed, gpus=False)
        batch = self.collate(samples) if samples else None
        return _Read(batch, len(samples) + len(faults), faults, noted)

    def _fault(self, index: int, error: Exception) -> Fault:
        """What is known of a sample that could not be read; to be called where the error is handled."""
        reason = explain_failure(error) if isinstance(error, OSError) else None
        where = "" if isinstance(error, UserError) or reason is not None else traceback.format_exc()
        return Fault(index, sample_id(self.dataset, index), reason or reason_of(error), where)


def _ignore_signals(worker: int) -> None:
    """Lets a worker live on when a signal that asks the run to stop reaches all of its processes.

    The main process still needs batches until it has come to the end of a step and saved; then it ends its workers by
    other means. A worker that hangs dies a minute after its SIGTERM.
    """
    for number in {*SIGNALS, signal.SIGUSR2}:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60) and None)


def _identity(batch: Any) -> Any:
    return batch
