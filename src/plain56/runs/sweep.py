"""The sweep directory: run directories, sweep.json (what the runs are), and the summary."""

import contextlib
import json
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

from plain56.errors import UserError
from plain56.runs.files import flatten, is_number, lock_file, read_json, read_value, refusing_os_errors, write_table, write_text
from plain56.runs.groups import config_columns
from plain56.runs.keys import differences, upgraded
from plain56.runs.run import Run, Status, check_identity, refuse_strangers

NAME = r"[\w.,=()+-]"  # the characters of the names of runs, which are folders
NOT_RUNS = ("workers", "slurm", "lock")  # the other entries of a sweep's directory without a dot
NAMES_ARE = f"made of letters, digits and .,=()+-, not begin with a dot, and not be one of {', '.join(NOT_RUNS)}"
LOCK_SECONDS = 60  # how long another process may take to write the sweep's files

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def _locked(folder):
    """Keeps other processes from writing a sweep's files meanwhile."""
    with contextlib.ExitStack() as stack:
        with refusing_os_errors("sweep", folder):
            stack.enter_context(lock_file(Path(folder) / "lock", LOCK_SECONDS))
        yield


class View(NamedTuple):
    """A run as others show it: its status, flat config and records. A damaged or foreign one has no records."""

    status: Status
    config: dict
    records: list[dict[str, Any]]


class SweepRun(NamedTuple):
    """A run of a sweep, begun or not: its directory, what it overrides, and its config as nested dicts, or {} if none is known.

    `damage` says what is wrong with its element in sweep.json, if anything is. The methods raise no errors.
    """

    run: Run
    overrides: dict
    config: dict
    damage: str = ""

    def status(self):
        """How the run stands: "damaged" if its directory holds something else."""
        return self._view(lambda config: []).status

    def view(self):
        """The run as pages and figures show it."""
        return self._view(lambda config: self.run.metrics())

    def records(self):
        """The run's records; of a damaged one none, with a warning."""
        status, _, records = self.view()
        if status.state == "damaged":
            logger.warning("%s is left out: %s", self.run.path.name, status.reason)
        return records

    def last_view(self):
        """As `view`, with only the newest record of each split that the run measures."""
        return self._view(lambda config: list(self.run.newest(_splits(config)).values()))

    def _view(self, read_records):
        try:
            if self.damage:
                raise UserError(self.damage)
            config = flatten(check_identity(self.run, self.config) or self.config)
            return View(self.run.status(), config, read_records(config))
        except UserError as error:
            return View(Status("damaged", reason=str(error)), flatten(self.config), [])


def _splits(config):
    """The splits that a run with a flat config measures."""
    asked = {"train_clean": "train.evaluate_train_every", "validation": "data.validation_examples"}
    return {"train", "test", *(split for split, key in asked.items() if config.get(key))}


def is_name(name):
    """Whether a run of a sweep may have this name."""
    return isinstance(name, str) and bool(re.fullmatch(f"{NAME}+", name)) and name not in NOT_RUNS and not name.startswith(".")


def read_sweep(folder):
    """The runs of a sweep directory in order, as `SweepRun`s. Raises UserError if it is not a sweep directory."""
    require_sweep(folder)
    folder = Path(folder)
    elements = read_json(folder / "sweep.json")
    if not elements:
        raise UserError(f"{folder / 'sweep.json'} is damaged: it must hold at least one run.")
    return [_sweep_run(folder, name, element) for name, element in elements.items()]


def read_any(folder):
    """The runs of a sweep directory, or the one of a run directory. Raises UserError if it is neither."""
    if is_sweep(folder):
        return read_sweep(folder)
    run = Run(Path(folder).resolve())
    config = flatten(run.config())
    if not config:
        raise UserError(f"{folder} is neither a sweep nor a run directory: it has no sweep.json and no config.json.")
    overrides = {key: config.get(key) for key in ("model.name", "seed")}
    if not _names_a_run(overrides):
        raise UserError(f"{run.path / 'config.json'} is damaged: it must have the name of a network and a seed.")
    return [SweepRun(run, overrides, {})]


