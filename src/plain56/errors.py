"""The one exception for a user's mistake, and what other exceptions say in a sentence."""


class UserError(ValueError):
    """A mistake in a command, config or input file: one sentence says what is wrong, what was given and what is expected.

    The command line prints the sentence without a traceback and exits with status 2.
    """

    def __init__(self, sentence):
        super().__init__(" ".join(str(sentence).splitlines()))  # a name in it may contain a line break


def first_line(error):
    """The first line of an exception's message, without its period and not too long; the exception's type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400].rstrip(".")
