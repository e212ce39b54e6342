"""GoogLeNet: Inception blocks, which look at several scales side by side and afford it by 1×1 reductions.

Szegedy et al. 2014, "Going deeper with convolutions", Table 1, in two variants:

    googlenet     as in the paper and in Caffe's reference model: 5×5 convolutions with biases, local response normalization
                  (alpha divided by the window size, as in Caffe), 3×3 pools, dropout 0.4, 0.7 in the auxiliary heads
    googlenet_bn  as published in torchvision: 3×3 in the place of 5×5 (a slip that was kept for the weights' sake), batch norm
                  with epsilon 1e-3 instead of biases and response normalization, the last pool 2×2, dropout 0.2, auxiliary
                  heads on an adaptive 4×4 average

    parameters           without auxiliary heads  with both
    googlenet            6,998,552                13,378,280
    googlenet_bn         6,624,904                13,004,888
"""

import functools

import jax.numpy as jnp
from flax import linen as nn

from plain56.models import layers

# Table 1: 1×1; reduction before 3×3, 3×3; reduction before 5×5, 5×5; projection after the pool.
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
AUXILIARY_AFTER = ("4a", "4d")
AUXILIARY_DROPOUT = 0.7
FORMS = ("imagenet", "small")
MINIMUM_IMAGE_SIZE = 15  # what the five halvings and the pools need
MINIMUM_AUXILIARY_IMAGE_SIZE = 79  # what the 5×5 pools of the paper's auxiliary heads need


class ConvolutionUnit(nn.Module):
    """A convolution with bias and ReLU, or without bias and with batch norm between."""

    filters: int
    size: int
    strides: int = 1
    normalize: bool = False
    small: bool = False
    numerics: layers.Numerics = layers.Numerics()

    @nn.compact
    def __call__(self, x, train):
        initializer = layers.he_normal(2 / layers.taps_on_image(self.size, x) if self.small else 2.0)
        shape = self.filters, self.size, self.strides
        x = layers.convolution(self.numerics, *shape, use_bias=not self.normalize, kernel_init=initializer, name="conv")(x)
        return layers.BatchNorm(self.numerics, train, relu=True, name="norm")(x) if self.normalize else nn.relu(x)


class Inception(nn.Module):
    """Four branches side by side, joined along the channels: 1×1; 1×1 → 3×3; 1×1 → 5×5; 3×3 pool → 1×1 (Fig. 2b).

    Args:
        filters: as in `INCEPTIONS`; a reduction of 0 leaves the 1×1 convolution before a branch out (Fig. 2a).
        large: the size of the third branch's kernel, 5 in the paper.
    """

    filters: tuple[int, ...]
    large: int = 5
    normalize: bool = False
    small: bool = False
    numerics: layers.Numerics = layers.Numerics()

    @nn.compact
    def __call__(self, x, train):
        unit = functools.partial(ConvolutionUnit, normalize=self.normalize, small=self.small, numerics=self.numerics)
        single, reduced3, size3, reduced5, size5, pooled = self.filters
        middle = unit(reduced3, 1, name="reduce3x3")(x, train) if reduced3 else x
        wide = unit(reduced5, 1, name="reduce5x5")(x, train) if reduced5 else x
        branches = [
            unit(single, 1, name="conv1x1")(x, train),
            unit(size3, 3, name="conv3x3")(middle, train),
            unit(size5, self.large, name="conv5x5")(wide, train),
            unit(pooled, 1, name="project_pool")(layers.max_pool(x, 3, 1, padding=1), train),
        ]
        return layers.Tap(name="output")(jnp.concatenate(branches, axis=-1))


