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
from plain56.models import layers, repairs

SHORTCUTS = ("A", "B", "C")
IMAGENET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BOTTLENECK_DEPTHS = (50, 101, 152)
BOTTLENECK_STRIDES = ("1x1", "3x3")
WIDTHS = {"cifar": (16, 32, 64), "imagenet": (64, 128, 256, 512)}
MINIMUM_IMAGE_SIZE = {"cifar": 4, "imagenet": 32}  # the smallest side of which all halvings leave a pixel


class BlockOptions(NamedTuple):
    """What all blocks of a network share, by default as in the paper.

    Args:
        residual: False leaves the shortcut out, and its projection with it.
        shortcut: what carries the input around the branch (section 4.1). "A" is the identity; where the shape changes, it is
            subsampled and padded with zero channels. "B" projects (1×1) where the shape changes, and is the identity elsewhere.
            "C" projects in every block.
        pre_activation: batch norm and ReLU come before each convolution, and nothing after the addition (He et al. 2016,
            "Identity mappings in deep residual networks").
        zero_init: the last scale of every residual block starts at zero (Goyal et al. 2017).
        bottleneck_stride: the convolution that has the stride: "1x1" is the paper's (v1), "3x3" torchvision's (v1.5). The choice
            changes no parameter.
        normalization, activation, negative_slope, initializer, kernel, branch_scale, shortcut_scale, survival: of `repairs`.
        fixup: no norms; numbers that shift and multiply in their place, and another initialization (Zhang, Dauphin, Ma 2019,
            "Fixup initialization", section 4). Unlike the published code, kernels are He normal by fan-in, zero channels of
            shortcut A come before and after, a shortcut that changes the shape gets the block's input without the shift, and
            only kernels decay unless the optimizer decays all.
    """

    residual: bool = True
    shortcut: str = "A"
    bottleneck_stride: str = "1x1"
    pre_activation: bool = False
    zero_init: bool = False
    normalization: str = "batch"
    activation: str = "relu"
    negative_slope: float | None = None
    initializer: str = "he_normal"
    kernel: str = "free"
    branch_scale: float | str = 1.0
    shortcut_scale: float = 1.0
    fixup: bool = False
    survival: float = 1.0


