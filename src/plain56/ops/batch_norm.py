"""Batch normalisation by the moments of the batch, with its gradient written out.

With M = N·H·W values of a channel, x̂ = (x − mean) / √(var + epsilon) and the output's gradient g:

    y  = scale · x̂ + bias
    dx = scale / √(var + epsilon) · (g − Σg / M − x̂ · Σ(g·x̂) / M),  dscale = Σ(g·x̂),  dbias = Σg

(Ioffe & Szegedy 2015, section 3). Automatic differentiation finds the same, in more passes over the images.
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
    return _reductions(a, b)


def affine(x, mean, factor, bias):
    """`(x − mean) · factor + bias` for images [N, H, W, C] and vectors [C]."""
    mean, factor, bias = (vector[None, None, None] for vector in (mean, factor, bias))
    return (x - mean) * factor + bias


def _moments(x):
    """Mean and biased variance [C] of images [N, H, W, C], in float32, or float64 where they are that."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    count = x.size // x.shape[-1]
    mean, mean_square = (total / count for total in _sums(x, x))
    return mean, jnp.maximum(mean_square - mean * mean, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(x, scale, bias, epsilon):
    """Normalises images [N, H, W, C] by their own moments.

    Returns:
        The normalised images in the dtype of `x`, and their mean and biased variance [C], through which no gradient flows.
    """
    return _normalise(x, scale, bias, epsilon)[0]


def _normalise(x, scale, bias, epsilon):
    mean, variance = _moments(x)
    inverse = lax.rsqrt(variance + epsilon)
    factor = inverse * scale
    y = affine(x.astype(mean.dtype), mean, factor, bias)
    return (y.astype(x.dtype), mean, variance), (x, mean, inverse, scale)


def _backward(epsilon, saved, gradients):
    x, mean, inverse, scale = saved
    dtype, count = x.dtype, x.size // x.shape[-1]
    x, g = x.astype(mean.dtype), gradients[0].astype(mean.dtype)
    dbias, products = _sums(g, x)
    dscale = (products - mean * dbias) * inverse
    factor = scale * inverse
    slope = -factor * inverse * dscale / count
    dx = affine(g, dbias / count, factor, jnp.zeros_like(mean)) + affine(x, mean, slope, jnp.zeros_like(mean))
    return dx.astype(dtype), dscale, dbias


batch_norm.defvjp(_normalise, _backward)
