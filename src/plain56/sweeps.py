"""A sweep: many runs of one recipe, one after another or several at a time, resumable, gathered in one table."""

import contextlib
import copy
import hashlib
import logging
import os
import pickle
import re
import signal
import subprocess
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from plain56 import cluster, machine, runs
from plain56.analysis.complexity import count_multiply_adds
from plain56.config import build_model, check, check_used, from_json
from plain56.data import image_shape, load_dataset
from plain56.errors import UserError, first_line
from plain56.summary import summarize
from plain56.training import initial_weights, load, train
from plain56.training.cadence import last_step
from plain56.training.progress import Progress, from_records

MOST_NAME_BYTES = 200  # of a run's folder; file systems take 255, and names of files that are being written are longer
LOOK_SECONDS = 2  # between two looks at the runs of other processes
NOT_TRAINED = ("failed", "diverged", "damaged")  # the states in which a run has ended without its result

logger = logging.getLogger(__name__)


class Element(NamedTuple):
    """One run of a sweep: its name, what it overrides, and its resolved config, or None and in `damage` why it cannot be run."""

    name: str
    overrides: dict
    config: object
    damage: str = ""

    def planned(self, workdir):
        """The element as a run in the sweep's directory."""
        config = {} if self.damage else self.config.to_dict()
        return runs.SweepRun(runs.Run(Path(workdir) / self.name), self.overrides, config, self.damage)


class SweepProgress(NamedTuple):
    """How far a sweep is: the share of its work done, in [0, 1], its runs that have ended, and all, and those being trained.

    With `run_sweep`, the share is of the work that was left at the beginning, and the runs before this one count as ended.
    """

    share: float
    ended: int
    total: int
    training: dict[str, Progress]


def expand(config, sweep):
    """The elements of a sweep.

    Args:
        config: the sweep's config. Its section `sweep` chooses the elements and is not part of a run's config.
        sweep: `config -> iterable of flat overrides`. Their key "name" is the run's name, which is otherwise made of the other
            keys. What `transfer.weights` names is trained further, as by the mode `finetune`.

    Raises UserError if a run's config is wrong, two runs are the same, or there is none.
    """
    try:
        all_overrides = [dict(overrides) for overrides in sweep(config)]
    except Exception as error:  # it is a user's program, and may raise anything
        reason = str(error) or type(error).__name__
        raise UserError(f"The sweep fails, or its section of the config holds a value of the wrong type: {reason}.") from error
    recipe = copy.deepcopy(config).unlock()
    if "sweep" in recipe:
        del recipe.sweep
    try:
        copied = pickle.dumps(recipe.lock())  # read again, it is a copy in a fifth of the time of `deepcopy`
    except Exception as error:  # of many kinds
        raise UserError(f"The config must hold only values that JSON can hold: {first_line(error)}.") from error
    elements = []
    for overrides in all_overrides:
        given_name = overrides.pop("name", None)
        resolved = pickle.loads(copied)
        try:
            runs.override(resolved, overrides)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"The sweep's overrides {overrides} do not fit the config: {error.args[0]}.") from error
        if resolved.transfer.weights:
            resolved = initial_weights.choose(resolved, overrides.get("model.name"))
        check(resolved)
        check_used(resolved)
        name = given_name or _name(resolved, overrides)
        if not runs.is_name(name):
            raise UserError(f"The sweep names a run {name!r}; a name must be {runs.NAMES_ARE}.")
        elements.append(Element(_cut(name), overrides, resolved))
    names = Counter(element.name for element in elements)
    if not names:
        raise UserError("The sweep is empty: it needs at least one depth and one seed.")
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise UserError(f"The sweep names a run twice: {', '.join(twice)}.")
    return elements


def _name(config, overrides):
    """ "resnet56-seed0": the network, then the other overridden keys with their values."""
    rest = [f"{key.rpartition('.')[-1]}{value}" for key, value in overrides.items() if key != "model.name"]
    return re.sub(f"(?!{runs.NAME}).", "_", "-".join([config.model.name, *rest]))  # it names a folder: no slashes


def _cut(name):
    """A name that file systems take: the end of a long one is replaced by a checksum of the whole."""
    if len(name.encode()) <= MOST_NAME_BYTES:
        return name
    checksum = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name.encode()[: MOST_NAME_BYTES - 9].decode(errors='ignore')}-{checksum}"


def read(workdir):
    """The elements that an earlier launch wrote to a sweep's directory. Raises UserError if it is not a sweep directory."""
    return [_read_element(run) for run in runs.read_sweep(workdir)]


