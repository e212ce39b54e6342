"""The loss around a trained network, along random directions whose filters are as long as the network's own.

Li, Xu, Taylor, Studer, Goldstein 2018, "Visualizing the loss landscape of neural nets", section 4: without that normalization a
network with larger weights would look flatter, although batch norm makes their size meaningless.
"""

import jax
import jax.numpy as jnp
from flax import traverse_util


def random_direction(params, key):
    """A random direction in the space of the parameters: normal, and each filter as long as the one in `params`.

    A filter is what makes one output of a convolution or dense layer. Biases and batch norm's parameters stay as they are.
    """
    keys = iter(jax.random.split(key, len(jax.tree.leaves(params))))

    def drawn(path, leaf):
        own = next(keys)
        if path[-1] != "kernel":
            return jnp.zeros_like(leaf)
        direction = jax.random.normal(own, leaf.shape, leaf.dtype)
        # [block,] height, width, in, out of convolutions; in, out of dense layers.
        axes = (-4, -3, -2) if leaf.ndim >= 4 else (-2,)
        length, drawn_length = (jnp.sqrt(jnp.sum(values**2, axes, keepdims=True)) for values in (leaf, direction))
        return direction * length / drawn_length

    return traverse_util.path_aware_map(drawn, params)


def losses_around(loss, params, directions, places, at_a_time=1):
    """`loss` at places around `params`, in one compiled computation.

    Args:
        loss: of parameters; may return a tree.
        directions: a list of trees like `params`.
        places: [P, len(directions)], the coordinates along the directions.
        at_a_time: the number of places that are computed together.
    """

    def at(place):
        moved = params
        for coordinate, direction in zip(place, directions, strict=True):
            moved = jax.tree.map(lambda a, b, c=coordinate: a + c * b, moved, direction)
        return loss(moved)

    return jax.lax.map(at, jnp.asarray(places), batch_size=at_a_time)
