"""The run directory: the only thing that training, sweeps and figures share, and this module its only reader and writer.

config.json       the resolved config
metrics.jsonl     one JSON object per record, in order of steps; errors are fractions in [0, 1]
status.json       state, step, reason, parameters, seconds
environment.json  versions, devices, commit of the newest start
checkpoints/      written by `plain56.training.checkpoints`
"""

import csv
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

from plain56.errors import UserError

ENDED = ("finished", "diverged")

# What may differ when a run is continued: it changes neither the parameters nor the order of examples.
NOT_IDENTITY = (
    "train.stop_after",
    "train.log_every",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.steps_per_call",
    "data.dir",
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
        return self.path / "checkpoints"

    def config(self):
        """The resolved config as nested dicts; empty where there is none."""
        return _read_json(self.path / "config.json", {})

    def status(self):
        return Status(**_read_json(self.path / "status.json", {}))

    def write_status(self, status):
        _write(self.path / "status.json", json.dumps(status._asdict()))

    def write_environment(self, environment):
        _write(self.path / "environment.json", json.dumps(environment, indent=2))

    def metrics(self, split=None):
        """Records in order of steps, of one split or of all."""
        try:
            lines = (self.path / "metrics.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        # A last line without its end was cut off while being written.
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [record for record in records if split in (None, record["split"])]

    def append(self, record):
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def drop_records_after(self, step):
        """Forgets what was logged after the restored step, so that no record comes twice."""
        kept = [record for record in self.metrics() if record["step"] <= step]
        _write(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))


def open_run(path, config):
    """Creates a run directory, or opens it again to continue the same run.

    Args:
        config: nested dicts of JSON values.

    Raises:
        UserError: the directory holds another run, or something else.
    """
    run = Run(Path(path))
    if run.config():
        check_identity(run, config)
    else:
        _refuse_strangers(run.path, "run")
    _create(run.path, "config.json", config, "run")
    return run


def _refuse_strangers(folder, kind):
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and is not a {kind} directory; give a new folder or a {kind} to continue.")


def _create(folder, name, content, kind):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / name, json.dumps(content, indent=2))
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


def write_summary(folder, rows):
    """Writes a sweep's summary, a list of equal dicts, as summary.csv and summary.json."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write(Path(folder) / "summary.csv", text.getvalue())
    _write(Path(folder) / "summary.json", json.dumps(rows, indent=2))


def read_summary(folder):
    """The rows that `write_summary` wrote, in the order of the sweep's runs."""
    return _read_json(Path(folder) / "summary.json", [])


def write_sweep(folder, elements):
    """Records the elements of a sweep, `{name: overrides}`, in its directory.

    Raises:
        UserError: the directory holds something else, or cannot be written.
    """
    folder = Path(folder)
    if not (folder / "sweep.json").exists():
        _refuse_strangers(folder, "sweep")
    _create(folder, "sweep.json", elements, "sweep")


def read_sweep(folder):
    """The runs of a sweep directory with their overrides, `[(run, overrides)]`, in order, whether they have begun or not.

    Raises:
        UserError: it is not a sweep directory.
    """
    elements = _read_json(Path(folder) / "sweep.json", {})
    if not elements:
        raise UserError(f"{folder} is not a sweep directory: it has no sweep.json.")
    return [(Run(Path(folder) / name), overrides) for name, overrides in elements.items()]


def flatten(nested, prefix=""):
    """`{"a": {"b": 1}}` to `{"a.b": 1}`."""
    flat = {}
    for key, value in nested.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _read_json(path, default) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return default
    except ValueError as error:
        raise UserError(f"{path} is damaged: it does not hold JSON ({error}).") from error


def _write(path, text):
    """Replaces a file at once, so that a reader or a crash never meets half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
