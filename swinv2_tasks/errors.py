"""The one exception that means: the user can mend this, and the message says how."""


class UserError(ValueError):
    """A mistake in files, settings or arguments.

    The message names what is wrong and where, what was expected and what to do. The command line prints it
    alone, without a traceback, and exits with status 1.
    """
