"""VGG: stacks of 3×3 convolutions.

Simonyan, Zisserman 2014, "Very deep convolutional networks for large-scale image recognition", Table 1: five blocks of
convolutions with 64, 128, 256, 512 and 512 filters, each followed by a 2×2 pool, and three fully-connected layers.

    configuration        A (vgg11)    A-LRN (vgg11_lrn)  B (vgg13)    C (vgg16_1x1)  D (vgg16)    E (vgg19)
    parameters           132,863,336  132,863,336        133,047,848  133,638,952    138,357,544  143,667,240
    with batch norm      132,868,840  –                  133,053,736  –              138,365,992  143,678,248

Batch norm after every convolution is not in the paper, which is older; the convolutions keep their biases then, as in
torchvision. Initialization is He et al. 2015's, N(0, 0.01²) in the last layer; the paper
drew all from N(0, 0.01²) and copied layers of A into the deeper ones.
"""

import re

import jax.numpy as jnp
from flax import linen as nn

from plain56 import ops
from plain56.errors import UserError
from plain56.models import layers

# Kernel sizes of the convolutions of each block.
CONFIGURATIONS = {
    "vgg11": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "vgg13": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "vgg16_1x1": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "vgg16": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "vgg19": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
WIDTHS = (64, 128, 256, 512, 512)
HIDDEN = 4096
MAP = 7  # what the five pools leave of 224 pixels, and the first fully-connected layer takes
FORMS = ("imagenet", "dense", "small")


class FullyConnectedMap(nn.Module):
    """A fully-connected layer on a 7×7 map, or the same parameters read as a 7×7 convolution that slides over a larger one.

    Takes images [N, h, w, C] and returns [N, h − 6, w − 6, features] (section 3.2: dense evaluation).
    """

    features: int
    numerics: layers.Numerics = layers.Numerics()

    @nn.compact
    def __call__(self, x):
        rows = MAP * MAP * x.shape[-1]
        kernel = self.param("kernel", layers.he_normal(), (rows, self.features), self.numerics.parameter_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.numerics.parameter_dtype)
        kernel, bias = (value.astype(self.numerics.dtype) for value in (kernel, bias))
        if x.shape[1:3] == (MAP, MAP):
            y = jnp.dot(x.reshape(x.shape[0], rows), kernel).reshape(-1, 1, 1, self.features)
        else:
            y = ops.convolve(x, kernel.reshape(MAP, MAP, x.shape[-1], self.features), (1, 1), ((0, 0), (0, 0)))
        return y + bias.reshape(1, 1, 1, -1)


def possible_pools(image_shape):
    """How many of the pools leave something of an image `(H, W, C)`."""
    return min(len(WIDTHS), min(image_shape[:2]).bit_length() - 1)


class VGG(nn.Module):
    """A VGG network.

    `module.apply(variables, images [N, H, W, C], train=False, rngs={"dropout": key})` returns `Output(logits [N, num_classes])`.

    Args:
        configuration: kernel sizes of the convolutions, block by block.
        normalize: batch norm after every convolution.
        respond: local response normalization after the first one (A-LRN).
        form: "imagenet" takes images of 224 pixels. "dense" is the same network with the same parameters, its
            fully-connected layers read as convolutions, for images of any size from 224: logits are means over positions.
            "small" leaves out pools that would leave nothing, and has a global average and one layer for a head.
        dropout: of both hidden fully-connected layers.
        pools: of the small form: how many there are; 0 for as many as the images allow.
    """

    configuration: tuple
    num_classes: int
    normalize: bool = False
    respond: bool = False
    form: str = "imagenet"
    dropout: float = 0.5
    numerics: layers.Numerics = layers.Numerics()
    pools: int = 0

    @property
    def effective_depth(self):
        """The number of weighted layers, which all follow each other."""
        return sum(map(len, self.configuration)) + (1 if self.form == "small" else 3)

    @nn.compact
    def __call__(self, images, train=False):
        layers.check_image_size(images, {"small": 1}.get(self.form, 32 * MAP))
        x = images.astype(self.numerics.dtype)
        pools = (self.pools or possible_pools(images.shape[1:])) if self.form == "small" else len(WIDTHS)
        for block, (sizes, filters) in enumerate(zip(self.configuration, WIDTHS, strict=True), start=1):
            for i, size in enumerate(sizes, start=1):
                initializer = layers.he_normal(2 / layers.taps_on_image(size, x) if self.form == "small" else 2.0)
                named = {"kernel_init": initializer, "name": f"block{block}_conv{i}"}
                x = layers.convolution(self.numerics, filters, size, use_bias=True, **named)(x)
                if self.normalize:
                    x = layers.BatchNorm(self.numerics, train, relu=True, name=f"block{block}_norm{i}")(x)
                else:
                    x = nn.relu(x)
                x = layers.Tap(name=f"block{block}_tap{i}")(x)
                if self.respond and (block, i) == (1, 1):
                    x = layers.local_response_norm(x, size=5, alpha=1e-4, beta=0.75, k=2.0)  # Krizhevsky et al. 2012's constants
            if block <= pools:
                x = ops.max_pool(x, 2, 2, ((0, 0), (0, 0)))
        if self.form == "small":
            return layers.Output(layers.head(self.numerics, self.num_classes, jnp.mean(x, axis=(1, 2)), layers.small_normal))
        if self.form == "imagenet" and x.shape[1:3] != (MAP, MAP):
            raise UserError(
                f"The fully-connected layers need images of 224×224 pixels, not {images.shape[1]}×{images.shape[2]}; model.form "
                "'dense' takes larger ones, and 'small' takes any."
            )
        x = nn.relu(FullyConnectedMap(HIDDEN, self.numerics, name="fc6")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.relu(layers.dense(self.numerics, HIDDEN, self.numerics.dtype, name="fc7")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        # A linear layer and a mean over positions may change places.
        return layers.Output(layers.head(self.numerics, self.num_classes, jnp.mean(x, axis=(1, 2)), layers.small_normal))


NAMES = ("vgg11", "vgg11_bn", "vgg11_lrn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg16_1x1", "vgg19", "vgg19_bn")


def variant(name):
    """The `Variant` of a name; None where it is not in `NAMES`."""
    if name not in NAMES:
        return None
    fixed = {
        "configuration": CONFIGURATIONS[name.removesuffix("_bn").removesuffix("_lrn")],
        "normalize": name.endswith("_bn"),
        "respond": name.endswith("_lrn"),
        "pools": 0,
    }
    return layers.Variant("vgg", int(re.search(r"\d+", name)[0]), fixed, {})


def check(model):
    """Raises UserError where options are out of range."""
    layers.check_choice("form", model.form, FORMS)
    layers.check_dropout(model.dropout)
