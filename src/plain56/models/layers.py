"""Layers that the networks share."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from plain56 import ops

# He et al. 2015 ("Delving deep into rectifiers"), equation 10: variance 2 / fan-in, not truncated.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Output(NamedTuple):
    """What every network returns: logits [N, classes] in float32, and those of the auxiliary heads (GoogLeNet in training)."""

    logits: jax.Array
    auxiliary_logits: tuple[jax.Array, ...] = ()


class Numerics(NamedTuple):
    """How a network computes: `dtype` of activations, and the batch norm's constants.

    The running statistics follow Flax: `new = momentum · old + (1 − momentum) · batch` (PyTorch's momentum is one minus this).
    Parameters and statistics are kept in float32, or in float64 where `dtype` is that.
    """

    dtype: Any = jnp.float32
    momentum: float = 0.9
    epsilon: float = 1e-5

    @property
    def parameter_dtype(self):
        return jnp.promote_types(self.dtype, jnp.float32)


def _convolve(x, w, strides, padding, *, lhs_dilation, rhs_dilation, feature_group_count, **unused):
    assert feature_group_count == 1 and {*lhs_dilation, *rhs_dilation} == {1}
    return ops.convolve(x, w, strides, padding)


def convolution(numerics, filters, size, strides=1, name=None):
    """A size×size convolution without bias (batch norm follows), zero-padded by size // 2 on every side as in Caffe and PyTorch.

    Flax's "SAME" would pad a strided kernel on one side only and shift the image.
    """
    return nn.Conv(
        filters,
        (size, size),
        strides=(strides, strides),
        padding=((size // 2, size // 2),) * 2,
        use_bias=False,
        kernel_init=he_normal,
        dtype=numerics.dtype,
        param_dtype=numerics.parameter_dtype,
        conv_general_dilated=_convolve,
        name=name,
    )


def batch_norm(numerics, train, name=None):
    """Batch normalisation over all images of the (global) batch and all positions."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=numerics.momentum,
        epsilon=numerics.epsilon,
        dtype=numerics.dtype,
        param_dtype=numerics.parameter_dtype,
        name=name,
    )


def scan_blocks(block, length, **fields):
    """`length` equal blocks under one `nn.scan`: one body is compiled, parameters and statistics get a leading `block` axis."""
    return nn.scan(
        block,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=length,
    )(**fields)


dense = functools.partial(nn.Dense, kernel_init=he_normal)
