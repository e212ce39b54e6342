"""How long the runs of a sweep will take: a few steps of each network are timed before it is run."""

import contextlib
import time

import jax
import numpy as np

from plain56 import machine, runs
from plain56.data import Split
from plain56.errors import UserError
from plain56.training import cadence, prepare

# The keys that decide how fast a program is. Seeds, rates and durations do not, nor which examples a run has.
SECTIONS = ("model.", "batch_norm.", "data.", "transfer.")
OTHERS = ("train.batch_size", "train.accumulate", "train.steps_per_call", "optimizer.name", "parallelism")
WITHOUT_EFFECT = ("data.dir", "data.split_seed", "data.examples_per_class", "data.validation_examples")
SECONDS = 3.0  # of steps that are timed, at least one call
EVALUATED_BATCHES = 4  # of the test split


@machine.explaining_memory_errors()
def measure(left, on_progress=lambda name, share: None):
    """Times a few steps of each distinct network on this machine, in one process, and writes nothing.

    Args:
        left: `(config, step)` of each run, where `step` updates are done.
        on_progress: called with the network's name and the share, in [0, 1], of the networks that are timed.

    Returns:
        A row for each network: its name, the config keys that tell it from the others, the runs and steps that are left, the
        seconds of a step, and the hours of all of its runs. The hours count compiling, once for each run, and evaluation.
        They do not count saving or `train.gradients_every`.

    Raises UserError for a mistake in a config, or if a run is a linear probe.
    """
    programs = {}
    for config, step in left:
        if step >= cadence.last_step(config):
            continue
        if config.transfer.probe:
            raise UserError("--time measures steps of training, and a linear probe (transfer.probe) has none.")
        programs.setdefault(tuple(_program(config).items()), []).append((config, step))
    keys, rows = runs.differing_keys([dict(program) for program in programs]), []
    for number, (program, members) in enumerate(programs.items()):
        config = members[0][0]
        on_progress(config.model.name, number / len(programs))
        start, step_seconds, example_seconds, sizes = _seconds(config)
        steps = sum(cadence.last_step(config) - step for config, step in members)
        evaluated = sum(_examples_to_evaluate(config, step, sizes) for config, step in members)
        seconds = len(members) * start + steps * step_seconds + evaluated * example_seconds
        row = {"network": config.model.name, **{key: runs.cell(dict(program).get(key)) for key in keys}}
        row |= {"runs": len(members), "steps": steps, "seconds_per_step": step_seconds, "hours": seconds / 3600}
        rows.append(row)
    return rows


def _program(config):
    flat = runs.flatten(config.to_dict())
    kept = {key: value for key, value in flat.items() if key.startswith(SECTIONS) or key in OTHERS}
    return {key: value for key, value in kept.items() if key not in WITHOUT_EFFECT and value != {}}


def _examples_to_evaluate(config, step, sizes):
    """How many examples a run still passes through its network to measure errors. `sizes` is of the splits, by name."""
    last, options = cadence.last_step(config), config.train
    # At its last step a run measures everything.
    times = {name: last // every - step // every + (last % every > 0) for name, every in cadence.intervals(options).items()}
    return sum(count * sizes.get(name.removesuffix("_clean"), 0) for name, count in times.items())


def _seconds(config):
    """The seconds of the start of a run, of a step, and of an example that is evaluated; and the sizes of the splits by name."""
    with _without_cache():  # as in each run, whose seed and schedule are constants of its program
        begin = time.perf_counter()
        program = prepare(config)
        stream, last = program.stream(0), cadence.last_step(config)
        state, totals = program.train_steps(*program.initial, stream, 0, 1)
        test = program.dataset.test
        size = min(program.found["test"], EVALUATED_BATCHES * config.train.batch_size)
        few = Split(test.images[:size], test.labels[:size]) if isinstance(test, Split) else test.take(np.arange(size))
        jax.block_until_ready((totals, program.evaluate(state.params, state.batch_stats, few)))
        start = time.perf_counter() - begin
    begin = time.perf_counter()
    jax.block_until_ready(program.evaluate(state.params, state.batch_stats, few))
    evaluation = time.perf_counter() - begin
    step, steps, begin, spent = 1, 1, time.perf_counter(), start
    while step < last:
        steps = min(steps, last - step)
        state, totals = program.train_steps(state, totals, stream, step, steps)
        jax.block_until_ready(totals)
        step, spent = step + steps, time.perf_counter() - begin
        if spent > SECONDS:
            break
        # As many steps in a call as a run makes, which does other things between calls, too.
        steps = max(1, min(cadence.most_steps(config.train), int(SECONDS * (step - 1) / spent)))
    step_seconds = spent / max(1, step - 1)
    return max(0.0, start - step_seconds - evaluation), step_seconds, evaluation / size, program.found


@contextlib.contextmanager
def _without_cache():
    """Compiles anew what is compiled meanwhile."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
