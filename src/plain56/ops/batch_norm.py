"""Batch normalization by the moments of the batch, with its gradient written out.

With M = N·H·W values of a channel, x̂ = (x − mean) / √(var + epsilon) and the output's gradient g:

    y  = scale · x̂ + bias
    dx = scale / √(var + epsilon) · (g − Σg / M − x̂ · Σ(g·x̂) / M),  dscale = Σ(g·x̂),  dbias = Σg

(Ioffe & Szegedy 2015, section 3). Automatic differentiation finds the same, in more passes over the images. If the images are
divided among devices that compute each for itself, the sums in y and dx are over all devices, while dscale and dbias, like every
gradient there, are the device's own. A ReLU that follows is part of it: where y is not positive, g is taken for zero, so that
neither y nor where it is positive has to be kept.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from plain56.ops import native
from plain56.ops.saved import from_bits, to_bits


def _wide(x):
    """In float32, or in float64 where it is that."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _sums(a, b):
    """Σ a and Σ a·b over all images and positions of [N, H, W, C], in float32 or float64: two [C]."""
    return lax.platform_dependent(a, b, cpu=_cpu_sums, default=_xla_sums)


def _xla_sums(a, b):
    a, b = _wide(a), _wide(b)
    return jnp.sum(a, (0, 1, 2)), jnp.sum(a * b, (0, 1, 2))


def _cpu_sums(a, b):
    channels = a.shape[-1]
    if native.takes(a, channels):
        return tuple(native.call(native.CHANNEL_SUMS, (a, b), (2, channels)))
    a, b = _wide(a), _wide(b)
    # Each image first, kept apart by the barrier: jaxlib 0.10.1 adds number after number, and loses a digit with 100,000 of them.
    each = lax.optimization_barrier((jnp.sum(a, (1, 2)), jnp.sum(a * b, (1, 2))))
    return tuple(jnp.sum(sums, 0) for sums in each)


def affine(x, mean, factor, bias):
    """`(x − mean) · factor + bias` for images [N, H, W, C] and vectors [C]."""
    mean, factor, bias = (vector[None, None, None] for vector in (mean, factor, bias))
    return (x - mean) * factor + bias


def _mean_sums(sums, x, axis_name):
    """Turns sums over images and positions of x into means, over the images of all devices along `axis_name` if it is given."""
    means = [total / (x.size // x.shape[-1]) for total in sums]
    return lax.pmean(means, axis_name) if axis_name else means


def _passed_sums(g, x, mean, factor, bias):
    """As `_sums` of g and x, over those values that a ReLU after `affine` lets pass."""

    def on_cpu(g, x, mean, factor, bias):
        if native.takes(g, g.shape[-1]):
            vectors = jnp.stack([mean, factor, bias])[None, None]
            return tuple(native.call(native.PASSED_CHANNEL_SUMS, (g, x, vectors), (2, g.shape[-1])))
        return _cpu_sums(_passed(g, x, mean, factor, bias), x)

    def elsewhere(g, x, mean, factor, bias):
        return _xla_sums(_passed(g, x, mean, factor, bias), x)

    return lax.platform_dependent(g, x, mean, factor, bias, cpu=on_cpu, default=elsewhere)


def _passed(g, x, mean, factor, bias):
    """The gradient g where a ReLU after `affine` lets it pass, and zero elsewhere."""
    return jnp.where(affine(_wide(x), mean, factor, bias) > 0, g, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm(x, scale, bias, epsilon, axis_name=None, relu=False):
    """Normalizes images [N, H, W, C] by their own moments, or by those of the images on all devices along `axis_name`.

    Returns:
        The normalized images in the dtype of `x`, with `relu` no less than zero, and the mean and biased variance [C] of `x`,
        through which no gradient flows, in float32, or in float64 for such images.
    """
    return _normalize(x, scale, bias, epsilon, axis_name, relu)[0]


def _normalize(x, scale, bias, epsilon, axis_name, relu):
    mean, mean_square = _mean_sums(_sums(x, x), x, axis_name)
    variance = jnp.maximum(mean_square - mean * mean, 0)
    inverse = lax.rsqrt(variance + epsilon)
    y = affine(_wide(x), mean, inverse * scale, bias)
    y = jnp.maximum(y, 0) if relu else y
    return (y.astype(x.dtype), mean, variance), (to_bits(x), mean, inverse, scale, bias)


def _backward(epsilon, axis_name, relu, saved, gradients):
    bits, mean, inverse, scale, bias = saved
    x, g, factor = from_bits(bits), gradients[0], scale * inverse
    sums = dbias, products = _passed_sums(g, x, mean, factor, bias) if relu else _sums(g, x)
    dscale = (products - mean * dbias) * inverse
    mean_gradient, mean_product = _mean_sums(sums, x, axis_name)
    slope = -factor * inverse**2 * (mean_product - mean * mean_gradient)
    g = _passed(g, x, mean, factor, bias) if relu else g
    dx = affine(_wide(g), mean_gradient, factor, jnp.zeros_like(mean)) + affine(_wide(x), mean, slope, jnp.zeros_like(mean))
    return dx.astype(x.dtype), dscale, dbias


batch_norm.defvjp(_normalize, _backward)
