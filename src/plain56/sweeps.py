"""A sweep: many runs of one recipe, one after another or several at a time, resumable, gathered in one table."""

import contextlib
import copy
import logging
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from plain56 import cluster, runs
from plain56.analysis.complexity import count_multiply_adds
from plain56.config import build_model, check, from_json, last_step
from plain56.data import image_shape, load_dataset
from plain56.errors import UserError
from plain56.models import parse_name
from plain56.training import load, train
from plain56.weights import begin_transfer

NAME = r"[\w.,=()+-]"  # what names of runs, which are folders, are made of
NOT_RUNS = ("workers", "slurm")  # folders of a sweep that are no runs

logger = logging.getLogger(__name__)


class Element(NamedTuple):
    """One run of a sweep: its name, what it overrides, and its resolved config."""

    name: str
    overrides: dict
    config: object


def expand(config, sweep):
    """The elements of a sweep.

    Args:
        config: the sweep's config; its section `sweep` chooses the elements and is no part of a run's config.
        sweep: `config -> iterable of flat overrides`. Their key "name" is the run's name; without, it is made of the others.
            What `transfer.weights` names is trained further, as by `launch.py finetune`.

    Raises:
        UserError: a run's config is wrong, two runs are the same, or there is none.
    """
    elements = []
    try:
        all_overrides = list(sweep(config))
    except Exception as error:  # a program of the user's, which may raise anything
        reason = str(error) or type(error).__name__
        raise UserError(f"The sweep fails, or its section of the config holds a value of the wrong type: {reason}.") from error
    for given in all_overrides:
        overrides = dict(given)
        given_name = overrides.pop("name", None)
        resolved = copy.deepcopy(config).unlock()
        if "sweep" in resolved:
            del resolved.sweep
        resolved.lock()
        try:
            resolved.update_from_flattened_dict(overrides)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"The sweep's overrides {overrides} do not fit the config: {error.args[0]}.") from error
        if resolved.transfer.weights:
            resolved, _ = begin_transfer(resolved, resolved.transfer.weights, overrides.get("model.name"))
        check(resolved)
        elements.append(Element(given_name or _name(resolved, overrides), overrides, resolved))
    names = [element.name for element in elements]
    for name in names:
        if not (isinstance(name, str) and re.fullmatch(f"{NAME}+", name)) or name in NOT_RUNS or name.startswith("."):
            raise UserError(
                f"The sweep names a run {name!r}; allowed are letters, digits and .,=()+-, and not {', '.join(NOT_RUNS)}."
            )
    if not names:
        raise UserError("The sweep is empty: it needs at least one depth and one seed.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"The sweep names a run twice: {', '.join(twice)}.")
    return elements


def _name(config, overrides):
    """ "resnet56-seed0": the network, then every other key that is overridden, with its value."""
    rest = [f"{key.rpartition('.')[-1]}{value}" for key, value in overrides.items() if key != "model.name"]
    # A name is a folder's: no slashes of paths, and not longer than file systems take.
    return re.sub(f"(?!{NAME}).", "_", "-".join([config.model.name, *rest]))[:200]


def read(workdir):
    """The elements of a sweep that was written to its directory by an earlier launch.

    Raises:
        UserError: it is not a sweep directory.
    """
    return [Element(run.path.name, overrides, from_json(config)) for run, overrides, config in runs.read_sweep(workdir)]


def write(elements, workdir):
    """Writes the elements to the sweep's directory: from then on any process can run them from there.

    Raises:
        UserError: the directory holds something else, or a run of the same name and another identity.
    """
    for element in elements:
        runs.check_identity(runs.Run(Path(workdir) / element.name), element.config.to_dict())
    described = {
        element.name: {
            "overrides": {"model.name": element.config.model.name, "seed": element.config.seed, **element.overrides},
            "config": element.config.to_dict(),
        }
        for element in elements
    }
    runs.write_sweep(workdir, described)


def run_sweep(elements, workdir, on_progress=lambda name, share, images_per_second: None, index=None):
    """Runs every element that has not ended, in order; a run that fails does not stop the ones after it.

    Several processes may do so at a time: what another one trains is passed over.

    Args:
        elements: of `expand` or `read`.
        workdir: the sweep directory; launched again on it, a sweep goes on where it was cut.
        on_progress: called with the run's name, the share done, in [0, 1], of the work that this call began with, and a rate.
        index: run this element alone.

    Returns:
        The rows of the summary, which is rewritten after every run.

    Raises:
        UserError: a mistake that concerns the sweep as a whole, before anything is run; or the one run of `index` is held.
    """
    chosen = elements if index is None else [elements[index]]
    todo = [_work_left(element, runs.Run(Path(workdir) / element.name)) for element in chosen]
    write(elements, workdir)
    summary = summarise(workdir)
    for number, element in enumerate(chosen):
        run = runs.Run(Path(workdir) / element.name)

        def show(share, images_per_second, name=element.name, number=number):
            on_progress(name, (sum(todo[:number]) + share * todo[number]) / max(1, sum(todo)), images_per_second)

        try:
            train(element.config, run.path, show, _begin(element, run))
        except runs.Held as error:
            if index is not None:
                raise
            logger.warning("Passed over: %s", error)
        except Exception as error:  # the other runs are independent of it
            logger.error("%s failed: %s", element.name, error)
            failed = run.status()._replace(state="failed", reason=f"{type(error).__name__}: {error}"[:500])
            with contextlib.suppress(UserError, OSError), runs.hold(run.path):  # it may be the disk that fails
                run.write_config(element.config.to_dict())
                run.write_status(failed)
        finally:
            summary = summarise(workdir)
    return summary


def run_workers(elements, workdir, command, count, on_progress=lambda ended, total, share: None):
    """Runs a sweep with `count` processes at a time, among which the CPU cores are shared out.

    The processes claim run after run and depend on nothing but the sweep's directory: they go on when this one is gone, and
    stop, after saving, when this one is interrupted. Their output is in `workers/` there.

    Args:
        elements, workdir: as for `run_sweep`.
        command: what runs the sweep that is written in `workdir`, as a list of arguments.
        on_progress: called with the number of runs that have ended, of all runs, and the share of all steps done, in [0, 1].

    Returns:
        The rows of the summary.

    Raises:
        UserError: a mistake, before anything is run; or one that a process has found.
    """
    for element in elements:
        load_dataset(element.config.data)  # a mistake leaves nothing behind, and what has to be prepared is so once
    write(elements, workdir)
    logs = [Path(workdir) / "workers" / f"{number}.log" for number in range(count)]
    logs[0].parent.mkdir(exist_ok=True)
    workers = [_start_worker(command, number, count, log) for number, log in enumerate(logs)]
    try:
        while any(worker.poll() is None for worker in workers):
            left = [_steps_left(element, workdir) for element in elements]
            on_progress(left.count(0), len(left), 1 - sum(left) / sum(last_step(element.config) for element in elements))
            time.sleep(0.5)
    except KeyboardInterrupt:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
        summarise(workdir)
        raise
    for worker, log in zip(workers, logs, strict=True):
        if worker.returncode < 0:
            logger.warning("A worker was killed by %s; launch again to go on.", signal.Signals(-worker.returncode).name)
        elif worker.returncode == 2:
            raise UserError(log.read_text().strip().rpartition("error: ")[-1])
    rows = summarise(workdir)
    if any(worker.returncode == 1 for worker in workers) and not any(row["state"] in ("failed", "diverged") for row in rows):
        raise UserError(f"The workers fail; why, is in {logs[0]}.")
    return rows


def submit(elements, workdir, command, **parameters):
    """Submits every run that has not ended as a job of a Slurm cluster, and does not wait for them.

    Args:
        elements, workdir, command: as for `run_workers`.
        parameters: as for `cluster.submit`.

    Returns:
        The jobs' identifiers by the names of their runs.

    Raises:
        UserError: a mistake, before anything is written; or Slurm refuses the jobs.
    """
    cluster.check()
    for element in elements:
        load_dataset(element.config.data)
    write(elements, workdir)
    waiting = {element.name: index for index, element in enumerate(elements) if _steps_left(element, workdir)}
    if not waiting:
        return {}
    commands = [[*command, f"--index={index}"] for index in waiting.values()]
    jobs = cluster.submit(commands, Path(workdir) / "slurm", Path(workdir).name, **parameters)
    return dict(zip(waiting, jobs, strict=True))


def _start_worker(command, number, count, log):
    """A process in a session of its own, so that no closed terminal stops it, on its share of the cores."""
    # The width of XLA's thread pool decides in which order sums are formed: all of the machine's, so that the number of
    # workers does not change a bit of the result.
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))
    environment = {"NPROC": str(len(cores)), **os.environ}
    # Where a GPU is shared, each process may take its part of the memory; by default the first one takes most of it.
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / count:.2f}")
    with log.open("a") as file:  # a worker of an earlier launch may still write there
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, cores[number::count] or [cores[number % len(cores)]])
    return process


