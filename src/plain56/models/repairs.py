"""What has been proposed to make deep networks trainable, besides skip connections: each repair as an option of the blocks.

A repair is a value of one of the fields of `resnet.BlockOptions` below; the first value is the network as published.

    activation       relu | leaky_relu, with `negative_slope` | tanh | tat, whose slope follows from the network's depth
    normalization    batch | group | layer | none
    initializer      he_normal | orthogonal | delta_orthogonal | dirac
    kernel           free | dirac
    branch_scale     1 | another number | inverse_sqrt_blocks | learned_zero, in residual networks, as all that follow
    shortcut_scale   1 | another number
    fixup            False | True
    survival         1 | a probability

What multiplies a kernel's variance beside 1 / fan-in keeps the second moment of activations: 2 / (1 + a²) where they have the
slope a for negative values (He et al. 2015, "Delving deep into rectifiers", equation 15; 0 in a ReLU), and 1 for tat, whose
scale is in the activation. It is 1 for tanh, too, whose slope at zero is 1: its activations shrink slowly.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from plain56 import ops
from plain56.errors import UserError
from plain56.models import layers

CHOICES = {
    "activation": ("relu", "leaky_relu", "tanh", "tat"),
    "normalization": ("batch", "group", "layer", "none"),
    "initializer": ("he_normal", "orthogonal", "delta_orthogonal", "dirac"),
    "kernel": ("free", "dirac"),
}
BRANCH_SCALES = ("inverse_sqrt_blocks", "learned_zero")
USUAL_SLOPE = 0.01  # of Leaky ReLUs, as in PyTorch and Flax
GROUP_SIZE = 8  # channels that are normalized together
TAT_TARGET = 0.9
DIRAC_NOISE = 0.1  # He normal kernels' share beside the identity
FIXUP_RATE = 0.1  # the learning rate of biases and multipliers, as a multiple of that of kernels


def check(options, normalized):
    """Raises UserError where the repairs of `resnet.BlockOptions` have no meaning, or none together.

    `normalized` are the numbers of channels that norms get.
    """
    for key, allowed in CHOICES.items():
        layers.check_choice(key, getattr(options, key), allowed)
    scale = options.branch_scale
    if scale not in BRANCH_SCALES and isinstance(scale, str):
        raise UserError(f"model.branch_scale must be a number or one of {', '.join(BRANCH_SCALES)}, not {scale!r}.")
    for refused, sentence in _refusals(options, normalized):
        if refused:
            raise UserError(sentence)


def _refusals(options, normalized):
    """`(whether, why)` of every combination that has no meaning."""
    plain, fixup = not options.residual, options.fixup
    yield (
        options.negative_slope is not None and options.activation != "leaky_relu",
        f"model.negative_slope must be None with model.activation={options.activation!r}: only leaky_relu has such a slope.",
    )
    yield (
        options.activation == "tat" and not plain,
        "model.activation must not be 'tat' in a residual network: its slope is derived for networks without shortcuts.",
    )
    yield (
        options.zero_init and options.branch_scale == "learned_zero",
        "model.zero_init must be False with model.branch_scale='learned_zero': two zeros in a row have no gradient.",
    )
    yield (
        options.kernel == "dirac" and options.initializer == "dirac",
        "model.initializer must not be 'dirac' with model.kernel='dirac', which has an identity of its own.",
    )
    odd = [channels for channels in normalized if channels % GROUP_SIZE]
    yield (
        options.normalization == "group" and odd,
        f"model.normalization='group' needs channels in multiples of {GROUP_SIZE}, not {odd[0] if odd else 0}.",
    )
    for key, usual in {"branch_scale": 1, "shortcut_scale": 1, "survival": 1, "fixup": False}.items():
        value = getattr(options, key)
        yield plain and value != usual, f"model.{key} must be {usual} in a plain network, which has no branches, not {value!r}."
    needs = {"normalization": "none", "kernel": "free", "initializer": "he_normal", "branch_scale": 1, "pre_activation": False}
    for key, needed in needs.items():
        value = getattr(options, key)
        yield fixup and value != needed, f"model.{key} must be {needed!r} with model.fixup=True, not {value!r}."


def with_depth(options, blocks, activations):
    """Options in which numbers stand for what follows from depth.

    Args:
        blocks: of the network.
        activations: that follow each other on the way through a plain network.
    """
    slope, scale = options.negative_slope, options.branch_scale
    if slope is None and options.activation in ("leaky_relu", "tat"):
        slope = USUAL_SLOPE if options.activation == "leaky_relu" else tat_slope(activations)
    scale = blocks**-0.5 if scale == "inverse_sqrt_blocks" else scale
    return options._replace(negative_slope=slope, branch_scale=scale)


def c_map(cosine, slope):
    """The cosine between two activations behind a wide random layer with leaky ReLUs, by that of their inputs.

    Zhang et al. 2022, "Deep learning without shortcuts: shaping the kernel with tailored rectifiers", section 3 (the arc-cosine
    kernel of Cho & Saul 2009).
    """
    curve = math.sqrt(1 - cosine**2) - cosine * math.acos(cosine)
    return min(1.0, cosine + (1 - slope) ** 2 / (math.pi * (1 + slope**2)) * curve)


@functools.cache
def tat_slope(activations):
    """The slope with which so many activations in a row take orthogonal inputs to a cosine of 0.9 (Zhang et al. 2022).

    It is 0 where the network is so shallow that ReLUs stay below that.
    """

    def last_cosine(slope):
        cosine = 0.0
        for _ in range(activations):
            cosine = c_map(cosine, slope)
        return cosine

    low, high = 0.0, 1.0  # the cosine falls with the slope
    if last_cosine(low) <= TAT_TARGET:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if last_cosine(middle) > TAT_TARGET else (low, middle)
    return low


def activation(options):
    """The function of images that follows a norm, from the options of `with_depth`."""
    slope = options.negative_slope
    if options.activation == "tat":
        scale = math.sqrt(2 / (1 + slope**2))
        return lambda x: scale * nn.leaky_relu(x, slope)
    return {"relu": nn.relu, "tanh": jnp.tanh, "leaky_relu": functools.partial(nn.leaky_relu, negative_slope=slope)}[
        options.activation
    ]


def normalized(options, numerics, x, train, name, scale_init=nn.initializers.ones, activated=True):
    """Images after a norm, called `name`, and the activation, from the options of `with_depth`.

    Batch: Ioffe & Szegedy 2015; group: Wu & He 2018, with 8 channels in a group; layer: Ba et al. 2016, one group.
    """
    kind = options.normalization
    if kind == "batch":
        with_relu = activated and options.activation == "relu"
        x = layers.BatchNorm(numerics, train, scale_init, with_relu, name=name)(x)
        activated = activated and not with_relu
    elif kind != "none":
        groups = {"num_groups": None, "group_size": GROUP_SIZE} if kind == "group" else {"num_groups": 1}
        dtypes = {"dtype": numerics.dtype, "param_dtype": numerics.parameter_dtype}
        x = nn.GroupNorm(**groups, **dtypes, epsilon=1e-5, scale_init=scale_init, use_fast_variance=False, name=name)(x)
    return activation(options)(x) if activated else x


def gain(options):
    """What multiplies a kernel's variance, from the options of `with_depth`."""
    slope = options.negative_slope or 0.0
    return {"relu": 2.0, "leaky_relu": 2 / (1 + slope**2), "tanh": 1.0, "tat": 1.0}[options.activation]


