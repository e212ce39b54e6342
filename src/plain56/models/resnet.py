"""Residual networks and their plain counterparts, in the paper's two forms.

He, Zhang, Ren, Sun 2015, "Deep residual learning for image recognition". The CIFAR form (section 4.2): a 3×3 convolution, three
stages of n blocks of two 3×3 convolutions each, global average pooling and one linear layer: 6n + 2 weighted layers.

    depth                20       32       44       56       110        152        1202
    blocks per stage n   3        5        7        9        18         25         200
    parameters (A)       269,722  464,154  658,586  853,018  1,727,962  2,408,474  19,421,274

The ImageNet form (Table 1): a 7×7 convolution and a pool, both with stride 2, and four stages.

    depth                18          34          50          101         152
    blocks               2 2 2 2     3 4 6 3     3 4 6 3     3 4 23 3    3 8 36 3
    parameters (B)       11,689,512  21,797,672  25,557,032  44,549,160  60,192,808

From 50 layers on, blocks are bottlenecks. A plain network is the residual one minus the additions, nothing else: with shortcut A
the two have the same parameters. The paper has no plain bottleneck networks; they can be made for comparison.
"""

import re
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from plain56 import ops
from plain56.errors import UserError
from plain56.models import layers

SHORTCUTS = ("A", "B", "C")
IMAGENET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BOTTLENECK_DEPTHS = (50, 101, 152)
BOTTLENECK_STRIDES = ("1x1", "3x3")
WIDTHS = {"cifar": (16, 32, 64), "imagenet": (64, 128, 256, 512)}
MINIMUM_IMAGE_SIZE = {"cifar": 4, "imagenet": 32}  # the smallest side of which all halvings leave a pixel


class BlockOptions(NamedTuple):
    """What all blocks of a network share.

    Args:
        residual: False leaves the shortcut out, and its projection with it.
        shortcut: what carries the input around the branch (section 4.1). "A" is the identity; where the shape changes, it is
            subsampled and padded with zero channels. "B" projects (1×1) where the shape changes, and is the identity elsewhere.
            "C" projects in every block.
        pre_activation: batch norm and ReLU come before each convolution, and nothing after the addition (He et al. 2016,
            "Identity mappings in deep residual networks").
        normalise: batch norm after every convolution, or before it with pre-activation. False is not in the paper.
        zero_init: the last scale of every residual block starts at zero (Goyal et al. 2017). It is not in the paper.
        bottleneck_stride: the convolution that has the stride: "1x1" is the paper's (v1), "3x3" torchvision's (v1.5). The choice
            changes no parameter.
    """

    residual: bool = True
    shortcut: str = "A"
    bottleneck_stride: str = "1x1"
    pre_activation: bool = False
    zero_init: bool = False
    normalise: bool = True


def _norm(module, options, train, name, scale_init=nn.initializers.ones, relu=True):
    """What comes before or after every convolution of a module: batch norm, or the identity; and a ReLU."""
    if options.normalise:
        return layers.BatchNorm(module.numerics, train, scale_init, relu, name=name)
    return nn.relu if relu else lambda x: x


