"""What training carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct, traverse_util

from plain56.training.transfer import split


class TrainState(struct.PyTreeNode):
    """Parameters, batch statistics ({} without batch norm) and optimizer state after `step` updates (int32)."""

    step: jax.Array
    params: Any
    batch_stats: Any
    optimizer_state: Any


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
