"""One run, from its config to its end: the order of events."""

import contextlib
import copy
import datetime
import functools
import importlib.metadata
import logging
import math
import os
import platform
import subprocess
import sys
import time
import traceback
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from plain56 import machine, parallel, runs
from plain56.config import build_model, check, check_used, from_json, last_step
from plain56.data import UNREADABLE_SHARE, choose_mode, open_test_split
from plain56.errors import UserError
from plain56.models import parse_name
from plain56.ops import native
from plain56.training import checkpoints, protocols
from plain56.training.evaluate import exact_batch_stats
from plain56.training.experiment import initial_state, load, prepare
from plain56.training.probe import fit
from plain56.training.schedules import make_schedule
from plain56.training.signals import postponed_interrupts
from plain56.training.state import copy_layers, make_optimizer

# Requests to stop are heard between compiled calls. Those of training are cut to about this length: a third of the usual time
# between SIGTERM and SIGKILL, and long enough for the tenth of a second that a call's beginning costs (CIFAR-10 on two cores).
CALL_SECONDS = 10
# Beside JAX's own: the compiler's flags, and the width of its thread pool.
VARIABLES = ("XLA_FLAGS", "NPROC")
# So many steps after the warm-up, and not before one epoch, a network that learns has left the loss of guessing by this share.
STUCK_STEPS = 300
STUCK_SHARE = 0.01

logger = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A run's config, network, newest state, and the shape `(H, W, C)` of its images."""

    config: Any
    model: Any
    state: Any
    image_shape: tuple[int, int, int]


@machine.telling_what_is_too_large(
    "a smaller train.batch_size, a larger train.accumulate, or model.remat=True where the network has it, needs less"
)
@parallel.noticing_lost_processes()
def train(config, workdir, on_progress=lambda share, images_per_second: None, begin=None):
    """Trains a run to its end, or to `train.stop_after`, going on from its last checkpoint.

    Killed at any moment and called again, it ends with the same bits on the same devices, and with every record once.

    Args:
        config: `ConfigDict` as in `configs/base.py`.
        workdir: the run directory, new or to be continued.
        on_progress: called after each compiled call with the share done, in [0, 1], of the steps that this call began with,
            and the rate of the newest steps, 0 where it is not known yet.
        begin: `params, batch_stats -> params, batch_stats` of the same shapes, for the beginning of a new run.

    Returns:
        The run's `Status`: "finished", "diverged" (a loss, parameter or statistic became non-finite; the history and the last
        finite state are kept), or "preempted" (stopped by `train.stop_after`).

    Raises:
        UserError: a mistake in the config or the run directory, a run that another process holds (`runs.Held`), or data that
            has changed since the run began; nothing is left behind. Or memory or a disk that is full; the run can go on.
        KeyboardInterrupt: SIGINT or SIGTERM came; the state has been saved, and the same call goes on from there.
    """
    parallel.check_same({"--workdir": str(Path(workdir).absolute()), **runs.flatten(config.to_dict())})
    with _hold(workdir) as run:
        parallel.on_first(lambda: runs.check_identity(run, config.to_dict()))
        status = parallel.on_first(run.status)
        if status[0] in runs.ENDED:
            return runs.Status(*status)
        check(config)
        check_used(config)
        decided = _decide_mode(config, run)
        parallel.together(lambda: load(decided))
        experiment = prepare(decided)
        parallel.on_first(lambda: _check_data(run, experiment.data))
        new = not parallel.on_first(run.has_checkpoint)
        if begin and config.train.warm_start:
            raise UserError("train.warm_start and weights both begin a run; allowed is one of them.")
        if new and config.transfer.weights and not begin:
            raise UserError(f"The run begins from {config.transfer.weights} (transfer.weights); needed is `launch.py finetune`.")
        if begin and parallel.is_first():
            _log_stages(config, experiment.stages)
        warm = new and (config.train.warm_start or begin)
        if warm:
            begin = begin or _warm_start(config)
            state, totals = experiment.initial
            begun = begin(state.params, state.batch_stats)
            places = jax.tree.map(lambda leaf: leaf.sharding, (state.params, state.batch_stats))
            params, batch_stats = jax.device_put(begun, places)
            experiment = experiment._replace(initial=(state.replace(params=params, batch_stats=batch_stats), totals))
        parallel.on_first(lambda: _write_beginning(run, config, experiment.data))
        try:
            with parallel.noticing_lost_processes(), closing(checkpoints.open_checkpoints(run.checkpoints)) as manager:
                if warm:  # the other run may go on, so what was taken from it is kept
                    checkpoints.save(manager, 0, experiment.initial)
                return (_probe if config.transfer.probe else _train)(config, experiment, run, manager, on_progress)
        except UserError as error:
            _write_end(run, "failed", str(error))
            raise
        except KeyboardInterrupt as error:
            _write_end(run, "preempted", str(error) or "interrupted")
            raise
        except BaseException as error:
            _write_end(run, "failed", f"{type(error).__name__}: {error}".strip(": ")[:500])
            if parallel.is_first():
                run.write_error(traceback.format_exc())
            raise


