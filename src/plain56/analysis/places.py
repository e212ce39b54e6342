"""The places of a network by name, in order from the images to the classes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def is_stacked(path):
    """Whether what has this path in the parameters belongs to blocks of equal shape, which share a leading axis."""
    return bool(re.fullmatch(r"stage\d", path[0]))


def in_order(model, values, image_shape):
    """Values by place, from the images to the classes: `{("stage1.0", "conv1"): value}`; blocks are counted from 0 in each stage.

    Args:
        values: by path of modules, such as `("stage1", "conv1")`: one, or one for each block where blocks are stacked.
        image_shape: `(H, W, C)`.
    """
    order, rows = _call_order(model, image_shape), []
    for (first, *rest), value in values.items():
        # The block that changes the shape stands by itself, before the stacked ones.
        stage = first.removesuffix("_first")
        begin = int(is_stacked((first,)) and any(path[0] == f"{stage}_first" for path in values))
        for number, one in enumerate(np.atleast_1d(value), start=begin):
            name = f"{stage}.{number}" if is_stacked((stage,)) else first
            rows.append(((order[first,], number, order.get((first, *rest), 0)), (name, *rest), float(one)))
    return {name: value for _, name, value in sorted(rows, key=lambda row: row[0])}


def _call_order(model, image_shape):
    """The number of each module, by path, in the order of first calls."""
    order = {}

    def watch(call, arguments, named, context):
        order.setdefault(context.module.path, len(order))
        return call(*arguments, **named)

    with nn.intercept_methods(watch):
        jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=True), jnp.zeros((1, *image_shape)))
    return order
