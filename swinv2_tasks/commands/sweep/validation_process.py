"""``validate`` in a child process: its metrics, speed and memory, or the reason why it failed."""

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
from swinv2_tasks.child_processes import TIMEOUT, follow_parent, timeout_seconds, without_working_folder
from swinv2_tasks.cli.tasks_cli import Start, TasksCLI, run_as
from swinv2_tasks.errors import UserError, find_user_error, strip_traceback
from swinv2_tasks.progress import in_words

SILENCE_FACTOR = 3
"""How many times as long as for a DataLoader worker the child process is waited for: it waits for those itself."""

ReportProgress = Callable[[int, int], Any]
"""Called with the number of batches that are done, and the number of all batches."""


@dataclass(frozen=True)
class Measurement:
    """Metrics, speed and memory of an evaluation.

    Attributes:
        metrics: by name, as ``validate`` logs them.
        samples: what a sample is: "images", or "views" of videos.
        samples_per_second: from the end of the first batch to that of the last, reading included as far as the model
            waits for it; in an evaluation of one batch, during that batch.
        memory_mib: peak memory in MiB: on a GPU what torch had allocated; else the process's resident memory, libraries
            included, without its DataLoader workers.
        device: the GPU's name, or cpu.
        left_out: the samples that could not be read and that the metrics do without: the reason for each, by its name.
    """

    metrics: dict[str, float]
    samples: str
    samples_per_second: float
    memory_mib: float
    device: str
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """The reason why an evaluation failed, in one line."""

    reason: str


class Stopwatch(Callback):
    """Counts and times the samples of an evaluation.

    Args:
        report_progress: called at most every fifth of a second.

    Attributes:
        samples: what a sample is: "images" or "views"; empty until there was a batch.
    """

    def __init__(self, report_progress: ReportProgress) -> None:
        self.report_progress = report_progress
        self.samples = ""
        self._count = 0
        self._start = self._end = self._last_report = 0.0

    @property
    def speed(self) -> float:
        """Samples per second."""
        return self._count / (self._end - self._start)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Starts the clock at the first batch."""
        if batch_idx == 0:
            self._start = self._synchronized_time()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the batch's samples and reports progress.

        As soon as there is a second batch, the first one no longer counts: caches are filled and memory is allocated
        in it, which the others reuse.
        """
        images = len(next(iter(batch.values())))
        is_video = "clip" in batch
        self.samples = "views" if is_video else "images"
        number = images * batch["clip"].shape[1] if is_video else images

        if batch_idx == 0:
            self._count = number
            self._end = self._synchronized_time()
        elif batch_idx == 1:
            self._count = number
            self._start = self._end
        else:
            self._count += number

        if time.perf_counter() - self._last_report > 0.2:
            self._last_report = time.perf_counter()
            self.report_progress(batch_idx + 1, int(trainer.num_val_batches[0]))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock, before metrics are computed."""
        self._end = self._synchronized_time()

    def _synchronized_time(self) -> float:
        """The time in seconds, once the GPU has finished what was queued."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


class _TimedCLI(TasksCLI):
    """The command line with a stopwatch."""

    def __init__(self, args: list[str], start: Start, *, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch
        super().__init__(args, start)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer as the command line does, and adds the stopwatch to its callbacks."""
        trainer: Any = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(self.stopwatch)
        return trainer


def validate(arguments: Sequence[str], report_progress: ReportProgress) -> Measurement:
    """Runs ``validate`` in this process.

    Memory is the process's peak, so the process should have done nothing else before.

    Args:
        arguments: those of the command line.
        report_progress: called with the number of batches that are done, and the number of all batches.

    Raises:
        UserError: there is a mistake in configs, data or checkpoints, or no sample could be evaluated.
    """
    stopwatch = Stopwatch(report_progress)
    cli = run_as(partial(_TimedCLI, stopwatch=stopwatch), "validate", arguments)

    counts = task_data(cli.trainer).evaluated_samples("val")
    left_out = {} if counts is None else counts.left_out
    if not stopwatch.samples and left_out:
        reason = next(iter(left_out.values()))
        raise UserError(f"none of {len(left_out)} samples could be read. The first one: {reason}")
    if not stopwatch.samples:
        raise UserError("nothing was evaluated: there was no batch (trainer.limit_val_batches)")

    device = cli.trainer.strategy.root_device
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        device_name = torch.cuda.get_device_name(device)
    else:
        peak = peak_resident_bytes()
        device_name = device.type
    return Measurement(
        metrics={name: float(value) for name, value in cli.trainer.callback_metrics.items()},
        samples=stopwatch.samples,
        samples_per_second=round(stopwatch.speed, 2),
        memory_mib=round(peak / 2**20, 1),
        device=device_name,
        left_out=dict(left_out),
    )


def peak_resident_bytes() -> int:
    """Peak of this process's resident memory, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text("utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024

    # On Linux this may be inherited from the parent process.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def validate_in_child_process(
    arguments: Sequence[str], log: Path, report_progress: ReportProgress
) -> Measurement | Failure:
    """Runs ``validate`` in a child process, and returns a ``Failure`` however that one fails.

    Args:
        arguments: those of the command line.
        log: file that all output of the child process is written to.
        report_progress: called with the number of batches that are done, and the number of all batches.
    """
    # A fork server has the libraries loaded already; but a forked process cannot use an accelerator.
    context: Any = multiprocessing.get_context("spawn" if torch.accelerator.is_available() else "forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_child, args=([*arguments], log, torch.get_num_threads(), sender))
    with without_working_folder():
        process.start()
    sender.close()

    outcome: Measurement | Failure | None = None
    seconds = SILENCE_FACTOR * timeout_seconds()
    try:
        while outcome is None:
            # The sentinel as well: DataLoader workers may keep the pipe open after the child's death.
            if not wait([receiver, process.sentinel], timeout=seconds):
                outcome = Failure(f"its process gave no sign of life for {in_words(seconds)} ({TIMEOUT})")
                break
            if not receiver.poll():
                break
            try:
                message = receiver.recv()
            except EOFError:
                break

            if isinstance(message, tuple):
                report_progress(*message)
            else:
                outcome = message

        process.join(60 if outcome is None else 10)
    finally:
        process.kill()
        process.join()
    return outcome or Failure(_describe_exit(process.exitcode))


def _describe_exit(status: int) -> str:
    """How a process ended: its exit status, or with a minus the signal that ended it."""
    if status >= 0:
        return f"its process ended with status {status}"

    number = -status
    is_known = number in {known.value for known in Signals}
    name = Signals(number).name if is_known else f"signal {number}"
    cause = ": most likely the system ran out of memory" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{cause}"


def _run_child(arguments: list[str], log: Path, threads: int, pipe: Connection) -> None:
    """Validates in the child process: sends progress as pairs of numbers, then the outcome."""
    follow_parent()

    stdout, stderr = 1, 2
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), stdout)
        os.dup2(file.fileno(), stderr)

    torch.set_num_threads(threads)
    try:
        outcome: Measurement | Failure = validate(arguments, lambda *batches: pipe.send(batches))
    except BaseException as error:  # SystemExit as well: the process ends after it in any case
        traceback.print_exc()
        outcome = Failure(_first_line(error))
    pipe.send(outcome)


def _first_line(error: BaseException) -> str:
    """First line of an error's message; of the UserError that it was raised from, if there is one."""
    user_error = find_user_error(error)
    text = f"{type(error).__name__}: {error}" if user_error is None else strip_traceback(str(user_error))
    return next(line.strip() for line in text.splitlines() if line.strip())