def _log_stages(config, stages):
    """Says what of a network is trained, and how fast."""
    how = "fitted to the features" if config.transfer.probe else "trained at {:.3g}"
    for stage in stages:
        rate = f"{stage.trained:,} {how.format(config.optimizer.learning_rate * stage.rate)}" if stage.trained else "frozen"
        logger.info("%-10s %12s parameters, %s", stage.name, f"{stage.parameters:,}", rate)
    stays = config.transfer.freeze_statistics or config.transfer.probe
    logger.info("Statistics of batch norm %s.", "stay" if stays else "follow the images")


@contextlib.contextmanager
def _hold(workdir):
    """The run in a directory, which process 0 holds for all, and all can see."""
    run = runs.Run(Path(workdir))
    with ExitStack() as stack:
        holder = parallel.on_first(lambda: stack.enter_context(runs.hold(workdir)).holder())
        blind = [process for process, same in enumerate(parallel.gather(run.holder() == holder)) if not same]
        if blind:
            raise UserError(
                f"--workdir is {workdir}, where process {blind[0]} does not see what process 0 writes; needed is a directory "
                "that all processes share."
            )
        yield run


def _write_beginning(run, config, data):
    before, now = run.environment().get("convolution"), native.describe()
    if before not in (None, now):
        logger.warning("The run goes on with the convolution %s, and began with %s: not with the same bits.", now, before)
    run.write_config(config.to_dict())
    run.forget_error()
    run.write_environment(_environment() | {"convolution": now, "data": data})


def _write_end(run, state, reason):
    if parallel.is_first() and run.status().state not in runs.ENDED:
        with contextlib.suppress(UserError):  # it may be the disk that fails
            run.write_status(run.status()._replace(state=state, reason=reason))


def _decide_mode(config, run):
    """The config with a `data.mode` of "auto" decided: as the run began, or by process 0 for all.

    Process 0 is the first to open the data set in any case: it may have to prepare it.
    """
    check(config)
    chosen = parallel.on_first(lambda: choose_mode(config.data))
    began = parallel.on_first(lambda: run.environment().get("data", {}).get("streamed"))
    if config.data.mode == "auto":
        config = copy.deepcopy(config)
        config.data.mode = chosen if began is None else {True: "stream", False: "resident"}[began]
    return config


