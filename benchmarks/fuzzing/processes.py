"""A process for each case, forked from one that has imported everything: with limits, and watched."""

from __future__ import annotations

import faulthandler
import functools
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.fuzzing.mutations import CANARY
from swinv2_tasks.cli.main import main

MEMORY = 2 * 2**30
"""Bytes that a case may take beyond what it begins with."""

PROCESSOR_SECONDS = 10
"""Processor time that a case may take."""

WALL_SECONDS = 150
"""Time after which a case counts as hung: ample, as there may be other work beside it."""

OUTCOMES = ("ok", "refusal", "traceback", "crash", "hang", "memory", "execution")


@dataclass
class Ending:
    """How a case ended.

    Attributes:
        outcome: one of ``OUTCOMES``.
        status: of the process, negative for a signal.
        output: what it printed.
        peak: bytes in memory beyond what it began with, at most.
        seconds: of processor time.
    """

    outcome: str
    status: int
    output: str
    peak: int
    seconds: float


class Case:
    """A command that runs in a process of its own.

    Args:
        arguments: the command line.
        folder: where it runs; it is there, and is the case's alone.
        entry: what runs the command line.
    """

    def __init__(
        self, arguments: Sequence[str], folder: Path, entry: Callable[[Sequence[str]], int] | None = None
    ) -> None:
        self.folder, self.log = folder, folder.with_suffix(".log")
        self.started = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run_and_exit(entry or main, arguments, folder, self.log)

    def poll(self) -> Ending | None:
        """How it ended; None while it runs."""
        late = time.monotonic() - self.started > WALL_SECONDS
        if late:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGXCPU)  # which says where it stands
            time.sleep(0.5)
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        pid, wait_status, usage = os.wait4(self.pid, 0 if late else os.WNOHANG)
        if pid == 0:
            return None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it has started and left
        status = os.waitstatus_to_exitcode(wait_status)
        peak = max(0, usage.ru_maxrss * 1024 - _bytes_of_a_fork())
        output = self.log.read_text(errors="replace") if self.log.is_file() else ""
        outcome = _judge(status, output, peak, late)
        if (self.folder / CANARY).exists() or CAUGHT in output:
            outcome = "execution"
        return Ending(outcome, status, output, peak, usage.ru_utime + usage.ru_stime)


def wait_for(case: Case) -> Ending:
    """Waits until a case has ended."""
    while (ending := case.poll()) is None:
        time.sleep(0.005)
    return ending


CAUGHT = "caught by the benchmark: "

_ERROR_NAMES = re.compile(r"(?<![\w/.'\"-])[A-Za-z_.]*[a-z](Error|Exception)\b(?!\w)")


def _judge(status: int, output: str, peak: int, late: bool) -> str:
    if late or status == -signal.SIGXCPU:
        return "hang"
    if "MemoryError" in output or peak > MEMORY:
        return "memory"
    if status < 0:
        return "crash"
    if "Traceback (most recent call last)" in output:
        return "traceback"
    if status == 0:
        return "ok"
    return "refusal" if _is_clear(output) else "traceback"


def _is_clear(output: str) -> bool:
    """Whether output ends with a message of one to three lines, or with a list of files that could not be read."""
    _, mark, message = output.rpartition("swinv2-tasks: ")
    if not mark and (listed := re.search(r"^\d+ of \d+ files could not be predicted:\n((?:  .+\n)+)", output, re.M)):
        return not _ERROR_NAMES.search(listed[1])
    return bool(mark) and 1 <= len(message.strip().splitlines()) <= 3 and not _ERROR_NAMES.search(message)


def _run_and_exit(entry: Callable[[Sequence[str]], int], arguments: Sequence[str], folder: Path, log: Path) -> None:
    status = 99
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.chdir(folder)
        (folder / "tmp").mkdir(exist_ok=True)
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "tmp")
        sys.argv[1:] = [*arguments]
        faulthandler.register(signal.SIGXCPU, file=2, chain=True)
        torch.set_num_threads(1)  # in one thread first: a pool of threads that did not survive the fork is made anew
        _limit()
        sys.addaudithook(_Watch(folder))
        status = entry([*arguments])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def limit_memory(more: int) -> None:
    """Lets this process take so many bytes more than it has now."""
    limit = _status_bytes("VmData") + more
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error, as on a full disk
    limit_memory(MEMORY)


class _Watch:
    """An audit hook that reports what a mutated file must not bring about: programs, other hosts, files elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.allowed = (str(folder), "/dev/", "/proc/self/")
        self.is_in_hook = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_in_hook:
            return
        self.is_in_hook = True
        try:
            if (what := self._fault(event, arguments)) is not None:
                os.write(2, f"\n{CAUGHT}{what}\n".encode("utf-8", "replace"))
                os._exit(98)
        finally:
            self.is_in_hook = False

    def _fault(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event in ("os.system", "os.exec", "os.posix_spawn", "pty.spawn"):
            return f"{event} {arguments[0]!r:.200}"
        if event == "subprocess.Popen":
            program = os.path.basename(os.fsdecode(arguments[0]))
            return (
                None
                if program in ("git", "uname", os.path.basename(sys.executable))
                else f"program {arguments[0]!r:.200}"
            )
        if event in ("socket.getaddrinfo", "socket.gethostbyname") and arguments[0] not in (None, "localhost"):
            return f"host {arguments[0]!r}"
        if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] != "127.0.0.1":
            return f"host {arguments[1]!r}"
        if event == "open" and isinstance(arguments[0], str | bytes) and _writes(arguments[1], arguments[2]):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            return None if path.startswith(self.allowed) else f"writes {path}"
        if event in ("os.remove", "os.rename", "os.rmdir", "shutil.rmtree"):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            return None if path.startswith(self.allowed) else f"{event} {path}"
        return None


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


@functools.cache
def _bytes_of_a_fork() -> int:
    """What a forked process that does nothing has in memory: what it shares with this one."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.wait4(pid, 0)[2].ru_maxrss * 1024


def _status_bytes(name: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))


def run_in_child(function: Callable[[], object], log: Path) -> None:
    """Calls a function in a forked process, so that this one stays without threads; what it prints goes to a file.

    Raises:
        RuntimeError: it failed.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"seeds could not be written, see {log}")


def run_all(cases: Iterator[tuple[int, Sequence[str], Path]], processes: int) -> Iterator[tuple[int, Path, Ending]]:
    """Runs cases, several at a time; yields the number, folder and ending of each as it ends."""
    running: dict[int, Case] = {}
    waiting = iter(cases)
    is_exhausted = False
    while running or not is_exhausted:
        while not is_exhausted and len(running) < processes:
            following = next(waiting, None)
            if following is None:
                is_exhausted = True
                break
            number, arguments, folder = following
            running[number] = Case(arguments, folder)
        ended = [(number, case, ending) for number, case in running.items() if (ending := case.poll()) is not None]
        for number, case, ending in ended:
            del running[number]
            yield number, case.folder, ending
        if not ended:
            time.sleep(0.005)


def remove(folder: Path) -> None:
    """Removes a case's folder and its output."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".log").unlink(missing_ok=True)