def _work_left(element, run):
    """Checks an element against its data, and returns the multiply-adds that it has left, up to a factor."""
    if run.status().state in runs.ENDED:
        return 0
    dataset = load(element.config)
    model = build_model(element.config, len(dataset.class_names))
    per_step = count_multiply_adds(model, image_shape(dataset.train, element.config.data))
    return _steps_left(element, run.path.parent) * per_step * element.config.train.seeds


def _begin(element, run):
    """What begins a run with the weights that it trains further; None where there are none, or it has ended."""
    source = element.config.transfer.weights
    return begin_transfer(element.config, source)[1] if source and run.status().state not in runs.ENDED else None


def _steps_left(element, workdir):
    status = runs.Run(Path(workdir) / element.name).status()
    return 0 if status.state in runs.ENDED else max(0, last_step(element.config) - status.step)


def is_complete(workdir):
    """Whether every run of the sweep has ended, or has come to its `train.stop_after`: launching it again would do nothing."""
    return not any(_steps_left(element, workdir) for element in read(workdir))


def summarise(workdir):
    """Writes and returns a row for every network of the sweep, read off the run directories alone.

    Errors are fractions: `train_error` and `train_loss` are means over the last logging interval, in training mode with
    augmentation; `train_clean_error`, `validation_error` and `test_error` are without, each the newest that was measured, which
    is of an earlier step where a run was cut. None where a run has not come that far, or does not measure it.
    """
    rows = [_row(run.path.relative_to(workdir), run, overrides) for run, overrides in runs.read_networks(workdir)]
    runs.write_summary(workdir, rows)
    return rows


