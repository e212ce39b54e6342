"""Run by test_parallel in separate processes: some steps of a small network on however many devices there are."""

import sys

import jax
import numpy as np

from configs import digits
from plain56 import parallel
from plain56.training import prepare


def trained(dtype, steps, way="jit", sync=True):
    """After some steps: the state, its totals, and those of the test split."""
    config = digits.get_config("resnet8")
    config.model.dtype = dtype
    # In float32, a single device computes convolutions of these widths in C++. In float64 none does, and narrow ones are cheaper.
    config.model.widths = {"float32": (16, 16, 16), "float64": (4, 4, 8)}[dtype]
    config.parallelism, config.batch_norm.sync = way, sync
    config.train.batch_size = 32
    config.train.steps_per_call = steps
    config.optimizer.schedule.warmup_learning_rate = 0.03  # so that the first step also moves
    program = prepare(config)
    state, totals = program.train_steps(*program.initial, program.stream(0), 0, steps)
    return state, totals, program.evaluate(state.params, state.batch_stats, program.dataset.test)


def leaves(state, totals, tested):
    return [*jax.tree.leaves(state), totals.top1_errors, totals.examples, tested.top1_errors, tested.examples]


if __name__ == "__main__":
    # FILE WAYS [COORDINATOR PROCESSES PROCESS]; a way is "jit", "pmap", or one of them with ":apart" for statistics by device.
    file, ways, *several = sys.argv[1:]
    if several:
        parallel.join(several[0], *map(int, several[1:]))
    results = {}
    for chosen in ways.split(","):
        way, _, apart = chosen.partition(":")
        found = leaves(*trained("float32", 1, way=way, sync=not apart))
        with jax.enable_x64(True):
            found += leaves(*trained("float64", 20, way=way, sync=not apart))
        results |= {f"{chosen} {i}": np.asarray(result) for i, result in enumerate(found)}
    if parallel.is_first():
        np.savez(file, **results)
