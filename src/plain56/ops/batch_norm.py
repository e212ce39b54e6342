"""Batch normalisation by the moments of the batch, with its gradient written out.

With M = N·H·W values of a channel, x̂ = (x − mean) / √(var + epsilon) and the output's gradient g:

    y  = scale · x̂ + bias
    dx = scale / √(var + epsilon) · (g − Σg / M − x̂ · Σ(g·x̂) / M),  dscale = Σ(g·x̂),  dbias = Σg

(Ioffe & Szegedy 2015, section 3). Automatic differentiation finds the same, in more passes over the images. Where the images are
shared out among devices that compute each for itself, the sums in y and dx are over all of them, and dscale and dbias, like every
gradient there, are a device's own.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from plain56.ops import native


def _sums(a, b):
    """Σ a and Σ a·b over all images and positions of [N, H, W, C]: two [C]."""
    return lax.platform_dependent(a, b, cpu=_cpu_sums, default=_reductions)


def _reductions(a, b):
    return jnp.sum(a, (0, 1, 2)), jnp.sum(a * b, (0, 1, 2))


def _cpu_sums(a, b):
    channels = a.shape[-1]
    if native.takes(a, channels):
        return tuple(native.call(native.CHANNEL_SUMS, a, b, (2, channels)))
    # Each image first, kept apart by the barrier: jaxlib 0.10.1 adds one number after the other, and of 100,000 loses a digit.
    each = lax.optimization_barrier((jnp.sum(a, (1, 2)), jnp.sum(a * b, (1, 2))))
    return tuple(jnp.sum(sums, 0) for sums in each)


def affine(x, mean, factor, bias):
    """`(x − mean) · factor + bias` for images [N, H, W, C] and vectors [C]."""
    mean, factor, bias = (vector[None, None, None] for vector in (mean, factor, bias))
    return (x - mean) * factor + bias


def _mean_sums(sums, x, axis_name):
    """Sums over images and positions of x as means, over the images of all devices where an axis of them is named."""
    means = [total / (x.size // x.shape[-1]) for total in sums]
    return lax.pmean(means, axis_name) if axis_name else means


def _moments(x, axis_name):
    """Mean and biased variance [C] of images [N, H, W, C], in float32, or float64 where they are that."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, mean_square = _mean_sums(_sums(x, x), x, axis_name)
    return mean, jnp.maximum(mean_square - mean * mean, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(x, scale, bias, epsilon, axis_name=None):
    """Normalises images [N, H, W, C] by their own moments, or by those of the images on all devices along `axis_name`.

    Returns:
        The normalised images in the dtype of `x`, and their mean and biased variance [C], through which no gradient flows.
    """
    return _normalise(x, scale, bias, epsilon, axis_name)[0]


def _normalise(x, scale, bias, epsilon, axis_name):
    mean, variance = _moments(x, axis_name)
    inverse = lax.rsqrt(variance + epsilon)
    factor = inverse * scale
    y = affine(x.astype(mean.dtype), mean, factor, bias)
    return (y.astype(x.dtype), mean, variance), (x, mean, inverse, scale)


def _backward(epsilon, axis_name, saved, gradients):
    x, mean, inverse, scale = saved
    dtype = x.dtype
    x, g = x.astype(mean.dtype), gradients[0].astype(mean.dtype)
    sums = dbias, products = _sums(g, x)
    dscale = (products - mean * dbias) * inverse
    mean_gradient, mean_product = _mean_sums(sums, x, axis_name)
    factor = scale * inverse
    slope = -factor * inverse**2 * (mean_product - mean * mean_gradient)
    dx = affine(g, mean_gradient, factor, jnp.zeros_like(mean)) + affine(x, mean, slope, jnp.zeros_like(mean))
    return dx.astype(dtype), dscale, dbias


batch_norm.defvjp(_normalise, _backward)
