"""Processes that commands start: they end with the one that started them and import nothing from the working folder.

How many of them there is room for: the cores that this process may use, not all that the machine has.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def without_working_folder() -> Iterator[None]:
    """Within it, processes that multiprocessing starts do not import from the working folder.

    Python puts that folder first on the path of a process that it starts with ``-c``, as multiprocessing does: a
    numpy.py that happens to lie there would be run.
    """
    name, before = "PYTHONSAFEPATH", os.environ.get("PYTHONSAFEPATH")
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def follow_parent() -> None:
    """Ends this process when the one that started it ends, however that ends.

    Signals are the other's to deal with: Ctrl-C in a terminal reaches all processes of a command.
    """
    parent: Any = multiprocessing.parent_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
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
