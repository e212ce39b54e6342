"""The modes `sweep` and `report`: many runs, their states, and their table."""

import functools
import importlib.util
import logging
import sys
import time
from pathlib import Path

from ml_collections import config_flags

from plain56 import runs
from plain56.cli.flags import SLURM, overridden, refuse_config, required
from plain56.cli.progress_line import progress
from plain56.cli.tables import print_table
from plain56.cli.terminal import FAILED, percent, print_paths, print_result
from plain56.cluster import INTERRUPTED
from plain56.errors import UserError

WATCH_SECONDS, WATCHED_IDLE = 20, 3  # a sweep may take a minute from one run to the next


def sweep(options, arguments):
    """Runs a sweep, submits it to Slurm, or shows its elements or their states."""
    if options.time and not options.dry_run:
        raise UserError("--time belongs to --dry_run; both show a sweep without running it.")
    if options.status or options.dry_run:
        return _show_elements(options)
    from plain56 import sweeps  # not before: a look at many runs should not wait for JAX

    given = [name for name in SLURM if options[name].value is not None]
    if options.executor == "slurm":
        return _submit(options)
    if given:
        raise UserError(f"--{given[0]} belongs to --executor=slurm, and is not allowed here.")
    rows = run_sweep(options)
    print_result({"workdir": options.workdir, "runs": rows})
    ran = rows if options.index is None else [rows[options.index]]
    if any(row["state"] in sweeps.NOT_TRAINED for row in ran):
        return FAILED
    # A run that another process still trains, or that was killed, is left.
    return 0 if options.index is not None or sweeps.is_complete(options.workdir) else INTERRUPTED


def _submit(options):
    """Submits the runs of a sweep to Slurm; the sweep's directory shows their states from then on."""
    from plain56 import sweeps

    if options.index is not None or options.workers > 1:
        raise UserError("--executor=slurm submits each run as a job of its own; --index and --workers must be left out.")
    elements, workdir = _elements(options), str(Path(required(options, "workdir")).absolute())
    parameters = {parameter: options[name].value for name, parameter in SLURM.items()}
    jobs = sweeps.submit(elements, workdir, _sweep_command(workdir), **parameters)
    print_table("submitted", [{"job": job, "run": run} for run, job in jobs.items()] or [{"job": "–", "run": "all have ended"}])
    print_result({"workdir": options.workdir, "jobs": jobs})
    return 0


def _sweep_command(workdir):
    """The command that runs the sweep whose elements are in a directory."""
    # -P: the process does not import what has the same name in the current folder.
    return [sys.executable, "-P", "-m", "plain56", "sweep", f"--workdir={workdir}"]


def run_sweep(options):
    """Runs the sweep of --config in --workdir with a progress display, prints its summary as a table and returns the rows."""
    from plain56 import machine, sweeps

    machine.set_up()
    elements, workdir = _elements(options), required(options, "workdir")
    if options.index is not None and options.workers > 1:
        raise UserError("--index runs one element, and --workers several at a time; only one of them may be given.")
    with progress() as show:
        if options.workers > 1:

            def show_ended(now):
                show(f"{now.ended}/{now.total} ended", now.share, now.training)

            rows = sweeps.run_workers(elements, workdir, _sweep_command(workdir), options.workers, show_ended)
        else:

            def show_run(now):
                show(f"{now.ended + 1}/{now.total}", now.share, now.training)

            rows = sweeps.run_sweep(elements, workdir, show_run, options.index)
    _print_summary(rows)
    return rows


def _elements(options):
    """The elements of --config, or those that an earlier launch wrote to --workdir."""
    from plain56 import sweeps

    if not options.config:
        return sweeps.read(required(options, "workdir"))
    elements = sweeps.expand(options.config, _sweep_function(options))
    for key in overridden(options):
        if any(key in element.overrides for element in elements):
            raise UserError(f"--config.{key} is chosen by the sweep itself; set the sweep's own keys, --config.sweep.…, instead.")
    return elements


def _show_elements(options):
    """Prints the elements of a sweep (--dry_run), their time (--time), or their states (--status). Trains and writes nothing."""
    if options.status:
        required(options, "workdir")
    if options.config:
        planned = [element.planned(options.workdir or "") for element in _elements(options)]
    else:
        planned = runs.read_sweep(required(options, "workdir"))
    configs = [runs.flatten(run.config) for run in planned]
    keys = runs.differing_keys([config for config in configs if config])
    rows = []
    for index, (run, config) in enumerate(zip(planned, configs, strict=True)):
        row = {"index": index, "run": run.run.path.name, "model": runs.cell(config.get("model.name"))}
        row |= {"seed": runs.cell(config.get("seed"))}
        row |= {key: runs.cell(config.get(key)) for key in keys}
        steps = config.get("train.steps")
        if options.workdir:
            status = run.status()
            row |= {"state": status.state, "step": status.step, "of": steps, "seconds": status.seconds, "reason": status.reason}
        rows.append(row if options.workdir else row | {"steps": steps})
    shown = [row | {"seconds": f"{row['seconds']:.1f}"} if "seconds" in row else row for row in rows]
    print_table("sweep", _told_apart(shown))
    time = {"time": _print_time(options, planned)} if options.time else {}
    print_result({"workdir": options.workdir, "runs": rows, **time})


