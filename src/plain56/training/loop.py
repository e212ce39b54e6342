"""One run, from its config to its end: the order of events."""

import functools
import importlib.metadata
import platform
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from plain56 import parallel, runs
from plain56.config import build_model, check
from plain56.data import Split, load_dataset
from plain56.errors import UserError
from plain56.training import checkpoints
from plain56.training.evaluate import evaluate
from plain56.training.schedules import make_schedule
from plain56.training.state import create_train_state, make_optimizer
from plain56.training.step import Totals, train_step, train_steps


class Experiment(NamedTuple):
    """A config brought to life: the data set and the initial state on the devices, and the compiled functions."""

    train: Split
    test: Split
    initial: Any  # (state, totals) before the first step
    schedule: Any
    train_steps: Any  # (state, totals, split, first_step, first_epoch, first_position, steps) -> (state, totals)
    evaluate: Any  # (params, batch_stats, split) -> totals


def load(config):
    """Loads a config's data set, and checks that config, data and devices fit.

    Raises:
        UserError: whatever in the config does not fit the data, the devices or itself.
    """
    check(config)
    parallel.check_batch_size(config.train.batch_size, parallel.data_mesh())
    dataset = load_dataset(config.data.name, config.data.dir)
    channels = dataset.train.images.shape[-1]
    for key in ("mean", "std"):
        if len(config.data[key]) != channels:
            raise UserError(
                f"data.{key} has {len(config.data[key])} numbers; needed is one for each of the {channels} channels of "
                f"{config.data.name!r}."
            )
    return dataset


def prepare(config):
    """Loads the data, builds the network and wraps its functions for the mesh of all devices.

    Raises:
        UserError: as `load`, or images too small for the network.
    """
    dataset = load(config)
    image_shape = dataset.train.images.shape[1:]
    mesh = parallel.data_mesh()
    model = build_model(config, len(dataset.class_names))
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    everywhere = parallel.replicated(mesh)
    shared = {
        "batch_size": config.train.batch_size,
        "data": config.data,
        "place_batch": functools.partial(parallel.split_batch, mesh=mesh),
    }
    step_fn = functools.partial(train_step, model=model, optimizer=optimizer, label_smoothing=config.train.label_smoothing)
    return Experiment(
        train=jax.device_put(dataset.train, everywhere),
        test=jax.device_put(dataset.test, everywhere),
        initial=jax.jit(
            lambda: (create_train_state(model, optimizer, config.seed, image_shape), Totals.zero()), out_shardings=everywhere
        )(),
        schedule=schedule,
        train_steps=jax.jit(
            functools.partial(train_steps, step_fn=step_fn, seed=config.seed, **shared),
            donate_argnums=(0, 1),
            out_shardings=everywhere,
        ),
        evaluate=jax.jit(functools.partial(evaluate, model=model, **shared), out_shardings=everywhere),
    )


def train(config, workdir, on_progress=lambda share: None):
    """Trains a run to its end, or to `train.stop_after`, going on from its last checkpoint.

    Args:
        config: `ConfigDict` as in `configs/base.py`.
        workdir: the run directory, new or to be continued.
        on_progress: called after each compiled call with the share done, in [0, 1], of the steps that this call began with.

    Returns:
        The run's `Status`: "finished", "diverged" (a loss, parameter or statistic became non-finite; the history and the last
        finite state are kept), or "preempted" (stopped by `train.stop_after`).

    Raises:
        UserError: a mistake in the config or the run directory; nothing is left behind.
    """
    existing = runs.Run(Path(workdir))
    if existing.status().state in runs.ENDED:
        runs.check_identity(existing, config.to_dict())
        return existing.status()
    experiment = prepare(config)
    run = runs.open_run(workdir, config.to_dict())
    run.write_environment(_environment())
    try:
        with closing(checkpoints.open_checkpoints(run.checkpoints)) as manager:
            return _train(config, experiment, run, manager, on_progress)
    except UserError:
        raise
    except BaseException as error:
        state = "preempted" if isinstance(error, KeyboardInterrupt) else "failed"
        run.write_status(run.status()._replace(state=state, reason=f"{type(error).__name__}: {error}".strip(": ")[:500]))
        raise


