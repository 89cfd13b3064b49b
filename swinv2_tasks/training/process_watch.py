"""What the processes of a run tell each other beside their collectives: that they live, and that a stop is wanted.

A process that was killed or stopped takes no part in a collective, and the others would wait for it in theirs. One that
is only slow, such as the first one while it scores or saves, is to be waited for. So each process has a thread that
gives a sign of life every second, and ends its process where another's signs fail to come.
"""

from __future__ import annotations

import datetime
import os
import threading
import time
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from swinv2_tasks.child_processes import timeout_seconds
from swinv2_tasks.progress import in_words
from swinv2_tasks.stopping import stops
from swinv2_tasks.torch_internals import group_store

INTERVAL = 1.0
"""Seconds between two signs of life."""

PAUSE = 15.0
"""Seconds between two of its steps after which a thread takes it that its own process was stopped for a while."""

PATIENCE = 10.0
"""Seconds in which a process whose first one is gone may find that out, and say so, by itself."""

GROUP_FACTOR = 12
"""How many times as long as for signs of life processes that live wait for each other in a collective."""


def collective_timeout() -> datetime.timedelta:
    """How long processes wait for each other in a collective, where all of them live."""
    return datetime.timedelta(seconds=min(GROUP_FACTOR * timeout_seconds(), 10**9))


def cpu_group() -> Any:
    """A group of all processes that talk on the CPU; to be called by all of them."""
    if torch.distributed.get_backend() == "gloo":
        return torch.distributed.group.WORLD
    return torch.distributed.new_group(backend="gloo", timeout=collective_timeout())


class ProcessWatch(Callback):
    """Ends a run of which a process was killed or stopped, in a thread of each process.

    The first process watches all others, these watch the first one. It is the one that reports; where it is gone, the
    second one does.

    Attributes:
        is_stop_announced: whether any process was asked to stop.
    """

    def __init__(self) -> None:
        self.is_stop_announced = False
        self._watcher: _Watcher | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begins to watch."""
        if trainer.world_size == 1 or self._watcher is not None:
            return
        store = group_store()
        if store is not None:
            self._watcher = _Watcher(store, trainer.global_rank, trainer.world_size, self)
            self._watcher.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watches no longer."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Watches no longer: this process is about to end."""
        self._stop()

    def _stop(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
        self._watcher = None


class _Watcher:
    """The threads of a process."""

    def __init__(self, store: Any, rank: int, world_size: int, watch: ProcessWatch) -> None:
        self.store, self.rank, self.watch = store, rank, watch
        self.peers = range(1, world_size) if rank == 0 else range(1)
        self.seconds = timeout_seconds()
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=run, daemon=True) for run in (self._talk, self._watch_talk)]
        self.talked_at = time.monotonic()

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.ended.set()
        self.threads[0].join(2)  # the others are to know that this process has ended by itself

    def _talk(self) -> None:
        """Gives signs of life and looks for those of the others, until it is told to end."""
        try:
            self._exchange()
        except Exception:  # the first process, which serves the store, is gone
            if not self.ended.wait(PATIENCE):
                self._end("the first process of this run is gone")

    def _exchange(self) -> None:
        signs = dict.fromkeys(self.peers, 0)
        changed_at = dict.fromkeys(self.peers, time.monotonic())
        has_told, warned = False, set[int]()
        while not self.ended.wait(INTERVAL):
            now = time.monotonic()
            if now - self.talked_at > PAUSE:
                changed_at = dict.fromkeys(self.peers, now)
            self.store.add(f"signs/{self.rank}", 1)
            if (stops.number is not None or stops.is_requeue_wanted) and not has_told:
                self.store.set("stop", "1")
                has_told = True
            self.watch.is_stop_announced = self.watch.is_stop_announced or self.store.check(["stop"])

            for peer in self.peers:
                sign = self.store.add(f"signs/{peer}", 0)
                if sign != signs[peer]:
                    signs[peer], changed_at[peer] = sign, now
                silence = now - changed_at[peer]
                if silence > self.seconds / 5 and peer not in warned and not self._is_done(peer):
                    warned.add(peer)
                    self._say(
                        f"process {peer} of this run has given no sign of life for {in_words(silence)}; after "
                        f"{in_words(self.seconds)} the run ends (--timeout)"
                    )
                if silence > self.seconds and not self._is_done(peer):
                    self._end(f"process {peer} of this run has given no sign of life for {in_words(silence)}")
            self.talked_at = time.monotonic()
        self.store.add(f"done/{self.rank}", 1)

    def _is_done(self, peer: int) -> bool:
        return self.store.add(f"done/{peer}", 0) > 0

    def _watch_talk(self) -> None:
        """Ends the process where the other thread hangs: the process that serves the store was stopped."""
        looked_at = time.monotonic()
        while not self.ended.wait(INTERVAL):
            now = time.monotonic()
            if now - looked_at > PAUSE:
                self.talked_at = now
            looked_at = now
            if now - self.talked_at > self.seconds:
                self._end(f"the first process of this run has given no sign of life for {in_words(self.seconds)}")

    def _say(self, message: str) -> None:
        if self.rank == min({0, 1} - {*self.peers}):
            os.write(2, f"swinv2-tasks: {message}\n".encode(errors="backslashreplace"))

    def _end(self, message: str) -> None:
        """Ends this process, whose main thread waits for one that will not come."""
        self._say(f"{message}: it was stopped or killed, or its machine is gone. {stops.advice}.")
        if stops.on_forced_end is not None:
            with suppress(Exception):
                stops.on_forced_end()
        os._exit(1)