class Block(nn.Module):
    """What basic and bottleneck blocks share: the shortcut around their convolutions.

    With `activate_input`, the first norm and ReLU of pre-activation come before the paths of shortcut and branch part.
    Takes `(activations [N, H, W, C], train)` and returns `(activations, None)`; `nn.scan` needs the second value.
    """

    filters: int
    strides: int = 1
    activate_input: bool = False
    options: BlockOptions = BlockOptions()
    numerics: layers.Numerics = layers.Numerics()

    def convolutions(self):
        """`(filters, kernel size, strides)` of each convolution."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, x, train):
        convolutions = self.convolutions()
        activate_sum = self.options.residual and not self.options.pre_activation
        y = x if self.activate_input else layers.Tap(name="branch")(x)
        for i, (filters, size, strides) in enumerate(convolutions, start=1):
            last = i == len(convolutions)
            scale_init = nn.initializers.zeros if last and self.options.zero_init else nn.initializers.ones
            norm = _norm(self, self.options, train, f"norm{i}", scale_init, relu=not (last and activate_sum))
            conv = layers.convolution(self.numerics, filters, size, strides, name=f"conv{i}")
            if self.options.pre_activation:
                y = norm(y)
                if i == 1 and self.activate_input:
                    x, y = y, layers.Tap(name="branch")(y)
                y = conv(y)
            else:
                y = norm(conv(y))
        if self.options.residual:
            y = y + self.shortcut_of(layers.Tap(name="shortcut")(x), y.shape[-1], train)
        return layers.Tap(name="output")(nn.relu(y) if activate_sum else y), None

    def shortcut_of(self, x, filters, train):
        """The shortcut's output for a block's input `x`, with `filters` channels."""
        same_shape = self.strides == 1 and x.shape[-1] == filters
        if self.options.shortcut == "C" or (self.options.shortcut == "B" and not same_shape):
            x = layers.convolution(self.numerics, filters, 1, self.strides, name="shortcut_conv")(x)
            # With its own batch norm: an unnormalized projection drowns the branch. With pre-activation, its input is normalized.
            return x if self.options.pre_activation else _norm(self, self.options, train, "shortcut_norm", relu=False)(x)
        if same_shape:
            return x
        added = filters - x.shape[-1]
        x = x[:, :: self.strides, :: self.strides]
        # Half of the zero channels before and half after, as in the published PyTorch weights.
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (added // 2, added - added // 2)))


class BasicBlock(Block):
    """Two 3×3 convolutions (Fig. 5, left)."""

    expansion = 1

    def convolutions(self):
        return (self.filters, 3, self.strides), (self.filters, 3, 1)


class BottleneckBlock(Block):
    """1×1 to fewer channels, 3×3, 1×1 to four times as many (Fig. 5, right)."""

    expansion = 4

    def convolutions(self):
        first, second = (self.strides, 1) if self.options.bottleneck_stride == "1x1" else (1, self.strides)
        return (self.filters, 1, first), (self.filters, 3, second), (4 * self.filters, 1, 1)


class ResNet(nn.Module):
    """A residual or plain network.

    `module.apply(variables, images [N, H, W, C], train=False)` returns `Output(logits [N, num_classes])`. The stages after
    the first halve the image with stride 2. Blocks of equal shape run under one `nn.scan`, so depth costs nothing to compile.

    Args:
        blocks: number of blocks in each stage.
        widths: filters of each stage, before a bottleneck's expansion.
        form: which stem the network has, "cifar" or "imagenet".
        remat: store only the blocks' inputs for the backward pass and recompute the rest: less memory, more time. On a CPU it
            helps in stages of three or more blocks: the compiler undoes it in a block that is not in a loop.
    """

    blocks: tuple[int, ...]
    num_classes: int
    block: Any = BasicBlock
    form: str = "cifar"
    block_options: BlockOptions = BlockOptions()
    widths: tuple[int, ...] = WIDTHS["cifar"]
    remat: bool = False
    numerics: layers.Numerics = layers.Numerics()

    @staticmethod
    def stage_of(layer):
        return layer if layer == "head_norm" else layer.partition("_")[0]

    @nn.compact
    def __call__(self, images, train=False):
        layers.check_image_size(images, MINIMUM_IMAGE_SIZE[self.form])
        options, shared = self.block_options, {"options": self.block_options, "numerics": self.numerics}
        single_block = layers.rematerialized(self.block, in_loop=False) if self.remat else self.block
        x = images.astype(self.numerics.dtype)
        size, strides = (3, 1) if self.form == "cifar" else (7, 2)
        x = layers.convolution(self.numerics, self.widths[0], size, strides, name="stem_conv")(x)
        if not options.pre_activation:
            x = _norm(self, options, train, "stem_norm")(x)
        if self.form == "imagenet":
            x = ops.max_pool(x, 3, 2, ((1, 1), (1, 1)))
        x = layers.Tap(name="stem")(x)
        for stage, (blocks, filters) in enumerate(zip(self.blocks, self.widths, strict=True), start=1):
            strides = 1 if stage == 1 else 2
            changes = strides != 1 or x.shape[-1] != filters * self.block.expansion
            # "We adopt the first activation right after conv1 and before splitting into two paths", and projections take
            # activated input, too (He et al. 2016, section 3.2 and appendix).
            activate_input = options.pre_activation and (stage == 1 or (changes and options.shortcut != "A"))
            first_differs = changes or activate_input
            if first_differs:
                x, _ = single_block(filters, strides, activate_input, **shared, name=f"stage{stage}_first")(x, train)
            if equal := blocks - first_differs:
                fields = {"filters": filters, **shared, "name": f"stage{stage}"}
                x, _ = layers.scan_blocks(self.block, equal, self.remat, **fields)(x, train)
        if options.pre_activation:
            x = _norm(self, options, train, "head_norm")(x)
        return layers.Output(layers.head(self.numerics, self.num_classes, jnp.mean(x, axis=(1, 2))))


# Table 6's depths, and 152, the depth of the deepest ImageNet network. 50 and 152 fit both forms (6·8 + 2 and 6·25 + 2):
# without a suffix, they mean the ImageNet form; "_cifar" always asks for the CIFAR form.
CIFAR_DEPTHS = (20, 32, 44, 56, 110, 152, 1202)
PLAIN_IMAGENET_DEPTHS = (18, 34)
MOST_FILTERS = 1 << 16
MEANT = "plainN and resnetN with N = 18, 34, 50, 101, 152 (ImageNet form) or 6n + 2 (CIFAR form)"


def _cifar_name(family, depth):
    return f"{family}{depth}_cifar" if depth in IMAGENET_BLOCKS else f"{family}{depth}"


NAMES = (
    *(_cifar_name(family, depth) for family in ("plain", "resnet") for depth in CIFAR_DEPTHS),
    *(f"plain{depth}" for depth in PLAIN_IMAGENET_DEPTHS),
    *(f"resnet{depth}" for depth in IMAGENET_BLOCKS),
)


def variant(name):
    """The `Variant` of a name, also of a depth that is not in `NAMES`; None if it is not plainN or resnetN.

    Raises UserError, with the nearest name, if no network has such a depth.
    """
    match = re.fullmatch(r"(plain|resnet)([1-9][0-9]{0,3})(_cifar)?", name)
    if not match:
        return None
    family, depth, suffix = match[1], int(match[2]), match[3]
    if depth in IMAGENET_BLOCKS and not suffix:
        block = BottleneckBlock if depth in BOTTLENECK_DEPTHS else BasicBlock
        fixed = {"blocks": IMAGENET_BLOCKS[depth], "block": block, "form": "imagenet"}
    elif depth >= 8 and depth % 6 == 2:
        fixed = {"blocks": ((depth - 2) // 6,) * 3, "block": BasicBlock, "form": "cifar"}
    else:
        nearest = _cifar_name(family, 6 * max(1, round((depth - 2) / 6)) + 2)
        raise UserError(
            f"There is no network {name!r}: the ImageNet form has 18, 34, 50, 101 or 152 layers, and the CIFAR form 6n + 2 (8, "
            f"14, 20, …; 50 and 152 as {family}50_cifar and {family}152_cifar); the nearest is {nearest!r}."
        )
    form = fixed["form"]
    defaults = {"shortcut": {"cifar": "A", "imagenet": "B"}[form], "widths": WIDTHS[form]}
    return layers.Variant(family, depth, fixed | {"residual": family == "resnet"}, defaults)


def check(model):
    """Raises UserError if options are out of range or incompatible."""
    options = model.block_options
    layers.check_choice("shortcut", options.shortcut, SHORTCUTS)
    layers.check_choice("bottleneck_stride", options.bottleneck_stride, BOTTLENECK_STRIDES)
    stages, widths = len(model.blocks), tuple(model.widths)
    if len(widths) != stages or not all(isinstance(width, int) and 0 < width <= MOST_FILTERS for width in widths):
        raise UserError(f"model.widths must be {stages} numbers of filters from 1 to {MOST_FILTERS}, not {widths}.")
    if options.residual and options.shortcut == "A" and sorted(widths) != list(widths):
        raise UserError(f"model.widths may not decrease with shortcut A, which pads channels; it is {widths}.")
    if options.zero_init and not options.residual:
        raise UserError("model.zero_init must be False: a plain network whose last scales are zero has no gradient.")
    if options.zero_init and not options.normalise:
        raise UserError("model.zero_init must be False with model.normalise=False: without batch norm there is no scale.")
    if options.zero_init and options.pre_activation:
        raise UserError(
            "model.pre_activation and model.zero_init may not both be True: the zero norm would come before the last "
            "convolution, which then would have no gradient."
        )
