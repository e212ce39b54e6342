"""The optimizer and its learning rate by step. The update made at step k (after k updates) uses `schedule(k)`."""

from functools import partial

import jax.numpy as jnp
import optax
from flax import traverse_util

from plain56.training.transfer import scale_by_layer


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


def make_optimizer(options, schedule, multiples=None):
    """SGD with momentum, v ← momentum · v + (gradient + weight_decay · w), w ← w − learning rate · v.

    Weight decay is L2 inside the gradient, before momentum. It acts on kernels, by name since stacked blocks give biases and
    scales a second axis; with `decay_all` it acts on every parameter, as in Caffe.

    Args:
        options: the config's `optimizer` section.
        multiples: of each layer's learning rate, as of `transfer.Plan`; None for one rate.
    """
    kernels = None if options.decay_all else partial(traverse_util.path_aware_map, lambda path, _: path[-1] == "kernel")
    return optax.chain(
        optax.add_decayed_weights(options.weight_decay, kernels),
        optax.sgd(schedule, momentum=options.momentum),
        *([scale_by_layer(multiples)] if multiples else []),
    )