def _train(config, experiment, run, manager, on_progress):
    options = config.train
    last = min(options.steps, options.stop_after or options.steps)
    # The running totals are part of what is saved, so the intervals of log and checkpoint need not fit each other.
    state, totals = checkpoints.restore(manager, experiment.initial)
    step = int(state.step)
    run.drop_records_after(step)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    status = runs.Status("running", step, "", parameters, run.status().seconds)
    run.write_status(status)
    start = time.perf_counter() - status.seconds
    first_step, rate_step, rate_time = step, step, time.perf_counter()
    on_progress(0.0)

    while step < last:
        due = _steps_until_due(step, last, options)
        first_epoch, first_position = divmod(step * options.batch_size, experiment.train.labels.shape[0])
        state, totals = experiment.train_steps(state, totals, experiment.train, step, first_epoch, first_position, due)
        step += due
        on_progress((step - first_step) / (last - first_step))
        intervals = (options.log_every, options.evaluate_every, options.checkpoint_every)
        logging, evaluating, saving = (step == last or step % interval == 0 for interval in intervals)
        if not (logging or evaluating or saving):
            continue  # nothing waits for the devices here

        # The order matters: a checkpoint comes after all records of its step, so a resume drops exactly the later ones.
        reached = int(state.step)
        diverged = reached < step
        status = status._replace(step=reached, seconds=round(time.perf_counter() - start, 3))
        if (logging or diverged) and totals.examples > 0:
            rate = (reached - rate_step) * options.batch_size / (time.perf_counter() - rate_time)
            values = {**totals.means(), "learning_rate": float(experiment.schedule(reached - 1)), "images_per_second": rate}
            _log(run, config, experiment, status, "train", values)
            totals = jax.tree.map(lambda total: total * 0, totals)
        if diverged:
            reason = f"the update at step {reached} gave a loss, parameters or statistics that are not finite"
            status = status._replace(state="diverged", reason=reason)
            checkpoints.save(manager, reached, (state, totals))
            break
        if evaluating:
            tested = experiment.evaluate(state.params, state.batch_stats, experiment.test)
            assert tested.examples == experiment.test.labels.shape[0]
            _log(run, config, experiment, status, "test", tested.means())
        if saving:
            checkpoints.save(manager, step, (state, totals))
        run.write_status(status)
        # Evaluating and saving are not part of the training rate.
        rate_step, rate_time = step, time.perf_counter()

    if status.state == "running":
        status = status._replace(state="finished")
        if step < options.steps:
            status = status._replace(state="preempted", reason=f"stopped by train.stop_after = {options.stop_after}")
    run.write_status(status)
    return status


def _steps_until_due(step, last, options):
    """How many steps may run in one call: up to the next multiple of any interval, or the end."""
    intervals = (options.steps_per_call, options.log_every, options.evaluate_every, options.checkpoint_every)
    return min([last - step, *(interval - step % interval for interval in intervals)])


def _log(run, config, experiment, status, split, values):
    epoch = status.step * config.train.batch_size / experiment.train.labels.shape[0]
    run.append({"step": status.step, "epoch": round(epoch, 4), "split": split, **values, "seconds": status.seconds})


def evaluate_run(workdir):
    """Loss and errors (fractions) of a run's newest checkpoint on the whole test split, and its step.

    Raises:
        UserError: no run there, or no checkpoint.
    """
    run = runs.read_run(workdir)
    with closing(checkpoints.open_checkpoints(run.checkpoints, read_only=True)) as manager:
        if manager.latest_step() is None:
            raise UserError(f"The run {run.path} has no checkpoint yet.")
        experiment = prepare(ConfigDict(run.config()))
        state, _ = checkpoints.restore(manager, experiment.initial)
    tested = experiment.evaluate(state.params, state.batch_stats, experiment.test)
    return {"step": int(state.step), "split": "test", "examples": int(tested.examples), **tested.means()}


def _environment():
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "devices": [str(device) for device in jax.devices()],
        "commit": commit,
    }