def _check_data(run, found):
    """Raises UserError where what was found of the data set differs from what the run began with."""
    before = run.environment().get("data", found)
    if before.get("streamed", False) != found.get("streamed", before.get("streamed", False)):
        modes = {True: "stream", False: "resident"}
        raise UserError(f"{run.path} began with data.mode={modes[before['streamed']]}, which may not change.")
    # A run that is older than a key does not have it.
    differing = {key: new for key, new in found.items() if before.get(key, new) != new}
    times = differing.pop("times_crc32", None)
    if differing:
        changes = ", ".join(f"{key} ({before[key]} then, {new} now)" for key, new in differing.items())
        raise UserError(f"The data set has changed since {run.path} began: {changes}; the same data is expected.")
    if times:  # of which a copy has its own
        logger.warning("The data's files were copied or changed since %s began; only names and sizes are the same.", run.path)


def load_run(path):
    """What a run has trained, from its newest checkpoint; its data is not read.

    Raises:
        UserError: no run there, or no checkpoint.
    """
    run = runs.read_run(path)
    if not run.has_checkpoint():
        raise UserError(f"The run {run.path} has no checkpoint yet.")
    config, data = from_json(run.config()), run.environment().get("data", {})
    check(config)
    if not {"image_shape", "class_names"} <= data.keys():
        raise UserError(
            f"{run.path / 'environment.json'} does not say what data the run has; another version may have written it."
        )
    image_shape = tuple(data["image_shape"])
    model = build_model(config, len(data["class_names"]))
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, config.train.steps), config.transfer.rate_factor)
    shapes = jax.eval_shape(lambda: initial_state(model, optimizer, config, image_shape))
    everywhere = parallel.replicated(parallel.data_mesh())
    shapes = jax.tree.map(lambda shape: shape.update(sharding=everywhere), shapes)
    with closing(checkpoints.open_checkpoints(run.checkpoints, read_only=True)) as manager:
        state, _ = checkpoints.restore(manager, shapes)
    return Trained(config, model, state, image_shape)


def _warm_start(config):
    """What begins a run with the layers that its network shares with that of the run `train.warm_start`.

    All of them: Simonyan & Zisserman 2014, section 3.1, began deeper networks with the first four convolutions and the
    fully-connected layers of VGG-11, and drew the others anew.
    """
    source = parallel.together(lambda: load_run(config.train.warm_start))

    def begin(params, batch_stats):
        params, layers = copy_layers(params, source.state.params)
        if not layers:
            raise UserError(
                f"train.warm_start is {config.train.warm_start!r}, whose network {source.config.model.name} shares no layer of "
                f"the same name and shape with {config.model.name}."
            )
        logger.info("From step %d of %s: %s.", source.state.step, config.train.warm_start, ", ".join(layers))
        return params, copy_layers(batch_stats, source.state.batch_stats)[0]

    return begin


def _warn_if_stuck(loss, labels, num_classes, step):
    counts = np.ones(num_classes) if labels is None else np.bincount(jax.device_get(labels))
    shares = counts[counts > 0] / counts.sum()
    guessing = -(shares * np.log(shares)).sum()
    if abs(loss / guessing - 1) < STUCK_SHARE:
        logger.warning(
            "After %d steps the training loss is still %.3f, and guessing by the classes' shares has %.3f (ln %d is %.3f): it "
            "may not be learning. Without batch norm, too small an initialisation or a wrong rate does this; try a lower "
            "optimizer.learning_rate, the network with batch norm, or a train.warm_start from a shallower one.",
            *(step, loss, guessing, len(shares), math.log(len(shares))),
        )


