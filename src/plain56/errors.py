"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """A mistake in a command, config or input file: one sentence with what is wrong, what was given and what is allowed.

    `launch.py` prints the sentence without a traceback and exits with status 2.
    """
