"""What is due at a step, and when the next thing is."""

import pytest

from configs import base
from plain56.training import cadence


def options(**every):
    config = base.get_config()
    for key, value in every.items():
        config.train[key] = value
    return config.train


def test_what_is_due():
    train = options(steps=50, log_every=4, evaluate_every=6, evaluate_train_every=12, gradients_every=10, checkpoint_every=8)
    done = {step: cadence.due(train, step, last=50) for step in range(1, 51)}
    for step, names in done.items():
        for name, interval in cadence.intervals(train).items():
            assert (name in names) == (step % interval == 0 or step == 50)
    # In the order in which a run does them: a checkpoint comes after all records of its step.
    assert done[50] == ["log", "train_clean", "validation", "test", "gradients", "checkpoint"]
    assert done[24] == ["log", "train_clean", "validation", "test", "checkpoint"] and done[25] == []


def test_what_is_never_done_is_not_due_at_the_end():
    train = options(evaluate_train_every=0, gradients_every=0)
    assert cadence.due(train, 64_000, last=64_000) == ["log", "validation", "test", "checkpoint"]


@pytest.mark.parametrize(("log_every", "evaluate_every", "last"), [(4, 6, 50), (7, 3, 20), (100, 100, 13)])
def test_calls_end_where_something_is_due(log_every, evaluate_every, last):
    train = options(steps=last, log_every=log_every, evaluate_every=evaluate_every, checkpoint_every=9, steps_per_call=1_000)
    step, ends = 0, []
    while step < last:
        step += cadence.steps_to_next(train, step, last)
        ends.append(step)
    assert ends == [step for step in range(1, last + 1) if cadence.due(train, step, last)]
    assert max(b - a for a, b in zip([0, *ends], ends, strict=False)) <= cadence.most_steps(train)


def test_a_launch_ends_early_where_it_is_told_to():
    config = base.get_config()
    assert cadence.last_step(config) == 64_000
    for stop_after, last in ((10, 10), (10**6, 64_000)):
        config.train.stop_after = stop_after
        assert cadence.last_step(config) == last
