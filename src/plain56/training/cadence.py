"""What a run does beside updates, and when: pure functions of the config and the step, which counts the updates done."""


def last_step(config):
    """The step at which a launch of the run ends."""
    return min(config.train.steps, config.train.stop_after or config.train.steps)


def intervals(options):
    """The interval in steps of everything that a run does beside updates, in the order in which it does it.

    `options` is the config's `train` section. What is never done is left out.
    """
    every = {
        "log": options.log_every,
        "train_clean": options.evaluate_train_every,
        "validation": options.evaluate_every,
        "test": options.evaluate_every,
        "gradients": options.gradients_every,
        "checkpoint": options.checkpoint_every,
    }
    return {name: interval for name, interval in every.items() if interval}


def due(options, step, last):
    """The names, as of `intervals`, of what a run does at a step; at its last one it does everything."""
    return [name for name, interval in intervals(options).items() if step == last or step % interval == 0]


def steps_to_next(options, step, last):
    """The number of updates from a step until something is due."""
    return min(last - step, *(interval - step % interval for interval in intervals(options).values()))


def most_steps(options):
    """The most updates of one compiled call, which ends when something is due."""
    return min(options.steps_per_call, options.steps, *intervals(options).values())