def _train(config, experiment, run, manager, on_progress):
    options = config.train
    last = last_step(config)
    # The running totals are part of what is saved, so the intervals of log and checkpoint need not fit each other.
    state, totals = checkpoints.restore(manager, experiment.initial, set_aside=True)
    step = int(state.step)
    asked, unread = int(totals.examples), 0  # examples since the totals were zero, and since this start
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    seconds = parallel.on_first(lambda: run.status().seconds)
    status = runs.Status("running", step, "", parameters, seconds)
    start = time.perf_counter() - seconds

    def write_status():
        parallel.on_first(lambda: run.write_status(status))

    write_status()
    first_step, rate_step, rate_time, steps_per_call = step, step, time.perf_counter(), 1
    splits = {"train_clean": experiment.train, "validation": experiment.validation, "test": experiment.test}
    intervals = {split: options.evaluate_every for split in splits} | {"train_clean": options.evaluate_train_every}
    evaluated = {split: interval for split, interval in intervals.items() if interval and splits[split]}
    epoch_steps = experiment.data["train"] // options.batch_size
    watch_step = max(config.optimizer.schedule.warmup_steps + STUCK_STEPS, epoch_steps)
    watching = step < watch_step
    on_progress(0.0, 0.0)

    with ExitStack() as stack:
        append = _open_log(stack, run, step, time.time() - seconds)
        interrupts = stack.enter_context(postponed_interrupts())

        records = []  # that are not written yet

        def record(split, values):
            epoch = round(status.step * options.batch_size / experiment.data["train"], 4)
            records.append({"step": status.step, "epoch": epoch, "split": split, **values, "seconds": status.seconds})

        if experiment.gradients and step == 0 and parallel.on_first(lambda: not run.metrics("gradients")):
            record("gradients", experiment.gradients(state.params, state.batch_stats)._asdict())
            append(records)
        while step < last:
            # What each process finds out for itself, they have to agree on.
            agreed = parallel.gather([steps_per_call, *interrupts])
            interrupted = [names[0] for _, *names in agreed if names]
            steps_per_call = agreed[0][0]
            if interrupted:
                saved = int(state.step)
                append(records, sync=True)  # none is left to be written, but to be synced
                checkpoints.save(manager, saved, (state, totals))
                status = status._replace(step=saved, seconds=round(time.perf_counter() - start, 3))
                write_status()
                raise KeyboardInterrupt(f"stopped by {interrupted[0]}, after saving at step {saved}")
            every = (options.log_every, options.checkpoint_every, *evaluated.values(), options.gradients_every or last)
            steps = min(steps_per_call, options.steps_per_call, last - step, *(interval - step % interval for interval in every))
            call_time = time.perf_counter()
            state, totals = experiment.train_steps(state, totals, step, steps)
            jax.block_until_ready(totals)
            steps_per_second = steps / (time.perf_counter() - call_time)
            steps_per_call = max(1, int(CALL_SECONDS * steps_per_second))
            step += steps
            asked += steps * options.batch_size
            rate = 0.0 if step - steps == first_step else steps_per_second * options.batch_size  # the first call compiles
            on_progress((step - first_step) / (last - first_step), rate)

            def due(interval, step=step):
                return step == last or step % interval == 0

            evaluating = [split for split, interval in evaluated.items() if due(interval)]
            measuring = experiment.gradients and due(options.gradients_every)
            if not (evaluating or measuring or due(options.log_every) or due(options.checkpoint_every)):
                continue

            # The order matters: a checkpoint comes after all records of its step, so a resume drops exactly the later ones.
            done, sums = int(state.step), jax.device_get(totals)
            status = _status(done, step, parameters, round(time.perf_counter() - start, 3))
            if (due(options.log_every) or status.state == "diverged") and sums.examples > 0:
                rate = (done - rate_step) * options.batch_size / (time.perf_counter() - rate_time)
                if status.state == "running":
                    unread += asked - int(sums.examples)
                    _check_readable("train", unread, max(done * options.batch_size, experiment.data["train"]))
                means = sums.means()
                record("train", means | {"learning_rate": float(experiment.schedule(done - 1)), "images_per_second": rate})
                if watching and done >= watch_step and parallel.is_first():
                    _warn_if_stuck(means["loss"], experiment.train.labels, len(experiment.data["class_names"]), done)
            watching = watching and step < watch_step
            if due(options.log_every):
                totals, asked = jax.tree.map(lambda total: total * 0, totals), 0
            if status.state == "diverged":
                append(records, sync=True)
                checkpoints.save(manager, done, (state, totals))
                break
            for split in evaluating:
                tested = jax.device_get(experiment.evaluate(state.params, state.batch_stats, splits[split]))
                count = experiment.data[split.removesuffix("_clean")]
                _check_readable(split, count - int(tested.examples), count)
                record(split, tested.means())
            if measuring:
                record("gradients", experiment.gradients(state.params, state.batch_stats)._asdict())
            append(records, sync=due(options.checkpoint_every))
            if due(options.checkpoint_every):
                checkpoints.save(manager, step, (state, totals))
            write_status()
            # Evaluating and saving are not part of the training rate.
            rate_step, rate_time = step, time.perf_counter()

        if status.state == "running":
            status = status._replace(state="finished", seconds=round(time.perf_counter() - start, 3))
            if step < options.steps:
                status = status._replace(state="preempted", reason=f"stopped by train.stop_after = {options.stop_after}")
        write_status()
        status = parallel.on_first(run.status)  # where one of several processes may not be interrupted alone
    return runs.Status(*status)


