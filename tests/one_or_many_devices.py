"""Run by test_parallel in a process of its own: some steps of a small network on however many devices there are."""

import sys

import jax
import numpy as np

from configs import digits
from plain56.training import prepare


def trained(dtype, steps, seed=0, seeds=1):
    """The state, its totals and those of the test split after some steps."""
    config = digits.get_config("resnet8")
    config.seed, config.train.seeds = seed, seeds
    config.model.dtype = dtype
    config.train.batch_size = 32
    config.train.steps_per_call = steps
    config.optimizer.schedule.warmup_learning_rate = 0.03  # the first step moves, too
    experiment = prepare(config)
    state, totals = experiment.initial
    state, totals = experiment.train_steps(state, totals, experiment.train, 0, 0, 0, steps)
    return state, totals, experiment.evaluate(state.params, state.batch_stats, experiment.test)


def leaves(state, totals, tested):
    return [*jax.tree.leaves(state), totals.top1_errors, totals.examples, tested.top1_errors, tested.examples]


if __name__ == "__main__":
    results = leaves(*trained("float32", 1))
    with jax.enable_x64(True):
        results += leaves(*trained("float64", 20))
    np.savez(sys.argv[1], *[np.asarray(result) for result in results])
