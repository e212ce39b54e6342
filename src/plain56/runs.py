"""The run directory: the only thing that training, sweeps and figures share, and this module its only reader and writer.

config.json       the resolved config
metrics.jsonl     one JSON object per record, in order of steps; errors are fractions in [0, 1]
tensorboard/      the same records as event files
status.json       state, step, reason, parameters, seconds
environment.json  command, versions, devices, commit and data of the newest start
checkpoints/      written by `plain56.training.checkpoints`
seed0/, seed1/, … where `train.seeds` is more than one: run directories without checkpoints and lock, which the group has
lock              held by the process that trains the run, and free once that process is gone, however it went
"""

import contextlib
import csv
import datetime
import io
import json
import logging
import math
import os
import platform
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from plain56.errors import UserError

logger = logging.getLogger(__name__)

ENDED = ("finished", "diverged")
PROBE_SECONDS = 0.2  # to take a lock: who looks whether a run is held, holds it for a moment
PART = ".{}.{}.part"  # a file being written

# What may differ when a run is continued: it changes neither the parameters nor the order of examples.
NOT_IDENTITY = (
    "train.stop_after",
    "train.log_every",
    "train.evaluate_every",
    "train.evaluate_train_every",
    "train.gradients_every",
    "train.checkpoint_every",
    "train.steps_per_call",
    "data.dir",
    "data.mode",
    "data.workers",
    "parallelism",
)


class Status(NamedTuple):
    """How a run stands.

    `state` is queued, running, preempted, finished, diverged or failed, `reason` says why; `step` counts the updates done,
    `parameters` the trained values, `seconds` the wall-clock time over all starts.
    """

    state: str = "queued"
    step: int = 0
    reason: str = ""
    parameters: int = 0
    seconds: float = 0.0


class Run(NamedTuple):
    """A run directory. Reading a file that is not there gives what an untouched run would have."""

    path: Path

    @property
    def checkpoints(self):
        return (self.group or self).path / "checkpoints"

    @property
    def lock(self):
        return (self.group or self).path / "lock"

    @property
    def group(self):
        """The run that trains this one together with others; None where it is trained alone."""
        parent = Run(self.path.parent)
        return parent if self.path in [member.path for member in parent.members()] else None

    def members(self):
        """The runs that this one trains together; none where it is a single network."""
        return [Run(self.path / f"seed{seed}") for seed in _seeds(self.config())]

    def config(self):
        """The resolved config as nested dicts; empty where there is none."""
        return _read_json(self.path / "config.json", {})

    def status(self):
        try:
            status = Status(**_read_json(self.path / "status.json", {}))
        except (TypeError, UserError) as error:
            # All that counts is in the checkpoint.
            logger.warning("The run counts as queued: %s", error)
            return Status()
        if status.state == "running" and not self.is_held():
            return status._replace(state="preempted", reason="its process ended before it could save")
        return status

    def is_held(self):
        """Whether a process trains this run now; so, too, where that cannot be told."""
        try:
            if self.lock.exists():
                with filelock.FileLock(self.lock, timeout=PROBE_SECONDS):
                    pass
        except filelock.Timeout:
            return True
        except OSError:  # a lock that may only be read
            return True
        return False

    def environment(self):
        """What `write_environment` wrote at the newest start; empty where there was none."""
        return _read_json(self.path / "environment.json", {})

    def write_status(self, status):
        write_text(self.path / "status.json", json.dumps(status._asdict()))

    def write_config(self, config):
        """Writes the resolved config, as nested dicts of JSON values, of a run that is new or the same as before.

        Raises:
            UserError: the directory holds a run of another identity.
        """
        check_identity(self, config)
        with _refusing_os_errors("run", self.path):
            self.path.mkdir(exist_ok=True)
        write_text(self.path / "config.json", json.dumps(config, indent=2))

    def write_environment(self, environment):
        write_text(self.path / "environment.json", json.dumps(environment, indent=2))

    def metrics(self, split=None):
        """Records in order of steps, of one split or of all.

        Raises:
            UserError: the file is damaged, by more than a last line that was cut off.
        """
        try:
            lines = (self.path / "metrics.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise UserError(f"{self.path / 'metrics.jsonl'} is damaged: {error}.") from error
        records = []
        for number, line in enumerate(lines, start=1):
            if line.endswith("\n"):  # else it was cut off while being written
                try:
                    record = json.loads(line)
                    if not (isinstance(record["step"], int) and isinstance(record["seconds"], int | float)):
                        raise ValueError
                    if split in (None, record["split"]):
                        records.append(record)
                except (KeyError, TypeError, ValueError) as error:
                    raise UserError(f"{self.path / 'metrics.jsonl'} is damaged: line {number} is no record.") from error
        return records

    @contextlib.contextmanager
    def open_log(self, step, start):
        """Gives the function that appends records to metrics.jsonl and tensorboard/; a number that is not finite becomes null.

        With `sync`, these and all before are on the disk when it returns. What was logged after `step`, the restored one, is
        forgotten first, so that no record comes twice. The event files are written anew then: they hold what metrics.jsonl
        holds.

        Args:
            start: when the run would have started, had it not been cut, as a time of the computer's clock.

        Raises:
            UserError: metrics.jsonl is damaged; or, from the function too, a file cannot be written.
        """
        EventsWriter, Event, scalar = _event_files()
        kept = [record for record in self.metrics() if record["step"] <= step]
        # The last finite step of a network that diverges may be that of the checkpoint before.
        there = {(record["step"], record["split"]) for record in kept}
        write_text(self.path / "metrics.jsonl", "".join(_line(record) for record in kept))
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)

        def show(record):
            for key, value in flatten(record).items():
                if key not in ("step", "split", "seconds") and isinstance(value, int | float):
                    summary = scalar(f"{record['split']}/{key}", value)
                    board.write_event(Event(summary=summary, step=record["step"], wall_time=start + record["seconds"]))

        def append(*records, sync=False):
            records = [record for record in records if (record["step"], record["split"]) not in there]
            with _refusing_os_errors("run", self.path):
                file.write("".join(map(_line, records)))
                file.flush()
                if sync:
                    os.fsync(file.fileno())
                for record in records:
                    show(finite(record))
                board.flush()

        with contextlib.ExitStack() as stack:
            with _refusing_os_errors("run", self.path):
                (self.path / "tensorboard").mkdir(exist_ok=True)
                file = stack.enter_context(_closing((self.path / "metrics.jsonl").open("a")))
                board = stack.enter_context(_closing(EventsWriter(str(self.path / "tensorboard" / "events"))))
                for record in kept:
                    show(record)
                board.flush()
            yield append