def _read_element(planned):
    name, damage = planned.run.path.name, planned.damage
    if not damage:
        try:
            config = from_json(planned.config)
            check(config)
            return Element(name, planned.overrides, config)
        except UserError as error:
            damage = f"{planned.run.path.parent / 'sweep.json'} has a run {name!r} whose config is damaged: {error}"
    return Element(name, planned.overrides, None, damage)


def write(elements, workdir):
    """Adds the elements to the sweep's directory, from which any process can then run them; the others keep their numbers.

    Raises UserError if the directory holds something else, or a run of the same name and another identity.
    """
    described = {
        element.name: {
            "overrides": {"model.name": element.config.model.name, "seed": element.config.seed, **element.overrides},
            "config": element.config.to_dict(),
        }
        for element in elements
        if not element.damage
    }
    runs.write_sweep(workdir, described)


def run_sweep(elements, workdir, on_progress=lambda progress: None, index=None):
    """Runs every element that has not ended, in order; a run that fails does not stop the ones after it.

    Several processes may do so at a time: each passes over the runs that another one trains.

    Args:
        elements: from `expand` or `read`.
        workdir: the sweep directory. Launched again on it, a sweep goes on where it was cut.
        on_progress: called with the `SweepProgress` as often as `training.train` calls it.
        index: run only this element of all that the directory has.

    Returns:
        The rows of the summary, which is rewritten after every run.

    Raises UserError for a mistake in the sweep as a whole, before anything is run, or if another process holds run `index`.
    """
    workdir = Path(workdir)
    if index is not None:
        there = [element.name for element in read(workdir)] if runs.is_sweep(workdir) else []
        count = len({*there, *(element.name for element in elements)})
        if index >= count:
            raise UserError(f"--index is {index}; it must be from 0 to {count - 1}.")
        write(elements, workdir)
        elements = [read(workdir)[index]]
    costs = {}
    todo = {element.name: _work_left(element, workdir, costs) for element in elements}
    write(elements, workdir)
    summary, total, done = summarize(workdir), max(1, sum(todo.values())), 0
    for ended, element in enumerate(elements):
        status = element.planned(workdir).status()
        if status.state in {*runs.ENDED, *runs.COMPLETE} and not _steps_left(element, workdir, status):
            continue

        def show(progress, ended=ended, name=element.name, before=done / total, work=todo[element.name] / total):
            on_progress(SweepProgress(before + progress.share * work, ended, len(elements), {name: progress}))

        try:
            _run_element(element, workdir, show, only_this=index is not None)
        finally:  # also if it is interrupted
            summary = summarize(workdir)
        done += todo[element.name]
    return summary


def _run_element(element, workdir, show, only_this):
    """Trains one run. Its failure is kept in its directory and does not concern the others."""
    run = runs.Run(workdir / element.name)
    if element.damage:
        logger.error("Passed over: %s", element.damage)
        return
    try:
        status = train(element.config, run.path, show)
        if status.state == "diverged":
            logger.warning("%s diverged: %s", element.name, status.reason)
    except runs.Held as error:
        if only_this:
            raise
        logger.warning("Passed over: %s", error)
    except Exception as error:  # the other runs are independent of it
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        logger.error("%s failed: %s", element.name, reason)
        with contextlib.suppress(UserError, OSError), runs.hold(run.path):  # it may be the disk that fails
            run.write_config(element.config.to_dict())
            run.write_status(run.status()._replace(state="failed", reason=reason[:500]))
            if not isinstance(error, UserError):
                run.write_error("".join(traceback.format_exception(error)))


