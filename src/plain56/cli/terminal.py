"""How a mode or an experiment is run and what it prints beside tables: one sentence per mistake, and an exit status."""

import contextlib
import errno
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import absl.logging

from plain56.cli import flags, manual
from plain56.cluster import INTERRUPTED
from plain56.errors import UserError

FAILED, MISTAKE = 1, 2


def run(function, argv, usage="", mode=flags.EXPERIMENT):
    """Runs a mode or an experiment with its flags and arguments, or prints its usage, and returns the exit status.

    Args:
        function: `(options, arguments) -> exit status`, or None for 0.
        argv: the command line, without the mode.
        usage: what `--help` says of an experiment, or of all modes.
        mode: the mode's name, which decides which flags are taken.
    """
    if {"--help", "-h"} & set(argv):
        asked = function
        function, argv = (lambda options, arguments: print(manual.text(mode, asked, usage))), []
    with _standard_streams() as out:
        try:
            _prepare_process()
            options, arguments = flags.parse(argv, mode)
            out.ends_with_json = not out.isatty() if options.json is None else options.json
            status = function(options, arguments) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return MISTAKE
        except KeyboardInterrupt as error:
            reason = f" ({error})" if str(error) else ""
            print(f"Interrupted{reason}; the same command goes on from there.", file=sys.stderr)
            return INTERRUPTED
        finally:
            out.flush()
            sys.stderr.flush()
        if out.failure and not status:
            print(f"error: The result could not be printed ({out.failure}); all else is done.", file=sys.stderr, flush=True)
            return FAILED
        return status


@contextlib.contextmanager
def _standard_streams():
    """Keeps printing from ending a run. Yields the stream of results, which remembers why it failed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # it is closed: the next file to be opened would take its number, and be printed into
            os.open(os.devnull, os.O_RDWR)
    with Path(os.devnull).open("w") as nowhere:
        out, errors = (_Stream(stream or nowhere) for stream in (sys.stdout, sys.stderr))
        if sys.stdout is None:
            out.failure = "it is closed"
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            yield out


def _prepare_process():
    """Sends warnings to stderr, and makes SIGTERM interrupt as Ctrl-C does."""
    absl.logging.set_verbosity(absl.logging.FATAL)  # what concerns a user is also raised as an exception
    if "" not in sys.path:  # as with `python -m`, a user's config may import what is in the current folder
        sys.path.append("")
    logger = logging.getLogger("plain56")
    logger.handlers, logger.propagate, logger.level = [_ToStderr()], False, logging.INFO
    # Both signals interrupt at once, until training holds them back to save. A test may run this outside the main thread.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def run_experiment(function, defaults, usage, mode=flags.EXPERIMENT):
    """Runs a module's experiment from the command line and exits. `defaults` are flags for what the command line leaves out.

    With another config, the default overrides of its keys do not apply, and with --weights no default directory.
    """
    given = {argument.split("=")[0].lstrip("-") for argument in sys.argv[1:]}
    added = [
        f"--{key}={value}"
        for key, value in defaults.items()
        if key not in given
        and not ("config" in given and key.startswith("config."))
        and not ("weights" in given and key == "workdir")
    ]
    sys.exit(run(function, [*added, *sys.argv[1:]], usage, mode))


def print_claim(held, sentence, figure):
    """Prints whether an experiment's claim held and the sentence that says so, and returns the exit status.

    `held` is None, and the status 0, if the claim is not about what was run.
    """
    print_paths("figure", figure)
    print(sentence)
    print_result({"held": held, "claim": sentence, "figure": figure and str(figure)})
    return FAILED if held is False else 0


class _Stream:
    """A stream whose reader may leave early, and whose disk may be full: a failure to print ends no run."""

    def __init__(self, stream):
        self.stream = stream
        self.failure = None  # why printing failed, unless its reader has left
        self.ends_with_json = True
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # not every terminal has a ×

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        with self._printing():
            return self.stream.write(text)
        return len(text)

    def flush(self):
        with self._printing():
            self.stream.flush()

    @contextlib.contextmanager
    def _printing(self):
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                self.failure = error.strerror
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())


class _ToStderr(logging.Handler):
    """Prints messages, information only once: what all runs of a sweep have in common is said by the first one."""

    def __init__(self):
        super().__init__()
        self.told = set()

    def emit(self, record):
        message = record.getMessage()
        if record.levelno == logging.INFO and message in self.told:
            return
        self.told.add(message)
        kind = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        print(f"{kind}{message}", file=sys.stderr, flush=True)


def print_paths(what, *paths):
    """Prints where files have been written."""
    for path in filter(None, paths):
        print(f"{what}: {path}")


def print_result(result):
    """Prints the last line of a mode, one JSON object, if --json is given or stdout is no terminal, and never with --nojson."""
    if sys.stdout.ends_with_json:
        print(json.dumps(result))


def percent(fraction):
    """A fraction in [0, 1] as text, or a dash for None."""
    return "–" if fraction is None else f"{100 * fraction:.2f} %"