def _names_a_run(overrides):
    return type(overrides.get("model.name")) is str and type(overrides.get("seed")) is int


def _sweep_run(folder, name, element):
    damaged = f"{folder / 'sweep.json'} is damaged: its element {name!r} is not a run."
    if not is_name(name) or len(name.encode()) > 255:
        return SweepRun(Run(folder / (re.sub(f"(?!{NAME}).", "_", name)[:50] or "_")), {}, {}, damaged)
    run = Run(folder / name)
    parts = element if isinstance(element, dict) else {}
    overrides, config = parts.get("overrides"), parts.get("config")
    sound = parts.keys() == {"overrides", "config"} and isinstance(overrides, dict) and isinstance(config, dict)
    if not (sound and _names_a_run(overrides)):
        return SweepRun(run, {}, {}, damaged)
    try:
        return SweepRun(run, overrides, upgraded(config, folder / "sweep.json"))
    except UserError as error:
        return SweepRun(run, {}, {}, str(error))


def is_sweep(folder):
    """Whether the folder is a sweep directory."""
    return (Path(folder) / "sweep.json").exists()


def require_sweep(folder):
    """Raises UserError if the folder is not a sweep directory."""
    if not is_sweep(folder):
        raise UserError(f"{folder} is not a sweep directory: it has no sweep.json.")


def write_sweep(folder, elements):
    """Records the elements of a sweep, `{name: {"overrides": …, "config": …}}`, and returns the names of all, in order.

    New elements come after those that are there, so that a number always stands for the same run.

    Raises UserError if the directory holds something else or a different run of the same name, or cannot be written.
    """
    folder = Path(folder)
    if not is_sweep(folder):
        refuse_strangers(folder, "sweep")
    with refusing_os_errors("sweep", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        there = {run.path.name: config for run, _, config, _ in read_sweep(folder)} if is_sweep(folder) else {}
        for name, element in elements.items():
            if changed := differences(there.get(name, {}), element["config"]):
                raise UserError(f"{folder} has a different run {name}: {changed}; choose another --workdir or the same config.")
        there = read_json(folder / "sweep.json")
        merged = there | json.loads(json.dumps(elements))
        if merged != there:
            write_text(folder / "sweep.json", json.dumps(merged, indent=2))
    return list(merged)


def write_summary(folder, make_rows):
    """Writes a sweep's summary, the list of equal dicts that `make_rows()` returns, as summary.csv and summary.json.

    The rows are read while no other process writes the summary, so that the last one has seen what all others have.
    """
    with _locked(folder):
        rows = make_rows()
        write_table(folder, "summary", rows)
        write_text(Path(folder) / "summary.json", json.dumps(rows, indent=2))
    return rows


def read_summary(folder):
    """The rows that `write_summary` wrote, in the order of the sweep's runs. Raises UserError if the file is damaged."""
    path = Path(folder) / "summary.json"
    rows = read_value(path, [])
    if not (isinstance(rows, list) and all(map(_is_row, rows))):
        raise UserError(f"{path} is damaged: it must hold the summary's rows, which the mode `report` rewrites.")
    return rows


def _is_row(value):
    if not isinstance(value, dict):
        return False
    texts = all(type(value.get(key)) is str for key in ("run", "model", "state"))
    whole = all(value.get(key) is None or type(value[key]) is int for key in ("depth", "seed", "steps", "parameters"))
    measured = (value[key] for key in value if key.endswith(("_error", "_loss")) and "." not in key)
    numbers = all(number is None or is_number(number) for number in measured)
    cells = not any(isinstance(value[key], dict | list) for key in config_columns(value))
    return texts and whole and numbers and cells and type(value.get("residual")) is bool and is_number(value.get("seconds"))
