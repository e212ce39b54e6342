"""The one exception that stands for a user's mistake, and what others say in a sentence."""


class UserError(ValueError):
    """A mistake in a command, config or input file: one sentence with what is wrong, what was given and what is allowed.

    `launch.py` prints the sentence without a traceback and exits with status 2.
    """

    def __init__(self, sentence):
        super().__init__(" ".join(str(sentence).splitlines()))  # a name in it may have a line break


def first_line(error):
    """The first line of what an exception says, without its full stop and not too long; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400].rstrip(".")
