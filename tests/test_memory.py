"""Long runs take no more memory than short ones; `make soak` prints the numbers of docs/reliability.md."""

import copy
import gc
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from configs import digits
from plain56 import sweeps, training


def tiny(steps):
    config = digits.get_config("resnet8")
    config.model.widths = (4, 4, 8)
    config.train.batch_size, config.train.steps, config.train.steps_per_call = 32, steps, 10
    config.train.log_every, config.train.evaluate_every, config.train.checkpoint_every = 10, 20, 50
    config.optimizer.schedule.warmup_steps = 2
    return config


def megabytes():
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def while_training(folder, steps=2200):
    """MiB of this process after 200 steps and after the last one; records, tests and checkpoints included."""
    seen = {}

    def watch(now):
        step = round(now.share * steps) // 10 * 10
        if step in (200, steps) and step not in seen:  # seldom, since every look collects garbage
            seen[step] = megabytes()

    training.train(tiny(steps), folder / "run", watch)
    return seen[200], seen[steps]


def while_sweeping(folder, count=50):
    """MiB of this process after the 10th, the 30th and the last run of a sweep; each has 4 steps and is compiled for its seed."""
    elements = []
    for seed in range(count):
        config = copy.deepcopy(tiny(4))
        config.seed = seed
        elements.append(sweeps.Element(f"run{seed}", {"model.name": "resnet8", "seed": seed}, config))
    seen = {}
    sweeps.run_sweep(elements, folder / "sweep", lambda now: seen.update(dict.fromkeys(now.training, megabytes())))
    return seen["run9"], seen["run29"], seen[f"run{count - 1}"]


@pytest.mark.slow
def test_two_thousand_steps_take_no_more_memory(tmp_path):
    early, late = while_training(tmp_path)
    assert late < early + 20  # MiB


def soak():
    """Whether memory stays bounded; prints how much was used."""
    with tempfile.TemporaryDirectory() as folder:
        early, late = while_training(Path(folder))
        print(f"MiB after 200 and 2,200 steps: {early:.0f}, {late:.0f}", flush=True)
        tenth, thirtieth, last = while_sweeping(Path(folder))
        print(f"MiB after 10, 30 and 50 runs: {tenth:.0f}, {thirtieth:.0f}, {last:.0f}", flush=True)
    return late < early + 20 and last < thirtieth + 50  # the first runs fill caches, which have a limit


if __name__ == "__main__":
    sys.exit(not soak())