def _print_time(options, planned):
    """Prints how long the runs that are left will take, by network, and returns it."""
    from plain56 import duration, machine
    from plain56.config import from_json

    machine.set_up()
    statuses = [run.status() if options.workdir else runs.Status() for run in planned]
    left = [
        (from_json(run.config), status.step)
        for run, status in zip(planned, statuses, strict=True)
        if status.state not in (*runs.ENDED, "damaged")
    ]
    with progress() as show:
        networks = duration.measure(left, show)
    sums = {key: sum(row[key] for row in networks) for key in ("runs", "steps", "hours")}
    total = {key: "" for key in networks[0]} if networks else {}
    shown = [*networks, total | {"network": "all", **sums}]
    print_table("time", shown)
    print("Measured with one process on all cores. It includes compiling and evaluation, but not saving.")
    if options.workers > 1:
        print(f"{options.workers} workers share these cores: they take about as long, or less if one leaves some cores idle.")
    return {"networks": networks, "hours": sums["hours"]}


def _told_apart(rows):
    """The rows of a sweep for a table, with the run's name only where the columns do not tell all runs apart."""
    keys = runs.config_columns(rows[0])
    named = all(row["model"] for row in rows)  # that of a damaged run may not be known
    apart = named and len({(row["model"], row["seed"], *(row[key] for key in keys)) for row in rows}) == len(rows)
    # A network's name, or an option of a user's own one, says its depth. Where runs differ in their data, the key is a column.
    hidden = {"data", "depth", "residual", "run" if apart else "model"}
    return [{key: row[key] for key in row if key not in hidden} for row in rows]


def report(options, arguments):
    """Writes the report of a run, or the figure, the table and the report of a sweep, from its directory."""
    refuse_config(options, "only the run directories")
    rows, figure, path = _write_report(options, options.watch)
    if options.watch and _may_change(rows):
        print(f"{path} is written again every {WATCH_SECONDS} seconds as long as runs train.", file=sys.stderr)
    idle = 0  # how often nothing had changed
    while options.watch and _may_change(rows) and idle < WATCHED_IDLE:
        time.sleep(WATCH_SECONDS)
        before, (rows, figure, path) = rows, _write_report(options, watched=True)
        idle = 0 if rows != before or any(row["state"] == "running" for row in rows) else idle + 1
    if idle == WATCHED_IDLE:  # the page says that it is read again
        rows, figure, path = _write_report(options, watched=False)
    _print_summary(rows)
    print_paths("figure", figure)
    print_paths("report", path)
    print_result({"figure": figure, "report": str(path), "runs": rows})


def _write_report(options, watched):
    """Writes what `report` is about: the rows of the summary, the path of the figure or None, and the path of the page."""
    from plain56.figures import report as page
    from plain56.summary import of_run, summarize

    workdir, figure = required(options, "workdir"), None
    if runs.is_sweep(workdir):
        rows, figure = summarize(workdir), draw_degradation(workdir)
    else:
        rows = of_run(workdir)
    return rows, figure, page.write(workdir, rows, WATCH_SECONDS if watched and _may_change(rows) else None)


def _may_change(rows):
    """Whether some run has not ended."""
    return any(row["state"] in ("queued", "running", "preempted") for row in rows)


def draw_degradation(workdir):
    """The path of the degradation figure, or None with a warning: it shows only sweeps over depths, tables show any sweep."""
    from plain56.figures import degradation

    try:
        return str(degradation.draw(workdir))
    except UserError as error:
        _warn_once(str(error))
        return None


@functools.cache
def _warn_once(text):
    logging.getLogger("plain56").warning("%s", text)


def _print_summary(rows):
    """Prints the rows of a sweep's summary as a table, errors in percent, without the columns that say nothing."""
    # These two are measured only on request.
    hidden = {key for key in ("train_clean_error", "validation_error") if all(row[key] is None for row in rows)}
    shown = [{key: row[key] for key in row if key not in hidden} for row in rows]
    for row in shown:
        row |= {key: percent(row[key]) for key in row if key.endswith("_error") and "." not in key}
        row["train_loss"] = "–" if row["train_loss"] is None else f"{row['train_loss']:.4f}"
        row["seconds"] = f"{row['seconds']:.1f}"
    print_table("sweep", _told_apart(shown), least=("seconds", "parameters"))


def _sweep_function(options):
    """The function `sweep` of the config file."""
    path = config_flags.get_config_filename(options["config"])
    if not isinstance(path, str):  # it is the config itself, which `_run_config` has read
        raise UserError("--config must be a sweep, such as configs/sweeps/degradation.py, not a single run's config.json.")
    path = path.split(":")[0]
    spec = importlib.util.spec_from_file_location("sweep_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "sweep"):
        raise UserError(f"{path} is not a sweep: it has no function sweep(config); configs/sweeps/degradation.py has one.")
    return module.sweep