def run_workers(elements, workdir, command, count, on_progress=lambda progress: None):
    """Runs a sweep with `count` processes that share the CPU cores, and returns the rows of the summary.

    The processes claim run after run and depend only on the sweep's directory: they go on when this one is gone, and save and
    stop when this one is interrupted. Their output is in `workers/` there.

    Args:
        elements, workdir: as for `run_sweep`.
        command: the list of arguments that runs the sweep in `workdir`.
        on_progress: called every two seconds with the `SweepProgress`, whose share is of all steps.

    Raises UserError for a mistake, before anything is run, or for one that a process has found.
    """
    for element in elements:
        if not element.damage:
            load_dataset(element.config.data)  # a mistake leaves nothing behind, and data are prepared only once
    write(elements, workdir)
    count = max(1, min(count, sum(_steps_left(element, workdir) > 0 for element in elements)))
    logs = [Path(workdir) / "workers" / f"{number}.log" for number in range(count)]
    logs[0].parent.mkdir(exist_ok=True)
    logger.info("%d runs in %s, trained by %d processes, which tell more in %s.", len(elements), workdir, count, logs[0].parent)
    workers = [_start_worker(command, number, count, log) for number, log in enumerate(logs)]
    try:
        while running := [worker for worker in workers if worker.poll() is None]:
            on_progress(_read_progress(elements, workdir))
            with contextlib.suppress(subprocess.TimeoutExpired):
                running[0].wait(LOOK_SECONDS)
    except KeyboardInterrupt:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
        summarize(workdir)
        raise
    for worker, log in zip(workers, logs, strict=True):
        if worker.returncode < 0:
            logger.warning("A worker was killed by %s; launch again to go on.", signal.Signals(-worker.returncode).name)
        elif worker.returncode == 2:
            raise UserError(log.read_text(encoding="utf-8", errors="replace").strip().rpartition("error: ")[-1])
    rows = summarize(workdir)
    if any(worker.returncode == 1 for worker in workers) and not any(row["state"] in NOT_TRAINED for row in rows):
        raise UserError(f"The workers failed; see {logs[0]}.")
    return rows


def submit(elements, workdir, command, **parameters):
    """Submits every run that has not ended as a job of a Slurm cluster; returns the jobs' identifiers by their runs' names.

    Args:
        elements, workdir, command: as for `run_workers`.
        parameters: as for `cluster.submit`.

    Raises UserError for a mistake, before anything is written, or if Slurm refuses the jobs.
    """
    cluster.check()
    for element in elements:
        if not element.damage:
            load_dataset(element.config.data)
    write(elements, workdir)
    names = {element.name for element in elements}
    there = enumerate(read(workdir))
    waiting = {element.name: i for i, element in there if element.name in names and _steps_left(element, workdir)}
    if not waiting:
        return {}
    commands = [[*command, f"--index={index}"] for index in waiting.values()]
    jobs = cluster.submit(commands, Path(workdir) / "slurm", Path(workdir).name, **parameters)
    return dict(zip(waiting, jobs, strict=True))


def _start_worker(command, number, count, log):
    """Starts a process on its share of the cores, in a session of its own, so that no closed terminal stops it."""
    # The width of XLA's thread pool decides the order of sums. Every worker is told the machine's width, so that their number
    # does not change a bit of the result.
    cores = machine.cores()
    environment = {"NPROC": str(len(cores)), **os.environ}
    # Each process may take its part of a shared GPU's memory; by default the first one takes most of it.
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / count:.2f}")
    with log.open("a") as file:  # a worker of an earlier launch may still write there
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        process = subprocess.Popen(command, **streams, env=environment, start_new_session=True)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, cores[number::count] or [cores[number % len(cores)]])
    return process


def _work_left(element, workdir, costs):
    """Checks an element against its data, and returns the multiply-adds that it has left to do, up to a factor.

    `costs` keeps those of one image by network and image size, which many elements share.
    """
    steps = _steps_left(element, workdir)
    if not steps:
        return 0
    dataset = load(element.config)
    shape, classes = image_shape(dataset.train, element.config.data), len(dataset.class_names)
    network = repr((element.config.model.to_dict(), shape, classes))
    if network not in costs:
        costs[network] = count_multiply_adds(build_model(element.config, classes), shape)
    return steps * costs[network]


def _read_progress(elements, workdir):
    """The `SweepProgress` of runs that other processes train, from their directories."""
    left, whole, training = [], 0, {}
    for element in elements:
        run, status = runs.Run(Path(workdir) / element.name), element.planned(workdir).status()
        left.append(_steps_left(element, workdir, status))
        steps = 0 if element.damage else last_step(element.config)
        whole += steps
        if status.state == "running":
            with contextlib.suppress(UserError):  # a damaged log, of which the summary speaks
                training[element.name] = from_records(run.newest({"train", "test"}).values(), status.step / max(1, steps))
    return SweepProgress(1 - sum(left) / max(1, whole), left.count(0), len(left), training)


def _steps_left(element, workdir, status=None):
    """The steps that an element has left to do: 0 if it cannot be run. Its status is read if it is not given."""
    status = status or element.planned(workdir).status()
    return 0 if status.state in (*runs.ENDED, "damaged") else max(0, last_step(element.config) - status.step)


def is_complete(workdir):
    """Whether every run of the sweep has ended or reached its `train.stop_after`, so that another launch would do nothing."""
    return not any(_steps_left(element, workdir) for element in read(workdir))
