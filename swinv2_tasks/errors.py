"""Errors that the user can do something about."""

import signal

__all__ = [
    "ArgumentsError",
    "CollectiveError",
    "FaultyFiles",
    "Interrupted",
    "InterruptedProcess",
    "NothingToDo",
    "Refused",
    "UserError",
    "reason_of",
]


def reason_of(error: BaseException) -> str:
    """What an error of another library says about a file, in a line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "its content is corrupt"


class UserError(ValueError):
    """A mistake in files, settings or arguments.

    The message names what is wrong and where, what was expected and what to do. The command line prints it
    alone, without a traceback, and exits with status 1.
    """


class ArgumentsError(UserError):
    """One in the arguments of the command line themselves: it exits with status 2."""


class Refused(Exception):
    """A parser refuses its arguments; the message is the parser's own, which says in its terms what it expected."""


class CollectiveError(UserError):
    """One that is raised on every rank: the command line prints it in the first process of each machine."""


class FaultyFiles(UserError):
    """Some files could not be dealt with; the work is done for all others, and its results are where they belong.

    Args:
        message: how many of how many, and where the results are.
        faults: the reason for each, by its name.
    """

    def __init__(self, message: str, faults: dict[str, str]) -> None:
        super().__init__(message)
        self.faults = faults


class NothingToDo(Exception):
    """What was asked for is done already: the command line prints the message and exits with status 0."""


def find_user_error(error: BaseException | None) -> UserError | None:
    """The UserError that an error was raised from, if any: jsonargparse wraps what a constructor raises."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def strip_traceback(message: str) -> str:
    """The message alone where a DataLoader worker passed it on inside a traceback."""
    if "Original Traceback" not in message:
        return message
    return message.rpartition("UserError: ")[2].strip()


class Interrupted(BaseException):
    """A signal asked a command to stop; a training has saved itself first.

    The command line prints the message and exits with status 128 + the signal's number. Like ``KeyboardInterrupt`` it
    is no ``Exception``: whoever handles errors of files or libraries must not take it for one.

    Args:
        message: what was saved, and how to resume.
        number: the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = signal.Signals(number)


class InterruptedProcess(Exception):
    """``Interrupted`` in a process that was spawned or forked, as an error that arrives as text in the other one."""

    def __init__(self, interrupted: Interrupted) -> None:
        super().__init__(f"{int(interrupted.signal)} {interrupted}")


def name_signal(number: int) -> str:
    """What a message calls a signal: Ctrl-C, SIGTERM."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def exception_in(text: str) -> UserError | Interrupted | None:
    """The user's mistake or the interruption that a traceback ends with; None when it is another exception's."""
    for error_class in (UserError, CollectiveError, InterruptedProcess):
        _, separator, message = text.rpartition(f"\n{error_class.__module__}.{error_class.__qualname__}: ")
        if not separator:
            continue
        if error_class is InterruptedProcess:
            number, _, message = message.strip().partition(" ")
            return Interrupted(message, int(number))
        return UserError(strip_traceback(message).strip())
    return None