def _event_files():
    """What writes event files: tensorboardX's parts of a SummaryWriter, which itself would wait for ever for its thread where
    that has died of a full disk. Imported by those who write alone, and without PyTorch, which tensorboardX tries to import.
    """
    hidden = sys.modules.setdefault("torch", None) is None
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar
    finally:
        if hidden:
            del sys.modules["torch"]
    return EventsWriter, Event, scalar


def _line(record):
    """A record as a line of JSON, which has no numbers that are not finite."""
    return json.dumps(finite(record), allow_nan=False) + "\n"


def finite(value):
    """A tree of JSON values, without the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _closing(file):
    """Closes a file at the end; what a full disk did not take of it has been an error before."""
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            file.close()


def _seeds(config):
    """The seeds of the networks that a run trains together; none where it is a single network."""
    count = config.get("train", {}).get("seeds", 1)
    return range(config["seed"], config["seed"] + count) if count > 1 else ()


class Held(UserError):
    """Another process trains the run."""


@contextlib.contextmanager
def hold(path):
    """Gives the run in a directory, which is created where it is new, and keeps all other processes from training it.

    A directory in which nothing has been written at the end is removed again.

    Raises:
        Held: another process holds it; the message says which.
        UserError: the directory holds something else, or cannot be written.
    """
    run = Run(Path(path))
    if not run.config():
        _refuse_strangers(run.path, "run")
    lock = filelock.FileLock(run.lock)
    new = [folder for folder in (run.path, *run.path.parents) if not folder.exists()]
    with _refusing_os_errors("run", run.path):
        run.path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PROBE_SECONDS)
        except filelock.Timeout:
            holder = run.lock.read_text() or "another process"
            raise Held(f"{run.path} is held by {holder}; wait for its end, or stop it.") from None
    try:
        now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        with _refusing_os_errors("run", run.path):
            for part in run.path.glob(PART.format("*", "*")):
                part.unlink()
            run.lock.write_text(f"process {os.getpid()} on {platform.node()} since {now}")
        yield run
    finally:
        unused = {entry.name for entry in run.path.iterdir()} == {"lock"}
        if unused:
            run.lock.unlink()
        lock.release()
        if unused:
            with contextlib.suppress(OSError):  # another process may have begun something there
                for folder in new:
                    folder.rmdir()


def _refuse_strangers(folder, kind):
    # A start that was killed at once leaves no more than these.
    ours = {"lock", *(path.name for path in folder.glob(PART.format("*", "*")))}
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - ours):
        raise UserError(f"{folder} is there already and is not a {kind} directory; give a new folder or a {kind} to continue.")


@contextlib.contextmanager
def _refusing_os_errors(kind, folder):
    try:
        yield
    except OSError as error:
        raise UserError(f"The {kind} directory {folder} cannot be written: {error.strerror}.") from error


def check_identity(run, config):
    """Raises UserError, with the keys that differ, where the directory holds a run of another identity."""
    there, new = flatten(run.config()), flatten(json.loads(json.dumps(config)))
    keys = sorted(key for key in there.keys() | new.keys() if key not in NOT_IDENTITY and there.get(key) != new.get(key))
    if there and keys:
        differences = ", ".join(f"{key} ({there.get(key)} there, {new.get(key)} now)" for key in keys)
        raise UserError(f"{run.path} holds a different run: {differences}; choose another --workdir or the same config.")


def read_run(path):
    """Opens a run directory to read.

    Raises:
        UserError: there is none.
    """
    run = Run(Path(path))
    if not run.config():
        raise UserError(f"{run.path} is not a run directory: it has no config.json.")
    return run


def write_table(folder, name, rows):
    """Writes a list of equal dicts as NAME.csv in a folder, which may be new."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with _refusing_os_errors("result", folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    write_text(Path(folder) / f"{name}.csv", text.getvalue())


