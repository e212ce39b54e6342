"""What training carries from step to step, and the optimizer that changes it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util

from plain56.training.transfer import scale_by_layer, split


class TrainState(struct.PyTreeNode):
    """Parameters, batch statistics ({} without batch norm) and optimizer state after `step` updates (int32)."""

    step: jax.Array
    params: Any
    batch_stats: Any
    optimizer_state: Any


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


def create_train_state(model, optimizer, seed, image_shape, is_trained=None):
    """Initial state, a pure function of the seed.

    Args:
        image_shape: `(H, W, C)`.
        is_trained: of `transfer.Plan`; the optimizer has no state for the other parameters.
    """
    variables = model.init(jax.random.key(seed), jnp.zeros((1, *image_shape)))
    params = variables["params"]
    trained = params if is_trained is None else traverse_util.unflatten_dict(split(params, is_trained)[0])
    return TrainState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(trained))
