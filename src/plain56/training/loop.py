"""Training: the order of events from the newest checkpoint to the last step."""

import logging
import math
import time

import jax
import numpy as np

from plain56 import parallel
from plain56.data import UNREADABLE_SHARE
from plain56.errors import UserError
from plain56.training import cadence, checkpoints
from plain56.training.journal import Journal
from plain56.training.signals import postponed_interrupts

# Requests to stop are heard between compiled calls, so a call lasts about this long at most: a third of the usual time between
# SIGTERM and SIGKILL, and long enough for the tenth of a second that a call's beginning costs (CIFAR-10 on two cores).
CALL_SECONDS = 10
# A network that learns has a loss this share away from that of guessing by so many steps after warm-up, or by one epoch if later.
STUCK_STEPS = 300
STUCK_SHARE = 0.01

logger = logging.getLogger(__name__)


def train(program, run, manager, initial, on_progress):
    """Trains from the newest checkpoint, or from the `initial` state and totals; returns the run's `Status`.

    Args:
        program: a `Program`.
        run: held by process 0.
        manager: the run's checkpoint manager.
        on_progress: as in `session.train`.
    """
    options, batch_size, last = program.config.train, program.config.train.batch_size, cadence.last_step(program.config)
    # The running totals are part of what is saved, so the intervals of log and checkpoint need not be multiples of each other.
    state, totals = checkpoints.restore(manager, initial, set_aside=True)
    step = first_step = int(state.step)
    requested, unread = int(totals.examples), 0  # examples since the totals were zero, and since this launch
    if first_step and parallel.is_first():
        logger.info("%s goes on from step %s.", run.path.name, f"{first_step:,}")
    stream, steps_per_call = program.stream(step), 1
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    journal = Journal(run, program.config, step, parameters, program.found["train"], batch_size)
    with journal, postponed_interrupts() as interrupts:
        if options.gradients_every and step == 0 and journal.lacks("gradients"):
            measure(program, journal, state, "gradients")
            journal.flush()
        share, rate = 0.0, 0.0
        while step < last:
            on_progress(journal.progress(share, rate))  # nothing of it waits for the devices
            steps_per_call, interrupted = _agree(steps_per_call, interrupts)
            if interrupted:
                _save_and_stop(journal, manager, state, totals, interrupted)
            steps = min(steps_per_call, options.steps_per_call, cadence.steps_to_next(options, step, last))
            begin = time.perf_counter()
            state, totals = program.train_steps(state, totals, stream, step, steps)
            jax.block_until_ready(totals)
            seconds = time.perf_counter() - begin
            steps_per_call = max(1, int(CALL_SECONDS * steps / seconds))
            rate = 0.0 if step == first_step else steps * batch_size / seconds  # the first call compiles
            step, requested = step + steps, requested + steps * batch_size
            share = (step - first_step) / (last - first_step)
            due = cadence.due(options, step, last)
            if not due:
                continue

            # The order matters: a checkpoint comes after all records of its step, so a resume drops exactly the later ones.
            diverged = _advance(journal, int(state.step), step)
            sums = jax.device_get(totals)
            if ("log" in due or diverged) and sums.examples > 0:
                if not diverged:
                    unread += requested - int(sums.examples)
                    check_readable("train", unread, max(step * batch_size, program.found["train"]))
                _log(program, journal, sums)
            if "log" in due:
                totals, requested = jax.tree.map(lambda total: total * 0, totals), 0
            if diverged:
                journal.flush(sync=True)
                checkpoints.save(manager, journal.status.step, (state, totals))
                break
            for name in due:
                measure(program, journal, state, name)
            journal.flush(sync="checkpoint" in due)
            if "checkpoint" in due:
                checkpoints.save(manager, step, (state, totals))
            journal.write_status()
            journal.restart_clock()
        _end(journal, step, options)
        on_progress(journal.progress(1.0, rate))
        return journal.read_status()


def _agree(steps_per_call, interrupts):
    """What all processes must agree on: the steps of a call, and the name of the request to stop, or None."""
    agreed = parallel.gather([steps_per_call, *interrupts])
    return agreed[0][0], next((names[0] for _, *names in agreed if names), None)


def _save_and_stop(journal, manager, state, totals, interrupted):
    """Saves, and raises KeyboardInterrupt. All records are written already, and only have to be synced."""
    journal.flush(sync=True)
    saved = int(state.step)
    checkpoints.save(manager, saved, (state, totals))
    journal.advance(saved)
    journal.write_status()
    raise KeyboardInterrupt(f"stopped by {interrupted}, after saving at step {saved}")


def _advance(journal, done, step):
    """Sets the status to step `done`, and returns whether training has diverged, which is so if that is not `step`."""
    if done == step:
        journal.advance(step)
        return False
    reason = f"the update at step {done} gave a loss, parameters or statistics that are not finite"
    journal.advance(done, "diverged", reason)
    return True


def _log(program, journal, sums):
    """Records the running totals of training, and warns if it may not be learning."""
    done, means = journal.status.step, sums.means()
    rates = {"learning_rate": float(program.schedule(done - 1)), "images_per_second": journal.images_per_second()}
    journal.record("train", means | rates)
    options = program.config.train
    epoch_steps = program.found["train"] // options.batch_size
    watched = max(program.config.optimizer.schedule.warmup_steps + STUCK_STEPS, epoch_steps)
    if (done - 1) // options.log_every * options.log_every < watched <= done and parallel.is_first():
        _warn_if_stuck(means["loss"], program.dataset.train.labels, len(program.dataset.class_names), done)


def _warn_if_stuck(loss, labels, num_classes, step):
    counts = np.ones(num_classes) if labels is None else np.bincount(jax.device_get(labels))
    shares = counts[counts > 0] / counts.sum()
    guessing = -(shares * np.log(shares)).sum()
    if abs(loss / guessing - 1) < STUCK_SHARE:
        logger.warning(
            "After %d steps the training loss is still %.3f, and guessing by the classes' shares has %.3f (ln %d is %.3f): it "
            "may not be learning. Without batch norm, too small an initialization or a wrong rate does this; try a lower "
            "optimizer.learning_rate, the network with batch norm, or a train.warm_start from a shallower one.",
            *(step, loss, guessing, len(shares), math.log(len(shares))),
        )


def measure(program, journal, state, name):
    """Records loss and errors on the split of this name, or the gradients. Any other name of `cadence.intervals` does nothing."""
    if name == "gradients":
        journal.record(name, program.gradients(state.params, state.batch_stats)._asdict())
    elif split := program.dataset.splits.get(name.removesuffix("_clean")):
        tested = jax.device_get(program.evaluate(state.params, state.batch_stats, split))
        examples = program.found[name.removesuffix("_clean")]
        check_readable(name, examples - int(tested.examples), examples)
        journal.record(name, tested.means())


def check_readable(split, unread, examples):
    """Raises UserError, in all processes at once, where too many of the examples could not be read."""
    if unread > UNREADABLE_SHARE * examples:
        raise UserError(
            f"{unread} of {examples} examples of the split {split!r} could not be read; at most "
            f"{100 * UNREADABLE_SHARE:.0f} % may be left out."
        )


def _end(journal, step, options):
    if journal.status.state == "running":
        if step < options.steps:
            journal.advance(step, "stopped", f"by train.stop_after = {options.stop_after}, of {options.steps} steps")
        else:
            journal.advance(step, "finished")
    journal.write_status()
