"""Signals that ask a command to stop: obeyed at once, or, where a training is to be saved first, at its next step.

A signal is noted by a handler, which Python runs between two instructions of the main thread. That may be long in
coming: a thread that waits in C for another process runs none. So a second thread watches as well. It ends a command
that does not come to its end by itself, and tells of a step that takes long.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from swinv2_tasks.errors import Interrupted, name_signal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT)
"""Those that ask a command to stop."""

SAME_STOP_SECONDS = 1.0
"""A signal that follows another within this time is the same wish: it went to a process and to its group, say.

But Ctrl-C pressed again means it, unless another process has handed it on."""

END_SECONDS = 15.0
"""Time in which a command that is to stop at once must have ended."""

STEP_SECONDS = 15.0
"""Time after which a command that is to stop after its step says what it is waiting for."""

AGAIN = "The same command begins again"
"""What to do next, where nothing of a command is kept."""


class Stops:
    """Which signals have come, and what is to be done about them.

    Attributes:
        number: the signal that asks to stop; None: there was none.
        requeue_number: a signal that asks for something else, a requeue, which a training sees to.
        is_requeue_wanted: whether that one has come.
        advice: what to do next, as the message ends.
        forward: called with each signal, to hand it on to processes that would not get it.
        is_forwarded_to: whether another process hands on to this one what it may get by itself.
        on_forced_end: called, in another thread, before the process is ended by force.
    """

    def __init__(self) -> None:
        self._installed_in: int | None = None
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets all signals; the next one is obeyed at once."""
        self.number: int | None = None
        self.requeue_number: int | None = None
        self.is_requeue_wanted = False
        self.advice = AGAIN
        self.forward: Callable[[int], None] | None = None
        self.is_forwarded_to = False
        self.on_forced_end: Callable[[], None] | None = None
        self._is_deferred = False
        self._noted_at = 0.0
        self._deadline: float | None = None
        self._tells_at: float | None = None

    # ---- what a command does

    @property
    def is_installed(self) -> bool:
        """Whether signals are handled in this process."""
        return self._installed_in == os.getpid()

    def defer(self) -> None:
        """From here on signals are only noted: whoever calls this looks at ``number`` and stops."""
        self._is_deferred = True

    def undefer(self) -> None:
        """From here on signals are obeyed at once again; where there was one, the command is about to end."""
        self._is_deferred = False

    def obey(self) -> None:
        """Stops here, where a signal has asked for it and stops are not deferred.

        Raises:
            Interrupted: it has.
        """
        if self.number is not None and not self._is_deferred:
            raise self.interruption()

    def interruption(self) -> Interrupted:
        """The exception that obeys the signal."""
        number = self.number or signal.SIGTERM
        return Interrupted(f"stopped by {name_signal(number)}. {self.advice}", number)

    def advise(self, advice: str) -> None:
        """Sets what to do next, a sentence without its period, as the message of a stop ends."""
        self.advice = advice

    def end_by_force_with(self, end: Callable[[], None]) -> None:
        """Sets what is called, in another thread, before the process is ended by force."""
        self.on_forced_end = end

    def forward_to(self, forward: Callable[[int], None] | None) -> None:
        """Sets what hands each signal on to other processes."""
        self.forward = forward

    def requeue_at(self, number: int) -> None:
        """Lets a signal be only noted, in ``is_requeue_wanted``."""
        self.requeue_number = number

    def forget_requeue(self) -> None:
        """Says that a requeue was seen to."""
        self.is_requeue_wanted = False

    # ---- signals

    def install(self) -> bool:
        """Handles signals from here on; returns whether it was this call that began it.

        Signals that are ignored, as SIGHUP is after ``nohup``, stay ignored.
        """
        if self.is_installed or threading.current_thread() is not threading.main_thread():
            return False
        self.reset()
        self._installed_in = os.getpid()
        self._before = {}
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        own, watched = self._sockets = socket.socketpair()
        own.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(own.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(watched,), name="stops", daemon=True).start()
        return True

    def uninstall(self) -> None:
        """Handles signals as before."""
        if not self.is_installed:
            return
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        assert self._sockets is not None
        self._sockets[0].close()  # which ends the thread
        self._sockets = None
        self._installed_in = None
        self.reset()

    def forget_in_child(self) -> None:
        """In a process that was forked: its signals are not those of the command."""
        if self._installed_in is None:
            return
        with suppress(ValueError):  # not of the main thread
            signal.set_wakeup_fd(-1)
        if self._sockets is not None:
            for end in self._sockets:
                end.close()
        self._sockets, self._installed_in = None, None
        self.reset()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Notes a signal, and obeys it where stops are not deferred."""
        if not self.is_installed:  # a process that was forked has not yet said what it does with signals
            return
        if number == self.requeue_number:
            self.is_requeue_wanted = True
            return
        is_first = self.number is None
        if not is_first and self._is_same_wish(number, time.monotonic() - self._noted_at):
            return
        if is_first:
            self.number, self._noted_at = number, time.monotonic()
            _tell_first_process(number)
        if self.forward is not None:
            with suppress(OSError):
                self.forward(number)
        if is_first and self._is_deferred:
            if number == signal.SIGINT and _is_first_process():  # print might wait for a lock of the interrupted code
                os.write(2, b"\nstopping after this step, to save it; Ctrl-C again stops at once\n")
            return
        self._is_deferred = False
        raise self.interruption()

    def _is_same_wish(self, number: int, seconds: float) -> bool:
        """Whether a signal that comes a time after the first one asks for nothing more."""
        is_pressed_again = number == signal.SIGINT and self._is_deferred and not self.is_forwarded_to
        return seconds < SAME_STOP_SECONDS and not is_pressed_again

    # ---- the thread that watches

    def _watch(self, watched: socket.socket) -> None:
        """Ends the process once a stop has taken too long; runs until the other end of the socket is closed."""
        first_at: float | None = None
        has_second = False
        with watched:
            while True:
                ready, _, _ = select.select([watched], [], [], 0.5)
                content = watched.recv(64) if ready else b""
                if ready and not content:
                    return
                now = time.monotonic()
                for number in content:
                    if number not in SIGNALS or number == self.requeue_number:
                        continue
                    if first_at is None:
                        first_at = now
                    elif not self._is_same_wish(number, now - first_at):
                        has_second = True
                if first_at is None:
                    continue
                if self._is_deferred and not has_second:
                    if self._tells_at is None:
                        self._tells_at = now + STEP_SECONDS
                    elif now >= self._tells_at:
                        self._tells_at = float("inf")
                        _say("still waiting for the step to end, to save it; a second signal stops at once")
                    continue
                self._deadline = self._deadline or now + END_SECONDS
                if now >= self._deadline:
                    self._end_by_force()

    def _end_by_force(self) -> None:
        number = self.number or signal.SIGTERM
        if self.on_forced_end is not None:
            with suppress(Exception):
                self.on_forced_end()
        _say(f"stopped by {name_signal(number)}, without waiting for what it was doing. {self.advice}")
        os._exit(exit_status(number))


def exit_status(number: int) -> int:
    """The exit status of a process that a signal has stopped."""
    return 0 if is_child_of_first() else 128 + number


LEADER = "SWINV2_TASKS_FIRST_PROCESS"
"""Environment variable with the id of the process that starts the others of a run on its machine."""


def lead() -> None:
    """Says to the processes of the run that this one starts who they belong to."""
    if _is_first_process():
        os.environ[LEADER] = str(os.getpid())


def is_child_of_first() -> bool:
    """Whether this process of a run was started by the run's first one, which reports for it.

    What it ends with must then not look like a failure: Lightning would kill the first one.
    """
    return not _is_first_process() and os.environ.get(LEADER) == str(os.getppid())


def _is_first_process() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _tell_first_process(number: int) -> None:
    """Hands a signal on to the process that started this one: the run stops as a whole."""
    if is_child_of_first():
        with suppress(OSError):
            os.kill(os.getppid(), number)


def _say(message: str) -> None:
    if _is_first_process():
        os.write(2, f"swinv2-tasks: {message}\n".encode(errors="backslashreplace"))


stops = Stops()
"""Those of this process."""

os.register_at_fork(after_in_child=stops.forget_in_child)


@contextmanager
def handled_stops() -> Iterator[Stops]:
    """Within it, signals that ask to stop end in ``Interrupted``; in the main thread, which alone gets signals."""
    is_own = stops.install()
    try:
        yield stops
    finally:
        if is_own:
            stops.uninstall()
            sys.stderr.flush()


@contextmanager
def advising(advice: str) -> Iterator[None]:
    """Within it, a stop's message ends with what to do next.

    Args:
        advice: a sentence without its period, such as "The same command resumes".
    """
    before = stops.advice
    stops.advise(advice)
    try:
        yield
    finally:
        stops.advise(before)
