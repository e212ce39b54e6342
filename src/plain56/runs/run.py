"""The run directory.

config.json       the resolved config
metrics.jsonl     one JSON object per record, in order of steps; errors are fractions in [0, 1]
tensorboard/      the same records as event files, written by the logger `tensorboard`
wandb/            files of the logger `wandb`, and `id`, the run's name there
status.json       state, step, reason, parameters, seconds
environment.json  command, versions, devices, commit and data of the newest start
checkpoints/      written by `plain56.training.checkpoints`
error.txt         the traceback of a run that failed, unless a user's mistake was the cause
lock              held by the process that trains the run, and free as soon as that process ends in any way
holder            which process that is, for people
"""

import contextlib
import datetime
import json
import logging
import os
import platform
from pathlib import Path
from typing import NamedTuple

import filelock

from plain56.errors import UserError
from plain56.runs import records
from plain56.runs.files import PART, is_count, is_number, lock_file, read_json, read_text, refusing_os_errors, write_text
from plain56.runs.keys import differences, upgraded

logger = logging.getLogger(__name__)

ENDED = ("finished", "diverged")  # for good
COMPLETE = ("finished", "stopped")  # the newest numbers are the result; a stopped run goes on if `train.stop_after` is raised
STATES = ("queued", "running", "stopped", "preempted", "failed", *ENDED)
PROBE_SECONDS = 0.2  # to take a lock: another process that checks whether a run is held, holds it for a moment
MOST_PIXELS = 8192  # of an image's side, as in the rule of data.image_size

# The keys of the section `data` of `environment.json`; a run that is older than a key does not have it.
DATA_TYPES = {
    **dict.fromkeys(("train", "validation", "test", "crc32", "files_crc32", "times_crc32"), is_count),
    "streamed": lambda value: type(value) is bool,
    "image_shape": lambda value: _is_list(value, lambda size: is_count(size) and 1 <= size <= MOST_PIXELS) and len(value) == 3,
    "class_names": lambda value: _is_list(value, lambda name: type(name) is str) and len(value) >= 2,
}


def _is_list(value, holds):
    return isinstance(value, list) and all(map(holds, value))


class Status(NamedTuple):
    """How a run stands: its state, one of `STATES`, and the reason for it.

    `step` counts the updates done, `parameters` the trained values, `seconds` the wall-clock time over all starts.
    """

    state: str = "queued"
    step: int = 0
    reason: str = ""
    parameters: int = 0
    seconds: float = 0.0


