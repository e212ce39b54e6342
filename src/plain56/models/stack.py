"""The layers of a network by name: in what order they come, which blocks lie stacked, and the stage that a layer belongs to."""

import re

import jax
import jax.numpy as jnp
from flax import linen as nn


def is_stacked(path):
    """Whether what has this path in the parameters belongs to blocks of equal shape, which share a leading axis."""
    return bool(re.fullmatch(r"stage\d", path[0]))


def call_order(model, image_shape):
    """The number of each module, by path, in the order of first calls.

    Args:
        image_shape: `(H, W, C)`.
    """
    return _traced(model, image_shape)[0]


def stages(model, image_shape):
    """The stage of every top-level layer: stages in order from the images to the classes, and in each the layers in theirs.

    A network declares its stages by a method `stage_of(layer)`. In one that does not, a layer's stage is its name up to the first
    underscore. A stage comes where its last layer does: auxiliary heads, which stand in the middle, belong to the last one.
    """
    stage_of = getattr(model, "stage_of", lambda layer: layer.partition("_")[0])
    order, variables = _traced(model, image_shape)
    found = {path[0]: stage_of(path[0]) for path in order if len(path) == 1 and path[0] in variables["params"]}
    place = {stage: number for number, stage in enumerate(found.values())}  # of its last layer
    return dict(sorted(found.items(), key=lambda item: place[item[1]]))


def _traced(model, image_shape):
    """The order of calls, and the shapes of the variables."""
    order = {}

    def watch(call, arguments, named, context):
        order.setdefault(context.module.path, len(order))
        return call(*arguments, **named)

    with nn.intercept_methods(watch):
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        return order, jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=True), images)
