"""How the gradient flows back through a network: its norm at every block's output and for every kernel.

A residual block's output is relu(x + branch(x)), so the gradient at its input x has two parts, which are measured apart: what
came through the shortcut, where the addition passes it on as it is, and what came through the branch (He et al. 2016, "Identity
mappings in deep residual networks", equation 5). In plain networks all of it comes through the branch.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util


class Flow(NamedTuple):
    """Norms of the gradient of a batch's loss, by place, from the images to the classes.

    `outputs` are those at the outputs of the stem and of every block ("stem", "stage1.0", …): of all images' values together.
    `kernels` are those of the kernels ("stage1.0.conv1"). Of residual blocks, `shortcuts` and `branches` are those of the two
    parts of the gradient at the block's input, and `shortcut_shares` say how much of that gradient came through the shortcut:
    the shortcut's part projected onto the whole, as a multiple of it; the branch's share is one minus this. With
    pre-activation, a block that activates its input for both has the two parts of the gradient behind that activation.
    """

    outputs: dict[str, float]
    kernels: dict[str, float]
    shortcuts: dict[str, float]
    branches: dict[str, float]
    shortcut_shares: dict[str, float]


def zero_taps(model, variables, images):
    """The collection "taps" of a network: zeros of the shape of each place where the gradient can be measured."""

    def forward(variables, images):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, images, train=True, mutable=["taps", "batch_stats"], rngs=rngs)[1]["taps"]

    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(forward, variables, images))


def gradients(model, variables, images, loss, key=None):
    """Gradients of `loss(output)` in training mode: of the parameters, and of the "taps", those at the places themselves.

    Args:
        variables: {"params": …, "batch_stats": …}.
        images: normalised, [N, H, W, C].
        key: of dropout; None for one that is always the same.
    """
    fixed = {name: collection for name, collection in variables.items() if name != "params"}
    rngs = {"dropout": jax.random.key(0) if key is None else key}

    def of(params, taps):
        output, _ = model.apply({"params": params, "taps": taps, **fixed}, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return loss(output)

    return jax.grad(of, argnums=(0, 1))(variables["params"], zero_taps(model, variables, images))


def measure(model, variables, images, loss, key=None):
    """What `flow` needs, as arrays; arguments as of `gradients`. Blocks of equal shape are together, on a leading axis."""
    params, taps = gradients(model, variables, images, loss, key)

    def norms(tree):
        return {path: _per_block(path, jnp.square(leaf)) ** 0.5 for path, leaf in traverse_util.flatten_dict(tree).items()}

    kernels = {path: norm for path, norm in norms(params).items() if path[-1] == "kernel"}
    flat = traverse_util.flatten_dict(taps)
    products = {}
    for path, shortcut in flat.items():
        *block, place, _ = path
        if place == "shortcut":
            branch = flat[(*block, "branch", "added")]
            whole = shortcut + branch
            products[(*block, "share", "added")] = _per_block(path, shortcut * whole) / _per_block(path, whole * whole)
    return traverse_util.unflatten_dict(norms(taps) | products | kernels)


def _per_block(path, values):
    """The sum over all values, or over those of each block where blocks are stacked."""
    return jnp.sum(values, axis=tuple(range(int(_is_stacked(path)), values.ndim)))


def _is_stacked(path):
    return bool(re.fullmatch(r"stage\d", path[0]))


def flow(model, measured, image_shape):
    """The `Flow` of what `measure` gave.

    Args:
        image_shape: `(H, W, C)`.
    """
    order = _order(model, image_shape)
    rows = []
    for (*modules, place), values in traverse_util.flatten_dict(jax.device_get(measured)).items():
        # The block that changes the shape stands by itself, before the stacked ones.
        stage = modules[0].removesuffix("_first")
        begins = _is_stacked(modules) and f"{stage}_first" in measured
        for number, value in enumerate(np.atleast_1d(values), start=begins):
            name = [f"{stage}.{number}" if stage.startswith("stage") else modules[0], *modules[1:]]
            rows.append(((order[tuple(modules[:1])], number, order.get(tuple(modules), 0)), name, place, float(value)))
    found = {"output": {}, "kernel": {}, "shortcut": {}, "branch": {}, "share": {}}
    for _, name, place, value in sorted(rows, key=lambda row: row[0]):
        kind = place if place == "kernel" else name[-1] if name[-1] in found else "output"
        where = name[:-1] if kind != "kernel" and name[-1] in found else name
        found[kind][".".join(where)] = value
    branches = {name: norm for name, norm in found["branch"].items() if name in found["shortcut"]}
    return Flow(found["output"], found["kernel"], found["shortcut"], branches, found["share"])


def _order(model, image_shape):
    """The number of each module, in the order in which they are called first."""
    order = {}

    def watch(call, arguments, named, context):
        order.setdefault(context.module.path, len(order))
        return call(*arguments, **named)

    def forward(images):
        return model.init(jax.random.key(0), images, train=True)

    with nn.intercept_methods(watch):
        jax.eval_shape(forward, jnp.zeros((1, *image_shape)))
    return order


def growth_per_block(norms):
    """By which factor the gradient's norm grows with each block on its way back, from a line fitted to its logarithm.

    Args:
        norms: by block, from the images to the classes, such as `Flow.outputs`.
    """
    values = np.log(list(norms.values()))
    return float(np.exp(-np.polyfit(np.arange(len(values)), values, 1)[0]))