class Run(NamedTuple):
    """A run directory. A file that is missing reads as in a run that has not begun.

    Every method that reads raises UserError if the file does not hold what it should.
    """

    path: Path

    @property
    def checkpoints(self):
        return self.path / "checkpoints"

    @property
    def lock(self):
        return self.path / "lock"

    def config(self):
        """The resolved config as nested dicts, with today's keys, or {} if there is none."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} must be a run directory, not a file.")
        path = self.path / "config.json"
        return upgraded(read_json(path), path)

    def status(self):
        try:
            stored = read_json(self.path / "status.json")
            status = Status(**stored)
            sound = (status.state in STATES, is_count(status.step), type(status.reason) is str, is_count(status.parameters))
            if not (all(sound) and is_number(status.seconds)):
                raise UserError(f"{self.path / 'status.json'} is damaged: it does not hold a status.")
        except (TypeError, UserError) as error:
            # The checkpoint has all that counts.
            logger.warning("The run counts as queued: %s", error)
            return Status()
        if status.state == "running" and not self.is_held():
            return status._replace(state="preempted", reason="its process ended before it could save")
        return status

    def is_held(self):
        """Whether a process trains this run now, or that cannot be told."""
        try:
            if self.lock.exists():
                with lock_file(self.lock, PROBE_SECONDS):
                    pass
        except OSError:  # it is held, or may only be read
            return True
        return False

    def holder(self):
        """Who holds or held this run."""
        with contextlib.suppress(UserError):
            return read_text(self.path / "holder") or "another process"
        return "another process"

    def environment(self):
        """What `write_environment` wrote at the newest start, or {}."""
        path = self.path / "environment.json"
        environment = read_json(path)
        data = environment.get("data", {})
        if not (isinstance(data, dict) and all(holds(data[key]) for key, holds in DATA_TYPES.items() if key in data)):
            raise UserError(f"{path} is damaged: its section data does not describe a data set.")
        if not isinstance(environment.get("own_sources", {}), dict):
            raise UserError(f"{path} is damaged: its section own_sources has no checksums.")
        return environment

    def has_checkpoint(self):
        """Whether something was saved. Orbax is not asked, since all processes would have to ask it together."""
        return any(folder.name.isdigit() for folder in self.checkpoints.glob("*"))

    def write_status(self, status):
        write_text(self.path / "status.json", json.dumps(status._asdict()))

    def write_config(self, config):
        """Writes the resolved config, nested dicts of JSON values. Raises UserError if the run has another identity."""
        check_identity(self, config)
        with refusing_os_errors("run", self.path):
            self.path.mkdir(exist_ok=True)
        write_text(self.path / "config.json", json.dumps(config, indent=2))

    def write_environment(self, environment):
        write_text(self.path / "environment.json", json.dumps(environment, indent=2))

    def write_error(self, text):
        """Keeps the traceback of a run that failed, if the disk takes it."""
        with contextlib.suppress(UserError):
            write_text(self.path / "error.txt", text)

    def forget_error(self):
        """Removes the traceback of an earlier start."""
        with contextlib.suppress(OSError):
            (self.path / "error.txt").unlink(missing_ok=True)

    def metrics(self, split=None):
        """The records of one split or of all, in order of steps. A last line that was cut off is left out."""
        return records.read(self.path, split)

    def newest(self, splits):
        """The newest record of each split of a set, by split; reads only the end of the log that holds them."""
        return records.newest(self.path, splits)

    def open_log(self, step):
        """See `records.open_log`."""
        return records.open_log(self.path, step)


class Held(UserError):
    """Another process trains the run."""


@contextlib.contextmanager
def hold(path):
    """Yields the run in a directory, which may be new, and keeps all other processes from training it.

    A new directory is removed again if nothing has been written to it.

    Raises:
        Held: another process holds it; the message says which.
        UserError: the directory holds something else, or cannot be written.
    """
    run = Run(Path(path))
    if not run.config():
        refuse_strangers(run.path, "run")
    new = [folder for folder in (run.path, *run.path.parents) if not folder.exists()]
    with contextlib.ExitStack() as stack:
        with refusing_os_errors("run", run.path):
            run.path.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(lock_file(run.lock, PROBE_SECONDS))
            except filelock.Timeout:
                raise Held(f"{run.path} is held by {run.holder()}; wait for it to end, or stop it.") from None
        try:
            now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            with refusing_os_errors("run", run.path):
                for part in run.path.glob(PART.format("*", "*")):
                    part.unlink()
            write_text(run.path / "holder", f"process {os.getpid()} on {platform.node()} since {now}")
            yield run
        finally:
            _clear_unused(run, new, stack)


def _clear_unused(run, new, stack):
    """If a run's directory holds nothing but the lock, releases that and removes the directories that are `new`."""
    with contextlib.suppress(OSError):  # another process may have removed it, or begun something there
        if {entry.name for entry in run.path.iterdir()} <= {"lock", "holder"}:
            for name in ("holder", "lock"):
                (run.path / name).unlink(missing_ok=True)
            stack.close()
            for folder in new:
                folder.rmdir()


def refuse_strangers(folder, kind):
    """Raises UserError if a folder holds anything else than a run or sweep (`kind`) that is about to begin."""
    # A start that was killed at once leaves only these.
    ours = {"lock", "holder", *(path.name for path in folder.glob(PART.format("*", "*")))}
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - ours):
        raise UserError(f"{folder} exists and is not a {kind} directory; give a new folder or a {kind} to continue.")


def check_identity(run, config):
    """The config in a run's directory. Raises UserError, with the keys that differ, if it is of another identity."""
    there = run.config()
    if changed := differences(there, config):
        raise UserError(f"{run.path} holds a different run: {changed}; choose another --workdir or the same config.")
    return there


def read_run(path):
    """Opens a run directory to read. Raises UserError if there is none."""
    run = Run(Path(path))
    if not run.config():
        raise UserError(f"{run.path} is not a run directory: it has no config.json.")
    return run
