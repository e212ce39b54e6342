"""The layers of a network by name: their order, their stages, and stacked blocks one by one. Only this module takes stacks apart.

A stage's equal blocks share one set of leaves with a leading `block` axis, "stage2". A first block that differs from them is
"stage2_first". Unstacked, the blocks of a stage are "stage2.0", "stage2.1", …
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util


def is_stacked(path):
    """Whether the leaf at a path of a network's parameters has a leading `block` axis."""
    return bool(re.fullmatch(r"stage\d+", path[0]))


def first_is_alone(layers, stage):
    """Whether the first block of a stage, such as "stage2", differs from the others and is not stacked; `layers` are names."""
    return f"{stage}_first" in layers


def unstack(tree):
    """All leaves, with stacked blocks taken apart, by unstacked path: `{("stage2.0", "conv1", "kernel"): leaf}`.

    Args:
        tree: nested dicts, such as a network's parameters, of arrays or `jax.ShapeDtypeStruct`s.
    """
    flat = traverse_util.flatten_dict(tree)
    return {name: flat[path] if block is None else _part(flat[path], block) for name, path, block in _singles(flat)}


def stack(leaves, like):
    """The inverse of `unstack`: NumPy arrays, nested as in the tree `like`. Paths that `leaves` lacks are left out."""
    grouped = {}
    for name, path, _ in _singles(traverse_util.flatten_dict(like)):
        if name in leaves:
            grouped.setdefault(path, []).append(np.asarray(leaves[name]))
    return traverse_util.unflatten_dict({p: np.stack(parts) if is_stacked(p) else parts[0] for p, parts in grouped.items()})


def _singles(flat):
    """`(unstacked path, path, block)` of every leaf, and each block of a stacked one; `block` is None for the others."""
    layers = {path[0] for path in flat}
    for path, leaf in flat.items():
        layer, *rest = path
        if is_stacked(path):
            begin = first_is_alone(layers, layer)
            for block in range(leaf.shape[0]):
                yield (f"{layer}.{begin + block}", *rest), path, block
        else:
            yield (re.sub(r"(stage\d+)_first", r"\1.0", layer), *rest), path, None


def _part(leaf, block):
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf[block]


def in_order(model, values, image_shape):
    """Numbers by module, from the images to the classes: `{("stage1.0", "conv1"): 0.5}`.

    Args:
        values: arrays by path of modules: one number, or one for each block where blocks are stacked.
        image_shape: `(H, W, C)`.
    """
    order, _ = _traced(model, image_shape)
    rows = sorted((order[path[:1]], block or 0, order.get(path, 0), path, name) for name, path, block in _singles(values))
    return {name: np.ravel(values[path])[block].item() for _, block, _, path, name in rows}


def stages(model, image_shape):
    """The stage of every top-level layer: stages in order from the images to the classes, and within each its layers in order.

    A network declares its stages by a method `stage_of(layer)`. Without one, a layer's stage is its name up to the first
    underscore. A stage's position is that of its last layer: auxiliary heads count as part of the last stage.
    """
    stage_of = getattr(model, "stage_of", lambda layer: layer.partition("_")[0])
    order, variables = _traced(model, image_shape)
    layers = [path[0] for path in order if len(path) == 1 and path[0] in variables["params"]]
    others = [name for name in variables["params"] if name not in layers]  # parameters of the network itself
    found = {layer: stage_of(layer) for layer in (*others, *layers)}
    position = {stage: number for number, stage in enumerate(found.values())}  # position of its last layer
    return dict(sorted(found.items(), key=lambda item: position[item[1]]))


def _traced(model, image_shape):
    """The number of each module, by path, in the order of first calls; and the shapes of the variables."""
    order = {}

    def watch(call, arguments, named, context):
        order.setdefault(context.module.path, len(order))
        return call(*arguments, **named)

    with nn.intercept_methods(watch):
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        return order, jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=True), images)
