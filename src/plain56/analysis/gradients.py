"""How the gradient flows back through a network: its norm at every block's output and for every kernel.

A residual block's output is relu(x + branch(x)), so the gradient at its input x has two parts, which are measured apart: what
came through the shortcut, where the addition passes it on as it is, and what came through the branch (He et al. 2016, "Identity
mappings in deep residual networks", equation 5). In plain networks all of it comes through the branch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from plain56.models.stack import in_order, is_stacked


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


def _streams():
    return dict.fromkeys(("dropout", "survival"), jax.random.key(0))


def zero_taps(model, variables, images):
    """The collection "taps" of a network: zeros of the shape of each `layers.Tap`'s input; {} if it has none."""

    def forward(variables, images):
        return model.apply(variables, images, train=True, mutable=["taps", "batch_stats"], rngs=_streams())[1].get("taps", {})

    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(forward, variables, images))


def gradients(model, variables, images, loss):
    """Gradients of `loss(output)` in training mode: of the parameters, and of the "taps", those at the places themselves.

    Dropout and stochastic depth are always the same.

    Args:
        variables: {"params": …, "batch_stats": …}.
        images: normalized, [N, H, W, C].
    """
    fixed = {name: collection for name, collection in variables.items() if name != "params"}

    def of(params, taps):
        moved = {"params": params, "taps": taps, **fixed}
        output, _ = model.apply(moved, images, train=True, mutable=["batch_stats"], rngs=_streams())
        return loss(output)

    return jax.grad(of, argnums=(0, 1))(variables["params"], zero_taps(model, variables, images))


def measure(model, variables, images, loss):
    """What `flow` needs, as arrays by path; arguments as of `gradients`."""
    params, taps = gradients(model, variables, images, loss)
    kernels = {path[:-1]: leaf for path, leaf in traverse_util.flatten_dict(params).items() if path[-1] == "kernel"}
    dtype = model.numerics.parameter_dtype  # sums of bfloat16 would lose what they add
    places = {path[:-1]: leaf.astype(dtype) for path, leaf in traverse_util.flatten_dict(taps).items()}
    shares = {}
    for path, shortcut in places.items():
        *block, place = path
        if place == "shortcut":
            whole = shortcut + places[*block, "branch"]
            scale = _largest(path, whole)
            shortcut, whole = shortcut / scale, whole / scale
            shares[*block, "share"] = _per_block(path, shortcut * whole) / _per_block(path, whole * whole)

    norms = {path: _norms(path, leaf) for path, leaf in places.items()} | shares
    return {"kernels": {path: _norms(path, leaf) for path, leaf in kernels.items()}, "places": norms}


def _norms(path, values):
    """The norm of all values, or of those of each block where blocks are stacked."""
    scale = _largest(path, values)
    return jnp.ravel(scale) * jnp.ravel(_per_block(path, (values / scale) ** 2)) ** 0.5


def _largest(path, values):
    """The largest absolute value, of all or of each block; 1 where all are zero.

    In deep plain networks gradients pass 1e-19 and 1e19, whose squares float32 does not have: they are divided by this first.
    """
    largest = jnp.max(jnp.abs(values), axis=_own_axes(path, values), keepdims=True)
    return jnp.where(largest == 0, 1, largest)


def _per_block(path, values):
    """The sum over all values, or over those of each block where blocks are stacked."""
    return jnp.sum(values, axis=_own_axes(path, values))


def _own_axes(path, values):
    return tuple(range(int(is_stacked(path)), values.ndim))


def flow(model, measured, image_shape):
    """The `Flow` of what `measure` gave, for images of `image_shape` `(H, W, C)`."""
    measured = jax.device_get(measured)
    kernels = {".".join(name): norm for name, norm in in_order(model, measured["kernels"], image_shape).items()}
    found = {"output": {}, "shortcut": {}, "branch": {}, "share": {}}
    for name, value in in_order(model, measured["places"], image_shape).items():
        *block, place = name if name[-1] in found else (*name, "output")
        found[place][".".join(block)] = value
    branches = {block: norm for block, norm in found["branch"].items() if block in found["shortcut"]}
    return Flow(found["output"], kernels, found["shortcut"], branches, found["share"])