class Block(nn.Module):
    """What basic and bottleneck blocks share: the shortcut around their convolutions.

    With `activate_input`, the first norm and ReLU of pre-activation come before the paths of shortcut and branch part.
    Takes `(activations [N, H, W, C], train)` and returns `(activations, None)`; `nn.scan` needs the second value. With stochastic
    depth it also takes its value of `repairs.survived_blocks`. `blocks` is the network's number of them.
    """

    filters: int
    strides: int = 1
    activate_input: bool = False
    options: BlockOptions = BlockOptions()
    numerics: layers.Numerics = layers.Numerics()
    blocks: int = 1

    def convolutions(self):
        """`(filters, kernel size, strides)` of each convolution."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, x, train, survived=None):
        options = self.options
        activate_sum = options.residual and not options.pre_activation
        y = x if self.activate_input else layers.Tap(name="branch")(x)
        for number in range(1, len(self.convolutions()) + 1):
            if options.pre_activation:
                y = self.normalized(y, number, train, survived)
                if number == 1 and self.activate_input:
                    x, y = y, layers.Tap(name="branch")(y)
                y = self.convolved(y, number)
            else:
                y = self.normalized(self.convolved(y, number), number, train, survived)
        if options.residual:
            shortcut = self.shortcut_of(layers.Tap(name="shortcut")(x), y.shape[-1], train)
            y = repairs.scaled_branch(options, y, survived) + repairs.scaled(options.shortcut_scale, shortcut)
        return layers.Tap(name="output")(repairs.activation(options)(y) if activate_sum else y), None

    def convolved(self, x, number):
        """The branch's convolution number `number`, from 1 on."""
        options, convolutions = self.options, self.convolutions()
        filters, size, strides = convolutions[number - 1]
        taps = layers.taps_on_image(size, x)
        kernel_init = repairs.initializer(options, taps)
        if options.fixup:
            x = repairs.Shift(name=f"bias{number}a")(x)
            kernel_init = repairs.fixup_initializer(options, taps, self.blocks, len(convolutions), number)
        return repairs.convolution(options, self.numerics, filters, size, strides, kernel_init, name=f"conv{number}")(x)

    def normalized(self, x, number, train, survived):
        """What comes after the convolution number `number`, or before it with pre-activation: a norm and the activation."""
        options, last, numerics = self.options, number == len(self.convolutions()), self.numerics
        if survived is not None:  # the statistics of a block that is left out stay
            numerics = numerics._replace(momentum=jnp.where(survived > 0, numerics.momentum, 1.0))
        if options.fixup:
            x = repairs.Multiplier(1.0, name="scale")(x) if last else x
            x = repairs.Shift(name=f"bias{number}b")(x)
        scale_init = nn.initializers.zeros if last and options.zero_init else nn.initializers.ones
        activated = options.pre_activation or not (last and options.residual)
        return repairs.normalized(options, numerics, x, train, f"norm{number}", scale_init, activated)

    def shortcut_of(self, x, filters, train):
        """The shortcut's output for a block's input `x`, with `filters` channels."""
        options, same_shape = self.options, self.strides == 1 and x.shape[-1] == filters
        if options.shortcut == "C" or (options.shortcut == "B" and not same_shape):
            kernel_init = repairs.initializer(options)
            x = layers.convolution(self.numerics, filters, 1, self.strides, kernel_init=kernel_init, name="shortcut_conv")(x)
            if options.pre_activation:  # its input is normalized
                return x
            # With its own norm: an unnormalized projection drowns the branch.
            return repairs.normalized(options, self.numerics, x, train, "shortcut_norm", activated=False)
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

    @property
    def options(self):
        """The blocks' options, with the numbers that follow from depth."""
        blocks = sum(self.blocks)
        return repairs.with_depth(self.block_options, blocks, 1 + blocks * len(self.block(1).convolutions()))

    @property
    def effective_depth(self):
        """The mean number of layers on the paths from the images to the classes, each of which takes or leaves each branch."""
        options, layers_in_branch = self.block_options, len(self.block(1).convolutions())
        if not options.residual:
            return 2 + sum(self.blocks) * layers_in_branch
        changes = len(self.blocks) - (self.block.expansion == 1)  # of the shape
        projections = {"A": 0, "B": changes, "C": sum(self.blocks)}[options.shortcut]
        return 2 + (sum(self.blocks) * layers_in_branch + projections) / 2

    @property
    def rate_multiple(self):
        """`path -> ` what multiplies the learning rate of the parameter there; None where all have one rate."""
        return repairs.fixup_rate if self.block_options.fixup else None

    @nn.compact
    def __call__(self, images, train=False):
        layers.check_image_size(images, MINIMUM_IMAGE_SIZE[self.form])
        options, total = self.options, sum(self.blocks)
        shared = {"options": options, "numerics": self.numerics, "blocks": total}
        survived = repairs.survived_blocks(self, options.survival, total, train)
        single_block = layers.rematerialized(self.block, in_loop=False) if self.remat else self.block
        x = images.astype(self.numerics.dtype)
        size, strides = (3, 1) if self.form == "cifar" else (7, 2)
        kernel_init = repairs.initializer(options, layers.taps_on_image(size, x))
        x = layers.convolution(self.numerics, self.widths[0], size, strides, kernel_init=kernel_init, name="stem_conv")(x)
        x = repairs.Shift(name="stem_bias")(x) if options.fixup else x
        if not options.pre_activation:
            x = repairs.normalized(options, self.numerics, x, train, "stem_norm")
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
            begin = sum(self.blocks[: stage - 1])
            own = () if survived is None else (survived[begin : begin + blocks],)
            if first_differs:
                first = single_block(filters, strides, activate_input, **shared, name=f"stage{stage}_first")
                x, _ = first(x, train, *(values[0] for values in own))
            if equal := blocks - first_differs:
                fields = {"filters": filters, **shared, "name": f"stage{stage}"}
                in_axes = (nn.broadcast, 0) if own else nn.broadcast
                rest = layers.scan_blocks(self.block, equal, self.remat, in_axes, **fields)
                x, _ = rest(x, train, *(values[int(first_differs) :] for values in own))
        if options.pre_activation:
            x = repairs.normalized(options, self.numerics, x, train, "head_norm")
        x = jnp.mean(x, axis=(1, 2))
        x = repairs.Shift(name="head_bias")(x) if options.fixup else x
        head_init = nn.initializers.zeros if options.fixup else None
        return layers.Output(layers.head(self.numerics, self.num_classes, x, head_init))


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
    if options.zero_init and options.normalization == "none":
        raise UserError("model.zero_init must be False with model.normalization='none': without a norm there is no scale.")
    if options.zero_init and options.pre_activation:
        raise UserError(
            "model.pre_activation and model.zero_init may not both be True: the zero norm would come before the last "
            "convolution, which then would have no gradient."
        )
    repairs.check(options, (*widths, *(width * model.block.expansion for width in widths)))