def initializer(options, taps=1.0):
    """The initializer of a convolution's kernel [h, w, in, out].

    With `normalization` "none", the variance of kernels is divided by `taps`, of `layers.taps_on_image`: without a norm behind,
    what the padding takes away would be lost from layer to layer. Delta-orthogonal kernels have one tap, which always meets the
    image.
    """
    variance = gain(options)
    if options.initializer == "delta_orthogonal":
        return functools.partial(_delta_orthogonal, variance)
    variance = variance / taps if options.normalization == "none" else variance
    return {
        "he_normal": layers.he_normal(variance),
        "orthogonal": functools.partial(_orthogonal, variance),
        "dirac": functools.partial(_dirac, variance),
    }[options.initializer]


def _orthogonal(variance, key, shape, dtype):
    """As a matrix (h · w · in, out), orthogonal (Saxe et al. 2014), and scaled to the variance of He's kernels."""
    fan_in, filters = math.prod(shape[:-1]), shape[-1]
    return nn.initializers.orthogonal(math.sqrt(variance * max(1, filters / fan_in)))(key, shape, dtype)


def _delta_orthogonal(variance, key, shape, dtype):
    """Zero but for the center tap, where it is an orthogonal matrix (Xiao et al. 2018, algorithm 1).

    It keeps the sum of squares over channels: where a layer widens, their mean square falls.
    """
    if shape[-2] > shape[-1]:
        raise UserError(
            "model.initializer='delta_orthogonal' needs as many channels out of a convolution as into it, not "
            f"{shape[-1]} out of {shape[-2]}."
        )
    return nn.initializers.delta_orthogonal(math.sqrt(variance))(key, shape, dtype)


def _dirac(variance, key, shape, dtype):
    """The identity and a tenth of a He normal kernel."""
    return identity_kernel(shape, dtype) + DIRAC_NOISE * layers.he_normal(variance)(key, shape, dtype)


