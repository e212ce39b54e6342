"""Layers that the networks share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from plain56 import ops
from plain56.errors import UserError

# For the last layer of VGG and GoogLeNet (Simonyan & Zisserman 2014, section 3.1, have it in all layers): the first loss is then
# near ln(classes). Without batch norm, the gradients of a larger loss end the training before it begins.
small_normal = nn.initializers.normal(0.01)
GPU_UNROLL = 8  # blocks; as many as the stages of ResNet-56 have after their first


class Output(NamedTuple):
    """What every network returns: logits [N, classes] in float32, and those of the auxiliary heads (GoogLeNet in training)."""

    logits: jax.Array
    auxiliary_logits: tuple[jax.Array, ...] = ()


class Variant(NamedTuple):
    """What a network's name stands for: its family, its depth, and fields of its module.

    A user's option may replace one of the `defaults`, and never one of the `fixed` fields.
    """

    family: str
    depth: int
    fixed: dict[str, Any]
    defaults: dict[str, Any]


class Numerics(NamedTuple):
    """How a network computes: `dtype` of activations, the batch norm's constants, and by whose images it normalizes.

    The running statistics follow Flax: `new = momentum · old + (1 − momentum) · batch` (PyTorch's momentum is one minus this),
    with the biased variance (PyTorch keeps the unbiased one, which is n / (n − 1) times that).
    Parameters and statistics are kept in float32, or in float64 where `dtype` is that. Where every device computes for itself,
    `axis_name` names the axis of the devices whose images form a batch; None: each device's own. With `fixed_statistics` training
    normalizes by the running statistics, too, and does not update them.
    """

    dtype: Any = jnp.float32
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    fixed_statistics: bool = False

    @property
    def parameter_dtype(self):
        return jnp.promote_types(self.dtype, jnp.float32)


def check_choice(key, value, allowed):
    """Raises UserError where an option of a network is not one of the allowed values."""
    if value not in allowed:
        raise UserError(f"model.{key} must be one of {', '.join(allowed)}, not {value!r}.")


def check_dropout(rate):
    """Raises UserError where a dropout rate is not in [0, 1)."""
    if not 0 <= rate < 1:
        raise UserError(f"model.dropout must be at least 0 and below 1, not {rate!r}.")


def he_normal(gain=2.0):
    """Normal numbers of variance `gain` / fan-in, not truncated (He et al. 2015, "Delving deep into rectifiers", equation 10)."""
    return nn.initializers.variance_scaling(gain, "fan_in", "normal")


def _convolve(x, w, strides, padding, *, lhs_dilation, rhs_dilation, feature_group_count, **unused):
    assert feature_group_count == 1 and {*lhs_dilation, *rhs_dilation} == {1}
    return ops.convolve(x, w, strides, padding)


def taps_on_image(size, x):
    """The share of a size×size kernel's taps that meet the image and not its zero padding, over all positions of x [N, H, W, C].

    He's variance counts them all. On maps of 2×2 pixels only 4 of 9 meet the image, and 15 layers without batch norm lose their
    signal by that. Networks for small images divide the variance by this share.
    """
    share = 1.0
    for length in x.shape[1:3]:
        share *= sum(length - abs(offset) for offset in range(-(size // 2), size // 2 + 1) if abs(offset) < length) / (
            size * length
        )
    return share


def convolution(numerics, filters, size, strides=1, use_bias=False, kernel_init=None, name=None):
    """A size×size convolution, zero-padded by size // 2 on every side as in Caffe and PyTorch; by default He's initialization.

    Flax's "SAME" would pad a strided kernel on one side only and shift the image.
    """
    return nn.Conv(
        filters,
        (size, size),
        strides=(strides, strides),
        padding=((size // 2, size // 2),) * 2,
        use_bias=use_bias,
        kernel_init=kernel_init or he_normal(),
        dtype=numerics.dtype,
        param_dtype=numerics.parameter_dtype,
        conv_general_dilated=_convolve,
        name=name,
    )


def dense(numerics, features, dtype=None, kernel_init=None, name=None):
    """A fully-connected layer, by default with He's initialization."""
    return nn.Dense(
        features, kernel_init=kernel_init or he_normal(), dtype=dtype, param_dtype=numerics.parameter_dtype, name=name
    )


def head(numerics, num_classes, x, kernel_init=None):
    """The last layer, "head": logits in float32 whatever the activations are in (float64 where they are that)."""
    return dense(numerics, num_classes, kernel_init=kernel_init, name="head")(x.astype(numerics.parameter_dtype))


class BatchNorm(nn.Module):
    """Batch normalization over all images of the batch and all positions; variables are named as in Flax's.

    In training it normalizes by the batch and updates the running `mean` and `var` [C]; in evaluation it normalizes by these.
    Where the collection "moments" is mutable, it also tells the moments of its input, `mean` and `var` [C]. With `relu` a ReLU
    follows, which takes less memory and time than one by itself.
    """

    numerics: Numerics
    train: bool
    scale_init: Any = nn.initializers.ones
    relu: bool = False

    @nn.compact
    def __call__(self, x):
        shape, dtype = (x.shape[-1],), self.numerics.parameter_dtype
        scale = self.param("scale", self.scale_init, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, dtype)
        variance = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
        if self.is_mutable_collection("moments") and not self.is_initializing():
            self.put_variable("moments", "mean", jnp.mean(x, axis=(0, 1, 2), dtype=dtype))
            self.put_variable("moments", "var", jnp.var(x, axis=(0, 1, 2), dtype=dtype))
        if not self.train or self.numerics.fixed_statistics:
            factor = lax.rsqrt(variance.value + self.numerics.epsilon) * scale
            y = ops.affine(x, mean.value, factor, bias).astype(x.dtype)
            return nn.relu(y) if self.relu else y
        y, *batch = ops.batch_norm(x, scale, bias, self.numerics.epsilon, self.numerics.axis_name, self.relu)
        if not self.is_initializing():
            momentum = self.numerics.momentum
            for running, new in zip((mean, variance), batch, strict=True):
                running.value = momentum * running.value + (1 - momentum) * new
        return y


class Tap(nn.Module):
    """Identity. Adds the variable `added` of the collection "taps", if present, so that its gradient is the activation's.

    Where the collection is mutable, it gets zeros of the input's shape.
    """

    @nn.compact
    def __call__(self, x):
        if self.is_mutable_collection("taps") and not self.is_initializing():
            self.put_variable("taps", "added", jnp.zeros_like(x))
        return x + self.get_variable("taps", "added") if self.has_variable("taps", "added") else x


def max_pool(x, size, strides, padding=0):
    """Maximum over size×size windows, ⌈·⌉ positions as in Caffe: the last window may reach over the edge, but begins inside.

    Padding never wins: it is −∞.
    """
    pads = []
    for length in x.shape[1:3]:
        positions = -(-max(0, length + 2 * padding - size) // strides) + 1
        if (positions - 1) * strides >= length + padding:
            positions -= 1
        pads.append((padding, max(0, (positions - 1) * strides + size - length - padding)))
    return ops.max_pool(x, size, strides, tuple(pads))


def local_response_norm(x, size, alpha, beta, k):
    """Divides by (k + alpha · Σ x²)^beta, the sum over the `size` channels around each (Krizhevsky et al. 2012, section 3.3)."""
    channels = x.shape[-1]
    squares = jnp.pad(x * x, [(0, 0)] * 3 + [(size // 2, size // 2)])
    sums = sum(squares[..., i : i + channels] for i in range(size))
    return x / (k + alpha * sums) ** beta


def check_image_size(images, least):
    """Raises UserError where images [N, H, W, C] have fewer than `least` pixels on a side."""
    if min(images.shape[1:3]) < least:
        raise UserError(f"This network needs images of at least {least}×{least} pixels, not {images.shape[1]}×{images.shape[2]}.")


def rematerialized(block, in_loop):
    """A block of signature `(x, train)` whose inner values are computed anew by the backward pass, and not kept.

    Outside of a loop, the compiler must be kept from finding that the two computations are one.
    """
    return nn.remat(block, prevent_cse=not in_loop, static_argnums=(2,))


def scan_blocks(block, length, remat, in_axes=nn.broadcast, **fields):
    """`length` equal blocks under one `nn.scan`: one body is compiled, parameters and statistics get a leading `block` axis.

    All blocks get the same `train`; `in_axes` is of `nn.scan` where they get more than that.

    On a GPU the body has several blocks, since a loop stacks copies of all that the backward pass needs, but not where `remat`
    asks for less memory: without a loop around it, the compiler would undo that.
    """
    unroll = GPU_UNROLL if jax.default_backend() == "gpu" and not remat else 1
    return nn.scan(
        rematerialized(block, in_loop=True) if remat else block,
        variable_axes={"params": 0, "batch_stats": 0, "moments": 0, "taps": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=length,
        unroll=min(unroll, length),
    )(**fields)