def read_table(folder, name):
    """The rows that `write_table` wrote, all values as text."""
    try:
        with (Path(folder) / f"{name}.csv").open() as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{Path(folder) / name}.csv cannot be read: {error.strerror}.") from error


def write_summary(folder, rows):
    """Writes a sweep's summary, a list of equal dicts, as summary.csv and summary.json."""
    write_table(folder, "summary", rows)
    write_text(Path(folder) / "summary.json", json.dumps(rows, indent=2))


def read_summary(folder):
    """The rows that `write_summary` wrote, in the order of the sweep's runs."""
    return _read_json(Path(folder) / "summary.json", [])


def write_sweep(folder, elements):
    """Records the elements of a sweep, `{name: {"overrides": …, "config": …}}`, in its directory.

    Raises:
        UserError: the directory holds something else, or cannot be written.
    """
    folder = Path(folder)
    if not is_sweep(folder):
        _refuse_strangers(folder, "sweep")
    with _refusing_os_errors("sweep", folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "sweep.json", json.dumps(elements, indent=2))


class SweepRun(NamedTuple):
    """A run of a sweep, begun or not: its directory, what it overrides, and its config as nested dicts."""

    run: Run
    overrides: dict
    config: dict


def read_sweep(folder):
    """The runs of a sweep directory in order, as `SweepRun`s.

    Raises:
        UserError: it is not a sweep directory.
    """
    elements = _read_json(Path(folder) / "sweep.json", {})
    if not elements:
        raise UserError(f"{folder} is not a sweep directory: it has no sweep.json.")
    try:
        return [SweepRun(Run(Path(folder) / name), **element) for name, element in elements.items()]
    except TypeError as error:
        raise UserError(f"{folder}/sweep.json is damaged: its elements are not runs.") from error


def is_sweep(folder):
    """Whether the folder is a sweep directory."""
    return (Path(folder) / "sweep.json").exists()


def read_networks(folder):
    """`(run, overrides)` of every network of a sweep directory: where several are trained together, each of them.

    Raises:
        UserError: it is not a sweep directory.
    """
    networks = []
    for run, overrides, config in read_sweep(folder):
        seeds = _seeds(config)
        networks += [(Run(run.path / f"seed{seed}"), overrides | {"seed": seed}) for seed in seeds] or [(run, overrides)]
    return networks


def flatten(nested, prefix=""):
    """`{"a": {"b": 1}}` to `{"a.b": 1}`."""
    flat = {}
    for key, value in nested.items():
        deeper = isinstance(value, dict) and value  # an empty one would be lost
        flat.update(flatten(value, f"{prefix}{key}.") if deeper else {prefix + key: value})
    return flat


def _read_json(path, default) -> Any:
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, type(default)):
            raise ValueError(f"a {type(value).__name__} is in the place of a {type(default).__name__}")
        return value
    except (FileNotFoundError, NotADirectoryError):
        return default
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def write_text(path, text):
    """Replaces a file at once, so that a reader, a crash or a power cut never meets half of it.

    Raises:
        UserError: it cannot be written; it is then as it was.
    """
    # Several processes, on several machines, may write a sweep's files at a time.
    part = path.with_name(PART.format(path.name, uuid.uuid4().hex))
    try:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
