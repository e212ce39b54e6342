"""One run, from its config to its end: the order of events."""

import functools
import importlib.metadata
import platform
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

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
    train_steps: Any  # (state, totals, split, first_step, first_epoch, first_position, length=…) -> (state, totals)
    evaluate: Any  # (params, batch_stats, split) -> totals


def prepare(config):
    """Loads the data, builds the network and wraps its functions for the mesh of all devices.

    Raises:
        UserError: whatever in the config does not fit the data, the devices or itself.
    """
    check(config)
    mesh = parallel.data_mesh()
    batch_size = config.train.batch_size
    parallel.check_batch_size(batch_size, mesh)
    dataset = load_dataset(config.data.name, config.data.dir)
    image_shape = dataset.train.images.shape[1:]
    for key in ("mean", "std"):
        if len(config.data[key]) != image_shape[-1]:
            raise UserError(
                f"data.{key} has {len(config.data[key])} numbers; needed is one for each of the {image_shape[-1]} channels of "
                f"{config.data.name!r}."
            )
    model = build_model(config, len(dataset.class_names))
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    everywhere = parallel.replicated(mesh)
    shared = {
        "batch_size": batch_size,
        "data": config.data,
        "place_batch": functools.partial(parallel.split_batch, mesh=mesh),
    }
    step_fn = functools.partial(
        train_step, model=model, optimizer=optimizer, label_smoothing=config.train.label_smoothing
    )
    return Experiment(
        train=jax.device_put(dataset.train, everywhere),
        test=jax.device_put(dataset.test, everywhere),
        initial=jax.jit(
            lambda: (create_train_state(model, optimizer, config.seed, image_shape), Totals.zero()), out_shardings=everywhere
        )(),
        schedule=schedule,
        train_steps=jax.jit(
            functools.partial(train_steps, step_fn=step_fn, seed=config.seed, **shared),
            static_argnames="length",
            donate_argnums=(0, 1),
            out_shardings=everywhere,
        ),
        evaluate=jax.jit(functools.partial(evaluate, model=model, **shared), out_shardings=everywhere),
    )


def train(config, workdir, on_step=lambda step: None):
    """Trains a run to its end, or to `train.stop_after`, going on from its last checkpoint.

    Args:
        config: `ConfigDict` as in `configs/base.py`.
        workdir: the run directory, new or to be continued.
        on_step: called with the number of updates done, after each compiled call.

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
        return _train(config, experiment, run, on_step)
    except UserError:
        raise
    except BaseException as error:
        state = "preempted" if isinstance(error, KeyboardInterrupt) else "failed"
        run.write_status(run.status()._replace(state=state, reason=f"{type(error).__name__}: {error}".strip(": ")[:500]))
        raise


def _train(config, experiment, run, on_step):
    options = config.train
    last = min(options.steps, options.stop_after or options.steps)
    manager = checkpoints.open_checkpoints(run.checkpoints)
    # The running totals are part of what is saved, so the intervals of log and checkpoint need not fit each other.
    state, totals = checkpoints.restore(manager, experiment.initial)
    step = int(state.step)
    run.drop_records_after(step)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    status = runs.Status("running", step, "", parameters, run.status().seconds)
    run.write_status(status)
    start = time.perf_counter() - status.seconds
    logged_step, logged_time = step, time.perf_counter()
    on_step(step)

    while step < last:
        due = _steps_until_due(step, last, options)
        first_epoch, first_position = divmod(step * options.batch_size, experiment.train.labels.shape[0])
        state, totals = experiment.train_steps(
            state, totals, experiment.train, step, first_epoch, first_position, length=due
        )
        step += due
        on_step(step)

        # The order matters: what a checkpoint of step k follows is logged up to k, so a resume drops exactly the later records.
        ending = step == last
        if ending or step % options.log_every == 0:
            reached = int(state.step)
            now = time.perf_counter()
            status = status._replace(step=reached, seconds=round(now - start, 3))
            if totals.examples > 0:
                rate = (reached - logged_step) * options.batch_size / (now - logged_time)
                record = {**totals.means(), "learning_rate": float(experiment.schedule(reached - 1))}
                _log(run, config, experiment, status, "train", {**record, "images_per_second": round(rate, 1)})
            totals = jax.tree.map(lambda total: total * 0, totals)
            run.write_status(status)
            if reached < step:
                status = status._replace(
                    state="diverged", reason=f"the update at step {reached} gave a loss or parameters that are not finite"
                )
                checkpoints.save(manager, reached, (state, totals))
                break
            logged_step = step
        if ending or step % options.evaluate_every == 0:
            tested = experiment.evaluate(state.params, state.batch_stats, experiment.test)
            assert tested.examples == experiment.test.labels.shape[0]
            _log(run, config, experiment, status._replace(step=step), "test", tested.means())
        if ending or step % options.checkpoint_every == 0:
            checkpoints.save(manager, step, (state, totals))
        # Evaluating and saving are not part of the training rate.
        logged_time = time.perf_counter() if logged_step == step else logged_time

    if status.state == "running":
        finished = step == options.steps
        reason = "" if finished else f"stopped by train.stop_after = {options.stop_after}"
        status = status._replace(state="finished" if finished else "preempted", step=step, reason=reason)
    status = status._replace(seconds=round(time.perf_counter() - start, 3))
    run.write_status(status)
    manager.close()
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
    from ml_collections import ConfigDict

    run = runs.read_run(workdir)
    if not run.checkpoints.is_dir():
        raise UserError(f"The run {run.path} has no checkpoint yet.")
    experiment = prepare(ConfigDict(run.config()))
    manager = checkpoints.open_checkpoints(run.checkpoints)
    if manager.latest_step() is None:
        raise UserError(f"The run {run.path} has no checkpoint yet.")
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
