"""Processes that commands start: they end with the one that started them and import nothing from the working folder.

How many of them there is room for: the cores that this process may use, not all that the machine has.
"""

from __future__ import annotations

import concurrent.futures
import math
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from swinv2_tasks.errors import UserError, reason_of
from swinv2_tasks.python_internals import kill_workers
from swinv2_tasks.stopping import SIGNALS

Item = TypeVar("Item")
Result = TypeVar("Result")

TIMEOUT = "SWINV2_TASKS_TIMEOUT"
"""Environment variable: the seconds that one process waits for another of which nothing comes."""


def timeout_seconds() -> float:
    """How long one process waits for another of which nothing comes; 600 s unless TIMEOUT says otherwise.

    Raises:
        UserError: it says nothing above 0.
    """
    text = os.environ.get(TIMEOUT, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise UserError(f"{TIMEOUT} is {text!r}; expected a number of seconds above 0, such as 600")
    return seconds


MOST_OPEN_FILES = 65_536
"""As many as a run ever needs."""


def allow_many_files() -> None:
    """Raises this process's limit of open files as far as it may: each tensor that a worker passes on is one."""
    lower, upper = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if upper == resource.RLIM_INFINITY else min(upper, MOST_OPEN_FILES)
    if lower != resource.RLIM_INFINITY and lower < wanted:
        with suppress(OSError, ValueError):  # as some systems say no
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, upper))


def check_open_files(workers: int) -> None:
    """Makes sure that a few tensors of each worker may be open at a time: with fewer, workers fail one after the other.

    Raises:
        UserError: they may not.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 64 + 16 * workers
    if workers and limit != resource.RLIM_INFINITY and limit < needed:
        raise UserError(
            f"this process may have {limit} files open, too few for {workers} DataLoader workers: raise the limit "
            "(ulimit -n 65536), or set --data.num_workers 0."
        )


@contextmanager
def restored_timeout() -> Iterator[None]:
    """Within it, the environment may be given another timeout: afterwards it is as before."""
    with _restored(TIMEOUT):
        yield


@contextmanager
def without_working_folder() -> Iterator[None]:
    """Within it, processes that multiprocessing starts do not import from the working folder.

    Python puts that folder first on the path of a process that it starts with ``-c``, as multiprocessing does: a
    numpy.py that happens to lie there would be run.
    """
    with _restored("PYTHONSAFEPATH"):
        os.environ["PYTHONSAFEPATH"] = "1"
        yield


@contextmanager
def _restored(name: str) -> Iterator[None]:
    """Within it, a variable of the environment may be changed: afterwards it is as before."""
    before = os.environ.get(name)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def follow_parent() -> None:
    """Ends this process when the one that started it ends, however that ends.

    Signals are the other's to deal with: Ctrl-C in a terminal reaches all processes of a command.
    """
    parent: Any = multiprocessing.parent_process()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """How many cores this process may use, at least 1: by its affinity, and by the quota of its container.

    Args:
        cgroup: where the kernel states the quota, as version 2 or version 1 of control groups does.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cores_of_quota(cgroup)
    return max(1, cores if quota is None else min(cores, int(quota)))


def _cores_of_quota(cgroup: Path) -> float | None:
    """How many cores' time a container may take; None where nothing limits it, or nothing says so."""
    try:
        if (cgroup / "cpu.max").is_file():
            microseconds, period = (cgroup / "cpu.max").read_text().split()
        else:
            microseconds = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        return int(microseconds) / int(period) if int(microseconds) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max", or files of another system
        return None


# ---- decoding in processes of their own


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What a function returned in another process, or why it returned nothing."""

    value: Result | None
    reason: str = ""
    """Empty where it has returned. That it has not may be otherwise the next time."""


def decode_in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, seconds: float
) -> Iterator[tuple[Item, Outcome[Result]]]:
    """Calls a function in processes of their own: what makes a decoder crash or hang stops nothing else.

    Args:
        function: A function of a module, which decodes files.
        items: What it is called with, one after the other.
        workers: Processes.
        seconds: Time after which a call counts as hung.

    Yields:
        Each item with what came of it, as soon as it is known.
    """
    # Each thread has a process of its own: when that dies, it is known of what. The processes inherit that signals are
    # blocked, which are for the main process to handle.
    threads = ThreadPoolExecutor(workers, initializer=_block_signals)
    processes: list[_ReplacedProcess[Any, Any]] = [_ReplacedProcess(function, seconds) for _ in range(workers)]
    free = list(processes)

    def call(item: Item) -> Outcome[Result]:
        process = free.pop()
        try:
            return process.call(item)
        finally:
            free.append(process)

    try:
        with without_working_folder():
            item_of = {threads.submit(call, item): item for item in items}
            for future in concurrent.futures.as_completed(item_of):
                yield item_of.pop(future), future.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # when interrupted, nothing further is begun
        for process in processes:
            process.close()


def _block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


class _ReplacedProcess(Generic[Item, Result]):
    """A process that makes one call after the other, replaced when it dies or hangs."""

    def __init__(self, function: Callable[[Item], Result], seconds: float) -> None:
        self.function, self.seconds = function, seconds
        self.pool: ProcessPoolExecutor | None = None
        self.is_closed = False

    def call(self, item: Item) -> Outcome[Result]:
        if self.pool is None and not self.is_closed:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(1, context, initializer=follow_parent)
        if self.pool is None:
            return Outcome(None, "it was stopped")
        try:
            try:  # what a new process has to import, for the function too, takes none of the call's time
                self.pool.submit(_is_ready, self.function).result(timeout_seconds())
            except concurrent.futures.TimeoutError:
                self._end()
                return Outcome(None, f"the process for it did not start within {timeout_seconds():g} s")
            return Outcome(self.pool.submit(self.function, item).result(self.seconds))
        except BrokenProcessPool:
            self._end()
            return Outcome(None, "its decoder crashed")
        except concurrent.futures.TimeoutError:
            self._end()
            return Outcome(None, f"its decoder did not end within {self.seconds:g} s")
        except Exception as error:  # decoders raise whatever the bytes provoke
            return Outcome(None, reason_of(error))

    def close(self) -> None:
        self.is_closed = True
        self._end()

    def _end(self) -> None:
        if (pool := self.pool) is not None:
            self.pool = None
            kill_workers(pool)  # a hung one would keep it


def _is_ready(function: Callable[..., Any]) -> bool:
    """Returns once the function's module is imported, as it must be for the function to arrive."""
    return callable(function)
