"""What it costs to read a file: in a process with a limit of memory, a clock of its own work, and an end to waiting."""

from __future__ import annotations

import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from swinv2_tasks.errors import UserError
from tests.helpers.processes import _server

MOST_MEMORY = 2 * 2**30
"""Bytes that a process may ever hold, torch and all of the package among them."""

MOST_SECONDS = 10
"""Of computing, after the imports."""


class Outcome(NamedTuple):
    """How a call ended."""

    error: type[BaseException] | None
    """What it raised."""
    text: str
    """The message of that, or what the call returned."""
    peak: int
    """Bytes that the process held at most."""
    growth: int
    """How many more that is than before the call."""


def call(function: Callable[..., Any], *arguments: Any, seconds: int = MOST_SECONDS) -> Outcome:
    """Calls a function of a module, in a process that is killed where it computes for more than twice so long."""
    here, there = _server.Pipe()
    process = _server.Process(target=_call, args=(there, seconds, function, arguments))
    process.start()
    there.close()
    try:
        assert here.poll(6 * seconds), "it waits for ever"
        outcome: Outcome = here.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"its process ended by signal {-(process.exitcode or 0)}") from None
    finally:
        process.kill()
        process.join()
    return outcome


def refusal(function: Callable[..., Any], *arguments: Any) -> str:
    """The one message that a call ends in, for little time and memory."""
    outcome = call(function, *arguments)
    assert outcome.error is not None, f"it is taken: {outcome.text}"
    assert issubclass(outcome.error, UserError), f"{outcome.error.__name__}: {outcome.text}"
    assert outcome.peak < MOST_MEMORY
    assert len(outcome.text) < 2000
    return outcome.text


def _call(pipe: Connection, seconds: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    limit_process(seconds)
    before = _held_memory()
    error: type[BaseException] | None = None
    try:
        text = str(function(*arguments))[:2000]
    except BaseException as raised:
        error, text = type(raised), str(raised)[:4000]
    pipe.send(Outcome(error, text, peak_memory(), peak_memory() - before))
    pipe.close()


def limit_process(seconds: int = MOST_SECONDS) -> None:
    """Ends this process where it computes for long, and lets it have no more memory than the machine of a test."""
    end = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + 2 * seconds
    resource.setrlimit(resource.RLIMIT_CPU, (end, end))
    resource.setrlimit(resource.RLIMIT_DATA, (3 * MOST_MEMORY, resource.RLIM_INFINITY))


def peak_memory() -> int:
    """The bytes of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _held_memory() -> int:
    """The bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