class AuxiliaryHead(nn.Module):
    """A classifier on a layer in the middle, for the gradient's sake (section 5)."""

    num_classes: int
    dropout: float = AUXILIARY_DROPOUT
    normalize: bool = False
    small: bool = False
    numerics: layers.Numerics = layers.Numerics()

    @nn.compact
    def __call__(self, x, train):
        if self.small:
            x = jnp.mean(x, axis=(1, 2), keepdims=True)
        elif self.normalize:
            x = _adaptive_average(x, 4)
        else:
            x = nn.avg_pool(x, (5, 5), (3, 3))
        x = ConvolutionUnit(128, 1, normalize=self.normalize, small=self.small, numerics=self.numerics, name="conv")(x, train)
        x = nn.relu(layers.dense(self.numerics, 1024, self.numerics.dtype, name="fc")(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return layers.head(self.numerics, self.num_classes, x, layers.small_normal)


def _adaptive_average(x, size):
    """Means over size×size windows of as equal a size as possible, which overlap where they must (PyTorch's adaptive pool)."""

    def windows(length):
        return [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]

    rows = [jnp.mean(x[:, top:bottom], axis=1, keepdims=True) for top, bottom in windows(x.shape[1])]
    x = jnp.concatenate(rows, axis=1)
    columns = [jnp.mean(x[:, :, left:right], axis=2, keepdims=True) for left, right in windows(x.shape[2])]
    return jnp.concatenate(columns, axis=2)


class GoogLeNet(nn.Module):
    """GoogLeNet; in training the output has the logits of both auxiliary heads, after 4a and 4d.

    `module.apply(variables, images [N, H, W, C], train=True, mutable=["batch_stats"], rngs={"dropout": key})` returns
    `Output(logits [N, num_classes], (logits of 4a, logits of 4d))`.

    Args:
        normalize: torchvision's variant, "googlenet_bn", with batch norm.
        form: "imagenet", or "small" for small images: a 3×3 stem without strides and pools, further pools left out where
            they would leave nothing, and auxiliary heads on a global average.
        auxiliary: False leaves the auxiliary heads out of the parameters.
        dropout: before the last layer; with 0 in the auxiliary heads, too.
    """

    num_classes: int
    normalize: bool = False
    form: str = "imagenet"
    auxiliary: bool = True
    dropout: float = 0.4
    numerics: layers.Numerics = layers.Numerics()

    @staticmethod
    def stage_of(layer):
        if layer.startswith("inception"):
            return layer[:-1]  # "inception3" of "inception3a"
        return "stem" if layer.startswith("conv") else "head"

    @property
    def effective_depth(self):
        """The mean number of weighted layers on the way to the last one: a block's ways have 1, 2, 2 and 1 of them."""
        return 3 + len(INCEPTIONS) * (1 + 2 + 2 + 1) / 4 + 1

    @nn.compact
    def __call__(self, images, train=False):
        small = self.form == "small"
        with_heads = self.auxiliary and (train or self.is_initializing())
        pooled_heads = with_heads and not self.normalize
        layers.check_image_size(images, 1 if small else MINIMUM_AUXILIARY_IMAGE_SIZE if pooled_heads else MINIMUM_IMAGE_SIZE)
        shared = {"normalize": self.normalize, "small": small, "numerics": self.numerics}
        x = images.astype(self.numerics.dtype)
        x = ConvolutionUnit(64, 3 if small else 7, 1 if small else 2, **shared, name="conv1")(x, train)
        x = self._normalize_response(x if small else layers.max_pool(x, 3, 2))
        x = ConvolutionUnit(64, 1, **shared, name="conv2_reduce")(layers.Tap(name="tap1")(x), train)
        x = self._normalize_response(ConvolutionUnit(192, 3, **shared, name="conv2")(x, train))
        x = layers.Tap(name="tap2")(x if small else layers.max_pool(x, 3, 2))
        auxiliary_logits = []
        for name, filters in INCEPTIONS.items():
            if name in ("4a", "5a") and (not small or min(x.shape[1:3]) > 1):
                x = layers.max_pool(x, 2 if self.normalize and name == "5a" else 3, 2)
            x = Inception(filters, 3 if self.normalize else 5, **shared, name=f"inception{name}")(x, train)
            if with_heads and name in AUXILIARY_AFTER:
                dropout = AUXILIARY_DROPOUT if self.dropout else 0.0
                auxiliary = AuxiliaryHead(self.num_classes, dropout, **shared, name=f"auxiliary{name}")
                auxiliary_logits.append(auxiliary(x, train))
        x = nn.Dropout(self.dropout, deterministic=not train)(jnp.mean(x, axis=(1, 2)))
        logits = layers.head(self.numerics, self.num_classes, x, layers.small_normal)
        return layers.Output(logits, tuple(auxiliary_logits) if train else ())

    def _normalize_response(self, x):
        # Caffe divides alpha by the window size, and the paper's network was Caffe's.
        return x if self.normalize else layers.local_response_norm(x, size=5, alpha=1e-4 / 5, beta=0.75, k=1.0)


NAMES = ("googlenet", "googlenet_bn")


def variant(name):
    """The `Variant` of a name; None where it is not in `NAMES`."""
    if name not in NAMES:
        return None
    normalize = name == "googlenet_bn"
    # torchvision's rate and epsilon.
    defaults = {"dropout": 0.2, "epsilon": 1e-3} if normalize else {}
    return layers.Variant("googlenet", 22, {"normalize": normalize}, defaults)


def check(model):
    """Raises UserError where options are out of range."""
    layers.check_choice("form", model.form, FORMS)
    layers.check_dropout(model.dropout)
