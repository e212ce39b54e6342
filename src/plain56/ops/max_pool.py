"""Maximum over windows, with its gradient written out as a sum over shifted images.

On a CPU, XLA selects and scatters the gradient one value after another, which takes about ten times as long.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x, size, stride, padding):
    """Maximum over size×size windows of images [N, H, W, C]; `padding` is ((top, bottom), (left, right)) and never wins.

    If a maximum occurs twice, the gradient goes to the first, as in XLA and PyTorch.
    """
    return _pool(x, size, stride, padding)[0]


def _pool(x, size, stride, padding):
    def of_shifted(x):
        return functools.reduce(jnp.maximum, _shifted(x, size, stride, padding))

    def of_windows(x):
        window, strides = (1, size, size, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, ((0, 0), *padding, (0, 0)))

    y = lax.platform_dependent(x, cpu=of_shifted, default=of_windows)
    return y, (x, y)


def _shifted(x, size, stride, padding):
    """The first value of every window, the second, and so on, row by row: size² images like the result."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    ends = [(length - size) // stride * stride + 1 for length in x.shape[1:3]]
    for row in range(size):
        for column in range(size):
            yield x[:, row : row + ends[0] : stride, column : column + ends[1] : stride]


def _backward(size, stride, padding, saved, g):
    x, y = saved
    winner = jnp.full(y.shape, size * size, jnp.uint8)  # the index in its window of the first value that is the maximum
    for index, values in reversed(list(enumerate(_shifted(x, size, stride, padding)))):
        winner = jnp.where(values == y, jnp.uint8(index), winner)
    # Every window's gradient is put at the place of the window's last value. What a pixel gets from a window that it won as the
    # i-th value is then as far behind the pixel as the last value is behind the i-th.
    apart = [(0, 0, 0)]
    for (low, _), length, windows in zip(padding, x.shape[1:3], y.shape[1:3], strict=True):
        apart.append((size - 1 - low, length + low - 1 - (windows - 1) * stride, stride - 1))
    apart.append((0, 0, 0))
    g, winner = lax.pad(g, jnp.zeros((), g.dtype), apart), lax.pad(winner, jnp.uint8(size * size), apart)
    dx = jnp.zeros_like(x)
    for index in range(size * size):
        row, column = (size - 1 - offset for offset in divmod(index, size))
        here = (slice(None), slice(row, row + x.shape[1]), slice(column, column + x.shape[2]))
        dx += jnp.where(winner[here] == index, g[here], 0)
    return (dx,)


max_pool.defvjp(_pool, _backward)
