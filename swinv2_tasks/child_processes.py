"""Processes that commands start: they end with the one that started them and import nothing from the working folder."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