def identity_kernel(shape, dtype):
    """The kernel [h, w, in, out] that copies the first min(in, out) channels."""
    height, width, channels, filters = shape
    kernel = np.zeros(shape)
    kernel[height // 2, width // 2] = np.eye(channels, filters)
    return jnp.asarray(kernel, dtype)


class DiracConvolution(nn.Module):
    """A convolution by `identity_scale` · identity + `kernel_scale` · kernel / |kernel|, with the norm of each filter.

    Zagoruyko & Komodakis 2017, "DiracNets", section 3: two more parameters [filters], which begin at 1 and 0.1. Only what is
    called "kernel" decays. The published networks pool where ours have a stride.
    """

    numerics: layers.Numerics
    filters: int
    size: int
    strides: int
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x):
        shape, dtype = (self.size, self.size, x.shape[-1], self.filters), self.numerics.parameter_dtype
        kernel = self.param("kernel", self.kernel_init, shape, dtype)
        scales = {"identity_scale": 1.0, "kernel_scale": DIRAC_NOISE}
        of_identity, of_kernel = (
            self.param(name, nn.initializers.constant(value), (self.filters,), dtype)[None, None, None]
            for name, value in scales.items()
        )
        # A filter of zeros stays one, and has a gradient.
        over_length = lax.rsqrt(jnp.maximum(jnp.sum(kernel**2, axis=(0, 1, 2), keepdims=True), 1e-24))
        kernel = of_identity * identity_kernel(shape, dtype) + of_kernel * kernel * over_length
        padding = ((self.size // 2, self.size // 2),) * 2
        return ops.convolve(x, kernel.astype(self.numerics.dtype), (self.strides, self.strides), padding)


def convolution(options, numerics, filters, size, strides, kernel_init, name):
    """A size×size convolution of a block."""
    if options.kernel == "dirac" and size == 3:
        return DiracConvolution(numerics, filters, size, strides, kernel_init, name=name)
    return layers.convolution(numerics, filters, size, strides, kernel_init=kernel_init, name=name)


class Shift(nn.Module):
    """Adds one number, `bias` [1], to all values; it begins at zero."""

    @nn.compact
    def __call__(self, x):
        (bias,) = self.param("bias", nn.initializers.zeros, (1,), jnp.promote_types(x.dtype, jnp.float32))
        return x + bias.astype(x.dtype)


class Multiplier(nn.Module):
    """Multiplies all values by one number, `scale` [1]."""

    initial: float

    @nn.compact
    def __call__(self, x):
        initial = nn.initializers.constant(self.initial)
        (scale,) = self.param("scale", initial, (1,), jnp.promote_types(x.dtype, jnp.float32))
        return x * scale.astype(x.dtype)


def fixup_initializer(options, taps, blocks, convolutions, number):
    """The initializer of the kernel number `number`, from 1 on, of a branch of so many convolutions.

    Zhang, Dauphin, Ma 2019, "Fixup initialization", section 4: the last kernel begins at zero, and the standard deviation of the
    others is divided by (number of branches)^(1 / (2 · convolutions − 2)), the square root with two convolutions.
    """
    if number == convolutions:
        return nn.initializers.zeros
    usual, factor = initializer(options, taps), blocks ** (-1 / (2 * convolutions - 2))
    return lambda key, shape, dtype: factor * usual(key, shape, dtype)


def fixup_rate(path):
    """What multiplies the learning rate of the parameter at a path of a Fixup network: a tenth for all but kernels."""
    return FIXUP_RATE if path[-1] in ("bias", "scale") else 1.0


def scaled(number, x):
    """x, multiplied by a number, which may be 1."""
    return x if number == 1 else number * x


def scaled_branch(options, branch, survived):
    """What a residual branch adds to the shortcut. `survived` is the block's value of `survived_blocks`, or None.

    A learned scale begins at zero (SkipInit, De & Smith 2020; ReZero, Bachlechner et al. 2020). 1 / √blocks keeps the sum of all
    branches at the size of one.
    """
    learned = options.branch_scale == "learned_zero"
    branch = Multiplier(0.0, name="branch_scale")(branch) if learned else scaled(options.branch_scale, branch)
    return branch if survived is None else survived.astype(branch.dtype) * branch


def survived_blocks(module, survival, blocks, train):
    """What multiplies the branch of each block by stochastic depth (Huang et al. 2016), float32 [blocks]; None without it.

    In training 1 or 0: block l of L survives with the probability 1 − (1 − survival) · l / L, by one draw from the module's
    random stream "survival" for the whole batch. In evaluation it is that probability.
    """
    if survival == 1:
        return None
    probabilities = 1 - (1 - survival) * jnp.arange(1, blocks + 1, dtype=jnp.float32) / blocks
    return jax.random.bernoulli(module.make_rng("survival"), probabilities).astype(jnp.float32) if train else probabilities