def _probe(config, experiment, run, manager, on_progress):
    """Fits the last layer by itself; returns the status as `_train` does."""
    state, totals = checkpoints.restore(manager, experiment.initial, set_aside=True)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    seconds = parallel.on_first(lambda: run.status().seconds)
    start, batch_size, count = time.perf_counter() - seconds, config.train.batch_size, experiment.data["train"]
    parallel.on_first(lambda: run.write_status(runs.Status("running", 0, "", parameters, seconds)))
    computed, begin = [], time.perf_counter()
    for batch in experiment.features(state.params, state.batch_stats, experiment.train):
        computed.append((batch.images[batch.mask], batch.labels[batch.mask]))
        done = len(computed) * batch_size
        on_progress(min(1.0, done / count), done / (time.perf_counter() - begin))
    inputs, labels = map(np.concatenate, zip(*computed, strict=True))
    _check_readable("train", count - len(labels), count)
    options = config.optimizer
    decay = {"weight_decay": options.weight_decay, "decay_all": options.decay_all}
    classes, smoothing = len(experiment.data["class_names"]), config.train.label_smoothing
    layer, step, fitted = jax.device_get(
        fit(inputs, labels, classes, steps=config.train.steps, label_smoothing=smoothing, **decay)
    )
    step = int(step)
    places = jax.tree.map(lambda leaf: leaf.sharding, (state.step, state.params))
    moved = jax.device_put((np.int32(step), state.params | {"head": layer}), places)
    state = state.replace(step=moved[0], params=moved[1])
    with ExitStack() as stack:
        append, records = _open_log(stack, run, 0, time.time() - seconds), []

        def log(split, sums):
            seconds = round(time.perf_counter() - start, 3)
            records.append({"step": step, "epoch": float(step), "split": split, **sums.means(), "seconds": seconds})

        log("train", fitted)
        splits = {"validation": experiment.validation, "test": experiment.test}
        if config.train.evaluate_train_every:
            splits = {"train_clean": experiment.train} | splits
        for split, examples in splits.items():
            if examples:
                tested, count = (
                    experiment.evaluate(state.params, state.batch_stats, examples),
                    experiment.data[split.removesuffix("_clean")],
                )
                _check_readable(split, count - int(tested.examples), count)
                log(split, tested)
        append(records, sync=True)
        checkpoints.save(manager, step, (state, totals))
    status = runs.Status("finished", step, "", parameters, round(time.perf_counter() - start, 3))
    parallel.on_first(lambda: run.write_status(status))
    return runs.Status(*parallel.on_first(run.status))


def _check_readable(split, unread, count):
    """Raises UserError where too many of the examples that were asked for could not be read; so in all processes at once."""
    if unread > UNREADABLE_SHARE * count:
        raise UserError(
            f"{unread} of {count} examples of the split {split!r} could not be read; allowed are {100 * UNREADABLE_SHARE:.0f} %, "
            "which are left out."
        )


