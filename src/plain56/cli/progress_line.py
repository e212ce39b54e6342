"""Progress on stderr: one line with the time left, which a terminal redraws, and which is printed from time to time elsewhere."""

import contextlib
import sys
import time

PRINTED_EVERY = 8  # seconds, where there is no terminal: with the wait for the next news, ten
TURN = 2  # seconds that a terminal shows one of several runs
LEAST_NAME = 8  # characters


@contextlib.contextmanager
def progress():
    """Yields `show(text, share, runs)`, which shows a label, and the share of all work done, in [0, 1].

    `runs` are the `training.progress.Progress`es of the runs that are being trained, by their names.
    """
    seconds_left = _Clock().seconds_left
    if not sys.stderr.isatty():  # rich would take a notebook for a terminal
        yield _printing(seconds_left)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(finished_text=" "), TextColumn("{task.description}", markup=False))
    line = Progress(*columns, console=console, refresh_per_second=5)
    task = line.add_task("", total=1.0)

    def show(text, share, runs=None):
        line.start()  # not before: reading the data may show a display of its own
        chosen = list((runs or {}).items())
        if chosen:
            chosen = [chosen[int(time.monotonic() / TURN) % len(chosen)]]
        told = line_of(text, share, seconds_left(share), dict(chosen), console.width - 2)
        line.update(task, description=told, completed=share)

    try:
        yield show
    finally:
        line.stop()


def _printing(seconds_left):
    """A `show` that prints a line when a run has ended, and otherwise from time to time."""
    printed, ended = time.monotonic(), set()

    def show(text, share, runs=None):
        nonlocal printed
        runs, left = runs or {}, seconds_left(share)
        new = {name for name, progress in runs.items() if progress.state != "running"} - ended
        if new or time.monotonic() - printed >= PRINTED_EVERY:
            printed = time.monotonic()
            ended.update(new)
            print(line_of(text, share, left, runs), file=sys.stderr, flush=True)

    return show


class _Clock:
    """Tells the time left from how fast work goes, not counting what comes before the first of it: reading data, compiling."""

    def __init__(self):
        self.begin = None  # time, and share of the work done

    def seconds_left(self, share):
        """The seconds left after a share of the work, or None if they cannot be told yet."""
        now = time.monotonic()
        if self.begin is None and share:
            self.begin = now, share
        begin, done = self.begin or (now, share)
        return (now - begin) * (1 - share) / (share - done) if share > done else None


def line_of(text, share, seconds_left, runs, width=None):
    """The line: "1/4 37% 0:41 left plain20-seed0 loss 1.620 error 50.9% test 42.5% 6,967 img/s".

    Args:
        text: a label of the whole work, or "".
        seconds_left: None if not known.
        runs: as of `progress`.
        width: the most columns, for which names are shortened; None for any number.
    """
    head = [text] * bool(text) + [f"{int(100 * share)}%"]
    if seconds_left is not None and share < 1:
        head.append(f"{_clock_time(seconds_left)} left")
    numbers = [_numbers(progress) for progress in runs.values()]
    room = None if width is None else width - len(" ".join([*head, *numbers])) - 1
    named = [f"{_shortened(name, room)} {told}".rstrip() for name, told in zip(runs, numbers, strict=True)]
    return " ".join([*head, "; ".join(named)]).rstrip()


def _numbers(progress):
    """The newest loss, training and test error, and the rate of a run, as far as they are known: before, it is being compiled."""
    if progress.state == "diverged":
        return "diverged"
    errors = {"error": progress.train_error, "test": progress.test_error}
    told = [] if progress.loss is None else [f"loss {progress.loss:.3f}"]
    told += [f"{name} {100 * error:.1f}%" for name, error in errors.items() if error is not None]
    told += [f"{progress.images_per_second:,.0f} img/s"] * bool(progress.images_per_second)
    return " ".join(told) or "starting"


def _shortened(name, room):
    """A name of at most `room` characters, but not below a few, without its middle."""
    if room is None or len(name) <= max(room, LEAST_NAME):
        return name
    kept = max(room, LEAST_NAME) - 1
    return f"{name[: kept - kept // 2]}…{name[len(name) - kept // 2 :]}"


def _clock_time(seconds):
    """ "0:41", "12:00" or "1:02:03"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
