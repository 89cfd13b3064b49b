"""validate in a process of its own: what it measures, how fast, in how much memory, and what ended it if it failed."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from swinv2_tasks.batches import task_data
from swinv2_tasks.child_processes import follow_parent, without_working_folder
from swinv2_tasks.cli.tasks_cli import TasksCLI, run_as
from swinv2_tasks.errors import UserError, find_user_error, strip_traceback

Progress = Callable[[int, int], Any]
"""Told how many batches are done, of how many."""


@dataclass(frozen=True)
class Measured:
    """What came of an evaluation.

    Attributes:
        metrics: by name, as ``validate`` logs them.
        samples: what is counted: images, or views of videos.
        samples_per_second: from the end of the first batch to that of the last, reading included as far as the model
            waits for it; of an evaluation of one batch, that batch alone.
        memory_mib: on a GPU the most that torch had allocated; else the most that the process had in memory, libraries
            included, without its DataLoader workers.
        device: the GPU's name, or cpu.
        left_out: the samples that could not be read, and that the metrics say nothing of, by name, with the reasons.
    """

    metrics: dict[str, float]
    samples: str
    samples_per_second: float
    memory_mib: float
    device: str
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """What ended an evaluation, in a line."""

    reason: str


class Stopwatch(Callback):
    """Counts and times the samples of an evaluation.

    Args:
        progress: told now and then.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.samples = ""
        self._count = 0
        self._since = self._until = self._told = 0.0

    @property
    def speed(self) -> float:
        """Samples per second."""
        return self._count / (self._until - self._since)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0:
            self._since = self._now()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        views = batch["clip"].shape[1] if "clip" in batch else 1
        number = len(next(iter(batch.values()))) * views
        self.samples = "views" if "clip" in batch else "images"
        if batch_idx == 0:
            self._count, self._until = number, self._now()
        elif batch_idx == 1:  # the first one, in which things are made that the others find, does not count
            self._count, self._since = number, self._until
        else:
            self._count += number
        if time.perf_counter() - self._told > 0.2:
            self._told = time.perf_counter()
            self.progress(batch_idx + 1, int(trainer.num_val_batches[0]))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._until = self._now()  # before metrics are computed

    def _now(self) -> float:
        """The time, once the device has done what it was told."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


class _TimedCLI(TasksCLI):
    """The command line with a stopwatch."""

    def __init__(self, args: list[str], resume: Path | None = None, *, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch
        super().__init__(args, resume)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer: Any = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(self.stopwatch)
        return trainer


def validate(arguments: Sequence[str], progress: Progress) -> Measured:
    """Runs ``validate`` in this process, whose peak of memory then is the evaluation's if it did nothing else before.

    Args:
        arguments: the command line's.
        progress: told how many batches are done, of how many.

    Raises:
        UserError: for a mistake in configs, data or checkpoints.
    """
    stopwatch = Stopwatch(progress)
    cli = run_as(partial(_TimedCLI, stopwatch=stopwatch), "validate", arguments)
    counts = task_data(cli.trainer).evaluated_samples("val")
    left_out = {} if counts is None else counts.left_out
    if not stopwatch.samples and left_out:
        reason = next(iter(left_out.values()))
        raise UserError(f"none of {len(left_out)} samples could be read. The first one: {reason}")
    if not stopwatch.samples:
        raise UserError("nothing was evaluated: there was no batch (trainer.limit_val_batches)")
    device = cli.trainer.strategy.root_device
    is_gpu = device.type == "cuda"
    return Measured(
        metrics={name: float(value) for name, value in cli.trainer.callback_metrics.items()},
        samples=stopwatch.samples,
        samples_per_second=round(stopwatch.speed, 2),
        memory_mib=round((torch.cuda.max_memory_allocated(device) if is_gpu else peak_resident()) / 2**20, 1),
        device=torch.cuda.get_device_name(device) if is_gpu else device.type,
        left_out=dict(left_out),
    )


def peak_resident() -> int:
    """The most that this process had in memory, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # what follows may be inherited from the process that started this one
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def validate_apart(arguments: Sequence[str], log: Path, progress: Progress) -> Measured | Failed:
    """Runs ``validate`` in a process of its own, which may fail in any way.

    Args:
        arguments: the command line's.
        log: file that takes all that is printed.
        progress: told how many batches are done, of how many.
    """
    # A fork server has the libraries ready; but what has been forked may not use an accelerator.
    context: Any = multiprocessing.get_context("spawn" if torch.accelerator.is_available() else "forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=([*arguments], log, torch.get_num_threads(), sender))
    with without_working_folder():
        process.start()
    sender.close()
    outcome: Measured | Failed | None = None
    try:
        while outcome is None:
            wait([receiver, process.sentinel])  # DataLoader workers may keep the pipe open when it is gone
            if not receiver.poll():
                break
            try:
                message = receiver.recv()
            except EOFError:
                break
            if isinstance(message, tuple):
                progress(*message)
            else:
                outcome = message
        process.join(None if outcome is None else 10)
    finally:
        process.kill()
        process.join()
    return outcome or Failed(_how_it_ended(process.exitcode))


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status}"
    number = -status
    name = Signals(number).name if number in {one.value for one in Signals} else f"signal {number}"
    why = ": most likely the system ran out of memory" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{why}"


def _serve(arguments: list[str], log: Path, threads: int, pipe: Connection) -> None:
    """What the process of its own does."""
    follow_parent()
    with log.open("w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    torch.set_num_threads(threads)
    try:
        outcome: Measured | Failed = validate(arguments, lambda *batches: pipe.send(batches))
    except BaseException as error:  # the process ends with it
        traceback.print_exc()
        outcome = Failed(_in_a_line(error))
    pipe.send(outcome)


def _in_a_line(error: BaseException) -> str:
    mistake = find_user_error(error)
    text = strip_traceback(str(mistake)) if mistake is not None else f"{type(error).__name__}: {error}"
    return next(line.strip() for line in text.splitlines() if line.strip())