def _open_log(stack, run, step, start):
    """What writes a list of records to the log, in process 0, and empties the list.

    It comes before a checkpoint, so that a resume drops exactly the later records.
    """
    logs = []
    parallel.on_first(lambda: logs.append(stack.enter_context(run.open_log(step, start))))

    def append(records, sync=False):
        parallel.on_first(lambda: logs[0](*records, sync=sync))  # what it cannot write stops all processes
        records.clear()

    return append


def _status(done, step, parameters, seconds):
    """How a network stands whose state is that of step `done`, where it should be that of `step`."""
    if done == step:
        return runs.Status("running", step, "", parameters, seconds)
    reason = f"the update at step {done} gave a loss, parameters or statistics that are not finite"
    return runs.Status("diverged", done, reason, parameters, seconds)


@machine.telling_what_is_too_large()
def evaluate_run(workdir, protocol=None, sides=(), exact_statistics=False, on_progress=lambda share: None):
    """Loss and errors (fractions) of a run's newest checkpoint on the whole test split, and its step.

    Args:
        protocol: a name in `protocols`; None takes the images as training does, without augmentation.
        sides: of the protocol "dense", sizes of the shorter side in pixels; () for the published ones.
        exact_statistics: batch norm by statistics over the whole training split, in place of running averages.

    Raises:
        UserError: no run there, no checkpoint, or a protocol that does not fit it.
    """
    config, _, state, image_shape = load_run(workdir)
    run = runs.read_run(workdir)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    options = {"protocol": protocol, "sides": sides, "exact_statistics": exact_statistics, "on_progress": on_progress}
    result = evaluate_variables(_decide_mode(config, run), variables, image_shape, functools.partial(_check_data, run), **options)
    return {"step": int(state.step), **result}


def evaluate_variables(config, variables, image_shape, check_data, *, protocol, sides, exact_statistics, on_progress):
    """As `evaluate_run`, of variables of the config's network for images of `image_shape`.

    Args:
        check_data: called with what is found of the data set.
    """
    params, batch_stats = variables["params"], variables["batch_stats"]
    if sides and protocol != "dense":
        raise UserError("--side belongs to --protocol=dense, and is not allowed here.")
    if protocol and image_shape[0] != image_shape[1]:
        raise UserError(f"--protocol needs square images; these are {image_shape[0]}×{image_shape[1]} pixels.")
    if exact_statistics and not batch_stats:
        raise UserError(f"--exact_statistics is not allowed here: {config.model.name} has no batch norm.")
    if exact_statistics or not protocol:
        experiment = prepare(config)
        check_data(experiment.data)
    if exact_statistics:
        measure = functools.partial(experiment.measure_moments, params, split=experiment.train)
        batch_stats, passes = exact_batch_stats(batch_stats, measure)
        logger.info("Batch statistics over the training split: exact after %d passes.", passes)
    result = {"split": "test"}
    if protocol:
        result["protocol"] = protocol
        pictures, class_names = open_test_split(config.data)
        check_data({"class_names": list(class_names)})
        model = build_model(config, len(class_names))
        if protocol == "dense":
            result["sides"] = list(sides or protocols.dense_sides(parse_name(config.model.name)[0], image_shape[0]))
            model = protocols.for_any_size(model, image_shape)
        views = {"protocol": protocol, "size": image_shape[0], "sides": result.get("sides", ())}
        variables = {"params": params, "batch_stats": batch_stats}
        tested = protocols.evaluate_pictures(model, variables, pictures, config.data, **views, on_progress=on_progress)
    else:
        tested = experiment.evaluate(params, batch_stats, experiment.test)
    return result | {"examples": int(tested.examples), **tested.means()}


def _environment():
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    return {
        "host": platform.node(),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "devices": [str(device) for device in jax.devices()],
        "variables": {name: os.environ[name] for name in sorted(os.environ) if name in VARIABLES or name.startswith("JAX_")},
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "commit": commit,
    }
