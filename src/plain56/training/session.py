"""One launch of a run: it holds the directory, finds out whether the run is new or goes on, trains it, and tells how it ended."""

import contextlib
import datetime
import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
import traceback
from contextlib import ExitStack, closing
from pathlib import Path

import jax

from plain56 import __version__, machine, parallel, runs
from plain56.config import check, check_used
from plain56.errors import UserError
from plain56.ops import native
from plain56.training import beginning, checkpoints, loggers, loop, probe, transfer
from plain56.training.cadence import last_step
from plain56.training.initial_weights import initial_weights, warn_of_mismatch
from plain56.training.program import prepare
from plain56.training.stored import check_data, decide_mode, own_sources, warn_of_changed_sources

# Besides JAX's own variables: the compiler's flags, and the width of its thread pool.
VARIABLES = ("XLA_FLAGS", "NPROC")

logger = logging.getLogger(__name__)


@machine.explaining_memory_errors(
    "a smaller train.batch_size, a larger train.accumulate, or model.remat=True where the network has it, needs less"
)
@parallel.explaining_lost_processes()
def train(config, workdir, on_progress=lambda progress: None):
    """Trains a run to its end, or to `train.stop_after`, resuming from its last checkpoint.

    If it is killed at any moment and called again, the run ends with the same bits on the same devices, and has each record once.

    Args:
        config: `ConfigDict` as in `configs/base.py`. With `transfer.weights`, it must be what `initial_weights.choose` returns.
        workdir: the run directory, new or to be continued.
        on_progress: called with the run's `Progress` at the beginning, after each compiled call, and at the end.

    Returns:
        The run's `Status`: "finished", "diverged" (a loss, parameter or statistic became non-finite; the history and the last
        finite state are kept), or "stopped" (by `train.stop_after`; with a later one, or none, the same call goes on).

    Raises:
        UserError: a mistake in the config or the run directory, a run that another process holds (`runs.Held`), or data that
            has changed since the run began; nothing is left behind. A full memory or disk, too: the run can then go on.
        KeyboardInterrupt: SIGINT or SIGTERM came; the state has been saved, and the same call goes on from there.
    """
    parallel.check_same({"--workdir": str(Path(workdir).absolute()), **runs.flatten(config.to_dict())})
    with _hold(workdir) as run:
        parallel.on_first(runs.check_identity, run, config.to_dict())
        status = runs.Status(*parallel.on_first(run.status))
        if status.state in runs.ENDED:
            return status
        check(config)
        check_used(config)
        if status.state == "stopped" and status.step >= last_step(config):
            return status
        parallel.on_first(loggers.check, config.train.loggers)
        program = prepare(decide_mode(config, run))
        parallel.on_first(check_data, run, program.found)
        given = (config.train.warm_start or config.transfer.weights) and not parallel.on_first(run.has_checkpoint)
        # First, since weights that do not fit must stop it before it says anything.
        initial = initial_weights(program) if given else None
        parallel.on_first(beginning.log, program, workdir)
        if config.transfer.weights:
            if parallel.is_first():
                _log_stages(program)
            parallel.on_first(warn_of_mismatch, config)
        initial = initial or program.initial
        parallel.on_first(_write_beginning, run, config, program.found)
        with _noting_the_end(run), closing(checkpoints.open_checkpoints(run.checkpoints)) as manager:
            if given:  # the source of the weights may change or go, so they are kept
                checkpoints.save(manager, 0, initial)
            return (probe.train if config.transfer.probe else loop.train)(program, run, manager, initial, on_progress)


@contextlib.contextmanager
def _hold(workdir):
    """Holds the run in a directory by process 0 for all, and checks that all see it."""
    run = runs.Run(Path(workdir))
    with ExitStack() as stack:
        holder = parallel.on_first(lambda: stack.enter_context(runs.hold(workdir)).holder())
        blind = [process for process, same in enumerate(parallel.gather(run.holder() == holder)) if not same]
        if blind:
            raise UserError(
                f"--workdir is {workdir}, where process {blind[0]} does not see what process 0 writes; all processes must share "
                "the directory."
            )
        yield run


def _log_stages(program):
    """Logs which stages are trained, and at what learning rate, as one message."""
    config, (state, _) = program.config, program.initial
    lines, how = [], "fitted to the features" if config.transfer.probe else "trained at {:.3g}"
    for stage in transfer.describe(state.params, config.transfer, program.model, program.image_shape):
        rate = f"{stage.trained:,} {how.format(config.optimizer.learning_rate * stage.rate)}" if stage.trained else "frozen"
        lines.append(f"{stage.name:<10} {stage.parameters:>12,} parameters, {rate}")
    stays = config.transfer.freeze_statistics or config.transfer.probe
    lines.append(f"Statistics of batch norm {'are frozen' if stays else 'follow the images'}.")
    logger.info("%s", "\n".join(lines))


def _write_beginning(run, config, found):
    before, now = run.environment().get("convolution"), native.describe(config.model.dtype)
    if before not in (None, now):
        logger.warning("The run began with the convolution %s and goes on with %s: its bits will differ.", before, now)
    warn_of_changed_sources(run, config)
    run.write_config(config.to_dict())
    run.forget_error()
    run.write_environment(_environment() | {"convolution": now, "data": found, "own_sources": own_sources(config)})


@contextlib.contextmanager
def _noting_the_end(run):
    """If an exception ends training, keeps the reason in the run directory."""
    try:
        with parallel.explaining_lost_processes():
            yield
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


def _write_end(run, state, reason):
    # A signal in the last call comes when the run has already stopped or ended.
    kept = runs.ENDED if state == "failed" else (*runs.ENDED, *runs.COMPLETE)
    if parallel.is_first() and run.status().state not in kept:
        with contextlib.suppress(UserError):  # it may be the disk that fails
            run.write_status(run.status()._replace(state=state, reason=reason))


def _environment():
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    checkout = Path(__file__).parents[3]
    git = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    # An installed package may lie in a folder of another project, whose commit says nothing about this one.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(checkout.parent)}
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=False, env=environment).stdout.strip()
    except OSError:
        commit = ""
    return {
        "host": platform.node(),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"plain56": __version__} | {name: importlib.metadata.version(name) for name in packages},
        "devices": [str(device) for device in jax.devices()],
        "variables": {name: os.environ[name] for name in sorted(os.environ) if name in VARIABLES or name.startswith("JAX_")},
        "cpu_cores": len(machine.cores()),
        "commit": commit,
    }
