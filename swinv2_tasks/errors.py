"""What ends a run in a way that the user can do something about."""

import signal


class UserError(ValueError):
    """A mistake in files, settings or arguments.

    The message names what is wrong and where, what was expected and what to do. The command line prints it
    alone, without a traceback, and exits with status 1.
    """


class Interrupted(Exception):
    """A signal asked the training to stop; it has saved itself first.

    The command line prints the message and exits with status 128 + the signal's number.

    Args:
        message: what was saved, and how to go on.
        number: the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = signal.Signals(number)
