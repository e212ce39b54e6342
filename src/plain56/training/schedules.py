"""Learning rate by step. The update made at step k (after k updates) uses `schedule(k)`."""

import jax.numpy as jnp
import optax


def make_schedule(options, steps):
    """Builds `step -> learning rate` from the config's `optimizer` section.

    "step": the rate is multiplied by `factor` at each boundary and held at `warmup_learning_rate` during warm-up (He et al. 2015,
    section 4.2). "cosine": a linear rise from `warmup_learning_rate` during warm-up, then half a cosine to zero at `steps`.
    """
    schedule, peak, warmup_steps = options.schedule, options.learning_rate, options.schedule.warmup_steps
    if schedule.name == "cosine":
        return optax.warmup_cosine_decay_schedule(schedule.warmup_learning_rate, peak, warmup_steps, steps)
    decayed = optax.piecewise_constant_schedule(peak, dict.fromkeys(schedule.boundaries, schedule.factor))
    return lambda step: jnp.where(step < warmup_steps, schedule.warmup_learning_rate, decayed(step))