def finished_runs(workdir):
    """`(run, row of the summary)` of one finished run of each network, plain ones first, by depth; the first seed of each.

    Raises:
        UserError: none is finished.
    """
    rows = [row for row in summarise(workdir) if row["state"] == "finished"]
    if not rows:
        raise UserError(f"{workdir} has no finished run; needed is a sweep that has ended, such as `make degradation`.")
    rows.sort(key=lambda row: (row["residual"], row["depth"], row["seed"]))
    first = {(row["residual"], row["depth"], row["model"]): row for row in reversed(rows)}
    return [(runs.Run(Path(workdir) / row["run"]), row) for _, row in sorted(first.items())]


def _row(name, run, overrides):
    status = run.status()
    try:
        last = {record["split"]: record for record in run.metrics()}
    except UserError as error:  # which the other runs have no part in
        logger.error("%s", error)
        status, last = status._replace(state="failed"), {}
    errors = {f"{split}_error": last.get(split, {}).get("top1_error") for split in ("train", "train_clean", "validation", "test")}
    family, depth = parse_name(overrides["model.name"])
    return {
        "run": str(name),
        "model": overrides["model.name"],
        "depth": depth,
        "residual": family == "resnet",
        "seed": overrides["seed"],
        "steps": status.step,
        "state": status.state,
        **errors,
        "train_loss": last.get("train", {}).get("loss"),
        "parameters": status.parameters,
        "seconds": status.seconds,
    }
